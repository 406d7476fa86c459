# SPDX-License-Identifier: GPL-3.0-or-later
"""Who a call is in a room: identity, name and attributes, named as livekit-sip names them.

Pure functions.
"""

import contextlib
import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sipbridge import routing
from sipbridge.config import LiveKitOptions
from sipbridge.routing import SipUri
from sipbridge.rtc.base import JoinRequest
from sipbridge.rtc.websocket.connection import fill_parameters

CALL_STATUS = "sip.callStatus"
HELD = "sip.held"
_MAX_TEXT = 1024  # of what strangers wrote and everybody in the room is told
_MAX_HEADERS = 32
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Participant:
    """One that joins."""

    identity: str
    name: str = ""
    metadata: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)
    room_configuration: Mapping[str, Any] = field(default_factory=dict)


def describe(join: JoinRequest, options: LiveKitOptions, status: str) -> Participant:
    """The participant that a call is, with the status that the call has."""
    wish = join.participant
    hidden = options.hide_phone_number or wish.hide_phone_number
    caller, callee = ("", "") if hidden else (_clean(join.caller), _clean(join.callee))
    fields = {"caller": caller, "callee": callee, "call_id": join.call_id}
    headers = {name: _clean(text) for name, text in join.headers.items()}

    def fill(template: Any) -> Any:
        return fill_parameters(template, fields, headers)

    number = caller if join.direction == "inbound" else callee
    if hidden:
        identity, name = f"sip_{uuid.uuid4().hex[:12]}", "Phone"
    else:
        identity, name = f"sip_{number}_{join.call_id}", f"Phone {number}"
    return Participant(
        wish.identity or fill(options.identity) or identity,
        wish.name or fill(options.name) or name,
        wish.metadata or fill(options.metadata),
        {
            **fill(options.attributes),
            **dict(_of_headers(headers, options, hidden)),
            **wish.attributes,
            **dict(_of_call(join, headers, hidden)),
            CALL_STATUS: status,
        },
        fill(options.room),
    )


def _of_call(join: JoinRequest, headers: Mapping[str, str], hidden: bool) -> Iterator[tuple[str, str]]:
    by_name = {name.lower(): text for name, text in headers.items()}
    yield "sip.callID", join.call_id
    if "call-id" in by_name:
        yield "sip.callIDFull", by_name["call-id"]
    if join.trunk:
        yield "sip.trunkID", join.trunk
    if join.rule:
        yield "sip.ruleID", join.rule
    ours, theirs = join.callee, join.caller
    if join.direction == "outbound":
        ours, theirs = theirs, ours
    if not hidden:
        yield "sip.phoneNumber", _clean(theirs)
        yield "sip.trunkPhoneNumber", _clean(ours)
    with contextlib.suppress(ValueError):
        yield "sip.hostname", SipUri.parse(by_name.get("from", "")).host


# What says nothing of the caller, or more of our side than a room is to know.
_NOT_TOLD = frozenset(
    {
        *("via", "contact", "cseq", "max-forwards", "content-length", "content-type", "allow", "supported"),
        *("authorization", "proxy-authorization", "record-route", "route", "call-id", "from", "to"),
        *("require", "session-expires", "min-se", "expires", "accept", "allow-events"),
    }
)


_NUMBERS = frozenset(
    {
        *("p-asserted-identity", "p-preferred-identity", "remote-party-id", "p-called-party-id"),
        *("diversion", "history-info", "referred-by"),
    }
)


def told_headers(join: JoinRequest, options: LiveKitOptions) -> dict[str, str]:
    """The headers of the INVITE that a room's agent may see."""
    hidden = options.hide_phone_number or join.participant.hide_phone_number
    return {name: _clean(join.headers[name]) for name in _tellable(join.headers, hidden)}


def headers_of(attributes: Mapping[str, str], options: LiveKitOptions) -> dict[str, str]:
    """What the room says of the call in our answer and our BYE; what is no header is left out."""
    headers = {}
    for attribute, name in options.attributes_to_headers.items():
        text = attributes.get(attribute, "")
        with contextlib.suppress(ValueError):
            routing.check_header(name, text)
            if text:
                headers[name] = text
    return headers


def _tellable(headers: Mapping[str, str], hidden: bool) -> list[str]:
    not_told = _NOT_TOLD | _NUMBERS if hidden else _NOT_TOLD
    return [name for name in headers if name.lower() not in not_told]


def _of_headers(
    headers: Mapping[str, str], options: LiveKitOptions, hidden: bool
) -> Iterator[tuple[str, str]]:
    if options.include_headers != "none":
        told = _tellable(headers, hidden)
        if options.include_headers == "x":
            told = [name for name in told if name.lower().startswith("x-")]
        for name in told[:_MAX_HEADERS]:
            yield f"sip.h.{name.lower()}", headers[name]
    by_name = {name.lower(): text for name, text in headers.items()}
    for name, attribute in options.headers_to_attributes.items():
        if name.lower() in by_name:
            yield attribute, by_name[name.lower()]


def _clean(text: str) -> str:
    return _CONTROL.sub("\ufffd", text)[:_MAX_TEXT]
