# SPDX-License-Identifier: GPL-3.0-or-later
"""One telephone, one channel, and what happens between them.

::

                     sip/                     |                        rtc/
                                              |
    telephone ──RTP──► stream ──► capture ────┼──► media loop ──────────► channel
                                  queue       |    (resample, mix-minus,
                                              |     or a sink's frames)
    telephone ◄──RTP── stream ◄── playback ◄──┼─── media loop ◄────────── channel
                                  jitter      |    (resample, sources,
                                  queue       |     overlays)
                                              |
    keys, hold, hang-up ──────────► Leg ◄───► Bridge ◄───► RtcConnection ◄── keys, messages, leaving

The audio never passes through this file: a `Bridge` only says which leg hears what. It lives on the event
loop, from the first sign of a call to its one `CallEnded`.
"""

import asyncio
import contextlib
import dataclasses
import math
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, cast

from sipbridge.config import PinConfig
from sipbridge.errors import CallError, EndKind, EndReason, MediaError, Party, RtcError
from sipbridge.events import (
    CallAnswered,
    CallBridged,
    CallBridgeFailed,
    CallChannel,
    CallDtmf,
    CallEnded,
    CallEvent,
    CallHeld,
    CallMessage,
    CallResumed,
    CallRinging,
    CallStarted,
    CallUnbridged,
    Direction,
    DtmfMethod,
)
from sipbridge.keys import KEYS
from sipbridge.leg import NO_HEADERS, Leg, LegState, LegStats
from sipbridge.log import get_logger
from sipbridge.media.loop import MakeSource, MediaLoop, Route
from sipbridge.media.quality import estimate_mos
from sipbridge.pin import PinDesk
from sipbridge.routing import Target
from sipbridge.rtc.base import (
    CallStatus,
    JoinRequest,
    ParticipantWish,
    RtcConnection,
    RtcContext,
    Samples,
)
from sipbridge.rtc.registry import joins_early, make_connection


class LegPlayback:
    """The playback side of a leg as a backend sees it."""

    def __init__(self, leg: Leg, media: MediaLoop) -> None:
        self._leg = leg
        self._media = media

    @property
    def port_id(self) -> int:
        return self._leg.port.port_id

    @property
    def sample_rate_hz(self) -> int:
        return int(self._leg.port.rateHz())

    @property
    def is_live(self) -> bool:
        return bool(self._leg.codec)

    def write(self, samples: Samples) -> None:
        self._leg.port.write(samples)

    def clear(self) -> None:
        self._leg.port.clear()

    def mark(self, reached: Callable[[bool], None]) -> None:
        self._media.mark(self.port_id, reached)


class _Seat:
    """The media loop as one channel of a call sees it: the leg is the channel's own only while it is current.

    So a call can join its next channel before it leaves the one that it has.
    """

    def __init__(self, media: MediaLoop, port_id: int) -> None:
        self._media = media
        self._port_id = port_id
        self._route: Route | None = None  # of the leg, as the channel wants it
        self._is_current = False

    def take(self) -> None:
        """The leg is this channel's from now on."""
        self._is_current = True
        if self._route is not None:
            self._media.attach(self._port_id, self._route)

    def leave(self) -> None:
        """Another channel has it."""
        self._is_current = False

    def attach(self, port_id: int, route: Route) -> None:
        if port_id == self._port_id:
            self._route = route
        if port_id != self._port_id or self._is_current:
            self._media.attach(port_id, route)

    def detach(self, port_id: int, done: Callable[[], None] | None = None) -> None:
        if port_id != self._port_id or self._is_current:
            self._media.detach(port_id, done)
        elif done is not None:
            done()

    def overlay(self, port_id: int, make: MakeSource) -> None:
        if port_id != self._port_id or self._is_current:
            self._media.overlay(port_id, make)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._media, name)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CallPlan:
    """Who calls whom, where it is to go, and how it is treated."""

    call_id: str
    direction: Direction
    from_: str
    to: str
    trunk: str
    target: str
    rule: str = ""
    max_duration_s: float = 0.0  # after the answer; 0: for ever
    hangup_when_alone: bool = False
    alone_grace_s: float = 0.0
    participant: ParticipantWish = dataclasses.field(default_factory=ParticipantWish)


