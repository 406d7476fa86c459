# SPDX-License-Identifier: GPL-3.0-or-later
"""The soxr library behind the resampler interface, for live audio; and for whole recordings.

soxr gives its output in bursts and holds much of it back. Measured, its qualities for live audio are: QQ, no
delay, but no filter against aliases; LQ, 1-83 ms by rate pair (8 to 16 kHz 62, 8 to 48 kHz 60, 48 to 8 kHz
41, 16 to 48 kHz 21), flat to 70 % of the lower Nyquist frequency; MQ and above, 21-176 ms. The variable-rate
engine, 5-30 ms, loses a quarter of the band when it lowers the rate. So LQ it is.
"""

from __future__ import annotations

import functools

import numpy as np
import soxr
from numpy.typing import NDArray

_TRIAL_S = 2


def _stream(rate_in_hz: int, rate_out_hz: int) -> soxr.ResampleStream:
    # float32, because for int16 soxr adds dither.
    return soxr.ResampleStream(rate_in_hz, rate_out_hz, 1, dtype="float32", quality="LQ")


@functools.cache
def _held_back(rate_in_hz: int, rate_out_hz: int) -> int:
    """Most output samples that a stream of this rate pair ever owes, seen on a trial stream."""
    stream = _stream(rate_in_hz, rate_out_hz)
    chunk = np.zeros(rate_in_hz // 1000, np.float32)
    received = worst = 0
    for sent in range(len(chunk), _TRIAL_S * rate_in_hz, len(chunk)):
        received += len(stream.resample_chunk(chunk))
        worst = max(worst, -(-sent * rate_out_hz // rate_in_hz) - received)
    return worst + -(-len(chunk) * rate_out_hz // rate_in_hz)  # smaller chunks may end anywhere in one


class SoxrResampler:
    """Streaming resampler behind `sipbridge.resample.LiveResampler`; used by one thread at a time.

    One soxr stream a channel. What soxr holds back is bridged by as much silence put in front, so that the
    counts are exact: after n samples in, ceil(n * rate_out_hz / rate_in_hz) have come out. Output sample j is
    the input as it was at j / rate_out_hz - delay_ms / 1000 seconds.
    """

    def __init__(self, rate_in_hz: int, rate_out_hz: int, channels: int) -> None:
        self.rate_in_hz = rate_in_hz
        self.rate_out_hz = rate_out_hz
        self._held_back = _held_back(rate_in_hz, rate_out_hz)
        self._phase = 0  # outputs given beyond the input's time, in steps of 1 / (rate_in_hz * rate_out_hz)
        self._streams: list[soxr.ResampleStream] = []
        self._pending: list[NDArray[np.float32]] = []
        self.remap(np.full(channels, -1))

    @property
    def delay_ms(self) -> float:
        """What soxr holds back; its filters add nothing to that."""
        return 1000 * self._held_back / self.rate_out_hz

    def process(self, frames: NDArray[np.int16]) -> NDArray[np.int16]:
        """Resample (channels, n) to (channels, m), see `LiveResampler`."""
        n = frames.shape[1]
        m = max(0, -((self._phase - n * self.rate_out_hz) // self.rate_in_hz))
        self._phase += m * self.rate_in_hz - n * self.rate_out_hz
        samples = frames.astype(np.float32)
        out = np.zeros((self.channels, m), np.float32)
        for row, stream in enumerate(self._streams):
            ready = np.concatenate((self._pending[row], stream.resample_chunk(samples[row])))
            out[row] = ready[:m]
            self._pending[row] = ready[m:]
        return np.clip(np.rint(out), -32768, 32767).astype(np.int16)

    def remap(self, rows: NDArray[np.intp]) -> None:
        """Make row i the continuation of the old row rows[i], or a fresh silent row where that is -1."""
        silence = np.zeros(self._held_back, np.float32)
        fresh = functools.partial(_stream, self.rate_in_hz, self.rate_out_hz)
        self._streams = [self._streams[row] if row >= 0 else fresh() for row in rows]
        self._pending = [self._pending[row] if row >= 0 else silence for row in rows]
        self.channels = len(rows)


def resample_whole(samples: NDArray[np.int16], rate_in_hz: int, rate_out_hz: int) -> NDArray[np.int16]:
    """Resample a whole recording at soxr's highest quality, with no delay.

    `samples` is (n,) or (n, channels); equal rates give the samples themselves.
    """
    if rate_in_hz == rate_out_hz:
        return samples
    resampled: NDArray[np.int16] = soxr.resample(samples, rate_in_hz, rate_out_hz, quality="VHQ")
    return resampled
