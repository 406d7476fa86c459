# SPDX-License-Identifier: GPL-3.0-or-later
"""Rooms for browsers, as a client sees them."""

import re
import time

import httpx
import pytest

from sipbridge.errors import CallError, EndKind, EndReason
from sipbridge.http.links import RoomLinks
from sipbridge.rtc.webrtc.rooms import NotAcceptableError
from tests.http.test_api import TOKEN, problem, request, run
from tests.support.fake_calls import FakeCalls

SDP = {"Content-Type": "application/sdp"}


class Registry(FakeCalls):
    """Takes any offer."""

    def __init__(self) -> None:
        super().__init__()
        self.joined: list[tuple[str, str, str]] = []

    async def join_browser(self, room: str, name: str, offer: str) -> tuple[str, str]:
        if self.error is not None:
            raise self.error
        self.joined.append((room, name, offer))
        return "b1", "the answer"

    async def leave_browser(self, room: str, browser_id: str) -> None:
        if (room, browser_id) not in [(joined[0], "b1") for joined in self.joined]:
            raise LookupError("nobody")


def test_an_offer_is_answered() -> None:
    calls = Registry()

    async def scenario(client: httpx.AsyncClient) -> None:
        answer = await client.post(
            "/v1/rooms/a%20b/webrtc", params={"name": "Ada"}, content="the offer", headers=SDP
        )
        assert (answer.status_code, answer.text) == (201, "the answer")
        assert answer.headers["content-type"].startswith("application/sdp")
        assert answer.headers["location"] == "/v1/rooms/a%20b/webrtc/b1"
        assert calls.joined == [("a b", "Ada", "the offer")]
        assert (await client.delete("/v1/rooms/other/webrtc/b1")).status_code == 404
        assert (await client.delete(answer.headers["location"])).status_code == 200

    run(calls, scenario)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("the room has no name"), 422),
        (NotAcceptableError("the offer has no audio section"), 406),
        (CallError(EndReason(EndKind.SHUTDOWN, "the server is going down")), 503),
        (CallError(EndReason(EndKind.OVERLOAD, "that is the limit")), 503),
    ],
)
def test_why_it_is_not(error: Exception, status: int) -> None:
    calls = Registry()
    calls.error = error
    answer = request(calls, "POST", "/v1/rooms/demo/webrtc", content="offer", headers=SDP)
    assert problem(answer, status)["detail"] in (str(error), f"{status} {error}", str(error).strip())


def test_another_body_is_no_offer() -> None:
    calls = Registry()
    problem(request(calls, "POST", "/v1/rooms/demo/webrtc", json={}), 415)
    problem(request(calls, "POST", "/v1/rooms/demo/webrtc", content="x" * 70_000, headers=SDP), 413)
    assert request(calls, "PATCH", "/v1/rooms/demo/webrtc/b1").status_code == 405
    assert calls.joined == []


def test_a_link_lets_into_its_room_alone() -> None:
    calls = Registry()

    async def scenario(client: httpx.AsyncClient) -> None:
        answer = await client.post("/v1/rooms/demo/link", json={"ttl_s": 60})
        assert answer.status_code == 201
        link = answer.json()
        assert link["url"] == f"http://test/rooms/demo#{link['token']}"
        assert 55 < link["expires_at"] - time.time() <= 60
        headers = {**SDP, "Authorization": f"Bearer {link['token']}"}
        assert (await client.post("/v1/rooms/demo/webrtc", headers=headers)).status_code == 201
        assert (await client.delete("/v1/rooms/demo/webrtc/b1", headers=headers)).status_code == 200
        for method, path in (
            ("POST", "/v1/rooms/other/webrtc"),
            ("POST", "/v1/rooms/demo/link"),
            ("GET", "/v1/rooms"),
            ("GET", "/v1/rooms/demo/webrtc/../audio"),
            ("POST", "/v1/calls"),
        ):
            problem(await client.request(method, path, headers=headers), 401)
        headers["Authorization"] = f"Bearer {link['token'][:-1]}"
        problem(await client.post("/v1/rooms/demo/webrtc", headers=headers), 401)
        later = str(link["expires_at"] + 1000)
        headers["Authorization"] = f"Bearer {later}{link['token'][link['token'].index('.') :]}"
        problem(await client.post("/v1/rooms/demo/webrtc", headers=headers), 401)

    run(calls, scenario)
    problem(request(calls, "POST", "/v1/rooms/demo/link", json={"ttl_s": 5}), 422)


def test_pages_of_other_servers_may_speak_whip_and_nothing_else() -> None:
    """A browser asks beforehand, with no token, and shows the page where it is."""

    async def scenario(client: httpx.AsyncClient) -> None:
        token = client.headers.pop("Authorization")
        origin = {"Origin": "https://rooms.example.com"}
        wish = {
            **origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization, content-type",
        }
        answer = await client.options("/v1/rooms/demo/webrtc", headers=wish)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "Authorization" in answer.headers["access-control-allow-headers"]
        assert (await client.options("/v1/rooms/demo/link", headers=wish)).status_code == 401
        headers = {**SDP, **origin, "Authorization": token}
        answer = await client.post("/v1/rooms/demo/webrtc", headers=headers)
        assert answer.headers["access-control-allow-origin"] == "*"
        assert answer.headers["access-control-expose-headers"] == "Location"
        refused = await client.post("/v1/rooms/demo/webrtc", headers={**SDP, **origin})
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-origin" not in (await client.get("/v1/rooms", headers=headers)).headers

    run(Registry(), scenario)


def test_a_link_ends_and_any_token_of_the_server_may_sign() -> None:
    path = "/v1/rooms/demo/webrtc"
    old, _ = RoomLinks([TOKEN]).make("demo", -1)
    good, _ = RoomLinks(["another"]).make("demo", 60)
    links = RoomLinks([TOKEN, "another"])
    assert not links.admits(path, old.encode())
    assert links.admits(path, good.encode())
    assert links.admits(path + "/b1", good.encode())
    assert not links.admits("/v1/rooms/demo/audio", good.encode())
    assert not RoomLinks([TOKEN]).admits(path, good.encode())
    assert not links.admits(path, b"\xff.\x00")


def test_the_page_needs_no_token_and_loads_nothing_from_elsewhere() -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        del client.headers["Authorization"]
        page = await client.get("/rooms/demo")
        assert page.status_code == 200
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        parts = re.findall(r'(?:src|href)="(/[^"]*)"', page.text)
        assert len(parts) == 2
        assert "<script>" not in page.text
        for part in parts:
            answer = await client.get(part)
            assert answer.status_code == 200
            assert "http" not in answer.text.replace("http://localhost", "").replace("over https", "")
        assert (await client.get("/pages/room.py")).status_code == 404

    run(Registry(), scenario)
