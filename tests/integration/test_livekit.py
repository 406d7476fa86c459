# SPDX-License-Identifier: GPL-3.0-or-later
"""Telephones in rooms of a real LiveKit server, with LiveKit's own SDK as the far side."""

import asyncio
import concurrent.futures
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from livekit import api
from livekit.protocol.models import DisconnectReason, ParticipantInfo
from livekit.protocol.rtc import LeaveRequest, RegionInfo, RegionSettings, SignalResponse

from tests.conftest import MakeAgent, MakeCall, MakePeer, StartServer
from tests.support import audio, livekit, livekit_proxy
from tests.support.bits import has_stretch, send_speech
from tests.support.codecs import G722, Codec, Opus, Pcma, Pcmu
from tests.support.livekit import RATE_HZ, LiveKitServer, Participant, Relay, Sdk
from tests.support.livekit_proxy import LiveKitProxy
from tests.support.ports import free_port
from tests.support.sdp import describe
from tests.support.server import ROOT, Server
from tests.support.sip_agent import RefusedError
from tests.support.waiting import wait_until

PHONE_HZ, FAR_HZ = 700.0, 1100.0
CONNECT_S = 3.0  # of the bridge whose signalling is altered
COUNTED = ("calls", "streams", "ports", "descriptors", "threads")
KEPT_S = 6.0  # that closed connections are kept
TRUNK = {"name": "line", "allowed_addresses": ["127.0.0.1"], "codecs": ["opus", "G722", "PCMU", "PCMA"]}
_rooms = itertools.count(1)


@pytest.fixture(scope="module")
def livekit_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveKitServer]:
    """One for all tests that need none of their own."""
    with LiveKitServer(tmp_path_factory.mktemp("livekit")) as server:
        yield server


@pytest.fixture(scope="module")
def sdk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sdk]:
    with livekit.sdk(tmp_path_factory.mktemp("sdk")) as process:
        yield process


def config(table: dict[str, Any], **rule: Any) -> dict[str, Any]:
    """Whoever calls a number is in the room of that name."""
    rooms = {"name": "rooms", "target": "livekit:{callee}", **rule}
    return {
        "trunk": [TRUNK],
        "rule": [
            {"name": "alone", "to": "alone-*", "target": "livekit:{callee}", "hangup_when_alone": True},
            {
                "name": "tell",
                "to": "tell-*",
                "target": "livekit:{callee}",
                "livekit": {
                    "headers_to_attributes": {"X-Customer": "customer"},
                    "attributes_to_headers": {"customer": "X-Account", "outcome": "X-Outcome"},
                },
            },
            {"name": "wait", "to": "wait-*", "target": "livekit:{callee}", "livekit": {"start": "track"}},
            {
                "name": "brief",
                "to": "brief-*",
                "target": "livekit:{callee}",
                "livekit": {"start": "track", "start_limit_s": 1},
            },
            rooms,
        ],
        "livekit": table,
        "log": {"level": "debug"},
        "webrtc": {"bind_address": "127.0.0.1"},
    }


