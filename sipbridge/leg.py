# SPDX-License-Identifier: GPL-3.0-or-later
"""One side of a call as the bridge sees it: a telephone, by SIP or by the stream of a PBX."""

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sipbridge.errors import EndReason
from sipbridge.events import DtmfMethod

NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class LegState(enum.StrEnum):
    """Where a leg stands."""

    NEW = "new"
    RINGING = "ringing"
    EARLY = "early"  # audio flows before the answer
    ACTIVE = "active"
    HELD = "held"  # by the telephone, or by us
    ENDED = "ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class LegStats:
    """What is known of a leg's audio; the whole call's once it has ended."""

    codec: str = ""
    received_packets: int = 0
    sent_packets: int = 0
    lost_packets: int = 0
    foreign_packets: int = 0  # from addresses that are not the telephone's; dropped
    loss_percent: float = 0.0
    jitter_ms: float = 0.0
    round_trip_ms: float = 0.0
    # Where time goes in the bridge, of about the last second: a packet waits for a tick of the clock and in
    # the capture queue, a mix for the media thread, what is to be sent in the playback queue.
    capture_ms: float = 0.0
    mix_ms: float = 0.0
    playback_ms: float = 0.0
    capture_peak: int = 0
    playback_peak: int = 0

    @property
    def delay_ms(self) -> float:
        """What the bridge adds in all."""
        return self.capture_ms + self.mix_ms + self.playback_ms


class LegListener(Protocol):
    """What a leg tells; all on the event loop."""

    def leg_ringing(self, early_media: bool) -> None: ...
    def leg_answered(self) -> None: ...
    def leg_media(self) -> None: ...
    def leg_digit(self, digit: str, duration_ms: int, method: DtmfMethod) -> None: ...
    def leg_ended(self, reason: EndReason, stats: LegStats) -> None: ...


class LegPort(Protocol):
    """The leg in the media loop. Any thread."""

    @property
    def port_id(self) -> int: ...
    def rateHz(self) -> int: ...  # noqa: N802
    def write(self, samples: NDArray[np.int16]) -> None:
        """Appends to what the telephone hears, at the port's rate."""
        ...

    def clear(self) -> None:
        """Drops what it has not heard yet."""
        ...


class Leg(Protocol):
    """What a bridge asks of a leg. Event loop; nothing here waits for the far side."""

    state: LegState
    codec: str
    answered_at: float | None  # time.monotonic()
    listener: LegListener | None  # told later, never from within a method

    @property
    def id(self) -> str: ...
    @property
    def caller(self) -> str: ...
    @property
    def callee(self) -> str: ...
    @property
    def headers(self) -> Mapping[str, str]:
        """Of the request that began it."""
        ...

    @property
    def port(self) -> LegPort: ...

    def ring(self) -> None: ...
    def progress(self) -> None:
        """Audio flows both ways before the call is answered, where the far side can."""
        ...

    def answer(self, headers: Mapping[str, str] = NO_HEADERS) -> None:
        """With these headers beside its own, where the far side has such; each is good for a message."""
        ...

    def hangup(self, reason: EndReason, headers: Mapping[str, str] = NO_HEADERS) -> None:
        """Ends the leg in whatever state it is, with such headers; `leg_ended` follows with this reason."""
        ...

    async def send_digits(self, digits: str) -> None:
        """Presses keys one after the other; ``w`` is half a second. ValueError names what is no key."""
        ...

    async def transfer(self, to: str) -> None:
        """Asks the telephone to call somebody else instead (blind), and returns once it has.

        `to` is a sip: URI, or a number or user at the telephone's own server. CallError says why the call
        goes on here. Where the telephone ends the call meanwhile, `leg_ended` says that it was transferred.
        """
        ...

    async def hold(self, held: bool) -> None:
        """Silence both ways until it is taken back; `leg_media` follows. CallError: it cannot be done."""
        ...

    async def stats(self) -> LegStats:
        """A snapshot; after the end, the whole call's."""
        ...

    async def inband_keys(self) -> Callable[[str], None] | None:
        """Who is told, on any thread, of keys that are heard in the audio; None: they come otherwise."""
        ...
