# SPDX-License-Identifier: GPL-3.0-or-later
"""One call, from the first sign of it to its one `CallEnded`: the leg is a fake, the channel does as told."""

import asyncio
import gc
import math
import time
import weakref
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from sipbridge.bridge import Bridge, CallPlan
from sipbridge.config import Config, PinConfig, TrunkConfig
from sipbridge.errors import CallError, EndKind, EndReason, MediaError, Party, RtcError
from sipbridge.events import CallBridgeFailed, CallDtmf, CallEnded, CallEvent, CallMessage
from sipbridge.leg import LegState
from sipbridge.media.loop import Room
from sipbridge.media.tones import dtmf_samples
from tests.support import audio
from tests.support.event_loop import in_event_loop, pass_time, settle, until
from tests.support.fake_bank import FakeMedia
from tests.support.fake_rtc import ScriptedConnection, make_context, scripted
from tests.support.fake_sip import FakeEndpoint, FakeLeg

__all__ = ["scripted"]

OPERATOR = EndReason(EndKind.HANGUP, "hung up by the operator", Party.OPERATOR)


def make_trunk(dtmf: str = "auto") -> TrunkConfig:
    return TrunkConfig.model_validate({"name": "line", "allowed_addresses": ["192.0.2.1"], "dtmf": dtmf})


class Stage:
    """A bridge and all around it; within an event loop."""

    def __init__(self, target: str = "scripted:", direction: str = "inbound", **options: Any) -> None:
        self.media = FakeMedia()
        self.context = make_context(self.media)
        self.endpoint = FakeEndpoint(Config(), self.media)
        self.events: list[CallEvent] = []
        self.ended: list[Bridge] = []
        self.bridge = Bridge(
            self.context,
            CallPlan(
                call_id="1",
                direction=cast(Any, direction),
                from_="100",
                to="200",
                trunk="line",
                rule="all",
                target=target,
                **options,
            ),
            emit=self.events.append,
            ended=self.ended.append,
        )

    def leg(self, dtmf: str = "auto", **options: Any) -> FakeLeg:
        direction = self.bridge.plan.direction
        return FakeLeg(self.endpoint, "1", direction=direction, trunk=make_trunk(dtmf), **options)

    def accept(self, ring_s: float = 0, early_media: bool = False, **options: Any) -> FakeLeg:
        leg = self.leg(**options)
        self.bridge.accept(leg, ring_s=ring_s, early_media=early_media)
        return leg

    async def answered(self, **options: Any) -> FakeLeg:
        """An inbound call that is up."""
        leg = self.accept(**options)
        await settle()
        assert self.bridge.answered.is_set()
        return leg

    def follow(self, ring_s: float = 60) -> FakeLeg:
        leg = self.leg()
        self.bridge.follow(leg, ring_s)
        return leg

    @property
    def names(self) -> list[str]:
        return [event.name.removeprefix("call.") for event in self.events]

    @property
    def end(self) -> CallEnded:
        """The one end of the call, of which nothing is left."""
        assert self.names.count("ended") == 1
        assert self.names[-1] == "ended"
        assert self.ended == [self.bridge]
        assert self.bridge.over.is_set()
        self.media.run(4)
        assert self.media.bank.attached == set()
        event = self.events[-1]
        assert isinstance(event, CallEnded)
        assert event.reason == self.bridge.end
        return event


Scripted = list[ScriptedConnection]
pytestmark = pytest.mark.usefixtures("scripted")


# --- calls that come


@in_event_loop
async def test_call(scripted: Scripted) -> None:
    """It is joined, then answered; at its end the channel is left and all is told."""
    stage = Stage()
    leg = stage.accept(headers={"X-Room": "7"})
    await settle()
    join = scripted[0].join
    assert (join.call_id, join.direction, join.caller, join.callee) == ("1", "inbound", "100", "200")
    assert (join.trunk, join.rule, join.headers) == ("line", "all", {"X-Room": "7"})
    assert leg.asked == ["answer"]
    assert stage.names == ["started", "bridged", "answered"]
    leg.answered_at = time.monotonic() - 7.5
    leg.hangs_up()
    await settle()
    end = stage.end
    assert end.reason == EndReason(EndKind.HANGUP, "hung up", Party.CALLER)
    assert scripted[0].closed == [end.reason]
    assert leg.asked == ["answer"]
    assert (end.direction, end.from_, end.to) == ("inbound", "100", "200")
    assert (end.trunk, end.rule, end.target) == ("line", "all", "scripted:")
    assert 7.5 <= end.duration_s < 20
    assert end.billed_s == math.ceil(end.duration_s)
    assert stage.names[-2:] == ["unbridged", "ended"]
    assert (end.codec, end.loss_percent, end.jitter_ms) == ("PCMU", 0.46, 1.2)
    assert end.mos is not None
    assert 3 < end.mos < 4.5


