# SPDX-License-Identifier: GPL-3.0-or-later
"""In-band DTMF, found in the sound of many channels at once.

Each channel is seen through a Hann window of 24 ms that moves by 8 ms: short enough for a digit of 40 ms,
long enough to tell the frequencies of a group, 70 Hz and more apart. One matrix product gives the level at
each of the eight frequencies for all channels. A window holds a digit when the strongest low and the
strongest high tone are loud enough, neither is much louder than the other, and little else sounds, harmonics
of speech included. A digit is reported once, when enough windows in a row hold it.

ITU-T Q.23 (frequencies) and Q.24 (what receivers have to accept and to reject).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LOW_HZ = (697.0, 770.0, 852.0, 941.0)
HIGH_HZ = (1209.0, 1336.0, 1477.0, 1633.0)
KEYS = "123A456B789C*0#D"  # row by row: four high tones for each low one

_WINDOW_S = 0.024
_HOP_S = 0.008
# Both tones over all that sounds, in power. Tones 1.5 % off, the most that Q.24 asks for, leave 0.7 to 0.8.
_LEAST_PURITY = 0.7
_LEAST_POWER = 300**2 / 2  # of each tone: -38 dBm0, in samples of int16
_MOST_HIGH_OVER_LOW = 4.0  # twist, in power: 6 dB
_MOST_LOW_OVER_HIGH = 16.0  # 12 dB: 8 by the telephone, the rest by a high tone off its frequency
_PRESS_WINDOWS = 4  # these take 48 ms, of which the fringes of the outer windows hardly count
_RELEASE_WINDOWS = 5  # a pause of 40 ms shows in five or more; a hole of 20 ms in a digit in less
_NO_KEY = -1
# OpenBLAS splits larger products over threads, and waiting for those can cost the media thread whole ticks.
_ONE_THREAD_PRODUCT = 1 << 18


class DtmfDetector:
    """Listens to `channels` channels of one sample rate; used by one thread."""

    def __init__(self, rate_hz: int, channels: int) -> None:
        self.rate_hz = rate_hz
        self.channels = channels
        self._window_len = round(_WINDOW_S * rate_hz)
        self._hop_len = round(_HOP_S * rate_hz)
        window = np.hanning(self._window_len + 2)[1:-1]
        window /= window.sum()
        # Powers are means weighted by the window; half of it lies on the samples, half in the sines.
        self._weight = np.sqrt(window).astype(np.float32)
        turn = 2 * np.pi / rate_hz * np.outer(np.arange(self._window_len), LOW_HZ + HIGH_HZ)
        sines = np.concatenate((np.cos(turn), np.sin(turn)), axis=1) * np.sqrt(2 * window)[:, None]
        self._sines = sines.astype(np.float32)
        self._pending = np.zeros((channels, 0), np.int16)
        # Of each channel: the key in the last window, in how many windows in a row, the key that is held
        # down, and for how many windows it has not been seen.
        self._key = np.full(channels, _NO_KEY)
        self._key_windows = np.zeros(channels, int)
        self._held = np.full(channels, _NO_KEY)
        self._missed_windows = np.zeros(channels, int)

    def process(self, frames: NDArray[np.int16]) -> list[tuple[int, str]]:
        """Listen to (channels, n) more samples; give (channel, digit) for each key found pressed.

        A digit is found some 40 ms after it began, and again only after a pause of at least 40 ms.
        """
        self._pending = np.concatenate((self._pending, frames), axis=1)
        found = []
        while self._pending.shape[1] >= self._window_len:
            found += self._judge(self._keys(self._pending[:, : self._window_len]))
            self._pending = self._pending[:, self._hop_len :]
        return found

    def remap(self, rows: NDArray[np.intp]) -> None:
        """Make row i the continuation of the old row rows[i], or a fresh silent row where that is -1."""
        fresh = rows < 0
        self.channels = len(rows)
        self._pending = self._pending[rows]
        self._pending[fresh] = 0
        self._key = np.where(fresh, _NO_KEY, self._key[rows])
        self._key_windows = np.where(fresh, 0, self._key_windows[rows])
        self._held = np.where(fresh, _NO_KEY, self._held[rows])
        self._missed_windows = np.where(fresh, 0, self._missed_windows[rows])

    def _keys(self, samples: NDArray[np.int16]) -> NDArray[np.intp]:
        """Index into KEYS of the digit that sounds in a window (channels, window), or _NO_KEY."""
        weighted = samples * self._weight
        total = np.einsum("cn,cn->c", weighted, weighted)
        parts = np.empty((len(weighted), self._sines.shape[1]), np.float32)
        step = max(1, _ONE_THREAD_PRODUCT // self._sines.size)
        for row in range(0, len(weighted), step):
            np.matmul(weighted[row : row + step], self._sines, out=parts[row : row + step])
        powers = (parts * parts).reshape(len(parts), 2, 2, 4).sum(axis=1)  # cosine and sine
        strongest = powers.argmax(axis=2)
        low, high = powers.max(axis=2).T
        sounds = (
            (np.minimum(low, high) >= _LEAST_POWER)
            & (high <= _MOST_HIGH_OVER_LOW * low)
            & (low <= _MOST_LOW_OVER_HIGH * high)
            & (low + high >= _LEAST_PURITY * total)
        )
        return np.where(sounds, len(HIGH_HZ) * strongest[:, 0] + strongest[:, 1], _NO_KEY)

    def _judge(self, key: NDArray[np.intp]) -> list[tuple[int, str]]:
        """Follow one more window of all channels."""
        self._key_windows = np.where(key == self._key, self._key_windows + 1, 1)
        self._key = key
        self._missed_windows = np.where(key == self._held, 0, self._missed_windows + 1)
        self._held[self._missed_windows >= _RELEASE_WINDOWS] = _NO_KEY
        pressed = (key != _NO_KEY) & (key != self._held) & (self._key_windows >= _PRESS_WINDOWS)
        self._held[pressed] = key[pressed]
        self._missed_windows[pressed] = 0
        return [(int(channel), KEYS[key[channel]]) for channel in np.flatnonzero(pressed)]
