# SPDX-License-Identifier: GPL-3.0-or-later
"""What became of speech on its way, piece by piece: where it is heard, how late, and what is missing."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tests.support.codecs import Samples
from tests.support.rtp import Packet

RATE_HZ = 8000
_WINDOW, _LONGEST_LAG, _BLOCK, _SLACK = 4000, 4000, 160, 8
_SPOKEN_RMS, _QUIET_PEAK = 400.0, 12
_GAP_STEP = 40


@dataclasses.dataclass(frozen=True)
class Piece:
    """20 ms in which somebody spoke, as they were heard."""

    at_s: float  # arrival of its middle, by time.monotonic()
    delay_ms: float  # from its sending, on a line without faults
    fit: float  # correlation with what was said, 1 for a perfect copy


@dataclasses.dataclass(frozen=True)
class Followed:
    pieces: list[Piece]
    gaps: list[tuple[float, float]]  # (time.monotonic() of the start, ms): silence where somebody spoke

    def between(self, since_s: float, until_s: float = float("inf")) -> "Followed":
        return Followed(
            [piece for piece in self.pieces if since_s <= piece.at_s < until_s],
            [gap for gap in self.gaps if since_s <= gap[0] < until_s],
        )

    @property
    def longest_gap_ms(self) -> float:
        return max((length_ms for _, length_ms in self.gaps), default=0.0)

    @property
    def damaged(self) -> float:
        """The share of pieces that are not like anything that was said there."""
        return sum(piece.fit < 0.5 for piece in self.pieces) / max(len(self.pieces), 1)

    def delay_ms(self, percentile: float = 50) -> float:
        """Of those pieces that are beyond doubt."""
        return float(np.percentile([piece.delay_ms for piece in self.pieces if piece.fit > 0.8], percentile))


def lay_out(packets: Sequence[Packet], decode: NDArray[np.int16]) -> tuple[Samples, NDArray[np.float64]]:
    """Samples by timestamp and each one's arrival; `decode` is G.711's table. What never came is silence."""
    first = packets[0].timestamp
    places = [(packet.timestamp - first + 2**31) % 2**32 - 2**31 for packet in packets]
    size = max(place + len(packet.payload) for place, packet in zip(places, packets, strict=True))
    samples, arrival = np.zeros(size, np.int16), np.full(size, np.nan)
    for place, packet in zip(places, packets, strict=True):
        if place < 0:
            continue
        count = len(packet.payload)
        samples[place : place + count] = decode[np.frombuffer(packet.payload, np.uint8)]
        arrival[place : place + count] = packet.arrived_s + np.arange(count) / RATE_HZ
    return samples, arrival


def follow(said: Samples, sent_s: Sequence[float], heard: Samples, arrival: NDArray[np.float64]) -> Followed:
    """`sent_s` is when each frame of 20 ms of `said` was sent, `arrival` when each sample of `heard` came."""
    said_f, heard_f = said.astype(np.float64), heard.astype(np.float64)
    left_s = (
        np.repeat(np.asarray(sent_s), _BLOCK)[: len(said)]
        + np.tile(np.arange(_BLOCK) / RATE_HZ, len(sent_s))[: len(said)]
    )
    starts = range(0, len(heard) - _WINDOW + 1, _WINDOW)
    shifts = [_place(said_f, left_s, heard_f, arrival, start) for start in starts]
    pieces: list[Piece] = []
    quiet = np.zeros(len(heard), bool)
    for index, start in enumerate(starts):
        known_near = (*shifts[index : index + 2], *shifts[max(0, index - 1) : index])
        near = list(dict.fromkeys(shift for shift in known_near if shift is not None))
        if not near:
            continue
        for block in range(start, start + _WINDOW, _BLOCK):
            found = max(
                (_fit(said_f, heard_f, block, shift + slack), shift + slack)
                for shift in near
                for slack in range(-_SLACK, _SLACK + 1)
            )
            place = block + found[1]
            if (
                not 0 <= place - _GAP_STEP <= len(said) - 2 * _BLOCK
                or _rms(said_f, place, _BLOCK) < _SPOKEN_RMS
            ):
                continue
            middle = block + _BLOCK // 2
            at_s = arrival[middle]
            if not np.isnan(at_s):
                delay_ms = 1000 * (at_s - left_s[middle + found[1]])
                pieces.append(Piece(float(at_s), float(delay_ms), found[0]))
            for step in range(block, block + _BLOCK, _GAP_STEP):
                around = (step + found[1] + part * _GAP_STEP for part in (-1, 0, 1))
                quiet[step : step + _GAP_STEP] = np.max(
                    np.abs(heard_f[step : step + _GAP_STEP])
                ) <= _QUIET_PEAK and all(_rms(said_f, part, _GAP_STEP) > _SPOKEN_RMS for part in around)
    edges = np.flatnonzero(np.diff(np.concatenate(([False], quiet, [False])).astype(np.int8)))
    known = np.flatnonzero(~np.isnan(arrival))
    gaps = [
        (float(np.interp(begin, known, arrival[known])), 1000 * (end - begin) / RATE_HZ)
        for begin, end in zip(edges[::2], edges[1::2], strict=True)
    ]
    return Followed(pieces, gaps)


def _place(
    said: NDArray[np.float64],
    left_s: NDArray[np.float64],
    heard: NDArray[np.float64],
    arrival: NDArray[np.float64],
    start: int,
) -> int | None:
    """What has to be added to a place in `heard` to have that in `said`; for half a second from `start`."""
    window = heard[start : start + _WINDOW]
    known = arrival[start : start + _WINDOW]
    if np.isnan(known).all() or not np.any(window):
        return None
    first = int(np.flatnonzero(~np.isnan(known))[0])
    latest = int(np.searchsorted(left_s, known[first])) - first + _BLOCK
    low = max(0, latest - _LONGEST_LAG)
    region = said[low : latest + _WINDOW]
    if len(region) < _WINDOW:
        return None
    size = 1 << int(np.ceil(np.log2(len(region) + _WINDOW)))
    product = np.fft.irfft(np.fft.rfft(region, size) * np.conj(np.fft.rfft(window, size)))
    product = np.asarray(product[: len(region) - _WINDOW + 1], np.float64)
    energy = np.concatenate(([0.0], np.cumsum(region**2)))
    power = energy[_WINDOW:] - energy[:-_WINDOW]
    fits = product / np.sqrt(np.maximum(power * np.sum(window**2), 1.0))
    best = int(np.argmax(fits))
    return low + best - start if fits[best] > 0.5 else None


def _fit(said: NDArray[np.float64], heard: NDArray[np.float64], block: int, shift: int) -> float:
    if not 0 <= block + shift <= len(said) - _BLOCK:
        return 0.0
    a, b = heard[block : block + _BLOCK], said[block + shift : block + shift + _BLOCK]
    return float(a @ b) / math.sqrt(max(float(a @ a) * float(b @ b), 1.0))


def _rms(samples: NDArray[np.float64], start: int, count: int) -> float:
    part = samples[max(0, start) : start + count]
    return float(np.sqrt(np.mean(part**2))) if len(part) else 0.0
