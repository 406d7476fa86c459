# SPDX-License-Identifier: GPL-3.0-or-later
"""Agora's service, of which a process has one, and the connections that calls take turns with.

::

    event loop ──► Service.run() ──► thread "agora": all that is asked of the SDK, in order
    media      ──► Link.push()   ──► the SDK         (thread of the remote ports)
    the SDK's threads ──► Link's observer ──► LinkUser: copied or posted, and nothing else

A link is a native connection. Making one takes a while and is said to leak, so a call gives it back when it
has left its channel, and the next call joins with it. What comes while nobody has the link is for nobody.
"""

import asyncio
import concurrent.futures
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import platformdirs

from sipbridge.config import AgoraConfig
from sipbridge.errors import EndReason, RtcError
from sipbridge.log import get_logger
from sipbridge.rtc.agora import sdk
from sipbridge.rtc.agora.reasons import call_reason, failed
from sipbridge.rtc.base import Samples

log = logging.getLogger(__name__)

_LEAVE_S = 2.0  # that the SDK may take to say that a channel was left
_STOP_S = 5.0  # that all calls may take for it, at the end of the process
_EXCHANGE_S = 0.1  # that it takes the SDK to exchange a track
_LOG_KB = 2048  # of one file of the SDK's log; it keeps a few
_SMOOTH = 3  # of volumes, as Agora recommends

_AREAS = {"global": 0xFFFFFFFF, "cn": 1, "na": 2, "eu": 4, "as": 8, "jp": 16, "in": 32}
_SCENARIOS = {"default": 0, "game-streaming": 3, "chatroom": 5, "chorus": 7, "meeting": 8, "ai-server": 9}
_PROFILES = {"default": 0, "speech": 1, "music": 2, "music-high-quality": 4}
_CHANNEL_PROFILES = {"communication": 0, "live-broadcasting": 1}
_CIPHERS = {
    "aes-128-xts": 1,
    "aes-128-ecb": 2,
    "aes-256-xts": 3,
    "sm4-128-ecb": 4,
    "aes-128-gcm": 5,
    "aes-256-gcm": 6,
    "aes-128-gcm2": 7,
    "aes-256-gcm2": 8,
}
_BROADCASTER, _PCM = 1, 1
_PLAYBACK, _BEFORE_MIXING = 1, 8  # where audio is listened to
_READ_ONLY = 0

SCENARIOS = tuple(_SCENARIOS)


