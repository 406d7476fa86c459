# SPDX-License-Identifier: GPL-3.0-or-later
"""What carries signalling and audio beside plain UDP and TCP over IPv4."""

from collections.abc import Callable, Iterator

import pytest

from tests.conftest import MakeAgent, MakeCall, MakePeer
from tests.support import audio
from tests.support.ports import free_port
from tests.support.rtp import RtpLoop, RtpPeer
from tests.support.server import Server
from tests.support.sip_agent import RefusedError
from tests.support.srtp import SrtpPeer

TONE = pytest.approx(1000, abs=2)
SRTP_TRUNKS = {"off": "127.0.0.1", "allow": "127.0.0.51", "require": "127.0.0.52"}


# IPv6 -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ipv6_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """It has no IPv4 address."""
    port = free_port()
    config = {
        "sip": {"listen": [f"[::1]:{port}"]},
        "trunk": [{"name": "line", "allowed_addresses": ["::1/128"]}],
        "rule": [{"name": "tone", "target": "tone:1000"}],
    }
    with Server(tmp_path_factory.mktemp("ipv6"), config, sip_port=port) as server:
        yield server


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_ipv6_call_is_heard(transport: str, ipv6_server: Server, call: MakeCall) -> None:
    """Signalling and audio are IPv6, and SDP says so."""
    made = call("x", server=("::1", ipv6_server.sip_port), host="::1", transport=transport)
    assert made.dialog.answer is not None
    assert made.dialog.answer.address == "::1"
    assert "[::1]" in made.dialog.target
    assert made.hears_tone() == TONE


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_both_families_at_one_server(host: str, server: Server, call: MakeCall) -> None:
    """A server that listens at an address of each family takes calls by both, and hears them."""
    made = call("echo", server=(host, server.sip_port), host=host)
    made.rtp.play(audio.tone(1000, 1.0), loop=True)
    made.rtp.listen(0.3)
    assert made.hears_tone() == TONE


@pytest.mark.parametrize("which", ["alone", "both"])
def test_dialling_an_ipv6_address(
    which: str, ipv6_server: Server, request: pytest.FixtureRequest, agent: MakeAgent, rtp: MakePeer
) -> None:
    """A URI with an address in brackets is dialled by IPv6."""
    server: Server = ipv6_server if which == "alone" else request.getfixturevalue("server")
    callee = agent(server=("::1", server.sip_port), host="::1")
    call_id = server.dial(f"sip:x@[::1]:{callee.port}", "tone:1000")
    invite = callee.wait_request("INVITE")
    assert invite.sdp.address == "::1"
    peer = rtp(host="::1")
    dialog = callee.accept(invite, peer)
    peer.listen(0.2)
    assert audio.find_tone(peer.listen(0.5), 8000) == TONE
    server.hang_up(call_id)
    dialog.wait_bye()


# SRTP -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def srtp_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Trunks by address for each setting of `srtp`."""
    config = {
        "trunk": [
            {"name": name, "allowed_addresses": [address], "srtp": name}
            for name, address in SRTP_TRUNKS.items()
        ],
        "rule": [{"name": "echo", "target": "echo:"}],
    }
    with Server(tmp_path_factory.mktemp("srtp"), config) as server:
        yield server


@pytest.fixture
def srtp(rtp_loop: RtpLoop) -> Iterator[Callable[[str], SrtpPeer]]:
    """Makes RTP parties that encrypt, by their address."""
    peers: list[SrtpPeer] = []

    def make(host: str) -> SrtpPeer:
        peers.append(SrtpPeer(rtp_loop, host=host))
        return peers[-1]

    yield make
    for peer in peers:
        peer.close()


def hears_itself(peer: RtpPeer) -> bool:
    """Whether a tone comes back from an echo."""
    peer.play(audio.tone(1000, 1.0), loop=True)
    peer.listen(0.3)
    return bool(audio.find_tone(peer.listen(0.5), 8000) == TONE)


