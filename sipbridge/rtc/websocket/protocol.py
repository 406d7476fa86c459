# SPDX-License-Identifier: GPL-3.0-or-later
"""What the wire formats of voice agents have in common: commands in, messages out; messages in, events out.

A `Protocol` is one conversation's codec. It does no I/O, keeps no time and knows nothing of threads: it is
used on the event loop alone. One of your own is a subclass, named in the entry point group
``sipbridge.agent_protocols``.
"""

import abc
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from sipbridge.events import Direction
from sipbridge.rtc import named

type Samples = NDArray[np.int16]
type Wire = bytes | str  # a binary message (or a piece of a byte stream), a text message

ENTRY_POINTS = "sipbridge.agent_protocols"
MAX_MESSAGE_BYTES = 1 << 20  # a longer one is not looked at


# ---------------------------------------------------------------- what the agent says


@dataclass(frozen=True, slots=True)
class Audio:
    """Speech to be played behind what was sent before it."""

    samples: Samples  # (n,) at the protocol's `receive_rate_hz`


@dataclass(frozen=True, slots=True)
class Clear:
    """Playback shall stop at once, what is left of it dropped; `Protocol.cleared` is told where."""


@dataclass(frozen=True, slots=True)
class Mark:
    """`Protocol.mark_reached` is to be called when what was sent before it was played, or cleared."""

    name: str
    kind: str = ""  # the protocol's own: which of its messages answers


@dataclass(frozen=True, slots=True)
class Pause:
    """What is queued waits, until a Pause(False)."""

    paused: bool


@dataclass(frozen=True, slots=True)
class StatusAsked:
    """`Protocol.status` is to be called."""


@dataclass(frozen=True, slots=True)
class Ready:
    """It will listen and speak from now on; comes once, of protocols with `says_ready`."""


@dataclass(frozen=True, slots=True)
class Message:
    """Text for whoever follows the call."""

    topic: str
    text: str


@dataclass(frozen=True, slots=True)
class Digits:
    """Keys to be pressed to the telephone."""

    digits: str


@dataclass(frozen=True, slots=True)
class Hangup:
    """The call shall end."""

    after_speech: bool = False  # when what was sent before has been heard


@dataclass(frozen=True, slots=True)
class Transfer:
    """The telephone shall call somebody else instead; `Protocol.refused` tells when it does not."""

    to: str  # a sip: URI, or a number at the telephone's server


@dataclass(frozen=True, slots=True)
class Hold:
    """The telephone shall wait in silence, or wait no more."""

    held: bool


