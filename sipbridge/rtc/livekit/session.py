# SPDX-License-Identifier: GPL-3.0-or-later
"""One membership in a room: signalling, a media connection, and the tracks on it. Event loop.

::

    Signal ◄──────── offers, answers, candidates, who is there ────────► LiveKit's server
    Peer   ───────── our track ────────────────────────────────────────►
           ◄──────── a track of each that speaks ───────────────────────
           ◄──────── data channels ────────────────────────────────────►

We offer, always: a section for our track, and as many for those of others as the server asks for, which
gives them to whoever speaks. A signalling connection that breaks is made again while audio goes on.
libdatachannel cannot restart ICE, so a membership whose media is lost is over, and whoever holds it makes
another one, with the same identity.
"""

import asyncio
import contextlib
import json
from collections.abc import Coroutine, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from livekit.protocol.models import (
    AudioTrackFeature,
    DisconnectReason,
    ParticipantInfo,
    ParticipantTracks,
    TrackSource,
    TrackType,
)
from livekit.protocol.rtc import (
    AddTrackRequest,
    JoinResponse,
    LeaveRequest,
    MuteTrackRequest,
    SessionDescription,
    SignalRequest,
    SignalResponse,
    SpeakersChanged,
    TrickleRequest,
    UpdateParticipantMetadata,
    UpdateSubscription,
)
from pydantic import SecretStr, ValidationError

from sipbridge.config import IceServerConfig, WebRtcConfig
from sipbridge.errors import EndKind, EndReason, Party, RtcError
from sipbridge.log import get_logger
from sipbridge.media.remote import RemotePorts, TrackPort
from sipbridge.rtc.livekit.regions import urls_of
from sipbridge.rtc.livekit.signal import RefusedError, Signal, UnreachableError, name_of
from sipbridge.rtc.livekit.token import Entry
from sipbridge.rtc.webrtc.peer import AudioTrack, Channel, Peer, PeerState
from sipbridge.rtc.webrtc.sdp import Direction

_CID = "telephone"
_STREAM = "telephone"
_RELIABLE, _LOSSY = "_reliable", "_lossy"
_MAX_WAITING = 64  # packets that are said before there is a channel for them
# Of these we understand all that others publish.
_CODECS = ("opus", "PCMU", "PCMA")
_SECTIONS = 1  # for others' tracks, until the server asks for more
_RESUME_PAUSE_S = 0.2  # between attempts


class MediaError(Exception):
    """There is no way for audio to the server; its text says why."""


class SessionListener(Protocol):
    """What a membership tells; on the event loop."""

    def participant_joined(self, identity: str) -> None: ...
    def participant_left(self, identity: str) -> None: ...
    def attributes_changed(self, attributes: Mapping[str, str]) -> None:
        """Of the call itself, as the room has them now; whoever may can set them there."""
        ...

    def speakers_changed(self) -> None:
        """Others may speak now than before, or louder."""
        ...

    def packet(self, data: bytes) -> None:
        """Of a data channel."""
        ...

    def published(self) -> None:
        """Our track may be opened."""
        ...

    def track_added(self, track: AudioTrack) -> None:
        """Somebody's audio comes; its port is not open yet."""
        ...

    def track_removed(self, track: AudioTrack) -> None:
        """No more comes."""
        ...


# Why a membership that is over is not made again.
_ENDS: Mapping[int, tuple[EndKind, str]] = {
    DisconnectReason.CLIENT_INITIATED: (EndKind.CHANNEL_CLOSED, "the server ended the session"),
    DisconnectReason.DUPLICATE_IDENTITY: (
        EndKind.CHANNEL_CLOSED,
        "somebody else joined the room with the identity of this call",
    ),
    DisconnectReason.PARTICIPANT_REMOVED: (EndKind.CHANNEL_CLOSED, "removed from the room"),
    DisconnectReason.ROOM_DELETED: (EndKind.CHANNEL_CLOSED, "the room was deleted"),
    DisconnectReason.ROOM_CLOSED: (EndKind.ALONE, "the room was closed: nobody else is left in it"),
    DisconnectReason.USER_UNAVAILABLE: (EndKind.UNAVAILABLE, "ended as unavailable"),
    DisconnectReason.USER_REJECTED: (EndKind.DECLINED, "ended as rejected"),
    DisconnectReason.SIP_TRUNK_FAILURE: (EndKind.CHANNEL_CLOSED, "ended as a failure of the trunk"),
}

