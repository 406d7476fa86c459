# SPDX-License-Identifier: GPL-3.0-or-later
"""soxr behind the interface of the live resamplers, and for whole recordings."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sipbridge.resample import SoxrResampler, resample_whole

RATES_HZ = (8000, 12000, 16000, 24000, 32000, 44100, 48000)
PAIRS = list(itertools.permutations(RATES_HZ, 2))


@settings(max_examples=25, deadline=None)
@given(pair=st.sampled_from(PAIRS), sizes=st.lists(st.integers(0, 3000), min_size=1, max_size=60))
def test_count_is_exact(pair: tuple[int, int], sizes: list[int]) -> None:
    """soxr's bursts are evened out: the number of samples out is that of the time passed."""
    resampler = SoxrResampler(*pair, channels=2)
    sent = received = 0
    for size in sizes:
        heard = resampler.process(np.zeros((2, size), np.int16))
        assert not heard.any()
        received += heard.shape[1]
        sent += size
        assert received == -(-sent * pair[1] // pair[0])


@pytest.mark.parametrize(("rate_in_hz", "rate_out_hz"), PAIRS)
def test_noise_comes_out_as_from_the_whole(rate_in_hz: int, rate_out_hz: int) -> None:
    """Streamed noise, less the documented delay, is what soxr makes of the whole recording."""
    frequency_hz = np.fft.rfftfreq(rate_in_hz, 1 / rate_in_hz)
    band = frequency_hz < 0.65 * min(rate_in_hz, rate_out_hz) / 2
    noise = np.fft.irfft(np.fft.rfft(np.random.default_rng(5).standard_normal(rate_in_hz)) * band, rate_in_hz)
    samples = np.rint(noise * 20000 / np.abs(noise).max()).astype(np.int16)
    resampler = SoxrResampler(rate_in_hz, rate_out_hz, 1)
    chunks = samples.reshape(1, 200, -1) if rate_in_hz % 200 == 0 else samples.reshape(1, 100, -1)
    heard = np.concatenate([resampler.process(chunks[:, i])[0] for i in range(chunks.shape[1])])
    delay = round(resampler.delay_ms * rate_out_hz / 1000)
    assert resampler.delay_ms <= 84
    expected = resample_whole(samples, rate_in_hz, rate_out_hz)[: len(heard) - delay].astype(float)
    difference = heard[delay:] - expected
    middle = slice(rate_out_hz // 20, None)
    assert np.mean(difference[middle] ** 2) <= 1e-4 * np.mean(expected[middle] ** 2)


def test_remap_keeps_the_kept() -> None:
    """Kept rows go on without a seam, a new row starts from silence."""
    noise = np.random.default_rng(6).integers(-20000, 20000, (3, 800)).astype(np.int16)
    moved = SoxrResampler(8000, 16000, 2)
    straight = SoxrResampler(8000, 16000, 3)
    for part in range(0, 400, 40):
        moved.process(noise[:2, part : part + 40])
        straight.process(noise[:, part : part + 40])
    moved.remap(np.array([1, -1, 0]))
    assert moved.channels == 3
    fresh = SoxrResampler(8000, 16000, 1)
    for part in range(400, 800, 40):
        frames = noise[:, part : part + 40]
        heard = moved.process(frames[[1, 2, 0]])
        expected = straight.process(frames)
        np.testing.assert_array_equal(heard[[2, 0]], expected[[0, 1]])
        np.testing.assert_array_equal(heard[1:2], fresh.process(frames[2:3]))


def test_whole_recording() -> None:
    """A recording keeps its length in time, its channels and its level; equal rates leave it alone."""
    tone = np.rint(20000 * np.sin(2 * np.pi * 500 * np.arange(44100) / 44100)).astype(np.int16)
    heard = resample_whole(tone, 44100, 8000)
    assert heard.dtype == np.int16
    expected = 20000 * np.sin(2 * np.pi * 500 * np.arange(8000) / 8000)
    assert len(heard) == 8000
    assert np.abs(heard[200:-200] - expected[200:-200]).max() <= 4
    assert resample_whole(np.stack((tone, tone), axis=1), 44100, 8000).shape == (8000, 2)
    assert resample_whole(tone, 44100, 44100) is tone
