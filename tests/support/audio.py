# SPDX-License-Identifier: GPL-3.0-or-later
"""What is heard: levels, tones, gaps and likeness. Samples are int16 arrays of shape (n,)."""

import math
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.signal import fftconvolve, resample_poly

from tests.support.codecs import Samples

_FULL_SCALE = 32_768.0
_SILENT_DBFS = -120.0
# Debian's asterisk-core-sounds-en-wav: spoken English, 8 kHz.
_SPEECH_DIRECTORY = Path("/usr/share/asterisk/sounds/en")
_SPEECH_FILES = ("demo-congrats.wav", "demo-echotest.wav", "conf-adminmenu.wav", "vm-options.wav")


def tone(hz: float, seconds: float, rate_hz: int = 8000, level_dbfs: float = -12.0) -> Samples:
    """A sine; `level_dbfs` is that of its RMS, where a full-scale sine has -3 dBFS."""
    peak = _FULL_SCALE * 10 ** (level_dbfs / 20) * np.sqrt(2)
    time_s = np.arange(round(seconds * rate_hz)) / rate_hz
    samples: Samples = np.round(peak * np.sin(2 * np.pi * hz * time_s)).astype(np.int16)
    return samples


def silence(seconds: float, rate_hz: int = 8000) -> Samples:
    """Zeros."""
    return np.zeros(round(seconds * rate_hz), dtype=np.int16)


def speech(seconds: float, rate_hz: int = 8000, voice: int = 0) -> Samples:
    """Recorded speech; two values of `voice` give different words. It loops at its end."""
    parts = [read_wav(_SPEECH_DIRECTORY / name)[0] for name in _SPEECH_FILES]
    whole = np.concatenate(parts[voice:] + parts[:voice])
    # The first words start at once, so that a short piece is not mostly silence.
    whole = whole[int(np.argmax(np.abs(whole) > 1000)) :]
    wanted = round(seconds * 8000)
    piece = np.resize(whole, wanted)
    return resample(piece, 8000, rate_hz)


def resample(samples: Samples, rate_in_hz: int, rate_out_hz: int) -> Samples:
    """The same sound at another rate."""
    if rate_in_hz == rate_out_hz:
        return samples
    common = math.gcd(rate_in_hz, rate_out_hz)
    resampled = resample_poly(samples.astype(np.float64), rate_out_hz // common, rate_in_hz // common)
    return np.clip(np.round(resampled), -32_768, 32_767).astype(np.int16)


def read_wav(path: Path) -> tuple[Samples, int]:
    """Samples of the first channel and the rate of a 16-bit WAV file."""
    with wave.open(str(path)) as source:
        assert source.getsampwidth() == 2, f"{path}: not 16 bits"
        data = np.frombuffer(source.readframes(source.getnframes()), dtype="<i2")
        return data[:: source.getnchannels()].astype(np.int16), source.getframerate()


def write_wav(path: Path, samples: Samples, rate_hz: int = 8000, channels: int = 1) -> Path:
    """Write 16 bits, the same in each channel; gives `path` back."""
    with wave.open(str(path), "wb") as sink:
        sink.setnchannels(channels)
        sink.setsampwidth(2)
        sink.setframerate(rate_hz)
        sink.writeframes(np.repeat(samples.astype("<i2"), channels).tobytes())
    return path


def rms(samples: Samples) -> float:
    """Root mean square, in units of int16."""
    return float(np.sqrt(np.mean(samples.astype(np.float64) ** 2))) if len(samples) else 0.0


def level_dbfs(samples: Samples) -> float:
    """RMS over full scale, floored at -120."""
    value = rms(samples)
    return max(_SILENT_DBFS, 20 * float(np.log10(value / _FULL_SCALE))) if value else _SILENT_DBFS


def tone_level_dbfs(samples: Samples, rate_hz: int, hz: float) -> float:
    """RMS level of the part of `samples` at `hz` alone (a single Fourier bin, Hann-windowed)."""
    if not len(samples):
        return _SILENT_DBFS
    window = np.hanning(len(samples))
    turn = np.exp(-2j * np.pi * hz * np.arange(len(samples)) / rate_hz)
    amplitude = 2 * abs(np.sum(samples * window * turn)) / np.sum(window)
    value = amplitude / np.sqrt(2) / _FULL_SCALE
    return max(_SILENT_DBFS, 20 * float(np.log10(value))) if value > 0 else _SILENT_DBFS


def tone_levels_dbfs(samples: Samples, rate_hz: int, hz: float, piece_s: float = 0.1) -> NDArray[np.float64]:
    """`tone_level_dbfs` of each piece: over a long time, a phase that shifts would cancel itself out."""
    size = round(piece_s * rate_hz)
    starts = range(0, len(samples) - size + 1, size)
    return np.array([tone_level_dbfs(samples[start : start + size], rate_hz, hz) for start in starts])


def usual_level_dbfs(samples: Samples, rate_hz: int, hz: float) -> float:
    """Of a tone, in most pieces of 50 ms: a mix may be read 0.2 % faster or slower for some seconds."""
    return float(np.median(tone_levels_dbfs(samples, rate_hz, hz, 0.05)))


def find_tone(samples: Samples, rate_hz: int) -> float:
    """The strongest frequency, in Hz, to about 1 Hz for a second of audio; 0 for silence."""
    if not len(samples) or not np.any(samples):
        return 0.0
    size = 4 * len(samples)
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)), size))
    spectrum[: int(20 * size / rate_hz)] = 0
    return float(np.argmax(spectrum) * rate_hz / size)


