# SPDX-License-Identifier: GPL-3.0-or-later
"""Each measure finds what it looks for, and does not find it where it is not."""

from pathlib import Path

import numpy as np
import pytest

from tests.support import audio
from tests.support.codecs import Pcmu, Samples


def test_tone_level_is_that_of_the_tone() -> None:
    """A tone of -12 dBFS reads -12 dBFS, and noise beside it changes that little."""
    rng = np.random.default_rng(1)
    tone = audio.tone(1000, 1.0, level_dbfs=-12)
    noise = rng.normal(0, 300, len(tone)).astype(np.int16)
    assert audio.tone_level_dbfs(tone, 8000, 1000) == pytest.approx(-12, abs=0.1)
    assert audio.tone_level_dbfs(tone + noise, 8000, 1000) == pytest.approx(-12, abs=0.2)


def test_tone_levels_follow_a_shifting_tone() -> None:
    """A splice by half a turn ruins the level of the whole, and hardly that of the pieces; a hole shows."""
    tone = audio.tone(1000, 2.0, level_dbfs=-15)
    spliced = np.concatenate((tone[:8000], tone[8004:]))
    assert audio.tone_level_dbfs(spliced, 8000, 1000) < -30
    assert np.median(audio.tone_levels_dbfs(spliced, 8000, 1000)) == pytest.approx(-15, abs=0.1)
    tone[4000:4800] = 0
    assert np.min(audio.tone_levels_dbfs(tone, 8000, 1000)) < -60


def test_tone_level_elsewhere_is_low() -> None:
    """At another frequency, in silence and in nothing there is no tone."""
    tone = audio.tone(1000, 1.0)
    assert audio.tone_level_dbfs(tone, 8000, 1500) < -80
    assert audio.tone_level_dbfs(audio.silence(1.0), 8000, 1000) == -120
    assert audio.tone_level_dbfs(tone[:0], 8000, 1000) == -120


@pytest.mark.parametrize("hz", [300.0, 440.0, 1000.0, 3400.0])
def test_find_tone(hz: float) -> None:
    """The strongest frequency is found to within 1 Hz."""
    assert audio.find_tone(audio.tone(hz, 1.0), 8000) == pytest.approx(hz, abs=1.0)


def test_find_tone_in_silence_is_zero() -> None:
    """Silence has no frequency."""
    assert audio.find_tone(audio.silence(1.0), 8000) == 0


def test_gap_is_found() -> None:
    """A hole of 30 ms in a tone is one gap of that length at that place."""
    tone = audio.tone(1000, 1.0)
    tone[4000:4240] = 0
    assert audio.gaps_ms(tone, 8000) == [(500.0, 30.0)]


def test_no_gap_in_a_whole_tone() -> None:
    """A steady tone has none, and neither has nothing at all."""
    assert audio.gaps_ms(audio.tone(1000, 1.0), 8000) == []
    assert audio.gaps_ms(audio.silence(0), 8000) == []


def test_steady_part_keeps_gaps_within() -> None:
    """Silence around a tone goes, a hole inside it stays."""
    whole = np.concatenate((audio.silence(0.5), audio.tone(1000, 1.0), audio.silence(0.5)))
    whole[8000:8400] = 0
    part = audio.steady_part(whole, 8000)
    assert len(part) == 8000
    assert audio.gaps_ms(part, 8000) == [(500.0, 50.0)]
    assert len(audio.steady_part(audio.silence(1.0), 8000)) == 0


def test_splice_is_a_phase_jump() -> None:
    """Two samples cut out of a tone of 1 kHz turn its phase by a quarter; an even tone never jumps."""
    tone = audio.tone(1000, 1.0)
    assert audio.phase_jumps(tone, 8000, 1000) == []
    assert audio.phase_jumps(np.concatenate((tone[:4003], tone[4005:])), 8000, 1000) != []
    # A clock off by 200 ppm is no splice.
    assert audio.phase_jumps(audio.tone(1000.2, 1.0), 8000, 1000) == []


def faded_splice(tone: Samples, at: int, cut: int, size: int) -> Samples:
    """A tone out of which `cut` samples are taken, faded over `size` samples."""
    fade = np.linspace(0, 1, size)
    middle = tone[at : at + size] * (1 - fade) + tone[at + cut : at + cut + size] * fade
    return np.concatenate((tone[:at], middle.astype(np.int16), tone[at + cut + size :]))


@pytest.mark.parametrize("cut", [1, 2, 3, 4])
def test_click_is_a_hard_splice(cut: int) -> None:
    """Samples cut out of a tone are a click at that place; faded over 5 ms they are none."""
    tone = audio.tone(1000, 1.0)
    hard = audio.clicks(np.concatenate((tone[:4003], tone[4003 + cut :])), 8000, 1000)
    assert hard != []
    assert hard == pytest.approx([500.5] * len(hard), abs=1.0)
    assert audio.clicks(faded_splice(tone, 4003, cut, 40), 8000, 1000) == []


