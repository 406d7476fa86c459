# SPDX-License-Identifier: GPL-3.0-or-later
"""The end of the server: SIGTERM waits for calls, a second one does not."""

import socket
from typing import Any

from tests.conftest import MakeCall, RunSipp, StartServer
from tests.support import audio

CONFIG: dict[str, Any] = {
    "sip": {"drain_s": 30},
    "trunk": [{"name": "line", "allowed_addresses": ["127.0.0.0/8"]}],
    "rule": [{"name": "tone", "target": "tone:1000"}],
}


def test_drain(start_server: StartServer, call: MakeCall, sipp: RunSipp) -> None:
    """New calls get 503 and Retry-After, the running one is not cut, and with its end all is over."""
    server = start_server(CONFIG)
    party = call("x", server=server.sip_address)
    since_s = party.rtp.wait_packets(10)
    server.terminate()
    # OPTIONS tells when the draining has begun.
    while party.agent.options("x").status == 200:
        pass
    sipp("uac_unavailable", remote=server.sip_address, callee="x").wait()
    assert server.http.get("/readyz").status_code == 503
    health = server.http.get("/healthz")
    assert health.status_code == 200
    assert health.json()["draining"] is True
    assert (
        server.http.post("/v1/calls", json={"to": "sip:a@127.0.0.1:9", "target": "echo:"}).status_code == 503
    )
    heard = party.rtp.heard(since_s, party.rtp.wait_packets(25))
    assert audio.find_tone(heard, 8000) == audio.near(1000)
    assert audio.gaps_ms(heard, 8000) == []
    assert server.process.poll() is None
    party.hang_up()
    assert server.wait_exit() == 0
    assert server.ended(party.caller).kind == "hangup"


def test_second_signal_ends_at_once(start_server: StartServer, call: MakeCall) -> None:
    """Calls are hung up, not dropped."""
    server = start_server(CONFIG)
    party = call("x", server=server.sip_address)
    party.rtp.wait_packets(10)
    server.terminate()
    while party.agent.options("x").status == 200:
        pass
    server.terminate()
    party.dialog.wait_bye()
    assert server.wait_exit() == 0
    ended = server.ended(party.caller)
    assert (ended.kind, ended.by) == ("shutdown", "bridge")


def test_drain_time_is_limited(start_server: StartServer, call: MakeCall) -> None:
    """When it is over, calls are hung up."""
    server = start_server({**CONFIG, "sip": {"drain_s": 1}})
    party = call("x", server=server.sip_address)
    party.rtp.wait_packets(10)
    server.terminate()
    party.dialog.wait_bye(10.0)
    assert server.wait_exit() == 0
    assert server.ended(party.caller).kind == "shutdown"


def test_idle_server_ends_at_once(start_server: StartServer) -> None:
    """Without calls there is nothing to wait for; ports are free after."""
    server = start_server(CONFIG)
    server.terminate()
    assert server.wait_exit(10.0) == 0
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        with socket.socket(socket.AF_INET, kind) as taker:
            taker.bind(server.sip_address)
