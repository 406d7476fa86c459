# SPDX-License-Identifier: GPL-3.0-or-later
"""A call in a room: what happens to it, with memberships that a test scripts and time that stands still."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from livekit import api
from livekit.protocol.models import DataPacket, RpcRequest, SipDTMF, UserPacket

from sipbridge.config import Config, LiveKitConfig, RuleConfig, TrunkConfig
from sipbridge.errors import EndKind, EndReason, Party, RtcError
from sipbridge.media.tones import Tone
from sipbridge.rtc.base import JoinRequest, ParticipantWish, RtcContext
from sipbridge.rtc.livekit import connection, regions
from sipbridge.rtc.livekit.session import MediaError
from sipbridge.rtc.livekit.signal import RefusedError, UnreachableError
from sipbridge.rtc.livekit.token import Entry
from tests.support import audio, fake_livekit
from tests.support.event_loop import in_event_loop, pass_time, settle
from tests.support.fake_bank import FakeMedia
from tests.support.fake_livekit import FakeSession
from tests.support.fake_rtc import HUNG_UP, FakeCall, make_context

PHONE_HZ = 700.0
DELETED = EndReason(EndKind.CHANNEL_CLOSED, "LiveKit: the room was deleted", Party.CHANNEL)


@pytest.fixture
def media(monkeypatch: pytest.MonkeyPatch) -> FakeMedia:
    made = FakeMedia()
    monkeypatch.setattr(connection, "Session", FakeSession)
    FakeSession.begin(made)
    return made


class Call(FakeCall):
    """One whose join says more."""

    def __init__(self, media: FakeMedia, context: RtcContext, **join: Any) -> None:
        super().__init__(media, context, "livekit:room", "c1")
        fields = {"call_id": "c1", "direction": "inbound", "caller": "100", "callee": "200", **join}
        self.join = JoinRequest(**fields)

    async def connect(self) -> None:
        await self.connection.connect(self.join, self.phone, self)


@contextlib.asynccontextmanager
async def joined(
    media: FakeMedia, config: Config | None = None, **join: Any
) -> AsyncIterator[tuple[Call, FakeSession]]:
    call = Call(media, make_context(media, config or fake_livekit.config()), **join)
    try:
        await call.connect()
        await settle()
        yield call, FakeSession.made[-1]
    finally:
        await call.close()
        await settle()
        media.run(8)
        await settle()


def claims(session: FakeSession) -> api.access_token.Claims:
    return api.TokenVerifier("key", "secret_of_at_least_32_characters_x").verify(session.entry.token)


def attributes(session: FakeSession) -> dict[str, str]:
    """Of the token."""
    return dict(claims(session).attributes or {})


# ---------------------------------------------------------------- audio


@in_event_loop
async def test_all_who_speak_are_heard_and_the_phone_by_the_room_alone(media: FakeMedia) -> None:
    """Mixed; who comes or goes makes no click in what the others say."""
    async with joined(media) as (call, session):
        call.phone.say(Tone(PHONE_HZ, 8000))
        first = session.speak(500)
        media.run(40)
        call.phone.forget()
        media.run_s(0.5)
        second = session.speak(1300)
        media.run_s(0.5)
        session.cease(second)
        media.run_s(0.5)
        heard = call.phone.heard
        assert audio.tone_level_dbfs(heard[4000:8000], 8000, 1300) > -25
        assert audio.tone_level_dbfs(heard[8100:], 8000, 1300) < -60
        assert audio.gaps_ms(heard, 8000) == []
        quiet = audio.tone_levels_dbfs(heard, 8000, 500)
        assert quiet.max() - quiet.min() < 1.5
        assert audio.tone_level_dbfs(heard, 8000, PHONE_HZ) < -60
        assert audio.find_tone(session.heard[-4000:], 8000) == pytest.approx(PHONE_HZ, abs=2)
        for track in (first, second):
            assert audio.tone_level_dbfs(track.ports[0].port.heard, 8000, PHONE_HZ) < -60
        await settle()
        assert second.ports[0].closed
        assert not first.ports[0].closed


@in_event_loop
async def test_the_track_follows_the_telephones_rate(media: FakeMedia) -> None:
    """PCMU for 8 kHz, Opus for more; before the codec is known nothing is sent."""
    call = Call(media, make_context(media, fake_livekit.config()))
    call.phone.is_live = False
    await call.connect()
    session = FakeSession.made[-1]
    track = session.speak(500)
    await settle()
    assert session.out == []
    call.phone.is_live = True
    call.phone.rate_hz = 16000
    call.connection.call_changed("active")
    await settle()
    assert session.codec == "opus"
    assert [port.sample_rate_hz for port in session.out] == [16000]
    assert [port.sample_rate_hz for port in track.ports] == [8000, 16000]
    call.phone.rate_hz = 8000
    call.connection.call_changed("active")
    assert [port.sample_rate_hz for port in session.out] == [16000, 8000]
    media.run(8)
    await settle()
    assert [port.closed for port in session.out] == [True, False]
    await call.close()
    media.run(8)
    await settle()
    assert session.is_closed
    assert all(port.closed for port in (*session.out, *track.ports))


@pytest.mark.parametrize(("codec", "expected"), [("auto", "PCMU"), ("opus", "opus"), ("pcmu", "PCMU")])
@in_event_loop
async def test_the_configured_codec(media: FakeMedia, codec: str, expected: str) -> None:
    async with joined(media, fake_livekit.config(codec=codec)) as (_, session):
        assert session.codec == expected


# ---------------------------------------------------------------- the state of the call


@in_event_loop
async def test_a_dialled_call_shows_how_it_goes(media: FakeMedia) -> None:
    """Dialing, ringing, active, held; the room hears a dial tone until the answer, if that is wished."""
    wish = ParticipantWish(identity="callee", dial_tone=True)
    call = Call(media, make_context(media, fake_livekit.config()), direction="outbound", participant=wish)
    call.phone.is_live = False
    await call.connect()
    session = FakeSession.made[-1]
    assert claims(session).identity == "callee"
    assert attributes(session)["sip.callStatus"] == "dialing"
    call.connection.call_changed("ringing")
    assert session.attributes["sip.callStatus"] == "ringing"
    await settle()
    assert session.codec == "opus"
    media.run_s(0.5)
    assert audio.find_tone(session.heard, 8000) == pytest.approx(425, abs=3)
    call.phone.is_live = True
    call.connection.call_changed("active")
    assert session.attributes["sip.callStatus"] == "active"
    media.run(8)
    for port in session.out:
        port.port.forget()
    media.run_s(0.3)
    assert not session.heard.any()
    call.connection.call_changed("held")
    assert session.muted
    assert session.attributes == {"sip.callStatus": "active", "sip.held": "true"}
    call.connection.call_changed("active")
    assert not session.muted
    assert session.attributes["sip.held"] == ""
    await call.close()
    assert session.attributes["sip.callStatus"] == "hangup"
    assert session.left == [HUNG_UP]
    media.run(8)
    await settle()


@in_event_loop
async def test_a_caller_is_active_from_the_beginning(media: FakeMedia) -> None:
    """What comes before its acknowledgement changes nothing."""
    async with joined(media) as (call, session):
        assert attributes(session)["sip.callStatus"] == "active"
        call.connection.call_changed("ringing")
        call.connection.call_changed("active")
        assert session.attributes == {}


@in_event_loop
async def test_ringing_until_somebody_speaks(media: FakeMedia) -> None:
    config = fake_livekit.config(start="track", start_limit_s=30)
    call = Call(media, make_context(media, config))
    call.connection.expect(call.join)
    assert call.connection.rings
    assert call.connection.join_s > 30
    connecting = asyncio.ensure_future(call.connect())
    await pass_time(20)
    session = FakeSession.made[-1]
    assert attributes(session)["sip.callStatus"] == "ringing"
    assert not connecting.done()
    session.speak(500)
    await connecting
    await call.close()
    media.run(8)
    await settle()


@in_event_loop
async def test_ringing_has_a_limit(media: FakeMedia) -> None:
    call = Call(media, make_context(media, fake_livekit.config(start="track", start_limit_s=30)))
    connecting = asyncio.ensure_future(call.connect())
    await settle()
    await pass_time(31)
    with pytest.raises(RtcError) as caught:
        await connecting
    assert caught.value.reason.kind is EndKind.NO_ANSWER
    await call.close()
    media.run(8)
    await settle()
    assert FakeSession.made[-1].is_closed


@in_event_loop
async def test_answered_while_it_is_joined(media: FakeMedia) -> None:
    """A room that cannot be had ends the call later."""
    FakeSession.failures = [RefusedError("no", 401)]
    call = Call(media, make_context(media, fake_livekit.config(start="now")))
    await call.connect()
    assert call.told == []
    await settle()
    ((told, reason),) = call.told
    assert told == "closed"
    assert isinstance(reason, EndReason)
    assert reason.kind is EndKind.CHANNEL_FAILED
    await call.close()


@in_event_loop
async def test_what_a_rule_says(media: FakeMedia) -> None:
    """Wins over what is said for all; a call of no rule has the latter."""
    options = {"hide_phone_number": True, "attributes": {"a": "{callee}"}, "start": "now"}
    rule = RuleConfig.model_validate({"name": "rooms", "target": "livekit:x", "livekit": options})
    config = Config(
        trunk=(TrunkConfig.model_validate({"name": "t", "allowed_addresses": ("192.0.2.1",)}),),
        rule=(rule,),
        livekit=LiveKitConfig(**fake_livekit.SERVER, metadata="m"),
    )
    async with joined(media, config, rule="rooms") as (_, session):
        assert claims(session).metadata == "m"
        assert "sip.phoneNumber" not in attributes(session)
    async with joined(media, config) as (_, session):
        assert attributes(session)["sip.phoneNumber"] == "100"


# ---------------------------------------------------------------- keys, messages, methods


def packet(**value: Any) -> bytes:
    return DataPacket(**value, participant_identity="agent").SerializeToString()


def parse(data: bytes) -> DataPacket:
    parsed = DataPacket()
    parsed.ParseFromString(data)
    return parsed


@in_event_loop
async def test_keys_and_texts_both_ways(media: FakeMedia) -> None:
    async with joined(media) as (call, session):
        session.listener.packet(packet(sip_dtmf=SipDTMF(code=5, digit="5")))
        session.listener.packet(packet(user=UserPacket(payload=b"hello", topic="t")))
        assert call.told == [("dtmf", "5"), ("message", "t", "hello")]
        await call.connection.send_dtmf("#", 100)
        await call.connection.send_message("text", "notes")
        await call.connection.send_message(b"\x00", "bytes")
        sent = [parse(data) for data in session.sent]
        assert [one.WhichOneof("value") for one in sent] == [
            *("sip_dtmf", "stream_header", "stream_chunk", "stream_trailer", "user")
        ]
        assert sent[0].sip_dtmf.digit == "#"


async def ask(session: FakeSession, method: str, payload: Any = "") -> tuple[int, str]:
    """Calls a method; gives the code of its error, or 0, and what it says."""
    session.sent.clear()
    text = payload if isinstance(payload, str) else json.dumps(payload)
    session.listener.packet(packet(rpc_request=RpcRequest(id="7", method=method, payload=text, version=1)))
    await settle()
    ack, answer = (parse(data) for data in session.sent)
    assert ack.rpc_ack.request_id == answer.rpc_response.request_id == "7"
    assert list(ack.destination_identities) == list(answer.destination_identities) == ["agent"]
    if answer.rpc_response.HasField("error"):
        return answer.rpc_response.error.code, answer.rpc_response.error.message
    return 0, answer.rpc_response.payload


@in_event_loop
async def test_methods_that_wait_for_the_telephone(media: FakeMedia) -> None:
    """Where they are allowed; why one failed is in the answer."""
    config = fake_livekit.config(allow=("hold", "transfer"))
    async with joined(media, config) as (call, session):
        call.told.clear()
        assert await ask(session, "sip.hold") == (0, "{}")
        assert await ask(session, "sip.hold", {"hold": False}) == (0, "{}")
        assert await ask(session, "sip.transfer", {"to": "sip:200@pbx"}) == (0, "{}")
        assert call.told == [("hold", True), ("hold", False), ("transfer", "sip:200@pbx")]
        call.refusal = EndReason(EndKind.BUSY, "Busy Here", Party.CALLER, 486)
        assert await ask(session, "sip.transfer", "200") == (1500, "486 Busy Here")
        code, message = await ask(session, "sip.transfer", {"too": "200"})
        assert (code, "expected" in message) == (1500, True)


@in_event_loop
async def test_methods(media: FakeMedia, tmp_path: Path) -> None:
    audio.write_wav(tmp_path / "ding.wav", audio.tone(900, 1.0))
    config = fake_livekit.config(allow=("hangup", "dtmf", "play"), sounds=tmp_path)
    headers = {"Via": "x", "X-A": "1", "Subject": "s"}
    async with joined(media, config, headers=headers) as (call, session):
        assert await ask(session, "sip.dtmf", {"digits": "1a#"}) == (0, "{}")
        assert await ask(session, "sip.dtmf", "7") == (0, "{}")
        assert call.told == [("dtmf", digit) for digit in "1A#7"]
        for payload in ("", "x", {"digits": ""}, {"digits": "1" * 65}, "{"):
            assert (await ask(session, "sip.dtmf", payload))[0] == 1500
        assert await ask(session, "sip.play", {"file": "ding.wav"}) == (0, "{}")
        media.run(8)
        call.phone.forget()
        media.run_s(0.3)
        assert audio.find_tone(call.phone.heard, 8000) == pytest.approx(900, abs=3)
        for name in ("nothing.wav", "../ding.wav", "/etc/passwd", "", "..", 1):
            assert (await ask(session, "sip.play", {"file": name}))[0] == 1500
        _, answer = await ask(session, "lk.sip.GetRemoteHeaders")
        assert json.loads(answer) == {"headers": {"X-A": "1", "Subject": "s"}}
        _, answer = await ask(session, "lk.sip.GetRemoteHeaders", {"include": ["x-a"]})
        assert json.loads(answer) == {"headers": {"X-A": "1"}}
        _, answer = await ask(session, "lk.sip.GetRemoteHeaders", {"exclude": ["x-a"]})
        assert json.loads(answer) == {"headers": {"Subject": "s"}}
        assert await ask(session, "sip.transfer", {"to": "200"}) == (1500, "transfer is not allowed here")
        assert (await ask(session, "nothing"))[0] == 1400
        call.told.clear()
        assert await ask(session, "lk.sip.EndCall") == (0, "{}")
        assert call.told == []  # the answer gets out first
        await pass_time(1)
        ((told, reason),) = call.told
        assert told == "hangup"
        assert isinstance(reason, EndReason)
        assert (reason.kind, reason.by) == (EndKind.CHANNEL_CLOSED, Party.CHANNEL)


@in_event_loop
async def test_what_is_not_allowed(media: FakeMedia) -> None:
    async with joined(media, fake_livekit.config(allow=())) as (call, session):
        for method in ("sip.hangup", "sip.dtmf", "sip.play", "lk.sip.EndCall"):
            code, message = await ask(session, method, "1")
            assert (code, message.partition(" ")[2]) == (1500, "is not allowed here")
        session.listener.packet(packet(sip_dtmf=SipDTMF(digit="5")))
        await pass_time(1)
        assert call.told == []


# ---------------------------------------------------------------- endings


@pytest.mark.parametrize(
    ("failure", "kind", "code", "detail"),
    [
        (UnreachableError("refused"), EndKind.UNAVAILABLE, 503, "cannot be reached: refused"),
        (TimeoutError(), EndKind.UNAVAILABLE, 503, "does not answer within"),
        (MediaError("ICE failed"), EndKind.CHANNEL_FAILED, 504, "ICE failed"),
        (RefusedError("401 invalid token", 401), EndKind.CHANNEL_FAILED, 502, "401 invalid token"),
        (RefusedError("404 no such room", 404), EndKind.NOT_FOUND, 404, "404 no such room"),
        (RtcError(DELETED), EndKind.CHANNEL_CLOSED, 480, "LiveKit: the room was deleted"),
        (RtcError(EndReason(EndKind.ERROR, "no SDP")), EndKind.CHANNEL_FAILED, 502, "LiveKit: no SDP"),
    ],
)
@in_event_loop
async def test_a_room_that_cannot_be_joined(
    media: FakeMedia, failure: BaseException, kind: EndKind, code: int, detail: str
) -> None:
    """Each with its own reason; nothing is left."""
    FakeSession.failures = [failure]
    call = Call(media, make_context(media, fake_livekit.config()))
    with pytest.raises(RtcError) as caught:
        await call.connect()
    reason = caught.value.reason
    assert (reason.kind, reason.code, reason.by) == (kind, code, Party.CHANNEL)
    assert detail in reason.detail
    assert FakeSession.made[-1].is_closed
    assert call.told == []
    await call.close()


@in_event_loop
async def test_no_way_for_audio(media: FakeMedia) -> None:
    """The server answers, ICE does not come about in time."""
    FakeSession.may_join = asyncio.Event()
    call = Call(media, make_context(media, fake_livekit.config()))
    connecting = asyncio.ensure_future(call.connect())
    await settle()
    await pass_time(9)
    with pytest.raises(RtcError, match="no media connection") as caught:
        await connecting
    assert (caught.value.reason.kind, caught.value.reason.code) == (EndKind.CHANNEL_FAILED, 504)
    await call.close()


@in_event_loop
async def test_the_server_ends_it(media: FakeMedia) -> None:
    """No other membership is tried."""
    async with joined(media) as (call, session):
        session.ended.set_result(DELETED)
        await settle()
        assert call.told == [("closed", DELETED)]
        await pass_time(60)
        assert len(FakeSession.made) == 1


@in_event_loop
async def test_who_is_there_is_told(media: FakeMedia) -> None:
    async with joined(media) as (call, session):
        session.come("a")
        session.come("b")
        session.go("a")
        session.go("b")
        assert call.told == [("joined", "a"), ("joined", "b"), ("left", "a", 1), ("left", "b", 0)]


@in_event_loop
async def test_who_speaks_is_told(media: FakeMedia) -> None:
    """When that has changed; nobody speaks in a room that is lost."""
    async with joined(media) as (call, session):
        session.come("ann")
        call.told.clear()
        session.raise_voices(ann=0.5, me=0.25)
        session.raise_voices(me=0.25, ann=0.5)
        session.raise_voices(me=0.25)
        session.lose()
        await settle()
        media.run(8)
        await settle()
        FakeSession.made[-1].raise_voices(me=1.0)
        speakers: list[dict[str, float]] = [{"ann": 0.5, "me": 0.25}, {"me": 0.25}, {}, {"me": 1.0}]
        told = [("noticed", "speakers", "", levels) for levels in speakers]
        assert [one for one in call.told if one[0] == "noticed"] == told


# ---------------------------------------------------------------- other addresses


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses of LiveKit Cloud's regions, as a test says them."""
    found: list[str] = []

    async def find(entry: Entry, timeout_s: float) -> tuple[str, ...]:
        return tuple(found)

    monkeypatch.setattr(regions, "is_cloud", lambda url: True)
    monkeypatch.setattr(regions, "learn", lambda entry: None)
    monkeypatch.setattr(regions, "find", find)
    return found


