# SPDX-License-Identifier: GPL-3.0-or-later
"""All calls of the process: who is in, what they are paired with, and how they are told to go."""

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sipbridge.bridge import Bridge, CallPlan
from sipbridge.config import Config
from sipbridge.errors import CallError, ConfigError, EndKind, EndReason, MediaError, Party, RtcError
from sipbridge.events import CallEvent, Direction
from sipbridge.keys import parse_digits
from sipbridge.leg import Leg, LegState, LegStats
from sipbridge.log import get_logger, log_event
from sipbridge.media.loop import MediaLoop
from sipbridge.media.quality import level_dbfs
from sipbridge.media.remote import RemotePorts
from sipbridge.media.tones import Clip, dtmf_samples
from sipbridge.media.wav import WavRecorder, WavSource, open_wav
from sipbridge.routing import SipUri, Target, accepts_number, fill, match_rule, plan_dial
from sipbridge.rtc.base import ParticipantWish, RtcContext
from sipbridge.rtc.local import LocalRooms
from sipbridge.rtc.registry import make_connection
from sipbridge.rtc.websocket.member import ProgramMember
from sipbridge.rtc.websocket.pbx import PbxServer, StreamLeg
from sipbridge.sip import CallLeg, SipEndpoint

if TYPE_CHECKING:
    from sipbridge.rtc.webrtc.rooms import Browsers

KEEP_ENDED_S = 60.0  # an ended call can be asked about for so long
_EVENT_BACKLOG = 1000  # of one slow subscriber; then the oldest are dropped


@dataclass(frozen=True, slots=True, kw_only=True)
class DialRequest:
    """A call to be made."""

    to: str  # a sip: URI, or a number when a trunk is given
    target: str = "silence:"
    trunk: str = ""
    from_: str = ""  # who it is from: a number, a user, or a sip: URI
    headers: Mapping[str, str] = field(default_factory=dict)
    play: str = ""  # a sound file that the callee hears once it has answered
    record: str = ""  # where what the callee says is written, as WAV
    dtmf: str = ""  # keys pressed after the answer; w is half a second
    ring_s: float = 60.0
    max_duration_s: float = 0.0  # hang up so long after the answer; 0: never
    participant: ParticipantWish = field(default_factory=ParticipantWish)  # in a channel that has such


@dataclass(frozen=True, slots=True, kw_only=True)
class CallView:
    """A call as it stands at one moment."""

    id: str
    direction: Direction
    from_: str
    to: str
    trunk: str
    rule: str
    target: str
    state: Literal["new", "ringing", "early", "active", "held", "ended"]
    codec: str
    seconds: float  # since the answer
    capture_level_dbfs: float  # what the telephone says, its peak since the last look
    playback_level_dbfs: float  # what it hears
    capture_ms: float
    mix_ms: float
    playback_ms: float
    delay_ms: float
    loss_percent: float
    jitter_ms: float
    end: EndReason | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoomView:
    """A room of this process."""

    name: str
    rate_hz: int
    members: tuple[str, ...]  # the ids of calls, and the names of programs and browsers


