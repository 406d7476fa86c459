# SPDX-License-Identifier: GPL-3.0-or-later
"""Where else LiveKit Cloud may be joined, as a server on loopback says that takes its place."""

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from sipbridge.rtc.livekit import regions
from sipbridge.rtc.livekit.token import Entry
from tests.support.ports import free_port

NEAR, FAR = "https://near.example.com", "https://far.example.com"


class Cloud(ThreadingHTTPServer):
    """Says what its regions are."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer: tuple[int, bytes] = (404, b"")
        self.asked: list[tuple[str, str | None]] = []
        self.may_answer = threading.Event()
        self.may_answer.set()

    def name(self, *urls: str) -> None:
        found = [{"region": f"r{n}", "url": url, "distance": str(n)} for n, url in enumerate(urls)]
        self.answer = 200, json.dumps({"regions": found, "later": True}).encode()

    @property
    def entry(self) -> Entry:
        return Entry(f"ws://127.0.0.1:{self.server_port}", "token")


class _Handler(BaseHTTPRequestHandler):
    server: Cloud

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers["Authorization"]))
        self.server.may_answer.wait(10)
        status, text = self.server.answer
        with contextlib.suppress(OSError):  # nobody waits for it any more
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    monkeypatch.setattr(regions, "CLOUD_DOMAINS", ("0.0.1",))
    with Cloud() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.may_answer.set()
        server.shutdown()
        thread.join()


async def found(entry: Entry) -> tuple[str, ...]:
    regions.learn(entry)
    return await regions.find(entry, 5.0)


def test_they_are_asked_for_once_and_kept(cloud: Cloud) -> None:
    """With the token, in their order, also by two calls at the same time."""
    cloud.name(NEAR, FAR)

    async def main() -> None:
        for names in await asyncio.gather(found(cloud.entry), found(cloud.entry)):
            assert names == (NEAR, FAR)
        cloud.name(FAR)
        assert await found(cloud.entry) == (NEAR, FAR)

    asyncio.run(main())
    assert cloud.asked == [("/settings/regions", "Bearer token")]


def test_old_ones_are_asked_for_anew(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """And are better than none where nobody answers any more."""
    monkeypatch.setattr(regions, "_FRESH_S", 0.0)

    async def main() -> None:
        for names in (NEAR, FAR), (FAR,):
            cloud.name(*names)
            assert await found(cloud.entry) == names
        cloud.answer = 503, b""
        assert await found(cloud.entry) == (FAR,)
        assert len(cloud.asked) == 3

    asyncio.run(main())


@pytest.mark.parametrize(
    "answer",
    [
        (401, b""),
        (404, b"no"),
        (200, b""),
        (200, b"<html>"),
        (200, b"[]"),
        (200, b"{}"),
        (200, b'{"regions":1}'),
    ],
)
def test_who_says_nothing_of_use_has_none(cloud: Cloud, answer: tuple[int, bytes]) -> None:
    cloud.answer = answer
    assert asyncio.run(found(cloud.entry)) == ()


def test_who_is_not_there_or_says_nothing_has_none(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is waited for, but no longer than there is time, and not for ever."""
    assert asyncio.run(found(Entry(f"ws://127.0.0.1:{free_port()}", "token"))) == ()
    cloud.may_answer.clear()

    async def main() -> None:
        regions.learn(cloud.entry)
        assert await regions.find(cloud.entry, 0.05) == ()

    asyncio.run(main())
    monkeypatch.setattr(regions, "_ANSWER_S", 0.05)
    assert asyncio.run(found(cloud.entry)) == ()


def test_a_server_of_ones_own_is_asked_for_none(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    cloud.name(NEAR)
    monkeypatch.undo()
    assert asyncio.run(found(cloud.entry)) == ()
    assert cloud.asked == []


@pytest.mark.parametrize(
    ("url", "is_cloud"),
    [
        ("wss://me.livekit.cloud", True),
        ("wss://ME.LiveKit.Cloud:443/", True),
        ("https://me.region.livekit.run", True),
        ("ws://127.0.0.1:7880", False),
        ("wss://livekit.cloud.example.com", False),
        ("wss://mylivekit.cloud", False),
        ("wss://[livekit.cloud", False),
        ("", False),
    ],
)
def test_hosts_of_the_cloud(url: str, is_cloud: bool) -> None:
    assert regions.is_cloud(url) is is_cloud