def addresses() -> list[str]:
    """Where it was tried to join."""
    return [session.entry.url for session in FakeSession.made]


HOME = fake_livekit.SERVER["url"]


@pytest.mark.parametrize("failure", [UnreachableError("refused"), MediaError("ICE failed"), TimeoutError()])
@in_event_loop
async def test_the_next_region(media: FakeMedia, cloud: list[str], failure: BaseException) -> None:
    """Where one cannot be reached; the call is where it could be."""
    cloud += ["https://one", HOME, "https://two", "https://three"]
    FakeSession.failures = [failure, UnreachableError("refused")]
    async with joined(media) as (call, session):
        assert addresses() == [HOME, "https://one", "https://two"]
        assert len({one.entry.token for one in FakeSession.made}) == 1
        assert [one.is_closed for one in FakeSession.made] == [True, True, False]
        session.speak(500)
        media.run(40)
        call.phone.forget()
        media.run_s(0.3)
        assert audio.find_tone(call.phone.heard, 8000) == pytest.approx(500, abs=3)


@in_event_loop
async def test_regions_that_are_slow(media: FakeMedia, cloud: list[str]) -> None:
    """Share the time that there is to join; the last one's reason is that of the call."""
    cloud += ["https://one", "https://two", "https://three"]
    FakeSession.may_join = asyncio.Event()
    call = Call(media, make_context(media, fake_livekit.config(connect_timeout_s=8)))
    connecting = asyncio.ensure_future(call.connect())
    await settle()
    for seconds, urls in ((3.9, [HOME]), (0.2, [HOME, "https://one"]), (2.1, [HOME, *cloud[:2]])):
        await pass_time(seconds)
        assert addresses() == urls
    assert not connecting.done()
    await pass_time(2)
    with pytest.raises(RtcError, match="no media connection") as caught:
        await connecting
    assert caught.value.reason.code == 504
    assert addresses() == [HOME, *cloud[:2]]
    assert all(one.is_closed for one in FakeSession.made)
    await call.close()


