# SPDX-License-Identifier: GPL-3.0-or-later
"""Speech through the bridge over bad lines: what the other party hears of it.

All calls run at the same time in one server, each talker behind a bad line of its own:

    0 s         4 s                          12 s                                22 s
     │  jitter:  │ each packet is late        │ the line is good again             │
     │  the rest: lost, doubled or reordered packets from the beginning to the end │
"""

import collections
import dataclasses
import functools
import gc
import itertools
import time
from collections.abc import Mapping

import numpy as np
import pytest

from bench import quality
from tests.conftest import Measured
from tests.support import audio
from tests.support.codecs import Pcmu, Samples
from tests.support.follow import Followed, follow, lay_out
from tests.support.impairment import BadLine, Impairment
from tests.support.parties import new_name
from tests.support.rtp import Packet, RtpLoop, RtpPeer
from tests.support.server import Server
from tests.support.sip_agent import Dialog, SipAgent

JITTER_STARTS_S, JITTER_ENDS_S, SPEECH_S = 4.0, 12.0, 22.0
SETTLES_S = 3.0  # so long a queue may take to find its depth
LOSS = {
    "clean": Impairment(),
    "loss 1 %": Impairment(loss=0.01),
    "loss 5 %": Impairment(loss=0.05),
    "loss 10 %": Impairment(loss=0.10),
    "loss 20 %": Impairment(loss=0.20),
    "loss in bursts": Impairment(loss=0.05, burst=3),
    "reordering": Impairment(reorder=0.05),
    "duplicates": Impairment(duplicate=0.10),
}
JITTER_MS = (20, 40, 60, 100)
# What a bridge may add to the jitter of the line, and what it may keep once that is over.
DELAY_MS = 60


