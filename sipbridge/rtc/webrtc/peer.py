# SPDX-License-Identifier: GPL-3.0-or-later
"""A peer connection: ICE and DTLS of libdatachannel, audio tracks of our own, data channels.

::

    far side ──► libdatachannel ──► thread "remote" ──► TrackPort ──► clock ──► media loop
             ◄──     (C++)      ◄── thread "remote" ◄── TrackPort ◄── clock ◄── media loop

libdatachannel tells what happens on a few threads of its own, partly with locks held that calls of ours
wait for while they hold the interpreter's; one that waits for the interpreter keeps all others waiting. So no
Python runs there: packets, messages and states are asked for by a thread of ours, after the ticks of the
clock. The one callback that there has to be, for a channel of the far side, only posts to the event loop,
where everything here lives.
"""

import asyncio
import atexit
import contextlib
import enum
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import libdatachannel as dc

from sipbridge.config import IceServerConfig, WebRtcConfig
from sipbridge.errors import EndKind, EndReason, RtcError
from sipbridge.media.remote import OpusOptions, RemotePorts, TrackOptions, TrackPort
from sipbridge.routing import split_host_port
from sipbridge.rtc.webrtc.certificate import own_certificate
from sipbridge.rtc.webrtc.sdp import (
    LEVEL_ID,
    NATIVE_DIRECTIONS,
    AudioChoice,
    Codec,
    Direction,
    OfferedAudio,
    public_candidate,
    read_audio,
    with_public_address,
    write_audio,
)

log = logging.getLogger(__name__)

GATHER_S = 3.0  # that servers have to say our address; then we go on without them
_MESSAGES_A_POLL = 16  # of one channel; the rest waits, and in the end the far side does
_MOST_BUFFERED_BYTES = 1 << 20  # of messages that a channel has not been able to send
_ROUNDS_A_STATE = 8  # between two looks at a connection that stands
_ROUNDS_A_MESSAGE = 4  # between two questions for what has come by a channel,
_ASKS_A_LOOK = 8  # of which this one is to see whether it is closed
# Its threads may still be at work when a connection has been closed. Were it or what belongs to it let go of
# then, they would be waited for with the interpreter's lock held.
_KEEP_CLOSED_S = 5.0
_CLOSER = "webrtc-close"
_closed: set[tuple[Any, ...]] = set()


@atexit.register
def _let_go() -> None:
    """What is left at the end of the process, for the library would wait for it; goodbyes get out."""
    if _closed:
        time.sleep(_KEEP_CLOSED_S / 10)
        _closed.clear()
    if any(thread.name == _CLOSER and thread.is_alive() for thread in threading.enumerate()):
        # a far side that has vanished is waited for, for some seconds; what that thread holds until then the
        # library takes for leaked, and says so in a hundred lines
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


class PeerState(enum.StrEnum):
    """How far the connection is."""

    NEW = "new"
    CONNECTING = "connecting"
    CONNECTED = "connected"
    DISCONNECTED = "disconnected"  # nothing has come for some time
    FAILED = "failed"
    CLOSED = "closed"


_STATES = {
    dc.PeerConnection.State.New: PeerState.NEW,
    dc.PeerConnection.State.Connecting: PeerState.CONNECTING,
    dc.PeerConnection.State.Connected: PeerState.CONNECTED,
    dc.PeerConnection.State.Disconnected: PeerState.DISCONNECTED,
    dc.PeerConnection.State.Failed: PeerState.FAILED,
    dc.PeerConnection.State.Closed: PeerState.CLOSED,
}


class PeerListener(Protocol):
    """What a peer tells; all on the event loop, nothing after `Peer.close()`."""

    def peer_state(self, state: PeerState) -> None: ...
    def peer_candidate(self, candidate: str, mid: str) -> None:
        """One of ours, as "candidate:…"; only where `gather` was False."""
        ...

    def peer_channel(self, channel: "Channel") -> None:
        """The far side opened a data channel."""
        ...


