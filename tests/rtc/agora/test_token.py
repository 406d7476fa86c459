# SPDX-License-Identifier: GPL-3.0-or-later
"""Tokens of version 007, and those that others make."""

import base64
import json
import zlib

import httpx
import pytest
from pydantic import SecretStr

from sipbridge.rtc.agora.token import build_token, make_token, obtain_token
from sipbridge.rtc.token_server import TokenError
from tests.support import fake_agora
from tests.support.event_loop import in_event_loop

VECTOR = (
    "007eJxTYBBbsMMnKq7p9Hf/HcIX5kce9b518kCiQgSr5Zrp4X1Tu6UUGCzNDZwdjU1TUs0Mkk1MzExMk5ISUy0SjQxNDcwMk4yN3b8I"
    "MEQwMTAwMoAwBIL4CgzmKeZGxmamqUmWFsYmFqbGluapxqnGaZYpJmYGSSkpiVwMRhYWRsYmhkbmxgDCaiTj"
)


def test_published_vector() -> None:
    """Agora's own, to the last character."""
    made = build_token(
        "970CA35de60c44645bbae8a215061b33",
        "5CFd2fd1755d40ecb72977518be15d3b",
        "7d72365eb983485397e3e3f9d460bdda",
        "2882341273",
        privileges={1: 600},
        issued_at=1111111,
        ttl_s=600,
        salt=1,
    )
    assert made == VECTOR


def test_token_of_a_project() -> None:
    """It names channel and user; "0" is any. No two are alike. Without a certificate there is none."""
    config = fake_agora.config(token_ttl_s=777).agora
    assert config is not None
    first, second = (make_token(config, "room", "42") for _ in range(2))
    assert first != second
    body = zlib.decompress(base64.b64decode(first.removeprefix("007")))
    assert fake_agora.APP_ID.encode() in body
    assert body.endswith(b"\x04\x00room\x02\x0042")
    assert (777).to_bytes(4, "little") in body
    any_user = zlib.decompress(base64.b64decode(make_token(config, "room", "0").removeprefix("007")))
    assert any_user.endswith(b"\x04\x00room\x00\x00")
    without = fake_agora.config(app_certificate=None).agora
    assert without is not None
    assert make_token(without, "room", "42") == ""


@in_event_loop
async def test_token_of_somebody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever makes it is told for what; what goes wrong has words."""
    asked: list[httpx.Request] = []
    answers = [
        httpx.Response(200, json={"token": "007abc"}),
        httpx.Response(403),
        httpx.Response(200, json={"token": ""}),
        httpx.Response(200, text="hello"),
    ]

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        if not answers:
            raise httpx.ConnectError("refused")
        return answers.pop(0)

    client = httpx.AsyncClient
    monkeypatch.setattr(httpx, "AsyncClient", lambda timeout: client(transport=httpx.MockTransport(answer)))
    config = fake_agora.config(
        token_url="http://127.0.0.1:1/token", token_headers={"X-Key": SecretStr("secret")}
    ).agora
    assert config is not None
    assert await obtain_token(config, "room", "42", "call") == "007abc"
    assert asked[0].headers["X-Key"] == "secret"
    assert json.loads(asked[0].content) == {"channel": "room", "user_id": "42", "call_id": "call"}
    for words in ("answers 403", "has no token", "has no token", "cannot be reached: refused"):
        with pytest.raises(TokenError, match=words):
            await obtain_token(config, "room", "42", "call")