@dataclasses.dataclass
class Talk:
    """One call's speech, as it was said and as it was heard."""

    said: Samples
    payloads: list[bytes]  # of it: encoding takes long enough to hold up all parties
    line: BadLine
    dialogs: list[Dialog]
    talker: RtpPeer
    listener: RtpPeer
    began: int = 0  # packets that had been sent before the speech
    packets: list[Packet] = dataclasses.field(default_factory=list)

    @property
    def began_s(self) -> float:
        return self.line.log[self.began].sent_s

    @property
    def lost(self) -> list[int]:
        """Frames of the speech that never left."""
        log = self.line.log[self.began :][: len(self.said) // 160]
        return [index for index, departure in enumerate(log) if not departure.left_s]

    def follow(self, since_s: float = 1.0, until_s: float = SPEECH_S - 0.5) -> Followed:
        """What became of it between these seconds after its beginning."""
        found = self._followed.between(self.began_s + since_s, self.began_s + until_s)
        assert len(found.pieces) > 10 * (until_s - since_s), "too little was heard to tell"
        return found

    @functools.cached_property
    def _followed(self) -> Followed:
        heard, arrival = lay_out(self.packets, _decoded())
        sent_s = [departure.sent_s for departure in self.line.log[self.began :][: len(self.said) // 160]]
        return follow(self.said, sent_s, heard, arrival)

    def pesq(self) -> dict[str, float]:
        """Of what was heard, and of the codec alone with the same losses."""
        heard, _ = lay_out(self.packets, _decoded())
        scores = quality.compare(self.said, heard, self.lost)
        assert scores is not None
        return scores


def _decoded() -> Samples:
    return Pcmu().decode(bytes(range(256)))


def _talk(server: Server, loop: RtpLoop, impairment: Impairment, seed: int) -> Talk:
    # Speech is dithered, so that no two packets are the same, and µ-law's second zero does not occur.
    rng = np.random.default_rng(seed)
    said = audio.speech(SPEECH_S, voice=seed % 4)
    said = np.clip(said.astype(int) + rng.integers(-60, 61, len(said)), -32_000, 32_000)
    said = np.where(np.abs(said) < 8, 8, said).astype(np.int16)
    dialogs, peers = [], []
    for _ in range(2):
        agent = SipAgent(host="127.0.0.1", server=server.sip_address, user=new_name())
        peers.append(RtpPeer(loop, Pcmu()))
        dialogs.append(agent.call(f"room-bad-line-{seed}", peers[-1]))
    payloads = [Pcmu().encode(frame) for frame in said.reshape(-1, 160)]
    return Talk(said, payloads, BadLine.behind(peers[0], impairment, seed), dialogs, peers[0], peers[1])


@pytest.fixture
def talks(measured: Measured, server: Server, rtp_loop: RtpLoop) -> dict[str, Talk]:
    """All calls, over and hung up."""
    return measured(lambda: _talks(server, rtp_loop))


def _talks(server: Server, rtp_loop: RtpLoop) -> dict[str, Talk]:
    names = {**LOSS, **{f"jitter {jitter_ms} ms": Impairment() for jitter_ms in JITTER_MS}}
    talks = {
        name: _talk(server, rtp_loop, impairment, seed)
        for seed, (name, impairment) in enumerate(names.items())
    }
    time.sleep(1.0)  # the hint tone for the first of a room is over
    gc.disable()  # it would hold all parties for 100 ms, and that is not the line that was asked for
    try:
        _speak(talks)
    finally:
        gc.enable()
    for talk in talks.values():
        talk.packets = talk.listener.audio_packets(since_s=talk.began_s)
        for dialog in talk.dialogs:
            dialog.hang_up()
            dialog.agent.close()
        talk.talker.close()
        talk.listener.close()
    return talks


def _speak(talks: Mapping[str, Talk]) -> None:
    began_s = time.monotonic()
    jittery = [(talks[f"jitter {jitter_ms} ms"].line, jitter_ms / 1000) for jitter_ms in JITTER_MS]
    for talk in talks.values():
        talk.began = len(talk.line.log)
        talk.talker.play_payloads(talk.payloads)
    time.sleep(began_s + JITTER_STARTS_S - time.monotonic())
    for line, jitter_s in jittery:
        line.impairment = Impairment(jitter_s=jitter_s)
    time.sleep(began_s + JITTER_ENDS_S - time.monotonic())
    for line, _ in jittery:
        line.impairment = Impairment()
    for talk in talks.values():
        talk.talker.wait_played()
    time.sleep(0.5)


@pytest.mark.parametrize("name", LOSS)
def test_speech_has_no_holes(name: str, talks: dict[str, Talk]) -> None:
    """Nothing is silent for longer than 40 ms where somebody speaks, or than what was lost in a row."""
    talk = talks[name]
    runs = _runs(talk.lost)
    assert talk.follow().longest_gap_ms <= max(40.0, 20.0 * max(runs, default=0))


@pytest.mark.parametrize("name", LOSS)
def test_loss_sounds_no_worse_than_without_a_bridge(name: str, talks: dict[str, Talk]) -> None:
    """PESQ is near that of a telephone which hears the same packets with no bridge between.

    How near is measured by `bench`, on a machine that has nothing else to do; here other work may add to
    what the line does.
    """
    scores = talks[name].pesq()
    assert scores["bridge"] >= scores["codec_alone"] - 0.6


@pytest.mark.parametrize("name", LOSS)
def test_loss_costs_no_delay(name: str, talks: dict[str, Talk]) -> None:
    """Where nothing is late, nothing waits; of packets out of order, the late one is waited for."""
    lateness_ms = {"reordering": 25, "loss 20 %": 20}.get(name, 0)
    assert talks[name].follow(SETTLES_S).delay_ms(95) <= lateness_ms + DELAY_MS


@pytest.mark.parametrize("name", ["clean", "reordering", "duplicates"])
def test_what_came_is_heard(name: str, talks: dict[str, Talk]) -> None:
    """With every packet there, late or twice, at most one piece in a hundred is not as it was said."""
    assert talks[name].follow(SETTLES_S).damaged <= 0.01


@pytest.mark.parametrize("name", LOSS)
def test_nothing_is_heard_twice(name: str, talks: dict[str, Talk]) -> None:
    """No packet's payload, which passes bit by bit, is in what is heard a second time."""
    talk = talks[name]
    heard = b"".join(packet.payload for packet in talk.packets)
    frames = zip(talk.said.reshape(-1, 160), talk.payloads, strict=True)
    loud = [payload for frame, payload in frames if audio.rms(frame) > 300]
    counts = collections.Counter(heard.count(payload) for payload in loud)
    assert counts[1] > len(loud) / 2
    assert not [times for times in counts if times > 1], counts


@pytest.mark.parametrize("jitter_ms", JITTER_MS)
def test_jitter_makes_no_holes(jitter_ms: int, talks: dict[str, Talk]) -> None:
    """Once the queue knows the line, at most 1 % is too late to be played, and no silence is above 40 ms."""
    found = talks[f"jitter {jitter_ms} ms"].follow(JITTER_STARTS_S + SETTLES_S, JITTER_ENDS_S)
    assert found.damaged <= 0.01
    assert found.longest_gap_ms <= 40


@pytest.mark.parametrize("jitter_ms", JITTER_MS)
def test_jitter_costs_its_own_delay(jitter_ms: int, talks: dict[str, Talk]) -> None:
    """While packets are late by up to the jitter, speech is late by that and a bound."""
    found = talks[f"jitter {jitter_ms} ms"].follow(JITTER_STARTS_S + SETTLES_S, JITTER_ENDS_S)
    assert found.delay_ms(95) <= jitter_ms + DELAY_MS


@pytest.mark.parametrize("jitter_ms", JITTER_MS)
def test_the_first_late_packets_make_no_long_hole(jitter_ms: int, talks: dict[str, Talk]) -> None:
    """A line that becomes bad is followed at once: no silence is longer than what was late, or than 40 ms."""
    found = talks[f"jitter {jitter_ms} ms"].follow(JITTER_STARTS_S, JITTER_STARTS_S + SETTLES_S)
    assert found.longest_gap_ms <= max(40, jitter_ms)
    assert found.damaged <= 0.10


@pytest.mark.parametrize("jitter_ms", JITTER_MS)
def test_delay_returns_after_jitter(jitter_ms: int, talks: dict[str, Talk]) -> None:
    """Eight seconds after the line became good, what it cost is given back, without a hole."""
    found = talks[f"jitter {jitter_ms} ms"].follow(JITTER_ENDS_S + 0.5)
    after = found.between(talks[f"jitter {jitter_ms} ms"].began_s + JITTER_ENDS_S + 8)
    assert after.delay_ms() <= DELAY_MS
    assert found.longest_gap_ms <= 40


def test_a_bad_line_does_what_it_says(talks: dict[str, Talk]) -> None:
    """The lines themselves: what they lost, doubled, put out of order and delayed."""
    frames = len(talks["clean"].said) // 160
    for percent in (1, 5, 10, 20):
        assert len(talks[f"loss {percent} %"].lost) / frames == pytest.approx(percent / 100, rel=0.5)
    assert np.mean(_runs(talks["loss in bursts"].lost)) > 1.5
    doubled = [departure for departure in talks["duplicates"].line.log if len(departure.left_s) == 2]
    assert len(doubled) / frames == pytest.approx(0.10, rel=0.5)
    log = talks["jitter 60 ms"].line.log
    late_s = [departure.left_s[0] - departure.sent_s for departure in log]
    assert 0.04 < max(late_s) <= 0.06
    left_s = [departure.left_s[0] for departure in talks["reordering"].line.log]
    overtaken = np.mean(np.diff(left_s) < 0)
    assert overtaken == pytest.approx(0.05, rel=0.5)


def _runs(lost: list[int]) -> list[int]:
    """How many were lost in a row, each time."""
    edges = [index for index, (a, b) in enumerate(itertools.pairwise(lost)) if b != a + 1]
    bounds = [-1, *edges, len(lost) - 1]
    return [b - a for a, b in itertools.pairwise(bounds) if lost]
