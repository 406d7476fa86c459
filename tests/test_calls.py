# SPDX-License-Identifier: GPL-3.0-or-later
"""All calls of the process: which rule takes them, how they are made, and what is told of them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sipbridge.calls import KEEP_ENDED_S, CallRegistry, DialRequest, RoomView
from sipbridge.config import Config
from sipbridge.errors import CallError, ConfigError, EndKind, EndReason, Party
from sipbridge.events import CallEnded, CallEvent
from sipbridge.leg import LegStats
from tests.support import audio
from tests.support.event_loop import in_event_loop, pass_time, settle, until
from tests.support.fake_bank import FakeMedia
from tests.support.fake_rtc import ScriptedConnection, scripted
from tests.support.fake_sip import FakeEndpoint, FakeLeg

__all__ = ["scripted"]

CONFIG: dict[str, Any] = {
    "trunk": [
        {"name": "line", "allowed_addresses": ["192.0.2.1"], "numbers": ["2*", "room-*"]},
        {"name": "open", "allowed_addresses": ["192.0.2.2"]},
        {"name": "far", "outbound": {"servers": ["198.51.100.1"]}},
    ],
    "rule": [
        {
            "name": "vip",
            "from": "1*",
            "to": "200",
            "trunk": "line",
            "target": "scripted:",
            "max_duration_s": 60,
        },
        {"name": "rings", "to": "201", "target": "scripted:", "ring_s": 3},
        {"name": "early", "to": "202", "target": "scripted:", "early_media": True, "ring_s": 3},
        {"name": "alone", "to": "203", "target": "scripted:", "hangup_when_alone": True},
        {"name": "header", "to": "204", "target": "local:{header:X-Room}"},
        {"name": "refused", "to": "205", "target": "scripted:refuses"},
        {"name": "room", "to": "room-*", "target": "local:{callee}-{caller}-{call_id}"},
    ],
}

Scripted = list[ScriptedConnection]
pytestmark = pytest.mark.usefixtures("scripted")


class Stage:
    """A registry and all around it; within an event loop."""

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        self.media = FakeMedia()
        self.config = Config.model_validate(CONFIG if config is None else config)
        self.endpoint = FakeEndpoint(self.config, self.media)
        self.calls = CallRegistry(self.config, self.endpoint, self.media.loop, self.media.remotes)
        self.events: list[CallEvent] = []
        self._legs = 0

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Keeps all events of it in `events`."""
        async with self.calls.events() as events:

            async def listen() -> None:
                async for event in events:
                    self.events.append(event)

            listener = asyncio.ensure_future(listen())
            try:
                yield
            finally:
                listener.cancel()

    def incoming(
        self, callee: str, caller: str = "100", trunk: str | None = "line", **headers: str
    ) -> FakeLeg:
        self._legs += 1
        trunks = {trunk.name: trunk for trunk in self.config.trunk}
        leg = FakeLeg(
            self.endpoint,
            f"in-{self._legs}",
            trunk=None if trunk is None else trunks[trunk],
            caller=caller,
            callee=callee,
            headers={name.replace("_", "-"): value for name, value in headers.items()},
        )
        self.calls.on_incoming(leg)
        return leg

    async def dial(self, to: str = "sip:300@198.51.100.2", **options: Any) -> tuple[str, FakeLeg]:
        call_id = await self.calls.dial(DialRequest(to=to, **options))
        await settle()
        return call_id, self.endpoint.dialled[-1]

    def ended(self, call_id: str) -> EndReason:
        """The one end of a call."""
        reasons = [
            event.reason for event in self.events if isinstance(event, CallEnded) and event.call_id == call_id
        ]
        assert len(reasons) == 1
        return reasons[0]


# --- calls that come


@in_event_loop
async def test_rule_takes_a_call(scripted: Scripted) -> None:
    """The first that fits; what it says is what is done, and what is shown."""
    stage = Stage()
    leg = stage.incoming("200")
    await settle()
    assert leg.asked == ["answer"]
    join = scripted[0].join
    assert (join.call_id, join.trunk, join.rule) == ("in-1", "line", "vip")
    view = await stage.calls.get("in-1")
    assert (view.direction, view.from_, view.to, view.trunk) == ("inbound", "100", "200", "line")
    assert (view.rule, view.target, view.state, view.codec) == ("vip", "scripted:", "active", "PCMU")
    await pass_time(61)
    assert leg.reasons[0].kind is EndKind.MAX_DURATION


