# SPDX-License-Identifier: GPL-3.0-or-later
"""The RTP party that encrypts."""

import pytest

from tests.support import audio
from tests.support.rtp import RtpLoop, RtpPeer
from tests.support.sdp import Description
from tests.support.srtp import SrtpPeer


def test_two_of_them_hear_each_other(rtp_loop: RtpLoop) -> None:
    """Each with the other's key."""
    with SrtpPeer(rtp_loop) as a, SrtpPeer(rtp_loop) as b:
        assert a.take_key(Description.parse(b.describe(tag="7"))) == "7"
        b.take_key(Description.parse(a.describe()))
        a.remote = ("127.0.0.1", b.port)
        a.play(audio.tone(1000, 1.0), loop=True)
        assert audio.find_tone(b.listen(0.5), 8000) == pytest.approx(1000, abs=2)


def test_nobody_else_can_listen_or_join_in(rtp_loop: RtpLoop) -> None:
    """What goes out is noise without the key, and what comes in without it is dropped."""
    with SrtpPeer(rtp_loop) as a, RtpPeer(rtp_loop) as b:
        a.take_key(Description.parse(a.describe()))
        a.remote, b.remote = ("127.0.0.1", b.port), ("127.0.0.1", a.port)
        assert len(set(b.listen(0.2).tolist())) > 100
        assert a.packets == []
