# SPDX-License-Identifier: GPL-3.0-or-later
"""Frames on their way to the event loop."""

import asyncio

import numpy as np
import pytest

from sipbridge.rtc.websocket.pump import FramePump, get_pump
from tests.support.codecs import Samples
from tests.support.event_loop import in_event_loop, settle

FRAME = np.zeros(160, np.int16)


@in_event_loop
async def test_frames_are_copied_and_keep_their_order() -> None:
    taken: list[tuple[int, int]] = []
    pump = get_pump()
    frame = FRAME.copy()
    for number in range(3):
        frame[:] = number
        pump.put(lambda samples, rate_hz: taken.append((int(samples[0]), rate_hz)), frame, 8000)
    frame[:] = 9
    await settle()
    assert taken == [(0, 8000), (1, 8000), (2, 8000)]
    assert get_pump() is pump


@in_event_loop
async def test_a_loop_that_is_late_is_not_held() -> None:
    """Frames that come while others are handed on do not keep the loop from what else it has to do."""
    loop = asyncio.get_running_loop()
    pump = FramePump(loop)
    order: list[str] = []

    def take(frame: Samples, rate_hz: int) -> None:
        order.append("frame")
        if len(order) == 1:
            loop.call_soon(order.append, "other")
        if len(order) < 10:
            pump.put(take, frame, rate_hz)

    pump.put(take, FRAME, 8000)
    await settle()
    assert order.index("other") == 1
    assert order.count("frame") >= 9


@in_event_loop
async def test_a_fault_of_one_is_not_the_others(caplog: pytest.LogCaptureFixture) -> None:
    taken: list[int] = []

    def fail(frame: Samples, rate_hz: int) -> None:
        raise ValueError("oh no")

    pump = get_pump()
    pump.put(fail, FRAME, 8000)
    pump.put(lambda frame, rate_hz: taken.append(rate_hz), FRAME, 16000)
    await settle()
    assert taken == [16000]
    assert "oh no" in caplog.text
