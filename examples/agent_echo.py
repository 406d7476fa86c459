# SPDX-License-Identifier: GPL-3.0-or-later
"""A voice agent that says back what it hears: `pip install websockets`, then `python agent_echo.py [PORT]`.

It speaks the bridge's own protocol, "proxy": 16-bit samples at 16 kHz as binary messages, both ways, and
JSON for the rest. Calls reach it by a rule with the target "ws://127.0.0.1:8765".
"""

import asyncio
import json
import sys

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed


async def talk(call: ServerConnection) -> None:
    """One call, from its beginning to its end."""
    print("a call", flush=True)
    try:
        async for message in call:
            if isinstance(message, bytes):
                await call.send(message)
                continue
            event = json.loads(message)
            print(event, flush=True)
            if event.get("type") == "dtmf" and event["digit"] == "#":
                await call.send(json.dumps({"type": "hangup"}))
    except ConnectionClosed:
        pass
    print("it has ended", flush=True)


async def main(port: int) -> None:
    async with serve(talk, "127.0.0.1", port, compression=None) as server:
        print(f"listening at ws://127.0.0.1:{port}", flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 8765))
