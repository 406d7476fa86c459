# SPDX-License-Identifier: GPL-3.0-or-later
"""The telephones' frames on their way from the media thread to the event loop."""

import asyncio
import contextlib
import logging
import weakref
from collections import deque
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger(__name__)

_MOST = 16384  # that wait for a loop which is held; then the oldest go

type Samples = NDArray[np.int16]
type Take = Callable[[Samples, int], None]


class FramePump:
    """Wakes the loop once for all frames of a tick, of however many calls: to wake it costs most."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._frames: deque[tuple[Take, Samples, int]] = deque(maxlen=_MOST)
        self._is_woken = False

    def put(self, take: Take, frame: Samples, rate_hz: int) -> None:
        """`take(frame, rate_hz)` is called on the loop, with a copy. Media thread."""
        self._frames.append((take, frame.copy(), rate_hz))
        if not self._is_woken:
            self._is_woken = True
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._run)

    def _run(self) -> None:
        self._is_woken = False  # before: what comes while it runs wakes it again
        for _ in range(len(self._frames)):  # and no more: a loop that is late has other things to do as well
            take, frame, rate_hz = self._frames.popleft()
            try:
                take(frame, rate_hz)
            except Exception:
                log.exception("a frame of a telephone could not be handed on")


_pumps: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, FramePump] = weakref.WeakKeyDictionary()


def get_pump() -> FramePump:
    """The one of the running loop."""
    loop = asyncio.get_running_loop()
    pump = _pumps.get(loop)
    if pump is None:
        pump = _pumps[loop] = FramePump(loop)
    return pump
