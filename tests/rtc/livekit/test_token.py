# SPDX-License-Identifier: GPL-3.0-or-later
"""Tokens, checked by LiveKit's own library, and whoever makes them instead."""

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, ClassVar

import pytest
from livekit import api
from pydantic import SecretStr

from sipbridge.config import LiveKitConfig
from sipbridge.rtc.livekit.participant import Participant
from sipbridge.rtc.livekit.token import Entry, make_token, obtain, read_token
from sipbridge.rtc.token_server import TokenError

SECRET = "secret_of_at_least_32_characters_x"
CONFIG = LiveKitConfig(url="ws://x", api_key="key", api_secret=SecretStr(SECRET), token_ttl_s=600)
ANN = Participant("ann", "Ann", "m", {"a": "b"}, {"agents": [{"agent_name": "desk", "metadata": "x"}]})


def test_as_livekits_own_library_reads_it() -> None:
    """Somebody who may join, speak, hear, write and change its own attributes, and nothing else."""
    claims = api.TokenVerifier("key", SECRET).verify(make_token(CONFIG, "r", ANN))
    assert (claims.identity, claims.name, claims.kind, claims.metadata) == ("ann", "Ann", "sip", "m")
    assert claims.attributes == {"a": "b"}
    grants = claims.video
    assert grants is not None
    assert grants.room_join
    assert grants.room == "r"
    assert grants.can_update_own_metadata
    assert (grants.can_publish, grants.can_subscribe, grants.can_publish_data) == (True, True, True)
    assert not any((grants.room_admin, grants.room_create, grants.room_list, grants.hidden))
    assert claims.room_config is not None
    assert claims.room_config.agents[0].agent_name == "desk"


def test_tokens_of_livekits_own_library() -> None:
    token = (
        api.AccessToken("key", SECRET)
        .with_grants(api.VideoGrants(room_admin=True, room="r"))
        .with_sip_grants(api.SIPGrants(admin=True, call=True))
        .to_jwt()
    )
    grants = read_token(token, "key", SECRET)
    assert grants.video["roomAdmin"] is True
    assert grants.video["room"] == "r"
    assert grants.sip == {"admin": True, "call": True}


@pytest.mark.parametrize("token", ["", "x.y.z", make_token(CONFIG, "r", ANN)[:-3] + "abc"])
def test_tokens_that_are_none(token: str) -> None:
    with pytest.raises(TokenError):
        read_token(token, "key", SECRET)


def test_tokens_of_another_key_or_secret_or_time() -> None:
    token = make_token(CONFIG, "r", ANN)
    for key, secret in (("other", SECRET), ("key", SECRET + "y")):
        with pytest.raises(TokenError):
            read_token(token, key, secret)
    over = CONFIG.model_copy(update={"token_ttl_s": -300})
    with pytest.raises(TokenError, match="expired"):
        read_token(make_token(over, "r", ANN), "key", SECRET)


class TokenServer(BaseHTTPRequestHandler):
    """Answers what a test says."""

    answer: ClassVar[tuple[int, bytes]] = (200, b"{}")
    asked: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append({"authorization": self.headers["Authorization"], **body})
        status, text = self.answer
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def config() -> Iterator[LiveKitConfig]:
    TokenServer.asked.clear()
    with HTTPServer(("127.0.0.1", 0), TokenServer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield LiveKitConfig(
            url="ws://x",
            token_url=f"http://127.0.0.1:{server.server_port}/token",
            token_headers={"Authorization": SecretStr("Bearer t")},
        )
        server.shutdown()
        thread.join()


def test_a_token_server(config: LiveKitConfig) -> None:
    """Is told who joins, as LiveKit's clients tell theirs; it may name another server."""
    TokenServer.answer = (200, b'{"participant_token": "t1"}')
    assert asyncio.run(obtain(config, "r", ANN)) == Entry("ws://x", "t1")
    assert TokenServer.asked == [
        {
            "authorization": "Bearer t",
            "room_name": "r",
            "participant_identity": "ann",
            "participant_name": "Ann",
            "participant_metadata": "m",
            "participant_attributes": {"a": "b"},
            "room_config": {"agents": [{"agent_name": "desk", "metadata": "x"}]},
        }
    ]
    TokenServer.answer = (200, b'{"participant_token": "t2", "server_url": "wss://y"}')
    assert asyncio.run(obtain(config, "r", ANN)) == Entry("wss://y", "t2")


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        ((500, b""), "answers 500"),
        ((403, b"no"), "answers 403"),
        ((200, b"no JSON"), "has no participant_token"),
        ((200, b"[]"), "has no participant_token"),
        ((200, b"{}"), "has no participant_token"),
    ],
)
def test_a_token_server_that_fails(config: LiveKitConfig, answer: tuple[int, bytes], complaint: str) -> None:
    TokenServer.answer = answer
    with pytest.raises(TokenError, match=complaint):
        asyncio.run(obtain(config, "r", ANN))


def test_a_token_server_that_is_not_there() -> None:
    config = LiveKitConfig(url="ws://x", token_url="http://127.0.0.1:9/")
    with pytest.raises(TokenError, match="cannot be reached"):
        asyncio.run(obtain(config, "r", ANN))
