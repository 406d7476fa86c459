# SPDX-License-Identifier: GPL-3.0-or-later
"""The routes, as a client sees them."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from sipbridge.calls import RoomView
from sipbridge.errors import CallError, ConfigError, EndKind, EndReason, Party
from sipbridge.http.api import MAX_BODY_BYTES, create_api
from tests.support.fake_calls import FakeCalls

TOKEN = "a-token-for-tests-0123456789abcdef"


def run[T](calls: FakeCalls, scenario: Callable[[httpx.AsyncClient], Awaitable[T]]) -> T:
    """Runs `scenario` with a client that has the token, on an event loop of its own."""

    async def main() -> T:
        api = create_api(calls, [TOKEN, "another-token"], asyncio.Event())
        transport = httpx.ASGITransport(api, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            client.headers["Authorization"] = f"Bearer {TOKEN}"
            return await scenario(client)

    return asyncio.run(main())


def request(calls: FakeCalls, method: str, path: str, **kwargs: Any) -> httpx.Response:
    return run(calls, lambda client: client.request(method, path, **kwargs))


def problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    """The body of an error, which has the shape of RFC 9457."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert body["status"] == status
    assert body["type"] == "about:blank"
    assert body["title"]
    assert body["detail"]
    return body


def test_call_is_shown_with_all_it_has() -> None:
    calls = FakeCalls()
    calls.add("c1")
    answer = request(calls, "GET", "/v1/calls/c1")
    assert answer.status_code == 200
    assert answer.json() == {
        "id": "c1",
        "direction": "inbound",
        "from": "1001",
        "to": "demo",
        "trunk": "loopback",
        "rule": "local",
        "target": "local:demo",
        "state": "active",
        "codec": "PCMU",
        "seconds": 7.25,
        "capture_level_dbfs": -23.5,
        "playback_level_dbfs": -100.0,
        "capture_ms": 4.0,
        "mix_ms": 0.5,
        "playback_ms": 5.0,
        "delay_ms": 9.5,
        "loss_percent": 0.1,
        "jitter_ms": 1.5,
        "end": None,
    }


def test_ended_call_says_why() -> None:
    calls = FakeCalls()
    calls.add("c1")
    calls.end("c1", EndReason(EndKind.BUSY, "Busy Here", Party.CALLEE, 486))
    listed = request(calls, "GET", "/v1/calls").json()["calls"]
    assert [call["state"] for call in listed] == ["ended"]
    assert listed[0]["end"] == {"kind": "busy", "detail": "Busy Here", "by": "callee", "sip_code": 486}


def test_dial_replies_at_once_with_the_call() -> None:
    calls = FakeCalls()
    body = {
        "to": "sip:alice@example.com",
        "target": "local:demo",
        "from": "1001",
        "headers": {"X-Ticket": "4711"},
        "play": "/tmp/a.wav",
        "dtmf": "w12#",
        "ring_s": 20,
        "max_duration_s": 5.5,
    }
    answer = request(calls, "POST", "/v1/calls", json=body)
    assert answer.status_code == 201
    assert answer.headers["location"] == "/v1/calls/out-1"
    assert answer.json()["state"] == "new"
    (asked,) = calls.requests
    assert (asked.to, asked.target, asked.from_) == ("sip:alice@example.com", "local:demo", "1001")
    assert (asked.headers, asked.play, asked.dtmf) == ({"X-Ticket": "4711"}, "/tmp/a.wav", "w12#")
    assert (asked.ring_s, asked.max_duration_s, asked.record) == (20.0, 5.5, "")


