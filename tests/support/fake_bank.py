# SPDX-License-Identifier: GPL-3.0-or-later
"""The native side of the media loop in numpy: ports with rates that tests set, a clock that they advance."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sipbridge.media.loop import DELIVERED, HEARD, MUTED, PULLED, MediaLoop, SampleSource
from sipbridge.media.remote import RemotePorts
from sipbridge.media.tones import Clip
from sipbridge.resample import ResamplerKind, make_resampler
from tests.support.codecs import Samples

TICK_MS = 5
FRAME_TICKS = 4
_FADE_MS = 3
_UNDEFINED = -21846  # what is in a matrix beside a row's samples; nobody may use it


class FakePort:
    """A call leg's port as a backend and the bridge see it, and what tests do at its far end."""

    is_live = True

    def __init__(self, port_id: int, rate_hz: int) -> None:
        self.port_id = port_id
        self.rate_hz = rate_hz
        self.clears = 0
        self.gain = 0.0  # of whole frames
        self.level = 0
        self.delivery: list[Samples] = []
        self._voice: SampleSource = Clip(np.zeros(0, np.int16))
        self._heard: list[Samples] = []

    def say(self, voice: SampleSource | Samples) -> None:
        """What the telephone says from now on; silence after its end."""
        self._voice = Clip(voice) if isinstance(voice, np.ndarray) else voice

    def said(self, count: int) -> Samples:
        samples = np.zeros(count, np.int16)
        piece = self._voice.read(count)
        samples[: len(piece)] = piece
        return samples

    @property
    def heard(self) -> Samples:
        """All that was played to the telephone."""
        return np.concatenate([np.zeros(0, np.int16), *self._heard])

    def forget(self) -> None:
        """Begins `heard` anew."""
        self._heard.clear()

    # --- as a pjsua2 port

    def rateHz(self) -> int:  # noqa: N802
        return self.rate_hz

    @property
    def sample_rate_hz(self) -> int:
        return self.rate_hz

    def write(self, samples: Samples) -> None:
        assert samples.dtype == np.int16
        assert samples.ndim == 1
        self._heard.append(samples.copy())

    def clear(self) -> None:
        self.clears += 1

    def mark(self, reached: Callable[[bool], None]) -> None:
        reached(False)


@dataclass
class FakeStats:
    """Of a member without a telephone."""

    capture_wait_ms: float = 2.5
    playback_wait_ms: float = 0.0
    mixed: bool = False
    capture_peak: int = 1000
    playback_peak: int = 2000


class FakeSamplePort(FakePort):
    """A member without a telephone; what it hears is put together to frames."""

    def __init__(
        self,
        port_id: int,
        rate_hz: int,
        member_rate_hz: int,
        outbox: "FakeOutbox",
        close: Callable[[], None],
    ) -> None:
        super().__init__(port_id, rate_hz)
        self.close = close
        self._converts = member_rate_hz != rate_hz
        if self._converts:
            self._from_member = make_resampler("polyphase", member_rate_hz, rate_hz, 1)
            self._to_member = make_resampler("polyphase", rate_hz, member_rate_hz, 1)
        self._outbox = outbox
        self._lock = threading.Lock()  # whoever feeds has a thread of its own
        self._fed = np.zeros(0, np.int16)
        self._fed_count = 0

    def id(self) -> int:
        return self.port_id

    def feed(self, samples: Samples) -> None:
        with self._lock:
            if self._converts:
                samples = self._from_member.process(samples.reshape(1, -1))[0]
            self._fed = np.concatenate((self._fed, samples))
            self._fed_count += len(samples)

    def fed(self) -> int:
        return self._fed_count

    def taken(self) -> int:
        with self._lock:
            return self._fed_count - len(self._fed)

    def clear(self) -> None:
        with self._lock:
            self._fed = self._fed[:0]

    def clearHeard(self) -> None:  # noqa: N802
        self.clears += 1

    def stats(self) -> FakeStats:
        return FakeStats()

    def said(self, count: int) -> Samples:
        samples = np.zeros(count, np.int16)
        with self._lock:
            piece, self._fed = self._fed[:count], self._fed[count:]
        samples[: len(piece)] = piece
        return samples

    def write(self, samples: Samples) -> None:
        super().write(samples)
        if len(self._heard) == FRAME_TICKS:
            frame = self.heard
            if self._converts:
                frame = self._to_member.process(frame.reshape(1, -1))[0]
            self._outbox.frames.append((self.port_id, frame.tobytes()))
            self.forget()