@in_event_loop
async def test_rule_says_how_to_answer(scripted: Scripted) -> None:
    """Ringing, early media, hanging up when alone."""
    stage = Stage()
    rings, early, alone = (stage.incoming(callee) for callee in ("201", "202", "203"))
    await settle()
    assert (rings.asked, early.asked, alone.asked) == (["ring"], ["progress"], ["answer"])
    await pass_time(3.1)
    assert (rings.asked, early.asked) == (["ring", "answer"], ["progress", "answer"])
    for channel in list(scripted):
        channel.listener.participant_left("x", 0)
    await settle()
    assert [leg.asked[-1] for leg in (rings, early, alone)] == ["answer", "answer", "hangup"]


@pytest.mark.parametrize(
    ("callee", "options", "detail"),
    [
        ("200", {"caller": "900"}, "no rule for '200'"),
        ("200", {"trunk": "open"}, "no rule for '200'"),
        ("299", {}, "no rule for '299'"),
        ("", {"trunk": "open"}, "no rule for ''"),
        ("300", {}, "trunk line does not serve '300'"),
        ("204", {}, "nothing is left of local:{header:X-Room}"),
        ("204", {"X_Room": "a\nb"}, "header:X-Room contains a control character"),
        ("200", {"trunk": None}, "no rule for '200'"),
    ],
)
@in_event_loop
async def test_no_target(scripted: Scripted, callee: str, options: dict[str, Any], detail: str) -> None:
    """404 with the reason; it is a call nevertheless, with a start and an end."""
    stage = Stage()
    async with stage.listening():
        leg = stage.incoming(callee, **options)
        await settle()
        assert leg.asked == ["hangup"]
        reason = stage.ended("in-1")
        assert (reason.kind, reason.code) == (EndKind.NOT_FOUND, 404)
        assert detail in reason.detail
        assert [event.name for event in stage.events] == ["call.started", "call.ended"]
        assert await stage.calls.list() == []


@in_event_loop
async def test_target_is_filled_in() -> None:
    """From the call and from its headers, whose names have no case."""
    stage = Stage()
    stage.incoming("room-7", "150")
    stage.incoming("204", x_room="9")
    await settle()
    assert [view.target for view in await stage.calls.list()] == ["local:room-7-150-in-1", "local:9"]


@in_event_loop
async def test_channel_refuses() -> None:
    """The caller gets the channel's reason."""
    stage = Stage()
    async with stage.listening():
        leg = stage.incoming("205")
        await settle()
        assert leg.reasons[0].code == 486
        assert stage.ended("in-1") == EndReason(EndKind.BUSY, "the room is full", Party.CHANNEL)


@in_event_loop
async def test_two_calls_in_a_room() -> None:
    """They are shown in it and hear each other; key presses go from one to the other."""
    stage = Stage()
    first, second = (stage.incoming("204", x_room="7") for _ in range(2))
    await settle()
    second.agrees("G722", 16000)
    first.phone.say(audio.tone(700, 1.0))
    stage.media.run_s(1.0)
    assert stage.calls.rooms() == [RoomView(name="7", rate_hz=16000, members=("in-1", "in-2"))]
    assert audio.find_tone(second.phone.heard[1600:], 16000) == pytest.approx(700, abs=2)
    first.presses("5")
    await settle()
    assert (first.pressed, second.pressed) == ([], ["5"])
    first.hangs_up()
    await settle()
    stage.media.run(4)
    assert stage.calls.rooms() == [RoomView(name="7", rate_hz=16000, members=("in-2",))]


@in_event_loop
async def test_keys_in_band_are_not_relayed_twice() -> None:
    """The room has heard them already."""
    stage = Stage()
    first, second = (stage.incoming("204", x_room="7") for _ in range(2))
    await settle()
    first.presses("5", "inband")
    first.presses("5", "rfc4733")
    await settle()
    assert second.pressed == []


# --- calls that are made


