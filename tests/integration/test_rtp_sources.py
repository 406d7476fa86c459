# SPDX-License-Identifier: GPL-3.0-or-later
"""Whose RTP is heard, and where ours goes: the caller's SDP and its trunk's addresses, nobody else's."""

import contextlib
import itertools
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.conftest import MakeAgent, MakeCall, MakePeer, StartServer
from tests.support import audio
from tests.support.codecs import Pcmu
from tests.support.parties import Call
from tests.support.ports import free_port, free_udp_range
from tests.support.rtp import RtpPeer
from tests.support.sdp import describe
from tests.support.server import Server
from tests.support.sip_agent import Dialog, SipAgent

STRANGER = "127.0.0.2"
# One trunk for each `nat`, of 16 addresses.
TRUNKS = {"off": "127.0.1.0/28", "on": "127.0.1.16/28", "auto": "127.0.1.32/28"}
HOSTS = {"off": "127.0.1.1", "on": "127.0.1.17", "auto": "127.0.1.33"}
NEIGHBOURS = {"off": "127.0.1.2", "on": "127.0.1.18", "auto": "127.0.1.34"}
SPRAYED = 500
SPRAYED_HZ = 1000


class Sprayer:
    """A stranger who found the ports: it sends a loud tone and reports, and keeps what it gets for it."""

    def __init__(self, rtp_port: int, host: str = STRANGER) -> None:
        first = free_udp_range(2)
        self._targets = (("127.0.0.1", rtp_port), ("127.0.0.1", rtp_port + 1))
        self._sockets = tuple(socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in self._targets)
        for offset, own in enumerate(self._sockets):
            own.bind((host, first + offset))
            own.setblocking(False)
        codec = Pcmu()
        tone = audio.tone(SPRAYED_HZ, 1.0, level_dbfs=-6).reshape(-1, codec.frame_samples)
        self._payloads = itertools.cycle([codec.encode(frame) for frame in tone])
        self._sequence = 0

    def spray(self, listener: RtpPeer, packets: int = SPRAYED) -> None:
        """Ten packets with each that `listener` receives; as many receiver reports."""
        for _ in range(packets // 10):
            listener.wait_packets(1)
            for _ in range(10):
                self.send()

    def send(self) -> None:
        header = struct.pack("!BBHII", 0x80, 0, self._sequence, 160 * self._sequence, 0x5EED)
        report = struct.pack("!BBHI", 0x80, 201, 1, 0x5EED)
        self._sequence += 1
        for own, data, target in zip(
            self._sockets, (header + next(self._payloads), report), self._targets, strict=True
        ):
            own.sendto(data, target)

    def received(self) -> list[bytes]:
        """All that has come so far."""
        packets = []
        for own in self._sockets:
            with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
                while True:
                    packets.append(own.recv(4096))
        return packets

    def close(self) -> None:
        for own in self._sockets:
            own.close()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a trunk for each way to treat NAT."""
    config: dict[str, Any] = {
        "log": {"level": "debug"},
        "trunk": [
            {"name": nat, "allowed_addresses": [network], "nat": nat} for nat, network in TRUNKS.items()
        ],
        "rule": [
            {"name": "echo", "to": "echo", "target": "echo:"},
            {"name": "early", "to": "early", "target": "tone:440", "early_media": True, "ring_s": 1.5},
            {"name": "room", "to": "room-*", "target": "local:{callee}"},
        ],
    }
    with Server(tmp_path_factory.mktemp("guarded"), config) as server:
        yield server


@pytest.fixture
def sprayer() -> Iterator[Callable[[int], Sprayer]]:
    """Makes strangers who spray an RTP port and the RTCP port after it."""
    made: list[Sprayer] = []

    def make(rtp_port: int) -> Sprayer:
        made.append(Sprayer(rtp_port))
        return made[-1]

    yield make
    for one in made:
        one.close()


def media_port(party: Call) -> int:
    """Where the server wants the party's RTP."""
    assert party.dialog.answer is not None
    return party.dialog.answer.port


def hears_only(peer: RtpPeer, hz: float) -> None:
    """A clean tone of this frequency, and nothing of the stranger's."""
    heard = peer.listen(0.5)
    assert audio.find_tone(heard, 8000) == audio.near(hz)
    assert audio.tone_level_dbfs(heard, 8000, SPRAYED_HZ) < -50


@pytest.mark.parametrize("nat", TRUNKS)
def test_stranger_is_not_heard_and_hears_nothing(
    nat: str, guarded: Server, call: MakeCall, sprayer: Callable[[int], Sprayer]
) -> None:
    """Five hundred packets change nothing, draw nothing out, and are told in one line at its end."""
    party = call("echo", host=HOSTS[nat], server=guarded.sip_address)
    party.rtp.play(audio.tone(440, 1.0), loop=True)
    hears_only(party.rtp, 440)
    stranger = sprayer(media_port(party))
    stranger.spray(party.rtp)
    hears_only(party.rtp, 440)
    party.hang_up()
    call_id = guarded.ended(party.caller).call_id
    assert stranger.received() == []
    told = guarded.wait_event("dropped RTP of foreign addresses", call_id=call_id)
    assert SPRAYED < told["packets"] <= 2 * SPRAYED


@pytest.mark.parametrize("nat", ["on", "auto"])
def test_stranger_is_there_first(
    nat: str, guarded: Server, call: MakeCall, sprayer: Callable[[int], Sprayer]
) -> None:
    """While the caller has sent nothing yet, nobody else takes its place."""
    listener = call("room-first", host=HOSTS[nat], server=guarded.sip_address)
    party = call("room-first", host=HOSTS[nat], server=guarded.sip_address)
    party.rtp.pause()
    stranger = sprayer(media_port(party))
    stranger.spray(party.rtp)
    assert audio.level_dbfs(listener.rtp.listen(0.5)) < -50
    party.rtp.play(audio.tone(440, 1.0), loop=True)
    party.rtp.resume()
    listener.rtp.listen(0.5)
    hears_only(listener.rtp, 440)
    party.hang_up()
    guarded.ended(party.caller)
    assert stranger.received() == []


@pytest.mark.parametrize("nat", ["on", "auto"])
def test_stranger_before_the_answer(
    nat: str, guarded: Server, agent: MakeAgent, rtp: MakePeer, sprayer: Callable[[int], Sprayer]
) -> None:
    """Early audio goes to the caller alone, too."""
    peer = rtp(host=HOSTS[nat])
    caller = agent(host=HOSTS[nat], server=guarded.sip_address)
    from_, call_id = caller.from_header(), f"early-{nat}"
    invite = caller.request("INVITE", caller.uri("early"), from_=from_, call_id=call_id, body=describe(peer))
    caller.send(invite)
    progress = caller.response("INVITE", 183)
    stranger = sprayer(progress.sdp.port)
    stranger.spray(peer)
    assert stranger.received() == []
    answer = caller.final("INVITE")
    dialog = Dialog(caller, call_id, from_, answer.get("to"), answer.contact_uri, 1)
    dialog.take(answer, peer)
    dialog.ack()
    hears_only(peer, 440)
    dialog.hang_up()
    guarded.wait_idle()
    assert stranger.received() == []


@pytest.mark.parametrize(("hold", "nat"), [("sendonly", "on"), ("inactive", "auto"), ("zero address", "on")])
def test_stranger_during_hold(
    hold: str, nat: str, guarded: Server, call: MakeCall, sprayer: Callable[[int], Sprayer]
) -> None:
    """A held call stays its own: nothing in, nothing out, and after the hold it goes on where it was."""
    listener = call("room-held", host=HOSTS[nat], server=guarded.sip_address)
    held = call("room-held", host=HOSTS[nat], server=guarded.sip_address)
    listener.rtp.play(audio.tone(700, 1.0), loop=True)
    held.rtp.play(audio.tone(440, 1.0), loop=True)
    listener.rtp.listen(0.5)
    hears_only(listener.rtp, 440)
    if hold == "zero address":
        held.dialog.reinvite(describe(held.rtp, address="0.0.0.0"))
    else:
        held.dialog.reinvite(describe(held.rtp, direction=hold))
    held.rtp.pause()
    stranger = sprayer(media_port(held))
    stranger.spray(listener.rtp)
    assert audio.level_dbfs(listener.rtp.listen(0.5)) < -50
    assert stranger.received() == []
    held.dialog.take(held.dialog.reinvite(describe(held.rtp)), held.rtp)
    assert held.hears_tone() == pytest.approx(700, abs=3)
    held.rtp.resume()
    listener.rtp.listen(0.5)
    hears_only(listener.rtp, 440)
    held.hang_up()
    guarded.ended(held.caller)
    assert stranger.received() == []


def moved(party: Call, rtp: MakePeer, host: str) -> RtpPeer:
    """From now on the party's audio, a tone of 440 Hz, comes from another socket than its SDP says."""
    party.rtp.play(audio.tone(700, 1.0), loop=True)
    hears_only(party.rtp, 700)
    party.rtp.pause()
    peer = rtp(host=host)
    peer.play(audio.tone(440, 1.0), loop=True)
    peer.remote = ("127.0.0.1", media_port(party))
    return peer


@pytest.mark.parametrize(("nat", "where"), [("on", NEIGHBOURS), ("on", HOSTS), ("auto", HOSTS)])
def test_moved_source_is_followed(
    nat: str, where: dict[str, str], guarded: Server, call: MakeCall, rtp: MakePeer
) -> None:
    """With NAT in mind: to another port of the same address, and where it is "on", to the trunk's others."""
    party = call("echo", host=HOSTS[nat], server=guarded.sip_address)
    peer = moved(party, rtp, where[nat])
    peer.listen(0.5)
    hears_only(peer, 440)
    sent = len(party.rtp.packets)
    peer.listen(0.5)
    assert len(party.rtp.packets) == sent


@pytest.mark.parametrize(("nat", "where"), [("off", HOSTS), ("off", NEIGHBOURS), ("auto", NEIGHBOURS)])
def test_moved_source_is_not_followed(
    nat: str, where: dict[str, str], guarded: Server, call: MakeCall, rtp: MakePeer
) -> None:
    """What the SDP says is so, where NAT is ruled out or does not show."""
    party = call("echo", host=HOSTS[nat], server=guarded.sip_address)
    peer = moved(party, rtp, where[nat])
    party.rtp.listen(0.5)
    assert audio.level_dbfs(party.rtp.listen(0.5)) < -50
    assert peer.sent > 20
    assert peer.packets == []


def test_media_of_another_machine(
    guarded: Server, call: MakeCall, rtp: MakePeer, sprayer: Callable[[int], Sprayer]
) -> None:
    """Where SDP and signalling differ, "auto" takes the SDP's address, and follows within the trunk alone."""
    gateway = rtp(host=NEIGHBOURS["auto"])
    gateway.play(audio.tone(700, 1.0), loop=True)
    party = call("echo", host=HOSTS["auto"], server=guarded.sip_address, sdp=describe(gateway))
    gateway.remote = ("127.0.0.1", media_port(party))
    party.rtp.pause()
    hears_only(gateway, 700)
    stranger = sprayer(media_port(party))
    stranger.spray(gateway)
    hears_only(gateway, 700)
    gateway.pause()
    third = rtp(host="127.0.1.35")
    third.play(audio.tone(440, 1.0), loop=True)
    third.remote = gateway.remote
    third.listen(0.5)
    hears_only(third, 440)
    assert stranger.received() == []


@pytest.mark.parametrize("nat", ["on", "off"])
def test_address_moves_by_offer(nat: str, guarded: Server, call: MakeCall, rtp: MakePeer) -> None:
    """A re-INVITE that names another address moves both directions there at once."""
    party = call("echo", host=HOSTS[nat], server=guarded.sip_address)
    party.rtp.play(audio.tone(700, 1.0), loop=True)
    hears_only(party.rtp, 700)
    peer = rtp(host=NEIGHBOURS[nat])
    peer.play(audio.tone(440, 1.0), loop=True)
    party.rtp.pause()
    party.dialog.take(party.dialog.reinvite(describe(peer)), peer)
    sent = len(party.rtp.packets)
    peer.listen(0.5)
    hears_only(peer, 440)
    assert len(party.rtp.packets) == sent


def test_callee_is_followed_and_a_stranger_is_not(
    server: Server, agent: MakeAgent, far_ports: list[int], rtp: MakePeer, sprayer: Callable[[int], Sprayer]
) -> None:
    """On a call that goes out, the server that is dialled is the trunk's address."""
    peer = rtp()
    peer.pause()
    with SipAgent(server.sip_address, port=far_ports[0], user="callee") as callee:
        call_id = server.dial("callee", "echo:", trunk="far")
        dialog = callee.accept(callee.wait_request("INVITE"), peer)
        assert peer.remote is not None
        stranger = sprayer(peer.remote[1])
        stranger.spray(peer)
        moved_to = rtp()
        moved_to.remote = peer.remote
        moved_to.play(audio.tone(440, 1.0), loop=True)
        moved_to.listen(0.5)
        hears_only(moved_to, 440)
        dialog.hang_up()
    server.ended(call_id=call_id)
    assert stranger.received() == []


def test_encrypted_call(start_server: StartServer, rtp: MakePeer, sprayer: Callable[[int], Sprayer]) -> None:
    """SRTP passes: a tone that one server encrypts is heard from a room of the other, and nothing else is."""
    far_port, near_port = free_port(), free_port()
    far = start_server(
        {
            "trunk": [
                {"name": "peer", "allowed_addresses": ["127.0.0.1"], "srtp": "require"},
                {"name": "plain", "allowed_addresses": [HOSTS["off"]]},
            ],
            "rule": [{"name": "room", "target": "local:{callee}"}],
        },
        sip_port=far_port,
    )
    near = start_server(
        {
            "trunk": [
                {
                    "name": "peer",
                    "allowed_addresses": ["127.0.0.9"],
                    "outbound": {"servers": [f"127.0.0.1:{far_port}"]},
                    "srtp": "require",
                }
            ]
        },
        sip_port=near_port,
    )
    peer = rtp(host=HOSTS["off"])
    with SipAgent(far.sip_address, host=HOSTS["off"]) as listener:
        dialog = listener.call("room", peer)
        call_id = near.dial("room", "tone:440", trunk="peer")
        near.wait_state(call_id, "active")
        peer.listen(0.5)
        hears_only(peer, 440)
        first, last = near.rtp_ports
        strangers = [sprayer(port) for port in range(first, min(first + 4, last), 2)]
        for stranger in strangers:
            stranger.spray(peer, 100)
        hears_only(peer, 440)
        near.hang_up(call_id)
        near.ended(call_id=call_id)
        dialog.hang_up()
    assert [stranger.received() for stranger in strangers] == [[]] * len(strangers)