def test_no_click_in_a_coded_tone() -> None:
    """The noise of µ-law is none, loud or quiet."""
    codec = Pcmu()
    for level_dbfs in (-6, -12, -20):
        coded = codec.decode(codec.encode(audio.tone(1000, 1.0, level_dbfs=level_dbfs)))
        assert audio.clicks(coded, 8000, 1000) == []


def test_correlation_of_a_delayed_copy() -> None:
    """Speech that comes back later, softer and with some noise is recognised, and its delay measured."""
    sent = audio.speech(3.0)
    rng = np.random.default_rng(2)
    heard = np.concatenate((audio.silence(0.25), sent // 2, audio.silence(0.5)))
    heard = heard + rng.normal(0, 50, len(heard)).astype(np.int16)
    delay_s, correlation = audio.align_and_correlate(sent, heard, 8000)
    assert delay_s == pytest.approx(0.25, abs=0.0002)
    assert correlation > 0.97


def test_correlation_when_the_start_was_missed() -> None:
    """A recording that began a second late still matches, with a negative delay."""
    sent = audio.speech(3.0)
    delay_s, correlation = audio.align_and_correlate(sent, sent[8000:], 8000)
    assert delay_s == pytest.approx(-1.0, abs=0.0002)
    assert correlation > 0.99


def test_correlation_of_other_speech_is_low() -> None:
    """Other words, silence and an echo of something else do not pass for what was sent."""
    sent = audio.speech(3.0, voice=0)
    assert audio.align_and_correlate(sent, audio.speech(3.0, voice=2), 8000)[1] < 0.5
    assert audio.align_and_correlate(sent, audio.silence(3.0), 8000) == (0.0, 0.0)


def test_correlation_falls_with_holes() -> None:
    """Every fourth frame lost is seen."""
    sent = audio.speech(3.0)
    heard = sent.copy().reshape(-1, 160)
    heard[::4] = 0
    assert audio.align_and_correlate(sent, heard.reshape(-1), 8000)[1] < 0.95


def test_likeness_forgives_a_slow_clock() -> None:
    """A copy that is shifted a little on its way is a copy, where the correlation of the whole is not."""
    sent = audio.speech(4.0)
    heard = np.concatenate((audio.silence(0.2), sent[:12_000], sent[12_020:20_000], sent[20_013:]))
    assert audio.align_and_correlate(sent, heard, 8000)[1] < 0.9
    assert audio.likeness(sent, heard, 8000) > 0.95


def test_likeness_of_something_else_is_low() -> None:
    """Other speech, silence, a tone, missing frames and a missing half do not pass."""
    sent = audio.speech(4.0)
    assert audio.likeness(sent, audio.speech(4.0, voice=2), 8000) < 0.5
    assert audio.likeness(sent, audio.silence(4.0), 8000) == 0
    assert audio.likeness(sent, audio.tone(200, 4.0), 8000) < 0.5
    holed = sent.copy().reshape(-1, 160)
    holed[::4] = 0
    assert audio.likeness(sent, holed.reshape(-1), 8000) < 0.95
    half = sent.copy()
    half[16_000:] = 0
    assert audio.likeness(sent, half, 8000) < 0.8


def test_likeness_of_a_part() -> None:
    """Two seconds out of ten are recognised as such; silence in the place of sound counts as missing."""
    sent = audio.speech(10.0)
    part = sent[24_000:40_000]
    assert audio.likeness(sent, part, 8000) > 0.98
    assert audio.likeness(sent, np.concatenate((audio.silence(0.4), part)), 8000) < 0.9


def test_speech_is_speech() -> None:
    """It is loud enough to be heard, differs by voice, and comes at the rate asked for."""
    assert -40 < audio.level_dbfs(audio.speech(3.0)) < -10
    assert len(audio.speech(1.0, 16_000)) == 16_000
    assert not np.array_equal(audio.speech(1.0, voice=0), audio.speech(1.0, voice=1))


def test_snr() -> None:
    """Equal signals have no noise; half the level of error is 6 dB."""
    tone = audio.tone(500, 1.0)
    assert audio.snr_db(tone, tone) == float("inf")
    assert audio.snr_db(tone, tone // 2) == pytest.approx(6.0, abs=0.1)


def test_wav_round_trip(tmp_path: Path) -> None:
    """What is written is read again."""
    samples = audio.speech(0.5)
    path = audio.write_wav(tmp_path / "a.wav", samples)
    again, rate_hz = audio.read_wav(path)
    assert rate_hz == 8000
    np.testing.assert_array_equal(again, samples)
