# SPDX-License-Identifier: GPL-3.0-or-later
"""The media thread: once a tick it moves the audio of every call, in a handful of array operations.

::

    bank.read ──► captures ──┬── mix-minus of each rate ◄── what the room's other rates say, resampled
                             ├── echo
                             └── sinks: channels that take frames
    bank.write ◄─ playbacks ◄── the mix, the echo, or a source ◄── overlays

A row is one call leg. Who is in which row changes between two ticks only, by requests that any thread
may post; the layout is then computed once and kept until the next change. A leg hears its *route*:

`Room`
    all other members of a named room (mix-minus), those of its own rate untouched, others resampled.
`Echo`
    itself.
`Source`
    a stream of samples that is read for it alone (a tone, a file, silence).
`Sink`
    a channel outside: it is given the leg's frames, and writes what is to be heard to the leg's port
    by itself.
"""

import functools
import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sipbridge.media.dtmf import DtmfDetector
from sipbridge.media.mixer import MixPlan
from sipbridge.resample import LiveResampler, ResamplerKind, make_resampler

log = logging.getLogger(__name__)

Samples = NDArray[np.int16]

# Of a tick. The rest, before a leg is heard and after it was, is for the delay of resamplers that come or go.
_FADE_SHARE = 0.6
_MAX_CATCH_UP_TICKS = 4  # a thread that was held longer drops the rest: delay must not be caught up with


class Ticker(Protocol):
    """The native clock."""

    def wait(self, last: int, timeout_ms: int) -> int: ...


class Bank(Protocol):
    """The native ports, all at once; see port_bank.hpp."""

    def layout(self, ids: NDArray[np.int32], rates_hz: NDArray[np.int32]) -> None: ...
    def read(self, matrix: Samples) -> int: ...
    def write(self, matrix: Samples) -> None: ...


class SampleSource(Protocol):
    """Something to be heard. Read on the media thread: it must not wait."""

    def read(self, count: int) -> Samples:
        """The next `count` samples at the rate of the leg; fewer mean that it is over."""
        ...


# Makes a source for a leg's rate in Hz, on the media thread; again from the start when that rate changes.
MakeSource = Callable[[int], SampleSource]

# Takes a leg's audio. Called on the media thread: it must copy and not wait.
SampleSink = Callable[[Samples], None]


@dataclass(frozen=True, slots=True)
class Room:
    """Hears all other members of the room of this name."""

    name: str


@dataclass(frozen=True, slots=True)
class Echo:
    """Hears itself."""


@dataclass(frozen=True, slots=True)
class Source:
    """Hears what `make(rate_hz)` gives."""

    make: MakeSource


@dataclass(frozen=True, slots=True)
class Sink:
    """Is heard by `take`; what it hears is written to its port by whoever `take` belongs to."""

    take: SampleSink


Route = Room | Echo | Source | Sink

# Of a leg whose source, sink or tap has failed.
_NOTHING = Sink(lambda samples: None)


class _Stream:
    """A source as one leg hears it, at the rate that the leg has."""

    def __init__(self, make: MakeSource) -> None:
        self._make = make
        self._source: SampleSource
        self._rate_hz = 0

    def read(self, rate_hz: int, count: int) -> Samples:
        if rate_hz != self._rate_hz:
            self._source, self._rate_hz = self._make(rate_hz), rate_hz
        return self._source.read(count)


@dataclass(slots=True, eq=False)
class _Member:
    port_id: int
    route: Route
    stream: _Stream | None = None  # of the route, where that is a source
    leaving: bool = False
    next_route: Route | None = None  # where it goes once it has left
    left: list[Callable[[], None]] = field(default_factory=list)  # to be told then
    muted: bool = False
    # At the end of a tick. A change is a ramp within one tick: no click where a leg comes, goes or is muted.
    said_gain: float = 0.0
    heard_gain: float = 0.0
    taps: list[SampleSink] = field(default_factory=list)
    overlays: list[_Stream] = field(default_factory=list)
    on_digit: Callable[[str], None] | None = None

    def __post_init__(self) -> None:
        self.take(self.route)

    def take(self, route: Route) -> None:
        """This is its route from now on, faded in."""
        self.route = route
        self.stream = _Stream(route.make) if isinstance(route, Source) else None
        self.leaving, self.next_route = False, None
        self.said_gain = self.heard_gain = 0.0

    def give_up(self) -> None:
        """Drops all that is not ours: what failed once would fail in each tick."""
        self.taps, self.overlays = [], []
        if isinstance(self.route, Source | Sink):
            self.route, self.stream = _NOTHING, None

    @property
    def gains(self) -> tuple[float, float]:
        """What `said_gain` and `heard_gain` shall be."""
        return 0.0 if self.muted or self.leaving else 1.0, 0.0 if self.leaving else 1.0

    @property
    def is_changing(self) -> bool:
        return self.leaving or (self.said_gain, self.heard_gain) != self.gains