@pytest.mark.parametrize("status", [401, 404])
@in_event_loop
async def test_a_region_that_refuses_has_the_last_word(
    media: FakeMedia, cloud: list[str], status: int
) -> None:
    cloud += ["https://one", "https://two"]
    FakeSession.failures = [UnreachableError("refused"), RefusedError(f"{status} no", status)]
    call = Call(media, make_context(media, fake_livekit.config()))
    with pytest.raises(RtcError, match=f"{status} no"):
        await call.connect()
    assert addresses() == [HOME, "https://one"]
    await call.close()


@in_event_loop
async def test_no_region_can_be_reached(media: FakeMedia, cloud: list[str]) -> None:
    """Each was tried once."""
    cloud += ["https://one", "https://one"]
    FakeSession.failures = [UnreachableError("refused"), UnreachableError("not there either")]
    call = Call(media, make_context(media, fake_livekit.config()))
    with pytest.raises(RtcError, match="https://one cannot be reached: not there either") as caught:
        await call.connect()
    assert (caught.value.reason.kind, caught.value.reason.code) == (EndKind.UNAVAILABLE, 503)
    assert addresses() == [HOME, "https://one"]
    await call.close()


@in_event_loop
async def test_where_the_server_sends_us(media: FakeMedia) -> None:
    """First there, then where we have always been; also a server of one's own may say it."""
    async with joined(media) as (call, session):
        session.regions = ("https://one", "https://two")
        FakeSession.failures = [UnreachableError("refused")] * 2
        session.lose("the server asks us to come again: MIGRATION")
        await settle()
        assert addresses() == [HOME, "https://one", "https://two", HOME]
        assert claims(FakeSession.made[-1]).identity == claims(session).identity
        assert call.told == []


