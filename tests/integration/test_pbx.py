# SPDX-License-Identifier: GPL-3.0-or-later
"""Calls that a PBX hands over without SIP, by the whole server: AudioSocket, and Asterisk's WebSocket."""

import socket
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import websockets
from websockets.sync.client import connect

from tests.conftest import MakeCall
from tests.support import audio
from tests.support.agents import program
from tests.support.asterisk import AudioSocketCall, PbxCall, WebSocketChannel
from tests.support.codecs import G722
from tests.support.ports import free_port
from tests.support.server import Server
from tests.support.waiting import wait_until

# What a dialplan names its calls; the rules know them.
IDS = {name: uuid.uuid5(uuid.NAMESPACE_OID, name) for name in ("echo", "agent", "room", "alone", "nobody")}
USER = "asterisk:secret"


class Pbx:
    """The server, and where its PBXs connect to."""

    def __init__(self, directory: Path) -> None:
        self.ports = {name: free_port() for name in ("audiosocket", "asterisk", "small", "strange")}
        self.agent_port = free_port()

        def table(name: str, protocol: str, **more: object) -> dict[str, object]:
            listen = f"127.0.0.1:{self.ports[name]}"
            allowed = {"allowed_addresses": ["127.0.0.1"]}
            return {"name": name, "protocol": protocol, "listen": listen, **allowed, **more}

        targets = {
            "echo": "echo:",
            "agent": "agent:echo",
            "room": "local:meeting",
            "alone": "local:{header:tenant}",
        }
        config = {
            "log": {"level": "debug"},
            "trunk": [{"name": "line", "allowed_addresses": ["127.0.0.1"]}],
            "pbx": [
                table("audiosocket", "audiosocket"),
                table("asterisk", "asterisk", auth={"username": "asterisk", "password": "secret"}),
                table("small", "audiosocket", max_calls=1),
                table("strange", "audiosocket", allowed_addresses=["192.0.2.1"]),
            ],
            "rule": [
                *(
                    {"name": f"{name}-{kind}", "to": to, "target": target}
                    for name, target in targets.items()
                    for kind, to in (("number", name), ("id", str(IDS[name])))
                    if (name, kind) != ("alone", "id")
                ),
            ],
            "agent": [{"name": "echo", "url": f"ws://127.0.0.1:{self.agent_port}"}],
        }
        self.server = Server(directory, config)

    def call(self, kind: str, to: str, rate_hz: int = 8000) -> PbxCall:
        if kind == "audiosocket":
            return AudioSocketCall(self.ports[kind], IDS[to], rate_hz)
        return WebSocketChannel(
            self.ports["asterisk"],
            json_events=kind == "json",
            rate_hz=rate_hz,
            user=USER,
            **{"from": "+49 30/1", "to": to, "tenant": "acme"},
        )

    @property
    def call_id(self) -> str:
        """Of the one call there is."""
        calls = wait_until(lambda: [c for c in self.server.calls() if c["state"] == "active"], 5.0, "a call")
        (call,) = calls
        return str(call["id"])


@pytest.fixture(scope="module")
def pbx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pbx]:
    made = Pbx(tmp_path_factory.mktemp("pbx"))
    with made.server, program("agent_echo.py", made.agent_port):
        yield made


KINDS = pytest.mark.parametrize("kind", ["audiosocket", "plain", "json"])


