# SPDX-License-Identifier: GPL-3.0-or-later
"""Sample-rate conversion: arrays in, arrays out.

`polyphase` is for live audio: a delay of 14 samples of the lower rate, at most 1.75 ms. `soxr_stream`
has a selectable live choice that holds 1-83 ms back, and converts whole recordings. Both live ones carry
fractions of a sample from one chunk to the next, so that over time no sample is lost or made up.
"""

from __future__ import annotations

from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from sipbridge.resample.polyphase import PolyphaseResampler
from sipbridge.resample.soxr_stream import SoxrResampler, resample_whole

__all__ = [
    "LiveResampler",
    "PolyphaseResampler",
    "ResamplerKind",
    "SoxrResampler",
    "make_resampler",
    "resample_whole",
]

type ResamplerKind = Literal["polyphase", "soxr"]


class LiveResampler(Protocol):
    """A streaming resampler of many channels at once; used by one thread at a time."""

    rate_in_hz: int
    rate_out_hz: int
    channels: int

    @property
    def delay_ms(self) -> float:
        """How much later than the input the output sounds, apart from the wait for a chunk."""
        ...

    def process(self, frames: NDArray[np.int16]) -> NDArray[np.int16]:
        """Resample one chunk (channels, n), any n, to (channels, m).

        m is such that after n samples in all, ceil(n * rate_out_hz / rate_in_hz) have come out. The result
        is valid until the next call: its memory may be used again.
        """
        ...

    def remap(self, rows: NDArray[np.intp]) -> None:
        """Make row i the continuation of the old row rows[i], or a fresh silent row where that is -1."""
        ...


_KINDS: dict[str, type[PolyphaseResampler] | type[SoxrResampler]] = {
    "polyphase": PolyphaseResampler,
    "soxr": SoxrResampler,
}


def make_resampler(kind: ResamplerKind, rate_in_hz: int, rate_out_hz: int, channels: int) -> LiveResampler:
    """Make a resampler of the given kind.

    Raises ValueError at equal rates: audio is converted only where rates differ.
    """
    if rate_in_hz == rate_out_hz:
        raise ValueError(f"nothing to resample: both rates are {rate_in_hz} Hz")
    return _KINDS[kind](rate_in_hz, rate_out_hz, channels)
