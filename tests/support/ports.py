# SPDX-License-Identifier: GPL-3.0-or-later
"""Free ports on loopback, below the range from which the system gives out ephemeral ones."""

import os
import random
import socket

_FIRST = 10_000
_LAST = 32_000
# Each process walks from a place of its own, so that two runs on one machine seldom meet; a port given
# out once is not given out again before the walk has come round.
_position = random.Random(os.getpid()).randrange(_FIRST, _LAST)


def _is_free(port: int, kinds: tuple[socket.SocketKind, ...]) -> bool:
    for kind in kinds:
        with socket.socket(socket.AF_INET, kind) as probe:
            try:
                probe.bind(("", port))
            except OSError:
                return False
    return True


def _take(count: int, kinds: tuple[socket.SocketKind, ...]) -> int:
    global _position
    for _ in range(200):
        if _position + count > _LAST:
            _position = _FIRST
        first = _position + _position % 2
        _position = first + count
        if all(_is_free(port, kinds) for port in range(first, first + count)):
            return first
    raise RuntimeError(f"no {count} consecutive free ports between {_FIRST} and {_LAST}")


def free_port() -> int:
    """A port free for both UDP and TCP, as a SIP port serves both."""
    return _take(1, (socket.SOCK_DGRAM, socket.SOCK_STREAM))


def free_udp_range(count: int) -> int:
    """The first of `count` consecutive free UDP ports; even, as RTP asks for."""
    return _take(count, (socket.SOCK_DGRAM,))
