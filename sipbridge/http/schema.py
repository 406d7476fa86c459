# SPDX-License-Identifier: GPL-3.0-or-later
"""What goes over the API, as models: checked on the way in, described in OpenAPI.

A body that passed holds no control character, so nothing of it can add a line to a SIP message.
"""

from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from sipbridge import routing
from sipbridge.errors import EndKind, EndReason, Party
from sipbridge.http.links import MAX_TTL_S

if TYPE_CHECKING:  # loading it would load the SIP engine, which a client has no use for
    from sipbridge.calls import CallView, DialRequest, RoomView

MAX_HEADERS_CHARS = 8000  # of a message of 12,000 bytes at most

DTMF_PATTERN = "[0-9A-D*#w]+"


def _check_to(value: str) -> str:
    return routing.check_text(value, "the number")


def _check_caller(value: str) -> str:
    routing.check_text(value, "the caller")
    if ":" in value or "<" in value:
        routing.SipUri.parse(value)
    elif "@" in value:
        raise ValueError(f"{value!r} is neither a number nor a URI; did you mean sip:{value} ?")
    return value


def _check_target(value: str) -> str:
    if value:
        routing.Target.parse(value)
    return value


def _check_headers(value: dict[str, str]) -> dict[str, str]:
    for name, text in value.items():
        routing.check_header(name, text)
    chars = sum(len(name) + len(text) + 4 for name, text in value.items())
    if chars > MAX_HEADERS_CHARS:
        raise ValueError(f"they have {chars} characters, more than {MAX_HEADERS_CHARS}")
    return value


def _check_path(value: str) -> str:
    routing.check_text(value, "the path")
    if value and not PurePath(value).is_absolute():
        raise ValueError("the path is not absolute, and the server's directory is not yours")
    return value


Path = Annotated[str, AfterValidator(_check_path)]


class _Body(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_by_name=True, validate_by_alias=True, hide_input_in_errors=True
    )


class _Answer(BaseModel):
    model_config = ConfigDict(
        frozen=True, validate_by_name=True, validate_by_alias=True, serialize_by_alias=True
    )


class Dial(_Body):
    """A call to make."""

    to: Annotated[str, AfterValidator(_check_to)] = Field(
        min_length=1,
        max_length=2048,
        description="A `sip:` URI; with `trunk`, a number.",
        examples=["sip:alice@example.com", "+4930123456"],
    )
    target: Annotated[str, AfterValidator(_check_target)] = Field(
        default="",
        max_length=2048,
        description="What the callee meets, as `local:demo` or `echo:`. Empty: silence.",
        examples=["local:demo"],
    )
    trunk: str = Field(default="", max_length=64, description="The trunk to go out by, by its name.")
    from_: Annotated[str, AfterValidator(_check_caller)] = Field(
        default="",
        max_length=512,
        validation_alias="from",
        serialization_alias="from",
        description="What the callee sees as caller: a number or name, or a `sip:` URI.",
    )
    headers: Annotated[dict[str, str], AfterValidator(_check_headers)] = Field(
        default={}, max_length=32, description="Headers added to the INVITE.", examples=[{"X-Ticket": "4711"}]
    )
    play: Path = Field(
        default="",
        max_length=4096,
        description="A WAV file of the server, played to the callee once it has answered. An absolute path.",
    )
    record: Path = Field(
        default="",
        max_length=4096,
        description="A WAV file that the server writes with what the callee says. An absolute path.",
    )
    dtmf: str = Field(
        default="",
        max_length=256,
        pattern=f"^({DTMF_PATTERN})?$",
        description="Digits sent after the answer; `w` waits half a second.",
        examples=["ww123#"],
    )
    ring_s: float = Field(
        default=60.0, gt=0, le=3600, allow_inf_nan=False, description="Seconds to wait for the answer."
    )
    max_duration_s: float = Field(
        default=0.0,
        ge=0,
        le=7 * 86400,
        allow_inf_nan=False,
        description="Seconds after the answer when it is hung up; 0: never.",
    )

    def to_request(self) -> "DialRequest":
        """What the registry takes."""
        from sipbridge.calls import DialRequest

        return DialRequest(**dict(self))


class Digits(_Body):
    """DTMF to send."""

    digits: str = Field(
        min_length=1,
        max_length=256,
        pattern=f"^{DTMF_PATTERN}$",
        description="`0-9`, `A-D`, `*`, `#`; `w` waits half a second.",
        examples=["123w#"],
    )