@in_event_loop
async def test_nothing_is_estimated_of_a_call_without_audio() -> None:
    """A call that nobody answered has lasted no time."""
    stage = Stage()
    leg = stage.accept(ring_s=5)
    leg.at_end = type(leg.at_end)()
    leg.hangs_up()
    await settle()
    assert (stage.end.duration_s, stage.end.mos, stage.end.codec) == (0.0, None, "")


@in_event_loop
async def test_ringing(scripted: Scripted) -> None:
    """For `ring_s` the telephone rings; then the channel is joined, then the call answered."""
    stage = Stage("scripted:waits")
    leg = stage.accept(ring_s=5)
    await pass_time(4.9)
    assert leg.asked == ["ring"]
    assert stage.names == ["started", "ringing"]
    assert scripted == []
    await pass_time(0.2)
    assert leg.asked == ["ring"]
    scripted[0].may_join.set()
    await settle()
    assert leg.asked == ["ring", "answer"]


@in_event_loop
async def test_early_media(scripted: Scripted) -> None:
    """The channel is heard for `ring_s` before the answer."""
    stage = Stage("scripted:waits")
    leg = stage.accept(ring_s=5, early_media=True)
    await settle()
    assert stage.names == ["started", "ringing"]
    scripted[0].may_join.set()
    await settle()
    stage.media.run_s(0.5)
    assert audio.find_tone(leg.phone.heard, 8000) == pytest.approx(1000, abs=2)
    await pass_time(4.9)
    assert leg.asked == ["progress"]
    await pass_time(0.2)
    assert leg.asked == ["progress", "answer"]
    assert len(scripted) == 1


@pytest.mark.parametrize("early_media", [False, True])
@in_event_loop
async def test_caller_gives_up_while_it_rings(scripted: Scripted, early_media: bool) -> None:
    """It is answered no more, and nothing waits for the rest of the ringing."""
    stage = Stage()
    leg = stage.accept(ring_s=30, early_media=early_media)
    await pass_time(1)
    leg.hangs_up()
    await settle()
    assert stage.end.reason.kind is EndKind.CANCELLED
    assert not stage.bridge._tasks
    await pass_time(60)
    assert "answer" not in leg.asked
    assert [channel.closed for channel in scripted] == [[stage.end.reason]] * early_media


@in_event_loop
async def test_caller_gives_up_while_the_channel_is_joined(scripted: Scripted) -> None:
    """The channel is told at once, and again when it has joined after all."""
    stage = Stage("scripted:waits")
    leg = stage.accept()
    await settle()
    leg.hangs_up()
    await settle()
    assert len(scripted[0].closed) == 1
    scripted[0].may_join.set()
    await settle()
    assert leg.asked == []
    assert set(scripted[0].closed) == {stage.end.reason}
    assert not stage.bridge._tasks


@in_event_loop
async def test_channel_refuses(scripted: Scripted) -> None:
    """The call is refused with the channel's own reason."""
    stage = Stage("scripted:refuses")
    leg = stage.accept()
    await settle()
    assert leg.asked == ["hangup"]
    assert stage.end.reason == EndReason(EndKind.BUSY, "the room is full", Party.CHANNEL)
    assert leg.reasons[0].code == 486
    assert len(scripted[0].closed) >= 1


@pytest.mark.parametrize("target", ["nobody:", "tone:x", "local:", "play:/nonexistent.wav"])
@in_event_loop
async def test_target_that_makes_no_sense(target: str) -> None:
    """502, and the reason names it."""
    stage = Stage(target)
    leg = stage.accept()
    await until(lambda: stage.ended)  # a thread looks at the file
    assert stage.end.reason.kind is EndKind.CHANNEL_FAILED
    assert target.partition(":")[2] in stage.end.reason.detail
    assert leg.reasons[0].code == 502


