# SPDX-License-Identifier: GPL-3.0-or-later
"""`agora:CHANNEL`: a call in a channel of Agora's.

::

            connect()                       the server ends it, the token cannot be renewed, a key is wrong …
    new ─────────────────► joined ────────────────────────────────────────────────────────────► closed
                            ▲ │ the SDK has lost its servers, and tries to find them             ▲
                            │ ▼                                                                  │
                          waiting ─── for `reconnect_s`; the telephone stays up meanwhile ───────┘ in vain

The audio has a private room of the media loop. Where the SDK mixes, the telephone and one port are in it,
and a frame of one rate goes from one to the other natively::

    telephone ◄───► [port] ── 20 ms, at the channel's rate ──► SDK
                           ◄── 20 ms ───────────────────────── SDK: all others

Where it does not, there is a port for each of the others, each with its own jitter queue, and one that hears
the telephone alone::

    telephone ───► [port] ── 20 ms ──► SDK
              ◄─ mix ◄─ [port] ◄── 10 ms ── SDK: one of the others
                    ◄── [port] ◄── 10 ms ── SDK: another one

Everything here lives on the event loop, but for `hear` (threads of the SDK) and `_say` (that of all ports).
"""

import asyncio
import contextlib
import re
from collections import deque
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from sipbridge.config import Config
from sipbridge.errors import CallError, EndKind, EndReason, MediaError, Party, RtcError
from sipbridge.keys import KEYS
from sipbridge.log import get_logger
from sipbridge.media.loop import Channel, Room
from sipbridge.media.remote import SamplePort
from sipbridge.media.vad import VadSettings
from sipbridge.media.wav import open_wav
from sipbridge.routing import Target
from sipbridge.rtc.agora.lookup import Found, look_up
from sipbridge.rtc.agora.marks import Marks
from sipbridge.rtc.agora.messages import MAX_METADATA_BYTES, MessageReader, MessageWriter
from sipbridge.rtc.agora.reasons import connection_reason, encryption_reason, failed
from sipbridge.rtc.agora.service import Link, Place, SdkCallError, Service
from sipbridge.rtc.agora.speech import FarVoice, State, Voice
from sipbridge.rtc.agora.token import obtain_token
from sipbridge.rtc.base import (
    CallStatus,
    JoinRequest,
    PlaybackQueue,
    RtcConnection,
    RtcContext,
    RtcListener,
    Samples,
)
from sipbridge.rtc.token_server import TokenError
from sipbridge.rtc.websocket.connection import fill_parameters

DTMF, MARK, METADATA, SPEECH = "dtmf", "mark", "audio-metadata", "speech"  # topics of ours

# Agora's own rule.
_SIGNS = "!#$%&()+-:;<=.>?@[]^_{}|~,"
_CHANNEL = re.compile(rf"[A-Za-z0-9 {re.escape(_SIGNS)}]{{1,64}}")
_MAX_KEYS = 64  # of one request
_MAX_NAME = 256  # of a mark, or of what somebody asks for
_BROKEN_IN_A_ROW = 50  # frames that the SDK did not take: a second
_MAX_WAITING = 2000  # packets of messages
_PACKET_S = 1 / 60  # between two of them: Agora takes no more than 60 a second

_leaving: set[asyncio.Task[None]] = set()  # calls whose audio still fades


@dataclass(slots=True, eq=False)
class _User:
    """One of the others, where we have each of them."""

    port: SamplePort
    voice: FarVoice | None  # where voices are looked for
    speaks: bool = False  # as the call was told


