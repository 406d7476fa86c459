# SPDX-License-Identifier: GPL-3.0-or-later
"""Calls that the server makes to SIPp."""

import re

import pytest

from tests.conftest import MakeCall, MakePeer, RunSipp
from tests.support import audio, setup
from tests.support.rtp import RtpPeer
from tests.support.server import Server
from tests.support.sip_agent import SipAgent, digest
from tests.support.sipp import Sipp


def uri(callee: Sipp) -> str:
    return f"sip:callee@{callee.host}:{callee.port}"


def tone_heard(peer: RtpPeer) -> float:
    heard = audio.steady_part(peer.listen(0.5), 8000)
    return audio.find_tone(heard, 8000)


def test_callee_answers(server: Server, sipp: RunSipp, rtp: MakePeer) -> None:
    """The callee hears its own voice from the echo, and is hung up on."""
    peer = rtp()
    sent = audio.speech(10.0)
    peer.play(sent)
    callee = sipp("uas_answer", rtp_port=peer.port)
    call_id = server.dial(uri(callee), "echo:", trunk="line", from_="+4930111")
    peer.wait_packets(100)
    server.hang_up(call_id)
    callee.wait()
    assert audio.likeness(sent, peer.heard(), 8000) > 0.9
    assert "+4930111" in callee.messages()
    started, ended = server.wait_event("call.started", call_id=call_id), server.ended(call_id=call_id)
    assert (started["direction"], started["trunk"], started["from"]) == ("outbound", "line", "+4930111")
    assert (ended.kind, ended.by, ended.codec) == ("hangup", "operator", "PCMU")
    assert ended.fields["mos"] > 4


def test_callee_hangs_up_at_once(server: Server, sipp: RunSipp, rtp: MakePeer) -> None:
    """A BYE right after the answer is an ordinary end."""
    callee = sipp("uas_bye_at_once", rtp_port=rtp().port)
    call_id = server.dial(uri(callee), "tone:1000")
    callee.wait()
    ended = server.ended(call_id=call_id)
    assert (ended.kind, ended.by) == ("hangup", "callee")


@pytest.mark.parametrize(
    ("scenario", "kind", "code"),
    [
        ("uas_busy", "busy", 486),
        ("uas_unavailable", "unavailable", 480),
        ("uas_declined", "declined", 603),
    ],
)
def test_callee_refuses(scenario: str, kind: str, code: int, server: Server, sipp: RunSipp) -> None:
    """What the callee said is kept as the reason."""
    callee = sipp(scenario)
    call_id = server.dial(uri(callee), "tone:1000")
    callee.wait()
    ended = server.ended(call_id=call_id)
    assert (ended.kind, ended.by, ended.sip_code, ended.duration_s) == (kind, "callee", code, 0)
    assert server.http.get(f"/v1/calls/{call_id}").json()["end"]["sip_code"] == code


def test_early_media_of_the_callee(server: Server, sipp: RunSipp, rtp: MakePeer, call: MakeCall) -> None:
    """What the callee plays before it answers is heard in the room; after that it hears the room."""
    party = call("room-early")
    party.rtp.play(audio.tone(440, 1.0), loop=True)
    peer = rtp()
    peer.play(audio.tone(1000, 1.0), loop=True)
    callee = sipp("uas_early_media", rtp_port=peer.port, duration_ms=2500)
    call_id = server.dial(uri(callee), "local:room-early")
    server.wait_state(call_id, "early")
    # The first half second is the way in, and a hint that one was alone.
    party.rtp.listen(0.5)
    assert party.hears_tone() == pytest.approx(1000, abs=2)
    assert server.http.get(f"/v1/calls/{call_id}").json()["state"] == "early"
    server.wait_state(call_id, "active")
    assert tone_heard(peer) == pytest.approx(440, abs=2)
    assert party.hears_tone() == pytest.approx(1000, abs=2)
    server.hang_up(call_id)
    callee.wait()