@in_event_loop
async def test_channel_takes_too_long(scripted: Scripted) -> None:
    """After ten seconds the bridge gives up."""
    stage = Stage("scripted:waits")
    leg = stage.accept()
    await pass_time(ScriptedConnection.join_s - 0.1)
    assert leg.asked == []
    await pass_time(0.2)
    assert leg.asked == ["hangup"]
    assert stage.end.reason.kind is EndKind.CHANNEL_FAILED
    assert "scripted:waits was not joined within 10 s" in stage.end.reason.detail
    assert scripted[0].closed != []
    assert not scripted[0].joined


@in_event_loop
async def test_fault_of_a_channel(scripted: Scripted, caplog: pytest.LogCaptureFixture) -> None:
    """It ends this call, with a reason and a line in the log."""
    stage = Stage("scripted:breaks")
    leg = stage.accept()
    await settle()
    assert stage.end.reason == EndReason(EndKind.ERROR, "internal error: oh no")
    assert leg.reasons[0].code == 500
    assert "ZeroDivisionError" in caplog.text


@in_event_loop
async def test_refused(scripted: Scripted) -> None:
    """A call that has no target is told so, and is a call nevertheless."""
    stage = Stage("")
    leg = stage.leg()
    reason = EndReason(EndKind.NOT_FOUND, "no rule for '200'")
    stage.bridge.refuse(leg, reason)
    await settle()
    assert leg.reasons == [reason]
    assert stage.names == ["started", "ended"]
    assert stage.end.reason == reason
    assert scripted == []


# --- while it lasts


@in_event_loop
async def test_longest_duration(scripted: Scripted) -> None:
    """Counted from the answer."""
    stage = Stage(max_duration_s=30)
    leg = stage.accept(ring_s=20)
    await pass_time(20.1)
    await pass_time(29.8)
    assert stage.names[-1] == "answered"
    await pass_time(0.3)
    assert leg.asked == ["ring", "answer", "hangup"]
    assert stage.end.reason.kind is EndKind.MAX_DURATION
    assert "30 s" in stage.end.reason.detail


@in_event_loop
async def test_no_timer_outlives_the_call(scripted: Scripted) -> None:
    """What was to be done at a time is not done to a call that has ended."""
    stage = Stage(max_duration_s=30)
    leg = await stage.answered()
    leg.hangs_up()
    await pass_time(60)
    assert stage.end.reason.kind is EndKind.HANGUP


@in_event_loop
async def test_nothing_keeps_a_call_that_has_ended(scripted: Scripted) -> None:
    """No timer or task: a day of calls would stay in memory until their longest duration is over."""
    stage = Stage(max_duration_s=86400)
    leg = await stage.answered()
    leg.hangs_up()
    await settle()
    kept = weakref.ref(stage.bridge)
    del stage, leg
    scripted.clear()
    gc.collect()
    assert kept() is None


@pytest.mark.parametrize("wanted", [False, True])
@in_event_loop
async def test_alone(scripted: Scripted, wanted: bool) -> None:
    """When the last other participant has left, the call ends where the rule says so."""
    stage = Stage(hangup_when_alone=wanted)
    leg = await stage.answered()
    scripted[0].listener.participant_joined("a")
    scripted[0].listener.participant_left("a", 1)
    await settle()
    assert leg.asked == ["answer"]
    scripted[0].listener.participant_left("b", 0)
    await settle()
    if wanted:
        assert stage.end.reason.kind is EndKind.ALONE
        assert stage.end.reason.by is Party.CHANNEL
    else:
        assert leg.asked == ["answer"]


@pytest.mark.parametrize("name", ["hangup_requested", "closed"])
@in_event_loop
async def test_channel_ends_the_call(scripted: Scripted, name: str) -> None:
    """With its own reason; a second one changes nothing."""
    stage = Stage()
    leg = await stage.answered()
    reason = EndReason(EndKind.CHANNEL_CLOSED, "the room was closed", Party.CHANNEL)
    getattr(scripted[0].listener, name)(reason)
    scripted[0].listener.closed(EndReason(EndKind.ERROR, "and broke"))
    await settle()
    assert leg.reasons == [reason]
    assert stage.end.reason == reason


