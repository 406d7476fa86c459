# SPDX-License-Identifier: GPL-3.0-or-later
"""An RTP party that encrypts: SRTP (RFC 3711) with keys from SDP (SDES, RFC 4568)."""

import base64
import secrets
from typing import Any

from pylibsrtp import Error, Policy, Session

from tests.support.rtp import RtpPeer
from tests.support.sdp import Description, describe

SUITE = "AES_CM_128_HMAC_SHA1_80"
_KEY_BYTES = 16 + 14  # with the salt


class SrtpPeer(RtpPeer):
    """Hears what the key of `take_key` opens, and nothing before."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._key = secrets.token_bytes(_KEY_BYTES)
        self._out = Session(Policy(self._key, Policy.SSRC_ANY_OUTBOUND))
        self._in: Session | None = None
        super().__init__(*args, **options)

    def describe(self, *, profile: str = "RTP/SAVP", tag: str = "1") -> str:
        """An offer with this side's key, or an answer, which takes the tag of what it accepts."""
        key = base64.b64encode(self._key).decode()
        return describe(self, profile=profile, extra=[f"a=crypto:{tag} {SUITE} inline:{key}"])

    def take_key(self, said: Description) -> str:
        """The other side's key, as its SDP says; gives the tag of it."""
        for line in said.crypto:
            tag, suite, key = line.split()[:3]
            if suite == SUITE:
                master = base64.b64decode(key.removeprefix("inline:").partition("|")[0])
                self._in = Session(Policy(master, Policy.SSRC_ANY_INBOUND))
                return tag
        raise AssertionError(f"no key for {SUITE}: {said}")

    def _seal(self, packet: bytes) -> bytes:
        return self._out.protect(packet)

    def _unseal(self, data: bytes) -> bytes:
        if self._in is None:
            return b""
        try:
            return self._in.unprotect(data)
        except Error:
            return b""
