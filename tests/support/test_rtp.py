# SPDX-License-Identifier: GPL-3.0-or-later
"""Two RTP peers talk to each other."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from tests.support import audio
from tests.support.codecs import G722, Codec, Opus, Pcma, Pcmu
from tests.support.rtp import RtpLoop, RtpPeer

type Pair = tuple[RtpPeer, RtpPeer]


@pytest.fixture
def pair() -> Iterator[Callable[[type[Codec]], Pair]]:
    """Two connected peers of a codec."""
    loop = RtpLoop()
    peers: list[RtpPeer] = []

    def connect(kind: type[Codec]) -> Pair:
        a, b = RtpPeer(loop, kind()), RtpPeer(loop, kind())
        peers.extend((a, b))
        a.remote = (b.host, b.port)
        return a, b

    yield connect
    for peer in peers:
        peer.close()
    loop.close()


@pytest.mark.parametrize("kind", [Pcmu, Pcma, G722, Opus])
def test_what_one_plays_the_other_hears(kind: type[Codec], pair: Callable[[type[Codec]], Pair]) -> None:
    """Speech arrives whole, and the listener learns where to answer."""
    a, b = pair(kind)
    sent = audio.speech(1.0, a.codec.rate_hz)
    a.play(sent)
    a.wait_played()
    b.wait_packets(2)
    assert audio.align_and_correlate(sent, b.heard(), b.codec.rate_hz)[1] > 0.9
    assert b.remote == (a.host, a.port)
    assert b.lost() == 0


def test_payloads_arrive_as_they_are(pair: Callable[[type[Codec]], Pair]) -> None:
    """Raw payloads are not touched."""
    a, b = pair(Pcmu)
    payloads = [bytes([n] * 160) for n in range(1, 20)]
    a.play_payloads(payloads)
    a.wait_played()
    b.wait_packets(1)
    arrived = [packet.payload for packet in b.packets]
    start = arrived.index(payloads[0])
    assert arrived[start : start + len(payloads)] == payloads


def test_pause_is_a_gap(pair: Callable[[type[Codec]], Pair]) -> None:
    """What is not sent is heard as a gap as long as the pause, and not as a loss of packets."""
    a, b = pair(Pcmu)
    a.play(audio.tone(1000, 1.0), loop=True)
    b.wait_packets(20)
    a.pause()
    paused_s = b.packets[-1].arrived_s
    with pytest.raises(AssertionError):
        b.wait_packets(5, timeout_s=0.3)
    a.resume()
    b.wait_packets(20)
    resumed_s = next(packet.arrived_s for packet in b.packets if packet.arrived_s > paused_s + 0.1)
    gaps = audio.gaps_ms(audio.steady_part(b.heard(), 8000), 8000)
    assert len(gaps) == 1
    assert gaps[0][1] == pytest.approx(1000 * (resumed_s - paused_s), abs=60)
    assert b.lost() == 0


def test_lost_packets_are_counted(pair: Callable[[type[Codec]], Pair]) -> None:
    """A jump of the sequence number by four is three lost."""
    a, b = pair(Pcmu)
    b.wait_packets(5)
    a.sequence = (a.sequence + 3) & 0xFFFF
    b.wait_packets(5)
    assert b.lost() == 3


def test_dtmf_events(pair: Callable[[type[Codec]], Pair]) -> None:
    """Digits arrive in order, each with one marker, three ends and its duration, and audio goes on after."""
    a, b = pair(Pcmu)
    a.play(audio.tone(440, 1.0), loop=True)
    a.send_dtmf("19*#AA", duration_ms=100)
    b.wait_digits("19*#AA")
    for digit in b.digits():
        assert digit.duration_ms == 100
        assert digit.marked
        assert digit.ends == 3
    assert audio.find_tone(b.listen(0.5), 8000) == pytest.approx(440, abs=2)


def test_wrong_digits_are_noticed(pair: Callable[[type[Codec]], Pair]) -> None:
    """Waiting for other digits than came fails."""
    a, b = pair(Pcmu)
    a.send_dtmf("12")
    with pytest.raises(AssertionError):
        b.wait_digits("13")


def test_listen_starts_now(pair: Callable[[type[Codec]], Pair]) -> None:
    """Audio from before is not in it."""
    a, b = pair(Pcmu)
    a.play(audio.tone(1000, 1.0))
    a.wait_played()
    b.wait_packets(2)
    assert not np.any(b.listen(0.2))
