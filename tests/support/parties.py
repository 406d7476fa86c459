# SPDX-License-Identifier: GPL-3.0-or-later
"""A call as a test sees it: a scripted SIP party and its RTP."""

import dataclasses
import itertools

from tests.support.audio import find_tone, steady_part
from tests.support.rtp import RtpPeer
from tests.support.sip_agent import Dialog, SipAgent

_names = itertools.count(1)


def new_name() -> str:
    """A caller's name that no other call has, so that the log can be asked about it."""
    return f"caller{next(_names):05d}"


@dataclasses.dataclass
class Call:
    """One party in a call."""

    agent: SipAgent
    rtp: RtpPeer
    dialog: Dialog
    caller: str

    def hang_up(self) -> None:
        self.dialog.hang_up()

    def hears_tone(self, seconds: float = 0.5) -> float:
        """The frequency heard from now on, in Hz; 0 in silence."""
        heard = steady_part(self.rtp.listen(seconds), self.rtp.codec.rate_hz)
        return find_tone(heard, self.rtp.codec.rate_hz)
