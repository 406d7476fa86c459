# SPDX-License-Identifier: GPL-3.0-or-later
"""Hold as telephones do it, and what the others of the room hear meanwhile."""

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