def test_nobody_answers(server: Server, sipp: RunSipp) -> None:
    """After the ringing time the server sends CANCEL."""
    callee = sipp("uas_never_answers")
    call_id = server.dial(uri(callee), "tone:1000", ring_s=1)
    callee.wait()
    ended = server.ended(call_id=call_id)
    assert (ended.kind, ended.by, ended.duration_s) == ("no_answer", "bridge", 0)


def test_caller_gives_up(server: Server, sipp: RunSipp) -> None:
    """Hung up while it rings, the callee gets a CANCEL too."""
    callee = sipp("uas_never_answers")
    call_id = server.dial(uri(callee), "tone:1000")
    server.wait_state(call_id, "ringing")
    server.hang_up(call_id)
    callee.wait()
    ended = server.ended(call_id=call_id)
    assert (ended.by, ended.duration_s) == ("operator", 0)


def test_callee_answers_after_the_cancel(server: Server, sipp: RunSipp, rtp: MakePeer) -> None:
    """A 200 that crosses the CANCEL is acknowledged, and then hung up."""
    callee = sipp("uas_answers_after_cancel", rtp_port=rtp().port)
    call_id = server.dial(uri(callee), "tone:1000", ring_s=1)
    callee.wait()
    assert server.ended(call_id=call_id).kind == "no_answer"


def test_moved_within_the_trunk(server: Server, sipp: RunSipp, rtp: MakePeer, far_ports: list[int]) -> None:
    """A 302 to a host of the same trunk is followed."""
    peer = rtp()
    there = sipp("uas_answer", rtp_port=peer.port, port=far_ports[2])
    first = sipp("uas_moved", port=far_ports[0], keys={"moved_to": f"sip:elsewhere@127.0.0.1:{there.port}"})
    call_id = server.dial("12345", "tone:1000", trunk="far")
    first.wait()
    assert tone_heard(peer) == pytest.approx(1000, abs=2)
    assert "INVITE sip:elsewhere@" in there.messages()
    server.hang_up(call_id)
    there.wait()


def test_moved_to_a_stranger(server: Server, sipp: RunSipp, far_ports: list[int]) -> None:
    """A 302 to another host is not followed: nobody there hears of it."""
    stranger = sipp("uas_answer", host="127.0.0.77", port=far_ports[2])
    first = sipp("uas_moved", port=far_ports[0], keys={"moved_to": f"sip:x@127.0.0.77:{stranger.port}"})
    call_id = server.dial("12345", "tone:1000", trunk="far")
    first.wait()
    ended = server.ended(call_id=call_id)
    assert (ended.kind, ended.sip_code) == ("unavailable", 302)
    assert "INVITE" not in stranger.messages()


def test_moved_in_a_circle(server: Server, far_ports: list[int]) -> None:
    """At most five redirections are followed."""

    with SipAgent(server.sip_address, port=far_ports[0]) as circle:
        call_id = server.dial("12345", "tone:1000", trunk="far")
        invites = 0
        while not server.events("call.ended", call_id=call_id):
            message = circle.receive(10.0)
            if message.method == "INVITE":
                invites += 1
                assert invites <= 6
                circle.respond(
                    message,
                    302,
                    tag="circle",
                    headers={"Contact": f"<sip:again{invites}@127.0.0.1:{far_ports[0]}>"},
                )
            elif invites == 6:
                break
    assert invites == 6
    assert server.ended(call_id=call_id).kind == "unavailable"


def test_next_server_after_503(server: Server, sipp: RunSipp, rtp: MakePeer, far_ports: list[int]) -> None:
    """A server that is overloaded is passed over; the trunk's headers go along."""
    peer = rtp()
    first = sipp("uas_overloaded", port=far_ports[0])
    second = sipp("uas_answer", port=far_ports[1], rtp_port=peer.port)
    call_id = server.dial("+4930123456", "tone:1000", trunk="far", headers={"X-Ticket": "T-1"})
    first.wait()
    assert tone_heard(peer) == pytest.approx(1000, abs=2)
    assert "INVITE sip:+4930123456@" in second.messages()
    assert "X-Customer: 4711" in second.messages()
    assert "X-Ticket: T-1" in second.messages()
    server.hang_up(call_id)
    second.wait()


