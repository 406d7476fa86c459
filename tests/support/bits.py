# SPDX-License-Identifier: GPL-3.0-or-later
"""Speech that is sent in G.711, and whether it has come as it was sent."""

import numpy as np

from tests.support import audio
from tests.support.codecs import Codec, Pcmu
from tests.support.rtp import RtpPeer

FRAME = 160
STRETCH = 8000  # octets: a second


def send_speech(peer: RtpPeer, codec: type[Codec], seconds: float = 4.0) -> bytes:
    """Has a peer say it, and returns its octets when it has.

    It is dithered, as digital silence would match anywhere. µ-law's minus zero is left out: linear samples
    have one zero, so it arrives as plus zero.
    """
    voice = audio.speech(seconds)
    voice = voice + np.random.default_rng(3).integers(-100, 100, len(voice)).astype(np.int16)
    sent = b"".join(codec().encode(frame) for frame in voice.reshape(-1, FRAME))
    if codec is Pcmu:
        sent = sent.replace(b"\x7f", b"\xff")
    peer.play_payloads([sent[start : start + FRAME] for start in range(0, len(sent), FRAME)])
    peer.wait_played()
    return sent


def has_stretch(sent: bytes, peer: RtpPeer) -> bool:
    """A second of it is in what the peer has received, octet by octet."""
    heard = b"".join(packet.payload for packet in peer.audio_packets())
    return any(sent[start : start + STRETCH] in heard for start in range(0, len(sent) - STRETCH, 800))
