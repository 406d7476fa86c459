# SPDX-License-Identifier: GPL-3.0-or-later
"""Browsers in the rooms of this process.

::

    browser ──RTP──► AudioTrack ──► port ──► media loop, a member of the room like any other
            ◄──RTP──            ◄──      ◄──
            ◄─JSON─► data channel: who is there, keys, messages, levels, the state of the line

What is said over the channel are objects with a ``type``. To the browser: ``welcome`` (identity, room,
members: each with identity and name), ``joined`` (identity, name), ``left`` (identity), ``dtmf`` (digit),
``message`` (topic, text), ``levels`` (dBFS by identity), ``line`` (round_trip_ms, jitter_ms, loss_percent,
sent_loss_percent, delay_ms), ``end`` (reason). From it: ``dtmf`` (digits) and ``message``
(text; topic, else its own identity).
Whoever opens no channel hears and is heard all the same.
"""

import asyncio
import contextlib
import json
import uuid
from collections.abc import Callable
from typing import Any

from sipbridge.errors import CallError, EndKind, EndReason, RtcError
from sipbridge.keys import KEYS
from sipbridge.log import get_logger
from sipbridge.media.loop import Room
from sipbridge.media.quality import level_dbfs
from sipbridge.media.remote import TrackPort
from sipbridge.routing import Target, check_text
from sipbridge.rtc.base import RtcContext
from sipbridge.rtc.local import Member
from sipbridge.rtc.webrtc.peer import AudioTrack, Channel, Peer, PeerState
from sipbridge.rtc.webrtc.sdp import AudioChoice, OfferedAudio, choose_codecs

CONNECT_S = 15.0  # from the answer until packets have to come
SILENT_S = 10.0  # without any packet it is gone; a browser's reports come every few seconds
_LOOK_S = 0.2  # at levels
_LINE_S = 1.0  # at the line
_MAX_MESSAGE_CHARS = 16_384
_MAX_DIGITS = 64
_MAX_NAME_CHARS = 64
_RATES_HZ = {"PCMU": 8000, "PCMA": 8000, "G722": 16_000}
_OPUS_RATES_HZ = (8000, 16_000, 48_000)
_OPUS_RATE_HZ = 16_000  # where nobody else is yet
_WHY = {
    PeerState.DISCONNECTED: "the connection broke",
    PeerState.FAILED: "no way to it was found, or its keys are not those that it said",
    PeerState.CLOSED: "it has closed the connection",
}


class NotAcceptableError(RtcError):
    """An offer that is well formed, and of no use."""

    def __init__(self, detail: str) -> None:
        super().__init__(EndReason(EndKind.NOT_ACCEPTABLE, detail))


class Browsers:
    """All of them, by their ids. Event loop."""

    def __init__(self, context: RtcContext) -> None:
        self._context = context
        self._browsers: dict[str, Browser] = {}
        self._levels: dict[str, asyncio.Task[None]] = {}  # by room

    def __len__(self) -> int:
        return len(self._browsers)

    async def join(self, room: str, name: str, offer: str) -> tuple[str, str]:
        """Lets one in by its offer; returns its id and the answer.

        ValueError for a room or name that is none, NotAcceptableError when the offer cannot be used,
        CallError when there are too many.
        """
        check_text(name, "the name", _MAX_NAME_CHARS)
        if not Target.parse(f"local:{check_text(room, 'the room', _MAX_NAME_CHARS)}").address:
            raise ValueError("the room has no name")
        limit = self._context.config.sip.max_calls
        if len(self._browsers) >= limit:
            raise CallError(EndReason(EndKind.OVERLOAD, f"{limit} browsers are here: that is the limit"))
        browser = Browser(self._context, room, name, self._gone)
        self._browsers[browser.id] = browser
        try:
            answer = await browser.join(offer)
        except BaseException:
            self._browsers.pop(browser.id, None)
            raise
        if room not in self._levels:
            self._levels[room] = asyncio.ensure_future(self._tell_levels(room))
        return browser.id, answer

    async def leave(self, room: str, browser_id: str) -> None:
        """Ends one. LookupError when it is not in the room."""
        browser = self._browsers.get(browser_id)
        if browser is None or browser.room != room:
            raise LookupError(f"there is no {browser_id!r} in the room {room!r}")
        await browser.leave("it has left")

    async def close(self) -> None:
        """Ends all of them."""
        present = list(self._browsers.values())
        await asyncio.gather(*(browser.leave("the server stops") for browser in present))

    def _gone(self, browser: "Browser") -> None:
        self._browsers.pop(browser.id, None)
        if not any(other.room == browser.room for other in self._browsers.values()):
            levels = self._levels.pop(browser.room, None)
            if levels is not None:
                levels.cancel()

    async def _tell_levels(self, room: str) -> None:
        """How loud each member is, for all browsers of a room."""
        while True:
            await asyncio.sleep(_LOOK_S)
            members = self._context.rooms.present(room)
            peaks = self._context.media.levels([member.port_id for member in members])
            levels = {
                member.identity: round(level_dbfs(peak)) for member, peak in zip(members, peaks, strict=True)
            }
            for browser in list(self._browsers.values()):
                if browser.room == room:
                    browser.tell("levels", levels=levels)