@in_event_loop
async def test_dial(scripted: Scripted) -> None:
    """By a trunk, from somebody, with headers, to a channel."""
    stage = Stage()
    async with stage.listening():
        call_id, leg = await stage.dial(
            "300", trunk="far", from_="100", headers={"X-Ticket": "7"}, target="scripted:"
        )
        plan = stage.endpoint.plans[0]
        assert [uri.uri for uri in plan.request_uris] == ["sip:300@198.51.100.1"]
        assert (leg.caller, leg.callee, leg.extra_headers) == ("100", "300", {"X-Ticket": "7"})
        view = await stage.calls.get(call_id)
        assert (view.direction, view.from_, view.to, view.trunk) == ("outbound", "100", "300", "far")
        assert (view.rule, view.target, view.state) == ("", "scripted:", "new")
        for happens, state in ((leg.rings, "ringing"), (leg.answers, "active"), (leg.holds, "held")):
            happens()
            await settle()
            assert (await stage.calls.get(call_id)).state == state
        leg.hangs_up()
        await settle()
        assert stage.ended(call_id) == EndReason(EndKind.HANGUP, "hung up", Party.CALLEE)
        assert [event.name.removeprefix("call.") for event in stage.events] == [
            *("started", "ringing", "answered", "bridged", "held", "unbridged", "ended")
        ]


@pytest.mark.parametrize(
    ("from_", "party"),
    [
        ("", ""),
        ("100", "100"),
        ("alice", "alice"),
        ('"Alice" <sip:alice@example.com>', "alice"),
        ("tel:+49123", "+49123"),
    ],
)
@in_event_loop
async def test_who_a_call_is_from(from_: str, party: str) -> None:
    """A number, a user, or a URI."""
    stage = Stage()
    call_id, leg = await stage.dial(from_=from_)
    assert leg.caller == party
    assert (await stage.calls.get(call_id)).from_ == party


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"to": ""}, "nothing to dial"),
        ({"to": "300"}, "needs a trunk"),
        ({"to": "300", "trunk": "nowhere"}, "nowhere"),
        ({"to": "300", "trunk": "line"}, "no outbound servers"),
        ({"to": "sip:"}, "host"),
        ({"to": "sip:a@b\r\nX: y"}, "control character"),
        ({"from_": "sip:@"}, "user part"),
        ({"from_": "a b\r\n"}, "control character"),
        ({"target": "demo"}, "demo"),
        ({"target": "locl:demo"}, "locl:demo"),
        ({"target": "tone:high"}, "tone:HZ"),
        ({"target": "local:"}, "local:ROOM"),
        ({"dtmf": "12x"}, "'X' is no key"),
        ({"play": "/nonexistent/a.wav"}, "/nonexistent/a.wav"),
        ({"play": __file__}, "sound file"),
        ({"record": "/nonexistent/a.wav"}, "/nonexistent"),
    ],
)
@in_event_loop
async def test_what_cannot_be_dialled(options: dict[str, Any], named: str) -> None:
    """It is told at once; there never was a call."""
    stage = Stage()
    async with stage.listening():
        with pytest.raises(ConfigError) as caught:
            await stage.calls.dial(DialRequest(**{"to": "sip:300@198.51.100.2", **options}))
        assert named in str(caught.value)
        await settle()
        assert stage.events == []
        assert await stage.calls.list() == []
        assert stage.endpoint.dialled == []


@pytest.mark.parametrize(
    ("error", "kind", "detail"),
    [
        (
            CallError(EndReason(EndKind.UNAVAILABLE, "no address for b")),
            EndKind.UNAVAILABLE,
            "no address for b",
        ),
        (RuntimeError("oh no"), EndKind.ERROR, "internal error: oh no"),
    ],
)
@in_event_loop
async def test_nobody_to_dial(error: Exception, kind: EndKind, detail: str) -> None:
    """The call ends without ever having had a leg."""
    stage = Stage()
    async with stage.listening():
        stage.endpoint.dial_error = error
        call_id = await stage.calls.dial(DialRequest(to="sip:a@b"))
        await settle()
        assert (stage.ended(call_id).kind, stage.ended(call_id).detail) == (kind, detail)
        view = await stage.calls.get(call_id)
        assert (view.state, view.end) == ("ended", stage.ended(call_id))