@in_event_loop
async def test_message_from_the_channel(scripted: Scripted) -> None:
    """It is told as it is."""
    stage = Stage()
    await stage.answered()
    scripted[0].listener.message("chat", "hello")
    event = stage.events[-1]
    assert isinstance(event, CallMessage)
    assert (event.topic, event.text) == ("chat", "hello")


@in_event_loop
async def test_hold(scripted: Scripted) -> None:
    """What a held line says is not for the room; each change is told once."""
    stage = Stage("local:room")
    leg = await stage.answered()
    other = stage.media.bank.add()
    stage.media.loop.attach(other.port_id, Room("room"))
    leg.phone.say(audio.tone(1000, 60.0))
    await settle()
    for held, names in ((True, ["held"]), (False, ["resumed"]), (True, ["held"])):
        stage.events.clear()
        leg.holds(held)
        leg.agrees("PCMU", 8000)  # told again, with nothing new in it
        await settle()
        assert stage.names == names
        stage.media.run(4)
        other.forget()
        stage.media.run_s(0.1)
        assert bool(other.heard.any()) is not held


@in_event_loop
async def test_hold_before_the_channel_is_joined(scripted: Scripted) -> None:
    """A line that is held when the channel comes is not heard there either."""
    stage = Stage("scripted:waits", direction="outbound")
    leg = stage.follow()
    leg.answers()
    leg.holds()
    await settle()
    taken: list[int] = []
    scripted[0].may_join.set()
    await settle()
    stage.media.loop.tap(leg.phone.port_id, lambda samples: taken.append(int(abs(samples).max())))
    leg.phone.say(audio.tone(1000, 1.0))
    stage.media.run(4)
    assert taken == [0, 0, 0, 0]


# --- keys


def digits_told(stage: Stage) -> list[tuple[str, int, str, Party]]:
    return [
        (event.digit, event.duration_ms, event.method, event.party)
        for event in stage.events
        if isinstance(event, CallDtmf)
    ]


@pytest.mark.parametrize(("direction", "party"), [("inbound", Party.CALLER), ("outbound", Party.CALLEE)])
@in_event_loop
async def test_keys_of_the_telephone(scripted: Scripted, direction: str, party: Party) -> None:
    """They are told, and sent to the channel; what comes by two methods, once."""
    stage = Stage(direction=direction)
    if direction == "inbound":
        leg = await stage.answered()
    else:
        leg = stage.follow()
        leg.answers()
        await settle()
    leg.presses("5", duration_ms=120)
    leg.presses("5", "info")
    leg.presses("#", "info")
    await settle()
    assert digits_told(stage) == [("5", 120, "rfc4733", party), ("#", 160, "info", party)]
    assert scripted[0].sent == [("5", 120), ("#", 160)]


@in_event_loop
async def test_keys_before_the_channel_is_joined(scripted: Scripted) -> None:
    """They are told; there is nobody to send them to."""
    stage = Stage()
    leg = stage.accept(ring_s=5)
    leg.presses("5")
    await settle()
    assert [digit for digit, *_ in digits_told(stage)] == ["5"]
    await pass_time(6)
    assert scripted[0].sent == []


@pytest.mark.parametrize(
    ("dtmf", "agreed", "heard"),
    [
        ("auto", True, False),
        ("auto", False, True),
        ("inband", True, True),
        ("rfc4733", False, False),
        ("info", False, False),
    ],
)
@in_event_loop
async def test_keys_in_band(scripted: Scripted, dtmf: str, agreed: bool, heard: bool) -> None:
    """They are listened for where the trunk says so or nothing else was agreed on; the channel hears them."""
    stage = Stage()
    leg = stage.leg(dtmf)
    leg.events_agreed = agreed
    stage.bridge.accept(leg, ring_s=0, early_media=False)
    await settle()
    leg.phone.say(dtmf_samples("42", 8000))
    stage.media.run_s(0.5)
    await settle()
    expected = [("4", 0, "inband", Party.CALLER), ("2", 0, "inband", Party.CALLER)] if heard else []
    assert digits_told(stage) == expected
    assert scripted[0].sent == []