# What a wish is called, in configurations and to who uttered it.
WISHES = {Digits: "dtmf", Hangup: "hangup", Transfer: "transfer", Hold: "hold"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A PBX hands over a call. It comes once, of a `PbxProtocol`, which has its rates from then on."""

    caller: str = ""
    callee: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)  # what else it says of the call
    codec: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """A well-formed message of a kind that this protocol has not, or that tells of a fault of its sender."""

    detail: str


@dataclass(frozen=True, slots=True)
class Broken:
    """A message that cannot be read; several in a row are no accident."""

    detail: str


type Event = (
    Audio
    | Clear
    | Mark
    | Pause
    | StatusAsked
    | Ready
    | Message
    | Digits
    | Hangup
    | Begun
    | Transfer
    | Hold
    | Unknown
    | Broken
)


# ---------------------------------------------------------------- the codec


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Who speaks, and how the configuration wants it."""

    call_id: str
    caller: str = ""
    callee: str = ""
    direction: Direction = "inbound"
    headers: Mapping[str, str] = field(default_factory=dict)  # of the INVITE
    leg_rate_hz: int = 8000  # the telephone's own, when the conversation begins
    rate_hz: int = 0  # 0: as the protocol prefers
    frame_ms: int = 20  # of audio in each message to the agent
    parameters: Mapping[str, Any] = field(default_factory=dict)  # filled in


class Protocol(abc.ABC):
    """One conversation in one wire format. Event loop.

    Raises ValueError when it is made for a conversation that it cannot carry.
    """

    transport: ClassVar[Literal["websocket", "tcp"]] = "websocket"
    subprotocol: ClassVar[str] = ""  # of the WebSocket
    rates_hz: ClassVar[tuple[int, ...]] = (8000,)  # that it can carry, the preferred one first
    says_ready: ClassVar[bool] = False

    def __init__(self, conversation: Conversation) -> None:
        self.conversation = conversation
        rate_hz = conversation.rate_hz or self.rates_hz[0]
        if rate_hz not in self.rates_hz:
            known = ", ".join(str(rate) for rate in self.rates_hz)
            raise ValueError(f"{rate_hz} Hz is not carried by this protocol (it carries {known})")
        self.send_rate_hz = rate_hz
        self.receive_rate_hz = rate_hz

    # --- what happens on our side; each gives the messages that tell the agent

    @abc.abstractmethod
    def start(self) -> Sequence[Wire]:
        """The connection is there."""

    @abc.abstractmethod
    def audio(self, samples: Samples) -> Sequence[Wire]:
        """The telephone said `frame_ms` of samples (n,), at `send_rate_hz`."""

    def digit(self, digit: str, duration_ms: int) -> Sequence[Wire]:
        """The telephone pressed a key."""
        return ()

    def speech(self, started: bool) -> Sequence[Wire]:
        """The telephone began or ceased to speak, as our own detector has it."""
        return ()

    def message(self, text: str, topic: str) -> Sequence[Wire]:
        """A message of the call."""
        return ()

    def participant(self, identity: str, joined: bool) -> Sequence[Wire]:
        """Somebody else is in the room of a program, or has left it."""
        return ()

    def mark_reached(self, mark: Mark, cleared: bool) -> Sequence[Wire]:
        """What was sent before it has been played, or was cleared."""
        return ()

    def cleared(self, position: int) -> Sequence[Wire]:
        """Playback was cleared at `position`, counted in samples of all `Audio` that `receive` gave."""
        return ()

    def refused(self, wish: str, reason: str) -> Sequence[Wire]:
        """What the agent asked of the call ("hangup", "dtmf", "transfer", "hold") is not done."""
        return ()

    def status(self, queued_ms: int) -> Sequence[Wire]:
        """The answer to `StatusAsked`."""
        return ()

    def stop(self) -> Sequence[Wire]:
        """The call ends."""
        return ()

    # --- what comes

    @abc.abstractmethod
    def receive(self, data: Wire) -> Sequence[Event]:
        """A message has come, or of a byte stream a piece of any size."""


class PbxProtocol(Protocol):
    """The application's side of a format: that of a PBX which hands its call to us.

    `Audio` is what the telephone says, `Digits` are keys that it has pressed, `Hangup` is its end.
    """

    def start(self) -> Sequence[Wire]:
        return ()

    def wait_no_more(self) -> Sequence[Event]:
        """Nothing has begun for a while: the call, where it can do without what has not come."""
        return ()

    def answer(self) -> Sequence[Wire]:
        """The call is answered."""
        return ()


PROTOCOLS = {
    "proxy": "sipbridge.rtc.websocket.proxy:ProxyProtocol",
    "twilio": "sipbridge.rtc.websocket.twilio:TwilioProtocol",
    "telnyx": "sipbridge.rtc.websocket.telnyx:TelnyxProtocol",
    "vonage": "sipbridge.rtc.websocket.vonage:VonageProtocol",
    "jambonz": "sipbridge.rtc.websocket.jambonz:JambonzProtocol",
    "openai": "sipbridge.rtc.websocket.openai:OpenaiProtocol",
    "audiosocket": "sipbridge.rtc.websocket.audiosocket:AudioSocketProtocol",
    "asterisk": "sipbridge.rtc.websocket.asterisk:AsteriskProtocol",
}


def load_protocol(name: str) -> type[Protocol]:
    """The class of a protocol. LookupError when there is none of this name, ImportError when it is broken."""
    protocol: type[Protocol] = named.load(name, PROTOCOLS, ENTRY_POINTS, "protocol")
    return protocol


# ---------------------------------------------------------------- shared by several formats


class BrokenError(ValueError):
    """A message that cannot be read; within this package."""


def parse_object(data: Wire) -> dict[str, Any]:
    """The JSON object of a text message."""
    if isinstance(data, bytes):
        raise BrokenError("a binary message where JSON is expected")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise BrokenError("a text message that is no JSON") from None
    if not isinstance(value, dict):
        raise BrokenError("a JSON message that is no object")
    return value


def get_object(value: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The object at `key`."""
    found = value.get(key)
    if not isinstance(found, dict):
        raise BrokenError(f'a message without the object "{key}"')
    return found


def get_text(value: Mapping[str, Any], key: str) -> str:
    """The string at `key`."""
    found = value.get(key)
    if not isinstance(found, str):
        raise BrokenError(f'a message without the text "{key}"')
    return found


def parse_base64(text: str) -> bytes:
    """The bytes of a payload."""
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError:
        raise BrokenError("a payload that is no base64") from None


def format_base64(data: bytes) -> str:
    return binascii.b2a_base64(data, newline=False).decode("ascii")


def parse_pcm(data: bytes) -> Samples:
    """Samples of PCM16LE."""
    if len(data) % 2:
        raise BrokenError(f"{len(data)} bytes are no whole number of 16-bit samples")
    return np.frombuffer(data, "<i2").astype(np.int16, copy=False)


def format_pcm(samples: Samples) -> bytes:
    """PCM16LE."""
    return samples.astype("<i2", copy=False).tobytes()


def parameters_with_call(conversation: Conversation) -> dict[str, Any]:
    """What tells the agent of the call, under names that the configured parameters override."""
    return {
        "call_id": conversation.call_id,
        "caller": conversation.caller,
        "callee": conversation.callee,
        "direction": conversation.direction,
        **conversation.parameters,
    }
