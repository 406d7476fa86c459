# SPDX-License-Identifier: GPL-3.0-or-later
"""`livekit:ROOM`: a call in a room, over however many memberships.

::

             connect()                       the server ends it: removed, room deleted, identity taken …
    new ─────────────────► joined ────────────────────────────────────────────────────────► closed
                            ▲ │ signalling or media is lost, or the server asks for it        ▲
                            │ ▼                                                               │
                          rejoining ── for `reconnect_s`; the telephone stays up meanwhile ───┘ in vain

The audio has a private room of the media loop: the telephone, which hears all others, and a port for each
track of somebody else. What the telephone says goes to the port of our own track alone::

    telephone ──► [our track's port] ──RTP──► LiveKit
    telephone ◄── mix ◄── [port of a track] ◄──RTP── LiveKit
                     ◄── [port of a track] ◄──RTP──

With one track and one rate everything is handed on natively. Everything here lives on the event loop.
"""

import asyncio
import dataclasses
import json
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from sipbridge.config import LiveKitOptions
from sipbridge.errors import CallError, EndKind, EndReason, MediaError, Party, RtcError
from sipbridge.log import get_logger
from sipbridge.media import tones
from sipbridge.media.loop import Channel, Room, Source
from sipbridge.media.remote import TrackPort
from sipbridge.media.wav import open_wav
from sipbridge.routing import Target
from sipbridge.rtc.base import (
    CallStatus,
    JoinRequest,
    PlaybackQueue,
    RtcConnection,
    RtcContext,
    RtcListener,
)
from sipbridge.rtc.livekit import packets, regions
from sipbridge.rtc.livekit.packets import (
    APPLICATION_ERROR,
    UNSUPPORTED_METHOD,
    Key,
    MethodCall,
    MethodError,
    PacketReader,
    Text,
)
from sipbridge.rtc.livekit.participant import CALL_STATUS, HELD, describe, headers_of, told_headers
from sipbridge.rtc.livekit.session import MediaError as NoMediaError
from sipbridge.rtc.livekit.session import Session
from sipbridge.rtc.livekit.signal import RefusedError, UnreachableError
from sipbridge.rtc.livekit.token import Entry, obtain
from sipbridge.rtc.token_server import TokenError
from sipbridge.rtc.webrtc.peer import AudioTrack

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 1.0  # between attempts to rejoin
_LEAST_S = 2.0  # of the time to join that an address gets when there are others
_MAX_KEYS = 64  # of one request
_ANSWER_S = 0.2  # that the answer to a request for the end has to get out


_closing: set[asyncio.Task[None]] = set()  # memberships whose audio still fades


class _ElsewhereError(RtcError):
    """The room may be joined at another address."""


def _failed(detail: str, kind: EndKind = EndKind.CHANNEL_FAILED, code: int = 0) -> EndReason:
    """Why a room could not be joined."""
    return EndReason(kind, f"LiveKit: {detail}", Party.CHANNEL, code)


