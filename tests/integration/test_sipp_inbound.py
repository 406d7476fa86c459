# SPDX-License-Identifier: GPL-3.0-or-later
"""Calls that SIPp makes to the server, and what is heard in them."""

import functools
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import MakeAgent, MakeCall, MakePeer, RunSipp
from tests.support import audio, setup
from tests.support.codecs import G722, Codec, Opus, Pcma, Pcmu, Samples
from tests.support.rtp import RtpPeer
from tests.support.sdp import describe
from tests.support.server import Server
from tests.support.sipp import SCENARIOS
from tests.support.waiting import wait_until

SPEECH = audio.speech(10.0)


def own_voice_comes_back(peer: RtpPeer, sent: Samples, seconds: float) -> bool:
    """Whether an echo of what was played is heard, undistorted, and for about so long."""
    heard = peer.heard()
    likeness = audio.likeness(sent, heard, peer.codec.rate_hz)
    assert likeness > 0.9, f"likeness {likeness:.2f} over {len(heard) / peer.codec.rate_hz:.1f} s"
    assert len(heard) > seconds * 0.8 * peer.codec.rate_hz
    return True


def test_every_scenario_is_run() -> None:
    """No scenario lies about unused."""
    sources = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    assert [path.name for path in SCENARIOS.glob("*.xml") if f'"{path.stem}"' not in sources] == []


@pytest.mark.parametrize(
    ("scenario", "transport"),
    [
        ("uac_basic_call", "u1"),
        ("uac_basic_call", "t1"),
        ("uac_delayed_offer", "u1"),
        ("uac_ringing", "u1"),
        ("uac_large_invite", "u1"),
        ("uac_large_invite", "t1"),
    ],
)
def test_call_is_answered_and_heard(
    scenario: str, transport: str, server: Server, sipp: RunSipp, rtp: MakePeer, caller_name: str
) -> None:
    """The caller's speech comes back from the echo, and the call ends by the caller's BYE."""
    peer = rtp()
    peer.play(SPEECH)
    sipp(
        scenario,
        callee="ring" if scenario == "uac_ringing" else "echo",
        caller=caller_name,
        rtp_port=peer.port,
        transport=transport,
        duration_ms=2500,
        keys={"padding": "x" * 900} if scenario == "uac_large_invite" else {},
    ).wait()
    assert own_voice_comes_back(peer, SPEECH, 2.5)
    assert peer.lost() == 0
    started, ended = server.started(caller_name), server.ended(caller_name)
    assert (started["trunk"], started["target"]) == ("line", "echo:")
    assert (ended.kind, ended.by, ended.codec) == ("hangup", "caller", "PCMU")
    assert ended.duration_s > 2
    assert ended.fields["loss_percent"] == 0
    assert ended.fields["mos"] > 4


def test_early_media_is_heard_before_the_answer(
    server: Server, sipp: RunSipp, rtp: MakePeer, caller_name: str
) -> None:
    """A second of tone comes with the 183, and goes on after the 200 without a gap."""
    peer = rtp()
    sipp("uac_early_media", callee="early", caller=caller_name, rtp_port=peer.port, duration_ms=500).wait()
    heard = audio.steady_part(peer.heard(), 8000)
    assert audio.find_tone(heard, 8000) == audio.near(440)
    assert len(heard) / 8000 > 1.2
    assert audio.gaps_ms(heard, 8000) == []
    assert server.ended(caller_name).kind == "hangup"


def test_cancel_before_ringing(server: Server, agent: MakeAgent, rtp: MakePeer) -> None:
    """A caller who gives up with the same breath: INVITE and CANCEL arrive together."""
    party, peer = agent(), rtp()
    via, from_, uri = party.via(), party.from_header(), party.uri("ringlong")
    same = functools.partial(party.request, via=via, from_=from_, call_id=party.user)
    party.send(same("INVITE", uri, body=describe(peer)))
    party.send(same("CANCEL", uri))
    assert party.final("CANCEL").status == 200
    refusal = party.final("INVITE")
    assert refusal.status == 487
    party.send(same("ACK", uri, to=refusal.get("to")))
    ended = server.ended(party.user)
    assert (ended.kind, ended.by, ended.duration_s) == ("cancelled", "caller", 0)
    assert peer.packets == []


def test_cancel_after_ringing(server: Server, sipp: RunSipp, rtp: MakePeer, caller_name: str) -> None:
    """A caller who gives up hears nothing, and the call ends as cancelled."""
    peer = rtp()
    sipp("uac_cancel_after_ringing", callee="ringlong", caller=caller_name, rtp_port=peer.port).wait()
    ended = server.ended(caller_name)
    assert (ended.kind, ended.by, ended.duration_s) == ("cancelled", "caller", 0)
    assert peer.packets == []


@pytest.mark.parametrize("scenario", ["uac_server_hangs_up", "uac_bye_crossing"])
def test_server_ends_the_call(
    scenario: str, server: Server, sipp: RunSipp, rtp: MakePeer, caller_name: str
) -> None:
    """At the longest duration the server hangs up, also when the caller does so in the same moment."""
    peer = rtp()
    sipp(scenario, callee="brief", caller=caller_name, rtp_port=peer.port).wait()
    ended = server.ended(caller_name)
    assert (ended.kind, ended.by) == ("max_duration", "bridge")
    heard = audio.steady_part(peer.heard(), 8000)
    assert audio.find_tone(heard, 8000) == audio.near(440)
    assert audio.gaps_ms(heard, 8000) == []