# What the server says when media does not come about, before we have given it up ourselves.
_WITHOUT_MEDIA = {DisconnectReason.CONNECTION_TIMEOUT, DisconnectReason.MEDIA_FAILURE}

# What others in the room are told of the end of a call.
_REASON_OF_END: Mapping[EndKind, DisconnectReason] = {
    EndKind.BUSY: DisconnectReason.USER_REJECTED,
    EndKind.DECLINED: DisconnectReason.USER_REJECTED,
    EndKind.NO_ANSWER: DisconnectReason.USER_UNAVAILABLE,
    EndKind.UNAVAILABLE: DisconnectReason.USER_UNAVAILABLE,
    EndKind.NOT_FOUND: DisconnectReason.USER_UNAVAILABLE,
    EndKind.FORBIDDEN: DisconnectReason.SIP_TRUNK_FAILURE,
    EndKind.NOT_ACCEPTABLE: DisconnectReason.SIP_TRUNK_FAILURE,
    EndKind.TRANSPORT: DisconnectReason.SIP_TRUNK_FAILURE,
    EndKind.MEDIA_TIMEOUT: DisconnectReason.MEDIA_FAILURE,
}


def end_of(leave: LeaveRequest) -> EndReason | None:
    """Why the call ends when the server sends this; None: the membership is to be made again."""
    if leave.action != LeaveRequest.Action.DISCONNECT or leave.can_reconnect:
        return None
    if leave.reason in _ENDS:
        kind, detail = _ENDS[leave.reason]
        return EndReason(kind, f"LiveKit: {detail}", Party.CHANNEL)
    if leave.reason == DisconnectReason.UNKNOWN_REASON:
        return EndReason(EndKind.CHANNEL_CLOSED, "LiveKit: the server ended the session", Party.CHANNEL)
    return None


@dataclass(slots=True)
class _Other:
    """Somebody else in the room."""

    sid: str
    subscribed: set[str] = field(default_factory=set)  # track sids


