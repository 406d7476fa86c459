# SPDX-License-Identifier: GPL-3.0-or-later
"""Telephones in channels of Agora's, as the SDK's own Python has them over a simulated engine."""

import itertools
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MakeAgent, MakeCall, MakePeer
from tests.support import agora_engine, audio, fake_agora
from tests.support.agora_engine import Engine, FarUser
from tests.support.codecs import G722, Codec, Opus, Pcma, Pcmu
from tests.support.server import Server
from tests.support.sip_agent import RefusedError
from tests.support.waiting import wait_until

PHONE_HZ, FAR_HZ = 700.0, 1100.0
TRUNK = {"name": "line", "allowed_addresses": ["127.0.0.1"], "codecs": ["opus", "G722", "PCMU", "PCMA"]}
_rooms = itertools.count(1)


def config(**agora: Any) -> dict[str, Any]:
    """Whoever calls a number is in the channel of that name."""
    alone = {"name": "alone", "to": "alone-*", "target": "agora:{callee}", "hangup_when_alone": True}
    return {
        "trunk": [TRUNK],
        "rule": [
            alone,
            {"name": "pin", "to": "pin-*", "target": "agora:{callee}", "pin": {"code": "42"}},
            {"name": "local", "to": "local-*", "target": "local:{callee}"},
            {"name": "rooms", "target": "agora:{callee}"},
        ],
        "agora": {**fake_agora.TABLE, **agora},
        "log": {"level": "debug"},
    }


class Bridge(Server):
    """A server, and the engine in it."""

    def __init__(self, folder: Path, **agora: Any) -> None:
        super().__init__(folder, config(**agora), environment=agora_engine.environment(folder / "engine"))
        self.engine = Engine(folder / "engine" / "s")
        self.rate_hz: int = agora.get("sample_rate_hz", 16000)

    def join(self, room: str, uid: str = "7", hz: float = 0.0) -> FarUser:
        far = self.engine.join(room, uid, self.rate_hz)
        if hz:
            far.say(audio.tone(hz, 1.0, self.rate_hz))
        return far


@pytest.fixture(scope="module")
def mixing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bridge]:
    """The SDK mixes."""
    with Bridge(tmp_path_factory.mktemp("mix")) as server:
        yield server
        server.engine.close()


@pytest.fixture(scope="module")
def separate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bridge]:
    """We mix, at the highest rate."""
    with Bridge(tmp_path_factory.mktemp("users"), receive="users", sample_rate_hz=48000) as server:
        yield server
        server.engine.close()


@pytest.fixture(params=["mixing", "separate"])
def bridge(request: pytest.FixtureRequest) -> Bridge:
    made: Bridge = request.getfixturevalue(request.param)
    return made


@pytest.fixture
def room() -> str:
    return f"room-{next(_rooms)}"


def hears(party: Any, *hz: float) -> bool:
    """Each of these tones, in the last moments."""
    heard = party.rtp.heard(time.monotonic() - 0.4)
    rate_hz = party.rtp.codec.rate_hz
    return len(heard) > rate_hz // 5 and all(audio.tone_level_dbfs(heard, rate_hz, one) > -30 for one in hz)


@pytest.mark.parametrize(
    ("bridge", "codec"),
    [("mixing", Pcmu), ("mixing", G722), ("separate", Pcma), ("separate", Opus)],
    indirect=["bridge"],
)
def test_telephone_and_channel_hear_each_other(
    bridge: Bridge, call: MakeCall, room: str, codec: type[Codec]
) -> None:
    """At the right pitch, without their own voices, and whoever comes late too."""
    party = call(room, codec, server=bridge.sip_address)
    ann = bridge.join(room, hz=FAR_HZ)
    party.rtp.play(audio.tone(PHONE_HZ, 1.0, party.rtp.codec.rate_hz), loop=True)
    wait_until(lambda: hears(party, FAR_HZ), 10.0, "the telephone hears the channel")
    heard = party.rtp.listen(1.0)
    rate_hz = party.rtp.codec.rate_hz
    assert audio.find_tone(heard, rate_hz) == pytest.approx(FAR_HZ, rel=0.004)
    assert audio.tone_level_dbfs(heard, rate_hz, PHONE_HZ) < -45
    far_heard = ann.listen(1.0)
    assert audio.find_tone(far_heard, ann.rate_hz) == pytest.approx(PHONE_HZ, rel=0.004)
    assert audio.tone_level_dbfs(far_heard, ann.rate_hz, FAR_HZ) < -45


