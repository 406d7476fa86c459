# SPDX-License-Identifier: GPL-3.0-or-later
"""The media thread: once a tick it moves the audio of every call, in a handful of array operations.

::

    bank.read ──► captures ──┬── mix-minus of each rate ◄── what the room's other rates say, resampled
                             └── taps, digits
    bank.write ◄─ playbacks ◄── the mix, or a source ◄── overlays

    bank.takeFrames ──► whole frames ──► channels
    bank.giveFrames ◄── whole frames ◄── channels, overlays

A leg hears its *route*:

`Room`
    all other members of a named room (mix-minus), those of its own rate untouched, others resampled.
`Echo`
    itself.
`Source`
    a stream of samples that is read for it alone (a tone, a file, silence).
`Channel`
    a channel outside: it is given the leg's frames, and gives what the leg hears.

Where nothing is mixed, whole frames are handed on as they come, and nothing of a tick is waited for:
between the two members of a room whose legs have one rate, and for an echo, the native clock does that
alone (the loop only tells it who hears whom); a channel takes and gives whole frames. All other legs are
rows of two matrices, a tick's samples wide. Who is in which row changes between two ticks only, by
requests that any thread may post; the layout is then computed once and kept until the next change.
"""

import collections
import contextlib
import functools
import itertools
import logging
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sipbridge.media.dtmf import DtmfDetector
from sipbridge.media.mixer import Index, MixPlan, index_of
from sipbridge.resample import LiveResampler, ResamplerKind, make_resampler

log = logging.getLogger(__name__)

Samples = NDArray[np.int16]

# Of a tick. The rest, before a leg is heard and after it was, is for the delay of resamplers that come or go.
_FADE_SHARE = 0.6
_LONGEST_FRAME_MS = 120  # of a packet
_PRIORITY = 9
_REST_TICKS = 7  # that are passed over where all frames are handed on natively
_MAX_CATCH_UP_TICKS = 4  # a thread that was held longer drops the rest: delay must not be caught up with


class Ticker(Protocol):
    """The native clock."""

    def wait(self, last: int, timeout_ms: int) -> int: ...
    def done(self, tick: int) -> None: ...
    def wake(self) -> None: ...


class ReachedMark(Protocol):
    """The native `PortMark`."""

    @property
    def id(self) -> int: ...
    @property
    def cleared(self) -> bool: ...


class Bank(Protocol):
    """The native ports, all at once; see port_bank.hpp."""

    def rates(self, ids: NDArray[np.int32], rates_hz: NDArray[np.int32]) -> None: ...
    def layout(
        self, ids: NDArray[np.int32], rates_hz: NDArray[np.int32], whole: NDArray[np.int32]
    ) -> None: ...
    def read(self, matrix: Samples) -> int: ...
    def write(self, matrix: Samples) -> None: ...
    def takeFrames(self, heads: NDArray[np.int32], matrix: Samples) -> int: ...  # noqa: N802
    def wantedFrames(self, heads: NDArray[np.int32]) -> int: ...  # noqa: N802
    def giveFrames(self, heads: NDArray[np.int32], matrix: Samples) -> None: ...  # noqa: N802
    def levels(self, ids: NDArray[np.int32], peaks: NDArray[np.int32]) -> None: ...
    def mark(self, port_id: int, mark_id: int) -> None: ...
    def takeMarks(self) -> Sequence[ReachedMark]: ...  # noqa: N802


# Flags of a leg whose frames are handed on whole; see port_bank.hpp.
DELIVERED, PULLED, MUTED, HEARD = 1, 2, 4, 8


class SampleSource(Protocol):
    """Something to be heard. Read on the media thread: it must not wait."""

    def read(self, count: int) -> Samples:
        """The next `count` samples at the rate of the leg; fewer mean that it is over."""
        ...


# Makes a source for a leg's rate in Hz, on the media thread; again from the start when that rate changes.
MakeSource = Callable[[int], SampleSource]

