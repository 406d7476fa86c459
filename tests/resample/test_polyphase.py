# SPDX-License-Identifier: GPL-3.0-or-later
"""What the live resampler does to sound, seen through its public interface alone."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sipbridge.resample import LiveResampler, PolyphaseResampler, resample_whole

RATES_HZ = (8000, 12000, 16000, 24000, 32000, 44100, 48000)
PAIRS = list(itertools.permutations(RATES_HZ, 2))
pairs = st.sampled_from(PAIRS)


def run(resampler: LiveResampler, samples: NDArray[np.int16], sizes: list[int] | int) -> NDArray[np.int16]:
    """Feed (channels, n) in chunks of these sizes (repeated to the end) and join what comes out."""
    parts = []
    start = 0
    for size in itertools.cycle([sizes] if isinstance(sizes, int) else sizes):
        if start >= samples.shape[1]:
            break
        parts.append(resampler.process(samples[:, start : start + size]).copy())
        start += size
    return np.concatenate(parts, axis=1)


def sine(frequency_hz: float, rate_hz: int, seconds: float, peak: float) -> NDArray[np.int16]:
    phase = 2 * np.pi * frequency_hz * np.arange(int(rate_hz * seconds)) / rate_hz
    return np.rint(peak * np.sin(phase)).astype(np.int16)


def fit_sine(samples: NDArray[np.int16], frequency_hz: float, rate_hz: int) -> tuple[complex, float]:
    """Complex amplitude of the sine at the first sample; power of the rest over that of the sine in dB."""
    angle = 2 * np.pi * frequency_hz * np.arange(len(samples)) / rate_hz
    basis = np.stack((np.cos(angle), np.sin(angle), np.ones(len(samples))), axis=1)
    (in_phase, quadrature, mean), *_ = np.linalg.lstsq(basis, samples.astype(float))
    rest = samples - basis @ (in_phase, quadrature, mean)
    power = (in_phase**2 + quadrature**2) / 2
    return complex(quadrature, in_phase), 10 * math.log10(float(np.mean(rest**2)) / power)


def impulse_response(rate_in_hz: int, rate_out_hz: int) -> tuple[NDArray[np.float64], int]:
    """The filter at the least common multiple of the rates, and that rate.

    Each channel has its impulse at another input sample, so together their outputs hold every coefficient.
    """
    up, down = (rate // math.gcd(rate_in_hz, rate_out_hz) for rate in (rate_out_hz, rate_in_hz))
    resampler = PolyphaseResampler(rate_in_hz, rate_out_hz, down)
    length = down + int(rate_in_hz * 0.004) + 2
    impulses = np.zeros((down, length), np.int16)
    np.fill_diagonal(impulses, 30000)
    outputs = run(resampler, impulses, length)
    position = down * np.arange(outputs.shape[1]) - up * np.arange(down)[:, None]
    response = np.zeros(int(position.max()) + 1)
    response[position[position >= 0]] = outputs[position >= 0]
    assert not outputs[position < 0].any(), "sound before its cause"
    return response / 30000, rate_in_hz * up


@pytest.mark.parametrize(("rate_in_hz", "rate_out_hz"), PAIRS)
def test_frequency_response(rate_in_hz: int, rate_out_hz: int) -> None:
    """Flat within 0.1 dB to 85 % of the lower Nyquist frequency; 60 dB down from 115 % of it on."""
    response, rate_hz = impulse_response(rate_in_hz, rate_out_hz)
    gain = np.abs(np.fft.rfft(response, 16 * len(response))) * rate_in_hz / rate_hz
    frequency_hz = np.linspace(0, rate_hz / 2, len(gain))
    nyquist_hz = min(rate_in_hz, rate_out_hz) / 2
    passed = 20 * np.log10(gain[frequency_hz <= 0.85 * nyquist_hz])
    assert np.abs(passed).max() <= 0.1
    stopped = 20 * np.log10(gain[frequency_hz >= 1.15 * nyquist_hz].max())
    assert stopped <= -60


@pytest.mark.parametrize(("rate_in_hz", "rate_out_hz"), PAIRS)
def test_delay_is_linear_phase_and_short(rate_in_hz: int, rate_out_hz: int) -> None:
    """The impulse response is symmetric around delay_ms, which is at most 2 ms."""
    response, rate_hz = impulse_response(rate_in_hz, rate_out_hz)
    delay_ms = PolyphaseResampler(rate_in_hz, rate_out_hz, 1).delay_ms
    centre = round(delay_ms * rate_hz / 1000)
    assert delay_ms <= 2
    assert delay_ms * rate_hz / 1000 == pytest.approx(centre)
    whole = np.zeros(2 * centre + 1)
    whole[: len(response)] = response[: len(whole)]
    np.testing.assert_allclose(whole, whole[::-1], atol=1.5 / 30000)


@pytest.mark.parametrize(("rate_in_hz", "rate_out_hz"), PAIRS)
def test_tone(rate_in_hz: int, rate_out_hz: int) -> None:
    """A 1 kHz tone keeps its level and its time, and gets no noise above -70 dB."""
    resampler = PolyphaseResampler(rate_in_hz, rate_out_hz, 1)
    heard = run(resampler, sine(1000, rate_in_hz, 0.5, 30000)[None], rate_in_hz // 200)[0]
    settled = rate_out_hz // 100
    amplitude, noise_db = fit_sine(heard[settled:], 1000, rate_out_hz)
    assert noise_db <= -70
    assert abs(amplitude) == pytest.approx(30000, rel=0.002)
    late = 2 * np.pi * 1000 * (settled / rate_out_hz - resampler.delay_ms / 1000)
    assert np.angle(amplitude * np.exp(-1j * late)) == pytest.approx(0, abs=0.001)


@pytest.mark.parametrize(("rate_in_hz", "rate_out_hz"), PAIRS)
def test_tone_in_odd_ticks_beside_who_comes_and_goes(rate_in_hz: int, rate_out_hz: int) -> None:
    """The same limit for a stream in ticks of any size whose row moves while others come and go."""
    resampler = PolyphaseResampler(rate_in_hz, rate_out_hz, 1)
    random = np.random.default_rng(7)
    tone = sine(1000, rate_in_hz, 0.5, 30000)
    sizes = itertools.cycle([1, rate_in_hz // 200, 37, 441, 0, rate_in_hz // 50, 223])
    heard, sent, row = [], 0, 0
    while sent < len(tone):
        rows = np.full(int(random.integers(1, 6)), -1)
        before, row = row, int(random.integers(len(rows)))
        rows[row] = before
        resampler.remap(rows)
        piece = tone[sent : sent + next(sizes)]
        frames = random.integers(-32768, 32768, (len(rows), len(piece))).astype(np.int16)
        frames[row] = piece
        heard.append(resampler.process(frames)[row].copy())
        sent += len(piece)
    whole = np.concatenate(heard)
    assert len(whole) == -(-len(tone) * rate_out_hz // rate_in_hz)
    amplitude, noise_db = fit_sine(whole[rate_out_hz // 100 :], 1000, rate_out_hz)
    assert noise_db <= -70
    assert abs(amplitude) == pytest.approx(30000, rel=0.002)


@pytest.mark.parametrize(("rate_in_hz", "rate_out_hz"), PAIRS)
def test_constant_stays_constant(rate_in_hz: int, rate_out_hz: int) -> None:
    """A constant comes out as itself to the last bit, at each phase."""
    resampler = PolyphaseResampler(rate_in_hz, rate_out_hz, 2)
    level = np.array([[12345], [-32768]], np.int16)
    heard = run(resampler, np.tile(level, rate_in_hz // 2), rate_in_hz // 200)
    settled = heard[:, rate_out_hz // 200 :]
    np.testing.assert_array_equal(settled, np.broadcast_to(level, settled.shape))


@pytest.mark.parametrize("factor", [2, 3, 4, 6])
def test_upsampling_keeps_the_given_samples(factor: int) -> None:
    """At a whole ratio the samples that were there come through bit for bit."""
    resampler = PolyphaseResampler(8000, 8000 * factor, 1)
    given_samples = np.random.default_rng(1).integers(-32768, 32768, (1, 4000)).astype(np.int16)
    heard = run(resampler, given_samples, 40)
    delay = round(resampler.delay_ms * 8)
    np.testing.assert_array_equal(heard[0, delay * factor :: factor], given_samples[0, :-delay])


@pytest.mark.parametrize(("rate_in_hz", "rate_out_hz"), [(8000, 48000), (48000, 8000), (44100, 16000)])
def test_overload_saturates(rate_in_hz: int, rate_out_hz: int) -> None:
    """Where the filter overshoots a full-scale square wave, the peak is cut and never wraps."""
    resampler = PolyphaseResampler(rate_in_hz, rate_out_hz, 1)
    square = np.where(np.arange(rate_in_hz) * 400 // rate_in_hz % 2, -32768, 32767).astype(np.int16)
    heard = run(resampler, square[None], rate_in_hz // 200)[0]
    assert heard.max() == 32767
    assert heard.min() == -32768
    # From full scale the least distance to the other full scale is the length of the filter's edge.
    steps = np.abs(np.diff(heard.astype(int)))
    assert steps.max() <= 65535 * 1.3 * min(1, rate_in_hz / rate_out_hz)
    assert np.mean(heard[rate_out_hz // 100 :].astype(float)) == pytest.approx(0, abs=150)


@settings(max_examples=60, deadline=None)
@given(pair=pairs, sizes=st.lists(st.integers(0, 700), min_size=1, max_size=40))
def test_count_is_exact(pair: tuple[int, int], sizes: list[int]) -> None:
    """After any chunks, the number of samples out is that of the time passed."""
    resampler = PolyphaseResampler(*pair, channels=2)
    sent = received = 0
    for size in sizes:
        received += resampler.process(np.zeros((2, size), np.int16)).shape[1]
        sent += size
        assert received == -(-sent * pair[1] // pair[0])


@settings(max_examples=60, deadline=None)
@given(pair=pairs, sizes=st.lists(st.integers(1, 900), min_size=1, max_size=12), seed=st.integers(0, 99))
def test_chunks_do_not_matter(pair: tuple[int, int], sizes: list[int], seed: int) -> None:
    """However audio is cut, the same comes out, but for the last place (the order of float32 sums)."""
    noise = np.random.default_rng(seed).integers(-32768, 32768, (3, 3000)).astype(np.int16)
    whole = run(PolyphaseResampler(*pair, channels=3), noise, 3000)
    cut = run(PolyphaseResampler(*pair, channels=3), noise, sizes)
    assert cut.shape == whole.shape
    assert np.abs(cut.astype(int) - whole).max(initial=0) <= 1


@settings(max_examples=40, deadline=None)
@given(
    pair=pairs,
    rows=st.lists(st.integers(-1, 4), min_size=1, max_size=8),
    seed=st.integers(0, 99),
    size=st.integers(1, 300),
)
def test_remap_keeps_the_kept(pair: tuple[int, int], rows: list[int], seed: int, size: int) -> None:
    """Kept rows go on without a seam, wherever they are put; new rows start from silence."""
    random = np.random.default_rng(seed)
    before = random.integers(-20000, 20000, (5, 2 * size)).astype(np.int16)
    after = random.integers(-20000, 20000, (len(rows), 2 * size)).astype(np.int16)
    moved = PolyphaseResampler(*pair, channels=5)
    run(moved, before, size)
    moved.remap(np.array(rows))
    assert moved.channels == len(rows)
    heard = run(moved, after, size)

    past = np.where(np.array(rows)[:, None] >= 0, before[rows], 0).astype(np.int16)
    straight = PolyphaseResampler(*pair, channels=len(rows))
    expected = run(straight, np.concatenate((past, after), axis=1), size)
    expected = expected[:, expected.shape[1] - heard.shape[1] :]
    assert np.abs(heard.astype(int) - expected).max(initial=0) <= 1


@pytest.mark.parametrize(("rate_in_hz", "rate_out_hz"), PAIRS)
def test_silence_stays_silent(rate_in_hz: int, rate_out_hz: int) -> None:
    """A silent channel hears nothing of its neighbours, and nothing of its own past."""
    resampler = PolyphaseResampler(rate_in_hz, rate_out_hz, 300)
    frames = np.zeros((300, rate_in_hz // 10), np.int16)
    frames[::2] = np.random.default_rng(2).integers(-32768, 32768, frames[::2].shape)
    heard = run(resampler, frames, rate_in_hz // 200)
    assert heard[::2].any(axis=1).all()
    assert not heard[1::2].any()
    ended = run(resampler, np.zeros_like(frames), rate_in_hz // 200)
    assert not ended[:, rate_out_hz // 200 :].any()


def test_large_batch_equals_single_channels() -> None:
    """Four hundred channels at once are four hundred times one channel."""
    noise = np.random.default_rng(3).integers(-20000, 20000, (400, 400)).astype(np.int16)
    batch = run(PolyphaseResampler(8000, 48000, 400), noise, 40)
    for row in (0, 133, 134, 267, 268, 399):
        single = run(PolyphaseResampler(8000, 48000, 1), noise[row : row + 1], 40)[0]
        assert np.abs(batch[row].astype(int) - single).max(initial=0) <= 1


@pytest.mark.parametrize(("rate_in_hz", "rate_out_hz"), PAIRS)
def test_against_soxr(rate_in_hz: int, rate_out_hz: int) -> None:
    """Noise with the long-term spectrum of speech comes out as from soxr's best, 60 dB under the speech."""
    seconds = 1
    random = np.random.default_rng(4)
    spectrum = np.fft.rfft(random.standard_normal(rate_in_hz * seconds))
    frequency_hz = np.fft.rfftfreq(rate_in_hz * seconds, 1 / rate_in_hz)
    nyquist_hz = min(rate_in_hz, rate_out_hz) / 2
    spectrum *= (frequency_hz > 80) * (frequency_hz < 0.85 * nyquist_hz) / (1 + (frequency_hz / 600) ** 2)
    speech = np.fft.irfft(spectrum, rate_in_hz * seconds)
    samples = np.rint(speech * 20000 / np.abs(speech).max()).astype(np.int16)

    resampler = PolyphaseResampler(rate_in_hz, rate_out_hz, 1)
    heard = run(resampler, samples[None], rate_in_hz // 200)[0].astype(float)
    # Align by the documented delay, a fraction of a sample too: turn the phase of each frequency.
    turn = 2j * np.pi * np.fft.rfftfreq(len(heard), 1 / rate_out_hz) * resampler.delay_ms / 1000
    aligned = np.fft.irfft(np.fft.rfft(heard) * np.exp(turn), len(heard))
    reference = resample_whole(samples, rate_in_hz, rate_out_hz).astype(float)
    middle = slice(rate_out_hz // 10, -rate_out_hz // 10)
    aligned, reference = aligned[middle], reference[middle]
    assert np.corrcoef(aligned, reference)[0, 1] > 0.99999
    assert 10 * np.log10(np.mean((aligned - reference) ** 2) / np.mean(reference**2)) <= -60