@pytest.mark.parametrize("bridge", ["mixing"], indirect=True)
def test_speech_is_like_what_was_said(bridge: Bridge, call: MakeCall, room: str) -> None:
    """Both ways."""
    said, answered = audio.speech(20.0), audio.speech(20.0, bridge.rate_hz, voice=1)
    party = call(room, server=bridge.sip_address)
    ann = bridge.join(room)
    ann.say(answered)
    party.rtp.play(said, loop=True)
    wait_until(lambda: party.rtp.heard(time.monotonic() - 0.3).any(), 10.0, "the telephone hears something")
    ann.listen(0.5)
    heard_far = ann.listen(4.0)
    heard_near = party.rtp.listen(4.0)
    assert audio.likeness(audio.resample(said, 8000, ann.rate_hz), heard_far, ann.rate_hz) > 0.9
    assert audio.likeness(audio.resample(answered, ann.rate_hz, 8000), heard_near, 8000) > 0.9


def test_all_hear_all_others(bridge: Bridge, call: MakeCall, room: str) -> None:
    """Two telephones and two others. Each hears the three others, and not itself."""
    ann, bob = bridge.join(room, "7", 500), bridge.join(room, "8", 1300)
    party, other = (call(room, server=bridge.sip_address) for _ in range(2))
    party.rtp.play(audio.tone(PHONE_HZ, 1.0), loop=True)
    other.rtp.play(audio.tone(900, 1.0), loop=True)
    wait_until(lambda: hears(party, 500, 900, 1300), 10.0, "the first telephone hears the others")
    wait_until(lambda: hears(other, 500, PHONE_HZ, 1300), 10.0, "and the second one")
    for far, others in ((ann, (PHONE_HZ, 900, 1300)), (bob, (500, PHONE_HZ, 900))):
        heard = far.listen(0.5)
        for hz in others:
            assert audio.tone_level_dbfs(heard, far.rate_hz, hz) > -30
    assert audio.tone_level_dbfs(party.rtp.listen(0.5), 8000, PHONE_HZ) < -45
    bob.leave()
    wait_until(
        lambda: audio.tone_level_dbfs(party.rtp.heard(time.monotonic() - 0.3), 8000, 1300) < -45,
        10.0,
        "he is heard no more",
    )
    assert hears(party, 500, 900)


def test_burst_and_loss_are_played_out(mixing: Bridge, call: MakeCall, room: str) -> None:
    """What comes in bunches of 60 ms is heard evenly; a frame that is lost ends nothing."""
    party = call(room, server=mixing.sip_address)
    mixing.join(room, hz=FAR_HZ)
    mixing.engine.set(bunch=6)
    try:
        wait_until(lambda: hears(party, FAR_HZ), 10.0, "the telephone hears the channel")
        party.rtp.listen(1.0)  # the queue learns
        heard = party.rtp.listen(2.0)
        assert audio.find_tone(heard, 8000) == pytest.approx(FAR_HZ, rel=0.004)
        assert sum(length for _, length in audio.gaps_ms(heard, 8000)) < 100
        mixing.engine.set(bunch=1, loss=10)
        heard = party.rtp.listen(1.0)
        assert audio.find_tone(heard, 8000) == pytest.approx(FAR_HZ, rel=0.02)
    finally:
        mixing.engine.set(bunch=1, loss=0)


