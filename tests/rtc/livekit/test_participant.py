# SPDX-License-Identifier: GPL-3.0-or-later
"""Who a call is in a room."""

from typing import Any

from sipbridge.config import LiveKitOptions
from sipbridge.rtc.base import JoinRequest, ParticipantWish
from sipbridge.rtc.livekit.participant import CALL_STATUS, describe, headers_of

HEADERS = {
    "Call-ID": "5f2c@pbx",
    "From": '"Ann" <sip:+4930123@pbx.example.com>;tag=1',
    "X-Customer": "4711",
    "Via": "SIP/2.0/UDP 192.0.2.1",
    "P-Asserted-Identity": "<sip:+4930123@pbx>",
    "Subject": "a\r\nb",
}


def join(**changes: Any) -> JoinRequest:
    fields: dict[str, Any] = {
        "call_id": "c1",
        "direction": "inbound",
        "caller": "+4930123",
        "callee": "200",
        "trunk": "pbx",
        "rule": "rooms",
        "headers": HEADERS,
    }
    return JoinRequest(**{**fields, **changes})


def test_as_livekit_sip_describes_a_caller() -> None:
    """The names that programs look for; nothing of the headers, unless that is asked for."""
    participant = describe(join(), LiveKitOptions(), "active")
    assert participant.identity == "sip_+4930123_c1"
    assert participant.name == "Phone +4930123"
    assert participant.attributes == {
        "sip.callID": "c1",
        "sip.callIDFull": "5f2c@pbx",
        "sip.trunkID": "pbx",
        "sip.ruleID": "rooms",
        "sip.phoneNumber": "+4930123",
        "sip.trunkPhoneNumber": "200",
        "sip.hostname": "pbx.example.com",
        CALL_STATUS: "active",
    }
    assert participant.metadata == ""
    assert participant.room_configuration == {}


def test_a_call_that_is_dialled() -> None:
    """Its telephone is the one that was called; whoever dials says who it is."""
    wish = ParticipantWish(identity="callee", name="Bob", metadata="m", attributes={"a": "b"})
    call = join(direction="outbound", caller="+49309", callee="+4940", headers={}, rule="", participant=wish)
    participant = describe(call, LiveKitOptions(identity="{call_id}", name="x"), "dialing")
    assert (participant.identity, participant.name, participant.metadata) == ("callee", "Bob", "m")
    assert participant.attributes == {
        "a": "b",
        "sip.callID": "c1",
        "sip.trunkID": "pbx",
        "sip.phoneNumber": "+4940",
        "sip.trunkPhoneNumber": "+49309",
        CALL_STATUS: "dialing",
    }


def test_two_calls_of_one_number_have_two_identities() -> None:
    """Or they would push each other out of the room."""
    options = LiveKitOptions()
    assert describe(join(), options, "").identity != describe(join(call_id="c2"), options, "").identity


def test_headers_as_attributes() -> None:
    """Those that are wanted, cleaned; transport and secrets never."""
    options = LiveKitOptions(include_headers="x", headers_to_attributes={"subject": "topic", "X-None": "no"})
    attributes = describe(join(), options, "").attributes
    assert attributes["sip.h.x-customer"] == "4711"
    assert attributes["topic"] == "a\ufffd\ufffdb"
    assert "no" not in attributes
    assert "sip.h.subject" not in attributes
    attributes = describe(join(), LiveKitOptions(include_headers="all"), "").attributes
    assert attributes["sip.h.p-asserted-identity"] == "<sip:+4930123@pbx>"
    assert not {"sip.h.via", "sip.h.from", "sip.h.call-id"} & attributes.keys()


def test_attributes_as_headers() -> None:
    """Those that a message of SIP can carry."""
    options = LiveKitOptions(attributes_to_headers={"a": "X-A", "b": "X-B", "c": "X-C", "d": "X-D"})
    attributes = {"a": "one", "b": "", "c": "two\r\nVia: x", "e": "three"}
    assert headers_of(attributes, options) == {"X-A": "one"}


def test_a_hidden_number_is_nowhere() -> None:
    """Not in a template either, nor in a header that carries it."""
    options = LiveKitOptions(
        hide_phone_number=True,
        include_headers="all",
        name="Call of {caller}",
        attributes={"who": "{caller}"},
        metadata="{callee}",
    )
    participant = describe(join(), options, "active")
    assert "4930123" not in repr(participant)
    assert "200" not in repr({**participant.attributes, "sip.callIDFull": ""})
    assert participant.identity != describe(join(), options, "active").identity


def test_templates() -> None:
    """In all texts, those of the room's configuration too."""
    options = LiveKitOptions(
        identity="{callee}-{call_id}",
        name="{header:X-Customer}",
        attributes={"number": "{caller}"},
        room={"agents": [{"agent_name": "desk", "metadata": "{caller}"}]},
    )
    participant = describe(join(), options, "active")
    assert (participant.identity, participant.name) == ("200-c1", "4711")
    assert participant.attributes["number"] == "+4930123"
    assert participant.room_configuration == {"agents": [{"agent_name": "desk", "metadata": "+4930123"}]}


def test_long_texts_of_strangers_are_cut() -> None:
    """Everybody in the room is sent them."""
    call = join(caller="9" * 5000, headers={"X-Long": "y" * 5000})
    participant = describe(call, LiveKitOptions(include_headers="x"), "active")
    assert len(participant.identity) < 1100
    assert max(len(text) for text in participant.attributes.values()) <= 1024
