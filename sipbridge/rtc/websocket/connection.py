# SPDX-License-Identifier: GPL-3.0-or-later
"""`agent:NAME`, `ws://…`, `wss://…`, `audiosocket://…`: one call's conversation with a voice agent.

::

            connect()                     the agent closes in order, or breaks the protocol
    new ──────────────► open ───────────────────────────────────────────────────────────► closed
                         ▲ │ the connection breaks, or the agent reads nothing for a while   ▲
                         │ ▼                                                                 │
                      reopening ── the same URL for `reconnect_s`, then the next ones ───────┘ none answers

Everything here lives on the event loop; the media thread meets `FramePump` and `AgentPlayback` alone.
"""

import asyncio
import functools
import re
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from pydantic import ValidationError

from sipbridge.config import AgentConfig
from sipbridge.errors import CallError, EndKind, EndReason, MediaError, Party, RtcError
from sipbridge.log import get_logger
from sipbridge.media.loop import Channel, MakeSource
from sipbridge.media.vad import SpeechGate, SpeechStarted, SpeechStopped, VadSettings, VoiceDetector
from sipbridge.media.wav import open_wav
from sipbridge.routing import Target, fill
from sipbridge.rtc.base import JoinRequest, PlaybackQueue, RtcConnection, RtcContext, RtcListener, Samples
from sipbridge.rtc.websocket.playback import AgentPlayback
from sipbridge.rtc.websocket.protocol import (
    WISHES,
    Conversation,
    Digits,
    Event,
    Hangup,
    Hold,
    Message,
    Protocol,
    Transfer,
    load_protocol,
)
from sipbridge.rtc.websocket.pump import get_pump
from sipbridge.rtc.websocket.session import Converter, Notes, Session, SpeechSession, keys_of
from sipbridge.rtc.websocket.transport import ConnectError, open_transport

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 2.0  # between attempts to reconnect
_FIELD = re.compile(r"\{(caller|callee|call_id|header:[^{}]+)\}")


def find_agent(target: Target, agents: tuple[AgentConfig, ...]) -> AgentConfig:
    """What is configured for a target, or the defaults for a bare URL; ValueError."""
    if target.scheme == "agent":
        for agent in agents:
            if agent.name == target.address:
                return agent
        raise ValueError(f"there is no [[agent]] {target.address!r}")
    url, _, protocol = str(target).partition("#")
    protocol = protocol or ("audiosocket" if target.scheme == "audiosocket" else "proxy")
    try:
        return AgentConfig(name="target", url=(url,), protocol=protocol)
    except ValidationError as error:
        message = error.errors(include_url=False)[0]["msg"]
        raise ValueError(message.removeprefix("Value error, ")) from None