@dataclass(slots=True)
class _RateGroup:
    """The members of all rooms whose legs have one rate; those of a room side by side."""

    rows: slice  # in the bank's matrices
    heard: Samples  # (rows, samples): what they say
    mixed: Samples  # what they are to hear
    plan: MixPlan
    places: dict[str, int]  # of the rooms in the plan
    starts: NDArray[np.intp]  # of the rooms in the rows
    sums: NDArray[np.int32] | None = None  # (rooms, samples), where some room has members of another rate
    sources: NDArray[np.int32] | None = None  # what those say


@dataclass(slots=True)
class _Crossing:
    """What the members of one rate say, for those of another rate in the same rooms."""

    key: tuple[int, int]
    rooms: tuple[str, ...]
    resampler: LiveResampler
    of: _RateGroup
    of_rooms: list[int]
    to: _RateGroup
    to_rooms: list[int]


class MediaLoop:
    """Thread: `start()` makes the media thread; everything public may be called from any thread."""

    def __init__(
        self, clock: Ticker, bank: Bank, *, tick_ms: int, live_resampler: ResamplerKind = "polyphase"
    ) -> None:
        self._clock = clock
        self._bank = bank
        self._tick_ms = tick_ms
        self._live_resampler = live_resampler
        self._changes: deque[Callable[[], None]] = deque()
        self._members: dict[int, _Member] = {}
        self._rows: list[_Member] = []
        self._groups: list[_RateGroup] = []
        self._crossings: list[_Crossing] = []
        self._echo_rows: NDArray[np.intp] = np.empty(0, np.intp)
        self._muted_rows: NDArray[np.intp] = np.empty(0, np.intp)
        self._row_samples: list[int] = []
        self._rates_hz: NDArray[np.int32] = np.empty(0, np.int32)
        self._special: list[tuple[int, _Member]] = []
        self._changing: list[tuple[int, _Member]] = []  # rows with a fade in the next tick
        self._detectors: dict[int, tuple[DtmfDetector, NDArray[np.intp], tuple[int, ...]]] = {}
        self._captures: Samples = np.empty((0, 0), np.int16)
        self._playbacks: Samples = np.empty((0, 0), np.int16)
        self._dirty = False
        self._rooms: dict[str, int] = {}
        self._thread: threading.Thread | None = None
        self._running = False
        self.skipped_ticks = 0

    # --- control, any thread

    def start(self) -> None:
        self._running = True
        self._thread = threading.Thread(target=self._run, name="media", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._running = False
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def attach(self, port_id: int, route: Route) -> None:
        """From the next tick on the leg hears `route`; one that is attached already fades over to it."""
        self._post(lambda: self._attach(port_id, route))

    def detach(self, port_id: int, done: Callable[[], None] | None = None) -> None:
        """The leg fades out within a tick. `done` is called, on the media thread, once nothing touches it."""
        self._post(lambda: self._detach(port_id, done))

    def mute(self, port_id: int, muted: bool) -> None:
        """A muted leg is heard by nobody; it goes on hearing."""
        self._post(lambda: self._set(port_id, lambda member: setattr(member, "muted", muted)))

    def overlay(self, port_id: int, make: MakeSource) -> None:
        """A source that is mixed into what the leg hears until it is over; not for a leg with a `Sink`."""
        self._post(lambda: self._set(port_id, lambda member: member.overlays.append(_Stream(make))))

    def tap(self, port_id: int, take: SampleSink) -> None:
        """`take` is given what the leg says, a tick at a time, until the leg leaves."""
        self._post(lambda: self._set(port_id, lambda member: member.taps.append(take)))

    def detect_digits(self, port_id: int, on_digit: Callable[[str], None] | None) -> None:
        """`on_digit` is told of DTMF heard in the leg's audio, on the media thread; None stops it."""
        self._post(lambda: self._set(port_id, lambda member: setattr(member, "on_digit", on_digit)))

    def rooms(self) -> dict[str, int]:
        """The rate of each room in Hz."""
        return self._rooms

    def _post(self, change: Callable[[], None]) -> None:
        self._changes.append(change)

    # --- changes, media thread

    def _attach(self, port_id: int, route: Route) -> None:
        member = self._members.get(port_id)
        if member is None:
            self._members[port_id] = _Member(port_id, route)
        else:
            member.leaving, member.next_route = True, route
        self._dirty = True

    def _detach(self, port_id: int, done: Callable[[], None] | None) -> None:
        member = self._members.get(port_id)
        if member is not None:
            member.leaving, member.next_route = True, None
            self._dirty = True
        if done is not None:
            if member is not None:
                member.left.append(done)
            else:
                self._post(done)

    def _set(self, port_id: int, change: Callable[[_Member], None]) -> None:
        member = self._members.get(port_id)
        if member is not None:
            change(member)
            self._dirty = True

    def _lay_out(self) -> None:
        """Computes who is where. The order of rows puts the members of a room side by side."""
        members, rates = self._place_members()
        self._rows = members
        self._rates_hz = rates
        columns = int(rates.max(initial=0)) * self._tick_ms // 1000
        if self._captures.shape != (len(members), columns):
            self._captures = np.zeros((len(members), columns), np.int16)
            self._playbacks = np.zeros((len(members), columns), np.int16)
        self._row_samples = [int(rate) * self._tick_ms // 1000 for rate in rates]

        rows_by_rate: dict[int, list[int]] = {}
        for row, member in enumerate(members):
            if isinstance(member.route, Room):
                rows_by_rate.setdefault(int(rates[row]), []).append(row)
        groups = {rate_hz: self._group(rate_hz, rows) for rate_hz, rows in rows_by_rate.items()}
        self._groups = list(groups.values())
        self._cross(groups)
        rooms: dict[str, int] = {}
        for rate_hz, group in groups.items():
            for name in group.places:
                rooms[name] = max(rooms.get(name, 0), rate_hz)
        self._rooms = rooms

        self._echo_rows = np.array(
            [row for row, member in enumerate(members) if isinstance(member.route, Echo)], np.intp
        )
        self._special = [
            (row, member)
            for row, member in enumerate(members)
            if isinstance(member.route, Source | Sink) or member.taps or member.overlays
        ]
        self._changing = [(row, member) for row, member in enumerate(members) if member.is_changing]
        fading = {row for row, _ in self._changing}
        self._muted_rows = np.array(
            [row for row, member in enumerate(members) if member.muted and row not in fading], np.intp
        )
        self._lay_out_detectors(members, rates)

    def _place_members(self) -> tuple[list[_Member], NDArray[np.int32]]:
        """Who is in which row of the bank, at which rate; those whose port is gone are left out."""

        def place(member: _Member) -> tuple[int, str]:
            if isinstance(member.route, Room):
                return rate_of[member.port_id], member.route.name
            return 0, ""

        members = list(self._members.values())
        known = {member.port_id: int(rate) for member, rate in zip(self._rows, self._rates_hz, strict=True)}
        rate_of = {port_id: known.get(port_id, 0) for port_id in self._members}
        while True:
            members.sort(key=place)
            # a sink's own channel writes what its leg hears: the bank only reads such a row
            signs = [-1 if isinstance(member.route, Sink) else 1 for member in members]
            ids = [sign * member.port_id for sign, member in zip(signs, members, strict=True)]
            rates = np.zeros(len(members), np.int32)
            self._bank.layout(np.array(ids, np.int32), rates)
            before = rate_of
            rate_of = {member.port_id: int(rate) for member, rate in zip(members, rates, strict=True)}
            if before == rate_of and 0 not in rate_of.values():
                return members, rates
            for member in [member for member in members if rate_of[member.port_id] == 0]:
                members.remove(member)
                del rate_of[member.port_id]
                self._forget(member)

    def _forget(self, member: _Member) -> None:
        del self._members[member.port_id]
        for done in member.left:
            self._post(functools.partial(self._post, done))  # after the next layout, which is without it

    def _group(self, rate_hz: int, rows: list[int]) -> _RateGroup:
        span = slice(rows[0], rows[-1] + 1)
        samples = rate_hz * self._tick_ms // 1000
        sizes: dict[str, int] = {}
        for row in rows:
            route = self._rows[row].route
            assert isinstance(route, Room)
            sizes[route.name] = sizes.get(route.name, 0) + 1
        if samples == self._captures.shape[1]:  # nothing but these samples in the rows: no copy is needed
            heard, mixed = self._captures[span], self._playbacks[span]
        else:
            heard, mixed = (np.zeros((len(rows), samples), np.int16) for _ in range(2))
        counts = np.array(list(sizes.values()), np.intp)
        places = {name: i for i, name in enumerate(sizes)}
        return _RateGroup(span, heard, mixed, MixPlan(counts.tolist()), places, np.cumsum(counts) - counts)

    def _cross(self, groups: dict[int, _RateGroup]) -> None:
        """Rooms with members of several rates: each hears its own rate untouched, the others resampled.

        So two G.711 legs stay bit-identical, and at the same delay, while a G.722 leg comes and goes.
        """
        before = {crossing.key: crossing for crossing in self._crossings}
        self._crossings = []
        for of_hz, of in groups.items():
            for to_hz, to in groups.items():
                rooms = tuple(name for name in of.places if name in to.places)
                if of_hz == to_hz or not rooms:
                    continue
                if of.sums is None:
                    of.sums = np.zeros((len(of.places), of.heard.shape[1]), np.int32)
                if to.sources is None:
                    to.sources = np.zeros((len(to.places), to.heard.shape[1]), np.int32)
                key = (of_hz, to_hz)
                self._crossings.append(
                    _Crossing(
                        key,
                        rooms,
                        self._resampler_for(key, rooms, before.get(key)),
                        of,
                        [of.places[name] for name in rooms],
                        to,
                        [to.places[name] for name in rooms],
                    )
                )

    def _resampler_for(
        self, key: tuple[int, int], rooms: tuple[str, ...], before: _Crossing | None
    ) -> LiveResampler:
        """The converter of these rooms, with the state of each that had one."""
        if before is None:
            return make_resampler(self._live_resampler, key[0], key[1], len(rooms))
        if before.rooms != rooms:
            index = {name: i for i, name in enumerate(before.rooms)}
            before.resampler.remap(np.array([index.get(name, -1) for name in rooms], np.intp))
        return before.resampler

    def _lay_out_detectors(self, members: list[_Member], rates: NDArray[np.int32]) -> None:
        before = self._detectors
        self._detectors = {}
        wanted = [row for row, member in enumerate(members) if member.on_digit is not None]
        for rate_hz in sorted({int(rates[row]) for row in wanted}):
            rows = [row for row in wanted if rates[row] == rate_hz]
            ids = tuple(members[row].port_id for row in rows)
            if rate_hz in before:
                detector, _, old_ids = before[rate_hz]
                if old_ids != ids:
                    index = {port_id: i for i, port_id in enumerate(old_ids)}
                    detector.remap(np.array([index.get(port_id, -1) for port_id in ids], np.intp))
            else:
                detector = DtmfDetector(rate_hz, len(rows))
            self._detectors[rate_hz] = (detector, np.array(rows, np.intp), ids)

    # --- a tick, media thread

    def _run(self) -> None:
        last = self._clock.wait(0, 100)
        while self._running:
            now = self._clock.wait(last, 100)
            if now == last:
                self._apply_changes()
                continue
            due = now - last
            if due > _MAX_CATCH_UP_TICKS:
                self.skipped_ticks += due - _MAX_CATCH_UP_TICKS
                due = _MAX_CATCH_UP_TICKS
            last = now
            for _ in range(due):
                self.tick()

    def _apply_changes(self) -> None:
        for _ in range(len(self._changes)):
            try:
                self._changes.popleft()()
            except Exception:
                log.exception("a change of the media layout failed")
        if self._dirty:
            self._dirty = False
            self._lay_out()

    def tick(self) -> None:
        """One tick for all legs. Public for tests, which have no clock."""
        self._apply_changes()
        if not self._rows:
            return
        captures, playbacks = self._captures, self._playbacks
        if self._bank.read(captures):
            self._dirty = True  # a port went, or its stream changed its rate
        if self._detectors:
            self._detect()
        if self._muted_rows.size:
            captures[self._muted_rows] = 0
        changing, self._changing = self._changing, []
        for row, member in changing:
            _fade(captures[row, : self._row_samples[row]], member.said_gain, member.gains[0])
        for group in self._groups:
            if group.heard.base is not captures:
                group.heard[:] = captures[group.rows, : group.heard.shape[1]]
        if self._crossings:
            self._carry_across()
        for group in self._groups:
            sources = (
                None if group.sources is None else np.clip(group.sources, -32768, 32767).astype(np.int16)
            )
            group.plan.mix(group.heard, group.mixed, sources)
            if group.mixed.base is not playbacks:
                playbacks[group.rows, : group.mixed.shape[1]] = group.mixed
        if self._echo_rows.size:
            playbacks[self._echo_rows] = captures[self._echo_rows]
        for row, member in self._special:
            try:
                self._serve(row, member)
            except Exception:
                log.exception("what the leg of port %d hears, or is heard by, has failed", member.port_id)
                member.give_up()
                self._dirty = True
        for row, member in changing:
            _fade(playbacks[row, : self._row_samples[row]], member.heard_gain, member.gains[1])
        self._bank.write(playbacks)
        for _, member in changing:
            self._settle(member)

    def _settle(self, member: _Member) -> None:
        """Its fade is over."""
        member.said_gain, member.heard_gain = member.gains
        self._dirty |= member.muted  # from now on as one of the muted rows
        if member.leaving:
            if member.next_route is None:
                self._forget(member)
            else:
                member.take(member.next_route)
            self._dirty = True

    def _carry_across(self) -> None:
        for group in self._groups:
            if group.sums is not None:
                np.add.reduceat(group.heard, group.starts, axis=0, dtype=np.int32, out=group.sums)
                np.clip(group.sums, -32768, 32767, out=group.sums)
            if group.sources is not None:
                group.sources[:] = 0
        for crossing in self._crossings:
            assert crossing.of.sums is not None
            assert crossing.to.sources is not None
            sums = crossing.of.sums[crossing.of_rooms].astype(np.int16)
            crossing.to.sources[crossing.to_rooms] += crossing.resampler.process(sums)

    def _detect(self) -> None:
        for detector, rows, _ in self._detectors.values():
            samples = self._row_samples[rows[0]]
            for channel, digit in detector.process(self._captures[rows, :samples]):
                on_digit = self._rows[rows[channel]].on_digit
                if on_digit is not None:
                    on_digit(digit)

    def _serve(self, row: int, member: _Member) -> None:
        """What a few rows need on their own: a source, a sink, taps and overlays."""
        count = self._row_samples[row]
        captured, played = self._captures[row, :count], self._playbacks[row, :count]
        rate_hz = int(self._rates_hz[row])
        if member.stream is not None:
            samples = member.stream.read(rate_hz, count)
            played[: samples.size] = samples
            played[samples.size :] = 0
        elif isinstance(member.route, Sink):
            member.route.take(captured)
        for tap in member.taps:
            tap(captured)
        if member.overlays:
            mixed = played.astype(np.int32)
            for overlay in list(member.overlays):
                samples = overlay.read(rate_hz, count)
                mixed[: samples.size] += samples
                if samples.size < count:
                    member.overlays.remove(overlay)
            played[:] = np.clip(mixed, -32768, 32767)


def _fade(samples: Samples, start: float, end: float) -> None:
    if start == end == 1.0:
        return
    gains = np.full(samples.size, min(start, end), np.float32)
    size = round(_FADE_SHARE * samples.size)
    place = slice(None, size) if end < start else slice(-size, None)
    gains[place] = np.linspace(start, end, size)
    samples[:] = samples * gains