class LiveKitConnection(RtcConnection):
    """A call's place in a room."""

    joins_early = True

    def __init__(self, target: Target, context: RtcContext) -> None:
        super().__init__(target, context)
        if context.config.livekit is None:
            raise ValueError("there is no [livekit] that says where the server is")
        if not target.address:
            raise ValueError("expected livekit:ROOM")
        self._config = context.config.livekit
        self._options: LiveKitOptions = self._config
        self._room = target.address
        self._closed = False
        self._status: CallStatus = "active"
        self._told: dict[str, str] = {}  # of it, to the room
        self._attributes: Mapping[str, str] = {}  # of the call, as the room has them
        self._present: set[str] = set()  # identities of others, as the call was told
        self._speakers: dict[str, float] = {}  # and who speaks
        self._session: Session | None = None  # the one that is joined
        self._joined: asyncio.Future[None] | None = None  # done when it has been, or never will be
        self._track_came = asyncio.Event()  # of somebody else, or closed
        self._task: asyncio.Task[None] | None = None
        self._reader = PacketReader()
        self._out: TrackPort | None = None  # of our track
        self._heard: dict[AudioTrack, TrackPort] = {}
        self._serving: set[asyncio.Task[None]] = set()  # methods that were called
        self._attached = False
        self._join: JoinRequest
        self._port: PlaybackQueue
        self._listener: RtcListener

    def expect(self, join: JoinRequest) -> None:
        rules = (rule for rule in self.context.config.rule if rule.name == join.rule)
        self._options = self._config.options_of(next(rules, None))
        self.rings = self._waits_for_track(join)
        self.join_s = self._config.connect_timeout_s + 2.0
        if self.rings:
            self.join_s += self._options.start_limit_s

    def _waits_for_track(self, join: JoinRequest) -> bool:
        return self._options.start == "track" and join.direction == "inbound"

    # --- joining

    async def connect(self, join: JoinRequest, playback: PlaybackQueue, listener: RtcListener) -> None:
        if self._closed:
            return
        self.expect(join)
        self._join, self._port, self._listener = join, playback, listener
        self._log = get_logger(__name__, call_id=join.call_id, room=self._room)
        if join.direction == "outbound":
            self._status = "dialing"
        elif self.rings:
            self._status = "ringing"
        self._participant = describe(join, self._options, self._status)
        self.identity = self._participant.identity
        self._attributes = self._participant.attributes
        self._joined = asyncio.get_running_loop().create_future()
        self._task = asyncio.ensure_future(self._live(self._joined))
        if self._options.start == "now" and join.direction == "inbound":
            return
        await self._joined
        if self.rings:
            await self._wait_for_track()

    async def _wait_for_track(self) -> None:
        try:
            async with asyncio.timeout(self._options.start_limit_s):
                await self._track_came.wait()
        except TimeoutError:
            detail = f"nobody speaks in {self.target} after {self._options.start_limit_s:g} s"
            raise RtcError(EndReason(EndKind.NO_ANSWER, detail, Party.CHANNEL)) from None

    async def _live(self, joined: asyncio.Future[None]) -> None:
        """All memberships, one after the other."""
        try:
            session = await self._open()
            while True:
                self._take(session)
                if not joined.done():
                    joined.set_result(None)
                end = await session.ended
                self._drop(session)
                if end is not None:
                    raise RtcError(end)
                self._log.warning("the room is lost; it is joined again", reason=session.detail)
                session = await self._reopen(session)
        except RtcError as error:
            self._finish(error.reason, joined)
        except Exception as error:
            self._log.exception("a fault in the handling of this room")
            self._finish(EndReason(EndKind.ERROR, f"internal error: {error}"), joined)

    async def _open(self, refreshed_token: str = "", named: Sequence[str] = ()) -> Session:
        """A membership that is joined; `named` are addresses where the server wants us. RtcError."""
        config = self._config
        until = asyncio.get_running_loop().time() + config.connect_timeout_s
        self._told = self._shown()
        attributes = {
            **self._participant.attributes,
            **{key: text for key, text in self._told.items() if text},
        }
        participant = dataclasses.replace(self._participant, attributes=attributes)
        try:
            async with asyncio.timeout_at(until):
                if refreshed_token:
                    entry = Entry(config.url, refreshed_token)
                else:
                    entry = await obtain(config, self._room, participant)
        except TokenError as error:
            raise RtcError(_failed(str(error))) from error
        except TimeoutError as error:
            detail = f"there is no token within {config.connect_timeout_s:g} s"
            raise RtcError(_failed(detail, EndKind.UNAVAILABLE, 503)) from error
        regions.learn(entry)
        return await self._open_somewhere(entry, named, until)

    async def _open_somewhere(self, entry: Entry, named: Sequence[str], until: float) -> Session:
        """At the first address that can be reached: a named one, the usual one, that of a region. RtcError.

        A server that refuses has the last word, for all of a project refuse alike.
        """
        loop = asyncio.get_running_loop()
        waiting = list(dict.fromkeys([*named, entry.url]))
        tried: set[str] = set()
        has_regions = regions.is_cloud(entry.url)  # that have not been looked at
        while True:
            url = waiting.pop(0)
            tried.add(url)
            try:
                return await self._open_at(Entry(url, entry.token), until, not waiting and not has_regions)
            except _ElsewhereError as error:
                if not waiting and has_regions:
                    has_regions = False
                    found = await regions.find(entry, max(0.0, until - loop.time()))
                    waiting = [url for url in dict.fromkeys(found) if url not in tried]
                if not waiting or loop.time() >= until:
                    raise
                self._log.warning("another address is tried", url=waiting[0], reason=error.reason.detail)

    async def _open_at(self, entry: Entry, until: float, is_last: bool) -> Session:
        """At this address, for all the time that is left or a part of it; RtcError."""
        limit_s = until - asyncio.get_running_loop().time()
        if not is_last:
            limit_s = min(limit_s, max(limit_s / 2, _LEAST_S))
        session = Session(
            self,
            self.context.config.webrtc,
            self.context.remotes,
            self._join.call_id,
            resume_s=self._config.reconnect_s,
        )
        try:
            async with asyncio.timeout(limit_s):
                await session.join(entry, limit_s)
        except BaseException as error:
            await session.close()
            match error:
                case UnreachableError():
                    detail = f"{entry.url} cannot be reached: {error}"
                    raise _ElsewhereError(_failed(detail, EndKind.UNAVAILABLE, 503)) from error
                case TimeoutError() if session.is_let_in:
                    detail = f"no media connection (ICE or DTLS) within {limit_s:.3g} s"
                    raise _ElsewhereError(_failed(detail, code=504)) from error
                case TimeoutError():
                    detail = f"{entry.url} does not answer within {limit_s:.3g} s"
                    raise _ElsewhereError(_failed(detail, EndKind.UNAVAILABLE, 503)) from error
                case NoMediaError():
                    raise _ElsewhereError(_failed(str(error), code=504)) from error
                case RefusedError() if error.status == 404:
                    raise RtcError(_failed(str(error), EndKind.NOT_FOUND)) from error
                case RefusedError():
                    raise RtcError(_failed(str(error))) from error
                case RtcError() if error.reason.by is not Party.CHANNEL:
                    raise RtcError(_failed(str(error))) from error
                case _:
                    raise
        return session

    async def _reopen(self, lost: Session) -> Session:
        """The same room, with the same identity, for a while. RtcError."""
        loop = asyncio.get_running_loop()
        until = lost.lost_at + self._config.reconnect_s
        pause_s = _FIRST_PAUSE_S
        # whoever made our token lets us in again by the one that the server made of it
        token = lost.refreshed_token if self._config.token_url is not None else ""
        detail = lost.detail
        while (left_s := until - loop.time()) > 0:
            try:
                async with asyncio.timeout(left_s):
                    session = await self._open(token, lost.regions)
            except TimeoutError:
                break
            except RtcError as error:
                detail = error.reason.detail
                if error.reason.kind is not EndKind.UNAVAILABLE and error.reason.sip_code != 504:
                    raise
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            else:
                self._log.info("the room is joined again")
                return session
        detail = (
            f"{self.target} was lost and did not come back within {self._config.reconnect_s:g} s: {detail}"
        )
        raise RtcError(EndReason(EndKind.CHANNEL_FAILED, detail, Party.CHANNEL))

    def _finish(self, reason: EndReason, joined: asyncio.Future[None]) -> None:
        """The room is lost for good: whoever waits for it is told, or the call."""
        waits = not joined.done()
        if waits:
            joined.set_exception(RtcError(reason))
        self._track_came.set()
        if waits and not (self._options.start == "now" and self._join.direction == "inbound"):
            return
        joined.exception()
        if not self._closed:
            self._listener.closed(reason)

    # --- the audio

    @property
    def _media_room(self) -> str:
        return f"livekit/{self._join.call_id}"

    def _take(self, session: Session) -> None:
        """This membership is the call's from now on."""
        self._session = session
        for identity in self._present - session.others:
            self._leave(identity)
        self.speakers_changed()
        self._show()
        if self._status == "held":
            session.mute(True)
        self._attach()
        self._follow_port()
        for track in session.tracks:
            self._hear(track)

    def _attach(self) -> None:
        self._attached = True
        to = self._out.port_id if self._out is not None and not self._has_dial_tone else 0
        self.context.media.attach(self._port.port_id, Room(self._media_room, to=to))

    @property
    def _has_dial_tone(self) -> bool:
        return self._join.participant.dial_tone and self._status in ("dialing", "ringing")

    def _follow_port(self) -> None:
        """Gives our track the telephone's rate, and the tracks that it hears."""
        session = self._session
        if session is None or not (self._port.is_live or self._has_dial_tone):
            return
        rate_hz = self._port.sample_rate_hz
        if not session.is_published:
            session.publish(self._codec(rate_hz))
        elif self._out is None or self._out.sample_rate_hz != rate_hz:
            old, self._out = self._out, session.open_track(rate_hz)
            self.context.media.attach(self._out.port_id, self._route_of_out())
            self._attach()
            if old is not None:
                self._when_detached(old, old.close)
        for track, port in list(self._heard.items()):
            if port.sample_rate_hz != rate_hz:
                self._heard[track] = self._open_heard(track)
                self._when_detached(port, port.close)

    def _codec(self, rate_hz: int) -> str:
        if self._options.codec != "auto":
            return {"opus": "opus", "pcmu": "PCMU"}[self._options.codec]
        return "PCMU" if rate_hz == 8000 and not self._has_dial_tone else "opus"

    def _route_of_out(self) -> Channel | Source:
        return Source(tones.ringback) if self._has_dial_tone else Channel()

    def _open_heard(self, track: AudioTrack) -> TrackPort:
        port = track.open(self._port.sample_rate_hz)
        self.context.media.attach(port.port_id, Room(self._media_room))
        return port

    def _hear(self, track: AudioTrack) -> None:
        if track not in self._heard:
            self._heard[track] = self._open_heard(track)
            self._track_came.set()

    def _when_detached(self, port: TrackPort, then: Callable[[], object]) -> None:
        """Once nobody hears it any more: a track goes without a click."""
        loop = asyncio.get_running_loop()

        def detached() -> None:  # media thread
            loop.call_soon_threadsafe(then)

        self.context.media.detach(port.port_id, detached)

    def _drop(self, session: Session, reason: EndReason | None = None) -> None:
        """Ends a membership: the room is told at once, the rest goes when its audio is heard no more."""
        session.leave(reason)
        self._session = None
        self.speakers_changed()
        ports = [*self._heard.values(), *([self._out] if self._out is not None else [])]
        self._heard.clear()
        self._out = None
        gone = asyncio.Semaphore(0)
        for port in ports:
            self._when_detached(port, gone.release)

        async def close() -> None:
            for _ in ports:
                await gone.acquire()
            await session.close()

        task = asyncio.ensure_future(close())
        _closing.add(task)
        task.add_done_callback(_closing.discard)

    # --- SessionListener

    def attributes_changed(self, attributes: Mapping[str, str]) -> None:
        self._attributes = attributes

    def participant_joined(self, identity: str) -> None:
        if not self._closed and identity not in self._present:
            self._present.add(identity)
            self._listener.participant_joined(identity)

    def participant_left(self, identity: str) -> None:
        if self._session is not None:
            self._leave(identity)

    def _leave(self, identity: str) -> None:
        if not self._closed and identity in self._present:
            self._present.remove(identity)
            self._listener.participant_left(identity, len(self._present))

    def speakers_changed(self) -> None:
        speakers = dict(self._session.speakers) if self._session is not None else {}
        if speakers != self._speakers and not self._closed:
            self._speakers = speakers
            self._listener.noticed("speakers", "", speakers)

    def published(self) -> None:
        self._follow_port()

    def track_added(self, track: AudioTrack) -> None:
        if self._session is not None and not self._closed:
            self._hear(track)

    def track_removed(self, track: AudioTrack) -> None:
        port = self._heard.pop(track, None)
        if port is not None:
            self._when_detached(port, lambda: self._close_track(track))

    def _close_track(self, track: AudioTrack) -> None:
        if track not in self._heard:  # it may have come again
            track.close()

    def packet(self, data: bytes) -> None:
        if self._closed:
            return
        for event in self._reader.read(data):
            match event:
                case Key(digit):
                    if "dtmf" in self._options.allow:
                        self._listener.dtmf(digit)
                case Text(topic, text):
                    self._listener.message(topic, text)
                case MethodCall():
                    self._serve(event)

    # --- methods that others in the room call

    def _serve(self, call: MethodCall) -> None:
        session = self._session
        if session is None:
            return
        session.send_packet(packets.acknowledgement(call))
        task = asyncio.ensure_future(self._answer(call))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _answer(self, call: MethodCall) -> None:
        """Some have to wait for the telephone; the time limit is that of whoever calls."""
        methods: Mapping[str, Callable[[Any], Coroutine[Any, Any, str]]] = {
            "lk.sip.EndCall": self._end_call,
            "lk.sip.GetRemoteHeaders": self._tell_headers,
            "sip.hangup": self._end_call,
            "sip.dtmf": self._press,
            "sip.play": self._play,
            "sip.hold": self._hold,
            "sip.transfer": self._transfer,
        }
        try:
            method = methods.get(call.method)
            if method is None:
                raise MethodError(UNSUPPORTED_METHOD, "Method not supported at destination")
            answer = packets.result(call, await method(_read_payload(call)))
        except MethodError as error:
            answer = packets.failure(call, error)
        except CallError as error:
            answer = packets.failure(call, MethodError(APPLICATION_ERROR, str(error)))
        if self._session is not None:
            self._session.send_packet(answer)

    async def _transfer(self, payload: Any) -> str:
        self._check_allowed("transfer")
        to = payload.get("to") if isinstance(payload, dict) else payload
        to = str(to) if isinstance(to, str | int) else ""
        if not to:
            raise MethodError(APPLICATION_ERROR, 'expected {"to": "200"}, or a sip: URI')
        await self._listener.transfer(to)
        return "{}"

    async def _hold(self, payload: Any) -> str:
        self._check_allowed("hold")
        held = payload.get("hold", True) if isinstance(payload, dict) else True
        await self._listener.hold(bool(held))
        return "{}"

    def _check_allowed(self, wish: str) -> None:
        if wish not in self._options.allow:
            raise MethodError(APPLICATION_ERROR, f"{wish} is not allowed here")

    async def _end_call(self, payload: Any) -> str:
        self._check_allowed("hangup")
        reason = EndReason(EndKind.CHANNEL_CLOSED, "the room has hung up", Party.CHANNEL)
        asyncio.get_running_loop().call_later(_ANSWER_S, self._hang_up, reason)
        return "{}"

    def _hang_up(self, reason: EndReason) -> None:
        if not self._closed:
            self._listener.hangup_requested(reason)

    async def _press(self, payload: Any) -> str:
        self._check_allowed("dtmf")
        digits = payload.get("digits") if isinstance(payload, dict) else payload
        digits = str(digits or "").upper()
        if not digits or len(digits) > _MAX_KEYS or set(digits) - set("0123456789*#ABCD"):
            raise MethodError(APPLICATION_ERROR, f'expected {{"digits": "12#"}}, {_MAX_KEYS} keys at most')
        for digit in digits:
            self._listener.dtmf(digit)
        return "{}"

    async def _play(self, payload: Any) -> str:
        self._check_allowed("play")
        name = payload.get("file") if isinstance(payload, dict) else payload
        folder = self._config.sounds
        if folder is None or not isinstance(name, str) or PurePath(name).name != name:
            raise MethodError(APPLICATION_ERROR, 'expected {"file": "NAME.wav"}, one of the sounds')
        try:
            sound = open_wav(folder / name, self._port.sample_rate_hz)
        except MediaError:
            raise MethodError(APPLICATION_ERROR, f"there is no sound {name}") from None
        self.context.media.overlay(self._port.port_id, sound)
        return "{}"

    async def _tell_headers(self, payload: Any) -> str:
        headers = told_headers(self._join, self._options)
        if isinstance(payload, dict):
            include = {str(name).lower() for name in payload.get("include") or ()}
            exclude = {str(name).lower() for name in payload.get("exclude") or ()}
            headers = {
                name: text
                for name, text in headers.items()
                if (not include or name.lower() in include) and name.lower() not in exclude
            }
        return json.dumps({"headers": headers})

    # --- the telephone's side

    def headers(self) -> Mapping[str, str]:
        return headers_of(self._attributes, self._options)

    def call_changed(self, status: CallStatus) -> None:
        before = self._status
        had_dial_tone = self._joined is not None and self._has_dial_tone
        if status == "ringing" and before in ("active", "held"):
            status = before  # answered, and not acknowledged yet
        self._status = status
        if self._closed or self._joined is None:
            return
        if self._session is not None and status != before:
            self._show()
            if "held" in (status, before):
                self._session.mute(status == "held")
            if self._out is not None and self._has_dial_tone != had_dial_tone:
                self.context.media.attach(self._out.port_id, self._route_of_out())
                self._attach()
        self._follow_port()

    def _shown(self) -> dict[str, str]:
        held = self._status == "held"
        return {CALL_STATUS: "active" if held else self._status, HELD: "true" if held else ""}

    def _show(self) -> None:
        shown = self._shown()
        if shown != self._told and self._session is not None:
            self._told = shown
            self._session.set_attributes(shown)

    async def send_dtmf(self, digit: str, duration_ms: int) -> None:
        if self._session is not None and not self._closed:
            self._session.send_packet(packets.key(digit))

    async def send_message(self, message: str | bytes, topic: str = "") -> None:
        if self._session is None or self._closed:
            return
        if isinstance(message, bytes):
            self._session.send_packet(packets.data(message, topic))
        else:
            for packet in packets.text(message, topic):
                self._session.send_packet(packet)

    # --- leaving

    async def close(self, reason: EndReason) -> None:
        if self._closed:
            return
        self._closed = True
        if self._joined is None:
            return  # it never joined
        if not self._joined.done():
            self._joined.set_result(None)
        self._track_came.set()
        if self._attached:
            self.context.media.detach(self._port.port_id)
        if self._session is not None:
            self._session.set_attributes({CALL_STATUS: "hangup"})
            self._drop(self._session, reason)
        if self._task is not None:
            self._task.cancel()


def _read_payload(call: MethodCall) -> Any:
    """JSON, or the text itself where it is none."""
    try:
        return json.loads(call.payload) if call.payload else {}
    except ValueError:
        return call.payload
