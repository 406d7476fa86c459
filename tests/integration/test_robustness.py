# SPDX-License-Identifier: GPL-3.0-or-later
"""What goes wrong outside: no other call notices, the one concerned ends with a reason, nothing is left."""

import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import MakeAgent, MakeCall, MakePeer, RunSipp
from tests.support import audio, setup
from tests.support.baresip import Baresip
from tests.support.parties import Call
from tests.support.ports import free_port
from tests.support.sdp import describe
from tests.support.server import Server
from tests.support.sip_agent import RefusedError, SipAgent


@pytest.fixture(scope="module")
def hard_server(tmp_path_factory: pytest.TempPathFactory, played_file: Path) -> Iterator[Server]:
    """A server of this module's own, which at the end must hold no more than at its start."""
    port = free_port()
    config = setup.shared_config(port, [9, 10, 11], played_file)
    with Server(tmp_path_factory.mktemp("hard"), config, sip_port=port) as server:
        start = server.counters()
        start["transactions"] = 10_000  # SIP keeps them for half a minute; test_load waits for their end
        yield server
        server.wait_idle()
        server.wait_counters(start, 45.0)


@contextmanager
def undisturbed(call: Call) -> Iterator[None]:
    """Within it, the 1 kHz tone that this call hears has neither gap nor splice."""
    since_s = call.rtp.wait_packets(10)
    yield
    until_s = call.rtp.wait_packets(25)
    heard = call.rtp.heard(since_s, until_s)
    assert audio.find_tone(heard, 8000) == audio.near(1000)
    assert audio.gaps_ms(heard, 8000) == []
    assert audio.phase_jumps(heard, 8000, 1000) == []
    assert call.rtp.lost() == 0


@pytest.fixture
def bystander(hard_server: Server, call: MakeCall) -> Call:
    """A call beside the trouble."""
    party = call("tone1000", server=hard_server.sip_address)
    assert party.hears_tone() == pytest.approx(1000, abs=2)
    return party


def is_alive(server: Server) -> bool:
    """Whether it still answers OPTIONS and lets a call in."""
    with SipAgent(server.sip_address) as agent:
        return agent.options("echo").status == 200


def test_answers_that_are_never_acknowledged(
    hard_server: Server,
    bystander: Call,
    agent: MakeAgent,
    rtp: MakePeer,
    sipp: RunSipp,
    caller_name: str,
) -> None:
    """They are repeated for half a minute, then the call is hung up: whether its audio flows, or its caller
    was killed while it rang.
    """
    party, peer = agent(server=hard_server.sip_address), rtp()
    with undisturbed(bystander):
        process = sipp(
            "uac_ringing",
            remote=hard_server.sip_address,
            callee="ring",
            caller=caller_name,
            rtp_port=free_port(),
        )
        hard_server.started(caller_name)
        process.kill()
        party.send(party.request("INVITE", party.uri("tone1000"), body=describe(peer)))
        answer = party.final("INVITE")
        peer.remote = (answer.sdp.address, answer.sdp.port)
        bye = party.wait_request("BYE", 45.0)
        party.respond(bye, 200, "OK")
        ended = hard_server.ended(party.user)
        killed = hard_server.ended(caller_name)
    assert ended.by == killed.by == "bridge"
    assert killed.kind in ("media_timeout", "transport", "no_answer", "error")


def test_flood_of_one_source(hard_server: Server, bystander: Call) -> None:
    """A stranger who floods is not answered, and the caller beside it does not notice."""
    with undisturbed(bystander), SipAgent(hard_server.sip_address, host="127.0.0.66") as flooder:
        for _ in range(2000):
            flooder.send(flooder.request("INVITE", flooder.uri("echo")))
            flooder.log.clear()
    assert is_alive(hard_server)


def test_far_side_is_killed(hard_server: Server, bystander: Call, tmp_path: Path) -> None:
    """A telephone dies in a call: no BYE, and its ports are closed."""
    with undisturbed(bystander):
        with Baresip(tmp_path / "phone", audio.speech(60.0), user="victim") as phone:
            phone.dial(f"sip:room-killed@127.0.0.1:{hard_server.sip_port}")
            phone.wait_for_audio(1.0)
            phone.process.kill()
            phone.process.wait()
        ended = hard_server.ended("victim", timeout_s=setup.MEDIA_TIMEOUT_S + 8)
    assert (ended.kind, ended.by) == ("media_timeout", "bridge")