class Session:
    """A membership, from `join` to `leave` or its end."""

    def __init__(
        self,
        listener: SessionListener,
        webrtc: WebRtcConfig,
        remotes: RemotePorts,
        call_id: str,
        *,
        resume_s: float,
    ) -> None:
        """Lost signalling is tried again for `resume_s`."""
        self.ended: asyncio.Future[EndReason | None] = asyncio.get_running_loop().create_future()
        self.detail = ""  # why it was lost,
        self.lost_at = 0.0  # and when, by the loop's clock
        self.refreshed_token = ""  # that the server gave in place of ours
        self.regions: tuple[str, ...] = ()  # addresses where it wants us when we come again, best first
        self.speakers: dict[str, float] = {}  # identities of those who speak, and how loud, 0 to 1
        self._listener = listener
        self._webrtc = webrtc
        self._remotes = remotes
        self._resume_s = resume_s
        self._log = get_logger(__name__, call_id=call_id)
        self._signal = Signal(self)
        self._entry: Entry
        self._timeout_s = 0.0
        self._closed = False
        self._sid = self._identity = ""
        self._others: dict[str, _Other] = {}  # by identity
        self._peer: Peer | None = None
        self._is_offered = False  # and not answered yet
        self._has_to_offer = False  # once more
        self._sections = _SECTIONS  # for tracks of others
        self._codec = ""  # of our track, once it is to be published
        self._published: AudioTrack | None = None
        self._is_answered = False  # the offer that has it
        self._track_sid = ""
        self._is_muted = False
        self._attributes: dict[str, str] = {}  # that were said last
        self._track_sids: Mapping[str, str] = {}  # of what comes in each section, by mid
        self._heard: dict[str, AudioTrack] = {}  # by mid
        self._reliable: Channel
        self._waiting: list[bytes] = []
        self._messages: asyncio.Queue[SignalResponse] = asyncio.Queue()
        self._connected = asyncio.Event()  # media too; or ended
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def is_let_in(self) -> bool:
        """The server knows us; audio may still have to find its way."""
        return bool(self._sid)

    @property
    def others(self) -> set[str]:
        """The identities of all others who are in the room."""
        return set(self._others)

    @property
    def tracks(self) -> list[AudioTrack]:
        """Those of others, as far as they are there."""
        return list(self._heard.values())

    # --- joining

    async def join(self, entry: Entry, timeout_s: float) -> None:
        """Audio can flow when it returns.

        UnreachableError, RefusedError, MediaError, RtcError where the server has ended it already; the caller
        keeps the time as well.
        """
        self._entry, self._timeout_s = entry, timeout_s
        join = await self._signal.open(entry, timeout_s)
        self._sid, self._identity = join.participant.sid, join.participant.identity
        servers = [*self._webrtc.ice_servers, *_ice_servers(join)]
        self._peer = Peer(self._webrtc, self._remotes, self, ice_servers=servers)
        self._reliable = self._peer.open_channel(_RELIABLE)
        lossy = self._peer.open_channel(_LOSSY, ordered=False, max_retransmits=0)
        for channel in (self._reliable, lossy):
            channel.on_message = self._heard_packet
        self._spawn(self._say_what_waits())
        self._spawn(self._take_messages())
        await self._offer()
        for info in join.other_participants:
            self._take_participant(info)
        await self._connected.wait()
        if self.ended.done():
            end = self.ended.result()
            raise MediaError(self.detail) if end is None else RtcError(end)

    async def _say_what_waits(self) -> None:
        await self._reliable.opened.wait()
        waiting, self._waiting = self._waiting, []
        for packet in waiting:
            self._reliable.send(packet)

    async def _offer(self) -> None:
        """All that we have, to the server; once it has answered the offer before."""
        if self._is_offered:
            self._has_to_offer = True
            return
        assert self._peer is not None
        self._is_offered, self._has_to_offer = True, False
        for number in range(len(self._peer.tracks.keys() - {_CID}), self._sections):
            self._peer.add_audio(Direction.RECVONLY, _CODECS, mid=f"others-{number}")
        if self._codec and self._published is None:
            # the server knows who speaks by what the packets say of it
            self._published = self._peer.add_audio(
                Direction.SENDONLY,
                (self._codec,),
                mid=_CID,
                stream_id=_STREAM,
                track_id=_CID,
                says_level=True,
            )
        offer = await self._peer.offer(gather=False)
        self._send(offer=SessionDescription(type="offer", sdp=offer))

    # --- what the call says

    def publish(self, codec: str) -> None:
        """Our track, with one codec: the server goes by the first that is offered, whichever comes.

        The listener is told when there is a way for it; once in a membership.
        """
        if self._codec or self._closed:
            return
        self._codec = codec
        track = AddTrackRequest(
            cid=_CID,
            name=_STREAM,
            type=TrackType.AUDIO,
            source=TrackSource.MICROPHONE,
            disable_red=True,
            stream=_STREAM,
            audio_features=[AudioTrackFeature.TF_NO_DTX],
        )
        self._send(add_track=track)
        self._spawn(self._offer())

    @property
    def is_published(self) -> bool:
        return self._published is not None and self._is_answered

    def open_track(self, rate_hz: int) -> TrackPort:
        """The port of our track, at the telephone's rate; anew when that has changed."""
        assert self._published is not None
        return self._published.open(rate_hz)

    def send_packet(self, packet: bytes) -> None:
        """To others in the room, reliably."""
        if self._closed:
            return
        if self._reliable.opened.is_set():
            self._reliable.send(packet)
        elif len(self._waiting) < _MAX_WAITING:
            self._waiting.append(packet)

    def set_attributes(self, attributes: Mapping[str, str]) -> None:
        self._attributes.update(attributes)
        self._send(update_metadata=UpdateParticipantMetadata(attributes=dict(attributes)))

    def mute(self, muted: bool) -> None:
        """Our track; the server forwards nothing of it while it is muted."""
        self._is_muted = muted
        if self._track_sid:
            self._send(mute=MuteTrackRequest(sid=self._track_sid, muted=muted))

    def leave(self, reason: EndReason | None = None) -> None:
        """The server and the room are told at once that the call is over, and why. Idempotent."""
        if not self._closed:
            why = DisconnectReason.CLIENT_INITIATED
            if reason is not None:
                why = _REASON_OF_END.get(reason.kind, why)
            self._send(leave=LeaveRequest(reason=why, action=LeaveRequest.Action.DISCONNECT))
            self._closed = True
            self._signal.close()

    async def close(self) -> None:
        """Ends it. Its ports have to be detached from the media loop before. Idempotent."""
        self.leave()
        if not self.ended.done():
            self.ended.cancel()
        self._connected.set()
        for task in self._tasks:
            task.cancel()
        if self._peer is not None:
            await self._peer.close()

    def _send(self, **message: Any) -> None:
        self._signal.send(SignalRequest(**message))

    # --- what the server says

    def signalled(self, message: SignalResponse) -> None:
        self._messages.put_nowait(message)

    def signal_lost(self, detail: str) -> None:
        if self._peer is not None and self._peer.state is PeerState.CONNECTED and not self.ended.done():
            self._spawn(self._resume(detail))
        else:
            self._lose(f"signalling: {detail}")

    async def _resume(self, detail: str) -> None:
        """Signalling once more, for the same participant; the others do not notice."""
        self._log.warning("signalling is lost; audio goes on meanwhile", reason=detail)
        self.lost_at = asyncio.get_running_loop().time()
        before = self._signal
        try:
            async with asyncio.timeout(self._resume_s):
                while not self.ended.done() and not self._closed:
                    self._signal = Signal(self)
                    entry = replace(self._entry, token=self.refreshed_token or self._entry.token)
                    try:
                        await self._signal.resume(entry, self._sid, before, self._timeout_s)
                    except UnreachableError as error:
                        detail = str(error)
                        await asyncio.sleep(_RESUME_PAUSE_S)
                    else:
                        self._say_again()
                        return
        except RefusedError as error:
            detail = str(error)
        except TimeoutError:
            pass
        self._lose(f"signalling: {detail}")

    def _say_again(self) -> None:
        """What may have got lost."""
        self.lost_at = 0.0
        self._log.info("signalling is there again")
        if self._attributes:
            self.set_attributes(self._attributes)
        if self._is_muted:
            self.mute(True)
        for other in self._others.values():
            self._ask_for(other, sorted(other.subscribed))
        if self._is_offered or self._has_to_offer:
            self._is_offered = False
            self._spawn(self._offer())

    async def _take_messages(self) -> None:
        """One after the other: what an answer brings is used before the next is looked at."""
        while True:
            message = await self._messages.get()
            match message.WhichOneof("message"):
                case "answer":
                    await self._take_answer(message.answer)
                case "media_sections_requirement":
                    self._sections += message.media_sections_requirement.num_audios
                    await self._offer()
                case "trickle":
                    self._add_candidate(message.trickle)
                case "update":
                    for info in message.update.participants:
                        self._take_participant(info)
                case "track_published" if message.track_published.cid == _CID:
                    self._track_sid = message.track_published.track.sid
                    if self._is_muted:
                        self.mute(True)
                case "speakers_changed":
                    self._take_speakers(message.speakers_changed)
                case "refresh_token":
                    self.refreshed_token = message.refresh_token
                case "leave":
                    self._take_leave(message.leave)
                case "mute":
                    self._log.info("the track was muted in the room", muted=message.mute.muted)
                case "subscription_response":
                    self._log.warning(
                        "a track cannot be heard", track=message.subscription_response.track_sid
                    )

    async def _take_answer(self, answer: SessionDescription) -> None:
        assert self._peer is not None
        await self._peer.accept(answer.sdp)
        self._is_offered = False
        self._track_sids = dict(answer.mid_to_track_id)
        self._see_answered()
        self._see_heard()
        if self._has_to_offer:
            await self._offer()

    def _see_heard(self) -> None:
        """Who speaks in which section may have changed."""
        assert self._peer is not None
        wanted = {sid for other in self._others.values() for sid in other.subscribed}
        for mid, track in self._peer.tracks.items():
            is_heard = track.direction is Direction.RECVONLY and self._track_sids.get(mid) in wanted
            if is_heard and mid not in self._heard:
                self._heard[mid] = track
                self._listener.track_added(track)
            elif not is_heard and mid in self._heard:
                self._listener.track_removed(self._heard.pop(mid))

    def _add_candidate(self, trickle: TrickleRequest) -> None:
        assert self._peer is not None
        with contextlib.suppress(ValueError, TypeError, AttributeError):
            init = json.loads(trickle.candidateInit)
            if init.get("candidate"):
                self._peer.add_candidate(str(init["candidate"]), str(init.get("sdpMid") or "0"))

    def _take_participant(self, info: ParticipantInfo) -> None:
        if info.sid == self._sid:
            self._listener.attributes_changed(dict(info.attributes))
            return
        if info.kind == ParticipantInfo.Kind.EGRESS:
            return
        known = self._others.get(info.identity)
        if info.state == ParticipantInfo.State.DISCONNECTED:
            if known is not None and known.sid == info.sid:
                del self._others[info.identity]
                self._see_heard()
                self._silence(info.identity)
                self._listener.participant_left(info.identity)
            return
        if known is None or known.sid != info.sid:
            self._others[info.identity] = _Other(info.sid)
            if known is None:
                self._listener.participant_joined(info.identity)
        self._subscribe(info)

    def _take_speakers(self, changed: SpeakersChanged) -> None:
        """Those are named whose level is another one, or who have fallen silent."""
        identities = {other.sid: identity for identity, other in self._others.items()}
        identities[self._sid] = self._identity
        for speaker in changed.speakers:
            identity = identities.get(speaker.sid)
            if identity is not None and speaker.active:
                self.speakers[identity] = round(speaker.level, 3)
            elif identity is not None:
                self.speakers.pop(identity, None)
        self._listener.speakers_changed()

    def _silence(self, identity: str) -> None:
        """The server does not say it of somebody who has no track any more."""
        if self.speakers.pop(identity, None) is not None:
            self._listener.speakers_changed()

    def _subscribe(self, info: ParticipantInfo) -> None:
        """Audio alone: nobody looks at a video here."""
        other = self._others[info.identity]
        audio = {track.sid for track in info.tracks if track.type == TrackType.AUDIO}
        new = sorted(audio - other.subscribed)
        other.subscribed = audio
        if not audio:
            self._silence(info.identity)
        self._ask_for(other, new)
        self._see_heard()

    def _ask_for(self, other: _Other, track_sids: list[str]) -> None:
        if track_sids:
            tracks = [ParticipantTracks(participant_sid=other.sid, track_sids=track_sids)]
            wanted = UpdateSubscription(track_sids=track_sids, subscribe=True, participant_tracks=tracks)
            self._send(subscription=wanted)

    def _take_leave(self, leave: LeaveRequest) -> None:
        end = end_of(leave)
        if end is None:
            self.regions = urls_of(leave.regions)
            detail = f"the server asks us to come again: {name_of(leave)}"
            if leave.reason in _WITHOUT_MEDIA and not self._connected.is_set():
                detail = f"no media connection (ICE or DTLS): {detail}"
            self._lose(detail)
        elif not self.ended.done():
            self.detail = end.detail
            self.ended.set_result(end)
            self._connected.set()

    # --- PeerListener

    def peer_state(self, state: PeerState) -> None:
        if state is PeerState.CONNECTED:
            self._connected.set()
        elif state in (PeerState.FAILED, PeerState.DISCONNECTED, PeerState.CLOSED):
            self._lose(f"the media connection is {state.name.lower()} (ICE or DTLS)")

    def peer_candidate(self, candidate: str, mid: str) -> None:
        init = json.dumps({"candidate": candidate, "sdpMid": mid, "sdpMLineIndex": 0})
        self._send(trickle=TrickleRequest(candidateInit=init))

    def peer_channel(self, channel: Channel) -> None:
        if channel.label in (_RELIABLE, _LOSSY):
            channel.on_message = self._heard_packet
        else:
            channel.stop()

    def _heard_packet(self, message: str | bytes) -> None:
        if isinstance(message, bytes) and not self._closed:
            self._listener.packet(message)

    def _see_answered(self) -> None:
        if self._published is None or self._is_answered:
            return
        self._is_answered = True
        if self._published.direction.sends and self._published.codecs:
            self._listener.published()
        else:
            self._log.warning("the server does not take our track: nobody will hear the telephone")

    def _lose(self, detail: str) -> None:
        if not self.ended.done() and not self._closed:
            self.detail = detail
            self.lost_at = self.lost_at or asyncio.get_running_loop().time()
            self.ended.set_result(None)
        self._connected.set()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(self._guard(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guard(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as error:
            self._log.exception("what the server has sent could not be handled")
            self._lose(f"{type(error).__name__}: {error}")


def _ice_servers(join: JoinResponse) -> Iterator[IceServerConfig]:
    """What the server names, as far as we can use it: TURN over UDP."""
    for server in join.ice_servers:
        for url in server.urls:
            with contextlib.suppress(ValidationError):
                if server.credential:
                    secret = SecretStr(server.credential)
                    yield IceServerConfig(url=url, username=server.username, credential=secret)
                else:
                    yield IceServerConfig(url=url)