class AgoraConnection(RtcConnection):
    """A call's place in a channel."""

    def __init__(self, target: Target, context: RtcContext) -> None:
        super().__init__(target, context)
        if context.config.agora is None:
            raise ValueError("there is no [agora] that says which project it is")
        self._check_channel(target.address)
        self._config = config = context.config.agora
        self.join_s = config.connect_timeout_s * 2 + config.lookup_timeout_s + 1.0
        self.loop: asyncio.AbstractEventLoop
        self._rate_hz = config.sample_rate_hz
        self._closed = False
        self._ended = False  # and whoever had to be told was told
        self._joined: asyncio.Future[None] | None = None  # done when it has been, or never will be
        self._let_in: asyncio.Future[None] | None = None
        self._link: Link | None = None
        self._service: Service  # from the link on
        self._place: Place
        self._out: SamplePort | None = None
        self._users: dict[str, _User] = {}  # those whom we hear one by one
        self._present: set[str] = set()  # as the call was told
        self._reader, self._writer = MessageReader(), MessageWriter()
        self._packets: deque[bytes] = deque()
        self._sending: asyncio.Task[None] | None = None
        self._lost: asyncio.TimerHandle | None = None  # while the channel is waited for
        self._tasks: set[asyncio.Task[None]] = set()
        self._broken = 0  # frames in a row
        self._voice: Voice | None = None  # the telephone's, where voices are looked for
        self._marks: Marks
        self._join: JoinRequest
        self._port: PlaybackQueue
        self._listener: RtcListener

    @staticmethod
    def _check_channel(name: str) -> None:
        if not _CHANNEL.fullmatch(name):
            raise ValueError(f"expected agora:CHANNEL, with 1 to 64 letters, digits, spaces or {_SIGNS}")

    @classmethod
    async def start_up(cls, config: Config) -> None:
        """Loads the SDK, which takes longer than a caller likes to wait."""
        if config.agora is not None:
            try:
                await Service.get(config.agora).start()
            except RtcError as error:
                get_logger(__name__).error("no call can join a channel of Agora's", reason=str(error))

    @classmethod
    async def shut_down(cls) -> None:
        if _leaving:
            await asyncio.wait(list(_leaving), timeout=2.0)
        await Service.shut_down()

    # --- joining

    async def connect(self, join: JoinRequest, playback: PlaybackQueue, listener: RtcListener) -> None:
        if self._closed:
            return
        self._join, self._port, self._listener = join, playback, listener
        self._log = get_logger(__name__, call_id=join.call_id, channel=self.target.address)
        self.loop = asyncio.get_running_loop()
        self._marks = Marks(playback, lambda name, state: self._answer(MARK, name, state=state))
        self._joined = self.loop.create_future()
        self._spawn(self._enter(self._joined))
        await self._joined

    async def _enter(self, joined: asyncio.Future[None]) -> None:
        """Joins, and tells whoever waits how it went. Never cancelled, so nothing is lost on the way."""
        try:
            self._place = await self._find_place()
            if not self._closed:
                self._service = Service.get(self._config)
                self._link = await self._service.acquire(self._place.scenario)
            if not self._closed:
                await self._join_channel()
        except RtcError as error:
            self._end(error.reason)
        except SdkCallError as error:
            self._end(error.reason)
        except Exception as error:
            self._log.exception("a fault while the channel was joined")
            self._end(EndReason(EndKind.ERROR, f"internal error: {error}"))
        if self._closed or self._ended:
            self._leave()
        elif not joined.done():
            joined.set_result(None)

    async def _find_place(self) -> Place:
        """Where the call goes, by configuration or lookup. RtcError."""
        config, join = self._config, self._join
        channel = self.target.address
        found = await look_up(config, channel, join) if config.lookup_url is not None else Found()
        channel = found.channel or channel
        fields = {"caller": join.caller, "callee": join.callee, "call_id": join.call_id}
        try:
            self._check_channel(channel)
            user_id = found.user_id or str(fill_parameters(config.user_id, fields, join.headers))
            if not config.string_user_ids and not _is_number(user_id):
                raise ValueError(
                    f"the user id {user_id!r} is no number of 32 bits, and string_user_ids is false"
                )
        except ValueError as error:
            raise RtcError(failed(str(error))) from error
        token = found.token or await self._obtain_token(channel, user_id)
        scenario = found.scenario or config.scenario
        return Place(channel=channel, user_id=user_id, token=token, scenario=scenario)

    async def _obtain_token(self, channel: str, user_id: str) -> str:
        try:
            return await obtain_token(self._config, channel, user_id, self._join.call_id)
        except TokenError as error:
            raise RtcError(failed(str(error))) from error

    async def _join_channel(self) -> None:
        assert self._link is not None
        config = self._config
        self._let_in = self.loop.create_future()
        self._link.user = self
        await self._service.run(self._link.join, self._place)
        try:
            async with asyncio.timeout(config.connect_timeout_s):
                await self._let_in
        except TimeoutError:
            detail = f"{self.target} was not joined within {config.connect_timeout_s:g} s"
            raise RtcError(failed(detail, EndKind.UNAVAILABLE, 504)) from None
        if self._closed:
            return
        await self._service.run(self._link.publish)
        if not self._closed:
            self._attach()

    def _end(self, reason: EndReason) -> None:
        """The channel is lost for good: whoever waits for it is told, or the call."""
        if self._closed or self._ended:
            return
        self._ended = True
        if self._let_in is not None and not self._let_in.done():
            self._let_in.set_result(None)
        if self._joined is not None and not self._joined.done():
            self._joined.set_exception(RtcError(reason))
        else:
            self._listener.closed(reason)

    # --- the audio

    @property
    def _room(self) -> str:
        return f"agora/{self._join.call_id}"

    @property
    def _hears_users(self) -> bool:
        return self._config.receive == "users"

    def _attach(self) -> None:
        """Opens the port that the telephone is heard by, and lets the telephone hear the room."""
        vad, settings = self._config.vad, self._vad_settings
        if vad is not None and settings is not None:
            self._voice = Voice(self._rate_hz, settings, only_speech=vad.only_speech)
        self._open_out()
        for user_id in self._present:
            self._open_user(user_id)

    def _open_out(self) -> None:
        """It has the telephone's rate, so whole frames are handed on."""
        media = self.context.media
        self._out = self.context.remotes.open_samples(
            self._port.sample_rate_hz, self._say, member_rate_hz=self._rate_hz
        )
        if self._hears_users:
            # only one port may hear the telephone alone
            media.attach(self._out.port_id, Channel())
            media.attach(self._port.port_id, Room(self._room, to=self._out.port_id))
        else:
            media.attach(self._out.port_id, Room(self._room))
            media.attach(self._port.port_id, Room(self._room))

    @property
    def _vad_settings(self) -> VadSettings | None:
        vad = self._config.vad
        if vad is None:
            return None
        return VadSettings(vad.threshold, vad.start_ms, vad.stop_ms, vad.pre_speech_ms)

    def _open_user(self, user_id: str) -> None:
        if self._hears_users and self._out is not None and user_id not in self._users:
            port = self.context.remotes.open_samples(self._rate_hz, None)
            self.context.media.attach(port.port_id, Room(self._room))
            settings = self._vad_settings
            voice = FarVoice(self._rate_hz, settings) if settings is not None else None
            self._users[user_id] = _User(port, voice)

    def _port_of(self, user_id: str) -> SamplePort | None:
        """What this user is heard by."""
        if not self._hears_users:
            return self._out
        user = self._users.get(user_id)
        return user.port if user is not None else None

    def hear(self, user_id: str, samples: Samples) -> None:
        if self._closed:
            return
        if not user_id:
            if (out := self._out) is not None:
                out.feed(samples)
        elif (user := self._users.get(user_id)) is not None:
            user.port.feed(samples)
            if user.voice is not None:
                user.voice.hear(samples)

    def _say(self, frame: Samples, rate_hz: int) -> None:
        """20 ms of the telephone. Thread of all ports."""
        link = self._link
        if link is None or self._closed:
            return
        if self._voice is None:
            self._push(link, frame)
            return
        for item in self._voice.feed(frame):
            if isinstance(item, str):
                self._tell_speech("", item)
            else:
                self._push(link, item)
        for user_id, user in tuple(self._users.items()):
            if user.voice is not None:
                for state in user.voice.judge():
                    self._tell_speech(user_id, state)

    def _push(self, link: Link, samples: Samples) -> None:
        try:
            link.push(samples)
            self._broken = 0
        except SdkCallError as error:
            self._broken += 1
            if self._broken == _BROKEN_IN_A_ROW:
                self.loop.call_soon_threadsafe(self._end, error.reason)

    def _tell_speech(self, user_id: str, state: State) -> None:
        self.loop.call_soon_threadsafe(self._speech_changed, user_id, state)

    def _speech_changed(self, user_id: str, state: State) -> None:
        """The telephone's, or with an id that of somebody in the channel."""
        if self._closed:
            return
        if user_id:
            user = self._users.get(user_id)
            if user is not None:
                user.speaks = state != "stop"
                self._listener.noticed(SPEECH, user_id, {"state": state})
            return
        self._listener.noticed(SPEECH, "", {"state": state})
        self._queue_packets(self._writer.write(state, SPEECH))
        if state == "start" and self._config.vad is not None and self._config.vad.barge_in:
            self._drop_playback()

    def _drop_playback(self) -> None:
        """What others said and the telephone has not heard."""
        for port in (self._out, *(user.port for user in self._users.values())):
            if port is not None:
                port.clear()
        self._port.clear()
        self._marks.clear()

    # --- what the SDK tells: LinkUser

    def connected(self) -> None:
        if self._let_in is not None and not self._let_in.done():
            self._let_in.set_result(None)

    def failed(self, code: int) -> None:
        self._give_up(connection_reason(code))

    def disconnected(self, code: int) -> None:
        self._give_up(connection_reason(code))

    def encryption_failed(self, code: int) -> None:
        self._give_up(encryption_reason(code))

    def _give_up(self, reason: EndReason) -> None:
        if self._let_in is not None and not self._let_in.done():
            self._let_in.set_exception(RtcError(reason))
        else:
            self._end(reason)

    def reconnecting(self) -> None:
        if self._closed or self._lost is not None:
            return
        self._log.warning("the channel is lost; the SDK tries to find it again")
        self._listener.noticed("reconnecting", "", {})
        self._lost = self.loop.call_later(self._config.reconnect_s, self._stays_lost)

    def reconnected(self) -> None:
        if self._lost is not None:
            self._lost.cancel()
            self._lost = None
            self._log.info("the channel is there again")
            self._listener.noticed("reconnected", "", {})
            self._spawn(self._drop_unsent())

    async def _drop_unsent(self) -> None:
        """What the telephone said meanwhile, which the SDK may have kept: the channel would be late by it."""
        if self._link is not None:
            with contextlib.suppress(RtcError):
                await self._service.run(self._link.interrupt)

    def lost(self) -> None:
        """The SDK has not found it for 10 s; it goes on trying."""
        self.reconnecting()

    def _stays_lost(self) -> None:
        detail = f"{self.target} was lost and did not come back within {self._config.reconnect_s:g} s"
        self._end(failed(detail))

    def user_joined(self, user_id: str) -> None:
        if not self._closed and user_id not in self._present:
            self._present.add(user_id)
            self._open_user(user_id)
            self._listener.participant_joined(user_id)

    def user_left(self, user_id: str, reason: int) -> None:
        user = self._users.pop(user_id, None)
        if user is not None:
            self._marks.leave(user.port)
            _keep(user.port.leave(self.context.media))
            if user.speaks and not self._closed:
                self._listener.noticed(SPEECH, user_id, {"state": "stop"})
        if not self._closed and user_id in self._present:
            self._present.remove(user_id)
            self._listener.participant_left(user_id, len(self._present))

    def token_expires(self) -> None:
        self._spawn(self._renew(is_last=False))

    def token_expired(self) -> None:
        self._spawn(self._renew(is_last=True))

    async def _renew(self, *, is_last: bool) -> None:
        """The SDK asks for a new token some 30 s ahead, and once more when it is too late."""
        link = self._link
        if link is None or self._closed:
            return
        try:
            token = await self._obtain_token(self._place.channel, self._place.user_id)
            await self._service.run(link.renew, token)
            self._log.info("the token is renewed")
        except (RtcError, SdkCallError) as error:
            self._log.warning("the token cannot be renewed", reason=error.reason.detail)
            if is_last:
                self._end(failed(f"the token has expired, and cannot be renewed: {error.reason.detail}"))

    def volumes(self, volumes: Mapping[str, int]) -> None:
        if not self._closed:
            self._listener.noticed("volume", "", dict(volumes))

    def metadata(self, user_id: str, data: bytes) -> None:
        if not self._closed:
            self._listener.noticed(METADATA, user_id, {"text": data.decode("utf-8", "replace")})

    def stream_message(self, user_id: str, data: bytes) -> None:
        if self._closed:
            return
        said = self._reader.read(user_id, data)
        if said is None:
            return
        topic, text = said
        is_allowed = topic in self._config.allow
        match topic:
            case "dtmf" if is_allowed and len(text) <= _MAX_KEYS:
                for digit in text.upper():
                    if digit in KEYS:
                        self._listener.dtmf(digit)
            case "hangup" if is_allowed:
                reason = EndReason(EndKind.CHANNEL_CLOSED, f"user {user_id} has hung up", Party.CHANNEL)
                self._listener.hangup_requested(reason)
            case "hold" | "transfer" | "play":
                self._spawn(self._obey(topic, text))
            case "mark":
                self._mark(user_id, text[:_MAX_NAME])
            case "clear":
                self._drop_playback()
            case _:
                self._listener.message(topic, text)

    # --- what the channel asks for, and is told how it went

    async def _obey(self, wish: str, text: str) -> None:
        """It may have to wait for the telephone."""
        obey = {"hold": self._hold, "transfer": self._transfer, "play": self._play}
        try:
            if wish not in self._config.allow:
                raise ValueError(f"{wish} is not allowed here")
            await obey[wish](text)
        except (ValueError, CallError) as error:
            self._answer(wish, text, state="failed", reason=str(error))
        else:
            self._answer(wish, text, state="done")

    def _mark(self, user_id: str, name: str) -> None:
        if not self._closed and not self._marks.set(name, self._port_of(user_id)):
            self._log.warning("too many marks wait; one is not answered")

    def _answer(self, topic: str, text: str, **more: str) -> None:
        if not self._closed:
            self._queue_packets(self._writer.write(text[:_MAX_NAME], topic, **more))

    async def _hold(self, text: str) -> None:
        if text not in ("", "on", "off"):
            raise ValueError("expected on or off")
        await self._listener.hold(text != "off")

    async def _transfer(self, text: str) -> None:
        if not text:
            raise ValueError("expected a number, or a sip: URI")
        await self._listener.transfer(text)

    async def _play(self, text: str) -> None:
        folder = self._config.sounds
        if folder is None or PurePath(text).name != text:
            raise ValueError("expected NAME.wav, one of the sounds")
        try:
            sound = open_wav(folder / text, self._port.sample_rate_hz)
        except MediaError:
            raise ValueError(f"there is no sound {text}") from None
        self.context.media.overlay(self._port.port_id, sound)

    # --- the telephone's side

    def call_changed(self, status: CallStatus) -> None:
        out = self._out
        if self._closed or out is None or self._port.sample_rate_hz == out.sample_rate_hz:
            return
        self._open_out()
        self._marks.leave(out)
        _keep(out.leave(self.context.media))

    async def send_dtmf(self, digit: str, duration_ms: int) -> None:
        await self.send_message(digit, DTMF)

    async def send_message(self, message: str | bytes, topic: str = "") -> None:
        if self._out is None or self._closed:
            return
        if topic == METADATA:
            data = message.encode() if isinstance(message, str) else message
            if len(data) > MAX_METADATA_BYTES:
                self._log.warning("audio metadata are too long", bytes=len(data), most=MAX_METADATA_BYTES)
                return
            self._spawn(self._send_metadata(data))
            return
        try:
            self._queue_packets(self._writer.write(message, topic))
        except ValueError as error:
            self._log.warning("a message is too long", reason=str(error))

    async def _send_metadata(self, data: bytes) -> None:
        if self._link is not None:
            try:
                await self._service.run(self._link.send_metadata, data)
            except (RtcError, SdkCallError) as error:
                self._log.warning("audio metadata could not be sent", reason=str(error))

    def _queue_packets(self, packets: list[bytes]) -> None:
        if len(self._packets) + len(packets) > _MAX_WAITING:
            self._log.warning("messages come faster than the channel takes them; one is dropped")
            return
        self._packets += packets
        if self._sending is None or self._sending.done():
            self._sending = self._spawn(self._send_packets())

    async def _send_packets(self) -> None:
        while self._packets and self._link is not None and not self._closed:
            try:
                await self._service.run(self._link.send_message, self._packets.popleft())
            except (RtcError, SdkCallError) as error:
                self._log.warning("a message could not be sent", reason=str(error))
            if self._packets:
                await asyncio.sleep(_PACKET_S)

    # --- leaving

    async def close(self, reason: EndReason) -> None:
        if self._closed:
            return
        self._closed = True
        if self._joined is None:
            return  # it never joined
        self._marks.close()
        if self._lost is not None:
            self._lost.cancel()
        if self._let_in is not None and not self._let_in.done():
            self._let_in.set_result(None)
        if not self._joined.done():
            self._joined.set_result(None)  # and `_enter` leaves
        elif self._out is not None or self._ended:
            self._leave()

    def _leave(self) -> None:
        """Whatever there is is given back, once its audio is heard no more."""
        link, self._link = self._link, None
        ports = [user.port for user in self._users.values()]
        if self._out is not None:
            ports.append(self._out)
        if self._out is not None:
            self.context.media.detach(self._port.port_id)
        self._users.clear()
        self._out = None
        if link is not None:
            link.user = None

        async def leave() -> None:
            for port in ports:
                await port.leave(self.context.media)
            if link is not None:
                await self._service.give_back(link)

        if link is not None or ports:
            _keep(leave())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _is_number(user_id: str) -> bool:
    return user_id.isascii() and user_id.isdigit() and int(user_id) < 2**32


def _keep(work: Coroutine[Any, Any, None]) -> None:
    """Outlives the call."""
    task = asyncio.ensure_future(work)
    _leaving.add(task)
    task.add_done_callback(_leaving.discard)