class CallRegistry:
    """Every call, by its id. Event loop."""

    def __init__(self, config: Config, endpoint: SipEndpoint, media: MediaLoop, remotes: RemotePorts) -> None:
        self.config = config
        self.endpoint = endpoint
        self.draining = False
        endpoint.play_inband = self.play_inband
        self._rooms = LocalRooms()
        self._media = media
        self._context = RtcContext(config, media, self._rooms, remotes)
        self._bridges: dict[str, Bridge] = {}
        self._ended: dict[str, CallView] = {}
        self._subscribers: set[asyncio.Queue[CallEvent]] = set()
        self._browsers: Browsers | None = None  # from the first one on
        self._idle = asyncio.Event()
        self._idle.set()
        self._tasks: set[asyncio.Task[None]] = set()

    # --- calls that come

    def on_incoming(self, leg: CallLeg) -> None:
        """A call that the gate let in."""
        refusal: EndReason | None = None
        if leg.trunk is not None and not accepts_number(leg.trunk, leg.callee):
            detail = f"trunk {leg.trunk.name} does not serve {leg.callee!r}"
            refusal = EndReason(EndKind.NOT_FOUND, detail)
        self._pair(leg, leg.trunk.name if leg.trunk is not None else "", refusal)

    def on_stream(self, leg: StreamLeg) -> None:
        """A call that a PBX hands over without SIP, so without its gate."""
        refusal: EndReason | None = None
        of_pbx = sum(bridge.plan.trunk == leg.pbx.name for bridge in self._bridges.values())
        if self.draining:
            refusal = EndReason(EndKind.SHUTDOWN, "the server is going down")
        for count, limit in ((len(self._bridges), self.config.sip.max_calls), (of_pbx, leg.pbx.max_calls)):
            if refusal is None and limit is not None and count >= limit:
                refusal = EndReason(EndKind.OVERLOAD, f"{limit} calls are up: that is the limit")
        self._pair(leg, leg.pbx.name, refusal)

    def make_pbx_servers(self) -> Sequence[PbxServer]:
        """One for each [[pbx]], not started."""
        return [PbxServer(pbx, self._context, self.on_stream) for pbx in self.config.pbx]

    def _pair(self, leg: Leg, trunk: str, refusal: EndReason | None) -> None:
        """Finds the rule of a call and its target; without them, or with a refusal, it ends."""
        rule = match_rule(self.config, trunk, leg.caller, leg.callee)
        target = ""
        if refusal is None and rule is None:
            refusal = EndReason(EndKind.NOT_FOUND, f"no rule for {leg.callee!r}")
        elif refusal is None and rule is not None:
            fields = {"caller": leg.caller, "callee": leg.callee, "call_id": leg.id}
            try:
                target = fill(rule.target, fields, leg.headers)
            except CallError as error:
                refusal = error.reason
        plan = CallPlan(
            call_id=leg.id,
            target=target,
            direction="inbound",
            from_=leg.caller,
            to=leg.callee,
            trunk=trunk,
            rule=rule.name if rule is not None else "",
            max_duration_s=rule.max_duration_s if rule is not None else 0,
            hangup_when_alone=rule is not None and rule.hangup_when_alone,
            alone_grace_s=rule.alone_grace_s if rule is not None else 0.0,
        )
        bridge = self._bridge(plan)
        if refusal is not None or rule is None:
            bridge.refuse(leg, refusal or EndReason(EndKind.NOT_FOUND, "no rule"))
        else:
            bridge.accept(leg, ring_s=rule.ring_s, early_media=rule.early_media, pin=rule.pin)

    # --- calls that are made

    async def dial(self, request: DialRequest) -> str:
        """Starts a call and returns its id; how it goes is told by events and `get`.

        ConfigError: the trunk, the number, the target or a file cannot be used.
        """
        if self.draining:
            raise CallError(EndReason(EndKind.SHUTDOWN, "the server is going down"))
        try:
            plan = plan_dial(self.config, request.to, request.trunk or None)
            caller = self._caller(request.from_)
            target = Target.parse(request.target or "silence:")
            make_connection(target, self._context)
            list(parse_digits(request.dtmf))
            if request.play:
                await asyncio.to_thread(WavSource, Path(request.play), 8000)
        except (ValueError, RtcError, MediaError) as error:
            raise ConfigError(str(error)) from error
        if request.record and not Path(request.record).parent.is_dir():
            raise ConfigError(f"{request.record}: there is no such folder")
        call_id = uuid.uuid4().hex[:12]
        call = CallPlan(
            call_id=call_id,
            target=str(target),
            direction="outbound",
            from_=caller.party if caller is not None else "",
            to=plan.callee,
            trunk=plan.trunk.name if plan.trunk is not None else "",
            max_duration_s=request.max_duration_s,
            participant=request.participant,
        )
        bridge = self._bridge(call)
        bridge.on_answered = lambda: self._answered(bridge, request)

        async def start() -> None:
            try:
                leg = await self.endpoint.dial(call_id, plan, caller=caller, headers=request.headers)
            except CallError as error:
                bridge.failed(error.reason)
            except Exception as error:
                bridge.log.exception("a fault while dialling")
                bridge.failed(EndReason(EndKind.ERROR, f"internal error: {error}"))
            else:
                bridge.follow(leg, request.ring_s)

        self._spawn(start())
        return call_id

    @staticmethod
    def _caller(text: str) -> SipUri | None:
        if not text:
            return None
        return SipUri.parse(text if ":" in text else f"sip:{text}@localhost")

    async def _answered(self, bridge: Bridge, request: DialRequest) -> None:
        """What a dialled call does by itself once it is answered."""
        if bridge.leg is None:
            return
        port_id, rate_hz = bridge.leg.port.port_id, int(bridge.leg.port.rateHz())
        if request.record:
            recorder = WavRecorder(Path(request.record), rate_hz)
            self._media.tap(port_id, recorder.write)
            self._spawn(self._close_recorder(bridge, recorder))
        if request.play:
            play = await asyncio.to_thread(open_wav, Path(request.play), rate_hz)
            self._media.overlay(port_id, play)
        await bridge.send_digits(request.dtmf)

    async def _close_recorder(self, bridge: Bridge, recorder: WavRecorder) -> None:
        await bridge.over.wait()
        await asyncio.to_thread(recorder.close)
        if recorder.truncated:
            get_logger(__name__, call_id=bridge.id).warning(
                "the recording is truncated: the disk did not take it"
            )

    def play_inband(self, leg: CallLeg, digit: str) -> None:
        """A key as a tone in what the telephone hears. SIP thread."""
        self._media.overlay(leg.port.port_id, lambda rate_hz: Clip(dtmf_samples(digit, rate_hz)))

    # --- control

    async def list(self) -> Sequence[CallView]:
        """The calls that live, oldest first."""
        return [await self._view(bridge) for bridge in list(self._bridges.values())]

    async def get(self, call_id: str) -> CallView:
        """One call, also for a minute after its end. LookupError when there is none."""
        if call_id in self._ended:
            return self._ended[call_id]
        return await self._view(self._find(call_id))

    async def hangup(self, call_id: str) -> None:
        """Ends a call. LookupError when there is none."""
        bridge = self._find(call_id)
        kind = EndKind.HANGUP if bridge.answered.is_set() else EndKind.CANCELLED
        bridge.hangup(EndReason(kind, "hung up by the operator", Party.OPERATOR))

    async def rebridge(self, call_id: str, target: str) -> None:
        """Takes a call to another channel. LookupError; ValueError: not now; RtcError: it stays there."""
        await self._find(call_id).rebridge(target)

    async def send_dtmf(self, call_id: str, digits: str) -> None:
        """Presses keys to the telephone. LookupError; ValueError for what is no key."""
        bridge = self._find(call_id)
        list(parse_digits(digits))
        await bridge.send_digits(digits)

    async def transfer(self, call_id: str, to: str) -> None:
        """Sends the telephone elsewhere and returns once it is there. LookupError; CallError: it is not."""
        await self._find(call_id).transfer(to, Party.OPERATOR)

    async def hold(self, call_id: str, held: bool) -> None:
        """Puts the telephone on hold, or takes it back. LookupError; CallError."""
        await self._find(call_id).hold(held)

    def find_participant(self, target: str, identity: str) -> str:
        """The id of the call that goes by `identity` in the channel `target`. LookupError."""
        for bridge in self._bridges.values():
            if bridge.target == target and bridge.identity == identity:
                return bridge.id
        raise LookupError(f"there is no call {identity!r} in {target}")

    def rooms(self) -> Sequence[RoomView]:
        """The local rooms and who is in them."""
        rates = self._media.rooms()
        return [
            RoomView(name=name, rate_hz=rates.get(name, 0), members=members)
            for name, members in self._rooms.members().items()
        ]

    def make_program(self, room: str, *, name: str, protocol: str, rate_hz: int) -> ProgramMember:
        """A program that is to join a room. ValueError, LookupError, ImportError: it cannot."""
        return ProgramMember(self._context, room, name=name, protocol=protocol, rate_hz=rate_hz)

    async def join_browser(self, room: str, name: str, offer: str) -> tuple[str, str]:
        """Lets a browser into a room by its SDP; returns its id and the answer.

        ValueError, CallError, RtcError: it cannot.
        """
        if self.draining:
            raise CallError(EndReason(EndKind.SHUTDOWN, "the server is going down"))
        if self._browsers is None:
            # the library behind it is loaded by the first browser
            from sipbridge.rtc.webrtc.rooms import Browsers

            self._browsers = Browsers(self._context)
        return await self._browsers.join(room, name, offer)

    async def leave_browser(self, room: str, browser_id: str) -> None:
        """Ends one. LookupError when it is not in the room."""
        if self._browsers is None:
            raise LookupError(f"there is no {browser_id!r} in the room {room!r}")
        await self._browsers.leave(room, browser_id)

    async def health(self) -> dict[str, int | float | bool]:
        """Counts of what exists; all of them are back to their start when no call is left."""
        return {
            "draining": self.draining,
            "active_calls": len(self._bridges),
            "skipped_ticks": self._media.skipped_ticks,
            **self.endpoint.counters(),
        }

    @asynccontextmanager
    async def events(self) -> "AsyncIterator[AsyncIterator[CallEvent]]":
        """What happens in all calls from now on."""
        queue: asyncio.Queue[CallEvent] = asyncio.Queue()
        self._subscribers.add(queue)

        async def each() -> AsyncIterator[CallEvent]:
            while True:
                yield await queue.get()

        try:
            yield each()
        finally:
            self._subscribers.discard(queue)

    async def drain(self, timeout_s: float) -> None:
        """Lets no new call in and returns when the last one has ended, or the time is up."""
        self.draining = True
        self.endpoint.set_draining(True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()

    async def end_all(self) -> None:
        """Hangs up whoever is left."""
        if self._browsers is not None:
            await self._browsers.close()
        bridges = list(self._bridges.values())
        for bridge in bridges:
            bridge.hangup(EndReason(EndKind.SHUTDOWN, "the server stops"))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2):
                await asyncio.gather(*(bridge.over.wait() for bridge in bridges))

    # --- inside

    def _find(self, call_id: str) -> Bridge:
        bridge = self._bridges.get(call_id)
        if bridge is None:
            raise LookupError(f"there is no call {call_id}")
        return bridge

    def _bridge(self, plan: CallPlan) -> Bridge:
        bridge = Bridge(self._context, plan, emit=self._emit, ended=self._over)
        self._bridges[plan.call_id] = bridge
        self._idle.clear()
        return bridge

    def _over(self, bridge: Bridge) -> None:
        self._bridges.pop(bridge.id, None)
        if not self._bridges:
            self._idle.set()
        self._ended[bridge.id] = _make_view(bridge, bridge.last_stats)
        asyncio.get_running_loop().call_later(KEEP_ENDED_S, self._ended.pop, bridge.id, None)

    def _emit(self, event: CallEvent) -> None:
        for queue in self._subscribers:
            if queue.qsize() >= _EVENT_BACKLOG:
                queue.get_nowait()
            queue.put_nowait(event)
        log_event(event)

    async def _view(self, bridge: Bridge) -> CallView:
        leg = bridge.leg
        over = bridge.over.is_set()
        stats = bridge.last_stats if leg is None or over else await leg.stats()
        return _make_view(bridge, stats)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _make_view(bridge: Bridge, stats: LegStats) -> CallView:
    leg = bridge.leg
    seconds = bridge.duration_s
    if leg is not None and leg.answered_at is not None and not bridge.over.is_set():
        seconds = time.monotonic() - leg.answered_at
    over = bridge.over.is_set()
    return CallView(
        id=bridge.id,
        direction=bridge.plan.direction,
        from_=bridge.plan.from_,
        to=bridge.plan.to,
        trunk=bridge.plan.trunk,
        rule=bridge.plan.rule,
        target=bridge.target,
        state=LegState.ENDED.value if over else leg.state.value if leg is not None else LegState.NEW.value,
        codec=stats.codec,
        seconds=round(seconds, 3),
        capture_level_dbfs=round(level_dbfs(stats.capture_peak), 1),
        playback_level_dbfs=round(level_dbfs(stats.playback_peak), 1),
        capture_ms=round(stats.capture_ms, 1),
        mix_ms=round(stats.mix_ms, 1),
        playback_ms=round(stats.playback_ms, 1),
        delay_ms=round(stats.delay_ms, 1),
        loss_percent=round(stats.loss_percent, 2),
        jitter_ms=round(stats.jitter_ms, 1),
        end=bridge.end,
    )