# Takes a leg's audio. Called on the media thread: it must copy and not wait.
SampleSink = Callable[[Samples], None]

# The same with the rate in Hz.
FrameSink = Callable[[Samples, int], None]


@dataclass(frozen=True, slots=True)
class Room:
    """Hears all other members of the room of this name, and is heard by them.

    With `to` what it says goes there and not to the room: to a leg of the same rate that hears nothing else,
    being attached to a bare `Channel()`.
    """

    name: str
    to: int = 0  # a port


@dataclass(frozen=True, slots=True)
class Echo:
    """Hears itself."""


@dataclass(frozen=True, slots=True)
class Source:
    """Hears what `make(rate_hz)` gives."""

    make: MakeSource


@dataclass(frozen=True, slots=True)
class Channel:
    """Is heard by `take`, hears what `make(rate_hz)` gives.

    Both ways these are whole frames, as long as the telephone's. `take` has a frame soon after its packet
    came. The source is read in the very tick in which a frame is sent; when it has too little, the rest is
    silence. Without `make` whoever `take` belongs to writes what is heard to the leg's port by itself.
    Without `take` nobody hears it.
    """

    take: FrameSink | None = None
    make: MakeSource | None = None


Route = Room | Echo | Source | Channel

# Of a leg whose source, channel or tap has failed.
_NOTHING = Channel()


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
        make = route.make if isinstance(route, Source | Channel) else None
        self.stream = _Stream(make) if make is not None else None
        self.leaving, self.next_route = False, None
        self.said_gain = self.heard_gain = 0.0

    def give_up(self) -> None:
        """Drops all that is not ours: what failed once would fail in each tick."""
        self.taps, self.overlays = [], []
        if isinstance(self.route, Source | Channel):
            self.route, self.stream = _NOTHING, None

    @property
    def gains(self) -> tuple[float, float]:
        """What `said_gain` and `heard_gain` shall be."""
        says = not (self.muted or self.leaving or self.talks_to)
        return 1.0 if says else 0.0, 0.0 if self.leaving else 1.0

    @property
    def talks_to(self) -> int:
        """The one port that hears it, 0 where that is the room."""
        return self.route.to if isinstance(self.route, Room) else 0

    @property
    def is_changing(self) -> bool:
        return self.leaving or (self.said_gain, self.heard_gain) != self.gains

    @property
    def is_listened_to(self) -> bool:
        """Somebody wants what it says in pieces of a tick, wherever it goes."""
        return bool(self.taps) or self.on_digit is not None


@dataclass(slots=True)
class _RateGroup:
    """The members of all rooms whose legs have one rate; those of a room side by side."""

    rows: slice  # in the bank's matrices
    heard: Samples  # (rows, samples): what they say
    mixed: Samples  # what they are to hear
    plan: MixPlan
    places: dict[str, int]  # of the rooms in the plan
    # (rooms, samples), where some room has members of another rate
    said: Samples | None = None  # what those of this rate say together
    sources: NDArray[np.int32] | None = None  # and those of the others


@dataclass(slots=True)
class _Crossing:
    """What the members of one rate say, for those of another rate in the same rooms."""

    key: tuple[int, int]
    rooms: tuple[str, ...]
    resampler: LiveResampler
    of: _RateGroup
    of_rooms: Index
    to: _RateGroup
    to_rooms: Index