@in_event_loop
async def test_keys_in_band_follow_what_is_agreed_on(scripted: Scripted) -> None:
    """A re-INVITE may bring telephone events, or take them away; also before the channel is joined."""
    stage = Stage("scripted:waits", direction="outbound")
    leg = stage.follow()
    leg.events_agreed = False
    leg.answers()
    await settle()
    scripted[0].may_join.set()
    await settle()
    for events_agreed, digits in ((False, "7"), (True, ""), (False, "9")):
        leg.events_agreed = events_agreed
        leg.agrees("PCMU", 8000)
        await settle()
        stage.events.clear()
        leg.phone.say(dtmf_samples(digits or "8", 8000))
        stage.media.run_s(0.3)
        await settle()
        assert "".join(digit for digit, *_ in digits_told(stage)) == digits


@in_event_loop
async def test_keys_of_the_channel(scripted: Scripted) -> None:
    """They are told and pressed to the telephone, one after the other."""
    stage = Stage()
    leg = await stage.answered()
    for digit in "12#":
        scripted[0].listener.dtmf(digit)
    await settle()
    assert digits_told(stage) == [(digit, 0, "rfc4733", Party.CHANNEL) for digit in "12#"]
    assert leg.pressed == ["1"]
    for pressed in (["1", "2"], ["1", "2", "#"]):
        await pass_time(0.27)
        assert leg.pressed == pressed


@pytest.mark.parametrize("digit", ["x", "", "12", "w", "\n", "٣"])
@in_event_loop
async def test_key_that_is_none(scripted: Scripted, digit: str) -> None:
    """A channel that asks for one does not end the call by that."""
    stage = Stage()
    leg = await stage.answered()
    scripted[0].listener.dtmf(digit)
    await settle()
    assert leg.pressed == []
    assert digits_told(stage) == []
    assert leg.asked == ["answer"]


@in_event_loop
async def test_keys_left_when_the_call_ends(scripted: Scripted) -> None:
    """They are not pressed any more."""
    stage = Stage()
    leg = await stage.answered()
    for digit in "123":
        scripted[0].listener.dtmf(digit)
    await settle()
    leg.hangs_up()
    await pass_time(0.3)
    assert leg.pressed == ["1"]
    assert not stage.bridge._tasks


# --- calls that are made


@in_event_loop
async def test_dialled_call(scripted: Scripted) -> None:
    """It rings, is answered, and joined to its channel then; after that what was asked for is done."""
    stage = Stage("scripted:waits", direction="outbound")
    done: list[str] = []

    async def on_answered() -> None:
        done.append("answered")

    stage.bridge.on_answered = on_answered
    leg = stage.follow()
    leg.rings()
    await settle()
    assert scripted == []
    leg.answers()
    await settle()
    assert stage.names == ["started", "ringing", "answered"]
    assert done == []
    scripted[0].may_join.set()
    await settle()
    assert done == ["answered"]
    await pass_time(100)
    assert leg.asked == []
    leg.hangs_up()
    await settle()
    assert stage.end.reason == EndReason(EndKind.HANGUP, "hung up", Party.CALLEE)


@in_event_loop
async def test_dialled_call_with_early_media(scripted: Scripted) -> None:
    """The channel is joined while it rings, once; what is done after the answer waits for that too."""
    stage = Stage("scripted:waits", direction="outbound")
    done: list[str] = []

    async def on_answered() -> None:
        done.append("answered")

    stage.bridge.on_answered = on_answered
    leg = stage.follow()
    leg.rings(early_media=True)
    await settle()
    leg.answers()
    await settle()
    assert (len(scripted), done) == (1, [])
    scripted[0].may_join.set()
    await settle()
    assert (len(scripted), done) == (1, ["answered"])


@in_event_loop
async def test_not_answered_in_time() -> None:
    """After `ring_s` the bridge hangs up."""
    stage = Stage(direction="outbound")
    leg = stage.follow(ring_s=20)
    leg.rings()
    await pass_time(19.9)
    assert leg.asked == []
    await pass_time(0.2)
    assert leg.asked == ["hangup"]
    assert stage.end.reason == EndReason(EndKind.NO_ANSWER, "not answered in time", Party.BRIDGE, 408)