class Bridge:
    """A call: its leg, its channel, and the reason of its end. Event loop."""

    def __init__(
        self,
        context: RtcContext,
        plan: CallPlan,
        *,
        emit: Callable[[CallEvent], None],
        ended: Callable[["Bridge"], None],
    ) -> None:
        self.id = plan.call_id
        self.plan = plan
        self.target = plan.target  # the one that it has, or is to have
        self.leg: Leg | None = None  # until a call that is made has found whom to dial
        self.end: EndReason | None = None
        self.duration_s = 0.0  # from the answer to the end
        self.last_stats = LegStats()
        self.log = get_logger(__name__, call_id=plan.call_id)
        self.on_answered: Callable[[], Awaitable[None]] | None = None  # of a dialled call, once it has joined
        self.answered = asyncio.Event()  # or ended
        self.over = asyncio.Event()
        self._context = context
        self._alone: asyncio.TimerHandle | None = None  # while nobody else is there
        self._emit = emit
        self._ended = ended
        self._connection: RtcConnection | None = None
        self._seat: _Seat | None = None  # its
        self._desk: PinDesk | None = None  # while the caller is asked for a PIN
        self._bridged_at: float | None = None  # time.monotonic(), once it has joined
        self._joining = asyncio.Lock()
        self._pressing = asyncio.Lock()
        self._held = False
        self._rung = False  # a caller has heard it
        self._timers: list[asyncio.TimerHandle] = []
        self._tasks: set[asyncio.Task[None]] = set()
        emit(
            CallStarted(
                call_id=plan.call_id,
                direction=plan.direction,
                from_=plan.from_,
                to=plan.to,
                trunk=plan.trunk,
                rule=plan.rule,
                target=plan.target,
            )
        )

    # --- the two ways in

    def accept(self, leg: Leg, *, ring_s: float, early_media: bool, pin: PinConfig | None = None) -> None:
        """A call that came: it is joined to its channel, then answered (or heard before, by early media).

        One that has to know a PIN is answered, asked, and joined then.
        """
        self._adopt(leg)
        if early_media:
            leg.progress()
        elif ring_s > 0:
            leg.ring()
        self._rung = early_media or ring_s > 0
        if self._rung:
            self._emit(CallRinging(call_id=self.id))
        self._spawn(self._accept(ring_s, early_media, pin))

    def refuse(self, leg: Leg, reason: EndReason) -> None:
        """A call that came and finds no channel."""
        self._adopt(leg)
        self.hangup(reason)

    async def _accept(self, ring_s: float, early_media: bool, pin: PinConfig | None) -> None:
        if early_media:
            await self._join()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ring_s):
                await self.over.wait()
        if pin is not None:
            await self._ask(pin)
        await self._join()
        if self.end is None and self.leg is not None and not self.answered.is_set():
            self.leg.answer(self._headers())

    async def _ask(self, pin: PinConfig) -> None:
        """Answers, and ends the call unless the caller knows the number."""
        leg = self.leg
        if leg is None or self.end is not None:
            return
        self._rung = True  # and it does not ring again
        leg.answer(self._headers())
        await self.answered.wait()
        if self.over.is_set():
            return
        self._desk = PinDesk(pin, self._context.media, leg.port, self.id)
        self._spawn(self._follow_media(leg))
        is_let_in = await self._desk.ask()
        self._desk = None
        if not is_let_in:
            self.hangup(EndReason(EndKind.FORBIDDEN, "the caller does not know the PIN", Party.BRIDGE))

    def follow(self, leg: Leg, ring_s: float) -> None:
        """A call that we dial: it is joined to its channel as soon as it has audio, or before."""
        self._adopt(leg)
        if self.end is not None:
            leg.hangup(self.end)
        elif joins_early(Target.parse(self.target).scheme):
            self._spawn(self._join())
        self._after(ring_s, self._ring_timeout)

    def _ring_timeout(self) -> None:
        if not self.answered.is_set():
            self.hangup(EndReason(EndKind.NO_ANSWER, "not answered in time", Party.BRIDGE, 408))

    def failed(self, reason: EndReason) -> None:
        """A call that never had a leg: nobody could be dialled."""
        self._finish(self.end or reason, LegStats())

    def _adopt(self, leg: Leg) -> None:
        self.leg = leg
        leg.listener = self

    @property
    def identity(self) -> str:
        """What the call goes by in its channel."""
        return self._connection.identity if self._connection is not None else ""

    # --- control

    def hangup(self, reason: EndReason) -> None:
        """Ends the call; its end is told once the leg is gone."""
        if self.end is None:
            self.end = reason
            if self.leg is not None:
                self.leg.hangup(reason, self._headers())

    async def send_digits(self, digits: str) -> None:
        """Presses keys to the telephone, after those still being pressed; ValueError for what is none."""
        async with self._pressing:
            if self.leg is not None and not self.over.is_set():
                await self.leg.send_digits(digits)

    def _headers(self) -> Mapping[str, str]:
        """What the channel says of the call in our answer and our BYE."""
        return self._connection.headers() if self._connection is not None else NO_HEADERS

    async def transfer(self, to: str, by: Party = Party.CHANNEL) -> None:
        """Sends the telephone elsewhere; see `Leg.transfer`."""
        leg = self.leg
        if leg is None or leg.answered_at is None or self.end is not None:
            detail = "only a call that is up can be transferred"
            raise CallError(EndReason(EndKind.NOT_ACCEPTABLE, detail))
        self.log.info("transferring", to=to)
        await leg.transfer(to)
        self.hangup(EndReason(EndKind.TRANSFERRED, f"transferred to {to}", by))

    async def hold(self, held: bool) -> None:
        """Silence both ways, or an end of it; see `Leg.hold`."""
        leg = self.leg
        if leg is None or leg.answered_at is None or self.end is not None:
            raise CallError(EndReason(EndKind.NOT_ACCEPTABLE, "only a call that is up can be held"))
        await leg.hold(held)

    # --- the channel

    async def _join(self) -> None:
        """Joins the channel, if that has not been done; returns when it is joined or the call ends."""
        async with self._joining:
            leg = self.leg
            if leg is None or self._connection is not None or self.end is not None:
                return
            seat = _Seat(self._context.media, leg.port.port_id)
            seat.take()
            try:
                connection = self._make_connection(self.target, seat)
                self._connection, self._seat = connection, seat
                join = self._join_request(leg)
                connection.expect(join)
                if connection.rings and self.plan.direction == "inbound" and not self._rung:
                    self._rung = True
                    leg.ring()
                    self._emit(CallRinging(call_id=self.id))
                async with asyncio.timeout(connection.join_s):
                    await connection.connect(join, LegPlayback(leg, self._context.media), self)
            except RtcError as error:
                self._join_failed(error.reason)
            except TimeoutError:
                detail = f"{self.target} was not joined within {connection.join_s:.0f} s"
                self._join_failed(EndReason(EndKind.CHANNEL_FAILED, detail))
            if self.end is None:
                self._bridged(self.target)
                self._spawn(self._follow_media(leg))
            elif self._connection is not None:
                await self._connection.close(self.end)

    def _join_failed(self, reason: EndReason) -> None:
        if self.end is None:
            self._emit(CallBridgeFailed(call_id=self.id, target=self.target, reason=reason))
        self.hangup(reason)

    def _make_connection(self, target: str, seat: _Seat) -> RtcConnection:
        context = dataclasses.replace(self._context, media=cast(MediaLoop, seat))
        return make_connection(Target.parse(target), context)

    def _join_request(self, leg: Leg) -> JoinRequest:
        return JoinRequest(
            call_id=self.id,
            direction=self.plan.direction,
            caller=self.plan.from_,
            callee=self.plan.to,
            trunk=self.plan.trunk,
            rule=self.plan.rule,
            headers=leg.headers,
            participant=self.plan.participant,
        )

    def _bridged(self, target: str) -> None:
        self.target = target
        self._bridged_at = time.monotonic()
        self._emit(CallBridged(call_id=self.id, target=target))

    def _unbridged(self, reason: EndReason) -> None:
        if self._bridged_at is not None:
            seconds = round(time.monotonic() - self._bridged_at, 3)
            self._bridged_at = None
            self._emit(CallUnbridged(call_id=self.id, target=self.target, seconds=seconds, reason=reason))

    async def rebridge(self, target: str) -> None:
        """Joins another channel, and leaves the one that it has once that is done; the telephone stays up.

        RtcError: that failed, and the call is where it was. ValueError: it is in no channel, or has ended.
        """
        async with self._joining:
            leg, old = self.leg, self._connection
            if leg is None or old is None or self._seat is None or self.end is not None:
                raise ValueError("the call is in no channel")
            seat = _Seat(self._context.media, leg.port.port_id)
            new: RtcConnection | None = None
            try:
                new = self._make_connection(target, seat)
                join = self._join_request(leg)
                new.expect(join)
                async with asyncio.timeout(new.join_s):
                    await new.connect(join, LegPlayback(leg, self._context.media), self)
                if self.end is not None:
                    raise RtcError(self.end)
            except (RtcError, TimeoutError) as error:
                late = EndReason(EndKind.CHANNEL_FAILED, f"{target} was not joined in time")
                reason = error.reason if isinstance(error, RtcError) else late
                if new is not None:
                    await new.close(reason)
                self._emit(CallBridgeFailed(call_id=self.id, target=target, reason=reason))
                raise RtcError(reason) from error
            self._seat.leave()
            seat.take()
            self._connection, self._seat = new, seat
            reason = EndReason(EndKind.HANGUP, f"on to {target}", Party.OPERATOR)
            await old.close(reason)
            self._unbridged(reason)
            self._bridged(target)
            self._tell_channel(self._status())

    def participant_joined(self, identity: str) -> None:
        self.log.debug("in the channel", identity=identity)
        if self._alone is not None:
            self._alone.cancel()
            self._alone = None

    def participant_left(self, identity: str, remaining: int) -> None:
        if remaining or not self.plan.hangup_when_alone:
            return
        if self.plan.alone_grace_s == 0:
            self._end_alone()
        elif self._alone is None:
            self._alone = self._after(self.plan.alone_grace_s, self._end_alone)

    def _end_alone(self) -> None:
        self.hangup(EndReason(EndKind.ALONE, f"everybody else has left {self.target}", Party.CHANNEL))

    def dtmf(self, digit: str) -> None:
        if digit not in KEYS:
            self.log.warning("the channel asks for a key that is none", digit=digit)
            return
        self._emit(
            CallDtmf(call_id=self.id, digit=digit, duration_ms=0, method="rfc4733", party=Party.CHANNEL)
        )
        self._spawn(self.send_digits(digit))

    def message(self, topic: str, text: str) -> None:
        self._emit(CallMessage(call_id=self.id, topic=topic, text=text))

    def noticed(self, kind: str, identity: str, data: Mapping[str, Any]) -> None:
        self._emit(CallChannel(call_id=self.id, kind=kind, identity=identity, data=data))

    def hangup_requested(self, reason: EndReason) -> None:
        self.hangup(reason)

    def closed(self, reason: EndReason) -> None:
        self.hangup(reason)

    # --- the leg

    def _status(self) -> CallStatus:
        if self._held:
            return "held"
        return "active" if self.answered.is_set() else "ringing"

    def _tell_channel(self, status: CallStatus) -> None:
        if self._connection is not None:
            self._connection.call_changed(status)

    def leg_ringing(self, early_media: bool) -> None:
        self._emit(CallRinging(call_id=self.id))
        self._tell_channel("ringing")
        if early_media:
            self._spawn(self._join())

    def leg_answered(self) -> None:
        self._emit(CallAnswered(call_id=self.id, codec=self.leg.codec if self.leg is not None else ""))
        if self.plan.max_duration_s > 0:
            self._after(self.plan.max_duration_s, self._too_long)
        self.answered.set()
        self._tell_channel("active")
        if self.plan.direction == "outbound":
            self._spawn(self._start_talking())

    async def _start_talking(self) -> None:
        await self._join()
        if self.on_answered is not None and self.end is None:
            await self.on_answered()

    def _too_long(self) -> None:
        self.hangup(EndReason(EndKind.MAX_DURATION, f"the call has lasted {self.plan.max_duration_s:.3g} s"))

    def leg_media(self) -> None:
        leg = self.leg
        if leg is None:
            return
        held = leg.state is LegState.HELD
        if held != self._held:
            self._held = held
            self._emit(CallHeld(call_id=self.id) if held else CallResumed(call_id=self.id))
        self._tell_channel(self._status())
        self._spawn(self._follow_media(leg))

    async def _follow_media(self, leg: Leg) -> None:
        """Tells the media loop what was agreed on; it takes no notice before the channel is joined."""
        # what a PBX plays to a held line is not for the channel
        self._context.media.mute(leg.port.port_id, self._held)
        self._context.media.detect_digits(leg.port.port_id, await leg.inband_keys())

    def leg_digit(self, digit: str, duration_ms: int, method: DtmfMethod) -> None:
        if self._desk is not None:
            self._desk.press(digit)  # and nobody else is told
            return
        party = Party.CALLER if self.plan.direction == "inbound" else Party.CALLEE
        self._emit(
            CallDtmf(call_id=self.id, digit=digit, duration_ms=duration_ms, method=method, party=party)
        )
        if self._connection is not None and method != "inband":  # in band the channel hears it anyway
            self._spawn(self._connection.send_dtmf(digit, duration_ms))

    def leg_ended(self, reason: EndReason, stats: LegStats) -> None:
        self._finish(self.end or reason, stats)

    def _finish(self, reason: EndReason, stats: LegStats) -> None:
        self.end = reason
        self.last_stats = stats
        for timer in self._timers:
            timer.cancel()
        leg = self.leg
        if leg is not None and leg.answered_at is not None:
            self.duration_s = time.monotonic() - leg.answered_at
        if self._desk is not None:
            self._desk.stop()
        self._unbridged(reason)
        mos = None
        if stats.received_packets:
            mos = estimate_mos(stats.codec, stats.loss_percent, stats.round_trip_ms / 2 + stats.delay_ms)
        self._emit(
            CallEnded(
                call_id=self.id,
                reason=reason,
                direction=self.plan.direction,
                from_=self.plan.from_,
                to=self.plan.to,
                trunk=self.plan.trunk,
                rule=self.plan.rule,
                target=self.target,
                duration_s=round(self.duration_s, 3),
                billed_s=math.ceil(self.duration_s),
                codec=stats.codec,
                loss_percent=round(stats.loss_percent, 2),
                jitter_ms=round(stats.jitter_ms, 1),
                capture_ms=round(stats.capture_ms, 1),
                mix_ms=round(stats.mix_ms, 1),
                playback_ms=round(stats.playback_ms, 1),
                delay_ms=round(stats.delay_ms, 1),
                mos=round(mos, 2) if mos is not None else None,
            )
        )
        if self._connection is not None:
            self._spawn(self._connection.close(reason))
        self.answered.set()
        self.over.set()
        self._ended(self)
        self.leg = None  # its audio buffers are freed now, and not when the garbage is collected

    # --- small things

    def _after(self, delay_s: float, work: Callable[[], None]) -> asyncio.TimerHandle:
        timer = asyncio.get_running_loop().call_later(delay_s, work)
        self._timers.append(timer)
        return timer

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(self._guard(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guard(self, work: Coroutine[Any, Any, None]) -> None:
        """A fault of ours ends this call, with a reason, and no other."""
        try:
            await work
        except CallError as error:
            self.hangup(error.reason)
        except MediaError as error:
            self.hangup(EndReason(EndKind.ERROR, str(error)))
        except Exception as error:
            self.log.exception("a fault in the handling of this call")
            self.hangup(EndReason(EndKind.ERROR, f"internal error: {error}"))