class Browser:
    """One in a room, from its offer to its leaving. Event loop."""

    def __init__(self, context: RtcContext, room: str, name: str, gone: Callable[["Browser"], None]) -> None:
        self.id = uuid.uuid4().hex[:12]
        self.room = room
        taken = {member.identity for member in context.rooms.present(room)}
        self.identity = name or f"browser-{self.id[:4]}"
        if self.identity in taken:
            self.identity += f" ({self.id[:4]})"
        self._context = context
        self._gone = gone
        self._log = get_logger(__name__, room=room, browser=self.identity)
        self._config = context.config.webrtc
        self._peer: Peer | None = None
        self._track: AudioTrack | None = None
        self._channel: Channel | None = None
        self._member: Member | None = None
        self._watch: asyncio.Task[None] | None = None
        self._has_left = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def join(self, offer: str) -> str:
        """Answers; it is in the room from now on. RtcError, and nothing is left of it then."""
        peer = self._peer = Peer(self._config, self._context.remotes, self)
        try:
            answer = await peer.answer(offer, self._choose)
            if not peer.tracks:
                raise NotAcceptableError("the offer has no audio section")
            track = self._track = next(iter(peer.tracks.values()))
            port = track.open(self._rate_hz(track))
        except RtcError as error:
            await peer.close()
            raise (
                error if isinstance(error, NotAcceptableError) else NotAcceptableError(str(error))
            ) from error
        except BaseException:
            await peer.close()
            raise
        self._context.media.attach(port.port_id, Room(self.room))
        self._member = self._context.rooms.enter(self.room, self.identity, self, port.port_id)
        self._watch = asyncio.ensure_future(self._watch_over(track, port))
        codec = track.codecs[0].name
        self._log.info("a browser has joined the room", codec=codec, rate_hz=port.sample_rate_hz)
        return answer

    def _choose(self, offered: OfferedAudio) -> AudioChoice | None:
        assert self._peer is not None
        if self._peer.tracks:
            return None  # one is enough
        codecs = choose_codecs(offered, self._config.codecs)
        if not codecs:
            theirs = ", ".join(offered.all_codecs) or "none"
            ours = ", ".join(self._config.codecs)
            raise NotAcceptableError(f"of the codecs offered ({theirs}) none is one of ours ({ours})")
        return AudioChoice(offered.direction.reverse, codecs[:1])

    def _rate_hz(self, track: AudioTrack) -> int:
        """Opus has any rate: that of those who are there, who then need no resampling."""
        name = track.codecs[0].name
        if name != "opus":
            return _RATES_HZ[name]
        present_hz = self._context.media.rooms().get(self.room, 0)
        return present_hz if present_hz in _OPUS_RATES_HZ else _OPUS_RATE_HZ

    async def leave(self, why: str) -> None:
        """Out of the room, and the connection closed. Idempotent."""
        if self._has_left:
            return
        self._has_left = True
        self.tell("end", reason=why)
        if self._watch is not None:
            self._watch.cancel()
        if self._member is not None:
            self._context.rooms.leave(self._member)
        if self._track is not None and self._track.port is not None:
            await self._track.port.leave(self._context.media)
        if self._peer is not None:
            await self._peer.close()
        self._log.info("a browser has left the room", reason=why)
        self._gone(self)

    def _go(self, why: str) -> None:
        task = asyncio.ensure_future(self.leave(why))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _watch_over(self, track: AudioTrack, port: TrackPort) -> None:
        """Notices one that vanishes, and tells how the line is."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CONNECT_S):
                await track.opened.wait()
        if not track.opened.is_set():
            self._go(f"its connection was not up within {CONNECT_S:g} s: no UDP packet found a way")
            return
        while True:
            await asyncio.sleep(_LINE_S)
            if port.track_stats().silent_ms > SILENT_S * 1000:
                self._go(f"nothing came from it for {SILENT_S:g} s")
                return
            self.tell("line", **_line(port))

    # --- of the peer

    def peer_state(self, state: PeerState) -> None:
        if state in _WHY and not self._has_left:
            was_up = self._track is not None and self._track.opened.is_set()
            self._go(_WHY[state if was_up else PeerState.FAILED])

    def peer_candidate(self, candidate: str, mid: str) -> None:
        """All of ours stand in the answer."""

    def peer_channel(self, channel: Channel) -> None:
        if self._channel is not None:
            return
        self._channel = channel
        channel.on_message = self._on_message
        if channel.opened.is_set():
            self._welcome()
        else:
            channel.on_opened = self._welcome

    def _welcome(self) -> None:
        others = self._context.rooms.others(self._member) if self._member is not None else []
        self.tell(
            "welcome",
            identity=self.identity,
            room=self.room,
            members=[{"identity": other.identity, "name": other.label} for other in others],
        )

    def _on_message(self, text: str | bytes) -> None:
        member = self._member
        try:
            said = json.loads(text)
        except (ValueError, RecursionError):
            said = None
        if not isinstance(said, dict) or member is None or self._has_left:
            return
        match said:
            case {"type": "dtmf", "digits": str(digits)} if len(digits) <= _MAX_DIGITS:
                for digit in digits:
                    if digit in KEYS:
                        self._context.rooms.press(member, digit)
            case {"type": "message", "text": str(words), **more} if len(words) <= _MAX_MESSAGE_CHARS:
                self._context.rooms.tell(member, str(more.get("topic") or self.identity), words)

    def tell(self, kind: str, **fields: Any) -> None:
        """Says something over the data channel, if there is one."""
        if self._channel is not None:
            self._channel.send(json.dumps({"type": kind, **fields}))

    # --- of the room

    def participant_joined(self, identity: str) -> None:
        present = self._context.rooms.present(self.room)
        name = next((member.label for member in present if member.identity == identity), identity)
        self.tell("joined", identity=identity, name=name)

    def participant_left(self, identity: str, remaining: int) -> None:
        self.tell("left", identity=identity)

    def dtmf(self, digit: str) -> None:
        self.tell("dtmf", digit=digit)

    def message(self, topic: str, text: str) -> None:
        self.tell("message", topic=topic, text=text)


def _line(port: TrackPort) -> dict[str, float | None]:
    packets, queues = port.track_stats(), port.stats()
    return {
        "round_trip_ms": round(packets.round_trip_ms, 1) if packets.round_trip_ms >= 0 else None,
        "jitter_ms": round(packets.jitter_ms, 1),
        "loss_percent": round(packets.loss_percent, 1),
        "sent_loss_percent": round(packets.remote_loss_percent, 1),
        "delay_ms": round(queues.capture_wait_ms + queues.playback_wait_ms, 1),
    }
