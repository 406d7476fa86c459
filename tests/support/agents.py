# SPDX-License-Identifier: GPL-3.0-or-later
"""A telephone line in real time, and agents to speak with, made with the `websockets` package."""

import asyncio
import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import websockets
from websockets.asyncio.server import Server, ServerConnection, serve

from sipbridge.config import Config
from sipbridge.media.loop import Channel, MediaLoop, SampleSource
from sipbridge.media.remote import RemotePorts
from sipbridge.media.tones import Clip
from sipbridge.routing import Target
from sipbridge.rtc.base import JoinRequest, RtcConnection, RtcContext
from sipbridge.rtc.local import LocalRooms
from sipbridge.rtc.registry import make_connection
from tests.support import audio
from tests.support.codecs import Samples
from tests.support.fake_rtc import HUNG_UP, FakeListener

EXAMPLES = Path(__file__).parents[2] / "examples"
FRAME_S = 0.02


class Line(FakeListener):
    """One telephone, its media thread, and the listener of its channel."""

    port_id = 1
    is_live = True

    def __init__(self, rate_hz: int = 8000) -> None:
        super().__init__()
        self.sample_rate_hz = rate_hz
        self.clears: list[float] = []
        self.heard_frames: list[tuple[float, Samples]] = []  # when each was sent to the telephone
        self._voice: SampleSource = Clip(np.zeros(0, np.int16))
        self._route: Channel | None = None
        self._source: SampleSource | None = None
        self._running = True
        self._thread = threading.Thread(target=self._run, name="line", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        due = time.monotonic()
        while self._running:
            due += FRAME_S
            time.sleep(max(0.0, due - time.monotonic()))
            route, source = self._route, self._source
            if route is None or route.take is None:
                continue
            count = round(self.sample_rate_hz * FRAME_S)
            route.take(self._padded(self._voice, count), self.sample_rate_hz)
            assert source is not None
            self.heard_frames.append((time.monotonic(), self._padded(source, count)))

    @staticmethod
    def _padded(source: SampleSource, count: int) -> Samples:
        frame = np.zeros(count, np.int16)
        samples = source.read(count)
        frame[: samples.size] = samples
        return frame

    def say(self, voice: SampleSource | Samples) -> None:
        """What the telephone says from now on, silence after it."""
        self._voice = Clip(voice) if isinstance(voice, np.ndarray) else voice

    @property
    def heard(self) -> Samples:
        return np.concatenate([np.zeros(0, np.int16), *(frame for _, frame in self.heard_frames)])

    def is_loud(self, frames: int = 1) -> bool:
        return bool(
            self.heard_frames
            and np.abs(np.concatenate([f for _, f in self.heard_frames[-frames:]])).max() > 500
        )

    def stop(self) -> None:
        self._running = False
        self._thread.join()

    # --- the media loop

    def attach(self, port_id: int, route: Channel) -> None:
        assert route.make is not None
        self._source = route.make(self.sample_rate_hz)
        self._route = route

    def detach(self, port_id: int, done: Callable[[], None] | None = None) -> None:
        self._route = None

    @property
    def is_attached(self) -> bool:
        return self._route is not None

    # --- PlaybackQueue

    def write(self, samples: Samples) -> None:
        raise AssertionError("a channel with a source writes nothing")

    def clear(self) -> None:
        self.clears.append(time.monotonic())

    def mark(self, reached: Callable[[bool], None]) -> None:
        reached(False)


@contextlib.asynccontextmanager
async def call(
    config: Config, target: str, line: Line | None = None, *, connect: bool = True
) -> AsyncIterator[tuple[Line, RtcConnection]]:
    """A call whose channel is joined; it ends with the block."""
    line = line or Line()
    context = RtcContext(config, cast(MediaLoop, line), LocalRooms(), cast(RemotePorts, None))
    connection = make_connection(Target.parse(target), context)
    try:
        if connect:
            await join(connection, line)
        yield line, connection
    finally:
        await connection.close(HUNG_UP)
        line.stop()


async def join(connection: RtcConnection, line: Line) -> None:
    request = JoinRequest(
        call_id="5f2c9e0a1b7d", direction="inbound", caller="100", callee="200", headers={"X-Tenant": "acme"}
    )
    await connection.connect(request, line, line)


async def until(happened: Callable[[], object], timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not happened():
            await asyncio.sleep(0.005)


async def until_hears(line: Line, hz: float, seconds: float = 0.3) -> None:
    """A steady tone; the line has heard it for that long."""
    count = round(seconds / FRAME_S)

    def hears() -> bool:
        last = np.concatenate([np.zeros(0, np.int16), *(frame for _, frame in line.heard_frames[-count:])])
        if len(last) < round(seconds * line.sample_rate_hz) or not np.abs(last[-200:]).max() > 500:
            return False
        return abs(audio.find_tone(last, line.sample_rate_hz) - hz) < 5 and not audio.gaps_ms(
            last, line.sample_rate_hz
        )

    await until(hears)


class Agent:
    """A WebSocket server: `talk(connection)` for each call, and what came."""

    def __init__(self, talk: Callable[["Agent", ServerConnection], Awaitable[None]]) -> None:
        self.messages: list[bytes | str] = []
        self.connections: list[ServerConnection] = []
        self._talk = talk
        self._server: Server | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/agent"

    async def _handle(self, connection: ServerConnection) -> None:
        self.connections.append(connection)
        with contextlib.suppress(websockets.ConnectionClosed):
            await self._talk(self, connection)

    async def start(self, port: int = 0, **options: Any) -> None:
        self._server = await serve(
            self._handle, "127.0.0.1", port, max_size=None, compression=None, ping_interval=None, **options
        )
        self.port = next(iter(self._server.sockets)).getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            for connection in self.connections:
                connection.transport.abort()
            await self._server.wait_closed()
            self._server = None

    def objects(self, **fields: Any) -> list[dict[str, Any]]:
        """The JSON messages that came and have these fields."""
        texts = [json.loads(message) for message in self.messages if isinstance(message, str)]
        return [text for text in texts if fields.items() <= text.items()]


@contextlib.asynccontextmanager
async def agent(
    talk: Callable[[Agent, ServerConnection], Awaitable[None]], **options: Any
) -> AsyncIterator[Agent]:
    """An agent that runs within the block."""
    server = Agent(talk)
    await server.start(**options)
    try:
        yield server
    finally:
        await server.stop()


async def listen(agent: Agent, connection: ServerConnection) -> None:
    """Writes down what comes."""
    async for message in connection:
        agent.messages.append(message)


async def echo(agent: Agent, connection: ServerConnection) -> None:
    """Says back what it hears, in any of the protocols."""
    async for message in connection:
        agent.messages.append(message)
        if isinstance(message, bytes):
            await connection.send(message)
            continue
        data = json.loads(message)
        if data.get("event") == "media":
            ids = {key: data[key] for key in ("streamSid", "stream_id") if key in data}
            await connection.send(
                json.dumps({"event": "media", **ids, "media": {"payload": data["media"]["payload"]}})
            )
        elif data.get("type") == "session.update":
            await connection.send(json.dumps({"type": "session.updated", "session": data["session"]}))
        elif data.get("type") == "input_audio_buffer.append":
            delta = {"type": "response.output_audio.delta", "item_id": "i", "delta": data["audio"]}
            await connection.send(json.dumps(delta))


@contextlib.contextmanager
def program(name: str, port: int) -> Iterator[subprocess.Popen[str]]:
    """An agent of examples/ that listens; it ends with the block."""
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLES / name), str(port)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == f"listening at ws://127.0.0.1:{port}\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