@pytest.mark.parametrize("answered", [True, False])
def test_dial_can_wait_for_the_answer_or_the_failure(answered: bool) -> None:
    calls = FakeCalls()

    async def scenario(client: httpx.AsyncClient) -> httpx.Response:
        asked = asyncio.create_task(client.post("/v1/calls?wait=answered", json={"to": "sip:a@example.com"}))
        while not calls.requests:
            await asyncio.sleep(0)
        assert not asked.done()
        if answered:
            calls.answer("out-1")
        else:
            calls.end("out-1", EndReason(EndKind.DECLINED, "Decline", Party.CALLEE, 603))
        return await asked

    answer = run(calls, scenario)
    assert answer.status_code == 201
    assert answer.json()["state"] == ("active" if answered else "ended")
    assert calls.subscribers == []


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"to": ""}, "to"),
        ({"to": "sip:a@example.com\r\nX-Evil: 1"}, "to"),
        ({"to": "x" * 3000}, "to"),
        ({"from": "1001\r\nVia: evil"}, "from"),
        ({"from": "1001\x00"}, "from"),
        ({"from": "sip:"}, "from"),
        ({"from": "alice@example.com"}, "from"),
        ({"headers": {"X-A": "1\r\nX-B: 2"}}, "headers"),
        ({"headers": {"X-A\n": "1"}}, "headers"),
        ({"headers": {"X-A": "\x00"}}, "headers"),
        ({"headers": {"X-A": "x" * 2000}}, "headers"),
        ({"headers": {f"X-{i}": "x" * 1000 for i in range(9)}}, "headers"),
        ({"headers": {f"X-{i}": "" for i in range(33)}}, "headers"),
        ({"headers": {"Via": "SIP/2.0/UDP evil"}}, "headers"),
        ({"target": "nothing"}, "target"),
        ({"play": "relative.wav"}, "play"),
        ({"record": "../relative.wav"}, "record"),
        ({"dtmf": "12x"}, "dtmf"),
        ({"ring_s": -1}, "ring_s"),
        ({"max_duration_s": "NaN"}, "max_duration_s"),
        ({"tarket": "echo:"}, "tarket"),
    ],
)
def test_dial_refuses_what_no_call_may_have(change: dict[str, Any], field: str) -> None:
    calls = FakeCalls()
    answer = request(calls, "POST", "/v1/calls", json={"to": "sip:a@example.com", **change})
    body = problem(answer, 422)
    assert [error["field"] for error in body["errors"]] == [field]
    assert field in body["detail"]
    assert calls.requests == []


def test_body_that_is_no_json_is_a_problem() -> None:
    body = problem(request(FakeCalls(), "POST", "/v1/calls", content=b"{"), 422)
    assert body["errors"][0]["field"] == "body"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConfigError("there is no trunk 'x'", key="trunk"), 422),
        (CallError(EndReason(EndKind.SHUTDOWN, "draining")), 503),
        (CallError(EndReason(EndKind.OVERLOAD, "400 calls")), 503),
        (CallError(EndReason(EndKind.TRANSPORT, "no route")), 502),
        (RuntimeError("a secret of ours"), 500),
    ],
)
def test_dial_that_fails_is_a_problem(error: Exception, status: int) -> None:
    calls = FakeCalls()
    calls.error = error
    answer = request(calls, "POST", "/v1/calls", json={"to": "sip:a@example.com"})
    body = problem(answer, status)
    if isinstance(error, CallError):
        assert body["reason"]["kind"] == error.reason.kind
    if isinstance(error, ConfigError):
        assert body["errors"] == [{"field": "trunk", "detail": "there is no trunk 'x'"}]
    assert ("retry-after" in answer.headers) == (status == 503)
    assert "secret" not in answer.text


def test_call_is_hung_up() -> None:
    calls = FakeCalls()
    calls.add("c1")
    answer = request(calls, "POST", "/v1/calls/c1/hangup")
    assert (answer.status_code, answer.content) == (204, b"")
    assert calls.hung_up == ["c1"]


def test_digits_are_sent() -> None:
    calls = FakeCalls()
    calls.add("c1")
    assert request(calls, "POST", "/v1/calls/c1/dtmf", json={"digits": "123w#"}).status_code == 204
    assert calls.digits == [("c1", "123w#")]