@pytest.fixture(scope="module")
def bridge(livekit_server: LiveKitServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("bridge")
    (folder / "sounds").mkdir()
    table = {**livekit_server.table, "include_headers": "x"}
    with Server(folder, config(table)) as server:
        yield server


@pytest.fixture(scope="module")
def proxy(livekit_server: LiveKitServer) -> Iterator[LiveKitProxy]:
    with LiveKitProxy(livekit_server) as standing_between:
        yield standing_between


@pytest.fixture(scope="module")
def proxied(
    livekit_server: LiveKitServer, proxy: LiveKitProxy, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A bridge whose signalling may be altered on its way."""
    table = {**livekit_server.table, "url": proxy.url, "connect_timeout_s": CONNECT_S}
    with Server(tmp_path_factory.mktemp("proxied"), config(table)) as server:
        yield server


@pytest.fixture
def room() -> str:
    return f"room-{next(_rooms)}"


@pytest.fixture
def join(livekit_server: LiveKitServer, sdk: Sdk) -> Iterator[Any]:
    """Has somebody join; all leave at the end."""
    there: list[Participant] = []

    def make(room: str, identity: str = "ann", hz: float = 0.0, **claims: Any) -> Participant:
        there.append(sdk.participant(livekit_server, room, identity, **claims))
        if hz:
            there[-1].say(audio.tone(hz, 1.0, RATE_HZ), RATE_HZ)
        return there[-1]

    yield make
    for one in there:
        one.leave()


def heard_hz(party: Any, seconds: float = 0.5) -> float:
    rate_hz = party.rtp.codec.rate_hz
    return audio.find_tone(party.rtp.listen(seconds), rate_hz)


def hears(party: Any, hz: float, timeout_s: float = 5.0) -> None:
    wait_until(lambda: abs(heard_hz(party, 0.3) - hz) < 5, timeout_s, f"the telephone hears {hz} Hz")


# ---------------------------------------------------------------- audio


@pytest.mark.parametrize("codec", [Pcmu, Pcma, G722, Opus])
def test_a_telephone_and_a_participant_hear_each_other(
    codec: type[Codec], bridge: Server, join: Any, call: MakeCall, room: str
) -> None:
    """At the right pitch, without gaps, nobody hears itself."""
    ann = join(room, hz=FAR_HZ)
    party = call(room, codec, server=bridge.sip_address)
    party.rtp.play(audio.tone(PHONE_HZ, 1.0, codec.rate_hz), loop=True)
    hears(party, FAR_HZ)
    ann.listen(0.5)
    heard = ann.listen(2.0)
    assert audio.find_tone(heard, RATE_HZ) == audio.near(PHONE_HZ)
    assert audio.gaps_ms(heard, RATE_HZ) == []
    assert audio.tone_level_dbfs(heard, RATE_HZ, FAR_HZ) < -50
    heard = party.rtp.listen(2.1)[codec.rate_hz // 10 :]  # a decoder's state has to come about
    assert audio.find_tone(heard, codec.rate_hz) == audio.near(FAR_HZ)
    assert audio.gaps_ms(heard, codec.rate_hz) == []
    assert audio.tone_level_dbfs(heard, codec.rate_hz, PHONE_HZ) < -50
    (other,) = ann.others()
    mime = "audio/PCMU" if codec in (Pcmu, Pcma) else "audio/opus"
    assert [track["mime"].lower() for track in other["tracks"]] == [mime.lower()]


def test_pcmu_passes_bit_for_bit(bridge: Server, call: MakeCall, room: str) -> None:
    """From a telephone through the server to another, a second of octets is as it was sent."""
    talker, listener = (call(room, server=bridge.sip_address) for _ in range(2))
    talker.rtp.play(audio.tone(PHONE_HZ, 1.0), loop=True)
    hears(listener, PHONE_HZ, 8.0)
    talker.rtp.stop_playing()
    sent = send_speech(talker.rtp, Pcmu)
    listener.rtp.listen(0.2)
    assert has_stretch(sent, listener.rtp)


def test_speech_is_like_what_was_said(bridge: Server, join: Any, call: MakeCall, room: str) -> None:
    """Both ways, through two more codecs and two jitter buffers."""
    ann = join(room)
    said, answered = audio.speech(20.0), audio.speech(20.0, RATE_HZ, voice=1)
    ann.say(answered, RATE_HZ)
    party = call(room, server=bridge.sip_address)
    party.rtp.play(said, loop=True)
    wait_until(lambda: party.rtp.listen(0.3).any(), 5.0, "the telephone hears something")
    ann.listen(1.0)
    heard_far = ann.listen(4.0)
    heard_near = party.rtp.listen(4.0)
    assert audio.likeness(audio.resample(said, 8000, RATE_HZ), heard_far, RATE_HZ) > 0.9
    assert audio.likeness(audio.resample(answered, RATE_HZ, 8000), heard_near, 8000) > 0.9


def test_all_who_speak_are_mixed(bridge: Server, join: Any, call: MakeCall, room: str) -> None:
    """Two telephones and two others: each hears the three others. Who comes and goes makes no click."""
    join(room, "ann", 500)
    party = call(room, server=bridge.sip_address)
    other = call(room, server=bridge.sip_address)
    other.rtp.play(audio.tone(900, 1.0), loop=True)
    party.rtp.play(audio.tone(PHONE_HZ, 1.0), loop=True)
    wait_until(
        lambda: (
            min(
                audio.tone_level_dbfs(party.rtp.listen(0.3), 8000, 500),
                audio.tone_level_dbfs(party.rtp.heard(time.monotonic() - 0.3), 8000, 900),
            )
            > -25
        ),
        8.0,
        "both others are heard",
    )
    start = time.monotonic()
    bob = join(room, "bob", 1300)
    wait_until(
        lambda: audio.tone_level_dbfs(party.rtp.listen(0.3), 8000, 1300) > -25, 8.0, "the third is heard"
    )
    bob.fall_silent()
    wait_until(lambda: audio.tone_level_dbfs(party.rtp.listen(0.3), 8000, 1300) < -50, 8.0, "no more")
    whole = party.rtp.heard(start)
    for hz in (500, 900):
        levels = audio.tone_levels_dbfs(whole, 8000, hz)[1:-1]
        # where a third comes the queues may make up some 10 ms once, and a busy machine is late
        assert (levels > levels.max() - 3).mean() >= 0.6
    assert audio.tone_level_dbfs(whole, 8000, PHONE_HZ) < -50
    heard = other.rtp.listen(0.5)
    assert audio.tone_level_dbfs(heard, 8000, 500) > -25
    assert audio.tone_level_dbfs(heard, 8000, PHONE_HZ) > -25
    assert audio.tone_level_dbfs(heard, 8000, 900) < -50


def test_hold_is_seen_as_mute(bridge: Server, join: Any, call: MakeCall, room: str) -> None:
    """And as an attribute; what a PBX plays meanwhile is not heard in the room."""
    ann = join(room, hz=FAR_HZ)
    party = call(room, server=bridge.sip_address)
    party.rtp.play(audio.tone(PHONE_HZ, 1.0), loop=True)
    hears(party, FAR_HZ)
    assert audio.find_tone(ann.listen(0.5), RATE_HZ) == audio.near(PHONE_HZ)
    party.dialog.reinvite(describe(party.rtp, direction="sendonly"))
    ann.wait_event("muted")
    wait_until(lambda: ann.others()[0]["attributes"].get("sip.held") == "true", 5.0, "it shows the hold")
    ann.listen(0.5)
    assert audio.level_dbfs(ann.listen(0.5)) < -60
    party.dialog.reinvite(describe(party.rtp))
    ann.wait_event("unmuted")
    ann.listen(0.5)
    assert audio.find_tone(ann.listen(0.5), RATE_HZ) == audio.near(PHONE_HZ)
    assert not ann.others()[0]["attributes"].get("sip.held")


# ---------------------------------------------------------------- who it is


def test_the_participant_as_others_see_it(bridge: Server, join: Any, call: MakeCall, room: str) -> None:
    """A SIP participant with livekit-sip's attributes, and a header that is wanted."""
    ann = join(room)
    party = call(room, server=bridge.sip_address, headers={"X-Customer": "4711"})
    wait_until(ann.others, 5.0, "it is there")
    (other,) = ann.others()
    call_id = bridge.call_of(party.caller)["id"]
    assert other["kind"] == ParticipantInfo.Kind.SIP
    assert other["name"] == f"Phone {party.caller}"
    assert other["identity"] == f"sip_{party.caller}_{call_id}"
    attributes = dict(other["attributes"])
    assert attributes.pop("sip.callIDFull")
    assert attributes == {
        "sip.callID": call_id,
        "sip.trunkID": "line",
        "sip.ruleID": "rooms",
        "sip.phoneNumber": party.caller,
        "sip.trunkPhoneNumber": room,
        "sip.hostname": "127.0.0.1",
        "sip.callStatus": "active",
        "sip.h.x-customer": "4711",
    }


def test_hanging_up_is_seen_at_once(bridge: Server, join: Any, call: MakeCall, room: str) -> None:
    """Within a second, and as what it is."""
    ann = join(room)
    party = call(room, server=bridge.sip_address)
    wait_until(ann.others, 5.0, "it is there")
    at = time.time()
    party.hang_up()
    left = ann.wait_event("left")
    assert left["at"] - at < 1.0
    assert left["reason"] == DisconnectReason.CLIENT_INITIATED
    assert {"sip.callStatus": "hangup"} in [event["changed"] for event in ann.events("attributes")]


# ---------------------------------------------------------------- keys, messages, methods


def test_keys_go_both_ways(bridge: Server, join: Any, call: MakeCall, room: str) -> None:
    ann = join(room)
    party = call(room, server=bridge.sip_address)
    wait_until(ann.others, 5.0, "it is there")
    party.rtp.send_dtmf("5#")
    ann.wait_event("key", digit="#")
    assert [(key["digit"], key["code"]) for key in ann.events("key")] == [("5", 5), ("#", 11)]
    for digit in "9*D":
        ann.ask("press", digit=digit)
    assert [digit.digit for digit in party.rtp.wait_digits("9*D")] == list("9*D")


def test_who_speaks_is_told(bridge: Server, join: Any, call: MakeCall, room: str) -> None:
    """To the call and to others, the call itself among them, and who falls silent."""
    ann, bob = join(room, hz=FAR_HZ), join(room, "bob", 900)
    party = call(room, server=bridge.sip_address)
    call_id = bridge.call_of(party.caller)["id"]
    itself = f"sip_{party.caller}_{call_id}"
    party.rtp.play(audio.tone(PHONE_HZ, 1.0), loop=True)

    def speakers() -> dict[str, float]:
        told = bridge.events("call.channel", call_id=call_id, kind="speakers")
        return dict(told[-1]["data"]) if told else {}

    wait_until(lambda: speakers().keys() == {"ann", "bob", itself}, 10.0, "all are heard")
    assert all(0 < level <= 1 for level in speakers().values())
    wait_until(lambda: itself in ann.events("speakers")[-1]["who"], 10.0, "others hear the telephone")
    party.rtp.stop_playing()
    wait_until(lambda: speakers().keys() == {"ann", "bob"}, 10.0, "it is silent")
    ann.fall_silent()
    wait_until(lambda: "ann" not in speakers(), 10.0, "one is not any more")
    assert "bob" in speakers()
    bob.leave()
    wait_until(lambda: not speakers(), 10.0, "none is")


def test_messages_become_events_of_the_call(bridge: Server, join: Any, call: MakeCall, room: str) -> None:
    """Texts, data and transcriptions, with their topics."""
    ann = join(room)
    party = call(room, server=bridge.sip_address)
    wait_until(ann.others, 5.0, "it is there")
    ann.ask("text", text="hello", topic="lk.chat")
    ann.ask("data", data="raw", topic="bytes")
    ann.ask("transcribe", text="what was", is_final=False)
    ann.ask("transcribe", text="what was said", is_final=True)
    call_id = bridge.call_of(party.caller)["id"]
    for topic, text in (("lk.chat", "hello"), ("bytes", "raw"), ("lk.transcription", "what was said")):
        told = f"{len(text)} characters"  # the log has no more
        bridge.wait_event("call.message", call_id=call_id, topic=topic, text=told)
    assert len(bridge.events("call.message", call_id=call_id)) == 3


def test_attributes_become_headers(
    bridge: Server, livekit_server: LiveKitServer, agent: MakeAgent, rtp: MakePeer
) -> None:
    """Of our answer, and of our BYE as the room has them then."""
    room = f"tell-{next(_rooms)}"
    phone, peer = agent(server=bridge.sip_address), rtp()
    phone.send(phone.request("INVITE", phone.uri(room), headers={"X-Customer": "4711"}, body=describe(peer)))
    answer = phone.final("INVITE", 10.0)
    assert (answer.status, answer.get("x-account"), answer.get("x-outcome")) == (200, "4711", "")
    from_, to, call_id = answer.get("from"), answer.get("to"), answer.get("call-id")
    phone.send(phone.request("ACK", answer.contact_uri, from_=from_, to=to, call_id=call_id))
    (participant,) = livekit_server.participants(room)
    who = {"room": room, "identity": participant["identity"]}
    for attributes in ({"outcome": "sold\n", "customer": "4712"}, {"outcome": "sold"}):
        livekit_server.ask("RoomService/UpdateParticipant", **who, attributes=attributes)
    livekit_server.ask("RoomService/RemoveParticipant", **who)
    bye = phone.wait_request("BYE", 10.0)
    phone.respond(bye, 200, "OK")
    assert (bye.get("x-account"), bye.get("x-outcome")) == ("4712", "sold")


def test_an_agent_presses_keys_and_hangs_up(bridge: Server, join: Any, call: MakeCall, room: str) -> None:
    """By calling methods; what there is not is refused in words."""
    ann = join(room)
    party = call(room, server=bridge.sip_address, headers={"X-Customer": "4711"})
    wait_until(ann.others, 5.0, "it is there")
    to = ann.others()[0]["identity"]

    def ask(method: str, **payload: Any) -> dict[str, Any]:
        return dict(ann.ask("call", to=to, method=method, payload=json.dumps(payload)))

    assert ask("sip.dtmf", digits="12") == {"payload": "{}"}
    assert [digit.digit for digit in party.rtp.wait_digits("12")] == ["1", "2"]
    headers = json.loads(ask("lk.sip.GetRemoteHeaders")["payload"])["headers"]
    assert headers["X-Customer"] == "4711"
    assert ask("sip.transfer", to="tel:1") == {"code": 1500, "message": "transfer is not allowed here"}
    assert ask("sip.play", file="x.wav")["code"] == 1500
    assert ask("dance")["code"] == 1400
    assert ask("lk.sip.EndCall") == {"payload": "{}"}
    party.dialog.wait_bye()
    ended = bridge.ended(party.caller)
    assert (ended.kind, ended.by, ended.detail) == ("channel_closed", "channel", "the room has hung up")


# ---------------------------------------------------------------- beginnings


def test_it_rings_until_somebody_speaks(
    bridge: Server, livekit_server: LiveKitServer, join: Any, agent: MakeAgent, rtp: MakePeer
) -> None:
    room = f"wait-{next(_rooms)}"
    phone = agent(server=bridge.sip_address)
    peer = rtp()
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        calling = executor.submit(phone.call, room, peer, timeout_s=20.0)
        livekit_server.wait_participants(room, 1)
        call_id = bridge.started(phone.user)["call_id"]
        bridge.wait_event("call.ringing", call_id=call_id)
        ann = join(room)
        wait_until(ann.others, 5.0, "it is there")
        assert ann.others()[0]["attributes"]["sip.callStatus"] == "ringing"
        assert not calling.done()
        ann.say(audio.tone(FAR_HZ, 1.0, RATE_HZ), RATE_HZ)
        dialog = calling.result()
    peer.listen(0.5)
    assert audio.find_tone(peer.listen(0.5), 8000) == audio.near(FAR_HZ)
    wait_until(lambda: ann.others()[0]["attributes"]["sip.callStatus"] == "active", 5.0, "it is active")
    dialog.hang_up()


def test_it_does_not_ring_for_ever(bridge: Server, agent: MakeAgent, rtp: MakePeer) -> None:
    with pytest.raises(RefusedError) as caught:
        agent(server=bridge.sip_address).call(f"brief-{next(_rooms)}", rtp())
    assert caught.value.status == 480


def test_nobody_there_and_the_wrong_secret(
    livekit_server: LiveKitServer, start_server: StartServer, agent: MakeAgent, rtp: MakePeer
) -> None:
    """503, at once; 502 with the server's own words."""
    nowhere = {**livekit_server.table, "url": f"ws://127.0.0.1:{free_port()}"}
    wrong = {**livekit_server.table, "api_secret": "another_secret_of_32_characters_xx"}
    for table, code, kind, detail in (
        (nowhere, 503, "unavailable", "cannot be reached"),
        (wrong, 502, "channel_failed", "401 invalid token"),
    ):
        server = start_server(config(table))
        at = time.monotonic()
        phone = agent(server=server.sip_address)
        with pytest.raises(RefusedError) as caught:
            phone.call("room", rtp())
        assert caught.value.status == code
        assert time.monotonic() - at < 5
        ended = server.ended(phone.user)
        assert (ended.kind, ended.by) == (kind, "channel")
        assert detail in ended.detail


def test_no_way_for_audio(tmp_path: Path, start_server: StartServer, agent: MakeAgent, rtp: MakePeer) -> None:
    """Where the server names an address that nobody has, the caller is told within the time for that."""
    with LiveKitServer(tmp_path / "livekit", node_ip="127.0.0.200", use_ice_lite=True) as elsewhere:
        server = start_server(config({**elsewhere.table, "connect_timeout_s": 2}))
        phone = agent(server=server.sip_address)
        with pytest.raises(RefusedError) as caught:
            phone.call("room-ice", rtp())
    assert caught.value.status == 504
    assert "media connection" in server.ended(phone.user).detail


def test_media_connections_that_cannot_be_made(
    proxy: LiveKitProxy,
    proxied: Server,
    join: Any,
    call: MakeCall,
    agent: MakeAgent,
    rtp: MakePeer,
    room: str,
) -> None:
    """As a certificate is not the one that was said (DTLS), or there are no addresses (ICE).

    The caller is told in time, nothing is left of it, and the next call is well.
    """
    call(room, server=proxied.sip_address).hang_up()
    proxied.wait_idle()
    time.sleep(KEPT_S)
    before = {kind: proxied.counters()[kind] for kind in COUNTED}
    for alter in (
        livekit_proxy.fingerprint_of_server,
        livekit_proxy.fingerprint_of_client,
        livekit_proxy.candidates,
    ):
        phone, at = agent(server=proxied.sip_address), time.monotonic()
        proxy.alter = alter
        try:
            with pytest.raises(RefusedError) as caught:
                phone.call(room, rtp())
        finally:
            proxy.alter = livekit_proxy.nothing
        assert caught.value.status == 504
        assert time.monotonic() - at < CONNECT_S + 2
        ended = proxied.ended(phone.user)
        assert (ended.kind, ended.by) == ("channel_failed", "channel")
        assert "(ICE or DTLS)" in ended.detail
    join(room, hz=FAR_HZ)
    party = call(room, server=proxied.sip_address)
    hears(party, FAR_HZ)
    party.hang_up()
    wait_until(
        lambda: all(proxied.counters()[kind] <= before[kind] for kind in COUNTED),
        15.0,
        f"no more than {before}",
    )


# ---------------------------------------------------------------- endings


def end_by(livekit_server: LiveKitServer, sdk: Sdk, how: str, room: str, identity: str) -> None:
    match how:
        case "deleted":
            livekit_server.ask("RoomService/DeleteRoom", room=room)
        case "removed":
            livekit_server.ask("RoomService/RemoveParticipant", room=room, identity=identity)
        case "identity":
            sdk.participant(livekit_server, room, identity).leave()


@pytest.mark.parametrize(
    ("how", "detail"),
    [
        ("deleted", "the room was deleted"),
        ("removed", "removed from the room"),
        ("identity", "somebody else joined the room with the identity of this call"),
    ],
)
def test_the_room_ends_the_call(
    how: str,
    detail: str,
    bridge: Server,
    livekit_server: LiveKitServer,
    sdk: Sdk,
    call: MakeCall,
    room: str,
) -> None:
    """Each with its own reason; nobody joins again."""
    party = call(room, server=bridge.sip_address)
    (there,) = livekit_server.wait_participants(room, 1)
    end_by(livekit_server, sdk, how, room, there["identity"])
    party.dialog.wait_bye()
    ended = bridge.ended(party.caller)
    assert (ended.kind, ended.by, ended.detail) == ("channel_closed", "channel", f"LiveKit: {detail}")


def test_alone_in_the_room(bridge: Server, livekit_server: LiveKitServer, sdk: Sdk, call: MakeCall) -> None:
    """The call ends when the last other leaves, and not before anybody came."""
    room = f"alone-{next(_rooms)}"
    party = call(room, server=bridge.sip_address)
    livekit_server.wait_participants(room, 1)
    ann = sdk.participant(livekit_server, room, "ann")
    call_id = bridge.call_of(party.caller)["id"]
    bridge.wait_event("in the channel", call_id=call_id, identity="ann")
    ann.leave()
    party.dialog.wait_bye()
    assert bridge.ended(party.caller).kind == "alone"


# ---------------------------------------------------------------- lost servers


def test_signalling_that_breaks(
    livekit_server: LiveKitServer,
    start_server: StartServer,
    join: Any,
    call: MakeCall,
    room: str,
) -> None:
    """Audio goes on, nobody sees the telephone leave, and what was said meanwhile is made up for."""
    with Relay(livekit_server) as relay:
        bridge = start_server(config({**livekit_server.table, "url": relay.url}))
        party = call(room, server=bridge.sip_address)
        party.rtp.play(audio.tone(PHONE_HZ, 1.0), loop=True)
        ann = join(room, hz=FAR_HZ)
        hears(party, FAR_HZ)
        there = livekit_server.wait_participants(room, 2)
        assert relay.cut() == 1
        ann.fall_silent()
        heard = ann.listen(1.5)
        assert audio.find_tone(heard, RATE_HZ) == audio.near(PHONE_HZ)
        assert audio.gaps_ms(heard, RATE_HZ) == []
        bridge.wait_event("signalling is there again")
        ann.say(audio.tone(FAR_HZ, 1.0, RATE_HZ), RATE_HZ, "again")
        hears(party, FAR_HZ)
        assert {one["sid"] for one in livekit_server.participants(room)} == {one["sid"] for one in there}
        assert ann.events("left") == []
        party.hang_up()
        ann.wait_event("left")


def test_a_server_that_is_killed_and_started_again(
    tmp_path: Path, start_server: StartServer, sdk: Sdk, call: MakeCall, room: str
) -> None:
    """The telephone stays up, and hears again within 5 s; so does the room."""
    with LiveKitServer(tmp_path / "livekit") as server:
        bridge = start_server(config(server.table))
        party = call(room, server=bridge.sip_address)
        party.rtp.play(audio.tone(PHONE_HZ, 1.0), loop=True)
        ann = sdk.participant(server, room, "ann-1")
        ann.say(audio.tone(FAR_HZ, 1.0, RATE_HZ), RATE_HZ)
        hears(party, FAR_HZ)
        server.kill()
        time.sleep(2.0)
        server.start()
        ready = time.monotonic()
        bob = sdk.participant(server, room, "bob-1")
        bob.say(audio.tone(FAR_HZ, 1.0, RATE_HZ), RATE_HZ)
        hears(party, FAR_HZ)
        assert audio.find_tone(bob.listen(0.5), RATE_HZ) == audio.near(PHONE_HZ)
        assert time.monotonic() - ready < 7
        assert bridge.events("call.ended") == []
        for one in (ann, bob):
            one.leave()
        party.hang_up()


def test_a_server_that_sends_us_elsewhere(
    livekit_server: LiveKitServer, proxy: LiveKitProxy, proxied: Server, join: Any, call: MakeCall, room: str
) -> None:
    """The telephone stays up; the first address that the server has named is tried in vain."""
    join(room, hz=FAR_HZ)
    party = call(room, server=proxied.sip_address)
    hears(party, FAR_HZ)
    call_id = proxied.call_of(party.caller)["id"]
    named = [RegionInfo(url=f"ws://127.0.0.1:{free_port()}"), RegionInfo(url=livekit_server.url)]
    proxy.is_shut = True
    try:
        leave = LeaveRequest(
            action=LeaveRequest.Action.RECONNECT,
            reason=DisconnectReason.MIGRATION,
            regions=RegionSettings(regions=named),
        )
        proxy.tell(SignalResponse(leave=leave))
        proxied.wait_event("the room is joined again", call_id=call_id)
    finally:
        proxy.is_shut = False
    party.rtp.listen(0.3)
    hears(party, FAR_HZ)
    assert proxied.events("call.ended", call_id=call_id) == []


def test_a_server_that_does_not_come_back(
    tmp_path: Path, start_server: StartServer, call: MakeCall, room: str
) -> None:
    """The call ends after reconnect_s, with the reason."""
    with LiveKitServer(tmp_path / "livekit") as server:
        bridge = start_server(config({**server.table, "reconnect_s": 2}))
        party = call(room, server=bridge.sip_address)
        server.wait_participants(room, 1)
        server.kill()
        at = time.monotonic()
        party.dialog.wait_bye(10.0)
        assert 1.5 < time.monotonic() - at < 6
    ended = bridge.ended(party.caller)
    assert ended.kind == "channel_failed"
    assert "did not come back within 2 s" in ended.detail


# ---------------------------------------------------------------- dialling out


def test_dialling_shows_how_it_goes(
    bridge: Server, join: Any, agent: MakeAgent, rtp: MakePeer, room: str
) -> None:
    """Dialing, ringing, active, hangup, as the command line dials."""
    ann = join(room, hz=FAR_HZ)
    phone = agent(server=bridge.sip_address)
    environment = bridge.environment
    command = [sys.executable, "-m", "sipbridge", "dial", phone.contact, "--target", f"livekit:{room}"]
    api_url = ["--api", bridge.base_url]
    with subprocess.Popen(
        [*command, *api_url, "--json"], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL
    ) as dial:
        invite = phone.wait_request("INVITE")
        wait_until(ann.others, 5.0, "it is there before the answer")
        assert ann.others()[0]["attributes"]["sip.callStatus"] == "dialing"
        phone.respond(invite, 180, tag="ringing")
        ann.wait_event("attributes", changed={"sip.callStatus": "ringing"})
        peer = rtp()
        dialog = phone.accept(invite, peer, tag="ringing")
        ann.wait_event("attributes", changed={"sip.callStatus": "active"})
        peer.listen(0.3)
        assert audio.find_tone(peer.listen(0.5), 8000) == audio.near(FAR_HZ)
        dialog.hang_up()
        ann.wait_event("attributes", changed={"sip.callStatus": "hangup"})
        ann.wait_event("left")
        assert dial.wait(10) == 0


def test_livekits_client_dials_a_telephone_into_a_room(
    bridge: Server, join: Any, agent: MakeAgent, rtp: MakePeer, room: str
) -> None:
    """As if we were LiveKit's server. The room hears a dial tone until the answer."""
    ann = join(room)
    phone = agent(server=bridge.sip_address)
    host, port = phone.host, phone.port

    async def dial() -> api.SIPParticipantInfo:
        key, secret = livekit.API_KEY, livekit.API_SECRET
        async with api.LiveKitAPI(bridge.base_url, key, secret) as client:
            return await client.sip.create_sip_participant(
                api.CreateSIPParticipantRequest(
                    trunk=api.SIPOutboundConfig(hostname=f"{host}:{port}"),
                    sip_call_to="4711",
                    sip_number="+4930",
                    room_name=room,
                    participant_identity="callee",
                    participant_attributes={"a": "b"},
                    play_dialtone=True,
                )
            )

    info = asyncio.run(dial())
    assert (info.participant_identity, info.room_name) == ("callee", room)
    invite = phone.wait_request("INVITE")
    assert "+4930" in invite.get("From")
    phone.respond(invite, 180, tag="ringing")
    wait_until(lambda: abs(audio.find_tone(ann.listen(1.5, "callee"), RATE_HZ) - 425) < 5, 8.0, "a dial tone")
    (other,) = ann.others()
    assert other["attributes"]["a"] == "b"
    assert other["attributes"]["sip.phoneNumber"] == "4711"
    peer = rtp()
    dialog = phone.accept(invite, peer, tag="ringing")
    peer.play(audio.tone(PHONE_HZ, 1.0), loop=True)
    ann.wait_event("attributes", changed={"sip.callStatus": "active"})
    ann.listen(0.5, "callee")
    heard = ann.listen(0.5, "callee")
    assert audio.find_tone(heard, RATE_HZ) == audio.near(PHONE_HZ)
    assert audio.tone_level_dbfs(heard, RATE_HZ, 425) < -50
    dialog.hang_up()
    ann.wait_event("left", who="callee")


@pytest.mark.parametrize(
    ("status", "reason"),
    [(486, DisconnectReason.USER_REJECTED), (480, DisconnectReason.USER_UNAVAILABLE)],
)
def test_a_callee_that_refuses(
    status: int, reason: int, bridge: Server, join: Any, agent: MakeAgent, room: str
) -> None:
    """The room learns why."""
    ann = join(room)
    phone = agent(server=bridge.sip_address)
    call_id = bridge.dial(phone.contact, f"livekit:{room}")
    invite = phone.wait_request("INVITE")
    wait_until(ann.others, 5.0, "it is there")
    phone.respond(invite, status)
    assert ann.wait_event("left")["reason"] == reason
    assert bridge.ended(call_id=call_id).sip_code == status


# ---------------------------------------------------------------- nothing leaks


def test_rooms_joined_and_left_in_a_row(
    bridge: Server, livekit_server: LiveKitServer, call: MakeCall
) -> None:
    """Sockets, threads and calls are back where they were; so are the rooms."""
    call(f"room-leak-{next(_rooms)}", server=bridge.sip_address).hang_up()
    bridge.wait_idle()
    time.sleep(KEPT_S)
    before = {kind: bridge.counters()[kind] for kind in COUNTED}
    for _ in range(20):
        room = f"room-leak-{next(_rooms)}"
        party = call(room, server=bridge.sip_address)
        livekit_server.wait_participants(room, 1)
        party.hang_up()
        bridge.wait_idle()
    wait_until(
        lambda: all(bridge.counters()[kind] <= before[kind] for kind in COUNTED),
        15.0,
        f"no more than {before}",
    )
    assert livekit_server.participants(room) == []