@in_event_loop
async def test_nobody_to_dial() -> None:
    """A call without a leg ends as well, once."""
    stage = Stage(direction="outbound")
    reason = EndReason(EndKind.UNAVAILABLE, "no address for example.com")
    stage.bridge.failed(reason)
    await settle()
    assert stage.names == ["started", "ended"]
    assert stage.end.reason == reason


@pytest.mark.parametrize("found", [False, True])
@in_event_loop
async def test_hung_up_before_there_is_a_leg(found: bool) -> None:
    """The reason is the operator's, whether there turns out to be somebody to dial or not."""
    stage = Stage(direction="outbound")
    stage.bridge.hangup(OPERATOR)
    await settle()
    assert stage.names == ["started"]
    if found:
        leg = stage.follow()
        await settle()
        assert leg.reasons == [OPERATOR]
    else:
        stage.bridge.failed(EndReason(EndKind.UNAVAILABLE, "no address"))
    assert stage.end.reason == OPERATOR


@in_event_loop
async def test_first_reason_counts(scripted: Scripted) -> None:
    """Whoever hangs up first has ended the call, also when the far side does so meanwhile."""
    stage = Stage()
    leg = await stage.answered()
    stage.bridge.hangup(OPERATOR)
    stage.bridge.hangup(EndReason(EndKind.ERROR, "later"))
    leg.hangs_up()
    await settle()
    assert leg.reasons == [OPERATOR]
    assert stage.end.reason == OPERATOR


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (CallError(EndReason(EndKind.OVERLOAD, "full")), EndReason(EndKind.OVERLOAD, "full")),
        (MediaError("x.wav: gone"), EndReason(EndKind.ERROR, "x.wav: gone")),
        (KeyError("x"), EndReason(EndKind.ERROR, "internal error: 'x'")),
    ],
)
@in_event_loop
async def test_fault_after_the_answer(scripted: Scripted, error: Exception, reason: EndReason) -> None:
    """It ends the call, with what is known of it."""
    stage = Stage(direction="outbound")

    async def on_answered() -> None:
        raise error

    stage.bridge.on_answered = on_answered
    leg = stage.follow()
    leg.answers()
    await settle()
    assert leg.asked == ["hangup"]
    assert stage.end.reason == reason


@in_event_loop
async def test_playback_is_the_legs(scripted: Scripted) -> None:
    """What a backend sees of the leg: its place in the media loop, its rate at this moment, its queue."""
    stage = Stage()
    leg = await stage.answered()
    playback = scripted[0].playback
    assert playback.port_id == leg.phone.port_id
    assert playback.sample_rate_hz == 8000
    leg.agrees("G722", 16000)
    assert playback.sample_rate_hz == 16000
    playback.write(audio.tone(1000, 0.02, 16000))
    playback.clear()
    assert len(leg.phone.heard) == 320
    assert leg.phone.clears == 1
    await settle()


# --- in any order

ENDINGS = ("operator", "far", "channel")
steps = st.lists(
    st.tuples(
        st.sampled_from(
            ["rings", "early", "answers", "holds", "resumes", "presses", "joins", "speaks", "time", *ENDINGS]
        ),
        st.booleans(),
    ),
    max_size=12,
)


# --- a PIN


PIN = PinConfig(code=SecretStr("1234"), tries=2, timeout_s=5)


@pytest.mark.parametrize("keys", ["1234#", "1#1234#", "1234"])
@in_event_loop
async def test_pin(scripted: Scripted, keys: str) -> None:
    """The call is answered, asked by a sound, and joined once the right one was pressed; no event has it."""
    stage = Stage()
    leg = stage.leg()
    stage.bridge.accept(leg, ring_s=0, early_media=False, pin=PIN)
    await settle()
    assert leg.asked == ["answer"]
    assert scripted == []
    stage.media.run(40)
    assert leg.port.heard.any()
    for key in keys:
        leg.presses(key)
        await settle()
    stage.media.run(4)
    if not keys.endswith("#"):
        leg.port.forget()
        stage.media.run(20)
        assert not leg.port.heard.any()
        await pass_time(6)
    (channel,) = scripted
    stage.media.run(4)
    assert channel.joined
    assert channel.sent == []
    assert stage.names == ["started", "answered", "bridged"]
    leg.presses("5")
    await settle()
    assert [sent[0] for sent in channel.sent] == ["5"]
    leg.hangs_up()
    await settle()
    assert leg.asked == ["answer"]
    assert stage.end