def test_channel_is_changed() -> None:
    calls = FakeCalls()
    calls.add("c1")
    path = "/v1/calls/c1/rebridge"
    assert request(calls, "POST", path, json={"target": "local:next"}).status_code == 204
    assert calls.calls["c1"].target == "local:next"
    body = problem(request(calls, "POST", path, json={"target": "next"}), 422)
    assert body["errors"][0]["field"] == "target"
    calls.end("c1", EndReason(EndKind.HANGUP, "", Party.CALLER))
    assert problem(request(calls, "POST", path, json={"target": "local:next"}), 409)
    problem(request(calls, "POST", "/v1/calls/nobody/rebridge", json={"target": "local:next"}), 404)


@pytest.mark.parametrize("digits", ["", "12 3", "5\r\n", "E", "1" * 300])
def test_what_is_no_digit_is_refused(digits: str) -> None:
    calls = FakeCalls()
    calls.add("c1")
    body = problem(request(calls, "POST", "/v1/calls/c1/dtmf", json={"digits": digits}), 422)
    assert body["errors"][0]["field"] == "digits"
    assert calls.digits == []


def test_a_telephone_is_transferred() -> None:
    calls = FakeCalls()
    calls.add("c1")
    calls.error = CallError(EndReason(EndKind.BUSY, "Busy Here", Party.CALLER, 486))
    body = problem(request(calls, "POST", "/v1/calls/c1/transfer", json={"to": "200"}), 502)
    assert (body["detail"], body["reason"]["sip_code"]) == ("486 Busy Here", 486)
    for to in ("", "a\nb", "1" * 3000):
        problem(request(calls, "POST", "/v1/calls/c1/transfer", json={"to": to}), 422)
    calls.error = None
    assert request(calls, "POST", "/v1/calls/c1/transfer", json={"to": "200"}).status_code == 204
    assert calls.transfers == [("c1", "200")]


def test_hold_and_its_end() -> None:
    calls = FakeCalls()
    calls.add("c1")
    for verb, state in (("hold", "held"), ("unhold", "active")):
        assert request(calls, "POST", f"/v1/calls/c1/{verb}").status_code == 204
        assert calls.calls["c1"].state == state


def test_digits_for_an_ended_call_are_refused() -> None:
    calls = FakeCalls()
    calls.add("c1")
    calls.end("c1", EndReason(EndKind.HANGUP, "", Party.CALLER))
    body = problem(request(calls, "POST", "/v1/calls/c1/dtmf", json={"digits": "1"}), 422)
    assert body["detail"] == "the call has ended"


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "", None),
        ("POST", "/hangup", None),
        ("POST", "/dtmf", {"digits": "1"}),
        ("POST", "/transfer", {"to": "1"}),
        ("POST", "/hold", None),
        ("POST", "/unhold", None),
    ],
)
def test_unknown_call_is_not_found(method: str, path: str, body: dict[str, str] | None) -> None:
    answer = request(FakeCalls(), method, f"/v1/calls/nobody{path}", json=body)
    assert "nobody" in problem(answer, 404)["detail"]


def test_unknown_path_and_method_are_problems() -> None:
    problem(request(FakeCalls(), "GET", "/nothing"), 404)
    problem(request(FakeCalls(), "GET", "/v1/calls/"), 404)
    answer = request(FakeCalls(), "DELETE", "/v1/calls")
    problem(answer, 405)
    assert answer.headers["allow"] == "GET, POST"


def test_rooms_are_listed_with_their_calls() -> None:
    calls = FakeCalls()
    calls.room_views = [RoomView(name="demo", rate_hz=16000, members=("c1", "c2"))]
    assert request(calls, "GET", "/v1/rooms").json() == {
        "rooms": [{"name": "demo", "rate_hz": 16000, "members": ["c1", "c2"]}]
    }


def test_room_audio_is_a_websocket() -> None:
    answer = request(FakeCalls(), "GET", "/v1/rooms/demo/audio")
    problem(answer, 426)
    assert answer.headers["upgrade"] == "websocket"