@pytest.mark.parametrize("name", ["allow", "require"])
def test_encrypted_call_is_heard(
    name: str, srtp_server: Server, agent: MakeAgent, srtp: Callable[[str], SrtpPeer]
) -> None:
    """An offer of SRTP is answered with SRTP and a key, and audio goes both ways under the two keys."""
    host = SRTP_TRUNKS[name]
    caller, peer = agent(server=srtp_server.sip_address, host=host), srtp(host)
    dialog = caller.call("x", peer, sdp=peer.describe())
    assert dialog.answer is not None
    assert dialog.answer.profile == "RTP/SAVP"
    peer.take_key(dialog.answer)
    assert hears_itself(peer)
    dialog.hang_up()


@pytest.mark.parametrize("name", ["allow", "off"])
def test_plain_call_beside_it_is_heard(name: str, srtp_server: Server, call: MakeCall) -> None:
    """Where encryption is not required, an offer without it is answered without it."""
    made = call("x", server=srtp_server.sip_address, host=SRTP_TRUNKS[name])
    assert made.dialog.answer is not None
    assert made.dialog.answer.profile == "RTP/AVP"
    assert made.dialog.answer.crypto == ()
    assert hears_itself(made.rtp)


def test_plain_offer_is_refused_where_srtp_is_required(srtp_server: Server, call: MakeCall) -> None:
    """488, and no call starts."""
    with pytest.raises(RefusedError) as refused:
        call("x", server=srtp_server.sip_address, host=SRTP_TRUNKS["require"])
    assert refused.value.status == 488
    assert srtp_server.calls() == []


def test_encrypted_offer_is_refused_where_srtp_is_off(
    srtp_server: Server, agent: MakeAgent, srtp: Callable[[str], SrtpPeer]
) -> None:
    """A key is no reason to send plain audio: 488."""
    host = SRTP_TRUNKS["off"]
    caller, peer = agent(server=srtp_server.sip_address, host=host), srtp(host)
    with pytest.raises(RefusedError) as refused:
        caller.call("x", peer, sdp=peer.describe())
    assert refused.value.status == 488


@pytest.mark.parametrize("name", ["allow", "require"])
def test_dialling_encrypted(
    name: str, srtp_server: Server, agent: MakeAgent, srtp: Callable[[str], SrtpPeer]
) -> None:
    """An offer goes out with keys, and what is answered with one is encrypted."""
    callee, peer = agent(server=srtp_server.sip_address), srtp("127.0.0.1")
    call_id = srtp_server.dial(f"sip:x@127.0.0.1:{callee.port}", "echo:", trunk=name)
    invite = callee.wait_request("INVITE")
    assert invite.sdp.profile == ("RTP/SAVP" if name == "require" else "RTP/AVP")
    tag = peer.take_key(invite.sdp)
    dialog = callee.accept(invite, peer, sdp=peer.describe(profile=invite.sdp.profile, tag=tag))
    assert hears_itself(peer)
    srtp_server.hang_up(call_id)
    dialog.wait_bye()


def test_dialling_somebody_without_srtp(srtp_server: Server, agent: MakeAgent, rtp: MakePeer) -> None:
    """A trunk that allows encryption also takes an answer without."""
    callee, peer = agent(server=srtp_server.sip_address), rtp()
    call_id = srtp_server.dial(f"sip:x@127.0.0.1:{callee.port}", "echo:", trunk="allow")
    dialog = callee.accept(callee.wait_request("INVITE"), peer)
    assert hears_itself(peer)
    srtp_server.hang_up(call_id)
    dialog.wait_bye()


def test_answer_without_a_key_ends_the_call(srtp_server: Server, agent: MakeAgent, rtp: MakePeer) -> None:
    """Where encryption is required, nothing is sent in the clear to somebody who answers without."""
    callee, peer = agent(server=srtp_server.sip_address), rtp()
    call_id = srtp_server.dial(f"sip:x@127.0.0.1:{callee.port}", "tone:1000", trunk="require")
    callee.accept(callee.wait_request("INVITE"), peer).wait_bye()
    ended = srtp_server.ended(call_id=call_id)
    assert (ended.kind, ended.by, ended.sip_code) == ("not_acceptable", "bridge", 488)
    assert peer.packets == []
