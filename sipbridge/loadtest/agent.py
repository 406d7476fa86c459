# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent of a measurement: says back at once what it hears, and notes when it heard first.

A process of its own, ``python -m sipbridge.loadtest.agent PORT``, in the protocol `proxy`; when it is
ended it prints by caller, as JSON, the time of each one's first audio.
"""

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import picows

from sipbridge.loadtest.generator import LoadtestError


class _Echo(picows.WSListener):
    def __init__(self, first_at: dict[str, float]) -> None:
        super().__init__()
        self._first_at = first_at
        self._caller = ""
        self._is_heard = False

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        if frame.msg_type == picows.WSMsgType.BINARY:
            if not self._is_heard:
                self._is_heard = True
                self._first_at[self._caller] = time.time()
            transport.send(picows.WSMsgType.BINARY, frame.get_payload_as_bytes())
        elif frame.msg_type == picows.WSMsgType.TEXT:
            self._caller = json.loads(frame.get_payload_as_bytes()).get("caller", self._caller)
        elif frame.msg_type == picows.WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code())
            transport.disconnect()


async def _serve(port: int) -> None:
    first_at: dict[str, float] = {}
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await picows.ws_create_server(lambda request: _Echo(first_at), "127.0.0.1", port)
    print("listening", flush=True)
    await ended.wait()
    print(json.dumps(first_at))


@dataclass
class Agent:
    """One that runs, or has run."""

    first_at: dict[str, float] = field(default_factory=dict)  # Unix time by caller; at its end


@contextlib.contextmanager
def answering(port: int) -> Iterator[Agent]:
    """It listens within the block."""
    agent = Agent()
    command = [sys.executable, "-m", "sipbridge.loadtest.agent", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline() != "listening\n":
                raise LoadtestError("the agent of the measurement did not start")
            yield agent
        finally:
            process.terminate()
            out, _ = process.communicate(timeout=10)
        agent.first_at = json.loads(out)


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))
