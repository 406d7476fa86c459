# SPDX-License-Identifier: GPL-3.0-or-later
"""What the bridge does to audio on its way from one telephone to another."""

import random

import numpy as np
import pytest

from tests.conftest import MakeCall
from tests.support import audio, setup
from tests.support.codecs import G722, Codec, Opus, Pcma, Pcmu
from tests.support.parties import Call
from tests.support.server import Server


def meet(call: MakeCall, *codecs: type[Codec]) -> list[Call]:
    """Members of a new room, after the hint tone for the first one is over."""
    room = f"room-{random.getrandbits(40):x}"
    parties = [call(room, codec) for codec in codecs]
    parties[0].rtp.listen(0.7)
    return parties


@pytest.mark.parametrize("codec", [Pcmu, Pcma])
def test_g711_passes_bit_for_bit(codec: type[Codec], server: Server, call: MakeCall) -> None:
    """With one talker on a clean line a second of octets, and more, arrives as it was sent.

    µ-law has two octets for zero. Linear samples have one, so minus zero arrives as plus zero.
    """
    host = setup.A_LAW if codec is Pcma else setup.LINE
    room = f"room-bits-{codec.name}"
    talker, listener = call(room, codec, host=host), call(room, codec, host=host)
    listener.rtp.listen(0.7)
    # Speech is dithered, as a telephone's microphone does: digital silence would match anywhere.
    rng = np.random.default_rng(3)
    voice = audio.speech(4.0)
    voice = voice + rng.integers(-100, 100, len(voice)).astype(np.int16)
    sent = b"".join(codec().encode(frame) for frame in voice.reshape(-1, 160))
    if codec is Pcmu:
        sent = sent.replace(b"\x7f", b"\xff")
    talker.rtp.play_payloads([sent[start : start + 160] for start in range(0, len(sent), 160)])
    talker.rtp.wait_played()
    listener.rtp.wait_packets(10)
    heard = b"".join(packet.payload for packet in listener.rtp.audio_packets())
    starts = range(0, len(sent) - 8000, 800)
    assert any(sent[start : start + 8000] in heard for start in starts)


def test_g722_legs_are_wideband(server: Server, call: MakeCall) -> None:
    """5 kHz passes between two G.722 legs with less than 3 dB lost."""
    talker, listener = meet(call, G722, G722)
    talker.rtp.play(audio.tone(5000, 1.0, 16_000, level_dbfs=-15), loop=True)
    listener.rtp.listen(0.5)
    heard = listener.rtp.listen(1.0)
    assert audio.find_tone(heard, 16_000) == audio.near(5000)
    assert audio.tone_level_dbfs(heard, 16_000, 5000) > -15 - 3


@pytest.mark.parametrize(("one", "other"), [(Pcmu, G722), (Pcmu, Opus), (G722, Opus), (Pcma, Pcmu)])
def test_codecs_meet(one: type[Codec], other: type[Codec], server: Server, call: MakeCall) -> None:
    """Members with different codecs and rates hear each other at the right pitch and level, both ways."""
    a, b = meet(call, one, other)
    a.rtp.play(audio.tone(1000, 1.0, a.rtp.codec.rate_hz), loop=True)
    b.rtp.play(audio.tone(440, 1.0, b.rtp.codec.rate_hz), loop=True)
    b.rtp.listen(0.4)
    for party, hz in ((a, 440), (b, 1000)):
        heard = party.rtp.listen(1.0)
        rate_hz = party.rtp.codec.rate_hz
        assert audio.find_tone(heard, rate_hz) == audio.near(hz)
        assert audio.usual_level_dbfs(heard, rate_hz, hz) == pytest.approx(-12, abs=1.5)


def test_nothing_above_4_khz_comes_from_a_narrow_leg(server: Server, call: MakeCall) -> None:
    """The resampler leaves no image: 1 kHz from G.711 is not heard at 7 kHz by a G.722 leg."""
    talker, listener = meet(call, Pcmu, G722)
    talker.rtp.play(audio.tone(1000, 1.0), loop=True)
    listener.rtp.listen(0.4)
    heard = listener.rtp.listen(1.0)
    image_db = audio.tone_level_dbfs(heard, 16_000, 7000) - audio.usual_level_dbfs(heard, 16_000, 1000)
    assert image_db < -50


def test_everybody_hears_the_others_and_not_itself(server: Server, call: MakeCall) -> None:
    """Three members with a tone each: two are heard, one's own is not."""
    tones_hz = (440, 1000, 1700)
    parties = meet(call, Pcmu, Pcmu, Pcmu)
    for party, hz in zip(parties, tones_hz, strict=True):
        party.rtp.play(audio.tone(hz, 1.0, level_dbfs=-20), loop=True)
    parties[0].rtp.listen(0.5)
    for party, own_hz in zip(parties, tones_hz, strict=True):
        heard = party.rtp.listen(1.0)
        for hz in tones_hz:
            found_dbfs = audio.usual_level_dbfs(heard, 8000, hz)
            assert found_dbfs < -55 if hz == own_hz else found_dbfs == pytest.approx(-20, abs=1)


