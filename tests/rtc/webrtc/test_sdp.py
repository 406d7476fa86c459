# SPDX-License-Identifier: GPL-3.0-or-later
"""What is offered, and what we choose of it."""

import libdatachannel as dc
import pytest

from sipbridge.rtc.webrtc import sdp
from sipbridge.rtc.webrtc.sdp import Codec, Direction

_FINGERPRINT = ":".join(f"{octet:02X}" for octet in range(32))
# As a browser says it, without what does not matter here.
BROWSER = f"""v=0
o=- 4611731400430051336 2 IN IP4 127.0.0.1
s=-
t=0 0
a=group:BUNDLE 0
m=audio 9 UDP/TLS/RTP/SAVPF 111 63 9 0 8 13 110 126
c=IN IP4 0.0.0.0
a=ice-ufrag:abcd
a=ice-pwd:abcdefghijklmnopqrstuvwx
a=fingerprint:sha-256 {_FINGERPRINT}
a=setup:actpass
a=mid:0
a=sendrecv
a=msid:stream track
a=rtcp-mux
a=rtpmap:111 opus/48000/2
a=rtcp-fb:111 transport-cc
a=rtcp-fb:111 nack
a=fmtp:111 minptime=10;useinbandfec=1
a=rtpmap:63 red/48000/2
a=rtpmap:9 G722/8000
a=rtpmap:0 PCMU/8000
a=rtpmap:8 PCMA/8000
a=rtpmap:13 CN/8000
a=rtpmap:110 telephone-event/48000
a=rtpmap:126 telephone-event/8000
a=ssrc:1001 cname:x
"""


def read(text: str = BROWSER) -> sdp.OfferedAudio:
    return sdp.read_audio(dc.Description(text, "offer").media(0))


def test_a_browsers_offer_is_read() -> None:
    offered = read()
    assert (offered.mid, offered.direction, offered.ssrcs) == ("0", Direction.SENDRECV, (1001,))
    assert (offered.stream_id, offered.track_id) == ("stream", "track")
    assert set(offered.codecs) == {
        Codec("opus", 111, 48_000, frozenset({"nack"})),
        Codec("G722", 9, 8000),
        Codec("PCMU", 0, 8000),
        Codec("PCMA", 8, 8000),
    }
    assert "red" in offered.all_codecs


@pytest.mark.parametrize(
    ("order", "chosen"),
    [
        (["opus", "PCMU"], ["opus", "PCMU"]),
        (["PCMA", "G722", "opus"], ["PCMA", "G722", "opus"]),
        (["PCMU"], ["PCMU"]),
        ([], []),
    ],
)
def test_our_order_decides(order: list[str], chosen: list[str]) -> None:
    assert [codec.name for codec in sdp.choose_codecs(read(), order)] == chosen


def test_a_name_with_another_clock_is_none_of_ours() -> None:
    assert read(BROWSER.replace("PCMU/8000", "PCMU/16000")).codecs[0].name != "PCMU"
    assert "PCMU" not in {codec.name for codec in read(BROWSER.replace("PCMU/8000", "PCMU/16000")).codecs}


def test_what_we_write_can_be_read() -> None:
    codecs = (Codec.named("opus"), Codec("pcmu".upper(), 0, 8000))
    media = sdp.write_audio("7", Direction.SENDONLY, codecs, ssrc=5, cname="me", stream_id="s", track_id="t")
    text = str(media)
    assert "a=rtpmap:111 opus/48000/2" in text
    assert "a=rtpmap:0 PCMU/8000" in text
    assert "a=rtcp-fb:111 nack" in text
    assert text.count("a=fmtp:111") == 1
    offered = sdp.read_audio(media)
    assert (offered.mid, offered.direction, offered.ssrcs) == ("7", Direction.SENDONLY, (5,))
    assert (offered.stream_id, offered.track_id) == ("s", "t")


def test_how_loud_packets_are_may_be_said() -> None:
    """Where the answer has it too."""
    for says_level, extensions in ((True, {sdp.LEVEL_ID}), (False, set())):
        media = sdp.write_audio(
            "7",
            Direction.SENDONLY,
            (Codec.named("PCMU"),),
            ssrc=5,
            cname="me",
            stream_id="s",
            track_id="t",
            says_level=says_level,
        )
        assert ("a=extmap:1 urn:ietf:params:rtp-hdrext:ssrc-audio-level" in str(media)) is says_level
        assert sdp.read_audio(media).extensions == extensions


def test_directions_are_answered() -> None:
    assert [direction.reverse for direction in Direction] == [
        Direction.SENDRECV,
        Direction.RECVONLY,
        Direction.SENDONLY,
        Direction.INACTIVE,
    ]


HOST = "candidate:1 1 UDP 2114977791 10.0.0.7 30001 typ host"
PUBLIC = "candidate:19 1 UDP 2114977790 203.0.113.5 30001 typ srflx raddr 10.0.0.7 rport 30001"


@pytest.mark.parametrize(
    ("candidate", "address", "said"),
    [
        (HOST, "203.0.113.5", PUBLIC),
        (HOST, "2001:db8::1", ""),
        (HOST.replace("10.0.0.7", "127.0.0.1"), "203.0.113.5", ""),
        (HOST.replace("10.0.0.7", "198.51.100.1"), "203.0.113.5", PUBLIC.replace("10.0.0.7", "198.51.100.1")),
        (HOST.replace("10.0.0.7", "abc.local"), "203.0.113.5", ""),
        (HOST.replace("typ host", "typ relay raddr 1.2.3.4 rport 5"), "203.0.113.5", ""),
        ("candidate:1", "203.0.113.5", ""),
    ],
)
def test_the_public_address_stands_beside_ours(candidate: str, address: str, said: str) -> None:
    # an address of documentation counts as private
    assert sdp.public_candidate(candidate, address) == said
    described = sdp.with_public_address(f"v=0\r\na={candidate}\r\n", address)
    assert described == f"v=0\r\na={candidate}\r\n" + (f"a={said}\r\n" if said else "")
