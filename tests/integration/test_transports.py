# SPDX-License-Identifier: GPL-3.0-or-later
"""What carries signalling and audio beside plain UDP and TCP over IPv4."""

import contextlib
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MakeAgent, MakeCall, MakePeer
from tests.support import audio
from tests.support.certificates import Authority, Certificate
from tests.support.ports import free_port
from tests.support.rtp import RtpLoop, RtpPeer
from tests.support.sdp import describe
from tests.support.server import Server
from tests.support.sip_agent import RefusedError, SipAgent
from tests.support.srtp import SrtpPeer
from tests.support.waiting import wait_until

TONE = audio.near(1000)
CARRIER_PORT = free_port()
NAMED_PORTS = (free_port(), free_port())
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
    """488 with the reason, and no call starts."""
    with pytest.raises(RefusedError) as refused:
        call("x", server=srtp_server.sip_address, host=SRTP_TRUNKS["require"])
    assert refused.value.response.start == "SIP/2.0 488 Not Acceptable: SRTP is required"
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


# TLS --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Who signs all certificates here."""
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def start_tls_server(
    authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Server]]:
    """Starts servers that speak TLS; `sip_port` is that of TLS."""
    identity = authority.issue("127.0.0.1", "sipbridge.example")
    with contextlib.ExitStack() as servers:

        def start(environment: Mapping[str, str] | None = None, **more: Any) -> Server:
            port = free_port()
            config = {
                "sip": {
                    "listen": [f"127.0.0.1:{free_port()}"],
                    "transports": ["udp", "tls"],
                    "tls": {
                        "certificate": identity.certificate,
                        "private_key": identity.private_key,
                        "port": port,
                        **more,
                    },
                },
                "trunk": [
                    {"name": "line", "allowed_addresses": ["127.0.0.1"]},
                    {
                        "name": "named",
                        "outbound": {"servers": [f"localhost:{CARRIER_PORT}"], "transport": "tls"},
                    },
                ],
                "rule": [{"name": "tone", "target": "tone:1000"}],
            }
            directory = tmp_path_factory.mktemp("tls")
            return servers.enter_context(Server(directory, config, sip_port=port, environment=environment))

        yield start


@pytest.fixture(scope="module")
def tls_server(start_tls_server: Callable[..., Server]) -> Server:
    """It asks nobody for a certificate."""
    return start_tls_server()


@pytest.fixture(scope="module")
def strict_server(start_tls_server: Callable[..., Server], authority: Authority) -> Server:
    """It trusts the authority alone."""
    return start_tls_server(ca=authority.certificate, verify=True)


def tls_call(server: Server, agent: MakeAgent, peer: RtpPeer, context: ssl.SSLContext) -> None:
    """A call over TLS, which is heard, and hung up."""
    caller = agent(server=server.sip_address, transport="tls", tls=context)
    dialog = caller.call("x", peer)
    assert ";transport=tls" in dialog.target.lower()
    peer.listen(0.1)
    assert audio.find_tone(peer.listen(0.5), 8000) == TONE
    dialog.hang_up()


def test_certificate_without_its_key(start_tls_server: Callable[..., Server], authority: Authority) -> None:
    """The server does not start with files that no call could use, and says which they are."""
    with pytest.raises(AssertionError, match=r"\[sip.tls\] certificate: cannot be used with its private key"):
        start_tls_server(private_key=authority.private_key)


def test_tls_call_is_heard(tls_server: Server, authority: Authority, agent: MakeAgent, rtp: MakePeer) -> None:
    """The caller sees a certificate that it trusts, and the call goes as any other."""
    tls_call(tls_server, agent, rtp(), authority.client_context())


def test_old_tls_is_refused(tls_server: Server) -> None:
    """TLS 1.1 is no longer safe (RFC 8996)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("DEFAULT@SECLEVEL=0")  # or the test itself would not speak it
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        socket.create_connection(tls_server.sip_address) as plain,
        pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"),
    ):
        context.wrap_socket(plain)


def test_plain_text_at_the_tls_port_bothers_nobody(
    tls_server: Server, authority: Authority, agent: MakeAgent, rtp: MakePeer
) -> None:
    """It is not answered, and neither it nor somebody who says nothing at all is in others' way."""
    with socket.create_connection(tls_server.sip_address):
        stranger = agent(server=tls_server.sip_address, transport="tcp")
        stranger.send(stranger.request("OPTIONS", stranger.uri("x")))
        assert stranger.closed_by_server()
        tls_call(tls_server, agent, rtp(), authority.client_context())


@pytest.mark.parametrize("certificate", ["none", "trusted", "other"])
def test_callers_certificate(
    certificate: str,
    strict_server: Server,
    authority: Authority,
    agent: MakeAgent,
    rtp: MakePeer,
    tmp_path: Path,
) -> None:
    """With verify a caller needs a certificate of the right authority."""
    if certificate == "trusted":
        context = authority.client_context(authority.issue("caller.example"))
        tls_call(strict_server, agent, rtp(), context)
        return
    other = Authority(tmp_path).issue("caller.example") if certificate == "other" else None
    with pytest.raises((ssl.SSLError, ConnectionError)):
        tls_call(strict_server, agent, rtp(), authority.client_context(other))


class Carrier:
    """Waits for calls over TLS."""

    def __init__(self, identity: Certificate, port: int = 0) -> None:
        self._listener = socket.create_server(("127.0.0.1", port))
        self._listener.settimeout(5.0)
        self._context = identity.server_context()
        self.port: int = self._listener.getsockname()[1]

    def accept(self) -> SipAgent:
        """Who connects next; OSError when the handshake fails."""
        connection, address = self._listener.accept()
        connection.settimeout(5.0)
        encrypted = self._context.wrap_socket(connection, server_side=True)
        return SipAgent(address, transport="tls", connection=encrypted)

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def carrier() -> Iterator[Callable[..., Carrier]]:
    """Makes listeners, by their certificate."""
    made: list[Carrier] = []

    def make(identity: Certificate, port: int = 0) -> Carrier:
        made.append(Carrier(identity, port))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.parametrize("trusts", ["all", "authority", "system"])