def test_garbage_on_the_sip_port(hard_server: Server, bystander: Call) -> None:
    """Random octets, cut messages and another protocol, by UDP and TCP."""
    rng = random.Random(1)
    invite = b"INVITE sip:echo@127.0.0.1 SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1;branch=z9hG4bKx\r\n"
    pieces = [
        *(rng.randbytes(rng.randrange(1, 1500)) for _ in range(100)),
        b"",
        b"\x00" * 1000,
        b"\r\n\r\n",
        invite,
        invite + b"\r\n",
        invite + b"CSeq: 99999999999999999999 INVITE\r\nContent-Length: -1\r\n\r\n",
        b"SIP/2.0 200 OK\r\n\r\n",
        b"SIP/2.0 999999999999 \xff\xfe\r\nCSeq: 1 INVITE\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    ]
    with undisturbed(bystander):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for piece in pieces:
                sender.sendto(piece, hard_server.sip_address)
        for piece in pieces[-10:]:
            with socket.create_connection(hard_server.sip_address, 5.0) as connection:
                connection.sendall(piece)
    assert is_alive(hard_server)


# After RFC 4475, each in the shape of a message that parsers have stumbled over.
_WHO = ["From: <sip:a@b>;tag=1", "To: <sip:a@b>"]
_TORTURE = {
    "no From, To, Call-ID": ["CSeq: 1 INVITE"],
    "two Call-IDs": [*_WHO, "Call-ID: 1", "Call-ID: 2", "CSeq: 1 INVITE"],
    "method differs": [*_WHO, "Call-ID: t1", "CSeq: 1 BYE"],
    "unclosed quote": ['From: "a <sip:a@b>;tag=1', "To: <sip:a@b>", "Call-ID: t2", "CSeq: 1 INVITE"],
    "unclosed bracket": ["From: <sip:a@b;tag=1", "To: <sip:a@b>", "Call-ID: t3", "CSeq: 1 INVITE"],
    "long folded": [*_WHO, "Call-ID: t4", "CSeq: 1 INVITE", "Subject: x", *[" y"] * 500],
    "many Vias": [*_WHO, "Call-ID: t5", "CSeq: 1 INVITE", *["Via: SIP/2.0/UDP x;branch=z9hG4bKq"] * 200],
    "escapes": ["From: <sip:%00%0d%0a@b>;tag=%00", "To: <sip:a@b>", "Call-ID: t6", "CSeq: 1 INVITE"],
    "too long body": [*_WHO, "Call-ID: t7", "CSeq: 1 INVITE", "Content-Length: 9999"],
    "empty multipart": [
        *_WHO,
        "Call-ID: t8",
        "CSeq: 1 INVITE",
        "Content-Type: multipart/mixed;boundary=x",
        "Content-Length: 0",
    ],
    "parameters without end": [_WHO[0] + ";p" * 3000, _WHO[1], "Call-ID: t9", "CSeq: 1 INVITE"],
}


def test_torture_messages(hard_server: Server, bystander: Call) -> None:
    """Malformed INVITEs are refused or dropped; the server goes on."""
    with undisturbed(bystander), SipAgent(hard_server.sip_address) as agent:
        for headers in _TORTURE.values():
            lines = ["INVITE sip:echo@127.0.0.1 SIP/2.0", f"Via: {agent.via()}", *headers, "", ""]
            agent.send("\r\n".join(lines))
    assert is_alive(hard_server)


def _odd_descriptions(rtp_port: int) -> dict[str, str]:
    head = "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
    audio_line = f"m=audio {rtp_port} RTP/AVP 0\r\n"
    return {
        "a hundred streams": head + audio_line * 100,
        "ptime 1": head + audio_line + "a=ptime:1\r\n",
        "ptime 65535": head + audio_line + "a=ptime:65535\r\n",
        "ptime 0": head + audio_line + "a=ptime:0\r\na=maxptime:0\r\n",
        "rtpmap 65535": head + f"m=audio {rtp_port} RTP/AVP 65535\r\na=rtpmap:65535 PCMU/8000\r\n",
        "dynamic type without rtpmap": head + f"m=audio {rtp_port} RTP/AVP 111\r\n",
        "clock rate 0": head + f"m=audio {rtp_port} RTP/AVP 97\r\na=rtpmap:97 opus/0/0\r\n",
        "seventy keys": head
        + f"m=audio {rtp_port} RTP/SAVP 0\r\n"
        + "".join(f"a=crypto:{n} AES_CM_128_HMAC_SHA1_80 inline:{'A' * 40}\r\n" for n in range(70)),
        "port 0": head + "m=audio 0 RTP/AVP 0\r\n",
        "port 99999": head + "m=audio 99999 RTP/AVP 0\r\n",
        "no address": "v=0\r\no=- 1 1 IN IP4 x\r\ns=-\r\nt=0 0\r\n" + audio_line,
        "not SDP": "\x00\x01\x02" * 100,
        "fmtp without end": head + audio_line + "a=fmtp:0 " + "x;" * 2000 + "\r\n",
    }


def test_odd_descriptions(hard_server: Server, bystander: Call, agent: MakeAgent, rtp: MakePeer) -> None:
    """SDP nobody should send is refused, or answered and hung up; nothing breaks."""
    peer = rtp()
    with undisturbed(bystander):
        for name, sdp in _odd_descriptions(peer.port).items():
            party = agent(server=hard_server.sip_address)
            try:
                party.call("echo", peer, sdp=sdp).hang_up()
            except RefusedError as refusal:
                assert 400 <= refusal.status < 600, name  # noqa: PT017 (being let in is right as well)
    assert is_alive(hard_server)


@pytest.mark.parametrize("size", [12_500, 65_000])
def test_large_description_by_udp(
    size: int, hard_server: Server, bystander: Call, agent: MakeAgent, rtp: MakePeer
) -> None:
    """Beyond the limit of a message it is dropped."""
    party = agent(server=hard_server.sip_address)
    offer = describe(rtp())
    plain = len(party.request("INVITE", party.uri("echo"), body=offer))
    sdp = offer + "a=x:" + "y" * (size - plain) + "\r\n"
    with undisturbed(bystander):
        party.send(party.request("INVITE", party.uri("echo"), body=sdp))
        assert party.hears_nothing(1.0)
    assert is_alive(hard_server)


def test_large_description_by_tcp(
    hard_server: Server, bystander: Call, call: MakeCall, rtp: MakePeer
) -> None:
    """The connection is closed, and the call that was on it ends with a reason."""
    victim = call("tone1000", server=hard_server.sip_address, transport="tcp")
    assert victim.hears_tone() == pytest.approx(1000, abs=2)
    sdp = describe(rtp()) + "a=x:" + "y" * 64_000 + "\r\n"
    with undisturbed(bystander):
        victim.agent.send(victim.agent.request("INVITE", victim.agent.uri("echo"), body=sdp))
        assert victim.agent.closed_by_server()
        victim.dialog.ended = True
        ended = hard_server.ended(victim.caller)
    assert ended.kind == "transport"
    assert is_alive(hard_server)


@pytest.mark.timeout(150)
def test_garbage_on_the_rtp_port(hard_server: Server, bystander: Call) -> None:
    """Octets that are no RTP, from the caller's address and from a stranger's, change nothing in the call."""
    assert bystander.dialog.answer is not None
    rng = random.Random(2)
    with undisturbed(bystander):
        for host in ("127.0.0.1", "127.0.0.66"):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.bind((host, 0))
                for port in (bystander.dialog.answer.port, bystander.dialog.answer.port + 1):
                    for _ in range(200):
                        size = rng.choice((0, 1, 11, 12, 40, 172, 1400))
                        # Version 0, 1 or 3: what has version 2 could be a new stream of the caller's.
                        octets = bytes([rng.choice((0x00, 0x40, 0xC0)) | rng.randrange(64)]) + rng.randbytes(
                            size
                        )
                        sender.sendto(octets[:size], ("127.0.0.1", port))
    assert is_alive(hard_server)


def test_odd_rtp_of_the_caller(hard_server: Server, bystander: Call, call: MakeCall) -> None:
    """Empty and huge payloads of odd lengths: the call that sends them may suffer, no other."""
    party = call("echo", server=hard_server.sip_address)
    party.rtp.listen(0.3)
    with undisturbed(bystander):
        party.rtp.play_payloads([b"", b"\xff", b"\x55" * 1400, b"\x00" * 161, *[b"\x7f" * 160] * 10])
        party.rtp.wait_played()
        party.rtp.play(audio.tone(440, 1.0), loop=True)
        party.rtp.listen(0.7)
        assert party.hears_tone() == pytest.approx(440, abs=2)


def test_half_open_connections(hard_server: Server, bystander: Call) -> None:
    """Connections that say nothing, or half of something, hold nobody up."""
    with undisturbed(bystander):
        connections = [socket.create_connection(hard_server.sip_address, 5.0) for _ in range(50)]
        for connection in connections[::2]:
            connection.sendall(b"INVITE sip:echo@127.0.0.1 SIP/2.0\r\nVia: SIP/2.0/TCP 127.0.0.1")
        assert is_alive(hard_server)
        for connection in connections:
            connection.close()
