# SPDX-License-Identifier: GPL-3.0-or-later
"""Hold as telephones do it, and what the others of the room hear meanwhile."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.conftest import MakeCall, MakePeer, RunSipp
from tests.support import audio, setup
from tests.support.sdp import describe
from tests.support.server import Server


@pytest.mark.parametrize("scenario", ["uac_hold_sendonly", "uac_hold_inactive", "uac_hold_zero_address"])
def test_hold_and_resume(
    scenario: str, server: Server, sipp: RunSipp, rtp: MakePeer, caller_name: str
) -> None:
    """Answered as asked; while held the caller is sent nothing, before and after it hears the tone."""
    peer = rtp()
    sipp(scenario, callee="tone1000", caller=caller_name, rtp_port=peer.port, duration_ms=1200).wait()
    pause_s, length_s = peer.longest_pause()
    assert length_s > 0.9
    for heard in (peer.heard(until_s=pause_s + 0.001), peer.heard(since_s=pause_s + 0.001)):
        part = audio.steady_part(heard, 8000)
        assert audio.find_tone(part, 8000) == audio.near(1000)
        assert len(part) > 0.6 * 8000
    call_id = server.ended(caller_name).call_id
    assert len(server.events("call.held", call_id=call_id)) == 1
    assert len(server.events("call.resumed", call_id=call_id)) == 1


def test_no_media_timeout_on_hold(server: Server, call: MakeCall) -> None:
    """A held call that sends nothing goes on beyond the media timeout, and has audio after."""
    party = call("tone1000")
    assert party.hears_tone() == pytest.approx(1000, abs=2)
    answer = party.dialog.reinvite(describe(party.rtp, direction="inactive"))
    assert answer.sdp.direction == "inactive"
    party.rtp.pause()
    assert party.agent.hears_nothing(setup.MEDIA_TIMEOUT_S + 1.5)
    party.rtp.resume()
    answer = party.dialog.reinvite(describe(party.rtp))
    assert answer.sdp.direction == "sendrecv"
    assert party.hears_tone() == pytest.approx(1000, abs=2)


def test_music_on_hold_is_not_for_the_room(server: Server, call: MakeCall) -> None:
    """What a held member's PBX plays is not heard by the others; after the hold it is heard again."""
    a, b = call("room-hold"), call("room-hold")
    a.rtp.play(audio.tone(1000, 1.0), loop=True)
    b.rtp.play(audio.tone(440, 1.0), loop=True)
    b.rtp.listen(0.5)
    assert b.hears_tone() == pytest.approx(1000, abs=2)
    assert a.dialog.reinvite(describe(a.rtp, direction="sendonly")).sdp.direction == "recvonly"
    b.rtp.listen(0.5)
    assert audio.level_dbfs(b.rtp.listen(0.5)) < -50
    a.dialog.reinvite(describe(a.rtp))
    b.rtp.listen(0.5)
    assert b.hears_tone() == pytest.approx(1000, abs=2)
    assert a.hears_tone() == pytest.approx(440, abs=2)


def test_hold_without_an_offer(server: Server, call: MakeCall) -> None:
    """A re-INVITE without SDP is answered with an offer of all that the call has."""
    party = call("tone1000")
    party.dialog.send("INVITE")
    offer = party.agent.final("INVITE")
    assert offer.status == 200
    assert offer.sdp.direction == "sendrecv"
    assert 0 in offer.sdp.payload_types
    party.dialog.ack(describe(party.rtp))
    assert party.hears_tone() == pytest.approx(1000, abs=2)


def test_hold_by_the_api(server: Server, call: MakeCall) -> None:
    """The telephone is told by a re-INVITE, hears silence and is heard by nobody; then all is as before."""
    a, b = call("room-held"), call("room-held")
    a.rtp.play(audio.tone(1000, 1.0), loop=True)
    b.rtp.play(audio.tone(440, 1.0), loop=True)
    b.rtp.listen(0.5)
    assert b.hears_tone() == audio.near(1000)
    call_id = server.started(a.caller)["call_id"]

    def turn(held: bool, direction: str, answer: str) -> None:
        with ThreadPoolExecutor(1) as executor:
            asking = executor.submit(server.hold, call_id, held)
            invite = a.agent.wait_request("INVITE")
            assert invite.sdp.direction == direction
            a.agent.respond(invite, 200, "OK", body=describe(a.rtp, direction=answer))
            a.agent.wait_request("ACK")
            assert asking.result().status_code == 204
        server.wait_state(call_id, "held" if held else "active")
        a.rtp.listen(0.5)

    turn(True, "sendonly", "recvonly")
    assert audio.level_dbfs(a.rtp.listen(0.5)) < -50
    assert audio.level_dbfs(b.rtp.listen(0.5)) < -50
    turn(False, "sendrecv", "sendrecv")
    assert a.hears_tone() == audio.near(440)
    assert b.hears_tone() == audio.near(1000)
    assert len(server.events("call.held", call_id=call_id)) == 1
    assert len(server.events("call.resumed", call_id=call_id)) == 1


def test_what_cannot_be_held(server: Server, call: MakeCall) -> None:
    party = call("echo")
    call_id = server.started(party.caller)["call_id"]
    party.hang_up()
    server.ended(call_id=call_id)
    assert server.hold(call_id, True).status_code == 404