class FakeOutbox:
    """What such members have heard."""

    def __init__(self) -> None:
        self.frames: list[tuple[int, bytes]] = []
        self.paces: list[int] = []  # in ticks, as was asked for

    def wait(self, timeout_ms: int, every_ticks: int) -> list[tuple[int, bytes]]:
        self.paces.append(every_ticks)
        if not self.frames:
            time.sleep(min(timeout_ms, 1) / 1000)
        frames, self.frames = self.frames, []
        return frames

    def wake(self) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass
class FakeMark:
    """All is sent at once, so a mark is reached in the next tick."""

    id: int
    cleared: bool


class FakeBank:
    """`PortBank` with the clock's part of whole frames, and with the rules of its header checked.

    Frames that go from leg to leg are handed on in pieces of a tick, as if they had no length.
    """

    def __init__(self, tick_ms: int = TICK_MS) -> None:
        self.tick_ms = tick_ms
        self.ports: dict[int, FakePort] = {}
        self.rows: list[tuple[int, int]] = []  # port id, negative when it is only read, and rate
        self.whole: dict[int, tuple[int, int, int]] = {}  # by port: who hears it, flags, rate
        self.marks: list[FakeMark] = []
        self._next_id = 1
        self._tick = 0

    def add(self, rate_hz: int = 8000) -> FakePort:
        port = FakePort(self._next_id, rate_hz)
        self.ports[port.port_id] = port
        self._next_id += 1
        return port

    def add_remote(self, rate_hz: int, member_rate_hz: int, outbox: FakeOutbox) -> FakeSamplePort:
        port = FakeSamplePort(self._next_id, rate_hz, member_rate_hz, outbox, lambda: self.remove(port))
        self.ports[port.port_id] = port
        self._next_id += 1
        return port

    def remove(self, port: FakePort) -> None:
        del self.ports[port.port_id]

    @property
    def attached(self) -> set[int]:
        """Ports that have a row, or are heard whole."""
        return {abs(port_id) for port_id, _ in self.rows} | set(self.whole)

    # --- as the media loop sees it

    def rates(self, ids: NDArray[np.int32], rates_hz: NDArray[np.int32]) -> None:
        assert ids.dtype == rates_hz.dtype == np.int32
        assert len(ids) == len(rates_hz)
        for i, port_id in enumerate(ids.tolist()):
            rates_hz[i] = self.ports[port_id].rate_hz if port_id in self.ports else 0

    def layout(self, ids: NDArray[np.int32], rates_hz: NDArray[np.int32], whole: NDArray[np.int32]) -> None:
        assert whole.dtype == np.int32
        assert whole.ndim == 1
        before = set(self.whole)
        self.rates(abs(ids), rates_hz)
        self.rows = list(zip(ids.tolist(), rates_hz.tolist(), strict=True))
        self.whole = {}
        for port_id, listener, flags in whole.reshape(-1, 3).tolist():
            assert not listener or not flags & (DELIVERED | PULLED)
            rate_hz = self.ports[port_id].rate_hz if port_id in self.ports else 0
            self.whole[port_id] = listener, flags, rate_hz
        written = [port_id for port_id in ids.tolist() if port_id > 0]
        assert len({abs(port_id) for port_id in ids.tolist()}) == len(ids)
        # who is written and whole as well is heard apart
        assert all(self.whole[port_id][0] not in (0, port_id) for port_id in set(written) & set(self.whole))
        for port_id in set(self.whole) - before:
            if port_id in self.ports:
                self.ports[port_id].gain = 1.0 if self.whole[port_id][1] & HEARD else 0.0

    def read(self, matrix: Samples) -> int:
        self._check(matrix)
        self._tick += 1
        matrix[:] = _UNDEFINED
        stale = 0
        said: dict[int, Samples] = {}
        for port_id in self.attached:
            if port_id in self.ports:
                said[port_id] = self.ports[port_id].said(self.ports[port_id].rate_hz * self.tick_ms // 1000)
        for row, (port_id, rate_hz) in enumerate(self.rows):
            port = self.ports.get(abs(port_id))
            if port is None or port.rate_hz != rate_hz:
                matrix[row] = 0
                stale += 1
            else:
                matrix[row, : rate_hz * self.tick_ms // 1000] = said[abs(port_id)]
        for port_id, (listener, flags, rate_hz) in self.whole.items():
            port = self.ports.get(port_id)
            if port is None or port.rate_hz != rate_hz:
                stale += 1
                continue
            samples = self._mute(port, said[port_id], 0.0 if flags & MUTED else 1.0)
            if listener in self.ports and self.ports[listener].rate_hz == rate_hz:
                self.ports[listener].write(samples)
            if flags & DELIVERED:
                port.delivery.append(samples)
        return stale

    def _mute(self, port: FakePort, samples: Samples, gain: float) -> Samples:
        gains = np.full(len(samples), gain)
        fade = port.rate_hz * _FADE_MS // 1000
        gains[:fade] = np.linspace(port.gain, gain, fade)
        port.gain = gain
        muted: Samples = np.rint(samples * gains).astype(np.int16)
        return muted

    def write(self, matrix: Samples) -> None:
        self._check(matrix)
        for row, (port_id, rate_hz) in enumerate(self.rows):
            port = self.ports.get(port_id)  # none where the row is only read
            if port is not None and port.rate_hz == rate_hz:
                port.write(matrix[row, : rate_hz * self.tick_ms // 1000])

    def takeFrames(self, heads: NDArray[np.int32], matrix: Samples) -> int:  # noqa: N802
        count = 0
        for port_id, (_, flags, _) in self.whole.items():
            port = self.ports.get(port_id)
            if port is not None and flags & DELIVERED and len(port.delivery) == FRAME_TICKS:
                frame = np.concatenate(port.delivery)
                port.delivery.clear()
                heads[count] = port_id, len(frame)
                matrix[count, : len(frame)] = frame
                count += 1
        return count

    def wantedFrames(self, heads: NDArray[np.int32]) -> int:  # noqa: N802
        count = 0
        for port_id, (_, flags, rate_hz) in self.whole.items():
            if port_id in self.ports and flags & PULLED and (self._tick + port_id) % FRAME_TICKS == 0:
                heads[count] = port_id, rate_hz * self.tick_ms * FRAME_TICKS // 1000
                count += 1
        return count

    def levels(self, ids: NDArray[np.int32], peaks: NDArray[np.int32]) -> None:
        for i, port_id in enumerate(ids.tolist()):
            peaks[i] = self.ports[port_id].level if port_id in self.ports else 0

    def mark(self, port_id: int, mark_id: int) -> None:
        self.marks.append(FakeMark(mark_id, port_id not in self.ports))

    def takeMarks(self) -> list[FakeMark]:  # noqa: N802
        reached, self.marks = self.marks, []
        return reached

    def giveFrames(self, heads: NDArray[np.int32], matrix: Samples) -> None:  # noqa: N802
        for (port_id, count), samples in zip(heads.tolist(), matrix, strict=True):
            self.ports[port_id].write(samples[:count])

    def _check(self, matrix: Samples) -> None:
        assert matrix.dtype == np.int16
        assert matrix.flags.c_contiguous
        assert matrix.shape[0] == len(self.rows)
        assert matrix.shape[1] * 1000 >= max((rate_hz for _, rate_hz in self.rows), default=0) * self.tick_ms


class FakeClock:
    """The native clock; it stands until it is advanced."""

    def __init__(self) -> None:
        self._tick = 1
        self._woken = False
        self._changed = threading.Condition()

    def advance(self, ticks: int = 1) -> None:
        with self._changed:
            self._tick += ticks
            self._changed.notify_all()

    def wait(self, last: int, timeout_ms: int) -> int:
        with self._changed:
            self._changed.wait_for(lambda: self._tick > last or self._woken, timeout_ms / 1000)
            woken, self._woken = self._woken, False
            return self._tick if woken else max(self._tick, last)

    def wake(self) -> None:
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def done(self, tick: int) -> None:
        assert tick <= self._tick


class FakeMedia:
    """A media loop over such a bank; tests call its ticks."""

    def __init__(self, tick_ms: int = TICK_MS, live_resampler: ResamplerKind = "polyphase") -> None:
        self.bank = FakeBank(tick_ms)
        self.clock = FakeClock()
        self.loop = MediaLoop(self.clock, self.bank, tick_ms=tick_ms, live_resampler=live_resampler)
        outbox = FakeOutbox()
        self.remotes = RemotePorts(
            outbox, lambda rate_hz, member_hz, frame_ms: self.bank.add_remote(rate_hz, member_hz, outbox)
        )

    def run(self, ticks: int = 1) -> None:
        for _ in range(ticks):
            self.loop.tick()
            self.remotes.work(0)

    def run_s(self, seconds: float) -> None:
        self.run(round(seconds * 1000 / self.bank.tick_ms))
