# SPDX-License-Identifier: GPL-3.0-or-later
"""A bad line: what a party sends is lost, late, out of order or doubled on its way, the same in each run.

peer._send() ──► BadLine.sendto() ──┬── now ───────────────► the peer's own socket ──► bridge
                                    ├── later ──► a thread ──►┘
                                    └── never
"""

import contextlib
import dataclasses
import heapq
import itertools
import random
import socket
import threading
import time
from typing import Self, cast

from tests.support.rtp import SLOT_S, RtpPeer

type Address = tuple[str, int]


@dataclasses.dataclass
class Impairment:
    """Of packets; all chances from 0 to 1."""

    loss: float = 0.0
    burst: float = 1.0  # mean number of packets lost in a row; 1: each packet's fate is its own
    jitter_s: float = 0.0  # added to each, evenly distributed over 0..jitter_s; order is kept
    reorder: float = 0.0  # comes after the one that follows it
    duplicate: float = 0.0


@dataclasses.dataclass(frozen=True)
class Departure:
    """What became of one packet."""

    sent_s: float  # when the party sent it, by time.monotonic()
    left_s: tuple[float, ...]  # when it left: never, once or twice


class BadLine:
    """Stands in for the socket of a party, to which everything but sending goes through.

    `impairment` may be changed at any time: it holds for what is sent from then on.
    """

    def __init__(self, sock: socket.socket, impairment: Impairment, seed: int = 1) -> None:
        self.impairment = impairment
        self.log: list[Departure] = []
        self._socket = sock
        self._random = random.Random(seed)
        self._is_losing = False
        self._last_s = 0.0
        self._tie = itertools.count()
        self._waiting: list[tuple[float, int, bytes, Address]] = []
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="bad-line", daemon=True)
        self._thread.start()

    @classmethod
    def behind(cls, peer: RtpPeer, impairment: Impairment, seed: int = 1) -> Self:
        """The line of what this peer sends from now on."""
        line = cls(peer.socket, impairment, seed)
        peer.socket = cast(socket.socket, line)
        return line

    def sendto(self, data: bytes, address: Address) -> int:
        now_s = time.monotonic()
        left_s = self._departures(now_s)
        with self._changed:
            self.log.append(Departure(now_s, tuple(left_s)))
            for at_s in left_s:
                heapq.heappush(self._waiting, (at_s, next(self._tie), data, address))
            self._changed.notify()
        return len(data)

    def _departures(self, now_s: float) -> list[float]:
        # always as many draws, so that one kind of impairment does not change another's pattern
        fate, extra, order, twice = (self._random.random() for _ in range(4))
        bad = self.impairment
        if bad.burst > 1:  # Gilbert's two states
            end = 1 / bad.burst
            start = bad.loss * end / (1 - bad.loss)
            self._is_losing = fate >= end if self._is_losing else fate < start
        else:
            self._is_losing = fate < bad.loss
        if self._is_losing:
            return []
        at_s = now_s + extra * bad.jitter_s
        if order < bad.reorder:
            at_s += 1.25 * SLOT_S  # and what follows does not wait for it
        else:
            at_s = self._last_s = max(at_s, self._last_s)
        return [at_s, at_s] if twice < bad.duplicate else [at_s]

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._is_closed:
                    return
                wait_s = self._waiting[0][0] - time.monotonic() if self._waiting else None
                if wait_s is None or wait_s > 0:
                    self._changed.wait(wait_s)
                    continue
                _, _, data, address = heapq.heappop(self._waiting)
            with contextlib.suppress(OSError):  # what counts is what arrives
                self._socket.sendto(data, address)

    def recvfrom(self, size: int) -> tuple[bytes, Address]:
        data, source = self._socket.recvfrom(size)
        return data, source

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()
        self._socket.close()