@KINDS
@pytest.mark.parametrize("rate_hz", [8000, 16000])
def test_it_is_a_call_like_any_other(pbx: Pbx, kind: str, rate_hz: int) -> None:
    """Found by its rule, in the list, with audio both ways, ended by the PBX, told in the log."""
    with pbx.call(kind, "echo", rate_hz) as party:
        call_id = pbx.call_id
        (listed,) = pbx.server.calls()
        is_audiosocket = kind == "audiosocket"
        assert listed["trunk"] == ("audiosocket" if is_audiosocket else "asterisk")
        assert listed["from"] == ("" if is_audiosocket else "+49 30/1")
        assert listed["to"] == (str(IDS["echo"]) if is_audiosocket else "echo")
        assert listed["target"] == "echo:"
        party.say(audio.tone(700, 5.0, rate_hz))
        party.listen(0.5)
        heard = party.listen(1.0)
        assert audio.find_tone(heard, rate_hz) == audio.near(700)
        assert audio.tone_level_dbfs(heard, rate_hz, 700) == pytest.approx(-12, abs=1)
        assert party.is_answered == (not is_audiosocket)
        party.hang_up()
        ended = pbx.server.ended(call_id=call_id)
    assert (ended.kind, ended.by) == ("hangup", "caller")
    assert ended.duration_s > 1
    assert party.complaints == []


@KINDS
def test_hung_up_by_us(pbx: Pbx, kind: str) -> None:
    """By the API: the PBX is told, and the connection closed."""
    with pbx.call(kind, "echo") as party:
        call_id = pbx.call_id
        pbx.server.hang_up(call_id)
        party.wait_over()
        assert party.was_hung_up
        ended = pbx.server.ended(call_id=call_id)
        assert (ended.kind, ended.by) == ("hangup", "operator")


@KINDS
def test_keys(pbx: Pbx, kind: str) -> None:
    """Those of the caller come as messages; those of the channel are heard by the caller, as tones."""
    with pbx.call(kind, "echo") as party:
        call_id = pbx.call_id
        for digit in "4*":
            party.press(digit)
        pbx.server.wait_digits(call_id, "4*")
        start = len(party.heard)
        pbx.server.send_dtmf(call_id, "1")
        party.listen(0.1)
        heard = party.heard[start:]
        levels = [max(audio.tone_levels_dbfs(heard, 8000, hz, 0.05)) for hz in (697, 1209, 1633)]
        assert min(levels[:2]) > -30 > levels[2]
        assert party.complaints == []


@KINDS
def test_an_agent_answers(pbx: Pbx, kind: str) -> None:
    """It hears the caller, is heard, and hangs up when the caller presses #."""
    with pbx.call(kind, "agent") as party:
        call_id = pbx.call_id
        party.say(audio.tone(500, 5.0))
        party.listen(0.6)
        assert audio.find_tone(party.listen(0.6), 8000) == audio.near(500)
        party.press("#")
        party.wait_over()
        ended = pbx.server.ended(call_id=call_id)
        assert (ended.kind, ended.by) == ("channel_closed", "channel")


def test_all_meet_in_a_room(pbx: Pbx, call: MakeCall) -> None:
    """A telephone by SIP, a call by AudioSocket and one by WebSocket hear each other, not themselves."""
    phone = call("room", G722, server=pbx.server.sip_address)
    with pbx.call("audiosocket", "room") as one, pbx.call("json", "room", 16000) as other:
        phone.rtp.play(audio.tone(520, 1.0, 16000, -20), loop=True)
        one.say(audio.tone(1000, 5.0, 8000, -20))
        other.say(audio.tone(1700, 5.0, 16000, -20))
        one.listen(0.7)
        heard = [
            (520, phone.rtp.listen(0.8), 16000),
            (1000, one.listen(0.8), 8000),
            (1700, other.listen(0.8), 16000),
        ]
        for own_hz, samples, rate_hz in heard:
            for hz in (520, 1000, 1700):
                found_dbfs = audio.usual_level_dbfs(samples, rate_hz, hz)
                assert found_dbfs < -55 if hz == own_hz else found_dbfs == pytest.approx(-20, abs=2)
    phone.hang_up()


def test_what_the_url_says(pbx: Pbx) -> None:
    """Is as good as a header."""
    with pbx.call("json", "alone"):
        call_id = pbx.call_id
        (listed,) = pbx.server.calls()
        assert listed["target"] == "local:acme"
    pbx.server.ended(call_id=call_id)


