# SPDX-License-Identifier: GPL-3.0-or-later
"""Members without a telephone: a program, a browser, another network's track, with a leg like any other.

::

    what it says   feed() ──► port ──► clock ──► media loop, as from a telephone
    what it hears  take() ◄── thread "remote" ◄── outbox ◄── clock ◄── media loop

Its leg has a port in the bank, so all routes of the media loop are open to it; two of one rate exchange
whole frames natively. A frame costs a call of `take`, and nothing of it is done on the media thread.

A `SamplePort` has samples on both sides. A `TrackPort` has RTP packets instead: coding, order, loss and
reports are native, at the clock's tick. Where packets come from a library with threads of its own, the same
thread asks for them (`link`), so that none of those ever waits for the interpreter.

The thread works in rounds, one after each tick. With many tracks there is one after every second tick: waking
it, and all threads that its packets wake, costs more than what they do with a packet.
"""

import asyncio
import contextlib
import logging
import operator
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from sipbridge.media.loop import MediaLoop

log = logging.getLogger(__name__)

type Samples = NDArray[np.int16]
type Take = Callable[[bytes], None]
type Receive = Callable[[], bytes | None]

_WAIT_MS = 200  # where there are no rounds, for lack of anybody who has to be asked
_LEAVE_S = 1.0  # a media thread that is held for longer is not waited for
_TURNS = 8  # of as many rounds, for those who are not asked in each
_FEW = 8  # linked tracks; with more of them there is a round at every second tick


@dataclass(frozen=True, slots=True, kw_only=True)
class OpusOptions:
    """How Opus is encoded."""

    bitrate: int = 32_000  # bit/s
    complexity: int = 5  # 0 to 10
    fec: bool = True  # each packet carries what is needed to make up the one before
    dtx: bool = False  # silence is not sent


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackOptions:
    """A track, as it was negotiated. Codecs are "PCMU", "PCMA", "G722" and "opus"."""

    rate_hz: int  # of the port: 8000, 12000, 16000, 24000 or 48000
    ssrc: int  # ours
    receives: Mapping[int, str] = field(default_factory=dict)  # by payload type; all of them may come
    sends: tuple[int, str] | None = None  # payload type and codec; None: reports alone
    begins: tuple[int, int] | None = None  # with this number and timestamp; None: as chance has it
    cname: str = ""
    nack: bool = False  # the far side may ask for packets again
    level_id: int = 0  # of the header extension that says how loud a packet is (RFC 6464); 0: it is not said
    opus: OpusOptions = OpusOptions()


class TrackStats(Protocol):
    """The native one; see track_stream.hpp."""

    sent: int
    received: int
    lost: int
    late: int
    duplicates: int
    ignored: int
    malformed: int
    overflow: int
    resent: int
    loss_percent: float
    jitter_ms: float
    remote_loss_percent: float
    remote_jitter_ms: float
    round_trip_ms: float
    silent_ms: float
    payload_type: int
    next_sequence: int
    next_timestamp: int


class Outbox(Protocol):
    """The native one; see outbox.hpp."""

    def wait(self, timeout_ms: int, every_ticks: int) -> list[tuple[int, bytes]]: ...
    def wake(self) -> None: ...
    def close(self) -> None: ...


class PortStats(Protocol):
    """What is counted natively; see port_queues.hpp."""

    @property
    def capture_wait_ms(self) -> float: ...
    @property
    def playback_wait_ms(self) -> float: ...
    @property
    def mixed(self) -> bool: ...
    @property
    def capture_peak(self) -> int: ...
    @property
    def playback_peak(self) -> int: ...


class NativePort(Protocol):
    """The native `RemotePort`."""

    def id(self) -> int: ...
    def rateHz(self) -> int: ...  # noqa: N802
    def stats(self) -> PortStats: ...
    def write(self, samples: Samples) -> None: ...
    def clearHeard(self) -> None: ...  # noqa: N802
    def close(self) -> None: ...


class NativeSamplePort(NativePort, Protocol):
    """The native `SamplePort`."""

    def feed(self, samples: Samples) -> None: ...
    def clear(self) -> None: ...
    def fed(self) -> int: ...
    def taken(self) -> int: ...


class NativeTrackPort(NativePort, Protocol):
    """The native `TrackPort`."""

    def received(self, packet: bytes) -> None: ...
    def trackStats(self) -> TrackStats: ...  # noqa: N802


