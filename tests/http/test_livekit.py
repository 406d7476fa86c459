# SPDX-License-Identifier: GPL-3.0-or-later
"""LiveKit's requests to dial out, made by LiveKit's own client."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
import uvicorn
from google.protobuf.duration_pb2 import Duration
from livekit import api
from livekit.protocol.sip import (
    CreateSIPParticipantRequest,
    SIPOutboundConfig,
    SIPTransport,
    TransferSIPParticipantRequest,
)
from pydantic import SecretStr

from sipbridge.config import LiveKitConfig
from sipbridge.errors import CallError, ConfigError, EndKind, EndReason, Party
from sipbridge.http.api import create_api
from tests.support.fake_calls import FakeCalls

SECRET = "secret_of_at_least_32_characters_x"
CONFIG = LiveKitConfig(url="ws://x", api_key="key", api_secret=SecretStr(SECRET))
REQUEST = CreateSIPParticipantRequest(sip_trunk_id="pbx", sip_call_to="+4930", room_name="r")


def run[T](calls: FakeCalls, scenario: Callable[[api.LiveKitAPI], Awaitable[T]], secret: str = SECRET) -> T:
    """Runs `scenario` with LiveKit's client, which takes us for a server of LiveKit's."""

    async def main() -> T:
        app = create_api(calls, ["t"], asyncio.Event(), CONFIG)
        server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="off", log_config=None))
        serving = asyncio.ensure_future(server.serve())
        while not server.started:
            await asyncio.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        try:
            async with api.LiveKitAPI(f"http://127.0.0.1:{port}", "key", secret) as client:
                return await scenario(client)
        finally:
            server.should_exit = True
            await serving

    return asyncio.run(main())


@pytest.fixture
def calls() -> FakeCalls:
    return FakeCalls()


def test_a_telephone_is_dialled_into_a_room(calls: FakeCalls) -> None:
    """All that the client says arrives where a call of ours has it."""
    wanted = CreateSIPParticipantRequest(
        sip_trunk_id="pbx",
        sip_call_to="+4930",
        sip_number="+4999",
        display_name='The "Shop"',
        room_name="r",
        participant_identity="callee",
        participant_name="Bob",
        participant_metadata="m",
        participant_attributes={"a": "b"},
        dtmf="12w#",
        play_dialtone=True,
        hide_phone_number=True,
        headers={"X-Ticket": "1"},
        ringing_timeout=Duration(seconds=20),
        max_call_duration=Duration(seconds=300),
    )
    info = run(calls, lambda client: client.sip.create_sip_participant(wanted))
    assert (info.participant_identity, info.room_name, info.sip_call_id) == ("callee", "r", "out-1")
    (dial,) = calls.requests
    assert (dial.to, dial.trunk, dial.target) == ("+4930", "pbx", "livekit:r")
    assert dial.from_ == '"The \\"Shop\\"" <sip:+4999@localhost>'
    assert (dial.ring_s, dial.max_duration_s, dial.dtmf) == (20.0, 300.0, "12w#")
    assert dial.headers == {"X-Ticket": "1"}
    wish = dial.participant
    assert (wish.identity, wish.name, wish.metadata, wish.attributes) == ("callee", "Bob", "m", {"a": "b"})
    assert wish.hide_phone_number
    assert wish.dial_tone


def test_identities_are_told_and_differ(calls: FakeCalls) -> None:
    """A second call to one number must not push the first out of the room."""

    async def twice(client: api.LiveKitAPI) -> list[str]:
        return [(await client.sip.create_sip_participant(REQUEST)).participant_identity for _ in range(2)]

    one, other = run(calls, twice)
    assert one != other
    assert one.startswith("sip_+4930_")
    assert [dial.participant.identity for dial in calls.requests] == [one, other]


def test_a_trunk_that_comes_along(calls: FakeCalls) -> None:
    trunk = SIPOutboundConfig(hostname="sip.example.com:5070", transport=SIPTransport.SIP_TRANSPORT_TCP)
    wanted = CreateSIPParticipantRequest(trunk=trunk, sip_call_to="+49 30", room_name="r")
    run(calls, lambda client: client.sip.create_sip_participant(wanted))
    assert calls.requests[0].to == "sip:+4930@sip.example.com:5070;transport=tcp"
    assert calls.requests[0].trunk == ""


def test_the_answer_is_waited_for(calls: FakeCalls) -> None:
    wanted = CreateSIPParticipantRequest(wait_until_answered=True)
    wanted.MergeFrom(REQUEST)

    async def dial(client: api.LiveKitAPI) -> Any:
        dialling = asyncio.ensure_future(client.sip.create_sip_participant(wanted))
        while not calls.requests:
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.05)
        assert not dialling.done()
        calls.answer("out-1")
        return await dialling

    assert run(calls, dial).sip_call_id == "out-1"


@pytest.mark.parametrize(
    ("reason", "code", "sip_code"),
    [
        (EndReason(EndKind.BUSY, "Busy Here", Party.CALLEE, 486), "resource_exhausted", "486"),
        (EndReason(EndKind.DECLINED, "Decline", Party.CALLEE, 603), "permission_denied", "603"),
        (EndReason(EndKind.NO_ANSWER, "not answered in time", Party.BRIDGE, 408), "deadline_exceeded", "408"),
        (EndReason(EndKind.CHANNEL_FAILED, "no such server"), "failed_precondition", "502"),
    ],
)
def test_a_call_that_fails(calls: FakeCalls, reason: EndReason, code: str, sip_code: str) -> None:
    """The client finds SIP's code and words where LiveKit's server has them."""
    wanted = CreateSIPParticipantRequest(wait_until_answered=True)
    wanted.MergeFrom(REQUEST)

    async def dial(client: api.LiveKitAPI) -> None:
        dialling = asyncio.ensure_future(client.sip.create_sip_participant(wanted))
        while not calls.requests:
            await asyncio.sleep(0.005)
        calls.end("out-1", reason)
        await dialling

    with pytest.raises(api.TwirpError) as caught:
        run(calls, dial)
    assert caught.value.code == code
    assert f"sip status: {sip_code} ({reason.detail})" in caught.value.message


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"room_name": ""}, "room_name is missing"),
        ({"sip_call_to": ""}, "sip_call_to is missing"),
        ({"sip_trunk_id": ""}, "sip_trunk_id is missing"),
        ({"krisp_enabled": True}, "krisp_enabled"),
        ({"media_encryption": 2}, "media_encryption"),
        ({"include_headers": 1}, "include_headers"),
        ({"trunk": SIPOutboundConfig(hostname="x")}, "exclude each other"),
        ({"sip_trunk_id": "", "trunk": SIPOutboundConfig(hostname="a b")}, "is no host name"),
        ({"sip_trunk_id": "", "trunk": SIPOutboundConfig(hostname="x", auth_username="u")}, "auth_username"),
        ({"headers": {"Via": "x"}}, "Via is written by the bridge itself"),
        ({"headers": {"X-A": "a\r\nVia: x"}}, "control character"),
        ({"sip_number": "a\r\nb"}, "control character"),
    ],
)
def test_requests_that_cannot_be_met(calls: FakeCalls, changes: dict[str, Any], complaint: str) -> None:
    """Nothing is dialled; the client is told why."""
    fields = {"sip_trunk_id": "pbx", "sip_call_to": "+4930", "room_name": "r", **changes}
    with pytest.raises(api.TwirpError) as caught:
        run(calls, lambda client: client.sip.create_sip_participant(CreateSIPParticipantRequest(**fields)))
    assert caught.value.code == "invalid_argument"
    assert complaint in caught.value.message
    assert calls.requests == []


def test_what_the_registry_refuses(calls: FakeCalls) -> None:
    calls.error = ConfigError("there is no trunk 'pbx'")
    with pytest.raises(api.TwirpError) as caught:
        run(calls, lambda client: client.sip.create_sip_participant(REQUEST))
    assert (caught.value.code, caught.value.message) == ("invalid_argument", "there is no trunk 'pbx'")


def test_another_secret(calls: FakeCalls) -> None:
    with pytest.raises(api.TwirpError) as caught:
        run(calls, lambda client: client.sip.create_sip_participant(REQUEST), secret=SECRET + "y")
    assert caught.value.code == "unauthenticated"
    assert calls.requests == []


def test_a_participant_is_transferred(calls: FakeCalls) -> None:
    """Found by room and identity; its failures have LiveKit's codes."""
    wanted = TransferSIPParticipantRequest(participant_identity="1001", room_name="r", transfer_to="tel:1")
    stranger = TransferSIPParticipantRequest(participant_identity="7", room_name="r", transfer_to="tel:1")
    nowhere = TransferSIPParticipantRequest(participant_identity="1001", room_name="r")
    calls.add("c1", target="livekit:r")

    async def ask(client: api.LiveKitAPI) -> None:
        for request, code in ((stranger, "not_found"), (nowhere, "invalid_argument")):
            with pytest.raises(api.TwirpError) as caught:
                await client.sip.transfer_sip_participant(request)
            assert caught.value.code == code
        calls.error = CallError(EndReason(EndKind.BUSY, "Busy Here", Party.CALLER, 486))
        with pytest.raises(api.TwirpError, match="486 Busy Here") as caught:
            await client.sip.transfer_sip_participant(wanted)
        assert caught.value.code == "resource_exhausted"
        assert caught.value.metadata["sip_status_code"] == "486"
        calls.error = None
        await client.sip.transfer_sip_participant(wanted)

    run(calls, ask)
    assert calls.transfers == [("c1", "tel:1")]


