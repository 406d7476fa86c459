# SPDX-License-Identifier: GPL-3.0-or-later
"""What holds for the jitter queue whatever is pushed into it, and whenever."""

import math
from dataclasses import dataclass, field

import numpy as np
import pjsua2 as pj
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.support import audio

TICK_MS = 5
PACKET_TICKS = 4
MAX_MS = 200
PEAK = 8000

Samples = NDArray[np.int16]

rates_hz = st.sampled_from((8000, 16000, 48000))


def noise(seed: int, count: int) -> Samples:
    return np.random.default_rng(seed).integers(-30000, 30000, count, np.int16)


@dataclass
class Line:
    """A queue, where what is pushed comes from, and what was popped."""

    rate_hz: int
    source: Samples
    sent: int = 0
    heard: list[Samples] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.queue = pj.JitterQueue(self.rate_hz, MAX_MS)

    def samples(self, ms: float) -> int:
        return int(self.rate_hz * ms / 1000)

    def push(self, ms: float) -> None:
        count = self.samples(ms)
        self.queue.push(self.source[self.sent : self.sent + count])
        self.sent += count

    def pop(self, ms: float = TICK_MS) -> int:
        out = np.full(self.samples(ms), 12345, np.int16)
        real: int = self.queue.pop(out)
        self.heard.append(out)
        return real

    def all_heard(self) -> Samples:
        return np.concatenate(self.heard)


@given(
    rate_hz=rates_hz,
    operations=st.lists(
        st.tuples(
            st.sampled_from(("push", "pop", "clear", "configure", "popping", "pushing")),
            st.integers(0, 5000),
        ),
        max_size=60,
    ),
)
def test_every_sample_is_accounted_for(rate_hz: int, operations: list[tuple[str, int]]) -> None:
    """Whatever is done, what was pushed waits or was taken, and no more waits than may."""
    queue = pj.JitterQueue(rate_hz, MAX_MS)
    pushed = taken = 0
    for operation, count in operations:
        if operation == "push":
            queue.push(np.full(count, 99, np.int16))
            pushed += count
        elif operation == "pop":
            out = np.full(count, 12345, np.int16)
            assert 0 <= queue.pop(out) <= count
            assert np.abs(out).max(initial=0) <= 99
        elif operation == "clear":
            queue.clear()
            assert queue.depth() == 0
        elif operation == "configure":
            rate_hz = (8000, 16000, 48000)[count % 3]
            queue.configure(rate_hz, MAX_MS)
            assert queue.depth() == 0
        elif operation == "popping":
            queue.poppingBegins()
        else:
            queue.pushingBegins()
        assert queue.pushed() == pushed
        assert queue.taken() + queue.depth() == pushed
        assert queue.taken() >= taken
        assert queue.depth() <= rate_hz * MAX_MS // 1000
        taken = queue.taken()


@given(
    rate_hz=rates_hz,
    packet_ms=st.sampled_from((20, 40, 60)),
    pop_ms=st.sampled_from((5, 10, 20)),
    phase_ms=st.integers(0, 11).map(lambda ticks: ticks * TICK_MS),
    seed=st.integers(0, 2**32 - 1),
)
def test_regular_arrivals_pass_bit_by_bit(
    rate_hz: int, packet_ms: int, pop_ms: int, phase_ms: int, seed: int
) -> None:
    """On a clean line the queue is a delay and nothing else, in whichever phase the packets come."""
    line = Line(rate_hz, noise(seed, rate_hz))
    first = -1
    for now_ms in range(0, 600, TICK_MS):
        if now_ms >= phase_ms and (now_ms - phase_ms) % packet_ms == 0:
            line.push(packet_ms)
        if now_ms % pop_ms == 0 and line.pop(pop_ms) and first < 0:
            first = line.samples(now_ms)
    heard = line.all_heard()
    assert not heard[:first].any()
    assert line.queue.stats().underruns == 0
    assert np.array_equal(heard[first:], line.source[: len(heard) - first])


@given(rate_hz=rates_hz, phase_ms=st.sampled_from((0, 5, 10, 15)), seed=st.integers(0, 2**32 - 1))
def test_pieces_pass_bit_by_bit_in_frames(rate_hz: int, phase_ms: int, seed: int) -> None:
    """What is written by the tick and sent by the packet waits no longer than it takes to fill one."""
    line = Line(rate_hz, noise(seed, rate_hz))
    for now_ms in range(0, 600, TICK_MS):
        if now_ms % 20 == phase_ms and line.pop(20):
            assert line.queue.depth() == 0
            first = line.sent - line.samples(20)
            assert np.array_equal(line.heard[-1], line.source[first : line.sent])
        line.push(TICK_MS)
    assert line.queue.stats().underruns == 0
    assert line.sent - line.queue.depth() > line.samples(550)


