# SPDX-License-Identifier: GPL-3.0-or-later
"""What is told of marks, and when: with sound, over the fake bank."""

import numpy as np
import pytest

from sipbridge.media.loop import Room
from sipbridge.media.remote import SamplePort
from sipbridge.rtc.agora.marks import Marks
from tests.support import audio
from tests.support.event_loop import in_event_loop, pass_time, settle
from tests.support.fake_bank import FakeMedia, FakePort


class Stage:
    """Somebody who speaks, and a telephone."""

    def __init__(self) -> None:
        self.media = FakeMedia()
        self.phone: FakePort = self.media.bank.add()
        self.port: SamplePort = self.media.remotes.open_samples(8000, lambda frame, rate_hz: None)
        for port_id in self.port.port_id, self.phone.port_id:
            self.media.loop.attach(port_id, Room("r"))
        self.told: list[tuple[str, str]] = []
        self.marks = Marks(self.phone, lambda name, state: self.told.append((name, state)))

    async def run_s(self, seconds: float) -> None:
        for _ in range(round(seconds * 100)):
            self.media.run(2)
            await pass_time(0.01)


@in_event_loop
async def test_told_once_all_before_it_is_heard() -> None:
    stage = Stage()
    stage.port.feed(audio.tone(700, 0.5))
    stage.marks.set("first", stage.port)
    stage.port.feed(audio.tone(700, 0.5))
    stage.marks.set("second", stage.port)
    await stage.run_s(0.45)
    assert stage.told == []
    await stage.run_s(0.1)
    assert stage.told == [("first", "played")]
    await stage.run_s(0.4)
    assert len(stage.told) == 1
    await stage.run_s(0.1)
    assert stage.told == [("first", "played"), ("second", "played")]
    assert len(np.trim_zeros(stage.phone.heard)) > 0.99 * 8000


@in_event_loop
async def test_nothing_before_it() -> None:
    stage = Stage()
    stage.marks.set("a", stage.port)
    stage.marks.set("b", None)
    await settle()
    assert stage.told == [("a", "played"), ("b", "played")]


@in_event_loop
async def test_cleared() -> None:
    """In its turn, once, and what comes later is not cleared with it."""
    stage = Stage()
    stage.port.feed(audio.tone(700, 0.5))
    stage.marks.set("a", stage.port)
    stage.marks.set("b", stage.port)
    stage.port.clear()
    stage.marks.clear()
    assert stage.told == [("a", "cleared"), ("b", "cleared")]
    stage.port.feed(audio.tone(700, 0.1))
    stage.marks.set("c", stage.port)
    await stage.run_s(0.2)
    assert stage.told[2:] == [("c", "played")]


@in_event_loop
async def test_cleared_behind_the_port() -> None:
    """The telephone's own queue is emptied by whoever may; that is told as well."""
    stage = Stage()
    stage.phone.mark = lambda reached: reached(True)  # type: ignore[method-assign]
    stage.marks.set("a", None)
    await settle()
    assert stage.told == [("a", "cleared")]


@in_event_loop
async def test_who_leaves_is_not_waited_for() -> None:
    stage = Stage()
    stage.port.feed(audio.tone(700, 5.0))
    stage.marks.set("a", stage.port)
    await stage.run_s(0.1)
    assert stage.told == []
    stage.marks.leave(stage.port)
    await stage.run_s(0.02)
    assert stage.told == [("a", "played")]


@pytest.mark.parametrize("ends", [True, False])
@in_event_loop
async def test_too_many(ends: bool) -> None:
    """They are refused, not kept without end; nothing is told after the end."""
    stage = Stage()
    stage.port.feed(audio.tone(700, 0.1))
    taken = [stage.marks.set(f"{number}", stage.port) for number in range(150)]
    assert (taken.count(True), taken[-1]) == (100, False)
    if ends:
        stage.marks.close()
    await stage.run_s(0.3)
    assert len(stage.told) == (0 if ends else 100)
