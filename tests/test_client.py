# SPDX-License-Identifier: GPL-3.0-or-later
"""The client against the real routes, and against what is no sipbridge."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest

from sipbridge.calls import RoomView
from sipbridge.client import ApiClient, ApiError, NoServerError, TokenError, api_url, find_token
from sipbridge.config import load_config
from sipbridge.errors import CallError, ConfigError, EndKind, EndReason, Party
from sipbridge.http import schema
from sipbridge.http.api import create_api
from sipbridge.http.token import read_or_make_token, token_path
from tests.support.fake_calls import FakeCalls

TOKEN = "a-token-for-tests-0123456789abcdef"


def run[T](calls: FakeCalls, scenario: Callable[[ApiClient], Awaitable[T]], token: str | None = TOKEN) -> T:
    async def main() -> T:
        transport = httpx.ASGITransport(create_api(calls, [TOKEN], asyncio.Event()))
        async with ApiClient("http://test", token, transport) as client:
            return await scenario(client)

    return asyncio.run(main())


def test_calls_come_as_the_registry_has_them() -> None:
    calls = FakeCalls()
    views = [calls.add("c1"), calls.add("c2", state="held", direction="outbound")]
    calls.end("c2", EndReason(EndKind.BUSY, "Busy Here", Party.CALLEE, 486))
    first, second = run(calls, lambda client: client.list())
    assert first == schema.Call.from_view(views[0])
    assert first.from_ == "1001"
    assert second.end is not None
    assert second.end.to_reason() == EndReason(EndKind.BUSY, "Busy Here", Party.CALLEE, 486)
    assert run(calls, lambda client: client.get("c1")) == first


def test_dial_hands_everything_on() -> None:
    calls = FakeCalls()
    body = schema.Dial.model_validate(
        {
            "to": "sip:a@example.com",
            "target": "echo:",
            "trunk": "t",
            "from": "1001",
            "headers": {"X-A": "1"},
            "play": "/tmp/a.wav",
            "record": "/tmp/b.wav",
            "dtmf": "1w#",
            "ring_s": 5,
            "max_duration_s": 7,
        }
    )
    assert run(calls, lambda client: client.dial(body)) == "out-1"
    assert calls.requests == [body.to_request()]


def test_hangup_digits_and_rooms() -> None:
    calls = FakeCalls()
    calls.add("c1")
    calls.room_views = [RoomView(name="demo", rate_hz=8000, members=("c1",))]
    assert run(calls, lambda client: client.rooms()) == [
        schema.Room(name="demo", rate_hz=8000, members=["c1"])
    ]
    run(calls, lambda client: client.send_dtmf("c1", "12"))
    run(calls, lambda client: client.hangup("c1"))
    assert (calls.digits, calls.hung_up) == ([("c1", "12")], ["c1"])


def test_errors_come_as_the_registry_raised_them() -> None:
    calls = FakeCalls()
    body = schema.Dial(to="1")
    with pytest.raises(LookupError, match="nobody"):
        run(calls, lambda client: client.get("nobody"))
    with pytest.raises(LookupError):
        run(calls, lambda client: client.hangup("../rooms"))
    calls.error = ConfigError("there is no trunk 'x'")
    with pytest.raises(ConfigError, match="there is no trunk 'x'"):
        run(calls, lambda client: client.dial(body))
    reason = EndReason(EndKind.SHUTDOWN, "draining")
    calls.error = CallError(reason)
    with pytest.raises(CallError) as error:
        run(calls, lambda client: client.dial(body))
    assert error.value.reason == reason


@pytest.mark.parametrize("token", [None, "wrong"])
def test_wrong_token_is_told(token: str | None) -> None:
    with pytest.raises(TokenError):
        run(FakeCalls(), lambda client: client.list(), token)


def test_draining_server_is_still_a_server() -> None:
    calls = FakeCalls()
    calls.draining = True
    assert run(calls, lambda client: client.list()) == []


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, text="hello"),
        httpx.Response(200, json={"service": "other"}),
        httpx.Response(200, json=[]),
        httpx.Response(404),
    ],
    ids=["text", "other", "list", "404"],
)
def test_token_is_not_shown_to_another_program(answer: httpx.Response) -> None:
    seen: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return answer

    async def main() -> None:
        client = ApiClient("http://test", TOKEN, httpx.MockTransport(handle))
        with pytest.raises(NoServerError, match="no sipbridge"):
            async with client:
                pass

    asyncio.run(main())
    assert len(seen) == 1
    assert "authorization" not in seen[0].headers


def test_no_server_is_told() -> None:
    async def main() -> None:
        with pytest.raises(NoServerError, match="no server answers"):
            async with ApiClient("http://127.0.0.1:1", TOKEN):
                pass

    asyncio.run(main())


def test_answer_that_is_not_understood_is_an_error() -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/healthz":
            return httpx.Response(200, json={"service": "sipbridge"})
        return httpx.Response(200, json={"calls": [{"id": 1}]})

    async def main() -> None:
        with pytest.raises(ApiError, match="not understood"):
            async with ApiClient("http://test", TOKEN, httpx.MockTransport(handle)):
                pass

    asyncio.run(main())


@pytest.mark.parametrize(
    ("listen", "url"),
    [
        ("127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("0.0.0.0:80", "http://127.0.0.1:80"),
        ("[::]:8080", "http://[::1]:8080"),
        ("localhost:8080", "http://localhost:8080"),
    ],
)
def test_url_of_a_server_on_this_host(listen: str, url: str) -> None:
    assert api_url(listen) == url


def test_token_is_the_configured_one_or_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert find_token(load_config(None, {})) is None
    own = read_or_make_token(token_path())
    assert find_token(load_config(None, {})) == own
    assert find_token(load_config(None, {"SIPBRIDGE_HTTP__TOKENS": "one,two"})) == "one"


def test_proxy_is_not_asked_for_this_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy of the environment would see the token; this one has no address, so asking it would fail."""
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.invalid:3128")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)

    async def main() -> None:
        with pytest.raises(NoServerError, match=r"no server answers at http://127\.0\.0\.1:1"):
            async with ApiClient("http://127.0.0.1:1", TOKEN) as client:
                await client.list()

    asyncio.run(main())
