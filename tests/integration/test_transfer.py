# SPDX-License-Identifier: GPL-3.0-or-later
"""Telephones that are sent elsewhere: REFER (RFC 3515), and what becomes of the call."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import httpx
import pytest

from tests.conftest import MakeAgent, MakeCall, MakePeer
from tests.support import audio
from tests.support.parties import Call
from tests.support.server import Server
from tests.support.sip_agent import Message

type Asking = Future[httpx.Response]


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as made:
        yield made


def answered(server: Server, party: Call) -> str:
    """The id of its call, once the server has its ACK."""
    call_id = str(server.started(party.caller)["call_id"])
    server.wait_event("call.answered", call_id=call_id)
    return call_id


def refer(
    server: Server, executor: ThreadPoolExecutor, party: Call, to: str
) -> tuple[Message, Future[httpx.Response]]:
    """The request that the telephone gets, and the API's answer to come."""
    asking = executor.submit(server.transfer, answered(server, party), to)
    return party.agent.wait_request("REFER"), asking


def notify(party: Call, status: str, *, over: bool) -> None:
    """How the telephone's new call goes."""
    state = "terminated;reason=noresource" if over else "active;expires=60"
    headers = {"Event": "refer", "Subscription-State": state}
    party.dialog.send("NOTIFY", headers=headers, body=f"SIP/2.0 {status}\r\n", content_type="message/sipfrag")
    assert party.agent.final("NOTIFY").status == 200


@pytest.mark.parametrize(
    ("to", "wanted"),
    [
        ("200", "sip:200@127.0.0.1"),
        ("+49 (30) 1234", "sip:+49301234@127.0.0.1"),
        ("sip:bob@pbx.example.com:5070", "sip:bob@pbx.example.com:5070"),
        ("tel:+49301234", "tel:+49301234"),
    ],
)
def test_the_telephone_goes_elsewhere(
    to: str, wanted: str, server: Server, call: MakeCall, executor: ThreadPoolExecutor
) -> None:
    """It hears the bridge until its new call is answered; then the bridge hangs up."""
    party = call("tone1000")
    request, asking = refer(server, executor, party, to)
    assert request.get("refer-to") == f"<{wanted}>"
    party.agent.respond(request, 202, "Accepted")
    notify(party, "100 Trying", over=False)
    notify(party, "180 Ringing", over=False)
    assert party.hears_tone() == audio.near(1000)
    assert not asking.done()
    notify(party, "200 OK", over=True)
    party.dialog.wait_bye()
    assert asking.result().status_code == 204
    ended = server.ended(party.caller)
    assert (ended.kind, ended.by, ended.detail) == ("transferred", "operator", f"transferred to {to}")


def test_one_that_hangs_up_at_once(server: Server, call: MakeCall, executor: ThreadPoolExecutor) -> None:
    """Many do when they have accepted, and tell nothing of their new call."""
    party = call("echo")
    request, asking = refer(server, executor, party, "200")
    party.agent.respond(request, 202, "Accepted")
    party.hang_up()
    assert asking.result().status_code == 204
    assert server.ended(party.caller).kind == "transferred"


@pytest.mark.parametrize("late", [False, True])
def test_one_that_fails(late: bool, server: Server, call: MakeCall, executor: ThreadPoolExecutor) -> None:
    """The call goes on, and can be transferred again."""
    party = call("tone1000")
    request, asking = refer(server, executor, party, "200")
    if late:
        party.agent.respond(request, 202, "Accepted")
        notify(party, "486 Busy Here", over=True)
    else:
        party.agent.respond(request, 603, "Decline")
    answer = asking.result()
    assert answer.status_code == 502
    assert answer.json()["reason"]["sip_code"] == (486 if late else 603)
    assert party.hears_tone() == audio.near(1000)
    request, asking = refer(server, executor, party, "201")
    party.agent.respond(request, 202, "Accepted")
    notify(party, "200 OK", over=True)
    party.dialog.wait_bye()
    assert asking.result().status_code == 204


def test_what_cannot_be_transferred(
    server: Server, call: MakeCall, agent: MakeAgent, rtp: MakePeer, executor: ThreadPoolExecutor
) -> None:
    """A call that has ended, a place that is none, one that is on its way already."""
    party = call("echo")
    call_id = answered(server, party)
    assert server.transfer(call_id, "sip:no host").status_code == 404
    assert server.transfer(call_id, "a\nb").status_code == 422
    request, asking = refer(server, executor, party, "200")
    second = server.transfer(call_id, "201")
    assert second.status_code == 502
    assert "already" in second.json()["detail"]
    party.agent.respond(request, 202, "Accepted")
    notify(party, "200 OK", over=True)
    party.dialog.wait_bye()
    assert asking.result().status_code == 204
    server.ended(call_id=call_id)
    assert server.transfer(call_id, "200").status_code == 404
