# SPDX-License-Identifier: GPL-3.0-or-later
"""Mix-minus: in a room, everybody hears all others and not themselves."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

type Index = slice | NDArray[np.intp]


def index_of(places: Sequence[int]) -> Index:
    """What picks these rows: a slice where they follow each other, which copies nothing."""
    first = places[0] if len(places) else 0
    if list(places) == list(range(first, first + len(places))):
        return slice(first, first + len(places))
    return np.array(places, np.intp)


@dataclasses.dataclass(frozen=True, slots=True)
class _Group:
    """The rooms of one size, whose rows lie one after another in the gathered order."""

    rows: slice
    rooms: Index
    count: int
    size: int


class _Gathering:
    """An order of rows in which rooms of equal size are neighbours, so that each size is one sum."""

    def __init__(self, sizes: NDArray[np.intp], least_size: int) -> None:
        starts = np.cumsum(sizes) - sizes
        self.groups = []
        order = [np.empty(0, np.intp)]
        first = 0
        for size in np.unique(sizes[sizes >= least_size]):
            rooms = np.flatnonzero(sizes == size)
            count = len(rooms) * int(size)
            rows = slice(first, first + count)
            self.groups.append(_Group(rows, index_of(rooms.tolist()), len(rooms), int(size)))
            order.append((starts[rooms, None] + np.arange(size)).ravel())
            first += count
        self.rows = first
        self.order = index_of(np.concatenate(order).tolist())  # a slice where rooms come by their size

    def gather(self, frames: NDArray[np.int16], out: NDArray[np.int32]) -> None:
        np.copyto(out, frames[self.order])

    def scatter(self, sums: NDArray[np.int32], out: NDArray[np.int16]) -> None:
        np.clip(sums, -32768, 32767, out=sums)
        out[self.order] = sums


class MixPlan:
    """How to mix the rooms of one sample rate; made anew when membership changes. Used by one thread.

    `sizes` are the members of each room; the rows of a room follow each other, the rooms in order. It costs
    least when small rooms come before large ones.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        sizes_array = np.array(sizes, np.intp)
        starts = np.cumsum(sizes_array) - sizes_array
        self.rows = int(sizes_array.sum())
        self.rooms = len(sizes_array)
        pairs = starts[sizes_array == 2]
        self._partner = np.arange(self.rows)
        self._partner[pairs] += 1
        self._partner[pairs + 1] -= 1
        self._alone = starts[sizes_array == 1]
        self._large = _Gathering(sizes_array, 3)
        self._all = _Gathering(sizes_array, 1)
        self._members = np.empty((0, 0), np.int32)
        self._sums = np.empty((0, 0), np.int32)

    def mix(self, frames: NDArray[np.int16], out: NDArray[np.int16]) -> None:
        """Fill `out` (rows, n) from `frames` (rows, n): the sum of the room less oneself, saturated.

        Two members hear each other bit for bit. `frames` and `out` are C-contiguous and do not overlap.
        """
        # Rows of pairs are final with this, the others are overwritten. "clip" spares numpy a buffer.
        np.take(frames, self._partner, axis=0, out=out, mode="clip")
        out[self._alone] = 0
        if self._large.groups:
            self._sum(self._large, frames)
            self._subtract(self._large, out)

    def sum(self, frames: NDArray[np.int16]) -> NDArray[np.int32]:
        """What the members of each room say together, (rooms, n); good until the next call of the plan."""
        self._sum(self._all, frames)
        return self._sums

    def mix_with(self, sources: NDArray[np.int32], out: NDArray[np.int16]) -> None:
        """After `sum`: the sum of the room less oneself, and of `sources` (rooms, n) for all its members."""
        np.add(self._sums, sources, out=self._sums)
        self._subtract(self._all, out)

    def _sum(self, gathering: _Gathering, frames: NDArray[np.int16]) -> None:
        if self._sums.shape != (self.rooms, frames.shape[1]):
            self._members = np.empty((self.rows, frames.shape[1]), np.int32)
            self._sums = np.zeros((self.rooms, frames.shape[1]), np.int32)
        self._sums[:] = 0
        gathering.gather(frames, self._members[: gathering.rows])
        for group in gathering.groups:
            members = self._members[group.rows].reshape(group.count, group.size, -1)
            self._sums[group.rooms] = members.sum(axis=1)

    def _subtract(self, gathering: _Gathering, out: NDArray[np.int16]) -> None:
        for group in gathering.groups:
            members = self._members[group.rows].reshape(group.count, group.size, -1)
            np.subtract(self._sums[group.rooms][:, None], members, out=members)
        gathering.scatter(self._members[: gathering.rows], out)
