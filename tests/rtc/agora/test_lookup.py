# SPDX-License-Identifier: GPL-3.0-or-later
"""Asking somebody else where a call goes: by HTTP on loopback."""

import asyncio
import json
from typing import Any

import pytest
from pydantic import SecretStr

from sipbridge.config import AgoraConfig
from sipbridge.errors import EndKind, RtcError
from sipbridge.rtc.agora.lookup import Found, look_up
from sipbridge.rtc.base import JoinRequest
from tests.support import fake_agora

JOIN = JoinRequest(
    call_id="c1",
    direction="inbound",
    caller="100",
    callee="+4930123",
    trunk="line",
    rule="rooms",
    headers={"X-Ticket": "4711", "User-Agent": "phone"},
)


class Directory:
    """One that answers what a test says."""

    def __init__(self, status: int, body: str, delay_s: float = 0.0) -> None:
        self._status, self._body, self._delay_s = status, body, delay_s
        self.asked: list[dict[str, Any]] = []
        self.headers = ""

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.headers = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next(
            int(line.partition(":")[2])
            for line in self.headers.splitlines()
            if line.lower().startswith("content-length")
        )
        self.asked.append(json.loads(await reader.readexactly(length)))
        await asyncio.sleep(self._delay_s)
        head = f"HTTP/1.1 {self._status} X\r\nContent-Length: {len(self._body)}\r\nConnection: close\r\n\r\n"
        writer.write((head + self._body).encode())
        await writer.drain()
        writer.close()

    async def ask(self, timeout_s: float = 3.0) -> Found:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            return await look_up(config(port, timeout_s), "room", JOIN)


def config(port: int, timeout_s: float = 3.0) -> AgoraConfig:
    agora = fake_agora.config(
        lookup_url=f"http://127.0.0.1:{port}/where",
        lookup_headers={"X-Key": SecretStr("secret")},
        lookup_timeout_s=timeout_s,
    ).agora
    assert agora is not None
    return agora


def test_answer() -> None:
    """What is asked, and what may be said: all or nothing of it."""
    answer = {"channel": "sales", "user_id": 42, "token": "007x", "scenario": "meeting", "more": 1}
    directory = Directory(200, json.dumps(answer))
    found = asyncio.run(directory.ask())
    assert found == Found(channel="sales", user_id="42", token="007x", scenario="meeting")
    assert directory.asked == [
        {
            "call_id": "c1",
            "direction": "inbound",
            "caller": "100",
            "number": "+4930123",
            "trunk": "line",
            "rule": "rooms",
            "channel": "room",
            "headers": {"X-Ticket": "4711"},
        }
    ]
    assert "secret" in directory.headers
    assert asyncio.run(Directory(200, "{}").ask()) == Found()


@pytest.mark.parametrize(
    ("status", "body", "code", "words"),
    [
        (200, '{"reject": 486, "reason": "not now"}', 486, "not now"),
        (200, '{"reject": 603}', 603, "603"),
        (404, "", 404, "404"),
        (403, '{"reason": "who are you"}', 403, "who are you"),
        (429, "", 503, "503"),
        (200, '{"reject": 200}', 502, "no SIP code"),
        (200, '{"reject": true}', 502, "no SIP code"),
        (200, '{"channel": 5}', 502, "channel is no text"),
        (200, '{"scenario": "opera"}', 502, "none of default"),
        (200, "hello", 502, "no JSON object"),
        (200, "[]", 502, "no JSON object"),
        (500, "", 502, "answers 500"),
        (302, "", 502, "answers 302"),
    ],
)
def test_refusals_and_nonsense(status: int, body: str, code: int, words: str) -> None:
    with pytest.raises(RtcError) as caught:
        asyncio.run(Directory(status, body).ask())
    assert caught.value.reason.code == code
    assert words in caught.value.reason.detail


def test_no_answer() -> None:
    """Nobody there is 503; nobody who speaks is 504."""
    with pytest.raises(RtcError) as caught:
        asyncio.run(Directory(200, "{}", delay_s=1).ask(0.2))
    assert caught.value.reason.code == 504
    with pytest.raises(RtcError) as caught:
        asyncio.run(look_up(config(1), "room", JOIN))
    assert (caught.value.reason.kind, caught.value.reason.code) == (EndKind.UNAVAILABLE, 503)
