# SPDX-License-Identifier: GPL-3.0-or-later
"""Digits in and out, by each method."""

import numpy as np
import pytest

from tests.conftest import MakeCall, MakePeer, RunSipp
from tests.support import audio, setup
from tests.support.codecs import Pcmu, Samples
from tests.support.sdp import describe
from tests.support.server import Server
from tests.support.waiting import wait_until

# ITU-T Q.23: rows and columns of the keypad.
_ROWS_HZ = (697, 770, 852, 941)
_COLUMNS_HZ = (1209, 1336, 1477, 1633)
_KEYS = ("123A", "456B", "789C", "*0#D")
ALL_DIGITS = "1234567890*#ABCD"


def frequencies(digit: str) -> tuple[int, int]:
    row = next(index for index, keys in enumerate(_KEYS) if digit in keys)
    return _ROWS_HZ[row], _COLUMNS_HZ[_KEYS[row].index(digit)]


def dual_tone(digit: str, seconds: float) -> Samples:
    low, high = frequencies(digit)
    return audio.tone(low, seconds, level_dbfs=-15) + audio.tone(high, seconds, level_dbfs=-15)


def keys_heard(samples: Samples) -> str:
    """The keys of dual tones in the audio, in order, by 20 ms frames."""
    found = ""
    last = ""
    for start in range(0, len(samples) - 160, 160):
        frame = samples[start : start + 160]
        levels = {
            key: [audio.tone_level_dbfs(frame, 8000, hz) for hz in frequencies(key)] for key in ALL_DIGITS
        }
        key = max(levels, key=lambda candidate: min(levels[candidate]))
        now = key if min(levels[key]) > -30 else ""
        if now and now != last:
            found += now
        last = now
    return found


def test_keys_heard_tells_keys_apart() -> None:
    """The ear of these tests hears what is there, and nothing in speech or silence."""
    parts = [part for key in "15#" for part in (dual_tone(key, 0.1), audio.silence(0.1))]
    assert keys_heard(np.concatenate(parts)) == "15#"
    assert keys_heard(audio.silence(1.0)) == ""
    assert keys_heard(audio.tone(1000, 1.0)) == ""


def test_rfc4733_in(server: Server, sipp: RunSipp, rtp: MakePeer, caller_name: str) -> None:
    """All sixteen digits by RTP events, under a payload type of the caller's choice, beside the audio."""
    peer = rtp(dtmf_payload_type=96)
    process = sipp(
        "uac_dtmf_rfc4733", callee="tone1000", caller=caller_name, rtp_port=peer.port, duration_ms=4500
    )
    call_id = server.started(caller_name)["call_id"]
    peer.wait_packets(10)
    peer.send_dtmf(ALL_DIGITS, duration_ms=100)
    server.wait_digits(call_id, ALL_DIGITS)
    process.wait()
    heard = audio.steady_part(peer.heard(), 8000)
    assert audio.find_tone(heard, 8000) == audio.near(1000)
    assert audio.gaps_ms(heard, 8000) == []


@pytest.mark.parametrize(("scenario", "digits"), [("uac_dtmf_info_relay", "5*#"), ("uac_dtmf_info", "7*0")])
def test_info_in(
    scenario: str, digits: str, server: Server, sipp: RunSipp, rtp: MakePeer, caller_name: str
) -> None:
    """Digits by INFO, each answered 200."""
    process = sipp(scenario, callee="silence", caller=caller_name, rtp_port=rtp().port, duration_ms=200)
    server.wait_digits(server.started(caller_name)["call_id"], digits)
    process.wait()


def test_inband_in(server: Server, call: MakeCall) -> None:
    """Digits as tones in the audio, on a trunk that has nothing else."""
    party = call("silence", host=setup.KEYS_IN_BAND)
    parts = [part for key in "159D*0" for part in (dual_tone(key, 0.1), audio.silence(0.1))]
    party.rtp.play(np.concatenate(parts))
    server.wait_digits(server.started(party.caller)["call_id"], "159D*0")


def test_speech_is_no_digit(server: Server, call: MakeCall) -> None:
    """Nothing is found in speech."""
    party = call("silence", host=setup.KEYS_IN_BAND)
    party.rtp.play(audio.speech(5.0))
    party.rtp.wait_played()
    party.rtp.wait_packets(25)
    assert server.digits(server.started(party.caller)["call_id"]) == ""


def test_same_digit_twice(server: Server, call: MakeCall) -> None:
    """Pressed twice, it counts twice."""
    party = call("silence")
    party.rtp.send_dtmf("11", duration_ms=100)
    server.wait_digits(server.started(party.caller)["call_id"], "11")