@pytest.mark.parametrize("keys", ["1#2#", "12345#4321#", "", "0"])
@in_event_loop
async def test_wrong_pin(scripted: Scripted, keys: str) -> None:
    """As often as it may be tried; then the call ends."""
    stage = Stage()
    leg = stage.leg()
    stage.bridge.accept(leg, ring_s=0, early_media=False, pin=PIN)
    await settle()
    for key in keys:
        leg.presses(key)
        await settle()
    await pass_time(6)
    await pass_time(6)
    assert leg.asked == ["answer", "hangup"]
    leg.ends(EndReason(EndKind.HANGUP, "hung up"))
    await settle()
    assert stage.end.reason == EndReason(EndKind.FORBIDDEN, "the caller does not know the PIN")
    assert scripted == []
    assert "dtmf" not in stage.names


@in_event_loop
async def test_caller_gives_up_while_it_is_asked(scripted: Scripted) -> None:
    stage = Stage()
    leg = stage.leg()
    stage.bridge.accept(leg, ring_s=0, early_media=False, pin=PIN)
    await settle()
    leg.presses("1")
    leg.hangs_up()
    await settle()
    assert stage.end.reason.kind is EndKind.HANGUP
    assert scripted == []


@in_event_loop
async def test_prompts_are_played(scripted: Scripted, tmp_path: Path) -> None:
    """The one that asks, until a key is pressed; then the one that says it was wrong."""
    prompt, wrong = (audio.write_wav(tmp_path / f"{hz}.wav", audio.tone(hz, 3.0)) for hz in (500, 900))
    stage = Stage()
    leg = stage.leg()
    pin = PinConfig(code=SecretStr("1"), prompt=prompt, wrong=wrong)
    stage.bridge.accept(leg, ring_s=0, early_media=False, pin=pin)

    async def hears(hz: float) -> None:
        def is_heard() -> bool:
            stage.media.run(4)
            leg.port.forget()
            stage.media.run(40)
            return abs(audio.find_tone(leg.port.heard, 8000) - hz) < 20

        await until(is_heard)

    await hears(500)
    leg.presses("2")
    leg.presses("#")
    await hears(900)
    leg.hangs_up()
    await settle()
    assert stage.end


# --- another channel


@pytest.mark.parametrize("target", ["tone:900", "local:room", "play:{wav}", "scripted:"])
@in_event_loop
async def test_rebridge(scripted: Scripted, tmp_path: Path, target: str) -> None:
    """The telephone hears the old channel until it hears the new one; the old one is left."""
    if target == "play:{wav}":
        wav = audio.write_wav(tmp_path / "tone.wav", audio.tone(900, 1.0))
        target = f"play:{wav}"
    stage = Stage("tone:500")
    leg = await stage.answered()
    stage.media.run(8)
    assert audio.find_tone(leg.port.heard, 8000) == pytest.approx(500, abs=10)
    await stage.bridge.rebridge(target)
    leg.port.forget()
    stage.media.run(40)
    await settle()
    if target == "local:room":
        assert stage.context.rooms.members() == {"room": ("1",)}
    else:
        hz = 1000 if target == "scripted:" else 900
        assert audio.find_tone(leg.port.heard[320:], 8000) == pytest.approx(hz, abs=20)
        assert audio.gaps_ms(leg.port.heard, 8000) == []
    assert stage.bridge.target == target
    assert stage.names == ["started", "bridged", "answered", "unbridged", "bridged"]
    leg.hangs_up()
    await settle()
    assert stage.end.target == target
    assert stage.context.rooms.members() == {}


@in_event_loop
async def test_rebridge_while_the_next_channel_takes_its_time(scripted: Scripted) -> None:
    """The old one goes on, and nothing that the next one wants of the leg is done before it has joined."""
    stage = Stage("tone:500")
    leg = await stage.answered()
    moving = asyncio.ensure_future(stage.bridge.rebridge("scripted:waits"))
    await settle()
    leg.port.forget()
    stage.media.run(40)
    assert audio.find_tone(leg.port.heard, 8000) == pytest.approx(500, abs=10)
    scripted[0].may_join.set()
    await moving
    stage.media.run(4)
    leg.port.forget()
    stage.media.run(40)
    assert audio.find_tone(leg.port.heard, 8000) == pytest.approx(1000, abs=10)
    leg.hangs_up()
    await settle()
    assert stage.end


