# SPDX-License-Identifier: GPL-3.0-or-later
"""Telephones that call an agent, by the whole server."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import MakeAgent, MakeCall, MakePeer
from tests.support import audio
from tests.support.agents import program
from tests.support.codecs import G722, Codec, Opus, Pcmu
from tests.support.ports import free_port
from tests.support.server import Server
from tests.support.sip_agent import RefusedError


@pytest.fixture(scope="module")
def agents_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose "agent" is examples/agent_echo.py, and whose "nobody" is not there."""
    port = free_port()
    config = {
        "trunk": [{"name": "line", "allowed_addresses": ["127.0.0.1"]}],
        "rule": [
            {"name": "agent", "to": "agent", "target": "agent:echo"},
            {"name": "nobody", "to": "nobody", "target": f"ws://127.0.0.1:{free_port()}"},
        ],
        "agent": [{"name": "echo", "url": f"ws://127.0.0.1:{port}"}],
    }
    directory: Path = tmp_path_factory.mktemp("agents")
    with program("agent_echo.py", port), Server(directory, config) as server:
        yield server


@pytest.mark.parametrize("codec", [Pcmu, G722, Opus])
def test_caller_hears_the_agent(codec: type[Codec], agents_server: Server, call: MakeCall) -> None:
    """Itself, by way of an echo, at the right pitch; its keys reach the agent, which hangs up."""
    party = call("agent", codec, server=agents_server.sip_address)
    party.rtp.play(audio.tone(700, 1.0, codec.rate_hz), loop=True)
    party.rtp.listen(0.5)
    heard = party.rtp.listen(1.0)
    assert audio.find_tone(heard, codec.rate_hz) == pytest.approx(700, abs=2)
    # an agent in real time may be late once, and is then heard so much later
    assert len(audio.gaps_ms(heard, codec.rate_hz)) <= 1
    party.rtp.send_dtmf("#")
    ended = agents_server.ended(party.caller)
    assert (ended.kind, ended.by) == ("channel_closed", "channel")


def test_nobody_there(agents_server: Server, agent: MakeAgent, rtp: MakePeer) -> None:
    """The caller is told so."""
    with pytest.raises(RefusedError) as caught:
        agent(server=agents_server.sip_address).call("nobody", rtp())
    assert caught.value.status == 502