def test_one_press_by_two_methods(server: Server, call: MakeCall) -> None:
    """The same digit by RTP and by INFO at once counts once; the next press counts again."""
    party = call("silence")
    call_id = server.started(party.caller)["call_id"]
    party.rtp.send_dtmf("5", duration_ms=60)
    assert party.dialog.info("application/dtmf-relay", "Signal=5\r\nDuration=60\r\n").status == 200
    server.wait_digits(call_id, "5")
    party.rtp.wait_played()
    party.rtp.wait_packets(25)
    party.rtp.send_dtmf("6", duration_ms=60)
    server.wait_digits(call_id, "56")


def test_rfc4733_out(server: Server, call: MakeCall) -> None:
    """Forty digits (more than the library's own queue holds): in order, marked, ended three times."""
    party = call("tone1000")
    digits = ALL_DIGITS * 2 + "12345678"
    server.send_dtmf(server.call_of(party.caller)["id"], digits)
    found = party.rtp.wait_digits(digits, timeout_s=30.0)
    assert all(digit.marked for digit in found)
    assert all(digit.ends == 3 for digit in found)
    assert all(80 <= digit.duration_ms <= 200 for digit in found)
    assert party.hears_tone() == pytest.approx(1000, abs=2)


def test_wait_between_digits(server: Server, call: MakeCall) -> None:
    """A w waits half a second."""
    party = call("silence")
    server.send_dtmf(server.call_of(party.caller)["id"], "1w2")
    first, second = party.rtp.wait_digits("12")
    assert second.arrived_s - first.arrived_s > 0.5


def test_info_out_to_a_caller(server: Server, sipp: RunSipp, rtp: MakePeer, caller_name: str) -> None:
    """A caller without telephone-event gets INFO, where its trunk says so."""
    peer = rtp(host=setup.KEYS_BY_INFO)
    process = sipp(
        "uac_dtmf_info_out",
        host=setup.KEYS_BY_INFO,
        callee="silence",
        caller=caller_name,
        rtp_port=peer.port,
        duration_ms=200,
    )
    peer.wait_packets(5)
    server.send_dtmf(server.call_of(caller_name)["id"], "1#")
    process.wait()
    assert peer.digits() == []


def test_info_out_to_a_callee(server: Server, sipp: RunSipp, rtp: MakePeer) -> None:
    """Digits given with a dialled call go out by INFO once it is answered."""
    callee = sipp("uas_dtmf_info", rtp_port=rtp().port)
    call_id = server.dial(f"sip:callee@127.0.0.1:{callee.port}", "silence:", trunk="keys-by-info", dtmf="42")
    server.wait_state(call_id, "active")
    wait_until(lambda: callee.messages().count("INFO sip:") >= 2, 10.0, "both digits arrived")
    server.hang_up(call_id)
    callee.wait()


def test_inband_out(server: Server, call: MakeCall) -> None:
    """On a trunk that has nothing else, digits go out as tones."""
    party = call("silence", host=setup.KEYS_IN_BAND)
    since_s = party.rtp.wait_packets(1)
    server.send_dtmf(server.call_of(party.caller)["id"], "15#")
    party.rtp.listen(1.5)
    assert keys_heard(party.rtp.heard(since_s)) == "15#"


def test_inband_is_the_last_resort(server: Server, call: MakeCall, rtp: MakePeer) -> None:
    """A caller with neither telephone-event nor INFO hears tones and is understood by tones."""
    peer = rtp()
    party = call("silence", sdp=describe(peer, codecs=(Pcmu,), dtmf=False))
    assert party.dialog.answer is not None
    peer.remote = (party.dialog.answer.address, party.dialog.answer.port)
    peer.play(np.concatenate((dual_tone("7", 0.1), audio.silence(0.1))))
    server.wait_digits(server.started(party.caller)["call_id"], "7")
    since_s = peer.wait_packets(1)
    server.send_dtmf(server.call_of(party.caller)["id"], "9")
    peer.listen(1.0)
    assert keys_heard(peer.heard(since_s)) == "9"


def test_digits_cross_the_room(server: Server, call: MakeCall) -> None:
    """Keys of one member reach the others by the method of each, and not itself."""
    by_rtp, by_info = call("room-keys"), call("room-keys", host=setup.KEYS_BY_INFO)
    by_rtp.rtp.send_dtmf("3")
    info = by_info.agent.wait_request("INFO")
    assert "Signal=3" in info.body.replace(" ", "")
    by_info.agent.respond(info, 200, "OK")
    assert by_info.dialog.info("application/dtmf", "8").status == 200
    by_rtp.rtp.wait_digits("8")