def test_dialling_by_tls(
    trusts: str,
    tls_server: Server,
    strict_server: Server,
    start_tls_server: Callable[..., Server],
    authority: Authority,
    carrier: Callable[..., Carrier],
    rtp: MakePeer,
) -> None:
    """Without verify any certificate will do; with it, one for who was dialled.

    Where no authority is configured, those of the system count.
    """
    server = {"all": tls_server, "authority": strict_server}.get(trusts) or start_tls_server(
        {"SSL_CERT_FILE": str(authority.certificate)}, verify=True
    )
    far = carrier(authority.issue("elsewhere.example" if trusts == "all" else "127.0.0.1"))
    call_id = server.dial(f"sip:x@127.0.0.1:{far.port};transport=tls", "tone:1000")
    peer = rtp()
    with far.accept() as callee:
        dialog = callee.accept(callee.wait_request("INVITE"), peer)
        peer.listen(0.1)
        assert audio.find_tone(peer.listen(0.5), 8000) == TONE
        server.hang_up(call_id)
        dialog.wait_bye()


def test_dialling_a_name_by_tls(
    strict_server: Server, authority: Authority, carrier: Callable[..., Carrier], rtp: MakePeer
) -> None:
    """A server that is configured by its name has to prove the name, not its address."""
    far = carrier(authority.issue("localhost"), CARRIER_PORT)
    call_id = strict_server.dial("123", "tone:1000", trunk="named")
    with far.accept() as callee:
        invite = callee.wait_request("INVITE")
        assert invite.start == f"INVITE sip:123@localhost:{CARRIER_PORT};transport=tls SIP/2.0"
        dialog = callee.accept(invite, rtp())
        strict_server.hang_up(call_id)
        dialog.wait_bye()  # on the same connection


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("host", "(elsewhere.example) is refused: The server identity does not match"),
        ("authority", "(127.0.0.1) is refused: The certificate is untrusted"),
    ],
)
def test_certificate_of_another_is_rejected(
    fault: str,
    why: str,
    strict_server: Server,
    authority: Authority,
    carrier: Callable[..., Carrier],
    tmp_path: Path,
) -> None:
    """No INVITE goes to a server that cannot prove to be the one; the log says so."""
    if fault == "host":
        identity = authority.issue("elsewhere.example")
    else:
        identity = Authority(tmp_path).issue("127.0.0.1")
    far = carrier(identity)
    call_id = strict_server.dial(f"sip:x@127.0.0.1:{far.port};transport=tls", "tone:1000")
    with contextlib.suppress(OSError), far.accept() as callee:
        callee.closed_by_server()
        assert callee.log == []
    ended = strict_server.ended(call_id=call_id)
    assert (ended.kind, ended.by) == ("transport", "bridge")
    assert "certificate verification" in ended.detail
    wait_until(
        lambda: [line for line in strict_server.events(logger="pjsip") if why in line["event"]],
        5.0,
        f"the log says that {why}",
    )


# Servers by name, and what others are told of our own address -------------------------------------


@pytest.fixture(scope="module")
def named_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Its carrier's servers have names, and it has a public address of its own."""
    servers = [f"localhost:{port}" for port in NAMED_PORTS]
    config = {
        "sip": {"public_address": "192.0.2.1"},
        "trunk": [
            {"name": "line", "allowed_addresses": ["127.0.0.1"]},
            {"name": "far", "outbound": {"servers": servers}},
        ],
        "rule": [{"name": "tone", "target": "tone:1000"}],
    }
    with Server(tmp_path_factory.mktemp("named"), config) as server:
        yield server


def test_servers_by_name(named_server: Server, agent: MakeAgent, rtp: MakePeer) -> None:
    """The Request-URI says the name, the message goes to its address, and no Route tells of that.

    The second server is called when the first has failed; in the call, requests go to the callee's Contact.
    """
    first, second, third = (
        agent(server=named_server.sip_address, port=port) for port in (*NAMED_PORTS, None)
    )
    call_id = named_server.dial("123", "tone:1000", trunk="far")
    invite = first.wait_request("INVITE")
    assert invite.start == f"INVITE sip:123@localhost:{NAMED_PORTS[0]} SIP/2.0"
    assert invite.get("route") == ""
    first.respond(invite, 503, tag="busy")
    invite = second.wait_request("INVITE")
    assert invite.start == f"INVITE sip:123@localhost:{NAMED_PORTS[1]} SIP/2.0"
    assert invite.get("route") == ""
    peer = rtp()
    peer.remote = (invite.sdp.address, invite.sdp.port)
    second.port = third.port  # for its Contact
    second.respond(invite, 200, "OK", tag="up", body=describe(peer))
    third.wait_request("ACK")
    peer.listen(0.1)
    assert audio.find_tone(peer.listen(0.5), 8000) == TONE
    named_server.hang_up(call_id)
    bye = third.wait_request("BYE")
    assert bye.get("route") == ""
    third.respond(bye, 200, "OK")


def test_own_address(named_server: Server, call: MakeCall) -> None:
    """Contact names the public address; audio of a peer on this machine stays on it."""
    made = call("x", server=named_server.sip_address)
    assert made.dialog.target == f"sip:sipbridge@192.0.2.1:{named_server.sip_port}"
    assert made.dialog.answer is not None
    assert made.dialog.answer.address == made.dialog.answer.origin == "127.0.0.1"
    assert made.hears_tone() == TONE
