# SPDX-License-Identifier: GPL-3.0-or-later
"""The native side of the media loop in numpy: ports with rates that tests set, a clock that they advance."""

import threading

import numpy as np
from numpy.typing import NDArray

from sipbridge.media.loop import MediaLoop, SampleSource
from sipbridge.media.tones import Clip
from sipbridge.resample import ResamplerKind
from tests.support.codecs import Samples

TICK_MS = 5
_UNDEFINED = -21846  # what is in a matrix beside a row's samples; nobody may use it


class FakePort:
    """A call leg's port as a backend and the bridge see it, and what tests do at its far end."""

    def __init__(self, port_id: int, rate_hz: int) -> None:
        self.port_id = port_id
        self.rate_hz = rate_hz
        self.clears = 0
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


class FakeBank:
    """`PortBank`, with the rules of its header checked."""

    def __init__(self, tick_ms: int = TICK_MS) -> None:
        self.tick_ms = tick_ms
        self.ports: dict[int, FakePort] = {}
        self.rows: list[tuple[int, int]] = []  # port id, negative when it is only read, and rate
        self._next_id = 1

    def add(self, rate_hz: int = 8000) -> FakePort:
        port = FakePort(self._next_id, rate_hz)
        self.ports[port.port_id] = port
        self._next_id += 1
        return port

    def remove(self, port: FakePort) -> None:
        del self.ports[port.port_id]

    @property
    def attached(self) -> set[int]:
        """Ports that have a row."""
        return {abs(port_id) for port_id, _ in self.rows}

    # --- as the media loop sees it

    def layout(self, ids: NDArray[np.int32], rates_hz: NDArray[np.int32]) -> None:
        assert ids.dtype == rates_hz.dtype == np.int32
        assert len(ids) == len(rates_hz)
        assert len({abs(port_id) for port_id in ids.tolist()}) == len(ids)
        for i, port_id in enumerate(ids.tolist()):
            rates_hz[i] = self.ports[abs(port_id)].rate_hz if abs(port_id) in self.ports else 0
        self.rows = list(zip(ids.tolist(), rates_hz.tolist(), strict=True))

    def read(self, matrix: Samples) -> int:
        self._check(matrix)
        matrix[:] = _UNDEFINED
        stale = 0
        for row, (port_id, rate_hz) in enumerate(self.rows):
            port = self.ports.get(abs(port_id))
            if port is None or port.rate_hz != rate_hz:
                matrix[row] = 0
                stale += 1
            else:
                count = rate_hz * self.tick_ms // 1000
                matrix[row, :count] = port.said(count)
        return stale

    def write(self, matrix: Samples) -> None:
        self._check(matrix)
        for row, (port_id, rate_hz) in enumerate(self.rows):
            port = self.ports.get(port_id)  # none where the row is only read
            if port is not None and port.rate_hz == rate_hz:
                port.write(matrix[row, : rate_hz * self.tick_ms // 1000])

    def _check(self, matrix: Samples) -> None:
        assert matrix.dtype == np.int16
        assert matrix.flags.c_contiguous
        assert matrix.shape[0] == len(self.rows)
        assert matrix.shape[1] * 1000 >= max(rate_hz for _, rate_hz in self.rows) * self.tick_ms


class FakeClock:
    """The native clock; it stands until it is advanced."""

    def __init__(self) -> None:
        self._tick = 1
        self._changed = threading.Condition()

    def advance(self, ticks: int = 1) -> None:
        with self._changed:
            self._tick += ticks
            self._changed.notify_all()

    def wait(self, last: int, timeout_ms: int) -> int:
        with self._changed:
            self._changed.wait_for(lambda: self._tick != last, timeout_ms / 1000)
            return self._tick


class FakeMedia:
    """A media loop over such a bank; tests call its ticks."""

    def __init__(self, tick_ms: int = TICK_MS, live_resampler: ResamplerKind = "polyphase") -> None:
        self.bank = FakeBank(tick_ms)
        self.clock = FakeClock()
        self.loop = MediaLoop(self.clock, self.bank, tick_ms=tick_ms, live_resampler=live_resampler)

    def run(self, ticks: int = 1) -> None:
        for _ in range(ticks):
            self.loop.tick()

    def run_s(self, seconds: float) -> None:
        self.run(round(seconds * 1000 / self.bank.tick_ms))
