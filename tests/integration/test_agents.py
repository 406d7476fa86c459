# SPDX-License-Identifier: GPL-3.0-or-later
"""Telephones that call an agent, by the whole server."""

import base64
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from websockets.sync.server import ServerConnection, serve

from tests.conftest import MakeAgent, MakeCall, MakePeer
from tests.support import audio
from tests.support.agents import program
from tests.support.codecs import G722, Codec, Opus, Pcmu
from tests.support.ports import free_port
from tests.support.server import Server
from tests.support.sip_agent import RefusedError
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def agents_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose "agent" is examples/agent_echo.py, and whose "nobody" is not there."""
    port, twilio_port = free_port(), free_port()
    config = {
        "trunk": [{"name": "line", "allowed_addresses": ["127.0.0.1"]}],
        "rule": [
            {"name": "agent", "to": "agent", "target": "agent:echo"},
            {"name": "marks", "to": "marks", "target": f"ws://127.0.0.1:{twilio_port}/#twilio"},
            {"name": "nobody", "to": "nobody", "target": f"ws://127.0.0.1:{free_port()}"},
        ],
        "agent": [{"name": "echo", "url": f"ws://127.0.0.1:{port}"}],
    }
    directory: Path = tmp_path_factory.mktemp("agents")
    Interrupted.seen.clear()
    agent = serve(Interrupted.talk, "127.0.0.1", twilio_port, compression=None)
    thread = threading.Thread(target=agent.serve_forever)
    thread.start()
    with program("agent_echo.py", port), Server(directory, config) as server:
        yield server
    agent.shutdown()
    thread.join()


class Interrupted:
    """An agent of Twilio's: a second with a mark, then a minute that it cuts short, then another tone."""

    seen: ClassVar[dict[str, float]] = {}  # when

    @classmethod
    def talk(cls, connection: ServerConnection) -> None:
        def say(event: str, **content: Any) -> None:
            connection.send(json.dumps({"event": event, "streamSid": "MZ", **content}))

        def speak(hz: float, seconds: float) -> None:
            payload = base64.b64encode(Pcmu().encode(audio.tone(hz, seconds))).decode()
            say("media", media={"payload": payload})

        def wait_mark(name: str) -> None:
            say("mark", mark={"name": name})
            while json.loads(connection.recv()).get("mark") != {"name": name}:
                pass
            cls.seen[name] = time.monotonic()

        def wait(seconds: float) -> None:
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                connection.recv()

        speak(440, 1.0)
        wait_mark("heard")
        speak(440, 60.0)
        wait(0.7)
        cls.seen["clear"] = time.monotonic()
        say("clear")
        wait(0.3)
        cls.seen["again"] = time.monotonic()
        speak(1000, 0.5)
        wait_mark("end")


@pytest.mark.parametrize("codec", [Pcmu, G722, Opus])
def test_caller_hears_the_agent(codec: type[Codec], agents_server: Server, call: MakeCall) -> None:
    """Itself, by way of an echo, at the right pitch; its keys reach the agent, which hangs up."""
    party = call("agent", codec, server=agents_server.sip_address)
    party.rtp.play(audio.tone(700, 1.0, codec.rate_hz), loop=True)
    party.rtp.listen(0.5)
    heard = party.rtp.listen(1.0)
    assert audio.find_tone(heard, codec.rate_hz) == audio.near(700)
    # an agent in real time may be late once, and is then heard so much later
    assert len(audio.gaps_ms(heard, codec.rate_hz)) <= 1
    party.rtp.send_dtmf("#")
    ended = agents_server.ended(party.caller)
    assert (ended.kind, ended.by) == ("channel_closed", "channel")


def test_marks_and_clear_as_the_telephone_hears_them(agents_server: Server, call: MakeCall) -> None:
    """A mark comes back when its speech was sent; a clear is heard within 60 ms and leaves nothing."""
    party = call("marks", server=agents_server.sip_address)
    wait_until(lambda: "end" in Interrupted.seen, 15.0, "the agent has said all")
    seen = Interrupted.seen

    def loud(since_s: float, until_s: float) -> list[bool]:
        packets = party.rtp.audio_packets(since_s, until_s)
        return [bool(np.abs(Pcmu().decode(packet.payload)).max() > 500) for packet in packets]

    assert sum(loud(0, seen["heard"])) in (50, 51)  # with what fades out
    assert any(loud(seen["heard"], seen["clear"]))
    quiet = loud(seen["clear"] + 0.06, seen["again"])
    assert quiet
    assert not any(quiet)
    assert sum(loud(seen["again"], seen["end"])) in (25, 26)


def test_nobody_there(agents_server: Server, agent: MakeAgent, rtp: MakePeer) -> None:
    """The caller is told so."""
    with pytest.raises(RefusedError) as caught:
        agent(server=agents_server.sip_address).call("nobody", rtp())
    assert caught.value.status == 502