class Peer:
    """One connection. Event loop."""

    def __init__(
        self,
        config: WebRtcConfig,
        remotes: RemotePorts,
        listener: PeerListener,
        *,
        ice_servers: Sequence[IceServerConfig] | None = None,
    ) -> None:
        """`ice_servers` are those of a network in place of the configured ones."""
        self._config = config
        self._remotes = remotes
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._tracks: dict[str, AudioTrack] = {}
        self._refused: dict[str, Any] = {}  # sections that are refused as long as their tracks live
        self._channels: list[Channel] = []
        self._gathered = asyncio.Event()
        self._trickles = False
        self._is_closed = False
        self.state = PeerState.NEW
        servers = config.ice_servers if ice_servers is None else ice_servers
        with _translated("the connection cannot be made"):
            self._pc = dc.PeerConnection(_configuration(config, servers))
        self._pc.on_data_channel(self._on_native_channel)
        self._seen_state = PeerState.NEW
        self._told_candidates: set[str] = set()
        self._is_described = False
        self._has_gathered = False
        self._is_asked_rarely = False
        self._end_poll = remotes.poll(self._ask, 1)

    @property
    def tracks(self) -> Mapping[str, "AudioTrack"]:
        """By their sections' `mid`."""
        return self._tracks

    # --- what is said to each other

    def add_audio(
        self,
        direction: Direction,
        codecs: Sequence[str],
        *,
        mid: str = "0",
        stream_id: str = "",
        track_id: str = "",
        says_level: bool = False,
    ) -> "AudioTrack":
        """A track of ours for the next `offer`; it may say of each packet how loud that is.

        Of several codecs the offer lists the one with the lowest payload type first: PCMU, PCMA, G722, opus.
        """
        choice = AudioChoice(direction, tuple(Codec.named(name) for name in codecs))
        return self._make_track(mid, choice, stream_id, track_id, says_level)

    def _make_track(
        self, mid: str, choice: AudioChoice, stream_id: str, track_id: str, says_level: bool = False
    ) -> "AudioTrack":
        track = AudioTrack(self._remotes, self._post, mid, self._config)
        track.take(choice)
        media = write_audio(
            mid,
            choice.direction,
            choice.codecs,
            ssrc=track.ssrc,
            cname=track.cname,
            stream_id=stream_id,
            track_id=track_id,
            says_level=says_level,
        )
        with _translated("the audio track cannot be made"):
            track.follow(self._pc.add_track(media))
        self._tracks[mid] = track
        return track

    def open_channel(
        self, label: str, *, ordered: bool = True, max_retransmits: int | None = None
    ) -> "Channel":
        """A data channel of ours; before the first `offer`, or once a section for data was agreed on."""
        reliability = dc.Reliability()
        reliability.unordered = not ordered
        reliability.max_retransmits = max_retransmits
        init = dc.DataChannelInit()
        init.reliability = reliability
        with _translated("the data channel cannot be made"):
            channel = Channel(self._pc.create_data_channel(label, init), self._remotes, self._post)
        self._channels.append(channel)
        return channel

    async def offer(self, *, gather: bool = True) -> str:
        """Our description. Without `gather` it comes at once, and candidates go to the listener."""
        self._trickles = not gather
        with _translated("no offer can be made"):
            self._pc.set_local_description(dc.Description.Type.Offer)
        self._is_described = True
        return await self._description(gather)

    async def accept(self, answer: str) -> None:
        """The far side's answer; from then on each track knows its codecs."""
        with _translated("the answer cannot be used"):
            description = dc.Description(answer, "answer")
            sections = _sections(description)
            self._pc.set_remote_description(description)
        for media in sections:
            track = self._tracks.get(media.mid())
            if track is not None and not media.is_removed():
                offered = read_audio(media)
                track.take(AudioChoice(offered.direction.reverse, offered.codecs))
                track.level_id = LEVEL_ID if LEVEL_ID in offered.extensions else 0

    async def answer(
        self, offer: str, choose: Callable[[OfferedAudio], AudioChoice | None], *, gather: bool = True
    ) -> str:
        """Our answer to an offer, the first or a later one.

        `choose` is asked about each audio section; without a choice it is refused, as all that is neither
        audio nor data. RtcError when the offer cannot be used.
        """
        self._trickles = not gather
        with _translated("the offer cannot be used"):
            description = dc.Description(offer, "offer")
            for media in _sections(description):
                self._choose(media, choose)
            self._pc.set_remote_description(description)
            self._pc.set_local_description(dc.Description.Type.Answer)
        self._is_described = True
        return await self._description(gather)

    def _choose(
        self, media: "dc.Description.Media", choose: Callable[[OfferedAudio], AudioChoice | None]
    ) -> None:
        mid = media.mid()
        is_audio = media.type() == "audio" and not media.is_removed()
        offered = read_audio(media) if is_audio else None
        choice = choose(offered) if offered is not None else None
        track = self._tracks.get(mid)
        if offered is not None and choice is not None and choice.codecs:
            if track is None:
                track = self._make_track(mid, choice, "", "")
            else:
                track.turn(choice)
            track.stream_id, track.track_id = offered.stream_id, offered.track_id
        elif track is not None:
            track.turn(AudioChoice(Direction.INACTIVE, track.codecs))
        elif mid not in self._refused:
            refused = media.reciprocate()
            refused.mark_removed()
            self._refused[mid] = self._pc.add_track(refused)

    async def _description(self, gather: bool) -> str:
        if gather:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GATHER_S):
                    await self._gathered.wait()
        description = str(self._pc.local_description())
        public = self._config.public_address
        return with_public_address(description, public) if public else description

    def add_candidate(self, candidate: str, mid: str) -> None:
        """One of the far side; what is none is left out, for there are others."""
        try:
            self._pc.add_remote_candidate(dc.Candidate(candidate, mid))
        except (RuntimeError, ValueError) as error:
            log.debug("a candidate is left out: %s", error)

    # --- its end

    async def close(self) -> None:
        """Says goodbye and frees everything, the tracks' ports as well. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        self.state = PeerState.CLOSED
        self._end_poll()
        for track in self._tracks.values():
            track.close()
        for channel in self._channels:
            channel.stop()
        # its callback stays: taking it away waits for it, and it may be waiting for the interpreter
        tracks = [track.native for track in self._tracks.values()]
        kept = self._pc, *tracks, *self._refused.values(), *(channel.native for channel in self._channels)
        _closed.add(kept)
        # a far side that is gone is waited for: no thread of those that others use, none that an exit joins
        threading.Thread(target=self._close_native, args=[kept], name=_CLOSER, daemon=True).start()

    def _close_native(self, kept: tuple[Any, ...]) -> None:
        self._remotes.settle()  # it must not be closed while something is sent
        self._pc.close()
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._loop.call_later, _KEEP_CLOSED_S, _closed.discard, kept)

    # --- from its threads

    def _ask(self) -> None:
        """Thread of the remote ports. One that stands is asked less often, and for candidates no more."""
        is_settled = self._seen_state is PeerState.CONNECTED
        state = _STATES[self._pc.state()]
        if state is not self._seen_state:
            self._seen_state = state
            self._post(self._on_state, state)
        if self._is_described and not self._has_gathered:
            # in this order, or the last ones might be missed
            complete = dc.PeerConnection.GatheringState.Complete
            has_gathered = is_settled or self._pc.gathering_state() == complete
            if self._trickles:
                self._ask_candidates()
            if has_gathered:
                self._has_gathered = True
                self._post(self._gathered.set)
        if is_settled and not self._is_asked_rarely:
            self._is_asked_rarely = True
            self._post(self._ask_rarely)

    def _ask_rarely(self) -> None:
        self._end_poll()
        self._end_poll = self._remotes.poll(self._ask, _ROUNDS_A_STATE)

    def _ask_candidates(self) -> None:
        description = self._pc.local_description()
        for line in str(description).splitlines():
            if line.startswith("a=candidate:") and line not in self._told_candidates:
                self._told_candidates.add(line)
                self._post(self._on_candidate, line.removeprefix("a="), description.bundle_mid())

    def _post(self, told: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._tell, told, *arguments)

    def _tell(self, told: Callable[..., None], *arguments: Any) -> None:
        if not self._is_closed:
            told(*arguments)

    def _on_state(self, state: PeerState) -> None:
        self.state = state
        self._listener.peer_state(state)

    def _on_candidate(self, candidate: str, mid: str) -> None:
        if not self._trickles:
            return
        self._listener.peer_candidate(candidate, mid)
        address = self._config.public_address
        if address is not None and (public := public_candidate(candidate, address)):
            self._listener.peer_candidate(public, mid)

    def _on_native_channel(self, native: "dc.DataChannel") -> None:
        """Its thread: afterwards it would not be safe to say who is to be told of the channel."""
        self._post(self._on_channel, Channel(native, self._remotes, self._post))

    def _on_channel(self, channel: "Channel") -> None:
        self._channels.append(channel)
        self._listener.peer_channel(channel)


class AudioTrack:
    """One audio section, one way or both, and its port in the media loop. Event loop."""

    def __init__(
        self, remotes: RemotePorts, post: Callable[..., None], mid: str, config: WebRtcConfig
    ) -> None:
        self.mid = mid
        self.ssrc = random.randrange(1, 1 << 32)
        self.cname = f"{random.getrandbits(64):016x}"
        self.direction = Direction.INACTIVE
        self.codecs: tuple[Codec, ...] = ()  # agreed on
        self.level_id = 0  # the same of the header extension that says how loud a packet is; 0: none
        self.stream_id = self.track_id = ""  # of what the far side sends
        self.opened = asyncio.Event()  # keys are agreed on; what is sent before is dropped
        self.port: TrackPort | None = None
        self._remotes = remotes
        self._post = post
        self._config = config
        self.native: Any = None
        self._end_poll: Callable[[], None] | None = None
        self._end_watch: Callable[[], None] | None = None

    @property
    def send_codec(self) -> Codec | None:
        return self.codecs[0] if self.codecs and self.direction.sends else None

    def take(self, choice: AudioChoice) -> None:
        """What has been agreed on."""
        self.direction, self.codecs = choice.direction, choice.codecs

    def follow(self, native: "dc.Track") -> None:
        """It is sent and received by this one."""
        self.native = native
        native.reset_callbacks()  # one that only sends would throw away its reports

        def watch() -> None:  # thread of the remote ports
            if native.is_open():
                self._post(self._on_open)

        self._end_watch = self._remotes.poll(watch, 1)

    def _on_open(self) -> None:
        if self._end_watch is not None:
            self._end_watch()
            self._end_watch = None
            self.opened.set()
            if self.port is not None:
                self._remotes.listen(self.port.port_id, self.native.send)

    def turn(self, choice: AudioChoice) -> None:
        """Another direction, in a later description."""
        if choice.direction is self.direction:
            return
        self.direction = choice.direction
        media = self.native.description()
        media.set_direction(NATIVE_DIRECTIONS[choice.direction])
        self.native.set_description(media)

    def open(self, rate_hz: int, *, opus: OpusOptions | None = None) -> TrackPort:
        """Makes its port, once codecs are agreed on. RtcError where none of ours is.

        Again with another rate: the new port goes on where the one before was, which falls silent and is
        then the caller's to close.
        """
        if self.port is not None and self.port.sample_rate_hz == rate_hz:
            return self.port
        if not self.codecs:
            raise RtcError(EndReason(EndKind.CHANNEL_FAILED, "no audio codec was agreed on"))
        if self._end_poll is not None:
            self._end_poll()
        settings = self._config.opus
        codec = self.send_codec
        options = TrackOptions(
            rate_hz=rate_hz,
            ssrc=self.ssrc,
            begins=self.port.hush() if self.port is not None else None,
            receives={codec.payload_type: codec.name for codec in self.codecs}
            if self.direction.receives
            else {},
            sends=(codec.payload_type, codec.name) if codec is not None else None,
            cname=self.cname,
            nack=codec is not None and "nack" in codec.feedback,
            level_id=self.level_id,
            opus=opus or OpusOptions(**settings.model_dump()),
        )
        port = self.port = self._remotes.open_track(options)
        if self.native.is_open():  # it may have been closed before, and is open again
            self.opened.set()
        if self.opened.is_set():
            self._remotes.listen(port.port_id, self.native.send)
        receive, received = self.native.receive, port.received
        while receive() is not None:
            pass  # what came when nobody listened is old

        if self.direction.receives:
            self._end_poll = self._remotes.link(receive, received)
            return port

        def ask() -> None:  # thread of the remote ports
            while (packet := receive()) is not None:
                received(packet)

        self._end_poll = self._remotes.poll(ask, _ROUNDS_A_STATE)  # reports can wait
        return port

    def close(self) -> None:
        """Frees its port. After that has been detached from the media loop."""
        self.opened.clear()
        if self._end_watch is not None:
            self._end_watch()
            self._end_watch = None
        if self._end_poll is not None:
            self._end_poll()
            self._end_poll = None
        if self.port is not None:
            self.port.close()
            self.port = None


class Channel:
    """A data channel. Event loop."""

    def __init__(self, native: "dc.DataChannel", remotes: RemotePorts, post: Callable[..., None]) -> None:
        self.label = str(native.label())
        self.opened = asyncio.Event()
        self.on_opened: Callable[[], None] | None = None
        self.on_message: Callable[[str | bytes], None] | None = None
        self.on_closed: Callable[[], None] | None = None
        self.native = native
        self._post = post
        self._receive = native.receive
        self._asked = 0
        self._was_open = self._was_closed = False
        self._end_poll = remotes.poll(self._ask, _ROUNDS_A_MESSAGE)

    def send(self, message: str | bytes) -> bool:
        """False where it is not open, or the far side takes nothing."""
        if not self.opened.is_set() or self.native.buffered_amount() > _MOST_BUFFERED_BYTES:
            return False
        try:
            self.native.send(message)
        except (RuntimeError, ValueError) as error:
            log.debug("a message could not be sent: %s", error)
            return False
        return True

    def _ask(self) -> None:
        """Thread of the remote ports."""
        if self._was_closed:
            return
        if not self._was_open:
            if not self.native.is_open():
                return
            self._was_open = True
            self._post(self._on_opened)
        for _ in range(_MESSAGES_A_POLL):
            message = self._receive()
            if message is None:
                break
            self._post(self._on_message, message)
        else:
            return
        self._asked = (self._asked + 1) % _ASKS_A_LOOK
        if self._asked == 0 and self.native.is_closed():
            self._was_closed = True
            self._post(self._on_closed)

    def _on_opened(self) -> None:
        self.opened.set()
        if self.on_opened is not None:
            self.on_opened()

    def _on_message(self, message: str | bytes) -> None:
        if self.on_message is not None:
            self.on_message(message)

    def _on_closed(self) -> None:
        if self.opened.is_set():
            self.stop()
            if self.on_closed is not None:
                self.on_closed()

    def stop(self) -> None:
        """Nothing more is told or sent."""
        self.opened.clear()
        self._end_poll()

    def close(self) -> None:
        self.stop()
        self.native.close()


def _configuration(config: WebRtcConfig, servers: Sequence[IceServerConfig]) -> "dc.Configuration":
    made = dc.Configuration()
    made.disable_auto_negotiation = True
    # else one that begins with data alone would have no keys for the audio that comes later
    made.force_media_transport = True
    made.port_range_begin, made.port_range_end = config.ports
    if config.bind_address is not None:
        made.bind_address = config.bind_address
    # made beforehand: one of its own would have to be waited for with the interpreter's lock held
    made.certificate_pem_file, made.key_pem_file = own_certificate()
    made.ice_servers = [_ice_server(server) for server in servers]
    return made


def _ice_server(server: IceServerConfig) -> "dc.IceServer":
    scheme, _, rest = server.url.partition(":")
    host, port = split_host_port(rest.partition("?")[0])
    if scheme == "stun" or server.credential is None:
        return dc.IceServer(host, port or 3478)
    return dc.IceServer(host, port or 3478, server.username or "", server.credential.get_secret_value())


def _sections(description: "dc.Description") -> list["dc.Description.Media"]:
    found = (description.media(index) for index in range(description.media_count()))
    return [media for media in found if isinstance(media, dc.Description.Media)]


@contextlib.contextmanager
def _translated(what: str) -> Any:
    """No exception of libdatachannel leaves this file."""
    try:
        yield
    except (RuntimeError, ValueError, IndexError) as error:
        raise RtcError(EndReason(EndKind.CHANNEL_FAILED, f"{what}: {error}")) from error