@pytest.mark.parametrize("found", [True, False])
@in_event_loop
async def test_hung_up_before_there_is_a_leg(found: bool) -> None:
    """While servers are looked up: it is cancelled, whatever comes of that."""
    stage = Stage()
    async with stage.listening():
        stage.endpoint.may_dial.clear()
        call_id = await stage.calls.dial(DialRequest(to="sip:a@b"))
        await stage.calls.hangup(call_id)
        if not found:
            stage.endpoint.dial_error = CallError(EndReason(EndKind.UNAVAILABLE, "no address"))
        stage.endpoint.may_dial.set()
        await settle()
        assert stage.ended(call_id) == EndReason(EndKind.CANCELLED, "hung up by the operator", Party.OPERATOR)
        assert [leg.asked for leg in stage.endpoint.dialled] == [["hangup"]] * found


@in_event_loop
async def test_not_answered_in_time() -> None:
    """`ring_s` is the caller's patience."""
    stage = Stage()
    async with stage.listening():
        call_id, leg = await stage.dial(ring_s=20)
        leg.rings()
        await pass_time(20.1)
        assert leg.asked == ["hangup"]
        assert stage.ended(call_id).kind is EndKind.NO_ANSWER
        assert stage.ended(call_id).code == 408


@in_event_loop
async def test_dialled_for_a_time() -> None:
    """`max_duration_s` after the answer the bridge hangs up."""
    stage = Stage()
    async with stage.listening():
        call_id, leg = await stage.dial(max_duration_s=5)
        await pass_time(10)
        leg.answers()
        await pass_time(4.9)
        assert leg.asked == []
        await pass_time(0.2)
        assert stage.ended(call_id).kind is EndKind.MAX_DURATION


@in_event_loop
async def test_play_record_and_keys(tmp_path: Path) -> None:
    """After the answer: the callee hears the file once, what it says is recorded, keys are pressed."""
    said, heard = audio.speech(0.5, voice=1), audio.speech(0.3)
    stage = Stage()
    _, leg = await stage.dial(
        play=str(audio.write_wav(tmp_path / "play.wav", heard)),
        record=str(tmp_path / "record.wav"),
        dtmf="1#",
    )
    leg.rings()
    await settle()
    assert list(tmp_path.iterdir()) == [tmp_path / "play.wav"]
    leg.answers()
    await until(lambda: leg.pressed)
    assert leg.pressed == ["<1#", "1#>"]
    leg.phone.say(said)
    stage.media.run_s(0.5)
    leg.hangs_up()
    await settle()
    stage.media.run(3)
    np.testing.assert_array_equal(leg.phone.heard[40 : len(heard)], heard[40:])
    assert not leg.phone.heard[len(heard) :].any()
    await until(lambda: not stage.calls._tasks)
    recorded, rate_hz = audio.read_wav(tmp_path / "record.wav")
    assert rate_hz == 8000
    np.testing.assert_array_equal(recorded[40 : len(said)], said[40:])


@in_event_loop
async def test_played_and_recorded_at_the_codecs_rate(tmp_path: Path) -> None:
    """Wideband stays wideband."""
    path = audio.write_wav(tmp_path / "play.wav", audio.tone(6000, 1.0, 16000), 16000)
    stage = Stage()
    call_id, leg = await stage.dial(play=str(path), record=str(tmp_path / "record.wav"), dtmf="1")
    leg.agrees("G722", 16000)
    leg.answers()
    await until(lambda: leg.pressed)
    leg.phone.say(audio.tone(5000, 1.0, 16000))
    stage.media.run_s(1.0)
    assert audio.find_tone(leg.phone.heard, 16000) == pytest.approx(6000, abs=2)
    await stage.calls.hangup(call_id)
    await until(lambda: not stage.calls._tasks)
    recorded, rate_hz = audio.read_wav(tmp_path / "record.wav")
    assert rate_hz == 16000
    assert audio.find_tone(recorded, 16000) == pytest.approx(5000, abs=2)


