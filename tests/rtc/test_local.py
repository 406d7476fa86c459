# SPDX-License-Identifier: GPL-3.0-or-later
"""Rooms of this process: who is told of whom, and what a lone member hears."""

import numpy as np
import pytest

from sipbridge.rtc.base import RtcContext
from tests.support import audio
from tests.support.event_loop import in_event_loop
from tests.support.fake_bank import FakeMedia
from tests.support.fake_rtc import FakeCall, make_context


@pytest.fixture
def media() -> FakeMedia:
    return FakeMedia()


@pytest.fixture
def context(media: FakeMedia) -> RtcContext:
    return make_context(media)


async def join(media: FakeMedia, context: RtcContext, call_id: str, room: str = "a") -> FakeCall:
    call = FakeCall(media, context, f"local:{room}", call_id)
    await call.connect()
    return call


@in_event_loop
async def test_roster(media: FakeMedia, context: RtcContext) -> None:
    """Each is told who is there, who comes and who leaves, and how many others remain."""
    first, second, third = [await join(media, context, name) for name in ("1", "2", "3")]
    elsewhere = await join(media, context, "4", room="b")
    assert context.rooms.members() == {"a": ("1", "2", "3"), "b": ("4",)}
    assert first.told == [("joined", "2"), ("joined", "3")]
    assert second.told == [("joined", "1"), ("joined", "3")]
    assert third.told == [("joined", "1"), ("joined", "2")]
    assert elsewhere.told == []
    for call in (first, second, third):
        call.told.clear()
    await second.close()
    assert (first.told, second.told, third.told) == ([("left", "2", 1)], [], [("left", "2", 1)])
    await first.close()
    assert third.told == [("left", "2", 1), ("left", "1", 0)]
    assert context.rooms.members() == {"a": ("3",), "b": ("4",)}
    await third.close()
    await elsewhere.close()
    assert context.rooms.members() == {}


@in_event_loop
async def test_a_lone_member_hears_a_hint(media: FakeMedia, context: RtcContext) -> None:
    """A short, soft tone, then silence; who comes later hears none."""
    first = await join(media, context, "1")
    media.run_s(1.0)
    heard = first.phone.heard
    assert audio.find_tone(heard[:3200], 8000) == pytest.approx(440, abs=3)
    assert -45 < audio.level_dbfs(heard[:3200]) < -25
    assert not heard[3400:].any()
    second = await join(media, context, "2")
    media.run_s(0.5)
    assert not second.phone.heard.any()
    await second.close()
    media.run_s(0.1)
    first.phone.forget()
    media.run_s(0.5)
    assert not first.phone.heard.any()


@in_event_loop
async def test_hint_has_its_pitch_at_a_codec_agreed_on_later(media: FakeMedia, context: RtcContext) -> None:
    """The channel is joined before the call is answered, when nothing is known of its codec."""
    call = await join(media, context, "1")
    media.run()
    call.phone.rate_hz = 16000
    media.run(2)
    call.phone.forget()
    media.run_s(0.3)
    assert audio.find_tone(call.phone.heard, 16000) == pytest.approx(440, abs=3)


@in_event_loop
async def test_keys_are_sent_to_the_others(media: FakeMedia, context: RtcContext) -> None:
    """Their audio has not got them; nobody gets its own, or one of another room."""
    first, second, third = [await join(media, context, name) for name in ("1", "2", "3")]
    elsewhere = await join(media, context, "4", room="b")
    for call in (first, second, third):
        call.told.clear()
    await first.connection.send_dtmf("5", 160)
    await third.connection.send_dtmf("#", 160)
    await third.close()
    await third.connection.send_dtmf("9", 160)
    assert first.told == [("dtmf", "#"), ("left", "3", 1)]
    assert second.told == [("dtmf", "5"), ("dtmf", "#"), ("left", "3", 1)]
    assert third.told == [("dtmf", "5")]
    assert elsewhere.told == []


@in_event_loop
async def test_names_are_taken_as_they_are(media: FakeMedia, context: RtcContext) -> None:
    """A room is called by exactly what stands behind the colon."""
    names = ["a", "A", " a", "a:b", "räum"]
    calls = [await join(media, context, str(i), name) for i, name in enumerate(names)]
    assert list(context.rooms.members()) == names
    for call in calls:
        call.phone.say(np.full(4000, 9000, np.int16))
    media.run_s(0.5)
    assert all(abs(call.phone.heard).max() < 2000 for call in calls)
