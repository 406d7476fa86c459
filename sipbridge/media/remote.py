# SPDX-License-Identifier: GPL-3.0-or-later
"""Members without a telephone: a program, a browser, another network's track, with a leg like any other.

::

    what it says   feed() ──► port ──► clock ──► media loop, as from a telephone
    what it hears  take() ◄── thread "remote" ◄── outbox ◄── clock ◄── media loop

Its leg has a port in the bank, so all routes of the media loop are open to it; two of one rate exchange
whole frames natively. A frame costs a call of `take`, and nothing of it is done on the media thread.

A `SamplePort` has samples on both sides. A `TrackPort` has RTP packets instead: coding, order, loss and
reports are native, at the clock's tick. Where packets come from a library of its own threads they are asked
for (`poll`) just before each tick, so that none of those threads ever waits for the interpreter.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from sipbridge.media.loop import MediaLoop

log = logging.getLogger(__name__)

type Samples = NDArray[np.int16]
type Take = Callable[[bytes], None]

_WAIT_MS = 200
_LEAVE_S = 1.0  # a media thread that is held for longer is not waited for
_ROUND_TICKS = 8
_BEFORE_TICK_S = 0.0012  # that asking all tracks takes, with some to spare


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

    def wait(self, timeout_ms: int) -> list[tuple[int, bytes]]: ...
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


class Clock(Protocol):
    """The native one."""

    def tickMs(self) -> int: ...  # noqa: N802
    def nextTickNs(self) -> int: ...  # noqa: N802


class RemotePorts:
    """Gives what the ports hear to whoever has opened them. Any thread."""

    def __init__(
        self,
        outbox: Outbox,
        make_sample_port: Callable[[int, int, int], NativeSamplePort],
        make_track_port: Callable[[TrackOptions], NativeTrackPort] | None = None,
        clock: Clock | None = None,
    ) -> None:
        """`make_sample_port(rate_hz, member_rate_hz, frame_ms)`; without the others there are no tracks."""
        self._outbox = outbox
        self._make_sample_port = make_sample_port
        self._make_track_port = make_track_port
        self._clock = clock
        self._takes: dict[int, Take] = {}
        self._polls: list[tuple[Callable[[], None], ...]] = [()] * _ROUND_TICKS  # by tick of a round
        self._tick = 0
        self._polls_changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._running = False

    def start(self) -> None:
        self._running = True
        self._threads = [threading.Thread(target=self._run, name="remote", daemon=True)]
        if self._clock is not None:
            self._threads.append(threading.Thread(target=self._run_polls, name="poll", daemon=True))
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._running = False
        self._outbox.close()
        with self._polls_changed:
            self._polls_changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._threads = []

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

    def open_track(self, options: TrackOptions, send: Take) -> "TrackPort":
        """A member behind a track: `send(packet)` is called with each RTP and RTCP packet for it.

        On the thread of all remote ports, so it must not wait. ValueError for a codec that there is not.
        """
        if self._make_track_port is None:
            raise RuntimeError("there are no tracks here")
        port = TrackPort(self._make_track_port(options), self.forget)
        self.listen(port.port_id, send)
        return port

    def listen(self, port_id: int, take: Take) -> None:
        """`take(data)` is called with each frame that a port has for its member."""
        self._takes[port_id] = take

    def forget(self, port_id: int) -> None:
        self._takes.pop(port_id, None)

    def poll(self, ask: Callable[[], None], every: int = 1) -> Callable[[], None]:
        """`ask()` is called just before each tick, on a thread for that; it must not wait.

        Or before every second, fourth or eighth. Returns what ends it; a call that is under way may still
        come to its end after that.
        """
        with self._polls_changed:
            first = min(range(every), key=lambda tick: len(self._polls[tick]))
            for tick in range(first, _ROUND_TICKS, every):
                self._polls[tick] = (*self._polls[tick], ask)
            self._polls_changed.notify_all()
        return lambda: self._end_poll(ask)

    def _end_poll(self, ask: Callable[[], None]) -> None:
        with self._polls_changed:
            for tick, polls in enumerate(self._polls):
                if ask in polls:
                    self._polls[tick] = tuple(other for other in polls if other is not ask)

    def _run_polls(self) -> None:
        assert self._clock is not None
        while self._running:
            if not any(self._polls):
                with self._polls_changed:
                    self._polls_changed.wait_for(
                        lambda: any(self._polls) or not self._running, _WAIT_MS / 1000
                    )
                continue
            wait_s = (self._clock.nextTickNs() - time.monotonic_ns()) / 1e9 - _BEFORE_TICK_S
            # the tick that is about to come has been served, and a clock that stands is no reason to spin
            time.sleep(wait_s if wait_s > 0 else max(0.001, wait_s + self._clock.tickMs() / 1000))
            self.ask_all()

    def ask_all(self) -> None:
        """Once, before a tick. Public for tests, which have no time."""
        self._tick = (self._tick + 1) % _ROUND_TICKS
        for ask in self._polls[self._tick]:
            try:
                ask()
            except Exception:
                log.exception("a track could not be asked for its packets")
                self._end_poll(ask)

    def _run(self) -> None:
        while self._running:
            self.deliver(_WAIT_MS)

    def deliver(self, timeout_ms: int) -> None:
        """Hands on what there is, or comes within that time. Public for tests, which have no time."""
        for port_id, data in self._outbox.wait(timeout_ms):
            take = self._takes.get(port_id)
            if take is None:
                continue
            try:
                take(data)
            except Exception:
                log.exception("what the member of port %d hears could not be handed on", port_id)
                self.forget(port_id)


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