class LinkUser(Protocol):
    """The call that has a link. On the event loop, but for `hear`."""

    loop: asyncio.AbstractEventLoop

    def hear(self, user_id: str, samples: Samples) -> None:
        """A thread of the SDK; it must not wait. The samples are its own to keep. User "": all of them."""
        ...

    def connected(self) -> None: ...
    def failed(self, code: int) -> None: ...
    def disconnected(self, code: int) -> None: ...
    def reconnecting(self) -> None: ...
    def reconnected(self) -> None: ...
    def lost(self) -> None: ...
    def user_joined(self, user_id: str) -> None: ...
    def user_left(self, user_id: str, reason: int) -> None: ...
    def token_expires(self) -> None: ...
    def token_expired(self) -> None: ...
    def encryption_failed(self, code: int) -> None: ...
    def stream_message(self, user_id: str, data: bytes) -> None: ...
    def metadata(self, user_id: str, data: bytes) -> None: ...
    def volumes(self, volumes: Mapping[str, int]) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a call goes, as who, and how."""

    channel: str
    user_id: str
    token: str
    scenario: str


def parameters_of(config: AgoraConfig) -> dict[str, Any]:
    """What a connection is told before it connects: a private deployment, a proxy, anything else."""
    parameters: dict[str, Any] = {}
    if config.local_access_points:
        parameters["rtc.force_local"] = True
        parameters["rtc.local_ap_list"] = list(config.local_access_points)
        if config.local_edges:
            parameters["rtc.vos_list"] = list(config.local_edges)
        if config.proxy:
            parameters["rtc.enable_proxy"] = True
            parameters["rtc.local_ap_low_level"] = True
        else:
            parameters["rtc.enable_nasa2"] = False
            if config.local_domain:
                parameters["rtc.local_domain"] = config.local_domain
    return parameters | config.parameters


class _Observer:
    """Whatever the SDK tells and nobody wants to know."""

    def __init__(self, link: "Link") -> None:
        self._link = link

    def __getattr__(self, name: str) -> Callable[..., int]:
        if not name.startswith("on_"):
            raise AttributeError(name)
        return _ignore


def _ignore(*arguments: Any) -> int:
    return 0


class _ConnectionObserver(_Observer):
    def on_connected(self, connection: Any, info: Any, reason: int) -> None:
        self._link.tell("connected")

    def on_connection_failure(self, connection: Any, info: Any, reason: int) -> None:
        self._link.tell("failed", reason)

    def on_disconnected(self, connection: Any, info: Any, reason: int) -> None:
        self._link.left.set()
        self._link.tell("disconnected", reason)

    def on_reconnecting(self, connection: Any, info: Any, reason: int) -> None:
        self._link.tell("reconnecting")

    def on_reconnected(self, connection: Any, info: Any, reason: int) -> None:
        self._link.tell("reconnected")

    def on_connection_lost(self, connection: Any, info: Any) -> None:
        self._link.tell("lost")

    def on_user_joined(self, connection: Any, user_id: str) -> None:
        self._link.tell("user_joined", user_id)

    def on_user_left(self, connection: Any, user_id: str, reason: int) -> None:
        self._link.tell("user_left", user_id, reason)

    def on_token_privilege_will_expire(self, connection: Any, token: str) -> None:
        self._link.tell("token_expires")

    def on_token_privilege_did_expire(self, connection: Any) -> None:
        self._link.tell("token_expired")

    def on_encryption_error(self, connection: Any, code: int) -> None:
        self._link.tell("encryption_failed", code)

    def on_aiqos_capability_missing(self, connection: Any, recommended: int) -> int:
        return int(recommended)  # the SDK then falls back to this scenario by itself


class _UserObserver(_Observer):
    def on_stream_message(self, user: Any, user_id: str, stream: int, data: bytes, size: int) -> None:
        self._link.tell("stream_message", user_id, bytes(data))

    def on_audio_meta_data_received(self, user: Any, user_id: str, data: bytes) -> None:
        self._link.tell("metadata", user_id, bytes(data))

    def on_audio_volume_indication(self, user: Any, speakers: Any, count: int, total: int) -> None:
        self._link.tell("volumes", {speaker.user_id: speaker.volume for speaker in speakers})


class _FrameObserver(_Observer):
    """The SDK has made a copy of each frame before it calls."""

    def on_get_audio_frame_position(self, user: Any) -> int:
        return _BEFORE_MIXING if self._link.hears_users else _PLAYBACK

    def on_playback_audio_frame(self, user: Any, channel: str, frame: Any) -> int:
        self._link.hear("", frame)
        return 1

    def on_playback_audio_frame_before_mixing(
        self, user: Any, channel: str, user_id: str, frame: Any, vad: int, speech: Any
    ) -> int:
        self._link.hear(user_id, frame)
        return 1


class Link:
    """A native connection. What is not said otherwise is for the thread of the SDK's calls; SdkCallError."""

    def __init__(self, service: "Service", names: Any, native: Any, scenario: str) -> None:
        self.scenario = scenario
        self.user: LinkUser | None = None  # set and taken away on the event loop
        self.left = threading.Event()  # the channel
        self.is_broken = False  # a call of the SDK failed, so nobody shall have it again
        config = service.config
        self.hears_users = config.receive == "users"
        self._config = config
        self._names = names
        self._sending = threading.Lock()
        self._is_published = False
        self._is_unheard = False  # and that has been said
        self._observers = _ConnectionObserver(self), _UserObserver(self), _FrameObserver(self)
        publish = names.RtcConnectionPublishConfig(
            audio_profile=names.AudioProfileType(_PROFILES[config.audio_profile]),
            audio_scenario=names.AudioScenarioType(_SCENARIOS[scenario]),
            is_publish_audio=True,
            audio_publish_type=names.AudioPublishType(_PCM),
        )
        settings = names.RTCConnConfig(
            auto_subscribe_audio=1,
            # the mix is what would be played out
            enable_audio_recording_or_playout=0 if self.hears_users else 1,
            client_role_type=names.ClientRoleType(_BROADCASTER),
            channel_profile=names.ChannelProfileType(_CHANNEL_PROFILES[config.channel_profile]),
        )
        self._native: Any = self._ask("create_rtc_connection", self._create, native, settings, publish)
        try:
            if self._native is None or not self._native.conn_handle:
                raise SdkCallError("create_rtc_connection", -1)
            self._ask("register_observer", self._native.register_observer, self._observers[0])
            for name, value in parameters_of(config).items():
                agora_parameter = self._native.get_agora_parameter()
                if agora_parameter is None:
                    raise SdkCallError("get_agora_parameter", -1)
                self._ask("set_parameters", agora_parameter.set_parameters, json.dumps({name: value}))
        except SdkCallError:
            self.destroy()
            raise

    def _create(self, service: Any, settings: Any, publish: Any) -> Any:
        """As the service does it, but what fails halfway is released."""
        kind = self._names.RTCConnection
        native = kind.__new__(kind)
        try:
            native.__init__(service, settings, publish)
        except Exception:
            for part in ("_audio_track", "_audio_sender"):
                if getattr(native, part, None) is not None:
                    getattr(native, part).release()
            if native.conn_handle:
                self._names.agora_rtc_conn_release(native.conn_handle)
            raise
        return native

    def _ask(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Calls the SDK; what it raises, or says by a negative number, becomes an error of ours."""
        try:
            answer = function(*arguments)
        except Exception as error:
            self.is_broken = True
            raise SdkCallError(name, -1, repr(error)) from error
        if isinstance(answer, int) and answer < 0:
            self.is_broken = True
            raise SdkCallError(name, answer)
        return answer

    # --- threads of the SDK

    def tell(self, event: str, *arguments: Any) -> None:
        user = self.user
        if user is not None:
            try:
                user.loop.call_soon_threadsafe(self._pass_on, user, event, arguments)
            except RuntimeError:
                self.user = None  # its event loop has ended

    def _pass_on(self, user: LinkUser, event: str, arguments: tuple[Any, ...]) -> None:
        if self.user is user:
            getattr(user, event)(*arguments)

    def hear(self, user_id: str, frame: Any) -> None:
        user = self.user
        if user is None:
            return
        if frame.samples_per_sec == self._config.sample_rate_hz and frame.channels == 1:
            user.hear(user_id, np.frombuffer(frame.buffer, np.int16))
        elif not self._is_unheard:
            self._is_unheard = True
            log.warning(
                "Agora's SDK gives audio of %d Hz and %d channels, which is not heard; asked for was %d Hz",
                frame.samples_per_sec,
                frame.channels,
                self._config.sample_rate_hz,
            )

    # --- a call's turn

    def join(self, place: Place) -> None:
        """Asks to be let in; `connected` or `failed` follows."""
        native, config = self._native, self._config
        rate_hz = config.sample_rate_hz
        self.left.clear()
        user = native.get_local_user()
        if self.hears_users:
            self._ask(
                "set_playback_audio_frame_before_mixing_parameters",
                user.set_playback_audio_frame_before_mixing_parameters,
                1,
                rate_hz,
            )
        else:
            self._ask(
                "set_playback_audio_frame_parameters",
                user.set_playback_audio_frame_parameters,
                1,
                rate_hz,
                _READ_ONLY,
                rate_hz // 50,
            )
        register = native.register_audio_frame_observer
        # with the SDK's voice detection off: ours takes its place
        self._ask("register_audio_frame_observer", register, self._observers[2], 0, None)
        self._ask("register_local_user_observer", native.register_local_user_observer, self._observers[1])
        if config.volume_interval_ms:
            self._ask(
                "set_audio_volume_indication_parameters",
                user.set_audio_volume_indication_parameters,
                config.volume_interval_ms,
                _SMOOTH,
                False,
            )
        if config.encryption is not None:
            self._ask("enable_encryption", native.enable_encryption, 1, self._encryption())
        self._ask("connect", native.connect, place.token, place.channel, place.user_id)

    def _encryption(self) -> Any:
        encryption = self._config.encryption
        assert encryption is not None
        return self._names.EncryptionConfig(
            encryption_mode=_CIPHERS[encryption.mode],
            encryption_key=encryption.key.get_secret_value(),
            encryption_kdf_salt=encryption.salt_bytes,
            datastream_encryption_enabled=encryption.messages,
        )

    def publish(self) -> None:
        """From now on what is pushed is heard."""
        try:
            self._ask("publish_audio", self._native.publish_audio)
        except SdkCallError:
            # it exchanges the track, on a thread of its own, where agents are too old for the scenario
            time.sleep(_EXCHANGE_S)
            self._ask("publish_audio", self._native.publish_audio)
        with self._sending:
            self._is_published = True

    def push(self, samples: Samples) -> None:
        """Whole milliseconds at the configured rate, to be heard next. Any thread."""
        with self._sending:
            if self._is_published:
                data, push = bytearray(samples), self._native.push_audio_pcm_data
                self._ask("push_audio_pcm_data", push, data, self._config.sample_rate_hz, 1)

    def interrupt(self) -> None:
        """Drops what was pushed and not yet sent; what the SDK answers says nothing."""
        with self._sending:
            if self._is_published:
                self._native.interrupt_audio()

    def send_message(self, packet: bytes) -> None:
        self._ask("send_stream_message", self._native.send_stream_message, packet)

    def send_metadata(self, data: bytes) -> None:
        self._ask("send_audio_meta_data", self._native.send_audio_meta_data, data)

    def renew(self, token: str) -> None:
        self._ask("renew_token", self._native.renew_token, token)

    def leave(self) -> None:
        """`left` is set when that is done."""
        with self._sending:
            self._is_published = False
        self._ask("disconnect", self._native.disconnect)

    def destroy(self) -> None:
        """Never raises: it is the end."""
        with self._sending:
            self._is_published = False
            native, self._native = self._native, None
        if native is None or not native.conn_handle:
            return
        try:
            native.release()
        except Exception:
            log.exception("a connection of Agora's could not be released")


class SdkCallError(Exception):
    """A call of the SDK failed."""

    def __init__(self, function: str, code: int, detail: str = "") -> None:
        super().__init__(function, code, detail)
        self.reason: EndReason = failed(f"{function}: {detail}") if detail else call_reason(function, code)

    def __str__(self) -> str:
        return self.reason.detail


class Service:
    """The SDK in this process. Event loop; it may be used by one event loop after the other."""

    _only: ClassVar["Service | None"] = None

    @classmethod
    def get(cls, config: AgoraConfig) -> "Service":
        """The one of this process; nothing is loaded yet. RtcError for another project than the first one."""
        if cls._only is None:
            cls._only = cls(config)
        elif cls._only.config != config:
            raise RtcError(failed("this process serves another [agora] already"))
        return cls._only

    @classmethod
    async def shut_down(cls) -> None:
        """Releases everything, connections first."""
        service, cls._only = cls._only, None
        if service is not None:
            await service.close()

    def __init__(self, config: AgoraConfig) -> None:
        self.config = config
        self._log = get_logger(__name__)
        # threads of the SDK's are told to it, and nothing of it runs on the event loop
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "agora")
        self._names: Any = None
        self._native: Any = None
        self._idle: list[Link] = []
        self._links: set[Link] = set()
        self._leaving: set[asyncio.Task[None]] = set()
        self._is_closed = False

    async def run[R](self, work: Callable[..., R], *arguments: Any) -> R:
        """Has the thread do it, after all that was asked before. Cancelling the caller does not stop it."""
        return await asyncio.wrap_future(self._submit(work, *arguments))

    def _submit[R](self, work: Callable[..., R], *arguments: Any) -> concurrent.futures.Future[R]:
        try:
            return self._thread.submit(work, *arguments)
        except RuntimeError:
            raise RtcError(failed("the service of this process is closed")) from None

    async def acquire(self, scenario: str) -> Link:
        """A link for one call, used or new. RtcError."""
        for link in self._idle:
            if link.scenario == scenario:
                self._idle.remove(link)
                return link
        await self.start()
        try:
            link = await self.run(Link, self, self._names, self._native, scenario)
        except SdkCallError as error:
            raise RtcError(error.reason) from error
        self._links.add(link)
        return link

    async def start(self) -> None:
        """Loads the SDK and makes its service, if that has not been done. RtcError."""
        try:
            await self.run(self._start)
        except (SdkCallError, sdk.SdkError) as error:
            reason = error.reason if isinstance(error, SdkCallError) else failed(str(error))
            raise RtcError(reason) from error

    def _start(self) -> None:
        if self._native is not None:
            return
        names = sdk.load()
        config = self.config
        folder = platformdirs.user_state_path("sipbridge", appauthor=False) / "agora"
        folder.mkdir(parents=True, exist_ok=True)
        settings = names.AgoraServiceConfig(
            appid=config.app_id,
            area_code=sum(_AREAS[area] for area in config.area),
            channel_profile=names.ChannelProfileType(_CHANNEL_PROFILES[config.channel_profile]),
            audio_scenario=names.AudioScenarioType(_SCENARIOS[config.scenario]),
            use_string_uid=int(config.string_user_ids),
            log_path=str(folder / "agora.log"),
            log_file_size_kb=_LOG_KB,
            data_dir=str(folder),
            config_dir=str(folder),
        )
        native = names.AgoraService()
        try:
            if native.service_handle:
                native.initialize(settings)  # what it answers says nothing
        except Exception as error:
            native.release()
            raise SdkCallError("initialize", -1, repr(error)) from error
        if not native.inited or native.media_node_factory is None:
            native.release()
            raise SdkCallError("initialize", -1)
        self._names, self._native = names, native
        self._log.info("Agora's service is there", area=config.area, log=str(folder / "agora.log"))

    def give_back(self, link: Link) -> asyncio.Task[None]:
        """The call has no use for it any more; it leaves its channel, and the next one has it."""
        link.user = None
        task = asyncio.ensure_future(self._give_back(link))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)
        return task

    async def _give_back(self, link: Link) -> None:
        if link not in self._links:
            return  # the process ends, and it has been released
        is_well = not link.is_broken
        try:
            await self.run(link.leave)
            is_well = await asyncio.to_thread(link.left.wait, _LEAVE_S) and is_well
        except SdkCallError as error:
            self._log.warning("a channel could not be left", reason=str(error))
            is_well = False
        if is_well and len(self._idle) < self.config.pool_size and not self._is_closed:
            self._idle.append(link)
        else:
            await self._destroy(link)

    async def _destroy(self, link: Link) -> None:
        self._links.discard(link)
        await self.run(link.destroy)

    async def close(self) -> None:
        """All links are released, and then the service: the SDK wants it in this order."""
        self._is_closed = True
        if self._leaving:
            await asyncio.wait(list(self._leaving), timeout=_STOP_S)
        for link in list(self._links):
            link.user = None
            await self._destroy(link)
        self._idle.clear()
        if self._native is not None:
            native, self._native = self._native, None
            await self.run(native.release)
        self._thread.shutdown(wait=False)