@pytest.mark.parametrize("target", ["scripted:refuses", "scripted:waits", "tone:none", "nothing:x"])
@in_event_loop
async def test_rebridge_that_fails(scripted: Scripted, target: str) -> None:
    """The call stays where it is."""
    stage = Stage("tone:500")
    leg = await stage.answered()
    moving = asyncio.ensure_future(stage.bridge.rebridge(target))
    await settle()
    await pass_time(15)
    with pytest.raises(RtcError):
        await moving
    assert isinstance(stage.events[-1], CallBridgeFailed)
    assert stage.events[-1].target == target
    stage.media.run(4)
    leg.port.forget()
    stage.media.run(40)
    assert audio.find_tone(leg.port.heard, 8000) == pytest.approx(500, abs=10)
    assert stage.bridge.target == "tone:500"
    leg.hangs_up()
    await settle()
    assert stage.end


@in_event_loop
async def test_rebridge_of_a_call_that_ends_meanwhile(scripted: Scripted) -> None:
    stage = Stage("tone:500")
    leg = await stage.answered()
    moving = asyncio.ensure_future(stage.bridge.rebridge("scripted:waits"))
    await settle()
    leg.hangs_up()
    await settle()
    scripted[0].may_join.set()
    with pytest.raises(RtcError):
        await moving
    assert scripted[0].closed
    with pytest.raises(ValueError, match="no channel"):
        await stage.bridge.rebridge("tone:900")


def take_step(step: str, stage: Stage, leg: FakeLeg, channel: ScriptedConnection | None) -> None:
    if step == "operator":
        stage.bridge.hangup(OPERATOR)
    elif leg.state is LegState.ENDED:
        pass
    elif step == "far":
        leg.hangs_up()
    elif step == "rings" and leg.direction == "outbound" and leg.answered_at is None:
        leg.rings()
    elif step == "early" and leg.direction == "outbound" and leg.answered_at is None:
        leg.rings(early_media=True)
    elif step == "answers" and leg.direction == "outbound" and leg.answered_at is None:
        leg.answers()
    elif step in ("holds", "resumes") and leg.answered_at is not None:
        leg.holds(step == "holds")
    elif step == "presses":
        leg.presses("5")
    elif channel is not None and not channel.closed:
        if step == "joins":
            channel.may_join.set()
        elif step == "speaks":
            channel.listener.dtmf("7")
            channel.listener.participant_joined("a")
        elif step == "channel":
            channel.listener.closed(EndReason(EndKind.CHANNEL_CLOSED, "gone", Party.CHANNEL))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=steps,
    ending=st.sampled_from(ENDINGS),
    direction=st.sampled_from(["inbound", "outbound"]),
    way=st.sampled_from(["", "waits", "refuses", "breaks"]),
    ring_s=st.sampled_from([0, 3]),
    early_media=st.booleans(),
)
def test_every_call_ends_once(
    scripted: Scripted,
    steps: list[tuple[str, bool]],
    ending: str,
    direction: str,
    way: str,
    ring_s: float,
    early_media: bool,
) -> None:
    """Whatever happens, in whatever order: one `CallEnded`, the channel closed, no task and no row left."""

    @in_event_loop
    async def call() -> None:
        scripted.clear()
        stage = Stage(f"scripted:{way}", direction, max_duration_s=100)
        leg = stage.accept(ring_s, early_media) if direction == "inbound" else stage.follow(ring_s or 60)
        for step, is_seen in steps:
            if step == "time":
                await pass_time(2)
            take_step(step, stage, leg, scripted[0] if scripted else None)
            if is_seen:
                await settle()
                stage.media.run()
        take_step(ending, stage, leg, scripted[0] if scripted else None)
        for _ in range(3):  # ringing, joining, talking: longer than any of these is allowed to last
            await pass_time(200)
        assert stage.end.reason.kind in EndKind
        assert scripted == [] or scripted[0].closed != []
        for channel in scripted:
            channel.may_join.set()
        await settle()
        assert not stage.bridge._tasks
        assert len(scripted) <= 1

    call()
