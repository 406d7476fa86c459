# SPDX-License-Identifier: GPL-3.0-or-later
"""Who hears whom in rooms of any size."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sipbridge.media.mixer import MixPlan

sizes_lists = st.lists(st.integers(0, 7), max_size=12)


def expected_mix(
    sizes: list[int], frames: NDArray[np.int16], sources: NDArray[np.int32] | None = None
) -> NDArray[np.int16]:
    """The definition, one member at a time."""
    out = np.zeros_like(frames)
    start = 0
    for room, size in enumerate(sizes):
        for member in range(start, start + size):
            heard = np.zeros(frames.shape[1], int)
            for other in range(start, start + size):
                if other != member:
                    heard += frames[other]
            if sources is not None:
                heard += sources[room]
            out[member] = np.clip(heard, -32768, 32767)
        start += size
    return out


@settings(max_examples=150, deadline=None)
@given(sizes=sizes_lists, with_sources=st.booleans(), seed=st.integers(0, 1000), n=st.sampled_from([40, 80]))
def test_everybody_hears_all_others(sizes: list[int], with_sources: bool, seed: int, n: int) -> None:
    """Any rooms in any order, loud enough to saturate, with and without a room's own source."""
    random = np.random.default_rng(seed)
    frames = random.integers(-32768, 32768, (sum(sizes), n)).astype(np.int16)
    sources = random.integers(-99999, 99999, (len(sizes), n)).astype(np.int32) if with_sources else None
    out = np.full_like(frames, 99)
    before = frames.copy()
    plan = MixPlan(sizes)
    assert (plan.rooms, plan.rows) == (len(sizes), sum(sizes))
    for _ in range(2):
        if sources is None:
            plan.mix(frames, out)
        else:
            starts = np.cumsum(sizes) - sizes
            rooms = [
                frames[start : start + size].sum(axis=0) for start, size in zip(starts, sizes, strict=True)
            ]
            np.testing.assert_array_equal(plan.sum(frames), np.reshape(rooms, sources.shape))
            plan.mix_with(sources, out)
        np.testing.assert_array_equal(out, expected_mix(sizes, frames, sources))
    np.testing.assert_array_equal(frames, before)


def test_two_members_hear_each_other_bit_for_bit() -> None:
    """In a call of two nothing is added, scaled or cut, also at the limits."""
    frames = np.array([[-32768, 32767, 1, 0], [32767, -32768, -1, 5]], np.int16)
    out = np.empty_like(frames)
    MixPlan([2]).mix(frames, out)
    np.testing.assert_array_equal(out, frames[::-1])


def test_sum_saturates() -> None:
    """Three shouting are cut at full scale, never wrapped; a hundred are too."""
    frames = np.full((100, 8), 32767, np.int16)
    out = np.empty_like(frames)
    MixPlan([100]).mix(frames, out)
    assert (out == 32767).all()
    MixPlan([100]).mix(-frames - 1, out)
    assert (out == -32768).all()


def test_frame_length_may_change() -> None:
    """One plan serves ticks of any length."""
    plan = MixPlan([3, 1])
    for n in (40, 80, 40, 221):
        frames = np.random.default_rng(n).integers(-9000, 9000, (4, n)).astype(np.int16)
        out = np.empty_like(frames)
        plan.mix(frames, out)
        np.testing.assert_array_equal(out, expected_mix([3, 1], frames))


@pytest.mark.parametrize("sizes", [[], [0, 0], [1, 1]])
def test_nobody_to_hear(sizes: list[int]) -> None:
    """Empty rooms and lone members give silence."""
    frames = np.full((sum(sizes), 40), 1000, np.int16)
    out = np.full_like(frames, 7)
    MixPlan(sizes).mix(frames, out)
    assert not out.any()
