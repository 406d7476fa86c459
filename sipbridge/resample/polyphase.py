# SPDX-License-Identifier: GPL-3.0-or-later
"""Linear-phase polyphase resampler for live audio: short delay, many channels in a few matrix products.

The prototype low-pass is a Kaiser-windowed sinc, cut at the Nyquist frequency of the lower rate, that
reaches 14 samples of the lower rate to each side of its centre. With L/M the reduced ratio of the rates::

    x[0] x[1] ...  n samples in          y[j] = sum over k of h[k*L + j*M mod L] * x[floor(j*M / L) - k]
         |                                                          phase of j       newest sample needed
         v
    history | chunk | slack      float32, one row a channel
    [=====window=====]
          [=====window=====]     each window (rows x inputs) times a banded matrix (inputs x outputs)
                [=====window=====]     gives a block of outputs; equal matrices: one stacked product

The matrix of a block depends only on the phase of its first output, so there are at most L of them.

Design: J. F. Kaiser, "Nonrecursive digital filter design using the I0-sinh window function", 1974;
R. E. Crochiere, L. R. Rabiner, "Multirate Digital Signal Processing", 1983.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

_HALF_WIDTH = 14  # samples of the lower rate to each side of the centre: the group delay
_KAISER_BETA = 6.4  # 64 dB over a transition from 85 % to 115 % of the lower Nyquist frequency
_BLOCK = 8  # samples of the lower rate in a block: small wastes calls, large multiplies zeros
_LONG_BLOCK = 24  # the same where each block has its own matrix (44.1 kHz to the others) and is its own call
# OpenBLAS splits larger products over threads, and waiting for those can cost the media thread whole ticks.
_ONE_THREAD_PRODUCT = 1 << 18
_MAX_PLANS = 1024


class _Filter:
    """Coefficients of one rate pair, shared by all resamplers of that pair."""

    def __init__(self, rate_in_hz: int, rate_out_hz: int) -> None:
        divisor = math.gcd(rate_in_hz, rate_out_hz)
        self.up = rate_out_hz // divisor
        self.down = rate_in_hz // divisor
        spacing = max(self.up, self.down)  # one sample of the lower rate, in steps of rate_in * up
        reach = _HALF_WIDTH * spacing
        position = np.arange(-reach, reach + 1)
        prototype = np.sinc(position / spacing) * np.kaiser(position.size, _KAISER_BETA)
        self.taps = -(-prototype.size // self.up)
        padded = np.zeros(self.taps * self.up)
        padded[: prototype.size] = prototype
        phases = padded.reshape(self.taps, self.up)
        # Equal gain at 0 Hz for each phase, or a constant input would come out with a ripple.
        self._phases = phases / phases.sum(axis=0)
        shorter = min(self.up, self.down)
        self.periodic = spacing <= _BLOCK
        if self.periodic:
            self.block = self.up * max(1, _BLOCK // shorter)
        else:
            self.block = _LONG_BLOCK * self.up // shorter
        self.max_window = self.taps + (self.up - 1 + (self.block - 1) * self.down) // self.up
        self._matrices: dict[int, NDArray[np.float32]] = {}

    def matrix(self, phase: int) -> NDArray[np.float32]:
        """Matrix (window, block) of the block whose first output has this phase."""
        matrix = self._matrices.get(phase)
        if matrix is None:
            newest, phases = np.divmod(phase + self.down * np.arange(self.block), self.up)
            matrix = np.zeros((self.taps + int(newest[-1]), self.block), np.float32)
            for k in range(self.taps):
                matrix[self.taps - 1 + newest - k, np.arange(self.block)] = self._phases[k, phases]
            self._matrices[phase] = matrix
        return matrix


@functools.cache
def _filter(rate_in_hz: int, rate_out_hz: int) -> _Filter:
    return _Filter(rate_in_hz, rate_out_hz)


@dataclasses.dataclass(frozen=True, slots=True)
class _Plan:
    """Views on the scratch buffers for a chunk of a given size that starts at a given phase."""

    chunk: NDArray[np.float32]
    products: list[tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]]
    sums: NDArray[np.float32]
    result: NDArray[np.float32]
    out: NDArray[np.int16]
    tail: NDArray[np.float32]
    next_phase: int


class PolyphaseResampler:
    """Streaming resampler behind `sipbridge.resample.LiveResampler`; used by one thread at a time.

    After n samples in, exactly ceil(n * rate_out_hz / rate_in_hz) samples have come out, however they were
    cut into chunks. Output sample j is the input as it was at j / rate_out_hz - delay_ms / 1000 seconds,
    silence before the first sample. The sums are float32: the same audio cut into other chunks, or beside
    other channels, may differ by one unit of the last place, digital silence never does.
    """

    def __init__(self, rate_in_hz: int, rate_out_hz: int, channels: int) -> None:
        self.rate_in_hz = rate_in_hz
        self.rate_out_hz = rate_out_hz
        self.channels = channels
        self._filter = _filter(rate_in_hz, rate_out_hz)
        self._history_len = self._filter.taps - 1
        # Time of the next output after the next input, in steps of 1 / (rate_in_hz * up); 0 ... down - 1.
        self._phase = 0
        self._capacity = 0
        self._allocate(rate_in_hz // 200, np.zeros((channels, self._history_len), np.float32))

    @property
    def delay_ms(self) -> float:
        """Group delay, the same at all frequencies."""
        return 1000 * _HALF_WIDTH / min(self.rate_in_hz, self.rate_out_hz)

    def process(self, frames: NDArray[np.int16]) -> NDArray[np.int16]:
        """Resample one chunk of all channels.

        `frames` is (channels, n), any n; the result is (channels, m), contiguous, rounded and saturated, and
        valid until the next call: its memory is used again.
        """
        n = frames.shape[1]
        if n > self._capacity:
            self._allocate(n, self._history)
        plan = self._plans.get((n, self._phase)) or self._make_plan(n)
        np.copyto(plan.chunk, frames)
        for window, matrix, block in plan.products:
            np.matmul(window, matrix, out=block)
        np.rint(plan.sums, out=plan.sums)
        np.clip(plan.sums, -32768.0, 32767.0, out=plan.sums)
        np.copyto(plan.out, plan.result, casting="unsafe")
        np.copyto(self._history, plan.tail)
        self._phase = plan.next_phase
        return plan.out

    def remap(self, rows: NDArray[np.intp]) -> None:
        """Make row i the continuation of the old row rows[i], or a fresh silent row where that is -1."""
        history = self._samples[rows, : self._history_len]
        history[rows < 0] = 0.0
        self.channels = len(rows)
        self._allocate(self._capacity, history)

    def _allocate(self, capacity: int, history: NDArray[np.float32]) -> None:
        """Lay out buffers for chunks of up to `capacity` samples; `history` is (channels, history)."""
        product = self._filter.max_window * self._filter.block
        self._groups = max(1, -(-self.channels * product // _ONE_THREAD_PRODUCT))
        self._group_rows = -(-self.channels // self._groups)
        rows = self._groups * self._group_rows
        blocks = -(-(capacity * self._filter.up) // (self._filter.down * self._filter.block)) + 1
        # The last block is computed whole: it reads past the chunk, and what it made of that is not used.
        samples = np.zeros((rows, capacity + self._history_len + 2 * self._filter.max_window), np.float32)
        samples[: self.channels, : self._history_len] = history
        self._capacity = capacity
        self._samples = samples
        self._history = samples[: self.channels, : self._history_len]
        self._sums = np.zeros(rows * blocks * self._filter.block, np.float32)
        self._out = np.zeros(self._sums.size, np.int16)
        self._plans: dict[tuple[int, int], _Plan] = {}

    def _make_plan(self, n: int) -> _Plan:
        up, down, block = self._filter.up, self._filter.down, self._filter.block
        m = max(0, -((self._phase - n * up) // down))
        products = []
        blocks = -(-m // block)
        rows = len(self._samples)
        # One piece of memory, so that rounding and clipping run over it without a step at each row.
        sums = self._sums[: rows * blocks * block].reshape(rows, blocks * block)
        stacked = max(1, blocks) if self._filter.periodic else 1
        for first in range(0, blocks, stacked):
            newest, phase = divmod(self._phase + first * block * down, up)
            matrix = self._filter.matrix(phase)
            window = self._stack(self._samples, newest, stacked, block * down // up, len(matrix))
            products.append((window, matrix, self._stack(sums, first * block, stacked, block, block)))
        plan = _Plan(
            chunk=self._samples[: self.channels, self._history_len : self._history_len + n],
            products=products,
            sums=sums,
            result=sums[: self.channels, :m],
            out=self._out[: self.channels * m].reshape(self.channels, m),
            tail=self._samples[: self.channels, n : n + self._history_len],
            next_phase=self._phase + m * down - n * up,
        )
        if len(self._plans) >= _MAX_PLANS:
            self._plans.clear()
        self._plans[n, self._phase] = plan
        return plan

    def _stack(
        self, buffer: NDArray[np.float32], first: int, count: int, step: int, width: int
    ) -> NDArray[np.float32]:
        """View (groups, count, rows of a group, width): `count` windows, `step` columns apart."""
        row, column = buffer.strides
        return as_strided(
            buffer[:, first:],
            (self._groups, count, self._group_rows, width),
            (self._group_rows * row, step * column, row, column),
        )
