# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs that join a room, over real sockets: who is let in, and what goes wrong with a connection."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import websockets
from pydantic import SecretStr
from websockets.asyncio.client import ClientConnection, connect

from sipbridge.config import HttpConfig
from sipbridge.http.server import HttpServer
from sipbridge.rtc.websocket import session
from sipbridge.rtc.websocket.protocol import MAX_MESSAGE_BYTES
from tests.support.fake_calls import FakeCalls
from tests.support.fake_rtc import FakeCall

TOKEN = {"Authorization": "Bearer configured"}


@pytest.fixture(autouse=True)
def _state_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


class Stage:
    """A server, a room with one telephone in it, and its audio, which flows as fast as it can."""

    def __init__(self, server: HttpServer, calls: FakeCalls) -> None:
        self.server = server
        self.calls = calls
        self.phone = FakeCall(calls.media, calls.context, "local:demo", "phone")

    def join(self, query: str = "name=p", headers: dict[str, str] = TOKEN, **options: Any) -> connect:
        url = f"ws://{self.server.address}/v1/rooms/demo/audio?{query}"
        return connect(url, additional_headers=headers, compression=None, max_size=None, **options)

    @property
    def members(self) -> tuple[str, ...]:
        return self.calls.context.rooms.members().get("demo", ())

    async def until(self, happened: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not happened():
                await asyncio.sleep(0.002)


def run(scenario: Callable[[Stage], Awaitable[None]]) -> None:
    async def main() -> None:
        calls = FakeCalls()
        server = HttpServer(HttpConfig(listen="127.0.0.1:0", tokens=(SecretStr("configured"),)), calls)
        await server.start()
        stage = Stage(server, calls)
        await stage.phone.connect()

        async def flow() -> None:
            while True:
                calls.media.run(4)
                await asyncio.sleep(0.002)

        flowing = asyncio.ensure_future(flow())
        try:
            await scenario(stage)
            await stage.until(lambda: stage.members == ("phone",))
        finally:
            await server.stop()
            flowing.cancel()

    asyncio.run(main())


def test_it_hears_and_is_heard() -> None:
    async def scenario(stage: Stage) -> None:
        async with stage.join() as program:
            await stage.until(lambda: stage.members == ("phone", "p"))
            assert json.loads(await program.recv()) == {"type": "joined", "identity": "phone"}
            stage.phone.phone.say(np.full(80000, 1234, np.int16))
            while True:
                message = await program.recv()
                assert isinstance(message, bytes)
                if abs(int(np.frombuffer(message, np.int16)[160]) - 1234) < 5:
                    break
            await program.send(np.full(16000, 4321, np.int16).tobytes())
            await stage.until(lambda: stage.phone.phone.heard.any())

    run(scenario)


def test_subprotocol() -> None:
    async def scenario(stage: Stage) -> None:
        async with stage.join("protocol=jambonz", subprotocols=["audio.jambonz.org"]) as program:
            assert program.subprotocol == "audio.jambonz.org"
            first = json.loads(await program.recv())
            assert first["mixType"] == "mono"

    run(scenario)


@pytest.mark.parametrize(
    ("query", "headers", "status", "complaint"),
    [
        ("", {}, 401, "valid token"),
        ("", {"Authorization": "Bearer wrong"}, 401, "valid token"),
        ("protocol=speech", TOKEN, 422, "no protocol 'speech'"),
        ("rate_hz=fast", TOKEN, 422, "rate_hz"),
        ("rate_hz=11025", TOKEN, 422, "11025 Hz"),
        ("nmae=p", TOKEN, 422, "nmae"),
    ],
)
def test_refused_before_the_upgrade(query: str, headers: dict[str, str], status: int, complaint: str) -> None:
    """As a problem like any other."""

    async def scenario(stage: Stage) -> None:
        with pytest.raises(websockets.InvalidStatus) as caught:
            async with stage.join(query, headers):
                pass
        response = caught.value.response
        assert response.status_code == status
        assert response.headers["Content-Type"] == "application/problem+json"
        assert response.body is not None
        assert complaint in json.loads(response.body)["detail"]

    run(scenario)


def test_broken_messages() -> None:
    """One that is too long is ignored, three in a row are a protocol error."""

    async def scenario(stage: Stage) -> None:
        async with stage.join() as program:
            await program.send(bytes(MAX_MESSAGE_BYTES + 2))
            await program.send('{"type": "text", "content": "still here"}')
            await stage.until(lambda: ("message", "text", "still here") in stage.phone.told)
            for _ in range(3):
                await program.send("{")
            await program.wait_closed()
            assert program.close_code == 1002
            assert program.close_reason == "protocol error"

    run(scenario)


def test_one_that_vanishes() -> None:
    """Without a word: the room is told, and nothing else happens to it."""

    async def scenario(stage: Stage) -> None:
        async with stage.join() as program:
            await stage.until(lambda: "p" in stage.members)
            program.transport.abort()
            await stage.until(lambda: stage.members == ("phone",))
            assert stage.phone.told == [("joined", "p"), ("left", "p", 0)]

    run(scenario)


def test_one_that_reads_nothing(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Little waits for it, then it has to go, though it does not notice."""
    monkeypatch.setattr(session, "STUCK_S", 0.3)

    async def scenario(stage: Stage) -> None:
        async with stage.join() as program:
            await stage.until(lambda: "p" in stage.members)
            program.transport.pause_reading()
            await stage.until(lambda: stage.members == ("phone",))
            program.transport.resume_reading()

    run(scenario)
    warnings = [str(record.msg) for record in caplog.records if record.levelname == "WARNING"]
    assert len([warning for warning in warnings if "does not read" in warning]) == 1


def test_a_minute_at_once() -> None:
    """It is kept, and said in its own time; what waits does not hold up the end."""

    async def scenario(stage: Stage) -> None:
        async with stage.join() as program:
            for _ in range(60):
                await program.send(np.full(16000, 4321, np.int16).tobytes())
            await stage.until(lambda: len(np.flatnonzero(stage.phone.phone.heard > 4000)) > 20 * 8000)
            program.transport.abort()

    run(scenario)


def test_end_of_the_server() -> None:
    """Whoever is there is told that it may come again."""
    programs: list[ClientConnection] = []

    async def main() -> None:
        calls = FakeCalls()
        server = HttpServer(HttpConfig(listen="127.0.0.1:0", tokens=(SecretStr("configured"),)), calls)
        await server.start()
        stage = Stage(server, calls)
        async with stage.join() as program:
            await stage.until(lambda: stage.members)
            programs.append(program)
            await server.stop()
            await program.wait_closed()
            assert stage.members == ()

    asyncio.run(main())
    assert programs[0].close_code == 1012