def test_codec_change(server: Server, sipp: RunSipp, rtp: MakePeer, caller_name: str) -> None:
    """The same tone in PCMU, and after the re-INVITE in PCMA."""
    peer = rtp()
    sipp(
        "uac_codec_change", callee="tone1000", caller=caller_name, rtp_port=peer.port, duration_ms=1000
    ).wait()
    for codec in (Pcmu(), Pcma()):
        payloads = [packet.payload for packet in peer.packets if packet.payload_type == codec.payload_type]
        heard = audio.steady_part(np.concatenate([codec.decode(payload) for payload in payloads]), 8000)
        assert audio.find_tone(heard, 8000) == audio.near(1000)
        assert len(heard) > 0.7 * 8000
    assert server.ended(caller_name).codec == "PCMA"


def test_media_address_change(server: Server, sipp: RunSipp, rtp: MakePeer, caller_name: str) -> None:
    """After the re-INVITE the tone goes to the new port, and to that alone."""
    before, after = rtp(), rtp()
    process = sipp(
        "uac_address_change",
        callee="tone1000",
        caller=caller_name,
        rtp_port=before.port,
        duration_ms=1000,
        keys={"moved_port": str(after.port)},
    )
    # A telephone that moved sends from there; audio from its old port would be followed back.
    wait_until(lambda: "CSeq: 2 INVITE" in process.messages(), 10.0, "the re-INVITE is sent")
    before.pause()
    after.remote = before.remote
    process.wait()
    for peer in (before, after):
        heard = audio.steady_part(peer.heard(), 8000)
        assert audio.find_tone(heard, 8000) == audio.near(1000)
        assert 0.7 * 8000 < len(heard) < 1.5 * 8000
    assert server.ended(caller_name).kind == "hangup"


def test_options(server: Server, sipp: RunSipp) -> None:
    """OPTIONS is answered 200, and starts no call."""
    before = len(server.events("call.started"))
    sipp("uac_options", callee="echo").wait()
    assert len(server.events("call.started")) == before


@pytest.mark.parametrize(("scenario", "codec"), [("uac_offer_g722", G722), ("uac_offer_opus", Opus)])
def test_wideband_codecs(
    scenario: str, codec: type[Codec], server: Server, sipp: RunSipp, rtp: MakePeer, caller_name: str
) -> None:
    """Speech and its band above 4 kHz come back."""
    peer = rtp(codec)
    sent = audio.speech(1.5, codec.rate_hz)
    high = audio.tone(5000, 1.5, codec.rate_hz)
    peer.play(np.concatenate((sent, high)))
    sipp(scenario, callee="echo", caller=caller_name, rtp_port=peer.port, duration_ms=3500).wait()
    assert own_voice_comes_back(peer, sent, 2.0)
    heard = peer.heard()
    last = audio.steady_part(heard, codec.rate_hz)[-codec.rate_hz :]
    assert audio.tone_level_dbfs(last, codec.rate_hz, 5000) > -12 - 3
    assert server.ended(caller_name).codec == codec.name


def test_codec_order_is_that_of_the_trunk(
    server: Server, sipp: RunSipp, rtp: MakePeer, caller_name: str
) -> None:
    """Of an offer with PCMA first, PCMU is taken, and from a trunk that has only PCMA, PCMA."""
    peer = rtp()
    peer.play(SPEECH)
    sipp("uac_offer_order", callee="echo", caller=caller_name, rtp_port=peer.port, duration_ms=1500).wait()
    assert own_voice_comes_back(peer, SPEECH, 1.5)
    assert server.ended(caller_name).codec == "PCMU"


@pytest.mark.parametrize(("host", "codec"), [(setup.A_LAW, Pcma), (setup.WIDE, G722)])
def test_codecs_of_a_trunk(host: str, codec: type[Codec], server: Server, call: MakeCall) -> None:
    """Each trunk's own list decides, whatever else the caller has."""
    party = call("tone1000", codec, host=host, codecs=(Pcmu, Pcma, G722))
    assert party.dialog.answer is not None
    assert party.dialog.answer.payload_types[0] == codec.payload_type
    assert party.hears_tone() == pytest.approx(1000, abs=2)
    party.hang_up()
    assert server.ended(party.caller).codec == codec.name


def test_no_common_codec(server: Server, sipp: RunSipp) -> None:
    """An offer without any codec of ours is refused with 488."""
    sipp("uac_no_common_codec", callee="echo").wait()


def test_not_found(server: Server, sipp: RunSipp, caller_name: str) -> None:
    """A number that no rule knows is answered 404, and the log says why."""
    sipp("uac_not_found", callee="nobody", caller=caller_name).wait()
    assert server.ended(caller_name).kind == "not_found"