def test_trunks_are_refused_in_words(calls: FakeCalls) -> None:
    async def ask(client: api.LiveKitAPI) -> None:
        with pytest.raises(api.TwirpError, match="configuration file") as caught:
            await client.sip.list_outbound_trunk(api.ListSIPOutboundTrunkRequest())
        assert caught.value.code == "unimplemented"

    run(calls, ask)


@pytest.fixture
def post(calls: FakeCalls) -> Callable[..., httpx.Response]:
    """A request by hand."""
    app = create_api(calls, ["t"], asyncio.Event(), CONFIG)

    def request(path: str, grants: dict[str, Any] | None = None, **options: Any) -> httpx.Response:
        headers = {"Content-Type": "application/json", **options.pop("headers", {})}
        if grants is not None:
            token = api.AccessToken("key", SECRET).with_sip_grants(api.SIPGrants(**grants)).to_jwt()
            headers["Authorization"] = f"Bearer {token}"

        async def main() -> httpx.Response:
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.post(f"/twirp/livekit.SIP/{path}", headers=headers, **options)

        return asyncio.run(main())

    return request


def test_json_is_understood_as_well(post: Callable[..., httpx.Response], calls: FakeCalls) -> None:
    body = {"sip_trunk_id": "pbx", "sip_call_to": "1", "roomName": "r", "unknown": 1}
    answer = post("CreateSIPParticipant", {"call": True}, json=body)
    assert answer.status_code == 200
    assert answer.json()["sip_call_id"] == "out-1"
    assert calls.requests[0].target == "livekit:r"