def test_more_comes_than_a_queue_holds(mixing: Bridge, call: MakeCall, room: str) -> None:
    """It is dropped; the call goes on, and is no later for it."""
    party = call(room, server=mixing.sip_address)
    ann = mixing.join(room, hz=FAR_HZ)
    mixing.engine.set(bunch=80)
    try:
        party.rtp.listen(2.0)
    finally:
        mixing.engine.set(bunch=1)
    wait_until(lambda: hears(party, FAR_HZ), 10.0, "the telephone hears the channel")
    ann.hush()
    wait_until(
        lambda: audio.tone_level_dbfs(party.rtp.heard(time.monotonic() - 0.2), 8000, FAR_HZ) < -45,
        2.0,
        "and not what is long over",
    )


def test_token_is_renewed_without_a_gap(mixing: Bridge, call: MakeCall, room: str) -> None:
    """The channel would fall silent 300 ms after it has been told that the token is about to expire."""
    party = call(room, server=mixing.sip_address)
    mixing.join(room, hz=FAR_HZ)
    wait_until(lambda: hears(party, FAR_HZ), 10.0, "the telephone hears the channel")
    renewed = len(mixing.engine.log("renew"))
    mixing.engine.ask("expire", room, 300)
    heard = party.rtp.listen(1.5)
    assert len(mixing.engine.log("renew")) == renewed + 1
    assert max((length for _, length in audio.gaps_ms(heard, 8000)), default=0) < 100
    assert hears(party, FAR_HZ)


def test_keys_go_both_ways(mixing: Bridge, call: MakeCall, room: str) -> None:
    party = call(room, server=mixing.sip_address)
    ann = mixing.join(room)
    party.rtp.send_dtmf("5")
    wait_until(lambda: b'"5"'.hex() in str(mixing.engine.log("message")), 10.0, "the channel is told the key")
    ann.tell(b'{"topic": "dtmf", "message": "7"}')
    call_id = mixing.started(party.caller)["call_id"]
    wait_until(lambda: "7" in mixing.digits(call_id), 10.0, "the telephone is sent the key")


def test_caller_has_to_know_a_pin(mixing: Bridge, call: MakeCall) -> None:
    """Before it is in the channel, and hears it; who does not know it is hung up on."""
    mixing.join("pin-1", hz=FAR_HZ)
    party = call("pin-1", server=mixing.sip_address)
    wait_until(lambda: party.rtp.heard().any(), 10.0, "the caller is asked")
    assert not [words for words in mixing.engine.log("connect") if words[0] == "pin-1"]
    party.rtp.send_dtmf("1#42#")
    wait_until(lambda: hears(party, FAR_HZ), 10.0, "the caller hears the channel")
    assert mixing.digits(mixing.started(party.caller)["call_id"]) == ""
    other = call("pin-1", server=mixing.sip_address)
    other.rtp.send_dtmf("1#2#3#")
    other.dialog.wait_bye(10.0)
    assert mixing.ended(other.caller).kind == "forbidden"


def test_call_ends_when_it_is_alone(mixing: Bridge, call: MakeCall) -> None:
    ann = mixing.join("alone-1")
    party = call("alone-1", server=mixing.sip_address)
    mixing.wait_event("call.answered", call_id=mixing.started(party.caller)["call_id"])
    time.sleep(0.2)
    ann.leave()
    party.dialog.wait_bye()
    assert mixing.ended(party.caller).kind == "alone"


def test_channel_that_bans_a_call(mixing: Bridge, call: MakeCall, room: str) -> None:
    party = call(room, server=mixing.sip_address)
    mixing.engine.ask("kick", room, 3)
    party.dialog.wait_bye()
    ended = mixing.ended(party.caller)
    assert (ended.kind, ended.by) == ("forbidden", "channel")
    assert "banned" in ended.detail


def test_channel_that_refuses_a_call(mixing: Bridge, agent: MakeAgent, rtp: MakePeer, room: str) -> None:
    """Who calls is told by a SIP code; the connection serves the next one."""
    mixing.engine.ask("refuse", room, 14)
    caller, peer = agent(server=mixing.sip_address), rtp()
    with pytest.raises(RefusedError) as caught:
        caller.call(room, peer)
    assert caught.value.status == 504
    mixing.engine.ask("refuse", room, 0)


