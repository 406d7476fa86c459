# SPDX-License-Identifier: GPL-3.0-or-later
"""What a channel backend is: it joins a call to a channel, takes its audio and plays the channel's back.

A backend of your own is a class with the constructor ``(target, context)`` and the methods of
`RtcConnection`, named in the entry point group ``sipbridge.rtc`` under its scheme; `sipbridge.rtc.testing`
has the shortest examples, `tests/contract` the suite that it has to pass.
"""

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from sipbridge.config import Config
from sipbridge.errors import EndReason
from sipbridge.events import Direction
from sipbridge.leg import NO_HEADERS
from sipbridge.media.loop import MediaLoop
from sipbridge.media.remote import RemotePorts
from sipbridge.routing import Target

if TYPE_CHECKING:
    from sipbridge.rtc.local import LocalRooms

Samples = NDArray[np.int16]


# How a call stands, as its channel may show it.
CallStatus = Literal["dialing", "ringing", "active", "held"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ParticipantWish:
    """What whoever dials says of the participant that the call shall be; empty: as is configured."""

    identity: str = ""
    name: str = ""
    metadata: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)
    hide_phone_number: bool = False
    dial_tone: bool = False  # the channel hears one until the telephone is answered


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinRequest:
    """Who joins."""

    call_id: str
    direction: Direction
    caller: str
    callee: str
    trunk: str = ""
    rule: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)  # of the INVITE
    participant: ParticipantWish = ParticipantWish()


class PlaybackQueue(Protocol):
    """What the telephone is to hear; in front of the leg's jitter queue. Any thread.

    A backend either names a route to the media loop, which then writes, or writes by itself.
    """

    @property
    def port_id(self) -> int:
        """The leg in the media loop."""
        ...

    @property
    def sample_rate_hz(self) -> int:
        """The leg's own rate; changes with a codec."""
        ...

    @property
    def is_live(self) -> bool:
        """Its codec has been agreed on; before that its rate is a guess."""
        ...

    def write(self, samples: Samples) -> None:
        """Appends samples (n,) at `sample_rate_hz`."""
        ...

    def clear(self) -> None:
        """Empties the queue at once (barge-in)."""
        ...

    def mark(self, reached: Callable[[bool], None]) -> None:
        """`reached` is called once all that was given before has been sent to the telephone.

        With True where it was cleared instead. On the media thread: it must not wait.
        """
        ...


class RtcListener(Protocol):
    """What a backend tells its call; all on the event loop."""

    def participant_joined(self, identity: str) -> None: ...
    def participant_left(self, identity: str, remaining: int) -> None: ...
    def dtmf(self, digit: str) -> None:
        """The channel asks that this digit be sent to the telephone."""
        ...

    def message(self, topic: str, text: str) -> None: ...
    def noticed(self, kind: str, identity: str, data: Mapping[str, Any]) -> None:
        """Something of the channel's own that changes nothing, for whoever follows the events."""
        ...

    def hangup_requested(self, reason: EndReason) -> None: ...
    async def transfer(self, to: str) -> None:
        """The channel sends the telephone elsewhere: to a sip: URI, or a number at the telephone's server.

        Returns once it is there, and the call ends. CallError says why it stays.
        """
        ...

    async def hold(self, held: bool) -> None:
        """The channel puts the telephone on hold, or takes it back. CallError: it cannot be done."""
        ...

    def closed(self, reason: EndReason) -> None:
        """The channel is gone; no more comes. Not told after `close()`."""
        ...


@dataclass(frozen=True, slots=True)
class RtcContext:
    """What backends are made with."""

    config: Config
    media: MediaLoop
    rooms: "LocalRooms"
    remotes: RemotePorts


class RtcConnection(abc.ABC):
    """One call's membership in a channel. Event loop, where not said otherwise.

    Raises `RtcError` and nothing of an SDK.
    """

    join_s: float = 10.0  # a channel that takes longer to join has failed
    rings = False  # whoever calls hears ringing while it is joined
    identity = ""  # what it goes by in the channel, once it joins; empty where there is no such thing
    joins_early = False  # a call that is dialled joins it at once, so that it shows how that goes

    def __init__(self, target: Target, context: RtcContext) -> None:
        """Checks the target; ValueError when it is none of this backend's."""
        self.target = target
        self.context = context

    def expect(self, join: JoinRequest) -> None:  # noqa: B027
        """Who will join; told before `join_s` and `rings` are looked at, which may depend on it."""

    @abc.abstractmethod
    async def connect(self, join: JoinRequest, playback: PlaybackQueue, listener: RtcListener) -> None:
        """Joins; audio flows both ways when it returns. RtcError when that fails.

        Once `close()` was called, also while this waits, it joins nothing.
        """

    # These may be called at any time. Before connect(), after close(), and in a channel that has no
    # use for them, they do nothing.

    def call_changed(self, status: CallStatus) -> None:  # noqa: B027
        """How the call stands now, or its codec and so its rate have changed."""

    async def send_dtmf(self, digit: str, duration_ms: int) -> None:  # noqa: B027
        """A key that the telephone pressed."""

    async def send_message(self, message: str | bytes, topic: str = "") -> None:  # noqa: B027
        """A message of the call to the channel."""

    @classmethod  # noqa: B027
    async def start_up(cls, config: Config) -> None:
        """Readies what all connections of this backend share. Before the first call; it must not raise."""

    @classmethod  # noqa: B027
    async def shut_down(cls) -> None:
        """Gives back what all connections of this backend share. Once, after the last call."""

    def headers(self) -> Mapping[str, str]:
        """What is said of the call in the SIP answer and BYE that we send; good for a message of SIP."""
        return NO_HEADERS

    @abc.abstractmethod
    async def close(self, reason: EndReason) -> None:
        """Leaves; from now on the listener is told nothing. Idempotent, also before and while connecting."""