@pytest.mark.parametrize(
    ("path", "grants", "options", "status", "code"),
    [
        ("CreateSIPParticipant", None, {"json": {}}, 401, "unauthenticated"),
        ("CreateSIPParticipant", {}, {"json": {}}, 403, "permission_denied"),
        ("CreateSIPParticipant", {"call": True}, {"content": b"{"}, 400, "invalid_argument"),
        (
            "CreateSIPParticipant",
            {"call": True},
            {"content": b"\xff\xff", "headers": {"Content-Type": "application/protobuf"}},
            400,
            "invalid_argument",
        ),
        (
            "CreateSIPParticipant",
            {"call": True},
            {"content": b"x", "headers": {"Content-Type": "text/plain"}},
            404,
            "bad_route",
        ),
        ("TransferSIPParticipant", {"call": True}, {"json": {}}, 403, "permission_denied"),
        ("Nothing", {"call": True}, {"json": {}}, 404, "bad_route"),
    ],
)
def test_errors_are_twirps(
    post: Callable[..., httpx.Response],
    path: str,
    grants: dict[str, Any] | None,
    options: dict[str, Any],
    status: int,
    code: str,
) -> None:
    answer = post(path, grants, **options)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.json()["msg"]


def test_without_livekit_there_is_no_such_path(calls: FakeCalls) -> None:
    async def main() -> int:
        transport = httpx.ASGITransport(create_api(calls, ["t"], asyncio.Event()))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return (await client.post("/twirp/livekit.SIP/CreateSIPParticipant")).status_code

    assert asyncio.run(main()) == 404
