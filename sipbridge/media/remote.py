# SPDX-License-Identifier: GPL-3.0-or-later
"""Members without a telephone: a program, a browser, another network's track, with a leg like any other.

::

    what it says   feed() ──► port ──► clock ──► media loop, as from a telephone
    what it hears  take() ◄── the one thread here ◄── outbox ◄── clock ◄── media loop

Its leg has a port in the bank, so all routes of the media loop are open to it; two of one rate exchange
whole frames natively. A frame costs a call of `take`, and nothing of it is done on the media thread.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
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


class RemotePorts:
    """Gives what the ports hear to whoever has opened them. Any thread."""

    def __init__(self, outbox: Outbox, make_sample_port: Callable[[int, int], NativeSamplePort]) -> None:
        """`make_sample_port(rate_hz, frame_ms)`."""
        self._outbox = outbox
        self._make_sample_port = make_sample_port
        self._takes: dict[int, Take] = {}
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
        self, rate_hz: int, take: Callable[[Samples, int], None], *, frame_ms: int = 20
    ) -> "SamplePort":
        """A member that speaks and hears samples.

        `take(frame, rate_hz)` is called on the thread of all remote ports once every `frame_ms`, whether
        somebody speaks or not: it must not wait. The frame is its own to keep, and read-only.
        """
        native = self._make_sample_port(rate_hz, frame_ms)
        port = SamplePort(native, self.forget)
        self.listen(port.port_id, lambda data: take(np.frombuffer(data, np.int16), rate_hz))
        return port

    def listen(self, port_id: int, take: Take) -> None:
        """`take(data)` is called with each frame that a port has for its member."""
        self._takes[port_id] = take

    def forget(self, port_id: int) -> None:
        self._takes.pop(port_id, None)

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


class SamplePort:
    """One member's port. Any thread."""

    def __init__(self, native: NativeSamplePort, forget: Callable[[int], None]) -> None:
        self._native = native
        self._forget = forget
        self.port_id = native.id()
        self.sample_rate_hz = native.rateHz()

    def feed(self, samples: Samples) -> None:
        """What the member says next, (n,) samples at `sample_rate_hz`.

        It is heard frame by frame in real time; what comes too fast for that is dropped once the port's
        queue is full, so a member that is ahead of time has to wait.
        """
        self._native.feed(samples)

    def clear(self) -> None:
        """Drops what was fed and has not been heard."""
        self._native.clear()

    def write(self, samples: Samples) -> None:
        """What the member is to hear next, beside what the media loop gives it."""
        self._native.write(samples)

    def clear_heard(self) -> None:
        """Drops what the member was given and has not heard."""
        self._native.clearHeard()

    def stats(self) -> PortStats:
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