@given(
    rate_hz=rates_hz,
    late_ticks=st.lists(st.integers(0, 9), min_size=2, max_size=60),
    seed=st.integers(0, 2**32 - 1),
)
def test_jitter_costs_its_largest_lateness_and_no_more(
    rate_hz: int, late_ticks: list[int], seed: int
) -> None:
    """However packets are late, all that is made up is as long as the latest of them is late."""
    line = Line(rate_hz, noise(seed, rate_hz * 2))
    arrival = np.maximum.accumulate([PACKET_TICKS * i + late for i, late in enumerate(late_ticks)])
    latest = max(int(tick) - PACKET_TICKS * i for i, tick in enumerate(arrival))
    for tick in range(PACKET_TICKS * len(late_ticks) + latest):
        for _ in range(int(np.count_nonzero(arrival == tick))):
            line.push(PACKET_TICKS * TICK_MS)
        line.pop()
    assert line.queue.depth() == 0
    stats = line.queue.stats()
    assert stats.concealed_samples == line.samples((latest - late_ticks[0]) * TICK_MS)
    assert stats.trims == stats.overflow_samples == 0
    # it ends with what was sent last, untouched but for where a gap was joined
    untouched = line.samples((PACKET_TICKS - 1) * TICK_MS)
    assert np.array_equal(line.all_heard()[-untouched:], line.source[line.sent - untouched : line.sent])


@given(
    rate_hz=rates_hz,
    hz=st.floats(90, 700),
    operations=st.lists(
        st.one_of(
            st.just(("clear", 0)),
            st.just(("pushing", 0)),
            st.tuples(st.just("push"), st.integers(1, 600)),
            st.tuples(st.just("pop"), st.sampled_from((5, 10, 20, 60))),
        ),
        max_size=80,
    ),
)
@settings(max_examples=200)
def test_nothing_makes_a_click(rate_hz: int, hz: float, operations: list[tuple[str, int]]) -> None:
    """Gaps, bursts, overflow, clearing: no step is larger than fading over between two waves makes it."""
    seconds = (sum(amount for operation, amount in operations if operation == "push") + 100) / 1000
    phase = 2 * math.pi * hz * np.arange(int(seconds * rate_hz)) / rate_hz
    line = Line(rate_hz, np.rint(PEAK * np.sin(phase)).astype(np.int16))
    line.push(20)
    line.pop()
    for operation, amount in operations:
        if operation == "push":
            line.push(amount)
        elif operation == "pop":
            line.pop(amount)
        elif operation == "pushing":
            line.queue.pushingBegins()
        else:
            line.queue.clear()
    line.pop(MAX_MS + 100)
    heard = line.all_heard().astype(np.int32)
    own_step = 2 * PEAK * math.sin(math.pi * hz / rate_hz)
    fade = line.samples(4)
    assert np.abs(np.diff(heard)).max() <= 1.1 * own_step + 3 * PEAK / fade + 2
    assert np.abs(heard).max() <= PEAK
    assert not heard[-line.samples(50) :].any()  # after 50 ms without anything it is silent


@given(
    rate_hz=st.sampled_from((8000, 16000)),
    spare_ms=st.integers(10, 160),
    sound=st.sampled_from(("speech", "noise", "silence", "tone")),
    seed=st.integers(0, 1000),
)
@settings(max_examples=20, deadline=None)
def test_spare_depth_is_given_back(rate_hz: int, spare_ms: int, sound: str, seed: int) -> None:
    """Depth that was not needed for two seconds is gone within three and a half, and nothing runs dry."""
    seconds = 4.5
    source = {
        "speech": lambda: audio.speech(seconds, rate_hz, seed % 3),
        "noise": lambda: noise(seed, int(seconds * rate_hz)),
        "silence": lambda: audio.silence(seconds, rate_hz),
        "tone": lambda: audio.tone(100 + 3 * seed, seconds, rate_hz),
    }[sound]()
    line = Line(rate_hz, source)
    line.pop()
    line.push(spare_ms)
    trims_at_2_s = 0
    for packet in range(180):
        line.push(20)
        for _ in range(PACKET_TICKS):
            line.pop()
        if packet == 90:
            trims_at_2_s = line.queue.stats().trims
    assert trims_at_2_s == 0
    assert line.queue.stats().underruns == 0
    assert line.queue.depth() < line.samples(12)  # less is not worth a change
