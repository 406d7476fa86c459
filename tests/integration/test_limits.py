# SPDX-License-Identifier: GPL-3.0-or-later
"""What is turned away leaves a trace and a reason, and disturbs nobody."""

from typing import Any

import pytest

from tests.conftest import MakeAgent, MakeCall, MakePeer, StartServer
from tests.support.ports import free_udp_range
from tests.support.server import Server
from tests.support.sip_agent import RefusedError
from tests.support.waiting import wait_until

CONFIG: dict[str, Any] = {
    "trunk": [{"name": "line", "allowed_addresses": ["127.0.0.1"]}],
    "rule": [{"name": "tone", "target": "tone:1000"}],
}


def lines_with(server: Server, text: str) -> list[str]:
    return [event["event"] for event in server.events() if text in event["event"]]


def test_running_out_of_rtp_ports_is_a_503(start_server: StartServer, call: MakeCall) -> None:
    """With ports for two calls the third gets 503 and Retry-After; when one has ended the next is let in."""
    first = free_udp_range(4)
    server = start_server({**CONFIG, "sip": {"rtp_ports": [first, first + 3]}})
    calls = [call("x", server=server.sip_address) for _ in range(2)]
    with pytest.raises(RefusedError) as refused:
        call("x", server=server.sip_address)
    assert refused.value.status == 503
    assert refused.value.response.get("retry-after")
    answer = server.http.post("/v1/calls", params={"wait": "answered"}, json={"to": "sip:a@127.0.0.1:9"})
    assert answer.json()["end"]["kind"] == "overload"
    for party in calls:
        assert party.hears_tone() == pytest.approx(1000, abs=2)
    calls[0].rtp.pause()  # its port is the next call's, and what still came from it would be followed
    calls[0].hang_up()
    server.ended(calls[0].caller)
    assert call("x", server=server.sip_address).hears_tone() == pytest.approx(1000, abs=2)


def test_who_is_turned_away_stands_in_the_log(start_server: StartServer, agent: MakeAgent) -> None:
    """A stranger is met with silence; the operator is told who it was, and once."""
    server = start_server(CONFIG)
    stranger = agent(server=server.sip_address, host="127.0.0.77")
    for _ in range(3):
        stranger.send(stranger.request("OPTIONS", stranger.uri("x")))
    assert stranger.hears_nothing(1.0)
    (line,) = lines_with(server, "from 127.0.0.77:")
    assert "got no answer" in line


def test_no_common_codec_stands_in_the_log(
    start_server: StartServer, agent: MakeAgent, rtp: MakePeer
) -> None:
    """A call that never was one is told of as well, with its parties and the code."""
    server = start_server(CONFIG)
    caller = agent(server=server.sip_address)
    sdp = (
        "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=audio 4000 RTP/AVP 18\r\n"
    )
    with pytest.raises(RefusedError) as refused:
        caller.call("x", rtp(), sdp=sdp)
    assert refused.value.status == 488
    found = wait_until(lambda: lines_with(server, "got 488"), 3.0, "the refusal is logged")
    assert caller.user in found[0]