def fill_parameters(value: Any, fields: Mapping[str, str], headers: Mapping[str, str]) -> Any:
    """``{caller}``, ``{callee}``, ``{call_id}`` and ``{header:X-Name}`` in all texts of a value."""
    if isinstance(value, str):
        by_name = {name.lower(): text for name, text in headers.items()}

        def text_of(match: re.Match[str]) -> str:
            name = match[1].removeprefix("header:")
            return fields[name] if name == match[1] else by_name.get(name.lower(), "")

        return _FIELD.sub(text_of, value)
    if isinstance(value, Mapping):
        return {key: fill_parameters(item, fields, headers) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [fill_parameters(item, fields, headers) for item in value]
    return value


class WebSocketConnection(RtcConnection):
    """A call's agent, over however many connections."""

    def __init__(self, target: Target, context: RtcContext) -> None:
        super().__init__(target, context)
        self.agent = find_agent(target, context.config.agent)
        self._protocol_class: type[Protocol] = load_protocol(self.agent.protocol)
        self.join_s = max(self.join_s, len(self.agent.url) * self.agent.connect_timeout_s + 1.0)
        self._closed = False
        self._attached = False
        self._session: SpeechSession | None = None  # the one that is open
        self._opening: asyncio.Future[None] | None = None  # done when the agent is ready, or never will be
        self._task: asyncio.Task[None] | None = None
        self._asking: set[asyncio.Task[None]] = set()  # of the call, for the agent
        self._url_index = 0
        self.notes: Notes
        self._port: PlaybackQueue
        self._listener: RtcListener
        self._conversation: Conversation
        self._urls: list[str] = []
        self._speech: AgentPlayback
        self._prompt: MakeSource | None = None
        self._converter = Converter(context.config.media.live_resampler)  # of the telephone's audio
        self._detector: VoiceDetector | None = None
        self._gate: SpeechGate | None = None
        self._headers = {name: secret.get_secret_value() for name, secret in self.agent.headers.items()}
        if self.agent.token is not None:
            self._headers["Authorization"] = f"Bearer {self.agent.token.get_secret_value()}"

    # --- joining

    async def connect(self, join: JoinRequest, playback: PlaybackQueue, listener: RtcListener) -> None:
        if self._closed:
            return
        agent = self.agent
        self._port, self._listener = playback, listener
        self._log = get_logger(__name__, call_id=join.call_id, agent=agent.name)
        self.notes = Notes(self._log)
        fields = {"caller": join.caller, "callee": join.callee, "call_id": join.call_id}
        try:
            self._urls = [fill(url, fields, join.headers) for url in agent.url]
            self._conversation = Conversation(
                call_id=join.call_id,
                caller=join.caller,
                callee=join.callee,
                direction=join.direction,
                headers=join.headers,
                leg_rate_hz=playback.sample_rate_hz,
                rate_hz=agent.sample_rate_hz or 0,
                frame_ms=agent.frame_ms,
                parameters=fill_parameters(agent.parameters, fields, join.headers),
            )
            protocol = self._protocol_class(self._conversation)
            if agent.reconnect_prompt is not None:
                self._prompt = await asyncio.to_thread(
                    open_wav, agent.reconnect_prompt, playback.sample_rate_hz, loop=True
                )
            self._listen_for_speech(protocol.send_rate_hz)
        except (ValueError, MediaError, CallError) as error:
            raise RtcError(self.failed(str(error))) from error
        self._speech = AgentPlayback(
            playback,
            rate_hz=protocol.receive_rate_hz,
            max_buffer_s=agent.max_buffer_s,
            on_room=self._read_on,
            live_resampler=self.context.config.media.live_resampler,
        )
        if self._closed:
            return
        self._opening = asyncio.get_running_loop().create_future()
        self._task = asyncio.ensure_future(self._live(self._opening))
        if agent.answer == "now":
            self._attach()
        else:
            await self._opening

    def _listen_for_speech(self, rate_hz: int) -> None:
        vad = self.agent.vad
        if vad is not None:
            settings = VadSettings(vad.threshold, vad.start_ms, vad.stop_ms, vad.pre_speech_ms)
            self._detector = VoiceDetector(rate_hz, settings)
            self._gate = SpeechGate(self._detector) if vad.only_speech else None

    def _attach(self) -> None:
        if not self._attached:
            self._attached = True
            take = functools.partial(get_pump().put, self._hear)
            self.context.media.attach(self._port.port_id, Channel(take, self._speech.make))

    async def _live(self, opening: asyncio.Future[None]) -> None:
        """From the first attempt to the last connection's end; a fault of a codec ends the call."""
        try:
            await self._stay_connected(opening)
        except RtcError as error:
            self._finish(error.reason, opening)
        except Exception as error:
            self._log.exception("a fault in the conversation with the agent")
            self._finish(self.failed(f"internal error: {error}"), opening)

    async def _stay_connected(self, opening: asyncio.Future[None]) -> None:
        self._session = await self._open_any(self._urls)
        self._attach()
        if not opening.done():
            opening.set_result(None)
        while True:
            session = self._session
            end = await session.ended
            self._session = None
            if end is not None:
                self._finish(end, opening)
                return
            self._log.warning("the connection to the agent is lost", reason=session.detail)
            self._speech.prompt = self._prompt
            try:
                self._session = await self._reopen()
            finally:
                self._speech.prompt = None
            self._log.info("connected to the agent again", url=self._urls[self._url_index])

    async def _open_any(self, urls: list[str]) -> SpeechSession:
        """The first that answers; RtcError, with the last one's reason, when none does."""
        detail = ""
        for url in urls:
            try:
                session = await self._open(url)
            except ConnectError as error:
                detail = f"{url}: {error}"
                self._log.warning("the agent cannot be reached", url=url, reason=str(error))
            else:
                self._url_index = self._urls.index(url)
                return session
        raise RtcError(self.failed(detail))

    async def _reopen(self) -> SpeechSession:
        """The same URL for a while, then each of the others once."""
        loop = asyncio.get_running_loop()
        here = self._urls[self._url_index]
        others = self._urls[self._url_index + 1 :] + self._urls[: self._url_index]
        until = loop.time() + self.agent.reconnect_s
        pause_s = _FIRST_PAUSE_S
        detail = "lost, and not to be tried again"
        while (left_s := until - loop.time()) > 0:
            try:
                async with asyncio.timeout(left_s):
                    return await self._open(here)
            except (ConnectError, TimeoutError) as error:
                detail = str(error) or "no answer"
            await asyncio.sleep(min(pause_s, max(0.0, until - loop.time())))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        self._log.warning("the agent does not come back", url=here, reason=detail)
        if not others:
            raise RtcError(self.failed(f"{here}: {detail}"))
        return await self._open_any(others)

    async def _open(self, url: str) -> SpeechSession:
        """A connection whose agent is ready; ConnectError."""
        agent = self.agent
        session = SpeechSession(self, self._protocol_class(self._conversation), self._speech)
        try:
            async with asyncio.timeout(agent.connect_timeout_s):
                transport = await open_transport(
                    url,
                    session,
                    headers=self._headers,
                    subprotocol=session.protocol.subprotocol,
                    ca=agent.ca,
                    timeout_s=agent.connect_timeout_s,
                )
                session.begin(transport)
                await session.ready.wait()
        except TimeoutError:
            session.close()
            raise ConnectError(f"not ready within {agent.connect_timeout_s:g} s") from None
        except BaseException:
            session.close()
            raise
        if session.ended.done():
            raise ConnectError(session.detail)
        return session

    def failed(self, detail: str) -> EndReason:
        return EndReason(EndKind.CHANNEL_FAILED, f"agent {self.agent.name}: {detail}", Party.CHANNEL)

    def _finish(self, reason: EndReason, opening: asyncio.Future[None]) -> None:
        """There is no agent any more: whoever waits for it is told, or the call."""
        if self.agent.answer == "ready" and not opening.done():
            opening.set_exception(RtcError(reason))
        elif not self._closed:
            self._listener.closed(reason)

    # --- the telephone's side

    def _hear(self, frame: Samples, rate_hz: int) -> None:
        """A frame of the telephone."""
        session = self._session
        if session is None or self._closed:
            return
        frame = self._converter.convert(frame, rate_hz, session.protocol.send_rate_hz)
        if self._gate is not None:
            for item in self._gate.feed(frame):
                if isinstance(item, SpeechStarted | SpeechStopped):
                    self._speech_changed(session, isinstance(item, SpeechStarted))
                else:
                    session.say(item)
            return
        if self._detector is not None:
            for event in self._detector.feed(frame):
                self._speech_changed(session, isinstance(event, SpeechStarted))
        session.say(frame)

    def _speech_changed(self, session: SpeechSession, started: bool) -> None:
        session.send(session.protocol.speech(started))
        if started and self.agent.vad is not None and self.agent.vad.barge_in and self._speech.queued:
            session.clear()

    def _read_on(self) -> None:
        if self._session is not None:
            self._session.pause_reading(False)

    async def send_dtmf(self, digit: str, duration_ms: int) -> None:
        if self._session is not None:
            self._session.send(self._session.protocol.digit(digit, duration_ms))

    async def send_message(self, message: str | bytes, topic: str = "") -> None:
        if self._session is not None:
            text = message if isinstance(message, str) else message.decode("utf-8", "replace")
            self._session.send(self._session.protocol.message(text, topic))

    # --- the agent's side

    def wishes(self, session: Session, event: Event) -> None:
        """What an agent asks of the call."""
        if self._closed:
            return
        allow = self.agent.allow
        match event:
            case Message(topic, text):
                self._listener.message(topic, text)
            case Digits(digits) if "dtmf" in allow:
                for digit in keys_of(digits, self.notes):
                    self._listener.dtmf(digit)
            case Hangup() if "hangup" in allow:
                reason = EndReason(EndKind.CHANNEL_CLOSED, "the agent has hung up", Party.CHANNEL)
                if event.after_speech and self._speech.queued:
                    self._speech.mark(lambda cleared: self._hang_up(reason))
                else:
                    self._hang_up(reason)
            case Transfer(to) if "transfer" in allow:
                ask = functools.partial(self._ask, session, "transfer", self._listener.transfer, to)
                if self._speech.queued:  # "I put you through" is heard first
                    self._speech.mark(lambda cleared: ask())
                else:
                    ask()
            case Hold(held) if "hold" in allow:
                self._ask(session, "hold", self._listener.hold, held)
            case Digits() | Hangup() | Transfer() | Hold():
                wish = WISHES[type(event)]
                self.notes.warn(wish, "the agent asks for what its configuration does not allow", wish=wish)
                session.send(session.protocol.refused(wish, f'"{wish}" is not in its "allow"'))

    def _ask[T](
        self, session: Session, wish: str, fulfil: Callable[[T], Coroutine[Any, Any, None]], argument: T
    ) -> None:
        """Asks it of the call, and tells the agent when it is not done."""

        async def ask() -> None:
            try:
                await fulfil(argument)
            except CallError as error:
                self.notes.warn(wish, "what the agent asks for cannot be done", wish=wish, reason=str(error))
                session.send(session.protocol.refused(wish, str(error)))

        task = asyncio.ensure_future(ask())
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    def _hang_up(self, reason: EndReason) -> None:
        if not self._closed:
            self._listener.hangup_requested(reason)

    # --- leaving

    async def close(self, reason: EndReason) -> None:
        if self._closed:
            return
        self._closed = True
        if self._opening is None:
            return  # it never joined
        if not self._opening.done():
            self._opening.set_result(None)
        if self._session is not None:
            self._session.send(self._session.protocol.stop())
            self._session.close()
            self._session = None
        if self._task is not None:
            self._task.cancel()
        self._speech.close()
        if self._attached:
            self._attached = False
            self.context.media.detach(self._port.port_id)
