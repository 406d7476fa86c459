# SPDX-License-Identifier: GPL-3.0-or-later
"""As much of SDP (RFC 4566, RFC 3264) as a test's party needs."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Protocol

from tests.support.codecs import Codec, Opus

_version = itertools.count(1)


class Media(Protocol):
    """Where a party wants its audio; an RtpPeer is one."""

    host: str
    port: int
    codec: Codec
    dtmf_payload_type: int


def describe(
    media: Media,
    *,
    codecs: Sequence[type[Codec]] = (),
    direction: str = "sendrecv",
    address: str = "",
    dtmf: bool = True,
    extra: Sequence[str] = (),
    profile: str = "RTP/AVP",
) -> str:
    """An offer or answer of one audio stream; without `codecs` of that of `media` alone."""
    kinds = list(codecs) or [type(media.codec)]
    where = address or media.host
    family = "IP6" if ":" in where else "IP4"
    formats = [str(kind.payload_type) for kind in kinds]
    lines = [f"a=rtpmap:{kind.payload_type} {kind.rtpmap}" for kind in kinds]
    if dtmf:
        formats.append(str(media.dtmf_payload_type))
        # The event's clock is that of the audio it takes the place of (RFC 4733, 2.1).
        clock_hz = 48_000 if kinds == [Opus] else 8000
        lines.append(f"a=rtpmap:{media.dtmf_payload_type} telephone-event/{clock_hz}")
        lines.append(f"a=fmtp:{media.dtmf_payload_type} 0-15")
    head = [
        "v=0",
        f"o=- 1 {next(_version)} IN {family} {where}",
        "s=-",
        f"c=IN {family} {where}",
        "t=0 0",
        f"m=audio {media.port} {profile} {' '.join(formats)}",
    ]
    return "\r\n".join([*head, *lines, "a=ptime:20", f"a={direction}", *extra, ""])


@dataclasses.dataclass(frozen=True)
class Description:
    """What the other party said of its first audio stream."""

    origin: str
    address: str
    port: int
    payload_types: tuple[int, ...]
    rtpmaps: dict[int, str]
    direction: str
    profile: str
    crypto: tuple[str, ...]  # values of a=crypto (RFC 4568)

    @classmethod
    def parse(cls, text: str) -> "Description":
        origin, address, port, direction, profile = "", "", 0, "sendrecv", ""
        crypto: list[str] = []
        payload_types: tuple[int, ...] = ()
        rtpmaps: dict[int, str] = {}
        for line in text.splitlines():
            kind, _, value = line.partition("=")
            if kind == "o":
                origin = value.split()[5]
            elif kind == "c":
                address = value.split()[2]
            elif kind == "m" and value.startswith("audio") and not port:
                _, port_text, profile, *formats = value.split()
                port, payload_types = int(port_text), tuple(int(number) for number in formats)
            elif kind == "a" and value in ("sendrecv", "sendonly", "recvonly", "inactive"):
                direction = value
            elif kind == "a" and value.startswith("crypto:"):
                crypto.append(value.removeprefix("crypto:"))
            elif kind == "a" and value.startswith("rtpmap:"):
                number, name = value.removeprefix("rtpmap:").split(maxsplit=1)
                rtpmaps[int(number)] = name
        return cls(origin, address, port, payload_types, rtpmaps, direction, profile, tuple(crypto))
