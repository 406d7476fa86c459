# SPDX-License-Identifier: GPL-3.0-or-later
"""Tones: streams of int16 samples that start and stop without a click.

Levels are RMS over full scale in dBFS: a sine has at most -3 dBFS, and 0 dBm0 is -6.2 dBFS (ITU-T G.711:
a full-scale sine is +3.17 dBm0 in µ-law, +3.14 in A-law).
"""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray

from sipbridge.media.dtmf import HIGH_HZ, KEYS, LOW_HZ

# ITU-T E.180: 425 Hz at -10 dBm0; the cadences are those of most of Europe.
_CALL_PROGRESS_HZ = 425.0
_CALL_PROGRESS_DBFS = -16.0
_RINGBACK_S = (1.0, 4.0)
_BUSY_S = (0.5, 0.5)

_HINT_HZ = 440.0
_HINT_DBFS = -30.0
_HINT_S = 0.4
_HINT_FADE_S = 0.1

# ITU-T Q.23 and Q.24; high group 2 dB above low, as a line takes more of the high frequencies.
_DTMF_LOW_DBFS = -16.2
_DTMF_HIGH_DBFS = -14.2
_DTMF_ON_S = 0.1
_DTMF_OFF_S = 0.1
_DTMF_PAUSE_S = 0.5

_FADE_S = 0.005


def _peak(level_dbfs: float) -> float:
    return min(32767.0, 32768 * math.sqrt(2) * 10 ** (level_dbfs / 20))


def _burst(
    partials: list[tuple[float, float]], rate_hz: int, seconds: float, fade_s: float
) -> NDArray[np.int16]:
    """Sum of sines, (frequency in Hz, level in dBFS) each, under raised-cosine fades."""
    time_s = np.arange(round(seconds * rate_hz)) / rate_hz
    wave = np.zeros(len(time_s))
    for frequency_hz, level_dbfs in partials:
        wave += _peak(level_dbfs) * np.sin(2 * np.pi * frequency_hz * time_s)
    fade = 0.5 - 0.5 * np.cos(np.pi * np.arange(round(fade_s * rate_hz)) / (fade_s * rate_hz))
    wave[: len(fade)] *= fade
    wave[len(wave) - len(fade) :] *= fade[::-1]
    return np.rint(wave).astype(np.int16)


class Tone:
    """An endless sine, with no break in phase between reads. Silent where the rate cannot carry it."""

    def __init__(self, frequency_hz: float, rate_hz: int, level_dbfs: float = _CALL_PROGRESS_DBFS) -> None:
        self._step = 2 * math.pi * frequency_hz / rate_hz
        self._peak = _peak(level_dbfs) if 2 * frequency_hz < rate_hz else 0.0
        self._phase = 0.0

    def read(self, count: int) -> NDArray[np.int16]:
        """The next `count` samples, (count,)."""
        wave = self._peak * np.sin(self._phase + self._step * np.arange(count))
        self._phase = (self._phase + self._step * count) % (2 * math.pi)
        return np.rint(wave).astype(np.int16)


class Clip:
    """Samples made beforehand, (n,), read piece by piece, once or for ever. Does not copy them."""

    def __init__(self, samples: NDArray[np.int16], loop: bool = False) -> None:
        self._samples = samples
        self._loop = loop and len(samples) > 0
        self._position = 0

    def read(self, count: int) -> NDArray[np.int16]:
        """The next `count` samples; fewer at the end, none after it. Not to be written to."""
        piece = self._samples[self._position : self._position + count]
        self._position += len(piece)
        if len(piece) == count or not self._loop:
            return piece
        missing = count - len(piece)
        self._position = missing % len(self._samples)
        return np.concatenate((piece, np.resize(self._samples, missing)))


@functools.cache
def _cadence(on_s: float, off_s: float, rate_hz: int) -> NDArray[np.int16]:
    """One period, shared by all calls that hear it."""
    burst = _burst([(_CALL_PROGRESS_HZ, _CALL_PROGRESS_DBFS)], rate_hz, on_s, _FADE_S)
    period = np.concatenate((burst, np.zeros(round(off_s * rate_hz), np.int16)))
    period.flags.writeable = False
    return period


def ringback(rate_hz: int) -> Clip:
    """What a caller hears while the called telephone rings: 425 Hz, one second in five, for ever."""
    return Clip(_cadence(*_RINGBACK_S, rate_hz), loop=True)


def busy(rate_hz: int) -> Clip:
    """425 Hz, half a second on, half a second off, for ever."""
    return Clip(_cadence(*_BUSY_S, rate_hz), loop=True)


def hint(rate_hz: int) -> Clip:
    """The short, soft tone that tells a lone member of a room that the line is open."""
    return Clip(_burst([(_HINT_HZ, _HINT_DBFS)], rate_hz, _HINT_S, _HINT_FADE_S))


def dtmf_samples(digits: str, rate_hz: int) -> NDArray[np.int16]:
    """In-band DTMF: each digit 0-9, *, #, A-D sounds 100 ms and is followed by 100 ms of silence.

    A `w` is a pause of half a second; letters in either case. Raises ValueError at anything else.
    """
    parts = [np.zeros(0, np.int16)]
    for digit in digits:
        if digit in "wW":
            parts.append(np.zeros(round(_DTMF_PAUSE_S * rate_hz), np.int16))
            continue
        key = KEYS.find(digit.upper())
        if key < 0:
            raise ValueError(f"no DTMF digit: {digit!r} (0-9, *, #, A-D, and w for a pause)")
        low, high = divmod(key, len(HIGH_HZ))
        partials = [(LOW_HZ[low], _DTMF_LOW_DBFS), (HIGH_HZ[high], _DTMF_HIGH_DBFS)]
        parts.append(_burst(partials, rate_hz, _DTMF_ON_S, _FADE_S))
        parts.append(np.zeros(round(_DTMF_OFF_S * rate_hz), np.int16))
    return np.concatenate(parts)