# ---------------------------------------------------------------- lost, and joined again


@in_event_loop
async def test_a_lost_room_is_joined_again(media: FakeMedia) -> None:
    """With the same identity and the present state; audio flows again both ways, who has left is told."""
    async with joined(media) as (call, first):
        call.phone.say(Tone(PHONE_HZ, 8000))
        first.come("stays")
        first.come("goes")
        track = first.speak(500)
        call.connection.call_changed("held")
        call.told.clear()
        FakeSession.failures = [UnreachableError("refused")] * 3
        first.lose()
        await settle()
        media.run(8)
        for _ in range(6):
            await pass_time(1)
        media.run(8)
        await settle()
        assert first.is_closed
        assert track.ports[0].closed
        second = FakeSession.made[-1]
        assert len(FakeSession.made) == 5
        assert claims(second).identity == claims(first).identity
        assert attributes(second)["sip.held"] == "true"
        assert second.muted
        assert call.told[-1] == ("left", "goes", 0) or ("left", "goes", 1) in call.told
        call.connection.call_changed("active")
        second.speak(600)
        media.run(40)
        call.phone.forget()
        media.run_s(0.5)
        assert audio.find_tone(call.phone.heard, 8000) == pytest.approx(600, abs=2)
        assert audio.find_tone(second.heard[-4000:], 8000) == pytest.approx(PHONE_HZ, abs=2)


