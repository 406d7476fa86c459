# SPDX-License-Identifier: GPL-3.0-or-later
"""Speech of WebRTC members over bad lines: what a telephone in their room hears of it.

All speak at the same time in one server, each in a room of its own with one telephone (PCMU).
"""

import asyncio
import ctypes
import gc
import socket
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import httpx
import numpy as np
import pytest

from bench import quality
from sipbridge.loadtest.webrtc import Member
from tests.conftest import Measured
from tests.support import audio
from tests.support.codecs import Codec, Opus, Pcmu, Samples
from tests.support.impairment import BadLine, Impairment
from tests.support.parties import new_name
from tests.support.rtp import RtpLoop, RtpPeer
from tests.support.server import Server
from tests.support.sip_agent import Dialog, SipAgent

PIECE_S, PIECES = 4.0, 3  # of speech, for PESQ
SPEECH_S = PIECES * PIECE_S + 1.5  # with some to align it
FRAME = 160
LINES = {
    "loss 5 %": Impairment(loss=0.05),
    "loss 10 %": Impairment(loss=0.10),
    "jitter 60 ms": Impairment(jitter_s=0.060),
}
_SET_FEC, _SET_LOSS = 4012, 4014  # of libopus


class NarrowOpus(Opus):
    """Opus at the telephone's rate, as a browser sends it: each packet repairs the one before."""

    rate_hz = 8000

    def __init__(self) -> None:
        super().__init__()
        for request, value in (_SET_FEC, 1), (_SET_LOSS, 10):
            self._lib.opus_encoder_ctl(self._encoder, request, ctypes.c_int(value))

    def heard(self, payloads: Sequence[bytes], lost: list[int]) -> Samples:
        """What a receiver without any bridge plays when these never came."""
        missing, pieces = set(lost), []
        for index in range(len(payloads)):
            follows = index + 1 < len(payloads) and index + 1 not in missing
            payload = payloads[index + 1] if index in missing and follows else payloads[index]
            if index in missing and not follows:
                payload = b""
            piece = np.zeros(FRAME, np.int16)
            self._lib.opus_decode(
                self._decoder,
                payload or None,
                len(payload),
                piece.ctypes.data_as(ctypes.c_void_p),
                FRAME,
                int(index in missing and follows),
            )
            pieces.append(piece)
        return np.concatenate(pieces)


class _TrackSocket:
    """Sends by a track, in place of the peer's own socket."""

    def __init__(self, own: socket.socket, member: Member) -> None:
        self._own = own
        self._member = member

    def sendto(self, data: bytes, address: tuple[str, int]) -> int:
        self._member.track.send(data)
        return len(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)


@dataclass
class Talk:
    said: Samples
    codec: Codec
    payloads: list[bytes]
    line: BadLine
    talker: RtpPeer
    listener: RtpPeer
    dialog: Dialog
    member: Member
    began: int = 0

    @property
    def lost(self) -> list[int]:
        log = self.line.log[self.began :][: len(self.payloads)]
        return [index for index, departure in enumerate(log) if not departure.left_s]

    def cost(self) -> float:
        """By how much PESQ is worse than of the codec alone with the same losses, in most pieces."""
        began_s = self.line.log[self.began].sent_s
        heard = self.listener.heard(since_s=began_s)
        alone = quality.g711(self.said)
        if isinstance(self.codec, NarrowOpus):
            alone = quality.g711(NarrowOpus().heard(self.payloads, self.lost))
        else:
            alone = quality.conceal(alone, self.lost)
        pieces = zip(self._scores(alone), self._scores(heard), strict=True)
        return statistics.median(codec - bridge for codec, bridge in pieces)

    def _scores(self, samples: Samples) -> list[float]:
        lag = quality.alignment(self.said, samples)
        first = max(800, -lag)
        scores = quality.pieces_pesq(self.said[first:], samples[first + lag :], PIECE_S)
        assert len(scores) == PIECES
        return scores


async def _join(server: Server, member: Member, room: str) -> None:
    headers = {"Authorization": server.http.headers["Authorization"]}
    async with httpx.AsyncClient(base_url=server.base_url, headers=headers) as client:
        await member.join(client, room)


def _begin(server: Server, loop: RtpLoop, codec: Codec, impairment: Impairment, seed: int) -> Talk:
    said = audio.speech(SPEECH_S, voice=seed % 4)
    room = f"webrtc-line-{seed}"
    agent = SipAgent(host="127.0.0.1", server=server.sip_address, user=new_name())
    listener = RtpPeer(loop, Pcmu())
    dialog = agent.call(room, listener)
    member = Member(codec.name)
    asyncio.run(_join(server, member, room))
    talker = RtpPeer(loop, codec)
    line = BadLine(cast(socket.socket, _TrackSocket(talker.socket, member)), impairment, seed)
    talker.socket = cast(socket.socket, line)
    talker.ssrc = member.ssrc
    payloads = [codec.encode(frame) for frame in said.reshape(-1, FRAME)]
    talker.remote = ("127.0.0.1", 9)
    return Talk(said, codec, payloads, line, talker, listener, dialog, member)


def _talk_all(server: Server, loop: RtpLoop) -> dict[tuple[str, str], Talk]:
    names = [(name, codec) for name in LINES for codec in (Pcmu, NarrowOpus)]
    talks = {
        (name, codec.name): _begin(server, loop, codec(), LINES[name], seed)
        for seed, (name, codec) in enumerate(names)
    }
    time.sleep(1.0)
    gc.disable()  # it would hold all parties for 100 ms, and that is not the line that was asked for
    try:
        for talk in talks.values():
            talk.began = len(talk.line.log)
            talk.talker.play_payloads(talk.payloads)
        for talk in talks.values():
            talk.talker.wait_played(SPEECH_S + 10)
        time.sleep(0.5)
    finally:
        gc.enable()
    for talk in talks.values():
        talk.dialog.hang_up()
        talk.dialog.agent.close()
        talk.talker.close()
        talk.listener.close()
        talk.member.close()
    return talks


@pytest.fixture(scope="module")
def room_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    config = {"webrtc": {"bind_address": "127.0.0.1"}}
    with Server(tmp_path_factory.mktemp("server"), config) as server:
        yield server


@pytest.fixture
def talks(measured: Measured, room_server: Server, rtp_loop: RtpLoop) -> dict[tuple[str, str], Talk]:
    """All of them at the same time, over."""
    return measured(lambda: _talk_all(room_server, rtp_loop))


@pytest.mark.parametrize("codec", ["PCMU", "opus"])
@pytest.mark.parametrize("name", LINES)
def test_speech_is_nearly_what_the_codec_alone_makes_of_it(
    talks: dict[tuple[str, str], Talk], name: str, codec: str
) -> None:
    """PESQ is near that of a telephone which gets the same packets with no bridge between.

    On a machine that has nothing else to do it is within 0.1, or better; here other work may add to what
    the line does.
    """
    assert talks[name, codec].cost() <= 0.6
