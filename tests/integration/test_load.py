# SPDX-License-Identifier: GPL-3.0-or-later
"""A hundred calls, twice: all answered, all heard, and nothing of them left."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from tests.support import audio
from tests.support.rtp import RtpLoop, RtpPeer
from tests.support.server import Server
from tests.support.sipp import Sipp

CALLS = 100
RATE = 40.0
HOLD_MS = 5000
SETTLE_S = 40.0
# Of resident memory, between two looks at an idle process: what the allocator happens to keep.
MEMORY_NOISE_BYTES = 1 << 20


@pytest.fixture
def load_server(tmp_path: Path) -> Iterator[Server]:
    """A server with the default configuration: rooms by number."""
    with Server(tmp_path / "server") as server:
        yield server


def tone_of(number: int) -> float:
    """Each of two in a room has a tone of its own, and no two rooms the same pair."""
    return (500 if number % 2 == 0 else 1500) + 10 * (number // 2)


def make_calls(server: Server, directory: Path) -> None:
    """A hundred calls at 40 a second, two in a room, each sending its tone and listening for the other's."""
    with ExitStack() as stack:
        loop = RtpLoop()
        stack.callback(loop.close)
        peers = [stack.enter_context(RtpPeer(loop)) for _ in range(CALLS)]
        for number, peer in enumerate(peers):
            peer.play(audio.tone(tone_of(number), 1.0, level_dbfs=-15), loop=True)
        rows = [
            (f"load{number:03d}", f"room{number // 2:02d}", str(peer.port))
            for number, peer in enumerate(peers)
        ]
        before = len(server.events("call.ended"))
        process = Sipp(
            "uac_load",
            directory,
            remote=server.sip_address,
            calls=CALLS,
            rate=RATE,
            duration_ms=HOLD_MS,
            injection=rows,
            timeout_s=60,
        )
        process.wait()
        server.wait_idle()
        ended = server.events("call.ended")[before:]
        assert len(ended) == CALLS
        assert {event["reason"] for event in ended} == {"hangup"}
        assert [event["loss_percent"] for event in ended if event["loss_percent"] > 0] == []
        for number, peer in enumerate(peers):
            # All calls are up in the middle: the first ends after 5 s, the last begins after 2.5 s.
            middle = peer.heard()[8000 : 4 * 8000]
            wanted_hz = tone_of(number ^ 1)
            assert audio.find_tone(middle, 8000) == audio.near(wanted_hz), f"call {number}"
            levels_dbfs = audio.tone_levels_dbfs(middle, 8000, wanted_hz)
            # The hundred telephones share this machine with the server, so a late packet may be theirs.
            assert np.median(levels_dbfs) == pytest.approx(-15, abs=0.5), f"call {number}"
            assert np.mean(levels_dbfs > -18) >= 0.9, f"call {number}: {levels_dbfs.round()}"
            assert peer.lost() == 0, f"call {number}"


@pytest.mark.timeout(300)
def test_a_hundred_calls_twice(load_server: Server, tmp_path: Path) -> None:
    """Descriptors, threads, ports and the engine's counts return to their start; memory does not grow."""
    start = load_server.counters()
    make_calls(load_server, tmp_path / "first")
    load_server.wait_counters(start, SETTLE_S)
    after_first = load_server.memory_bytes()
    make_calls(load_server, tmp_path / "second")
    load_server.wait_counters(start, SETTLE_S)
    assert load_server.memory_bytes() <= after_first + MEMORY_NOISE_BYTES