@in_event_loop
async def test_a_room_that_does_not_come_back(media: FakeMedia) -> None:
    """Within reconnect_s nothing is told, then the call ends."""
    async with joined(media, fake_livekit.config(reconnect_s=10)) as (call, session):
        FakeSession.failures = [UnreachableError("refused") for _ in range(100)]
        session.lose()
        for _ in range(9):
            await pass_time(1)
        assert call.told == []
        await pass_time(2)
        await pass_time(2)
        ((told, reason),) = call.told
        assert told == "closed"
        assert isinstance(reason, EndReason)
        assert reason.kind is EndKind.CHANNEL_FAILED
        assert "did not come back within 10 s" in reason.detail
        assert "refused" in reason.detail


@in_event_loop
async def test_a_room_that_does_not_let_us_in_again(media: FakeMedia) -> None:
    """A token that is over by then, say: at once."""
    async with joined(media) as (call, session):
        FakeSession.failures = [RefusedError("the server refuses us: 401 token is expired", 401)]
        session.lose()
        await settle()
        ((_, reason),) = call.told
        assert isinstance(reason, EndReason)
        assert "token is expired" in reason.detail


@in_event_loop
async def test_hung_up_while_it_is_lost(media: FakeMedia) -> None:
    """Nothing is joined any more."""
    async with joined(media) as (call, session):
        FakeSession.failures = [UnreachableError("refused") for _ in range(100)]
        session.lose()
        await pass_time(1)
        await call.close()
        made = len(FakeSession.made)
        for _ in range(40):
            await pass_time(1)
        assert len(FakeSession.made) == made
        assert call.told == []
        assert all(one.is_closed for one in FakeSession.made[1:])