def test_loud_members_are_limited_without_wrapping(server: Server, call: MakeCall) -> None:
    """The sum of two full voices is clipped, not turned over."""
    a, b, listener = meet(call, Pcmu, Pcmu, Pcmu)
    for party in (a, b):
        party.rtp.play(audio.tone(400, 1.0, level_dbfs=-4), loop=True)
    listener.rtp.listen(0.5)
    heard = listener.rtp.listen(1.0).astype(int)
    # A wrapped sum jumps by more than full scale from one sample to the next.
    assert np.max(np.abs(np.diff(heard))) < 40_000
    assert audio.find_tone(heard.astype(np.int16), 8000) == audio.near(400)


def test_joins_and_leaves_make_no_click(server: Server, call: MakeCall) -> None:
    """While others come and go, a tone goes on; with other codecs the room's rate changes, but softly."""
    talker, listener = meet(call, Pcmu, Pcmu)
    room = server.call_of(listener.caller)["to"]
    talker.rtp.play(audio.tone(1000, 1.0), loop=True)
    listener.rtp.listen(0.5)
    for codec in (Pcmu, Opus, G722):
        since_s = listener.rtp.wait_packets(10)
        visitor = call(room, codec)
        visitor.rtp.listen(0.4)
        visitor.hang_up()
        heard = listener.rtp.heard(since_s, listener.rtp.wait_packets(10))
        # from whole frames to pieces that are mixed is a step of 15 to 20 ms, which is made up and fades
        assert [gap for gap in audio.gaps_ms(heard, 8000) if gap[1] > 20] == []
        assert audio.clicks(heard, 8000, 1000) == []
        if codec is Pcmu:
            assert audio.phase_jumps(heard, 8000, 1000) == []


def test_a_lone_member_hears_a_hint_and_then_silence(server: Server, call: MakeCall) -> None:
    """Somebody is told that nobody else is there."""
    party = call("room-alone-with-a-hint")
    heard = party.rtp.listen(2.5)
    levels = audio.frame_levels(heard, 8000)
    assert np.max(levels[:100]) > 300
    assert np.max(levels[-50:]) < 10


def test_call_ends_when_alone(server: Server, call: MakeCall) -> None:
    """With hangup_when_alone, the last one is hung up when the other leaves."""
    a, b = call("alone-together"), call("alone-together")
    a.rtp.listen(0.3)
    b.hang_up()
    a.dialog.wait_bye()
    ended = server.ended(a.caller)
    assert ended.kind == "alone"


def test_a_steady_tone_has_neither_gap_nor_splice(server: Server, call: MakeCall) -> None:
    """Six seconds of a tone from one leg to another, and of one made by the server."""
    talker, listener = meet(call, Pcmu, Pcmu)
    other = call("tone1000")
    talker.rtp.play(audio.tone(1000, 1.0), loop=True)
    listener.rtp.listen(0.5)
    since_s = listener.rtp.wait_packets(1)
    listener.rtp.listen(6.0)
    for heard in (listener.rtp.heard(since_s), audio.steady_part(other.rtp.heard(), 8000)):
        assert len(heard) > 5.5 * 8000
        assert audio.gaps_ms(heard, 8000) == []
        assert audio.phase_jumps(heard, 8000, 1000) == []
    assert listener.rtp.lost() == 0
    assert other.rtp.lost() == 0


def test_a_new_stream_of_the_caller_is_heard(server: Server, call: MakeCall) -> None:
    """A caller that starts again with a new source, sequence and timestamp (as after a transfer) goes on."""
    party = call("echo")
    party.rtp.play(audio.tone(1000, 1.0), loop=True)
    party.rtp.listen(0.5)
    assert party.hears_tone() == pytest.approx(1000, abs=2)
    party.rtp.ssrc ^= 0x5A5A5A5A
    party.rtp.sequence = (party.rtp.sequence + 30_000) & 0xFFFF
    party.rtp.timestamp = (party.rtp.timestamp + 2_000_000_000) & 0xFFFFFFFF
    party.rtp.listen(0.7)
    assert party.hears_tone() == pytest.approx(1000, abs=2)


def test_lost_packets_are_counted_and_concealed(server: Server, call: MakeCall) -> None:
    """Of 5 % lost packets the tone still comes back, and the call's end tells of the loss."""
    party = call("echo")
    party.rtp.play(audio.tone(1000, 1.0), loop=True)
    party.rtp.listen(0.5)
    for _ in range(5):
        party.rtp.sequence = (party.rtp.sequence + 1) & 0xFFFF
        party.rtp.timestamp = (party.rtp.timestamp + 160) & 0xFFFFFFFF
        party.rtp.listen(0.4)
    assert party.hears_tone() == pytest.approx(1000, abs=3)
    party.hang_up()
    assert 0 < server.ended(party.caller).fields["loss_percent"] < 10


def test_recorded_delay_is_small(server: Server, call: MakeCall) -> None:
    """On a clean line audio hardly waits at all, and every stage says how long."""
    talker, listener = meet(call, Pcmu, Pcmu)
    talker.rtp.play(audio.tone(1000, 1.0), loop=True)
    listener.rtp.listen(1.5)
    found = server.call_of(talker.caller)
    assert 2.5 <= found["capture_ms"] <= 20
    assert found["mix_ms"] == 0  # two of one rate: nothing is mixed
    assert found["playback_ms"] <= 10
    parts = found["capture_ms"] + found["mix_ms"] + found["playback_ms"]
    assert found["delay_ms"] == pytest.approx(parts, abs=0.11)
