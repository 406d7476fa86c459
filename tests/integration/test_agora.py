# SPDX-License-Identifier: GPL-3.0-or-later
"""Telephones in channels of Agora's, as the SDK's own Python has them over a simulated engine."""

import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import MakeAgent, MakeCall, MakePeer
from tests.support import agora_engine, audio, fake_agora
from tests.support.agora_engine import Engine, FarUser
from tests.support.codecs import G722, Codec, Opus, Pcma, Pcmu
from tests.support.sdp import describe
from tests.support.server import ROOT, Server, clean_environment
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
    allow = ["hold", "transfer"]
    folder = tmp_path_factory.mktemp("users")
    with Bridge(folder, receive="users", sample_rate_hz=48000, allow=allow) as server:
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


def answers(bridge: Bridge, topic: str) -> list[dict[str, str]]:
    """What channels were told by messages of this topic."""
    said = [bytes.fromhex(words[1]) for words in bridge.engine.log("message")]
    told = [json.loads(data) for data in said if data.startswith(b"{")]
    return [message for message in told if message["topic"] == topic]


def test_channel_is_told_what_the_telephone_has_heard(bridge: Bridge, call: MakeCall, room: str) -> None:
    """Through all queues: what was played is heard, what was cleared is not."""
    party = call(room, server=bridge.sip_address)
    ann = bridge.join(room, hz=FAR_HZ)
    wait_until(lambda: hears(party, FAR_HZ), 10.0, "the telephone hears the channel")
    before = len(answers(bridge, "mark"))
    ann.tell(b'{"topic": "mark", "message": "a"}')
    wait_until(lambda: len(answers(bridge, "mark")) > before, 10.0, "the mark is answered")
    assert answers(bridge, "mark")[before]["state"] == "played"
    bridge.engine.set(bunch=10)  # so that something waits to be heard
    try:

        def cleared() -> bool:
            ann.tell(b'{"topic": "mark", "message": "b"}')
            ann.tell(b'{"topic": "clear", "message": ""}')
            return any(answer["state"] == "cleared" for answer in answers(bridge, "mark")[before:])

        wait_until(cleared, 10.0, "a mark is cleared")
    finally:
        bridge.engine.set(bunch=1)
    wait_until(lambda: hears(party, FAR_HZ), 10.0, "the telephone hears the channel again")