def test_channel_that_cannot_be_joined(server: Server, sipp: RunSipp, caller_name: str) -> None:
    """A call whose sound file is not there is refused, and the log says why."""
    with pytest.raises(AssertionError):
        sipp("uac_basic_call", callee="missing", caller=caller_name).wait()
    ended = server.ended(caller_name)
    assert ended.kind == "channel_failed"
    assert "/nonexistent/file.wav" in ended.detail


def test_trunk_is_full(server: Server, sipp: RunSipp, call: MakeCall) -> None:
    """The second call of a trunk for one is answered 503 with Retry-After, the first does not notice."""
    first = call("tone1000", host=setup.SMALL)
    sipp("uac_unavailable", host=setup.SMALL, callee="echo").wait()
    heard = audio.steady_part(first.rtp.heard(), 8000)
    assert audio.find_tone(heard, 8000) == audio.near(1000)
    assert audio.gaps_ms(heard, 8000) == []
    first.hang_up()
    server.wait_idle()
    assert call("tone1000", host=setup.SMALL).hears_tone() == pytest.approx(1000, abs=2)


def test_rtp_that_stops_ends_the_call(server: Server, sipp: RunSipp, rtp: MakePeer, caller_name: str) -> None:
    """After the media timeout the server hangs up."""
    peer = rtp()
    process = sipp("uac_server_hangs_up", callee="tone1000", caller=caller_name, rtp_port=peer.port)
    peer.wait_packets(25)
    peer.pause()
    process.wait()
    ended = server.ended(caller_name)
    assert (ended.kind, ended.by) == ("media_timeout", "bridge")
    assert ended.duration_s > setup.MEDIA_TIMEOUT_S


def test_rtp_that_never_comes_ends_the_call(
    server: Server, sipp: RunSipp, rtp: MakePeer, caller_name: str
) -> None:
    """The first packet has a timeout of its own."""
    peer = rtp()
    peer.pause()
    sipp("uac_server_hangs_up", callee="tone1000", caller=caller_name, rtp_port=peer.port).wait()
    ended = server.ended(caller_name)
    assert (ended.kind, ended.by) == ("media_timeout", "bridge")
    assert ended.duration_s > setup.MEDIA_TIMEOUT_S


def test_quiet_audio_ends_nothing(server: Server, sipp: RunSipp, rtp: MakePeer, caller_name: str) -> None:
    """Silence that is sent is no silence of RTP: the call goes on beyond the media timeout."""
    peer = rtp()
    duration_s = 2 * setup.MEDIA_TIMEOUT_S
    sipp(
        "uac_basic_call",
        callee="tone1000",
        caller=caller_name,
        rtp_port=peer.port,
        duration_ms=1000 * duration_s,
    ).wait()
    ended = server.ended(caller_name)
    assert (ended.kind, ended.by) == ("hangup", "caller")
    assert ended.duration_s > duration_s - 0.5


def test_file_is_played_again_and_again(
    server: Server, sipp: RunSipp, rtp: MakePeer, played_file: Path, caller_name: str
) -> None:
    """What `play:` plays is what is in the file, and it starts over at its end."""
    peer = rtp()
    sipp("uac_basic_call", callee="play", caller=caller_name, rtp_port=peer.port, duration_ms=4500).wait()
    once, _ = audio.read_wav(played_file)
    heard = peer.heard()
    delay_s, correlation = audio.align_and_correlate(once, heard, 8000)
    assert correlation > 0.95
    rest = heard[round((delay_s + 2.0) * 8000) :] if delay_s < 2 else heard[: round(delay_s * 8000)]
    assert audio.align_and_correlate(once, rest, 8000)[1] > 0.95


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_ipv6(transport: str, server: Server, call: MakeCall) -> None:
    """A call over IPv6, signalling and audio."""
    party = call("tone1000", host="::1", transport=transport)
    assert party.dialog.answer is not None
    assert party.dialog.answer.address == "::1"
    assert party.hears_tone() == pytest.approx(1000, abs=2)
    party.hang_up()
    assert server.ended(party.caller).kind == "hangup"


def test_target_from_a_header(server: Server, call: MakeCall) -> None:
    """A header of the INVITE chooses the room."""
    call("by-header", headers={"X-Room": "blue"})
    rooms = server.http.get("/v1/rooms").json()["rooms"]
    assert [room["name"] for room in rooms] == ["blue"]


def test_calls_are_listed(server: Server, call: MakeCall) -> None:
    """The API tells of a running call who, where to, how and how loud."""
    party = call("echo")
    party.rtp.play(audio.tone(1000, 1.0), loop=True)
    assert party.hears_tone() == pytest.approx(1000, abs=2)
    found = server.call_of(party.caller)
    assert (found["to"], found["trunk"], found["rule"]) == ("echo", "line", "echo")
    assert (found["target"], found["state"], found["codec"]) == ("echo:", "active", "PCMU")
    assert found["capture_level_dbfs"] > -20
    assert server.http.get(f"/v1/calls/{found['id']}").json()["id"] == found["id"]
    server.hang_up(found["id"])
    party.dialog.wait_bye()
    ended = server.ended(party.caller)
    assert (ended.kind, ended.by) == ("hangup", "operator")
