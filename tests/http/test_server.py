# SPDX-License-Identifier: GPL-3.0-or-later
"""The server on a real socket: streams of events, ports, and its end."""

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from sipbridge.config import HttpConfig
from sipbridge.errors import ConfigError, EndKind, EndReason, Party
from sipbridge.events import CallHeld, CallMessage
from sipbridge.http.server import HttpServer
from sipbridge.http.token import read_token, token_path
from tests.support.fake_calls import FakeCalls


@pytest.fixture(autouse=True)
def _state_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


def run(calls: FakeCalls, scenario: Callable[[HttpServer, httpx.AsyncClient], Awaitable[None]]) -> None:
    async def main() -> None:
        config = HttpConfig(listen="127.0.0.1:0", tokens=(SecretStr("configured"),))
        server = HttpServer(config, calls)
        await server.start()
        try:
            headers = {"Authorization": f"Bearer {read_token(token_path())}"}
            url = f"http://{server.address}"
            async with httpx.AsyncClient(base_url=url, headers=headers, trust_env=False) as client:
                await scenario(server, client)
        finally:
            await server.stop()

    asyncio.run(main())


async def read_event(lines: AsyncIterator[str]) -> tuple[str, dict[str, Any]]:
    """Name and data of the next event of a stream."""
    name = ""
    async for line in lines:
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            return name, json.loads(line.removeprefix("data: "))
    raise AssertionError("the stream has ended")


def test_both_kinds_of_token_are_taken() -> None:
    async def scenario(_: HttpServer, client: httpx.AsyncClient) -> None:
        assert (await client.get("/v1/calls")).status_code == 200
        client.headers["Authorization"] = "Bearer configured"
        assert (await client.get("/v1/calls")).status_code == 200
        client.headers["Authorization"] = "Bearer other"
        assert (await client.get("/v1/calls")).status_code == 401

    run(FakeCalls(), scenario)


def test_events_arrive_as_they_happen() -> None:
    calls = FakeCalls()

    async def scenario(_: HttpServer, client: httpx.AsyncClient) -> None:
        async with client.stream("GET", "/v1/events") as stream:
            assert stream.status_code == 200
            assert stream.headers["content-type"].startswith("text/event-stream")
            lines = stream.aiter_lines()
            calls.publish(CallHeld(call_id="c1", at=12.5))
            assert await read_event(lines) == (
                "call.held",
                {"event": "call.held", "call_id": "c1", "at": 12.5},
            )
            calls.publish(CallMessage(call_id="c1", topic="a\nb", text='two\nlines, and "quotes"'))
            name, data = await read_event(lines)
            assert name == "call.message"
            assert data["text"] == 'two\nlines, and "quotes"'

    run(calls, scenario)


def test_stream_shows_that_it_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sipbridge.http.api.KEEP_ALIVE_S", 0.01)

    async def scenario(_: HttpServer, client: httpx.AsyncClient) -> None:
        async with client.stream("GET", "/v1/events") as stream:
            lines = stream.aiter_lines()
            assert await anext(lines) == ": listening"
            assert [await anext(lines) for _ in range(4)] == ["", ":", "", ":"]

    run(FakeCalls(), scenario)


def test_listener_that_leaves_is_forgotten() -> None:
    calls = FakeCalls()

    async def scenario(_: HttpServer, client: httpx.AsyncClient) -> None:
        async with client.stream("GET", "/v1/events") as stream:
            await anext(stream.aiter_lines())
            assert len(calls.subscribers) == 1
        async with asyncio.timeout(5):
            while calls.subscribers:
                await asyncio.sleep(0.01)

    run(calls, scenario)


def test_stop_ends_streams_at_once() -> None:
    calls = FakeCalls()

    async def scenario(server: HttpServer, client: httpx.AsyncClient) -> None:
        async with client.stream("GET", "/v1/events") as stream:
            lines = stream.aiter_lines()
            await anext(lines)
            calls.add("c1")
            calls.end("c1", EndReason(EndKind.HANGUP, "", Party.CALLER))
            stopping = asyncio.create_task(server.stop())
            rest = [line async for line in lines]
            assert any("call.ended" in line for line in rest) or rest == [""]
            await stopping
        assert calls.subscribers == []

    run(calls, scenario)


def test_port_is_free_again_after_stop() -> None:
    async def main() -> None:
        server = HttpServer(HttpConfig(listen="127.0.0.1:0"), FakeCalls())
        await server.start()
        address = server.address
        await server.stop()
        again = HttpServer(HttpConfig(listen=address), FakeCalls())
        await again.start()
        assert again.address == address
        await again.stop()

    asyncio.run(main())


def test_port_in_use_names_the_program() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]

        async def main() -> None:
            server = HttpServer(HttpConfig(listen=f"127.0.0.1:{port}"), FakeCalls())
            message = rf"port {port}/tcp is in use by .*pid {os.getpid()}"
            with pytest.raises(ConfigError, match=message) as error:
                await server.start()
            assert str(error.value).startswith("[http] listen: ")
            await server.stop()

        asyncio.run(main())


def test_listens_on_ipv6() -> None:
    async def main() -> None:
        server = HttpServer(HttpConfig(listen="[::1]:0"), FakeCalls())
        await server.start()
        async with httpx.AsyncClient(trust_env=False) as client:
            assert (await client.get(f"http://{server.address}/readyz")).status_code == 200
        await server.stop()

    asyncio.run(main())
