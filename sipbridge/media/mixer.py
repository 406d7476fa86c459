# SPDX-License-Identifier: GPL-3.0-or-later
"""Mix-minus: in a room, everybody hears all others and not themselves."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


@dataclasses.dataclass(frozen=True, slots=True)
class _Group:
    """The rooms of one size, whose rows lie one after another in the gathered order."""

    rows: slice
    rooms: NDArray[np.intp]
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
            self.groups.append(_Group(slice(first, first + count), rooms, int(size)))
            order.append((starts[rooms, None] + np.arange(size)).ravel())
            first += count
        self.order = np.concatenate(order)


class MixPlan:
    """How to mix the rooms of one sample rate; made anew when membership changes. Used by one thread.

    `sizes` are the members of each room; the rows of a room follow each other, the rooms in order.
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
        self._gathered = np.empty((0, 0), np.int16)
        self._sums = np.empty((0, 0), np.int32)

    def mix(
        self, frames: NDArray[np.int16], out: NDArray[np.int16], sources: NDArray[np.int16] | None = None
    ) -> None:
        """Fill `out` (rows, n) from `frames` (rows, n): the sum of the room less oneself, saturated.

        Two members hear each other bit for bit. `sources` (rooms, n), where given, is heard by all members
        of each room besides. `frames` and `out` are C-contiguous and do not overlap.
        """
        if sources is None:
            # Rows of pairs are final with this, the others are overwritten. "clip" spares numpy a buffer.
            np.take(frames, self._partner, axis=0, out=out, mode="clip")
            out[self._alone] = 0
        gathering = self._large if sources is None else self._all
        if not gathering.groups:
            return
        shape = (self.rows, frames.shape[1])
        if self._sums.shape != shape:
            self._gathered = np.empty(shape, np.int16)
            self._sums = np.empty(shape, np.int32)
        gathered = self._gathered[: len(gathering.order)]
        sums = self._sums[: len(gathering.order)]
        np.take(frames, gathering.order, axis=0, out=gathered, mode="clip")
        np.copyto(sums, gathered)
        for group in gathering.groups:
            members = sums[group.rows].reshape(len(group.rooms), group.size, -1)
            room = members.sum(axis=1, keepdims=True)
            if sources is not None:
                room += sources[group.rooms, None]
            np.subtract(room, members, out=members)
        np.clip(sums, -32768, 32767, out=sums)
        out[gathering.order] = sums
