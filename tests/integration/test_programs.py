# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs and telephones in one room of the whole server."""

import random

import pytest

from tests.conftest import MakeCall
from tests.support import audio
from tests.support.codecs import G722, Codec, Pcmu
from tests.support.program import RATE_HZ, Program
from tests.support.server import Server
from tests.support.waiting import wait_until

TONES_HZ = (520, 1000, 1700)  # none is that of the hint for a lone member


def new_room() -> str:
    return f"room-{random.getrandbits(40):x}"


@pytest.mark.parametrize("codec", [Pcmu, G722])
def test_three_members_hear_each_other_and_not_themselves(
    codec: type[Codec], server: Server, call: MakeCall
) -> None:
    """Two telephones and a program, each with a tone; the program is in the list of members."""
    room = new_room()
    phones = [call(room), call(room, codec)]
    with Program(server, room, name="recorder") as program:
        rooms = {entry["name"]: entry for entry in server.http.get("/v1/rooms").json()["rooms"]}
        ids = [server.call_of(phone.caller)["id"] for phone in phones]
        assert rooms[room]["members"] == [*ids, "recorder"]
        for phone, hz in zip(phones, TONES_HZ, strict=False):
            phone.rtp.play(audio.tone(hz, 1.0, phone.rtp.codec.rate_hz, level_dbfs=-20), loop=True)
        program.say(audio.tone(TONES_HZ[2], 10.0, RATE_HZ, level_dbfs=-20))
        program.listen(0.7)
        heard = [(phone.rtp.listen(1.0), phone.rtp.codec.rate_hz) for phone in phones]
        heard.append((program.listen(1.0), RATE_HZ))
        for (samples, rate_hz), own_hz in zip(heard, TONES_HZ, strict=True):
            for hz in TONES_HZ:
                found_dbfs = audio.usual_level_dbfs(samples, rate_hz, hz)
                assert found_dbfs < -55 if hz == own_hz else found_dbfs == pytest.approx(-20, abs=1.5)


def test_two_of_one_rate(server: Server, call: MakeCall) -> None:
    """A wideband telephone and a program are not mixed: speech goes over as G.722 has it, both ways."""
    room = new_room()
    phone = call(room, G722)
    phone.rtp.listen(0.7)
    with Program(server, room) as program:
        said, spoken = audio.speech(3.0, RATE_HZ), audio.speech(3.0, RATE_HZ, voice=1)
        phone.rtp.play(spoken)
        program.say(said)
        heard = phone.rtp.listen(2.0)
        assert audio.align_and_correlate(said, heard, RATE_HZ)[1] > 0.95
        assert audio.align_and_correlate(spoken, program.heard[:32000], RATE_HZ)[1] > 0.95


def test_a_program_is_interrupted(server: Server, call: MakeCall) -> None:
    """A minute at once, then clear: the telephone hears silence, then what is said next."""
    room = new_room()
    phone = call(room)
    with Program(server, room) as program:
        program.say(audio.tone(440, 60.0, RATE_HZ))
        program.send(type="mark", name="end")
        assert abs(phone.hears_tone() - 440) < 3
        program.send(type="clear")
        wait_until(lambda: {"type": "mark", "name": "end", "event": "cleared"} in program.messages, 5, "mark")
        phone.rtp.listen(0.1)
        assert audio.level_dbfs(phone.rtp.listen(0.4)) < -60
        program.say(audio.tone(1000, 5.0, RATE_HZ))
        assert abs(phone.hears_tone() - 1000) < 3


def test_keys_and_messages(server: Server, call: MakeCall) -> None:
    """A key of the telephone reaches the program, one of the program the telephone; texts are events."""
    room = new_room()
    phone = call(room)
    call_id = server.call_of(phone.caller)["id"]
    with Program(server, room) as program, Program(server, room, name="other") as other:
        phone.rtp.send_dtmf("7")
        wait_until(lambda: [m for m in program.messages if m["type"] == "dtmf"], 5, "the key")
        assert [m["digit"] for m in program.messages if m["type"] == "dtmf"] == ["7"]
        program.send(type="dtmf", digits="5")
        wait_until(lambda: phone.rtp.digits(), 5, "the telephone gets the key")
        assert [digit.digit for digit in phone.rtp.digits()] == ["5"]
        program.send(type="text", content="hello")
        server.wait_event("call.message", call_id=call_id)
        wait_until(lambda: {"type": "text", "content": "hello"} in other.messages, 5, "the text")
        assert {"type": "joined", "identity": call_id} in program.messages
        assert {"type": "joined", "identity": "other"} in program.messages
        other.close()
        wait_until(lambda: {"type": "left", "identity": "other"} in program.messages, 5, "the other leaves")


def test_a_call_ends_when_the_program_has_left(server: Server, call: MakeCall) -> None:
    """`hangup_when_alone` counts programs; all that was theirs is given back."""
    before = server.counters()
    room = f"alone-{random.getrandbits(40):x}"
    phone = call(room)
    with Program(server, room) as program:
        program.listen(0.2)
        assert server.calls()
    ended = server.ended(phone.caller)
    assert (ended.kind, ended.by) == ("alone", "channel")
    wait_until(lambda: not server.http.get("/v1/rooms").json()["rooms"], 5, "no room is left")
    wait_until(lambda: server.counters()["ports"] <= before["ports"], 5, "its port is gone")