class Transfer(_Body):
    """Where the telephone shall call instead."""

    to: Annotated[str, AfterValidator(_check_to)] = Field(
        min_length=1,
        max_length=2048,
        description="A `sip:` URI, or a number at the telephone's server.",
        examples=["200", "sip:200@pbx.example.com"],
    )


class Rebridge(_Body):
    """Where a call is to go."""

    target: Annotated[str, AfterValidator(_check_target)] = Field(
        min_length=1, max_length=2048, description="The next channel.", examples=["local:demo"]
    )


class Program(_Body):
    """How a program joins a room."""

    protocol: str = Field(
        default="proxy", max_length=64, description="What is spoken, as an `[[agent]]` does."
    )
    name: str = Field(default="", max_length=64, description="Its name among the members; one is made up.")
    rate_hz: int = Field(
        default=0, ge=0, le=48000, description="The rate of its audio; 0: as the protocol prefers."
    )


class LinkWish(_Body):
    """A link that is wanted."""

    ttl_s: int = Field(default=3600, ge=60, le=MAX_TTL_S, description="Seconds that it is valid.")


class Link(_Answer):
    """A link to a room's page."""

    url: str
    token: str = Field(description="What stands behind `#`: it lets a browser into this room alone.")
    expires_at: int = Field(description="Unix time.")


class Reason(_Answer):
    """Why a call ended."""

    kind: EndKind
    detail: str = Field(description="For people.")
    by: Party = Field(description="Who ended it.")
    sip_code: int = Field(description="The SIP status received, or 0.")

    @classmethod
    def from_reason(cls, reason: EndReason) -> Self:
        return cls(kind=reason.kind, detail=reason.detail, by=reason.by, sip_code=reason.sip_code)

    def to_reason(self) -> EndReason:
        return EndReason(self.kind, self.detail, self.by, self.sip_code)


class Call(_Answer):
    """A call, as it is at the moment."""

    id: str
    direction: Literal["inbound", "outbound"]
    from_: str = Field(validation_alias="from", serialization_alias="from")
    to: str
    trunk: str = Field(description="Empty when a URI was dialled without a trunk.")
    rule: str = Field(description="Empty when no rule chose the target, as when dialling.")
    target: str
    state: Literal["new", "ringing", "early", "active", "held", "ended"]
    codec: str = Field(description="Empty until one is agreed.")
    seconds: float = Field(description="Since the answer.")
    capture_level_dbfs: float = Field(description="Of what the telephone says; -100: silence.")
    playback_level_dbfs: float = Field(description="Of what the telephone hears; -100: silence.")
    capture_ms: float = Field(description="How long its audio waits for the clock and in its queue.")
    mix_ms: float = Field(description="How long it takes to mix what the telephone hears, where it is mixed.")
    playback_ms: float = Field(description="How long audio for the telephone waits in its queue.")
    delay_ms: float = Field(description="What the bridge adds in all.")
    loss_percent: float = Field(description="RTP packets from the telephone that never came.")
    jitter_ms: float = Field(description="Interarrival jitter from the telephone (RFC 3550).")
    end: Reason | None = Field(description="Set once it ended.")

    @classmethod
    def from_view(cls, view: "CallView") -> Self:
        fields = {name: getattr(view, name) for name in cls.model_fields if name != "end"}
        return cls(**fields, end=None if view.end is None else Reason.from_reason(view.end))


class Calls(_Answer):
    """All calls."""

    calls: list[Call]


class Room(_Answer):
    """A `local:` room with somebody in it."""

    name: str
    rate_hz: int = Field(description="The sample rate it is mixed at.")
    members: list[str] = Field(
        description="The ids of its calls, and the names of its programs and browsers."
    )

    @classmethod
    def from_view(cls, view: "RoomView") -> Self:
        return cls(name=view.name, rate_hz=view.rate_hz, members=list(view.members))


class Rooms(_Answer):
    """All rooms."""

    rooms: list[Room]


class Health(_Answer):
    """A sign of life."""

    service: Literal["sipbridge"] = "sipbridge"
    version: str
    draining: bool = Field(description="New calls are refused, and the server ends with the last call.")
    counters: dict[str, int | float | bool] = Field(description="The engine's counters.")


class Readiness(_Answer):
    """New calls are taken."""

    ready: Literal[True] = True


class Problem(_Answer):
    """An error (RFC 9457)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    errors: list["FieldProblem"] | None = Field(default=None, description="Each place that is wrong.")
    reason: Reason | None = Field(default=None, description="Why a call could not be made.")


class FieldProblem(_Answer):
    """What is wrong at one place of a request."""

    field: str = Field(description="As `headers.X-Ticket`.")
    detail: str