@in_event_loop
async def test_file_that_is_gone_when_it_is_to_be_played(tmp_path: Path) -> None:
    """The call ends with that for a reason."""
    path = audio.write_wav(tmp_path / "play.wav", audio.tone(1000, 0.1))
    stage = Stage()
    async with stage.listening():
        call_id, leg = await stage.dial(play=str(path))
        path.unlink()
        leg.answers()
        await until(lambda: leg.asked)
        await settle()
        assert stage.ended(call_id).kind is EndKind.ERROR
        assert "play.wav" in stage.ended(call_id).detail


@in_event_loop
async def test_record_that_cannot_be_written(tmp_path: Path) -> None:
    """As above; nothing is left open."""
    stage = Stage()
    async with stage.listening():
        call_id, leg = await stage.dial(record=str(tmp_path))
        leg.answers()
        await settle()
        assert stage.ended(call_id).kind is EndKind.ERROR
        assert str(tmp_path) in stage.ended(call_id).detail


# --- control


@in_event_loop
async def test_hangup() -> None:
    """By the operator; before the answer it is a cancelled call."""
    stage = Stage()
    async with stage.listening():
        stage.incoming("201")
        stage.incoming("204", x_room="7")
        await settle()
        await stage.calls.hangup("in-1")
        await stage.calls.hangup("in-2")
        await settle()
        for call_id, kind in (("in-1", EndKind.CANCELLED), ("in-2", EndKind.HANGUP)):
            assert stage.ended(call_id) == EndReason(kind, "hung up by the operator", Party.OPERATOR)


@in_event_loop
async def test_send_dtmf() -> None:
    """Keys to the telephone; what is none is refused as a whole."""
    stage = Stage()
    leg = stage.incoming("204", x_room="7")
    await settle()
    sending = asyncio.ensure_future(stage.calls.send_dtmf("in-1", "12w#"))
    await pass_time(1)
    await sending
    with pytest.raises(ValueError, match="is no key"):
        await stage.calls.send_dtmf("in-1", "1x")
    assert leg.pressed == ["<12w#", "12w#>"]


@in_event_loop
async def test_keys_as_tones() -> None:
    """Where nothing else was agreed on, the SIP side asks for them in what the telephone hears."""
    stage = Stage()
    leg = stage.incoming("204", x_room="7")
    await settle()
    leg.agrees("G722", 16000)
    stage.media.run_s(1.0)
    leg.phone.forget()
    stage.endpoint.play_inband(leg, "5")
    stage.media.run_s(0.1)
    for hz in (770, 1336):
        assert audio.tone_level_dbfs(leg.phone.heard, 16000, hz) > -25


@in_event_loop
async def test_unknown_calls() -> None:
    """LookupError, which says which."""
    stage = Stage()
    for ask in (stage.calls.get, stage.calls.hangup, lambda call_id: stage.calls.send_dtmf(call_id, "1")):
        with pytest.raises(LookupError, match="there is no call 4711"):
            await ask("4711")


@in_event_loop
async def test_views_of_living_calls() -> None:
    """Oldest first, with their levels and statistics at this moment."""
    stage = Stage()
    legs = [stage.incoming("204", x_room="7") for _ in range(2)]
    await settle()
    legs[0].at_end = LegStats(
        codec="G722",
        capture_peak=32768,
        playback_peak=0,
        capture_ms=12.34,
        mix_ms=0.51,
        playback_ms=23.45,
        loss_percent=1.234,
        jitter_ms=4.56,
    )
    views = await stage.calls.list()
    assert [view.id for view in views] == ["in-1", "in-2"]
    assert (views[0].codec, views[0].capture_level_dbfs, views[0].playback_level_dbfs) == (
        "G722",
        0.0,
        -100.0,
    )
    delays = (views[0].capture_ms, views[0].mix_ms, views[0].playback_ms, views[0].delay_ms)
    assert delays == (12.3, 0.5, 23.4, 36.3)
    assert (views[0].loss_percent, views[0].jitter_ms, views[0].end) == (1.23, 4.6, None)
    assert 0 <= views[0].seconds < 60
    assert (await stage.calls.health())["active_calls"] == 2


