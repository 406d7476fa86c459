# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent's speech, which may come all at once, and is heard in its own time.

::

    event loop                                            media thread
    write() ──┐                                       ┌── resample ◄── fade ◄── take
    mark()  ──┴──► pieces and marks, in their order ──┘

One thread appends, one takes away, and each position has one writer, so that neither waits for the other.
A position counts samples, at the agent's rate, of all that was ever written; what is cleared is counted too.
"""

import asyncio
import functools
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sipbridge.media.loop import MakeSource, SampleSource
from sipbridge.resample import LiveResampler, ResamplerKind, make_resampler

type Samples = NDArray[np.int16]

_FADE_MS = 4  # where speech starts or breaks off
# Speech begins to be heard so long after it began to come, or as soon as there is so much of it: an agent
# that sends frame by frame is late now and then.
_SETTLE_MS = 10
_SETTLED_MS = 40
_LOW_SHARE = 0.5  # of a full buffer: below, more is asked for
_MAX_MARKS = 1000  # that wait; more fill the buffer as well
# An agent that says all in real time, such as an echo, makes up for a stall by a delay that nothing uses up.
# It is taken back where both hear silence.
_WATCH_S = 2.0
_SPARE_MS = 10  # less is left alone: it is what comes and goes
_SAME_PACE = 0.03
_SKIP_MS = 5  # in a frame
_QUIET = 100  # the highest sample of silence


class Played(Protocol):
    """What a leg's playback offers, beside hearing the source; see `sipbridge.rtc.base.PlaybackQueue`."""

    def clear(self) -> None: ...
    def mark(self, reached: Callable[[bool], None]) -> None: ...


@dataclass(slots=True, eq=False)
class _Pending:
    """A mark between the samples."""

    reached: Callable[[bool], None]
    done: bool = False


