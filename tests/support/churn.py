# SPDX-License-Identifier: GPL-3.0-or-later
"""A server that makes and closes 10,000 ports while it carries calls: ``python -m tests.support.churn FILE``.

It says "ready" when it listens, begins at the first line of its standard input, and says how many ports
are left when it is done.
"""

import asyncio
import sys
from pathlib import Path

from sipbridge.app import App
from sipbridge.config import load_config
from sipbridge.sip.endpoint import SipEndpoint
from sipbridge.sip.media_port import MediaPort

PORTS = 10_000
AT_ONCE = 50


def make_and_close(endpoint: SipEndpoint) -> None:
    for port in [MediaPort(endpoint.engine) for _ in range(AT_ONCE)]:
        port.close()


async def main(path: Path) -> None:
    app = App(load_config(path, {}), http=False)
    await app.start()
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    endpoint = app.calls.endpoint
    for _ in range(PORTS // AT_ONCE):
        await endpoint.run(lambda: make_and_close(endpoint))
    print(endpoint.counters()["ports"], flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await app.stop()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