def test_channel_hears_nothing_old_once_it_is_found_again(mixing: Bridge, call: MakeCall, room: str) -> None:
    """What the telephone said while the SDK had lost it, and what the SDK has kept of that, is dropped."""
    party = call(room, server=mixing.sip_address)
    ann = mixing.join(room)
    party.rtp.play(audio.tone(PHONE_HZ, 1.0), loop=True)
    wait_until(lambda: ann.listen(0.1).any(), 10.0, "the channel hears the telephone")
    mixing.engine.ask("drop", room, 1500)
    ann.record()
    time.sleep(0.8)
    party.rtp.stop_playing()
    party.rtp.play(audio.tone(1300, 1.0), loop=True)
    wait_until(lambda: ann.heard[-160:].any(), 10.0, "it is found again")
    time.sleep(0.6)
    heard = np.trim_zeros(ann.heard, "f")[ann.rate_hz * 15 // 100 :]  # by then the SDK has been told
    heard = heard[: ann.rate_hz * 3 // 10]
    assert audio.tone_level_dbfs(heard, ann.rate_hz, 1300) > -30
    assert audio.tone_level_dbfs(heard, ann.rate_hz, PHONE_HZ) < -45


def test_channel_holds_and_transfers_a_telephone(separate: Bridge, call: MakeCall, room: str) -> None:
    """Silence while it is held; then it is sent elsewhere and the call ends. The channel is told of each."""
    ann = separate.join(room, hz=FAR_HZ)
    party = call(room, server=separate.sip_address)
    party.rtp.play(audio.tone(PHONE_HZ, 1.0), loop=True)
    wait_until(lambda: ann.listen(0.1).any(), 10.0, "the channel hears the telephone")
    call_id = separate.started(party.caller)["call_id"]
    separate.wait_event("call.answered", call_id=call_id)

    def turn(wish: str, direction: str, answer: str) -> None:
        ann.tell(json.dumps({"topic": "hold", "message": wish}).encode())
        invite = party.agent.wait_request("INVITE")
        assert invite.sdp.direction == direction
        party.agent.respond(invite, 200, "OK", body=describe(party.rtp, direction=answer))
        party.agent.wait_request("ACK")
        done = {"topic": "hold", "message": wish, "state": "done"}
        wait_until(lambda: done in answers(separate, "hold"), 10.0, "the channel is told")

    turn("on", "sendonly", "recvonly")
    wait_until(lambda: not ann.listen(0.2).any(), 10.0, "a telephone on hold is not heard")
    turn("off", "sendrecv", "sendrecv")
    wait_until(lambda: ann.listen(0.2).any(), 10.0, "it is heard again")
    ann.tell(b'{"topic": "transfer", "message": "200"}')
    party.agent.respond(party.agent.wait_request("REFER"), 202, "Accepted")
    party.dialog.send(
        "NOTIFY",
        headers={"Event": "refer", "Subscription-State": "terminated;reason=noresource"},
        body="SIP/2.0 200 OK\r\n",
        content_type="message/sipfrag",
    )
    party.dialog.wait_bye(10.0)
    assert separate.ended(party.caller).kind == "transferred"
    assert answers(separate, "transfer") == [{"topic": "transfer", "message": "200", "state": "done"}]


def test_dialling_out_into_a_channel(mixing: Bridge, agent: MakeAgent, rtp: MakePeer, room: str) -> None:
    """With a number to be shown; both hear each other once it is answered."""
    ann = mixing.join(room, hz=FAR_HZ)
    phone, peer = agent(server=mixing.sip_address), rtp()
    call_id = mixing.dial(phone.contact, f"agora:{room}", from_="+4930111")
    invite = phone.wait_request("INVITE")
    assert "+4930111" in invite.get("from")
    dialog = phone.accept(invite, peer)
    peer.play(audio.tone(PHONE_HZ, 1.0), loop=True)
    wait_until(lambda: audio.find_tone(peer.listen(0.3), 8000) == audio.near(FAR_HZ), 10.0, "it hears it")
    wait_until(lambda: audio.find_tone(ann.listen(0.3), 16000) == audio.near(PHONE_HZ), 10.0, "and is heard")
    dialog.hang_up()
    ended = mixing.ended(call_id=call_id)
    assert (ended.kind, ended.fields["target"]) == ("hangup", f"agora:{room}")
    assert 0 < ended.duration_s <= ended.fields["billed_s"]
    _, left = (event for event in mixing.events(call_id=call_id) if "bridged" in event["event"])
    assert (left["event"], left["reason"]["cause"]) == ("call.unbridged", 16)
    assert left["seconds"] > 0


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
    failed = mixing.wait_event("call.bridge_failed", target=f"agora:{room}")
    assert (failed["reason"]["kind"], failed["reason"]["by"]) == ("unavailable", "channel")
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


def test_command_that_tries_the_network(tmp_path: Path) -> None:
    """As the documentation has it, with the example's configuration."""
    environment = {
        **clean_environment(tmp_path),
        **agora_engine.environment(tmp_path / "engine"),
        "SIPBRIDGE_AGORA__APP_ID": fake_agora.APP_ID,
        "AGORA_APP_CERTIFICATE": fake_agora.CERTIFICATE,
    }
    command = [sys.executable, "-m", "sipbridge", "check", "--config", "conf/examples/agora.toml"]
    command += ["--online", "agora"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 10
    assert all(line.startswith("ok ") for line in lines), done.stdout
    assert "connected" in lines[-1]
