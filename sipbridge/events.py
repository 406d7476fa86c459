# SPDX-License-Identifier: GPL-3.0-or-later
"""What happens in a call, as data: for the log, the API and records."""

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from sipbridge.errors import EndReason, Party

Direction = Literal["inbound", "outbound"]
DtmfMethod = Literal["rfc4733", "info", "inband"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CallEvent:
    """The base of all events of a call."""

    name: ClassVar[str] = ""

    call_id: str  # ours, not SIP's Call-ID
    at: float = field(default_factory=time.time)  # Unix time, seconds

    def as_dict(self) -> dict[str, Any]:
        """The event for JSON: its name as ``event``, ``from_`` as ``from``, a reason as a mapping."""
        data: dict[str, Any] = {"event": self.name}
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if isinstance(value, EndReason):
                value = {
                    "kind": value.kind.value,
                    "detail": value.detail,
                    "by": value.by.value,
                    "sip_code": value.sip_code,
                    "cause": value.cause,
                }
            data[item.name.rstrip("_")] = value
        return data


@dataclass(frozen=True, slots=True, kw_only=True)
class CallStarted(CallEvent):
    """A call was let in, or is about to be dialled."""

    name: ClassVar[str] = "call.started"

    direction: Direction
    from_: str
    to: str
    trunk: str  # "" when a URI is dialled without a trunk
    rule: str  # "" when no rule chose the target, as when dialling
    target: str  # filled in


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRinging(CallEvent):
    """The callee rings: 180 or 183 was sent or came."""

    name: ClassVar[str] = "call.ringing"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallAnswered(CallEvent):
    """The call was answered and its codec agreed."""

    name: ClassVar[str] = "call.answered"

    codec: str  # SDP's name, such as "PCMU"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallDtmf(CallEvent):
    """A digit was pressed; `party` pressed it."""

    name: ClassVar[str] = "call.dtmf"

    digit: str  # one of 0-9 A-D * #
    duration_ms: int
    method: DtmfMethod
    party: Party


@dataclass(frozen=True, slots=True, kw_only=True)
class CallHeld(CallEvent):
    """The call is on hold: by the telephone, or because the channel or the API asked for it."""

    name: ClassVar[str] = "call.held"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallResumed(CallEvent):
    """The call goes on after a hold."""

    name: ClassVar[str] = "call.resumed"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallMessage(CallEvent):
    """A text message came from the channel."""

    name: ClassVar[str] = "call.message"

    topic: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CallBridged(CallEvent):
    """The call has joined its channel, or another one."""

    name: ClassVar[str] = "call.bridged"

    target: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CallUnbridged(CallEvent):
    """The call has left a channel that it had joined."""

    name: ClassVar[str] = "call.unbridged"

    target: str
    seconds: float  # that it was there
    reason: EndReason


@dataclass(frozen=True, slots=True, kw_only=True)
class CallBridgeFailed(CallEvent):
    """The call could not join a channel. It goes on in the one that it has, or ends."""

    name: ClassVar[str] = "call.bridge_failed"

    target: str
    reason: EndReason


@dataclass(frozen=True, slots=True, kw_only=True)
class CallChannel(CallEvent):
    """Something happened in the channel that only some backends have, such as how loud everybody is."""

    name: ClassVar[str] = "call.channel"

    kind: str
    identity: str  # whose it is; "": nobody's in particular
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class CallEnded(CallEvent):
    """The call is over. It repeats how the call began, so that this one event tells all of it."""

    name: ClassVar[str] = "call.ended"

    reason: EndReason
    direction: Direction
    from_: str
    to: str
    trunk: str
    rule: str
    target: str
    duration_s: float = 0.0  # from the answer to the end; 0 when it was never answered
    billed_s: int = 0  # the same in seconds that have begun
    codec: str = ""
    loss_percent: float = 0.0  # of the RTP packets expected from the far side
    jitter_ms: float = 0.0  # interarrival jitter, RFC 3550 section 6.4.1
    # What the bridge added at last: until the telephone's audio was taken, mixed, and sent; and all of it.
    capture_ms: float = 0.0
    mix_ms: float = 0.0
    playback_ms: float = 0.0
    delay_ms: float = 0.0
    mos: float | None = None  # 1 to 4.5, estimated by the E-model (ITU-T G.107); None without media
