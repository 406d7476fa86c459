# SPDX-License-Identifier: GPL-3.0-or-later
"""The audio sections of session descriptions: what is offered, and what we say to it.

Parsing and writing is libdatachannel's; here is what is chosen.
"""

import enum
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field

import libdatachannel as dc

# As SDP writes them, with the payload types that we offer them by.
_KNOWN = {
    "opus": ("opus", 48_000, "/2", 111),
    "pcmu": ("PCMU", 8000, "", 0),
    "pcma": ("PCMA", 8000, "", 8),
    "g722": ("G722", 8000, "", 9),
}
_OPUS_PARAMETERS = "minptime=10;useinbandfec=1"
LEVEL_ID = 1  # that we offer the header extension by which says how loud each packet is (RFC 6464)
_LEVEL = "urn:ietf:params:rtp-hdrext:ssrc-audio-level"


class Direction(enum.StrEnum):
    """Who sends, as the one says who has it in its description."""

    SENDRECV = "sendrecv"
    SENDONLY = "sendonly"
    RECVONLY = "recvonly"
    INACTIVE = "inactive"

    @property
    def sends(self) -> bool:
        return self in (Direction.SENDRECV, Direction.SENDONLY)

    @property
    def receives(self) -> bool:
        return self in (Direction.SENDRECV, Direction.RECVONLY)

    @property
    def reverse(self) -> "Direction":
        """The widest answer to it."""
        reversed_ = {Direction.SENDONLY: Direction.RECVONLY, Direction.RECVONLY: Direction.SENDONLY}
        return reversed_.get(self, self)


NATIVE_DIRECTIONS = {
    Direction.SENDRECV: dc.Description.Direction.SendRecv,
    Direction.SENDONLY: dc.Description.Direction.SendOnly,
    Direction.RECVONLY: dc.Description.Direction.RecvOnly,
    Direction.INACTIVE: dc.Description.Direction.Inactive,
}


@dataclass(frozen=True, slots=True)
class Codec:
    """A codec that we have, with the number that it goes by."""

    name: str  # "opus", "PCMU", "PCMA" or "G722"
    payload_type: int
    clock_hz: int
    feedback: frozenset[str] = frozenset()  # RTCP messages that were agreed on, as "nack"

    @classmethod
    def named(cls, name: str) -> "Codec":
        """One that we offer."""
        known, clock_hz, _, payload_type = _KNOWN[name.lower()]
        return cls(known, payload_type, clock_hz, frozenset({"nack"}))


@dataclass(frozen=True, slots=True)
class OfferedAudio:
    """An audio section of the far side's description."""

    mid: str
    direction: Direction  # theirs
    codecs: tuple[Codec, ...]  # those that we have, too
    all_codecs: tuple[str, ...]  # the names of all, for messages to people
    stream_id: str = ""
    track_id: str = ""
    ssrcs: tuple[int, ...] = field(default=())
    extensions: frozenset[int] = frozenset()  # of RTP headers, by their numbers


@dataclass(frozen=True, slots=True)
class AudioChoice:
    """What we answer to one."""

    direction: Direction  # ours
    codecs: tuple[Codec, ...]  # any of these may come, the first is sent


def choose_codecs(offered: OfferedAudio, order: Sequence[str]) -> tuple[Codec, ...]:
    """Those of the offer that stand in our order, best first."""
    wanted = [name.lower() for name in order]
    common = [codec for codec in offered.codecs if codec.name.lower() in wanted]
    return tuple(sorted(common, key=lambda codec: wanted.index(codec.name.lower())))


def read_audio(media: "dc.Description.Media") -> OfferedAudio:
    """An audio section as the far side has it."""
    codecs, names = [], []
    for payload_type in media.payload_types():
        entry = media.rtp_map(payload_type)
        names.append(str(entry.format))
        known = _KNOWN.get(entry.format.lower())
        if known is not None and known[1] == entry.clock_rate:
            codecs.append(Codec(known[0], payload_type, known[1], frozenset(entry.rtcp_fbs) & {"nack"}))
    stream_id, track_id = "", ""
    for attribute in media.attributes():
        key, _, value = attribute.partition(":")
        if key == "msid":
            stream_id, _, track_id = value.partition(" ")
    directions = {native: ours for ours, native in NATIVE_DIRECTIONS.items()}
    return OfferedAudio(
        mid=media.mid(),
        # none said is sendrecv (RFC 8866, 6.7)
        direction=directions.get(media.direction(), Direction.SENDRECV),
        codecs=tuple(codecs),
        all_codecs=tuple(names),
        stream_id=stream_id,
        track_id=track_id,
        ssrcs=tuple(media.get_ssrcs()),
        extensions=frozenset(media.ext_ids()),
    )


def write_audio(
    mid: str,
    direction: Direction,
    codecs: Sequence[Codec],
    *,
    ssrc: int,
    cname: str,
    stream_id: str,
    track_id: str,
    says_level: bool = False,
) -> "dc.Description.Audio":
    """An audio section of ours."""
    audio = dc.Description.Audio(mid, NATIVE_DIRECTIONS[direction])
    for codec in codecs:
        channels = _KNOWN[codec.name.lower()][2]
        entry = dc.Description.RtpMap(f"{codec.payload_type} {codec.name}/{codec.clock_hz}{channels}")
        for feedback in sorted(codec.feedback):
            entry.add_feedback(feedback)
        if codec.name == "opus":
            entry.add_parameter(_OPUS_PARAMETERS)
        audio.add_rtp_map(entry)
    if direction.sends:
        audio.add_ssrc(ssrc, cname, stream_id or "-", track_id or mid)
    if says_level:
        audio.add_ext_map(dc.Description.Entry.ExtMap(LEVEL_ID, _LEVEL))
    return audio


def with_public_address(sdp: str, address: str) -> str:
    """Says the public address beside each of this host's own that others cannot reach (NAT 1:1)."""
    lines = []
    for line in sdp.splitlines():
        lines.append(line)
        if candidate := public_candidate(line.removeprefix("a="), address):
            lines.append(f"a={candidate}")
    return "\r\n".join(lines) + "\r\n"


def public_candidate(candidate: str, address: str) -> str:
    """The candidate of the public address that belongs to one of this host; "" where none does."""
    parts = candidate.split()
    if len(parts) < 8 or not parts[0].startswith("candidate:") or parts[7] != "host":
        return ""
    try:
        own = ipaddress.ip_address(parts[4])
    except ValueError:
        return ""
    if own.version != ipaddress.ip_address(address).version or not own.is_private or own.is_loopback:
        return ""
    foundation, component, transport, priority, _, port = parts[:6]
    # just below its own
    return (
        f"{foundation}9 {component} {transport} {max(1, int(priority) - 1)} {address} {port}"
        f" typ srflx raddr {own} rport {port}"
    )