@in_event_loop
async def test_ended_calls_are_kept_a_minute() -> None:
    """They are not listed, but can be asked about; nothing else can be done with them."""
    stage = Stage()
    leg = stage.incoming("204", x_room="7")
    await settle()
    leg.hangs_up()
    await settle()
    assert await stage.calls.list() == []
    assert (await stage.calls.health())["active_calls"] == 0
    for _ in range(2):
        view = await stage.calls.get("in-1")
        assert (view.state, view.codec) == ("ended", "PCMU")
        assert view.end == EndReason(EndKind.HANGUP, "hung up", Party.CALLER)
        with pytest.raises(LookupError):
            await stage.calls.hangup("in-1")
        await pass_time(KEEP_ENDED_S - 1 if _ == 0 else 2)
    with pytest.raises(LookupError):
        await stage.calls.get("in-1")


# --- events


@in_event_loop
async def test_events_go_to_everybody_who_listens() -> None:
    """From then on, in order; who has left is not served any more."""
    stage = Stage()
    stage.incoming("299")
    await settle()
    async with stage.calls.events() as first:
        async with stage.calls.events() as second:
            stage.incoming("299")
            await settle()
            for events in (first, second):
                told = [await anext(events) for _ in range(2)]
                assert [(event.call_id, event.name) for event in told] == [
                    ("in-2", "call.started"),
                    ("in-2", "call.ended"),
                ]
        stage.incoming("299")
        assert (await anext(first)).call_id == "in-3"
    assert not stage.calls._subscribers


@in_event_loop
async def test_slow_subscriber_loses_the_oldest() -> None:
    """It costs bounded memory, and nobody else anything."""
    stage = Stage()
    async with stage.calls.events() as slow, stage.listening():
        for _ in range(600):
            stage.incoming("299")
            await settle()
        assert len(stage.events) == 1200
        kept = [await anext(slow) for _ in range(1000)]
        assert kept == stage.events[200:]


# --- the end of the server


@in_event_loop
async def test_drain() -> None:
    """Nobody is let in or dialled any more; it is over when the last call has ended."""
    stage = Stage()
    leg = stage.incoming("204", x_room="7")
    await settle()
    draining = asyncio.ensure_future(stage.calls.drain(60))
    await pass_time(10)
    assert stage.endpoint.draining
    assert (await stage.calls.health())["draining"] is True
    assert not draining.done()
    with pytest.raises(CallError) as caught:
        await stage.calls.dial(DialRequest(to="sip:a@b"))
    assert (caught.value.reason.kind, caught.value.reason.code) == (EndKind.SHUTDOWN, 503)
    leg.hangs_up()
    await settle()
    assert draining.done()


@in_event_loop
async def test_drain_has_a_limit() -> None:
    """Then who is left is hung up, with a reason."""
    stage = Stage()
    async with stage.listening():
        legs = [stage.incoming("204", x_room="7"), stage.incoming("201")]
        stage.endpoint.may_dial.clear()
        call_id = await stage.calls.dial(DialRequest(to="sip:a@b"))
        draining = asyncio.ensure_future(stage.calls.drain(60))
        await pass_time(59.9)
        assert not draining.done()
        await pass_time(0.2)
        assert draining.done()
        assert [leg.asked[-1] for leg in legs] == ["answer", "answer"]
        ending = asyncio.ensure_future(stage.calls.end_all())
        await settle()
        assert [leg.reasons for leg in legs] == [[EndReason(EndKind.SHUTDOWN, "the server stops")]] * 2
        assert not ending.done()  # of the call that is being dialled nothing is known yet
        stage.endpoint.may_dial.set()
        await settle()
        assert ending.done()
        assert stage.ended(call_id).kind is EndKind.SHUTDOWN


@in_event_loop
async def test_end_all_waits_for_nobody_for_ever() -> None:
    """A leg that does not end keeps the process no longer than two seconds."""
    stage = Stage()
    leg = stage.incoming("204", x_room="7")
    await settle()
    leg.hangup = lambda *arguments: None  # type: ignore[method-assign]
    ending = asyncio.ensure_future(stage.calls.end_all())
    await pass_time(1.9)
    assert not ending.done()
    await pass_time(0.2)
    assert ending.done()
    leg.hangs_up()
    await settle()


@in_event_loop
async def test_nothing_to_drain() -> None:
    """It is over at once."""
    stage = Stage()
    await stage.calls.drain(60)
    await stage.calls.end_all()