class RemotePorts:
    """Gives what the ports hear to whoever has opened them. Any thread."""

    def __init__(
        self,
        outbox: Outbox,
        make_sample_port: Callable[[int, int, int], NativeSamplePort],
        make_track_port: Callable[[TrackOptions], NativeTrackPort] | None = None,
    ) -> None:
        """`make_sample_port(rate_hz, member_rate_hz, frame_ms)`; without the other there are no tracks."""
        self._outbox = outbox
        self._make_sample_port = make_sample_port
        self._make_track_port = make_track_port
        self._takes: dict[int, Take] = {}
        self._links: tuple[Sequence[Receive], Sequence[Take]] = (), ()
        self._polls: list[tuple[Callable[[], None], ...]] = [()] * _TURNS
        self._turn = 0
        self._polls_change = threading.Lock()
        self._round_ticks = 0  # 0: nobody is asked
        self._at_work = threading.Lock()
        self._thread: threading.Thread | None = None
        self._running = False

    def start(self) -> None:
        self._running = True
        self._thread = threading.Thread(target=self._run, name="remote", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._running = False
        self._outbox.close()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def open_samples(
        self,
        rate_hz: int,
        take: Callable[[Samples, int], None] | None,
        *,
        member_rate_hz: int = 0,
        frame_ms: int = 20,
    ) -> "SamplePort":
        """A member that speaks and hears samples.

        It does so at `member_rate_hz`, by default that of its port: conversion is native, and costs up to
        1.75 ms of delay each way. `take(frame, rate_hz)` is called on the thread of all remote ports once
        every `frame_ms`, whether somebody speaks or not: it must not wait. The frame is its own to keep,
        and read-only. None for a member that only speaks.
        """
        member_hz = member_rate_hz or rate_hz
        native = self._make_sample_port(rate_hz, member_hz, frame_ms)
        port = SamplePort(native, self.forget)
        if take is not None:
            self.listen(port.port_id, lambda data: take(np.frombuffer(data, np.int16), member_hz))
        return port

    def open_track(self, options: TrackOptions) -> "TrackPort":
        """A member behind a track; its packets go to whoever listens. ValueError for an unknown codec."""
        if self._make_track_port is None:
            raise RuntimeError("there are no tracks here")
        return TrackPort(self._make_track_port(options), self.forget)

    def listen(self, port_id: int, take: Take) -> None:
        """`take(data)` is called with each frame or packet that a port has for its member.

        On the thread of all remote ports, so it must not wait. By a RuntimeError it says that this one cannot
        be taken; after any other it is not called any more.
        """
        self._takes[port_id] = take

    def forget(self, port_id: int) -> None:
        self._takes.pop(port_id, None)

    def link(self, receive: Receive, take: Take) -> Callable[[], None]:
        """`take(packet)` gets each packet that `receive()` has, which is asked in every round.

        Both on the thread of all remote ports, so they must not wait. Returns what ends it; see `settle`.
        """
        with self._polls_change:
            self._set_links([*zip(*self._links, strict=True), (receive, take)])
        self._outbox.wake()
        return lambda: self._end_link(receive)

    def _end_link(self, ended: Receive) -> None:
        with self._polls_change:
            self._set_links([link for link in zip(*self._links, strict=True) if link[0] is not ended])

    def _set_links(self, links: Sequence[tuple[Receive, Take]]) -> None:
        self._links = [receive for receive, _ in links], [take for _, take in links]
        self._set_pace()

    def poll(self, ask: Callable[[], None], every: int) -> Callable[[], None]:
        """`ask()` is called in every round, every second, fourth or eighth; it must not wait.

        On the thread of all remote ports. Returns what ends it; see `settle`.
        """
        with self._polls_change:
            first = min(range(every), key=lambda turn: len(self._polls[turn]))
            for turn in range(first, _TURNS, every):
                self._polls[turn] = (*self._polls[turn], ask)
            self._set_pace()
        self._outbox.wake()
        return lambda: self._end_poll(ask)

    def _end_poll(self, ask: Callable[[], None]) -> None:
        with self._polls_change:
            for turn, polls in enumerate(self._polls):
                if ask in polls:
                    self._polls[turn] = tuple(other for other in polls if other is not ask)
            self._set_pace()

    def _set_pace(self) -> None:
        is_asked = any(self._polls) or len(self._links[0]) > 0
        self._round_ticks = 0 if not is_asked else 1 if len(self._links[0]) <= _FEW else 2

    def settle(self) -> None:
        """Waits, for some milliseconds, until what was ended before is not under way. Any other thread."""
        with self._at_work:
            pass

    def _run(self) -> None:
        while self._running:
            self.work(_WAIT_MS)

    def work(self, timeout_ms: int) -> None:
        """One round, or what there is within that time. Public for tests, which have no time."""
        heard = self._outbox.wait(timeout_ms, self._round_ticks)
        self._turn = (self._turn + 1) % _TURNS
        with self._at_work:
            takes = self._takes
            for port_id, data in heard:
                try:
                    takes.get(port_id, _drop)(data)
                except RuntimeError as error:  # as when the far side has just closed the track
                    log.debug("what the member of port %d hears is dropped: %s", port_id, error)
                except Exception:
                    log.exception("what the member of port %d hears could not be handed on", port_id)
                    self.forget(port_id)
            try:
                _carry(*self._links)
            except Exception:
                self._find_fault()
            for ask in self._polls[self._turn]:
                try:
                    ask()
                except Exception:
                    log.exception("a question has failed, and is not asked again")
                    self._end_poll(ask)

    def _find_fault(self) -> None:
        for receive, take in zip(*self._links, strict=True):
            try:
                _carry([receive], [take])
            except Exception:
                log.exception("a track could not be asked for its packets")
                self._end_link(receive)


def _drop(data: bytes) -> None:
    """For whom nobody listens."""


def _carry(receives: Sequence[Receive], takes: Sequence[Take]) -> None:
    """With nothing of Python's between one that has no packet and the next."""
    for packet, receive, take in zip(map(operator.call, receives), receives, takes, strict=True):
        while packet is not None:
            take(packet)
            packet = receive()


class _RemotePort[Native: NativePort]:
    """What the ports of all members have. Any thread, but for `leave`."""

    def __init__(self, native: Native, forget: Callable[[int], None]) -> None:
        self._native = native
        self._forget = forget
        self.port_id = native.id()
        self.sample_rate_hz = native.rateHz()

    def write(self, samples: Samples) -> None:
        """What the member is to hear next, beside what the media loop gives it."""
        self._native.write(samples)

    def clear_heard(self) -> None:
        """Drops what the member was given and has not heard."""
        self._native.clearHeard()

    def stats(self) -> PortStats:
        """Of its queues."""
        return self._native.stats()

    async def leave(self, media: "MediaLoop") -> None:
        """Detaches the leg from the media loop, and closes. Event loop."""
        loop = asyncio.get_running_loop()
        left = asyncio.Event()

        def detached() -> None:  # media thread
            loop.call_soon_threadsafe(left.set)

        media.detach(self.port_id, detached)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LEAVE_S):
                await left.wait()
        self.close()

    def close(self) -> None:
        """Nothing more is taken or heard. After the leg has been detached from the media loop."""
        self._forget(self.port_id)
        self._native.close()