class MediaLoop:
    """Thread: `start()` makes the media thread; everything public may be called from any thread."""

    def __init__(
        self, clock: Ticker, bank: Bank, *, tick_ms: int, live_resampler: ResamplerKind = "polyphase"
    ) -> None:
        self._clock = clock
        self._bank = bank
        self._tick_ms = tick_ms
        self._live_resampler = live_resampler
        self._changes: collections.deque[Callable[[], None]] = collections.deque()
        self._members: dict[int, _Member] = {}
        self._rows: list[_Member] = []
        self._groups: list[_RateGroup] = []
        self._crossings: list[_Crossing] = []
        self._muted_rows: NDArray[np.intp] = np.empty(0, np.intp)
        self._row_samples: list[int] = []
        self._rates_hz: NDArray[np.int32] = np.empty(0, np.int32)
        self._special: list[tuple[int, _Member]] = []
        self._channels: dict[int, _Member] = {}  # by port, with whole frames both ways
        self._channel_rates_hz: dict[int, int] = {}
        self._new_marks: collections.deque[tuple[int, Callable[[bool], None]]] = collections.deque()
        self._marks: dict[int, Callable[[bool], None]] = {}
        self._mark_ids = itertools.count(1)
        self._whole_legs = 0
        self._heads: NDArray[np.int32] = np.empty((0, 2), np.int32)
        self._frames: Samples = np.empty((0, 0), np.int16)
        self._changing: list[tuple[int, _Member]] = []  # rows with a fade in the next tick
        self._detectors: dict[int, tuple[DtmfDetector, NDArray[np.intp], tuple[int, ...]]] = {}
        self._captures: Samples = np.empty((0, 0), np.int16)
        self._playbacks: Samples = np.empty((0, 0), np.int16)
        self._dirty = False
        self._links: dict[int, int] = {}  # who hears whose frames as they come, by ports
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
        """A source that is mixed into what the leg hears until it is over.

        Not for a leg whose `Channel` writes by itself.
        """
        self._post(lambda: self._set(port_id, lambda member: member.overlays.append(_Stream(make))))

    def tap(self, port_id: int, take: SampleSink) -> None:
        """`take` is given what the leg says, a tick at a time, until the leg leaves."""
        self._post(lambda: self._set(port_id, lambda member: member.taps.append(take)))

    def detect_digits(self, port_id: int, on_digit: Callable[[str], None] | None) -> None:
        """`on_digit` is told of DTMF heard in the leg's audio, on the media thread; None stops it."""
        self._post(lambda: self._set(port_id, lambda member: setattr(member, "on_digit", on_digit)))

    def mark(self, port_id: int, reached: Callable[[bool], None]) -> None:
        """`reached` is called once what the leg was given until the end of this tick has been sent.

        With True where it was cleared instead, or the leg is gone. On the media thread.
        """
        self._new_marks.append((port_id, reached))
        self._clock.wake()

    def levels(self, port_ids: Sequence[int]) -> list[int]:
        """How loud each was at most since this was asked last, as a sample; 0 for one that is gone."""
        ids, peaks = np.array(port_ids, np.int32), np.zeros(len(port_ids), np.int32)
        self._bank.levels(ids, peaks)
        return [int(peak) for peak in peaks]

    def rooms(self) -> dict[str, int]:
        """The rate of each room in Hz."""
        return self._rooms

    def _post(self, change: Callable[[], None]) -> None:
        self._changes.append(change)
        self._clock.wake()

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
            if isinstance(member.route, Room) and member.port_id not in self._links:
                rows_by_rate.setdefault(int(rates[row]), []).append(row)
        groups = {rate_hz: self._group(rate_hz, rows) for rate_hz, rows in rows_by_rate.items()}
        self._groups = list(groups.values())
        self._cross(groups)

        self._special = [
            (row, member)
            for row, member in enumerate(members)
            if isinstance(member.route, Source | Echo) or member.taps or member.overlays
        ]
        self._changing = [(row, member) for row, member in enumerate(members) if member.is_changing]
        fading = {row for row, _ in self._changing}
        self._muted_rows = np.array(
            [
                row
                for row, member in enumerate(members)
                if (member.muted or member.talks_to) and row not in fading
            ],
            np.intp,
        )
        self._lay_out_detectors(members, rates)

    def _place_members(self) -> tuple[list[_Member], NDArray[np.int32]]:
        """Tells the bank who is in which row and whose frames are whole; returns the rows and their rates.

        Those whose port is gone are left out.
        """
        while True:
            rate_of = self._read_rates()
            for member in [member for member in self._members.values() if not rate_of[member.port_id]]:
                self._forget(member)
            whole = self._place_whole(rate_of)
            rows = self._sort(
                [
                    member
                    for member in self._members.values()
                    if member.is_listened_to or not self._is_whole(member)
                ],
                rate_of,
            )
            # of one whose frames are whole the bank only reads a row
            ids = [-member.port_id if self._is_whole(member) else member.port_id for member in rows]
            rates = np.zeros(len(rows), np.int32)
            triples = [(port_id, listener, flags) for port_id, (listener, flags) in whole.items()]
            self._bank.layout(np.array(ids, np.int32), rates, np.array(triples, np.int32).reshape(-1))
            if self._read_rates() == {port_id: rate_of[port_id] for port_id in self._members}:
                break
        self._whole_legs = len(whole)
        for member in self._members.values():
            if self._is_whole(member) and not member.is_listened_to:
                member.said_gain, member.heard_gain = member.gains  # the fade is the bank's
        return rows, rates

    def _sort(self, members: list[_Member], rate_of: dict[int, int]) -> list[_Member]:
        """First those who are not mixed; then by rate, by the size of the room (see `MixPlan`), by room."""
        places = [
            (rate_of[member.port_id], member.route.name)
            if isinstance(member.route, Room) and member.port_id not in self._links
            else (0, "")
            for member in members
        ]
        sizes = collections.Counter(places)
        keys = [(rate_hz, sizes[rate_hz, room], room) for rate_hz, room in places]
        return [members[i] for i in sorted(range(len(members)), key=keys.__getitem__)]

    def _is_whole(self, member: _Member) -> bool:
        return member.port_id in self._links or isinstance(member.route, Channel)

    def _read_rates(self) -> dict[int, int]:
        ids = np.array(list(self._members), np.int32)
        rates = np.zeros(len(ids), np.int32)
        self._bank.rates(ids, rates)
        return dict(zip(ids.tolist(), rates.tolist(), strict=True))

    def _place_whole(self, rate_of: dict[int, int]) -> dict[int, tuple[int, int]]:
        """Whose frames are handed on whole: to which port (0: none), with which flags."""
        self._links = self._find_links(rate_of)
        self._channels = {}
        whole: dict[int, tuple[int, int]] = {}
        for member in self._members.values():
            muted = MUTED if member.muted else 0
            if isinstance(member.route, Channel):
                if member.leaving:
                    self._changes.append(functools.partial(self._leave, member))
                    continue
                delivered = DELIVERED if member.route.take is not None else 0
                pulled = PULLED if member.stream is not None else 0
                if delivered or pulled:
                    self._channels[member.port_id] = member
                whole[member.port_id] = 0, delivered | pulled | muted
            elif member.port_id in self._links:
                listener = self._members[self._links[member.port_id]]
                heard = HEARD if (member.said_gain, listener.heard_gain) == (1.0, 1.0) else 0
                whole[member.port_id] = listener.port_id, muted | heard
            elif rate_of.get(member.talks_to) == rate_of[member.port_id] and not member.leaving:
                whole[member.port_id] = member.talks_to, muted
        self._channel_rates_hz = {port_id: rate_of[port_id] for port_id in self._channels}
        longest = max(self._channel_rates_hz.values(), default=0) * _LONGEST_FRAME_MS // 1000
        if self._frames.shape != (len(self._channels), longest):
            self._frames = np.zeros((len(self._channels), longest), np.int16)
            self._heads = np.zeros((len(self._channels), 2), np.int32)
        return whole

    def _find_links(self, rate_of: dict[int, int]) -> dict[int, int]:
        """Who hears whose frames just as they come: an echo its own, two of one rate each other's."""
        links: dict[int, int] = {}
        rooms: dict[str, list[_Member]] = {}
        room_rates: dict[str, int] = {}
        for member in self._members.values():
            if isinstance(member.route, Echo) and not (member.leaving or member.overlays):
                links[member.port_id] = member.port_id
            elif isinstance(member.route, Room):
                name = member.route.name
                rooms.setdefault(name, []).append(member)
                room_rates[name] = max(room_rates.get(name, 0), rate_of[member.port_id])
        self._rooms = room_rates
        for present in rooms.values():
            if len(present) != 2 or any(member.leaving or member.overlays for member in present):
                continue
            one, other = (member.port_id for member in present)
            heard_by = present[0].talks_to or other, present[1].talks_to or one
            if len({rate_of.get(port_id) for port_id in (one, other, *heard_by)}) == 1:
                links[one], links[other] = heard_by
        return links

    def _leave(self, member: _Member) -> None:
        """Of a channel's leg, which has no fade."""
        if member.leaving and self._members.get(member.port_id) is member:
            self._settle(member)

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
        places = {name: i for i, name in enumerate(sizes)}
        return _RateGroup(span, heard, mixed, MixPlan(list(sizes.values())), places)

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
                if of.said is None:
                    of.said = np.zeros((len(of.places), of.heard.shape[1]), np.int16)
                    of.sources = np.zeros(of.said.shape, np.int32)
                key = (of_hz, to_hz)
                self._crossings.append(
                    _Crossing(
                        key,
                        rooms,
                        self._resampler_for(key, rooms, before.get(key)),
                        of,
                        index_of([of.places[name] for name in rooms]),
                        to,
                        index_of([to.places[name] for name in rooms]),
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
        _ask_for_priority()
        last = self._clock.wait(0, 100)
        while self._running:
            awaited = last + (_REST_TICKS if self._rests else 0)
            now = self._clock.wait(awaited, 100)
            if now <= awaited:  # woken, or the clock stands
                self._apply_changes()
                if now < awaited:
                    last = now
                continue
            due = now - awaited
            if due > _MAX_CATCH_UP_TICKS:
                self.skipped_ticks += due - _MAX_CATCH_UP_TICKS
                due = _MAX_CATCH_UP_TICKS
            last = now
            for _ in range(due):
                self.tick()
            self._clock.done(now)

    @property
    def _rests(self) -> bool:
        """There is no audio here, nor anything that has been asked for."""
        return not (self._rows or self._channels or self._marks or self._new_marks or self._changes)

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
        if self._marks:
            self._tell_marks()
        if self._rows or self._whole_legs:
            self._move_audio()
        while self._new_marks:
            port_id, reached = self._new_marks.popleft()
            mark_id = next(self._mark_ids)
            self._marks[mark_id] = reached
            self._bank.mark(port_id, mark_id)

    def _tell_marks(self) -> None:
        for mark in self._bank.takeMarks():
            try:
                self._marks.pop(mark.id)(mark.cleared)
            except Exception:
                log.exception("who waits for a mark has failed")

    def _move_audio(self) -> None:
        captures, playbacks = self._captures, self._playbacks
        if self._bank.read(captures):
            self._dirty = True  # a port went, or its stream changed its rate
        if self._channels:
            self._serve_channels()
        if not self._rows:
            return
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
            if group.sources is None:
                group.plan.mix(group.heard, group.mixed)
            else:
                group.plan.mix_with(group.sources, group.mixed)
            if group.mixed.base is not playbacks:
                playbacks[group.rows, : group.mixed.shape[1]] = group.mixed
        for row, member in self._special:
            try:
                self._serve(row, member)
            except Exception:
                self._failed(member)
        for row, member in changing:
            _fade(playbacks[row, : self._row_samples[row]], member.heard_gain, member.gains[1])
        self._bank.write(playbacks)
        for _, member in changing:
            self._settle(member)

    def _settle(self, member: _Member) -> None:
        """Its fade is over."""
        member.said_gain, member.heard_gain = member.gains
        self._dirty |= member.muted or member.talks_to != 0  # from now on as one of the muted rows
        if member.leaving:
            if member.next_route is None:
                self._forget(member)
            else:
                member.take(member.next_route)
            self._dirty = True

    def _carry_across(self) -> None:
        for group in self._groups:
            if group.said is not None and group.sources is not None:
                np.clip(group.plan.sum(group.heard), -32768, 32767, out=group.said, casting="unsafe")
                group.sources[:] = 0
        for crossing in self._crossings:
            assert crossing.of.said is not None
            assert crossing.to.sources is not None
            crossing.to.sources[crossing.to_rooms] += crossing.resampler.process(
                crossing.of.said[crossing.of_rooms]
            )

    def _detect(self) -> None:
        for detector, rows, _ in self._detectors.values():
            samples = self._row_samples[rows[0]]
            for channel, digit in detector.process(self._captures[rows, :samples]):
                on_digit = self._rows[rows[channel]].on_digit
                if on_digit is not None:
                    on_digit(digit)

    def _serve(self, row: int, member: _Member) -> None:
        """What a few rows need on their own: a source, taps and overlays."""
        count = self._row_samples[row]
        rate_hz = int(self._rates_hz[row])
        for tap in member.taps:
            tap(self._captures[row, :count])
        if self._is_whole(member):
            return
        played = self._playbacks[row, :count]
        if isinstance(member.route, Echo):
            played[:] = self._captures[row, :count]
        elif isinstance(member.route, Source) and member.stream is not None:
            _fill(played, member.stream.read(rate_hz, count))
        self._add_overlays(member, rate_hz, played)

    def _serve_channels(self) -> None:
        """Whole frames, leg by leg: what a channel does with one costs far more than to hand it over."""
        heads, frames = self._heads, self._frames
        for row, (port_id, count) in enumerate(heads[: self._bank.takeFrames(heads, frames)].tolist()):
            member = self._channels[port_id]
            assert isinstance(member.route, Channel)
            assert member.route.take is not None
            try:
                member.route.take(frames[row, :count], self._channel_rates_hz[port_id])
            except Exception:
                self._failed(member)
        wanted = heads[: self._bank.wantedFrames(heads)]
        for row, (port_id, count) in enumerate(wanted.tolist()):
            member, played = self._channels[port_id], frames[row, :count]
            rate_hz = self._channel_rates_hz[port_id]
            try:
                if member.stream is not None:
                    _fill(played, member.stream.read(rate_hz, count))
                else:
                    played[:] = 0
                self._add_overlays(member, rate_hz, played)
            except Exception:
                played[:] = 0
                self._failed(member)
        if len(wanted):
            self._bank.giveFrames(wanted, frames[: len(wanted)])

    def _add_overlays(self, member: _Member, rate_hz: int, played: Samples) -> None:
        if not member.overlays:
            return
        mixed = played.astype(np.int32)
        for overlay in list(member.overlays):
            samples = overlay.read(rate_hz, played.size)
            mixed[: samples.size] += samples
            if samples.size < played.size:
                member.overlays.remove(overlay)
                self._dirty = True
        played[:] = np.clip(mixed, -32768, 32767)

    def _failed(self, member: _Member) -> None:
        log.exception("what the leg of port %d hears, or is heard by, has failed", member.port_id)
        member.give_up()
        self._dirty = True


def _ask_for_priority() -> None:
    """Just below the native clock, which waits for this thread; where the system allows it."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(_PRIORITY))


def _fill(out: Samples, samples: Samples) -> None:
    if samples.size == out.size:
        out[:] = samples
        return
    out[: samples.size] = samples
    out[samples.size :] = 0


def _fade(samples: Samples, start: float, end: float) -> None:
    if start == end == 1.0:
        return
    gains = np.full(samples.size, min(start, end), np.float32)
    size = round(_FADE_SHARE * samples.size)
    place = slice(None, size) if end < start else slice(-size, None)
    gains[place] = np.linspace(start, end, size)
    samples[:] = samples * gains