@pytest.mark.parametrize(
    ("bridge", "scheme"), [("mixing", "agora"), ("separate", "local")], indirect=["bridge"]
)
def test_rebridge(bridge: Bridge, call: MakeCall, room: str, scheme: str) -> None:
    """The telephone stays up, and is without a channel for no half a second."""
    party = call(room, server=bridge.sip_address)
    bridge.join(room, hz=FAR_HZ)
    party.rtp.play(audio.tone(PHONE_HZ, 1.0), loop=True)
    wait_until(lambda: hears(party, FAR_HZ), 10.0, "the telephone hears its first channel")
    call_id = bridge.started(party.caller)["call_id"]
    other = f"{room}-next"
    if scheme == "agora":
        far = bridge.join(other, "8", 1300)
    else:
        next_party = call("local-" + other, server=bridge.sip_address)
        next_party.rtp.play(audio.tone(1300, 1.0), loop=True)
    target = f"agora:{other}" if scheme == "agora" else f"local:local-{other}"
    began = time.monotonic()
    response = bridge.http.post(f"/v1/calls/{call_id}/rebridge", json={"target": target})
    assert response.status_code == 204, response.text
    wait_until(lambda: hears(party, 1300), 10.0, "and its next one")
    heard = party.rtp.heard(began)
    assert max((length for _, length in audio.gaps_ms(heard, 8000)), default=0) < 500
    assert audio.tone_level_dbfs(party.rtp.listen(0.3), 8000, FAR_HZ) < -45
    if scheme == "agora":
        assert audio.find_tone(far.listen(0.5), far.rate_hz) == pytest.approx(PHONE_HZ, rel=0.004)
    else:
        wait_until(lambda: hears(next_party, PHONE_HZ), 10.0, "who is there hears it")
    told = [event["event"] for event in bridge.events(call_id=call_id) if "bridged" in event["event"]]
    assert told == ["call.bridged", "call.unbridged", "call.bridged"]


def test_everything_goes_back(mixing: Bridge, call: MakeCall, room: str) -> None:
    """After a few calls at once: what the engine has, and what the bridge has."""
    parties = [call(room, server=mixing.sip_address) for _ in range(4)]
    wait_until(lambda: mixing.engine.stats()["joined"] >= 4, 10.0, "all are in")
    for party in parties:
        party.hang_up()
    mixing.wait_idle()
    wait_until(lambda: mixing.engine.stats()["joined"] == 0, 10.0, "all have left")
    stats = mixing.engine.stats()
    assert stats["stale"] == 0
    assert stats["connections"] <= 10


def test_server_stops_while_a_call_is_up(tmp_path: Path, agent: MakeAgent, rtp: MakePeer, room: str) -> None:
    """It ends well (`Server.stop` looks), and connections are released before the service."""
    with Bridge(tmp_path) as server:
        caller, peer = agent(server=server.sip_address), rtp()
        dialog = caller.call(room, peer)
        wait_until(lambda: server.engine.stats()["joined"] == 1, 10.0, "it is in")
        server.terminate()
        time.sleep(0.5)  # two signals at once are one
        server.terminate()
        dialog.wait_bye()
        server.engine.close()


def test_lookup_says_where_a_call_goes(tmp_path: Path, agent: MakeAgent, rtp: MakePeer) -> None:
    """Channel, user, token and scenario; or that it goes nowhere."""
    answers = [
        {"channel": "sales", "user_id": "42", "token": "007abc", "scenario": "meeting"},
        {"reject": 486},
    ]
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            body = json.dumps(answers.pop(0)).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as directory:
        threading.Thread(target=directory.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{directory.server_port}/where"
        with Bridge(tmp_path, lookup_url=url) as server:
            caller, peer = agent(server=server.sip_address), rtp()
            dialog = caller.call("4930123", peer, headers={"X-Ticket": "4711"})
            assert server.engine.log("connect") == [["sales", "42", "007abc"]]
            assert ["scenario", "8"] in server.engine.log()
            assert (asked[0]["number"], asked[0]["headers"]["X-Ticket"]) == ("4930123", "4711")
            dialog.hang_up()
            with pytest.raises(RefusedError) as caught:
                caller.call("4930124", peer)
            assert caught.value.status == 486
            server.engine.close()
        directory.shutdown()
