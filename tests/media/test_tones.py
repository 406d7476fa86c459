# SPDX-License-Identifier: GPL-3.0-or-later
"""Tones: their pitch and level, that nothing breaks between reads, and that nothing clicks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sipbridge.media.dtmf import KEYS, DtmfDetector
from sipbridge.media.tones import Clip, Tone, busy, dtmf_samples, hint, ringback
from tests.support.audio import find_tone, frame_levels, level_dbfs, tone_level_dbfs

RATES_HZ = (8000, 16000, 44100, 48000)


def loudest_click_dbfs(samples: NDArray[np.int16], rate_hz: int) -> float:
    """Level of the loudest 5 ms above 2 kHz, where a tone of some hundred hertz has nothing."""
    spectrum = np.fft.rfft(np.concatenate((np.zeros(rate_hz // 10), samples, np.zeros(rate_hz // 10))))
    spectrum[: len(spectrum) * 2 * 2000 // rate_hz] = 0
    return 20 * float(np.log10(frame_levels(np.fft.irfft(spectrum), rate_hz, 5).max() / 32768))


@pytest.mark.parametrize("rate_hz", RATES_HZ)
def test_tone(rate_hz: int) -> None:
    """A tone has its frequency and its level, and no harmonics."""
    heard = Tone(1000, rate_hz, -20).read(rate_hz)
    assert find_tone(heard, rate_hz) == pytest.approx(1000, abs=1)
    assert level_dbfs(heard) == pytest.approx(-20, abs=0.05)
    assert tone_level_dbfs(heard, rate_hz, 3000) < -90


def test_loudest_tone_does_not_wrap() -> None:
    """Full scale is the most there is."""
    heard = Tone(300, 8000, 0).read(8000)
    assert abs(int(heard.max())) == 32767
    assert level_dbfs(heard) == pytest.approx(-3, abs=0.05)


def test_tone_beyond_the_rate_is_silent() -> None:
    """A frequency that the rate cannot carry is not heard as another one."""
    assert not Tone(4000, 8000).read(800).any()
    assert Tone(4000, 16000).read(800).any()


@settings(max_examples=30, deadline=None)
@given(
    counts=st.lists(st.integers(0, 400), min_size=1, max_size=20),
    frequency_hz=st.floats(50, 3900),
)
def test_tone_goes_on_between_reads(counts: list[int], frequency_hz: float) -> None:
    """Read piece by piece, it is the same tone, to the last place."""
    tone = Tone(frequency_hz, 8000, -10)
    pieces = np.concatenate([tone.read(count) for count in counts])
    whole = Tone(frequency_hz, 8000, -10).read(len(pieces))
    assert np.abs(pieces.astype(int) - whole).max(initial=0) <= 1


@settings(max_examples=40, deadline=None)
@given(
    length=st.integers(0, 50),
    counts=st.lists(st.integers(0, 120), min_size=1, max_size=20),
    loop=st.booleans(),
)
def test_clip(length: int, counts: list[int], loop: bool) -> None:
    """A clip gives its samples in order, once, or again and again without a gap."""
    samples = np.arange(length, dtype=np.int16)
    clip = Clip(samples, loop)
    pieces = [clip.read(count) for count in counts]
    total = sum(counts)
    if loop and length:
        assert [len(piece) for piece in pieces] == counts
        np.testing.assert_array_equal(np.concatenate(pieces), np.arange(total) % length)
    else:
        np.testing.assert_array_equal(np.concatenate(pieces), samples[:total])


@pytest.mark.parametrize("rate_hz", RATES_HZ)
def test_ringback(rate_hz: int) -> None:
    """425 Hz, one second on and four off, for ever, without a click."""
    heard = ringback(rate_hz).read(11 * rate_hz)
    loud = frame_levels(heard, rate_hz) > 1000
    np.testing.assert_array_equal(loud, np.arange(1100) % 500 < 100)
    assert find_tone(heard[:rate_hz], rate_hz) == pytest.approx(425, abs=1)
    assert level_dbfs(heard[:rate_hz]) == pytest.approx(-16, abs=0.2)
    assert loudest_click_dbfs(heard[: 2 * rate_hz], rate_hz) < -65


def test_busy() -> None:
    """425 Hz, half a second on and half a second off."""
    loud = frame_levels(busy(8000).read(24000), 8000) > 1000
    np.testing.assert_array_equal(loud, np.arange(300) % 100 < 50)


def test_calls_do_not_share_a_position() -> None:
    """Each call hears its own ringing from the start."""
    first = ringback(8000)
    first.read(12345)
    assert ringback(8000).read(800).any()
    with pytest.raises(ValueError, match="read-only"):
        first.read(10)[:] = 1


@pytest.mark.parametrize("rate_hz", RATES_HZ)
def test_hint(rate_hz: int) -> None:
    """Short, soft, over, and without a click."""
    clip = hint(rate_hz)
    heard = clip.read(rate_hz)
    assert len(heard) == round(0.4 * rate_hz)
    assert len(clip.read(1)) == 0
    assert -36 < level_dbfs(heard) < -30
    assert heard[0] == 0
    assert loudest_click_dbfs(heard, rate_hz) < -85


@pytest.mark.parametrize("rate_hz", RATES_HZ)
def test_dtmf(rate_hz: int) -> None:
    """Each digit is found, and a pause is a pause."""
    samples = dtmf_samples(KEYS.lower(), rate_hz)
    assert len(samples) == pytest.approx(16 * 0.2 * rate_hz, abs=16)
    found = DtmfDetector(rate_hz, 1).process(np.concatenate((samples, np.zeros(rate_hz, np.int16)))[None])
    assert "".join(digit for _, digit in found) == KEYS
    paused = dtmf_samples("1w2", rate_hz)
    assert len(paused) == pytest.approx(0.9 * rate_hz, abs=3)
    assert not paused[round(0.1 * rate_hz) + 1 : round(0.7 * rate_hz) - 1].any()


def test_dtmf_refuses_what_has_no_tone() -> None:
    """A character that no key has is named."""
    assert len(dtmf_samples("", 8000)) == 0
    with pytest.raises(ValueError, match="'x'"):
        dtmf_samples("12x", 8000)