def test_no_next_server_after_busy(server: Server, sipp: RunSipp, far_ports: list[int]) -> None:
    """Busy is an answer, not a fault: nobody else is asked."""
    first = sipp("uas_busy", port=far_ports[0])
    second = sipp("uas_answer", port=far_ports[1])
    call_id = server.dial("12345", "tone:1000", trunk="far")
    first.wait()
    assert server.ended(call_id=call_id).kind == "busy"
    assert "INVITE" not in second.messages()


def test_next_server_after_a_refused_connection(
    server: Server, sipp: RunSipp, rtp: MakePeer, far_ports: list[int]
) -> None:
    """Where no server listens (TCP), the next one is tried."""
    peer = rtp()
    second = sipp("uas_answer", port=far_ports[1], rtp_port=peer.port, transport="t1")
    call_id = server.dial("12345", "tone:1000", trunk="far-tcp")
    assert tone_heard(peer) == pytest.approx(1000, abs=2)
    server.hang_up(call_id)
    second.wait()


def test_nobody_listens(server: Server) -> None:
    """Where no server of the trunk can be reached, the call ends with that reason."""
    call_id = server.dial("12345", "tone:1000", trunk="far-tcp")
    ended = server.ended(call_id=call_id)
    assert ended.kind in ("transport", "unavailable")
    assert ended.duration_s == 0


@pytest.mark.parametrize("scenario", ["uas_challenge_401", "uas_challenge_407"])
def test_digest_as_client(
    scenario: str, server: Server, sipp: RunSipp, rtp: MakePeer, far_ports: list[int]
) -> None:
    """The trunk's user and password answer the challenge."""
    peer = rtp()
    callee = sipp(scenario, port=far_ports[0], rtp_port=peer.port)
    call_id = server.dial("12345", "tone:1000", trunk="far")
    assert tone_heard(peer) == pytest.approx(1000, abs=2)
    server.hang_up(call_id)
    callee.wait()
    header = next(line for line in callee.messages().splitlines() if "Authorization: Digest" in line)
    challenge = 'Digest realm="test.invalid", nonce="6fd1b4e5a1c9", algorithm=MD5'
    wanted = digest(challenge, "INVITE", f"sip:12345@127.0.0.1:{far_ports[0]}", *setup.FAR_USER)
    assert re.findall(r'response="\w+"', header) == re.findall(r'response="\w+"', wanted)


@pytest.mark.parametrize(
    "body",
    [
        {"to": "", "target": "echo:"},
        {"to": "12345", "target": "echo:"},  # no trunk
        {"to": "12345", "target": "echo:", "trunk": "nobody"},
        {"to": "sip:a@127.0.0.1:9", "target": "nonsense:x"},
        {"to": "sip:a@127.0.0.1:9\r\nVia: x", "target": "echo:"},
        {"to": "sip:a@127.0.0.1:9", "target": "echo:", "from": "a\r\nX: y"},
        {"to": "sip:a@127.0.0.1:9", "target": "echo:", "headers": {"X-A": "b\r\nX-C: d"}},
        {"to": "sip:a@127.0.0.1:9", "target": "echo:", "headers": {"X-A": "b" * 9000}},
        {"to": "sip:a@127.0.0.1:9", "target": "echo:", "dtmf": "12x"},
        {"to": "sip:a@127.0.0.1:9", "target": "echo:", "unknown": 1},
    ],
)
def test_what_cannot_be_dialled(body: dict[str, object], server: Server) -> None:
    """It is refused as a problem that says why, and no call begins."""
    response = server.http.post("/v1/calls", json=body)
    assert 400 <= response.status_code < 500
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["detail"]
    assert server.calls() == []