@pytest.mark.parametrize(
    "authorization",
    ["", "Bearer", "Bearer ", "Bearer wrong", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x", "Bearer \xff\xfe"],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/calls"), ("POST", "/v1/calls"), ("GET", "/v1/events"), ("GET", "/v1/none"), ("GET", "/v1")],
)
def test_without_a_valid_token_nothing_is_told(authorization: str, method: str, path: str) -> None:
    calls = FakeCalls()
    headers = {"Authorization": authorization.encode("latin-1")}
    answer = request(calls, method, path, headers=headers, content=b"{not json")
    problem(answer, 401)
    assert answer.headers["www-authenticate"] == "Bearer"
    assert calls.requests == []


def test_configured_token_is_valid_as_well() -> None:
    answer = request(FakeCalls(), "GET", "/v1/calls", headers={"Authorization": "bearer another-token"})
    assert answer.status_code == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_body_beyond_the_limit_is_refused(chunked: bool) -> None:
    calls = FakeCalls()
    content = b" " * (MAX_BODY_BYTES + 1)

    async def chunks() -> Any:
        for start in range(0, len(content), 1000):
            yield content[start : start + 1000]

    answer = request(calls, "POST", "/v1/calls", content=chunks() if chunked else content)
    problem(answer, 413)


def test_health_and_readiness_need_no_token() -> None:
    calls = FakeCalls()

    async def scenario(client: httpx.AsyncClient) -> None:
        del client.headers["Authorization"]
        health = await client.get("/healthz")
        assert health.status_code == 200
        assert health.json()["service"] == "sipbridge"
        assert health.json()["counters"] == {"calls": 0, "descriptors": 12}
        assert (await client.get("/readyz")).json() == {"ready": True}
        calls.draining = True
        problem(await client.get("/readyz"), 503)
        assert (await client.get("/healthz")).json()["draining"] is True

    run(calls, scenario)


def test_health_tells_an_engine_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = FakeCalls()

    async def hang() -> dict[str, int | float | bool]:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(calls, "health", hang)
    monkeypatch.setattr("sipbridge.http.api.HEALTH_TIMEOUT_S", 0.01)
    problem(request(calls, "GET", "/healthz"), 503)


def test_openapi_is_complete() -> None:
    """Each operation is described, has its errors, and wants the token where it is wanted."""
    document = request(FakeCalls(), "GET", "/openapi.json").json()
    operations = {
        (method.upper(), path): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    assert set(operations) == {
        ("POST", "/v1/calls"),
        ("GET", "/v1/calls"),
        ("GET", "/v1/calls/{call_id}"),
        ("POST", "/v1/calls/{call_id}/hangup"),
        ("POST", "/v1/calls/{call_id}/dtmf"),
        ("POST", "/v1/calls/{call_id}/transfer"),
        ("POST", "/v1/calls/{call_id}/hold"),
        ("POST", "/v1/calls/{call_id}/unhold"),
        ("POST", "/v1/calls/{call_id}/rebridge"),
        ("GET", "/v1/rooms"),
        ("GET", "/v1/rooms/{room}/audio"),
        ("POST", "/v1/rooms/{room}/webrtc"),
        ("DELETE", "/v1/rooms/{room}/webrtc/{member}"),
        ("POST", "/v1/rooms/{room}/link"),
        ("GET", "/v1/events"),
        ("GET", "/healthz"),
        ("GET", "/readyz"),
    }
    for (_, path), operation in operations.items():
        assert operation["summary"]
        assert operation["description"]
        assert "application/problem+json" in operation["responses"]["default"]["content"]
        assert ("security" in operation) == path.startswith("/v1")
    dial = document["components"]["schemas"]["Dial"]
    assert all("description" in field for field in dial["properties"].values())
    assert "from" in dial["properties"]
    text = json.dumps(document)
    for reference in {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}:
        assert reference in document["components"]["schemas"]
    assert "HTTPValidationError" not in text