def near(hz: float) -> Any:
    """Equal to a tone that came over real clocks: a queue may play it 0.2 % faster or slower for a while."""
    return pytest.approx(hz, rel=0.004, abs=3)


def frame_levels(samples: Samples, rate_hz: int, frame_ms: float = 10.0) -> NDArray[np.float64]:
    """RMS of each whole frame."""
    size = round(rate_hz * frame_ms / 1000)
    count = len(samples) // size
    frames = samples[: count * size].reshape(count, size).astype(np.float64)
    return np.asarray(np.sqrt(np.mean(frames**2, axis=1)))


def gaps_ms(samples: Samples, rate_hz: int) -> list[tuple[float, float]]:
    """(start, length) of each stretch of 10 ms frames under 25 % of the median RMS; for a steady tone."""
    levels = frame_levels(samples, rate_hz)
    if not len(levels):
        return []
    low = levels < 0.25 * float(np.median(levels))
    edges = np.flatnonzero(np.diff(np.concatenate(([False], low, [False])).astype(np.int8)))
    return [(10.0 * start, 10.0 * (end - start)) for start, end in zip(edges[::2], edges[1::2], strict=True)]


def steady_part(samples: Samples, rate_hz: int, threshold_dbfs: float = -40.0) -> Samples:
    """From the first to the last loud 10 ms frame: no silence before and after, all gaps within."""
    levels = frame_levels(samples, rate_hz)
    loud = np.flatnonzero(levels > _FULL_SCALE * 10 ** (threshold_dbfs / 20))
    size = round(rate_hz * 0.010)
    return samples[loud[0] * size : (loud[-1] + 1) * size] if len(loud) else samples[:0]


def phase_jumps(samples: Samples, rate_hz: int, hz: float, limit_rad: float = 0.3) -> list[float]:
    """Times in ms at which the phase of a steady tone steps by more than `limit_rad` between 10 ms frames."""
    size = round(rate_hz * 0.010)
    count = len(samples) // size
    turn = np.exp(-2j * np.pi * hz * np.arange(count * size) / rate_hz)
    phases = np.angle((samples[: count * size] * turn).reshape(count, size).sum(axis=1))
    steps = np.angle(np.exp(1j * np.diff(phases)))
    # A frequency a little off turns the phase evenly: only what differs from the usual step is a splice.
    jumps = np.abs(np.angle(np.exp(1j * (steps - np.median(steps))))) > limit_rad
    return [10.0 * (index + 1) for index in np.flatnonzero(jumps)]


