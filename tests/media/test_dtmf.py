# SPDX-License-Identifier: GPL-3.0-or-later
"""Which tones are heard as digits, and that speech is not."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sipbridge.media.dtmf import HIGH_HZ, KEYS, LOW_HZ, DtmfDetector

# Debian's asterisk-core-sounds-en-wav, which set-up installs: some 25 minutes of spoken English, 8 kHz.
SPEECH = Path("/usr/share/asterisk/sounds/en_US_f_Allison")
DBM0_PEAK = 32768 * 10 ** (-3.17 / 20)


def detect(detector: DtmfDetector, samples: NDArray[np.int16], size: int = 40) -> list[tuple[int, str]]:
    """Feed (channels, n) tick by tick."""
    found = []
    for start in range(0, samples.shape[1], size):
        found += detector.process(samples[:, start : start + size])
    return found


def heard(samples: NDArray[np.int16], rate_hz: int = 8000) -> str:
    """Digits found in one channel."""
    return "".join(digit for _, digit in detect(DtmfDetector(rate_hz, 1), samples[None], rate_hz // 200))


def press(
    digits: str,
    *,
    rate_hz: int = 8000,
    on_ms: float = 60,
    off_ms: float = 40,
    level_dbm0: float = -10,
    twist_db: float = 0,
    off_frequency: float = 0,
    snr_db: float | None = None,
    seed: int = 0,
) -> NDArray[np.int16]:
    """Key presses; `level_dbm0` is that of the louder tone, a positive twist weakens the low one."""
    random = np.random.default_rng(seed)
    on, off = round(on_ms * rate_hz / 1000), round(off_ms * rate_hz / 1000)
    peak = DBM0_PEAK * 10 ** (level_dbm0 / 20)
    # Presses begin anywhere between the detector's windows.
    parts = [np.zeros(int(random.integers(rate_hz // 50, rate_hz // 40)))]
    for digit in digits:
        low, high = divmod(KEYS.index(digit), 4)
        turn = 2 * np.pi * (1 + off_frequency) * np.arange(on) / rate_hz
        tone = peak * 10 ** (-max(twist_db, 0) / 20) * np.sin(turn * LOW_HZ[low] + random.uniform(0, 6))
        tone += peak * 10 ** (min(twist_db, 0) / 20) * np.sin(turn * HIGH_HZ[high] + random.uniform(0, 6))
        parts += [tone, np.zeros(off)]
    parts.append(np.zeros(rate_hz // 20))
    samples = np.concatenate(parts)
    if snr_db is not None:
        sounding = np.mean(np.concatenate(parts[1:-1:2]) ** 2)
        samples += random.standard_normal(len(samples)) * np.sqrt(sounding / 10 ** (snr_db / 10))
    return np.rint(samples).astype(np.int16)


@pytest.mark.parametrize("rate_hz", [8000, 16000, 44100, 48000])
def test_all_digits(rate_hz: int) -> None:
    """Each key is found once, in order, at each rate."""
    assert heard(press(KEYS, rate_hz=rate_hz), rate_hz) == KEYS


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("twist_db", [-8, 0, 4])
@pytest.mark.parametrize("off_frequency", [-0.015, 0, 0.015])
def test_short_soft_noisy(seed: int, twist_db: float, off_frequency: float) -> None:
    """60 ms on and 40 ms off at -25 dBm0, 20 dB above noise, with the tolerances that Q.24 asks for."""
    # The highest tone, 1.5 % off, loses 2 dB; with all power on it that is too much. No telephone has A to D.
    keys = "1234567890*#" if off_frequency and twist_db > 0 else KEYS
    samples = press(
        keys, level_dbm0=-25, snr_db=20, twist_db=twist_db, off_frequency=off_frequency, seed=seed
    )
    assert heard(samples) == keys


@pytest.mark.parametrize("seed", range(5))
def test_the_same_digit_again(seed: int) -> None:
    """A pause of 40 ms makes two digits of one; a long press is one digit."""
    assert heard(press("5555", on_ms=60, off_ms=40, snr_db=20, seed=seed)) == "5555"
    assert heard(press("5", on_ms=3000, snr_db=20, seed=seed)) == "5"


def test_hole_in_a_digit() -> None:
    """A lost packet of 20 ms does not make two digits of one."""
    samples = press("7", on_ms=300)
    samples[1200:1360] = 0
    assert heard(samples) == "7"


@pytest.mark.parametrize(
    "samples",
    [
        press(KEYS, on_ms=20),
        press(KEYS, on_ms=100, off_frequency=0.035),
        press(KEYS, on_ms=100, off_frequency=-0.035),
        press(KEYS, on_ms=100, level_dbm0=-45),
        press(KEYS, on_ms=100, twist_db=12),
        press(KEYS, on_ms=100, twist_db=-14),
        press(KEYS, on_ms=100, snr_db=0),
    ],
    ids=["short", "high", "low", "soft", "high twist", "low twist", "noise"],
)
def test_rejected(samples: NDArray[np.int16]) -> None:
    """What is no digit by Q.24 is none."""
    assert heard(samples) == ""


@pytest.mark.parametrize("frequency_hz", [350, 425, 440, 697, 941, 1209, 1400, 1633, 2100])
def test_single_tones(frequency_hz: float) -> None:
    """Dial tone, ringing, fax answer and one half of a digit are no digits."""
    wave = 12000 * np.sin(2 * np.pi * frequency_hz * np.arange(8000) / 8000)
    assert heard(np.rint(wave).astype(np.int16)) == ""


def test_speech() -> None:
    """No digit in 25 minutes of speech, as it is, loud, and at other pitches."""
    files = [soundfile.read(file, dtype="int16") for file in sorted(SPEECH.rglob("*.wav"))]
    assert len(files) > 300
    speech = np.concatenate([samples for samples, _ in files])
    channels = speech[: len(speech) // 100 * 100].reshape(100, -1)
    assert detect(DtmfDetector(8000, 100), channels, 800) == []
    loud = np.clip(channels.astype(int) * 4, -32768, 32767).astype(np.int16)
    assert detect(DtmfDetector(8000, 100), loud, 800) == []
    for rate_hz in (6000, 7000, 9000, 10000):
        assert detect(DtmfDetector(rate_hz, 100), channels, 800) == []


@settings(max_examples=20, deadline=None)
@given(sizes=st.lists(st.integers(1, 500), min_size=1, max_size=8), seed=st.integers(0, 99))
def test_chunks_do_not_matter(sizes: list[int], seed: int) -> None:
    """However the sound is cut, the same digits are found."""
    samples = press("159D", snr_db=25, seed=seed)
    detector = DtmfDetector(8000, 1)
    found = ""
    start = index = 0
    while start < len(samples):
        size = sizes[index % len(sizes)]
        found += "".join(digit for _, digit in detector.process(samples[None, start : start + size]))
        start, index = start + size, index + 1
    assert found == "159D"


def test_many_channels() -> None:
    """Each channel has its own digit; silent neighbours have none."""
    rows = [press(KEYS[channel % 16], on_ms=80, seed=1) if channel % 3 else None for channel in range(400)]
    length = max(len(row) for row in rows if row is not None)
    samples = np.stack([np.zeros(length, np.int16) if row is None else row for row in rows])
    found = detect(DtmfDetector(8000, 400), samples)
    assert sorted(found) == [(channel, KEYS[channel % 16]) for channel in range(400) if channel % 3]


def test_remap() -> None:
    """A digit that sounds while rows move is found once, in its new row."""
    first, second = press("4", on_ms=120, seed=2), press("8", on_ms=120, seed=2)
    samples = np.stack((first, second, np.zeros_like(first)))
    detector = DtmfDetector(8000, 3)
    found = detect(detector, samples[:, :320])
    detector.remap(np.array([-1, 1, 2, 0]))
    assert detector.channels == 4
    moved = np.stack((np.zeros_like(first), second, np.zeros_like(first), first))
    found += detect(detector, moved[:, 320:])
    assert sorted(found) == [(1, "8"), (3, "4")]
