# SPDX-License-Identifier: GPL-3.0-or-later
"""Marks: who speaks in the channel is told once the telephone has heard all that had come from them.

::

    what comes ──► port's queue ──► telephone's queue ──► sent
                   looked at while   has a mark,
                   somebody waits    which it answers

So an answer is what has happened, and not what should have by now.
"""

import asyncio
import functools
from collections.abc import Callable
from dataclasses import dataclass

from sipbridge.media.remote import SamplePort
from sipbridge.rtc.base import PlaybackQueue

_LOOK_S = 0.01
_MAX_MARKS = 100  # that wait


@dataclass(slots=True, eq=False)
class _Mark:
    name: str
    port: SamplePort | None  # None: nothing is in front of it there
    at: int  # position in what the port was fed


class Marks:
    """The marks of one call. Event loop."""

    def __init__(self, playback: PlaybackQueue, tell: Callable[[str, str], None]) -> None:
        """`tell(name, state)` is called once for each mark, with "played" or "cleared"."""
        self._playback = playback
        self._tell = tell
        self._loop = asyncio.get_running_loop()
        self._open: dict[_Mark, None] = {}  # not told yet, in their order
        self._waiting: list[_Mark] = []  # of these, those with something in front of them in a port
        self._timer: asyncio.TimerHandle | None = None

    def set(self, name: str, port: SamplePort | None) -> bool:
        """Behind all that the port was fed, and the telephone given, until now. False: too many wait."""
        if len(self._open) >= _MAX_MARKS:
            return False
        mark = _Mark(name, port, port.fed if port is not None else 0)
        self._open[mark] = None
        self._waiting.append(mark)
        if self._timer is None:
            self._look()
        return True

    def clear(self) -> None:
        """What was in front of them has been dropped."""
        self._waiting.clear()
        for mark in list(self._open):
            self._answer(mark, True)

    def leave(self, port: SamplePort) -> None:
        """It is heard no more."""
        for mark in self._waiting:
            if mark.port is port:
                mark.port = None

    def close(self) -> None:
        """Nothing more is told."""
        self._waiting.clear()
        self._open.clear()

    def _look(self) -> None:
        self._timer = None
        waiting, self._waiting = self._waiting, []
        for mark in waiting:
            if mark.port is not None and mark.port.taken < mark.at:
                self._waiting.append(mark)
            else:
                self._playback.mark(functools.partial(self._sent, mark))
        if self._waiting:
            self._timer = self._loop.call_later(_LOOK_S, self._look)

    def _sent(self, mark: _Mark, cleared: bool) -> None:  # media thread
        self._loop.call_soon_threadsafe(self._answer, mark, cleared)

    def _answer(self, mark: _Mark, cleared: bool) -> None:
        if mark in self._open:
            del self._open[mark]
            self._tell(mark.name, "cleared" if cleared else "played")