def clicks(samples: Samples, rate_hz: int, hz: float, limit_db: float = -20.0) -> list[float]:
    """Times in ms at which a steady tone at `hz` breaks off or jumps from one sample to the next.

    What two samples of a sine foretell of the third is subtracted; a rest above `limit_db` of the tone's
    amplitude is a click. A change that is faded over some milliseconds is none.
    """
    x = samples.astype(np.float64)
    turn = 2 * np.cos(2 * np.pi * hz / rate_hz)
    rest = np.abs(x[2:] - turn * x[1:-1] + x[:-2])
    # The most that a jump between two places of the sine can leave is its amplitude, and some more.
    found = np.flatnonzero(rest > np.sqrt(2) * rms(samples) * 10 ** (limit_db / 20))
    return [float(1000 * (index + 2) / rate_hz) for index in found]


def align_and_correlate(sent: Samples, heard: Samples, rate_hz: int) -> tuple[float, float]:
    """Where `sent` best fits into `heard`: (delay in seconds, normalised correlation there, 0 to 1).

    `heard` may start earlier and go on longer than `sent`. The correlation is taken over the part of
    `sent` that lies inside `heard`; alignments that overlap less than half of `sent` are not looked at.
    """
    a = sent.astype(np.float64)
    b = heard.astype(np.float64)
    if not np.any(a) or not np.any(b):
        return 0.0, 0.0
    products = fftconvolve(b, a[::-1])
    # Index i of products is the lag i - (len(a) - 1) of heard behind sent.
    lags = np.arange(len(products)) - (len(a) - 1)
    energy_a = np.concatenate(([0.0], np.cumsum(a**2)))
    energy_b = np.concatenate(([0.0], np.cumsum(b**2)))
    start_a = np.clip(-lags, 0, len(a))
    end_a = np.clip(len(b) - lags, 0, len(a))
    power_a = energy_a[end_a] - energy_a[start_a]
    power_b = energy_b[np.clip(end_a + lags, 0, len(b))] - energy_b[np.clip(start_a + lags, 0, len(b))]
    valid = (end_a - start_a >= min(len(a), len(b)) / 2) & (power_a > 0) & (power_b > 1e-3 * power_a)
    scores = np.where(valid, products / np.sqrt(np.maximum(power_a * power_b, 1.0)), 0.0)
    best = int(np.argmax(scores))
    return float(lags[best] / rate_hz), float(scores[best])


def likeness(
    sent: Samples, heard: Samples, rate_hz: int, piece_s: float = 0.1, slack_s: float = 0.05
) -> float:
    """How much what is heard is what was sent: the correlation by pieces, 1 for a perfect copy.

    A bridge that follows the sender's clock shifts audio by fractions of a millisecond now and then. Nobody
    hears that, but it ruins the correlation of the whole. So each piece of `heard` may lie up to `slack_s`
    beside the place where the whole fits best. Pieces count by the energy of what was sent there; what lies
    outside of `sent` does not count.
    """
    delay_s, _ = align_and_correlate(sent, heard, rate_hz)
    size, slack = round(piece_s * rate_hz), round(slack_s * rate_hz)
    total = weights = 0.0
    for start in range(0, len(heard) - size + 1, size):
        place = start - round(delay_s * rate_hz)
        region = sent[max(place - slack, 0) : max(place + size + slack, 0)]
        if len(region) < size + slack:
            continue
        weight = rms(region) ** 2
        total += weight * align_and_correlate(heard[start : start + size], region, rate_hz)[1]
        weights += weight
    return total / weights if weights else 0.0


def snr_db(sent: Samples, heard: Samples) -> float:
    """Of two aligned signals of one length: the level of `sent` over that of the difference."""
    noise = np.mean((heard.astype(np.float64) - sent.astype(np.float64)) ** 2)
    signal = np.mean(sent.astype(np.float64) ** 2)
    return float("inf") if noise == 0 else 10 * float(np.log10(signal / noise))