class AgentPlayback:
    """One agent's speech for one telephone. Event loop, where not said otherwise."""

    def __init__(
        self,
        played: Played,
        *,
        rate_hz: int,
        max_buffer_s: float,
        on_room: Callable[[], None],
        live_resampler: ResamplerKind = "polyphase",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`on_room` is called, on the event loop, when it `is_full` no more."""
        self.rate_hz = rate_hz  # the agent's; may be changed as long as nothing was written
        self.live_resampler: ResamplerKind = live_resampler
        self.prompt: MakeSource | None = None  # heard where there is no speech
        self.paused = False
        self.is_full = False  # no more should be written for now; it is not refused
        self._played = played
        self._max_buffer_s = max_buffer_s
        self._on_room = on_room
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._pieces: deque[Samples | _Pending] = deque()
        self._marks: dict[_Pending, None] = {}  # not yet answered, in their order
        self._written = 0
        self._cut = 0  # all before this position is dropped
        self._began_at = 0.0  # when the first of what is queued came
        # of the media thread
        self._read = 0
        self._rest: Samples = np.empty(0, np.int16)  # of the piece that is being read
        self._passed: list[_Pending] = []  # marks in front of which all was read
        self._dry = True  # nothing was read last
        self._last = 0  # the last sample read
        self._pace = _Pace()

    # --- the agent's side

    @property
    def written(self) -> int:
        """The position behind all that was written."""
        return self._written

    @property
    def position(self) -> int:
        """How much of all that was written has been heard, or dropped."""
        return max(self._read, self._cut)

    @property
    def queued(self) -> int:
        """Samples that wait."""
        return self._written - self.position

    @property
    def queued_ms(self) -> int:
        return self.queued * 1000 // self.rate_hz

    def write(self, samples: Samples) -> None:
        """Appends samples (n,) at `rate_hz`; they are not copied."""
        if not samples.size:
            return
        queued = self._written - max(self._read, self._cut)
        if not queued:
            self._began_at = self._clock()
        self._pieces.append(samples)
        self._written += samples.size  # last: what is counted is there
        if queued + samples.size > self._max_buffer_s * self.rate_hz:
            self.is_full = True

    def mark(self, reached: Callable[[bool], None]) -> None:
        """`reached(cleared)` is called, on the event loop, when all written before was played, or cleared."""
        pending = _Pending(reached)
        self._marks[pending] = None
        self._pieces.append(pending)
        if len(self._marks) > _MAX_MARKS:
            self.is_full = True

    def clear(self) -> int:
        """Stops what is being said, drops what waits, answers all marks; gives the position of the cut."""
        position = self.position
        self._cut = self._written
        self._played.clear()
        for pending in list(self._marks):
            self._answer(pending, True)
        self._make_room()
        return position

    def close(self) -> None:
        """No mark is answered any more."""
        self._closed = True
        self._cut = self._written

    def _answer(self, pending: _Pending, cleared: bool) -> None:
        self._marks.pop(pending, None)
        if not pending.done and not self._closed:
            pending.done = True
            pending.reached(cleared)

    def _make_room(self) -> None:
        if self.is_full and not self._closed and len(self._marks) <= _LOW_SHARE * _MAX_MARKS:
            self.is_full = False
            self._on_room()

    # --- the telephone's side, media thread

    def make(self, rate_hz: int) -> SampleSource:
        """What a leg of this rate hears from now on."""
        return _Reader(self, rate_hz)

    def tell_marks(self) -> None:
        """Marks that were passed are reached when what was read before is sent, which is not ours to see."""
        if not self._passed:
            return
        passed, self._passed = self._passed, []
        for pending in passed:
            self._played.mark(functools.partial(self._reached, pending))

    def _reached(self, pending: _Pending, cleared: bool) -> None:
        self._loop.call_soon_threadsafe(self._answer, pending, cleared)

    def take(self, count: int) -> Samples:
        """The next samples, at most `count`, faded where they begin or break off."""
        cut = self._cut
        if cut > self._read:
            self._drop(cut)
            self._dry, self._last = True, 0
        waiting = self._written - self._read
        if not (self._dry or self.paused) and waiting >= count:  # as mostly: in the middle of speech
            samples = self._collect(count)
            self._last = int(samples[-1])
            self._take_delay_back(samples)
            self._ask_for_more()
            return samples
        if self.paused or (self._dry and waiting and not self._is_settled(waiting)):
            waiting = 0
        samples = self._collect(min(count, waiting))
        faded = self._fade(samples, count)
        if waiting:
            self._take_delay_back(samples)
        self._ask_for_more()
        return faded

    def _ask_for_more(self) -> None:
        if self.is_full and self._written - self._read < _LOW_SHARE * self._max_buffer_s * self.rate_hz:
            self._loop.call_soon_threadsafe(self._make_room)

    def _is_settled(self, waiting: int) -> bool:
        if waiting * 1000 >= _SETTLED_MS * self.rate_hz:
            return True
        return self._clock() - self._began_at >= _SETTLE_MS / 1000

    def _drop(self, until: int) -> None:
        """Goes on to a position without what lies before it; its marks have been answered."""
        while self._read < until:
            if not self._rest.size:
                piece = self._pieces.popleft()
                if not isinstance(piece, _Pending):
                    self._rest = piece
            dropped = min(self._rest.size, until - self._read)
            self._rest = self._rest[dropped:]
            self._read += dropped

    def _collect(self, count: int) -> Samples:
        """Takes `count` samples, which are there, and the marks behind them."""
        rest, pieces = self._rest, self._pieces
        if count < rest.size:  # as mostly,
            samples, self._rest = rest[:count], rest[count:]
            self._read += count
            return samples
        if not rest.size and len(pieces) == 1:  # or of an agent that speaks as it hears
            piece = pieces[0]
            if not isinstance(piece, _Pending) and piece.size == count:
                pieces.popleft()
                self._read += count
                return piece
        parts: list[Samples] = []
        while True:
            if self._rest.size:
                part, self._rest = self._rest[:count], self._rest[count:]
                parts.append(part)
                count -= part.size
                self._read += part.size
                if self._rest.size:
                    break
            if not self._pieces or (count == 0 and not isinstance(self._pieces[0], _Pending)):
                break
            piece = self._pieces.popleft()
            if isinstance(piece, _Pending):
                self._passed.append(piece)
            else:
                self._rest = piece
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.empty(0, np.int16)

    def _fade(self, samples: Samples, count: int) -> Samples:
        """Without the step that an ear hears as a click."""
        size = _FADE_MS * self.rate_hz // 1000
        if samples.size and self._dry:
            samples = samples.copy()
            start = samples[:size]
            start[:] = start * np.linspace(0, 1, start.size, endpoint=False)
        was_dry, last = self._dry, self._last
        if samples.size:
            last = int(samples[-1])
        self._dry, self._last = samples.size < count, last
        if not self._dry or (was_dry and not samples.size) or not last:
            return samples
        self._last = 0
        end = np.linspace(last, 0, min(size, count - samples.size)).astype(np.int16)
        return np.concatenate((samples, end))

    def _take_delay_back(self, samples: Samples) -> None:
        spare = self._pace.watch(self._written, self._read, samples.size, self.rate_hz)
        if spare <= 0 or not samples.size or np.abs(samples).max() > _QUIET:
            return
        if not self._rest.size and self._pieces:
            piece = self._pieces[0]
            if isinstance(piece, _Pending):
                return
            self._rest = piece
            self._pieces.popleft()
        ahead = self._rest[: min(spare, _SKIP_MS * self.rate_hz // 1000)]
        if ahead.size and np.abs(ahead).max() <= _QUIET:
            self._rest = self._rest[ahead.size :]
            self._read += ahead.size
            self._pace.spare -= ahead.size


class _Pace:
    """Whether the agent speaks in real time, and how much of the delay is then of no use."""

    def __init__(self) -> None:
        self.spare = 0  # samples
        self._start()

    def _start(self, written: int = 0) -> None:
        self._written = written
        self._heard = 0
        self._least = 1 << 62  # queued

    def watch(self, written: int, read: int, heard: int, rate_hz: int) -> int:
        """Of a frame; gives `spare`."""
        self._heard += heard
        self._least = min(self._least, written - read)
        if self._heard >= _WATCH_S * rate_hz:
            came = written - self._written
            in_real_time = abs(came - self._heard) <= _SAME_PACE * self._heard
            useless = self._least - _SPARE_MS * rate_hz // 1000
            self.spare = max(0, useless) if in_real_time else 0
            self._start(written)
        return self.spare


class _Reader:
    """A leg's source, at the leg's rate."""

    def __init__(self, playback: AgentPlayback, rate_hz: int) -> None:
        self._playback = playback
        self._rate_hz = rate_hz
        self._resampler: LiveResampler | None = None
        self._resampled: Samples = np.empty(0, np.int16)  # and not yet read
        self._silence = 0  # samples put into the resampler since the last speech
        self._prompt: SampleSource | None = None

    def read(self, count: int) -> Samples:
        playback = self._playback
        playback.tell_marks()
        samples = (
            playback.take(count) if playback.rate_hz == self._rate_hz else self._resample(count, playback)
        )
        if not samples.size:
            return self._read_prompt(count)
        self._prompt = None
        return samples

    def _resample(self, count: int, playback: AgentPlayback) -> Samples:
        resampler = self._resampler
        if resampler is None or resampler.rate_in_hz != playback.rate_hz:
            self._resampler = resampler = make_resampler(
                playback.live_resampler, playback.rate_hz, self._rate_hz, 1
            )
            self._silence = playback.rate_hz
        needed = -(-(count - self._resampled.size) * resampler.rate_in_hz // self._rate_hz)
        samples = playback.take(needed)
        if samples.size:
            self._silence = 0
        elif self._silence >= resampler.rate_in_hz * (2 * resampler.delay_ms / 1000 + 0.02):
            return samples  # and nothing of what was said before is left inside
        if samples.size < needed:
            self._silence += needed - samples.size
            samples = np.concatenate((samples, np.zeros(needed - samples.size, np.int16)))
        new: Samples = resampler.process(samples.reshape(1, -1))[0]
        if new.size == count and not self._resampled.size:
            return new  # the resampler's own memory, good until the next read
        whole = np.concatenate((self._resampled, new))
        self._resampled = whole[count:]
        return whole[:count]

    def _read_prompt(self, count: int) -> Samples:
        make = self._playback.prompt
        if make is None and self._prompt is None:
            return np.empty(0, np.int16)
        if self._prompt is None:
            assert make is not None
            self._prompt = make(self._rate_hz)
        samples = self._prompt.read(count)
        if make is None:
            self._prompt = None
            samples = samples[: _FADE_MS * self._rate_hz // 1000]
            samples = (samples * np.linspace(1, 0, samples.size)).astype(np.int16)
        return samples
