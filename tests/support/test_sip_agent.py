# SPDX-License-Identifier: GPL-3.0-or-later
"""Two scripted parties call each other, and digests are those of the standards' examples."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support import audio
from tests.support.codecs import G722, Pcma, Pcmu
from tests.support.rtp import RtpLoop, RtpPeer
from tests.support.sdp import Description, describe
from tests.support.sip_agent import Message, RefusedError, SipAgent, digest


@pytest.fixture
def rtp_loop() -> Iterator[RtpLoop]:
    """A thread for RTP peers."""
    loop = RtpLoop()
    yield loop
    loop.close()


def test_digest_md5() -> None:
    """The example of RFC 2617, section 3.5."""
    challenge = (
        'Digest realm="testrealm@host.com", qop="auth,auth-int", nonce="dcd98b7102dd2f0e8b11d0f600bfb0c093",'
        ' opaque="5ccc069c403ebaf9f0171e9517f40e41"'
    )
    header = digest(challenge, "GET", "/dir/index.html", "Mufasa", "Circle Of Life")
    assert 'response="6629fae49393a05397450978507c4ef1"' in header


def test_digest_sha256() -> None:
    """The example of RFC 7616, section 3.9.1."""
    challenge = (
        'Digest realm="http-auth@example.org", qop="auth, auth-int", algorithm=SHA-256,'
        ' nonce="7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v"'
    )
    header = digest(
        challenge,
        "GET",
        "/dir/index.html",
        "Mufasa",
        "Circle of Life",
        cnonce="f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ",
    )
    assert 'response="753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1"' in header


def test_parse_message() -> None:
    """Compact and folded headers, and the body."""
    message = Message.parse(
        b"SIP/2.0 180 Ringing\r\nv: SIP/2.0/UDP a;branch=1\r\nCSeq: 7 INVITE\r\n"
        b"Subject: one\r\n two\r\nl: 2\r\n\r\nhi"
    )
    assert (message.status, message.method, message.body) == (180, "INVITE", "hi")
    assert message.get("via") == "SIP/2.0/UDP a;branch=1"
    assert message.get("subject") == "one two"


def test_sdp_round_trip(rtp_loop: RtpLoop) -> None:
    """What is described is read again."""
    with RtpPeer(rtp_loop) as rtp:
        text = describe(rtp, codecs=(G722, Pcmu, Pcma), direction="sendonly", address="0.0.0.0")
        assert Description.parse(text) == Description(
            "0.0.0.0",
            "0.0.0.0",
            rtp.port,
            (9, 0, 8, 101),
            {9: "G722/8000", 0: "PCMU/8000", 8: "PCMA/8000", 101: "telephone-event/8000"},
            "sendonly",
            "RTP/AVP",
            (),
        )


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_agents_call_each_other(host: str, rtp_loop: RtpLoop) -> None:
    """A call with audio both ways, and a BYE."""
    with (
        SipAgent(("", 0), host=host, user="b") as b,
        SipAgent((host, b.port), host=host, user="a") as a,
        RtpPeer(rtp_loop, host=host) as rtp_a,
        RtpPeer(rtp_loop, host=host) as rtp_b,
        ThreadPoolExecutor(1) as pool,
    ):
        b.server = (host, a.port)
        rtp_a.play(audio.tone(500, 2.0), loop=True)
        rtp_b.play(audio.tone(800, 2.0), loop=True)

        def callee() -> str:
            dialog = b.accept(b.wait_request("INVITE"), rtp_b)
            return dialog.wait_bye(10).method

        done = pool.submit(callee)
        dialog = a.call("b", rtp_a)
        assert audio.find_tone(rtp_a.listen(0.5), 8000) == pytest.approx(800, abs=2)
        assert audio.find_tone(rtp_b.listen(0.5), 8000) == pytest.approx(500, abs=2)
        dialog.hang_up()
        assert done.result(10) == "BYE"


def test_refusal_raises(rtp_loop: RtpLoop) -> None:
    """A final response of 486 is no call."""
    with (
        SipAgent(("", 0)) as b,
        SipAgent(("127.0.0.1", b.port)) as a,
        RtpPeer(rtp_loop) as rtp,
        ThreadPoolExecutor(1) as pool,
    ):
        b.server = ("127.0.0.1", a.port)

        def callee() -> str:
            b.respond(b.wait_request("INVITE"), 486, "Busy Here", tag="x")
            return b.wait_request("ACK").method

        done = pool.submit(callee)
        with pytest.raises(RefusedError) as refused:
            a.call("b", rtp)
        assert refused.value.status == 486
        assert done.result(10) == "ACK"


def test_silence_is_told_from_an_answer() -> None:
    """Nothing heard is true only when nothing came."""
    with SipAgent(("", 0)) as b, SipAgent(("127.0.0.1", b.port)) as a:
        b.server = ("127.0.0.1", a.port)
        assert a.hears_nothing(0.2)
        b.send(b.request("OPTIONS", b.uri("a")))
        assert not a.hears_nothing(2.0)