@pytest.mark.parametrize("kind", ["audiosocket", "json"])
def test_no_rule(pbx: Pbx, kind: str) -> None:
    with pbx.call(kind, "nobody") as party:
        party.wait_over()
        assert party.was_hung_up
    to = str(IDS["nobody"]) if kind == "audiosocket" else "nobody"
    ended = pbx.server.wait_event("call.ended", to=to)
    assert (ended["reason"], ended["ended_by"]) == ("not_found", "bridge")


def test_more_calls_than_it_may_have(pbx: Pbx) -> None:
    with AudioSocketCall(pbx.ports["small"], IDS["echo"]):
        assert pbx.call_id
        with AudioSocketCall(pbx.ports["small"], IDS["echo"]) as second:
            second.wait_over()
            assert second.was_hung_up
        pbx.server.wait_event("call.ended", trunk="small", reason="overload")


def test_strangers(pbx: Pbx) -> None:
    """By address they are cut off, by password they are answered 401; neither is a call."""
    before = len(pbx.server.events("call.started"))
    with AudioSocketCall(pbx.ports["strange"], IDS["echo"]) as stranger:
        wait_until(lambda: stranger.is_over, 5.0, "it is cut off")
    url = f"ws://127.0.0.1:{pbx.ports['asterisk']}/?to=echo"
    for headers in ({}, {"Authorization": "Basic eDp5"}):
        with pytest.raises(websockets.InvalidStatus) as caught:
            connect(url, additional_headers=headers).__enter__()
        assert caught.value.response.status_code == 401
    assert len(pbx.server.events("call.started")) == before


@pytest.mark.parametrize("kind", ["audiosocket", "json"])
def test_a_connection_that_breaks(pbx: Pbx, kind: str) -> None:
    """Ends its call."""
    with pbx.call(kind, "echo") as party:
        call_id = pbx.call_id
        assert isinstance(party, AudioSocketCall | WebSocketChannel)
        party.vanish()
        assert pbx.server.ended(call_id=call_id).kind == "transport"


def test_a_silent_telephone(pbx: Pbx) -> None:
    """Nothing has been said: after a second it begins all the same, and hears."""
    with AudioSocketCall(pbx.ports["audiosocket"], IDS["echo"], silent=True) as party:
        assert pbx.call_id
        party.listen(0.1)


def send(data: bytes) -> Callable[[Pbx], None]:
    def attack(pbx: Pbx) -> None:
        with socket.create_connection(("127.0.0.1", pbx.ports["audiosocket"])) as stream:
            stream.sendall(data)
            stream.settimeout(5.0)
            while stream.recv(4096):
                pass

    return attack


def say(*messages: str | bytes) -> Callable[[Pbx], None]:
    def attack(pbx: Pbx) -> None:
        url = f"ws://127.0.0.1:{pbx.ports['asterisk']}/?to=echo"
        with connect(url, additional_headers={"Authorization": "Basic YXN0ZXJpc2s6c2VjcmV0"}) as stream:
            for message in messages:
                stream.send(message)
            deadline = time.monotonic() + 5.0
            while time.monotonic() < deadline:
                try:
                    stream.recv(deadline - time.monotonic())
                except websockets.ConnectionClosed:
                    return
        raise AssertionError("it was not closed")

    return attack


@pytest.mark.parametrize(
    "attack",
    [
        send(b""),
        send(b"GET / HTTP/1.1\r\n\r\n"),
        send(b"\x01\x00\x02xy" * 3),
        send(b"\x15\x00\x02xy" * 3),
        say(),
        say("{", "{", "{"),
        say("MEDIA_START format:opus"),
        say(b"\0\0", b"\0\0", b"\0\0"),
        say(*['{"event": "MEDIA_START", "format": "ulaw"}'] * 4),
    ],
    ids=["nothing", "HTTP", "ids", "rate", "no event", "no JSON", "opus", "audio first", "twice"],
)
def test_nonsense_is_closed(pbx: Pbx, attack: Callable[[Pbx], None]) -> None:
    """Within a second or so, and nothing is left of it."""
    attack(pbx)
    pbx.server.wait_idle()