class SamplePort(_RemotePort[NativeSamplePort]):
    """One member's port, samples on both sides."""

    def feed(self, samples: Samples) -> None:
        """What the member says next, (n,) samples at its rate.

        It is heard frame by frame in real time; what comes too fast for that is dropped once the port's
        queue is full, so a member that is ahead of time has to wait.
        """
        self._native.feed(samples)

    def clear(self) -> None:
        """Drops what was fed and has not been heard."""
        self._native.clear()

    @property
    def fed(self) -> int:
        """Samples at `sample_rate_hz` that were ever fed, up to the last whole frame.

        `taken` comes so far once all is heard.
        """
        return self._native.fed()

    @property
    def taken(self) -> int:
        """How many of them have gone on to whoever hears the member, or were dropped."""
        return self._native.taken()


class TrackPort(_RemotePort[NativeTrackPort]):
    """One track's port."""

    def __init__(self, native: NativeTrackPort, forget: Callable[[int], None]) -> None:
        super().__init__(native, forget)
        self.received = native.received  # an RTP or RTCP packet as it came; without a step in between

    def track_stats(self) -> TrackStats:
        """Of its packets."""
        return self._native.trackStats()

    def hush(self) -> tuple[int, int]:
        """Sends nothing more; where another port of the track has to go on, as number and timestamp.

        SRTP takes no number twice, and the far side no great leap.
        """
        self._forget(self.port_id)
        stats = self.track_stats()
        return stats.next_sequence, stats.next_timestamp
