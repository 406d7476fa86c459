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
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import ValidationError

from sipbridge.config import AgentConfig
from sipbridge.errors import CallError, EndKind, EndReason, MediaError, Party, RtcError
from sipbridge.log import get_logger
from sipbridge.media.loop import Channel, MakeSource
from sipbridge.media.vad import SpeechGate, SpeechStarted, SpeechStopped, VadSettings, VoiceDetector
from sipbridge.media.wav import open_wav
from sipbridge.resample import LiveResampler, make_resampler
from sipbridge.routing import Target, fill
from sipbridge.rtc.base import JoinRequest, PlaybackQueue, RtcConnection, RtcContext, RtcListener, Samples
from sipbridge.rtc.websocket.playback import AgentPlayback
from sipbridge.rtc.websocket.protocol import (
    Audio,
    Broken,
    Clear,
    Conversation,
    Digits,
    Event,
    Hangup,
    Mark,
    Message,
    Pause,
    Protocol,
    Ready,
    StatusAsked,
    Unknown,
    Unsupported,
    Wire,
    load_protocol,
)
from sipbridge.rtc.websocket.pump import get_pump
from sipbridge.rtc.websocket.transport import ConnectError, Transport, open_transport

STUCK_S = 15.0  # an agent that reads nothing for so long is lost
_BROKEN_IN_A_ROW = 3
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 2.0  # between attempts to reconnect
_MAX_KEYS = 64  # in one message
_KEYS = frozenset("0123456789*#ABCD")
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
        self._session: Session | None = None  # the one that is open
        self._opening: asyncio.Future[None] | None = None  # done when the agent is ready, or never will be
        self._task: asyncio.Task[None] | None = None
        self._url_index = 0
        self._warned: set[str] = set()
        self._port: PlaybackQueue
        self._listener: RtcListener
        self._conversation: Conversation
        self._urls: list[str] = []
        self._speech: AgentPlayback
        self._prompt: MakeSource | None = None
        self._resampler: LiveResampler | None = None  # of the telephone's audio
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
            pump, hear = get_pump(), self._hear
            self.context.media.attach(
                self._port.port_id,
                Channel(lambda frame, rate_hz: pump.put(hear, frame, rate_hz), self._speech.make),
            )

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

    async def _open_any(self, urls: list[str]) -> "Session":
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

    async def _reopen(self) -> "Session":
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

    async def _open(self, url: str) -> "Session":
        """A connection whose agent is ready; ConnectError."""
        agent = self.agent
        session = Session(self, self._protocol_class(self._conversation), self._speech)
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
        wanted_hz = session.protocol.send_rate_hz
        if rate_hz != wanted_hz:
            resampler = self._resampler
            if resampler is None or (resampler.rate_in_hz, resampler.rate_out_hz) != (rate_hz, wanted_hz):
                kind = self.context.config.media.live_resampler
                self._resampler = resampler = make_resampler(kind, rate_hz, wanted_hz, 1)
            frame = resampler.process(frame.reshape(1, -1))[0]
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

    def _speech_changed(self, session: "Session", started: bool) -> None:
        session.send(session.protocol.speech(started))
        if started and self.agent.vad is not None and self.agent.vad.barge_in and self._speech.queued:
            session.clear()

    def _read_on(self) -> None:
        if self._session is not None:
            self._session.read_on()

    async def send_dtmf(self, digit: str, duration_ms: int) -> None:
        if self._session is not None:
            self._session.send(self._session.protocol.digit(digit, duration_ms))

    async def send_message(self, message: str | bytes, topic: str = "") -> None:
        if self._session is not None:
            text = message if isinstance(message, str) else message.decode("utf-8", "replace")
            self._session.send(self._session.protocol.message(text, topic))

    # --- the agent's side

    def warn(self, kind: str, event: str, **fields: object) -> None:
        """One line of each kind in a call."""
        if kind not in self._warned:
            self._warned.add(kind)
            self._log.warning(event, **fields)

    def note(self, event: str, **fields: object) -> None:
        self._log.info(event, **fields)

    def wishes(self, session: "Session", event: Event) -> None:
        """What an agent asks of the call."""
        if self._closed:
            return
        allow = self.agent.allow
        match event:
            case Message(topic, text):
                self._listener.message(topic, text)
            case Digits(digits) if "dtmf" in allow:
                for digit in digits[:_MAX_KEYS].upper():
                    if digit in _KEYS:
                        self._listener.dtmf(digit)
                    else:
                        self.warn("key", "the agent asks for a key that is none", digit=digit)
            case Hangup() if "hangup" in allow:
                reason = EndReason(EndKind.CHANNEL_CLOSED, "the agent has hung up", Party.CHANNEL)
                if event.after_speech and self._speech.queued:
                    self._speech.mark(lambda cleared: self._hang_up(reason))
                else:
                    self._hang_up(reason)
            case Digits() | Hangup():
                wish = "dtmf" if isinstance(event, Digits) else "hangup"
                self.warn(wish, "the agent asks for what its configuration does not allow", wish=wish)
                session.send(session.protocol.refused(wish))
            case Unsupported(wish):
                self.warn(wish, "the agent asks for what this bridge cannot do", wish=wish)
                session.send(session.protocol.refused(wish))

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


class Session:
    """One connection: what comes is carried out, what is said is put into messages. Event loop."""

    def __init__(self, owner: WebSocketConnection, protocol: Protocol, speech: AgentPlayback) -> None:
        self.protocol = protocol
        self.ready = asyncio.Event()  # or ended
        # None when the connection is lost, the reason when it is over for good
        self.ended: asyncio.Future[EndReason | None] = asyncio.get_running_loop().create_future()
        self.detail = ""  # why it ended
        self._owner = owner
        self._speech = speech
        self._base = speech.written  # where this session's speech begins
        self._transport: Transport | None = None
        self._early: list[Wire] = []  # said before the transport was there
        self._frame: list[Samples] = []  # less than a message's audio
        self._frame_size = 0
        self._broken = 0  # messages in a row
        self._is_blocked = False
        self._dropped_frames = 0
        self._is_paused = False  # reading
        self._stuck: asyncio.TimerHandle | None = None

    # --- to the agent

    def begin(self, transport: Transport) -> None:
        """The connection is there."""
        if self.ended.done():
            transport.close()
            return
        self._transport = transport
        for message in (*self.protocol.start(), *self._early):
            transport.send(message)
        self._early.clear()
        if not self.protocol.says_ready:
            self.ready.set()

    def send(self, messages: Sequence[Wire]) -> None:
        """Says what a codec gave."""
        if self.ended.done():
            return
        if self._transport is None:
            self._early += messages
            return
        for message in messages:
            self._transport.send(message)

    def say(self, samples: Samples) -> None:
        """What the telephone said, cut into messages of `frame_ms`."""
        size = self.protocol.conversation.frame_ms * self.protocol.send_rate_hz // 1000
        if not self._frame and samples.size == size:
            self._say_frame(samples)
            return
        self._frame.append(samples)
        self._frame_size += samples.size
        if self._frame_size < size:
            return
        whole = np.concatenate(self._frame)
        end = whole.size - whole.size % size
        for start in range(0, end, size):
            self._say_frame(whole[start : start + size])
        self._frame = [whole[end:].copy()] if end < whole.size else []
        self._frame_size = whole.size - end

    def _say_frame(self, samples: Samples) -> None:
        if self._is_blocked:
            self._dropped_frames += 1
        else:
            self.send(self.protocol.audio(samples))

    def clear(self) -> None:
        """Stops the agent's speech, and tells it where."""
        position = self._speech.clear()
        self.send(self.protocol.cleared(max(0, position - self._base)))

    def read_on(self) -> None:
        """There is room for more speech."""
        if self._is_paused and self._transport is not None:
            self._is_paused = False
            self._transport.pause_reading(False)

    def close(self, error: str = "") -> None:
        """Ends it; nothing more is told."""
        if not self.ended.done():
            self.ended.cancel()
        self._end_transport(error)

    def _end_transport(self, error: str = "") -> None:
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None
        if self._transport is not None:
            self._transport.close(error)
            self._transport = None

    # --- from the agent: Incoming

    def received(self, data: Wire) -> None:
        if self.ended.done():
            return
        try:
            events = self.protocol.receive(data)
        except Exception as error:  # of a codec that somebody else may have written
            events = (Broken(f"a message that its codec fails on: {error!r}"),)
        broken = False
        for event in events:
            if isinstance(event, Broken):
                broken = True
                self.unreadable(event.detail)
            else:
                self._carry_out(event)
        if not broken:
            self._broken = 0

    def unreadable(self, detail: str) -> None:
        if self.ended.done():
            return
        self._broken += 1
        self._owner.warn("broken", "a message of the agent cannot be read", reason=detail)
        if self._broken >= _BROKEN_IN_A_ROW:
            self._end(self._owner.failed(f"protocol error: {detail}"), detail)
            self._end_transport("protocol error")

    def _carry_out(self, event: Event) -> None:
        speech = self._speech
        match event:
            case Audio(samples):
                self._play(samples)
            case Clear():
                self.clear()
            case Mark():
                speech.mark(functools.partial(self._mark_reached, event))
            case Pause(paused):
                speech.paused = paused
            case StatusAsked():
                self.send(self.protocol.status(speech.queued_ms))
            case Ready():
                self.ready.set()
            case Unknown(detail):
                self._owner.warn("unknown", "a message of the agent means nothing here", reason=detail)
            case _:
                self._owner.wishes(self, event)

    def _play(self, samples: Samples) -> None:
        speech = self._speech
        if speech.rate_hz != self.protocol.receive_rate_hz:
            if speech.written:
                self._owner.warn("rate", "the agent has changed its rate; its audio is not played")
                return
            speech.rate_hz = self.protocol.receive_rate_hz
        speech.write(samples)
        if speech.is_full and not self._is_paused and self._transport is not None:
            self._is_paused = True
            self._transport.pause_reading(True)
            self._owner.note("the agent is far ahead; it is not read from for a while")

    def _mark_reached(self, mark: Mark, cleared: bool) -> None:
        self.send(self.protocol.mark_reached(mark, cleared))

    def blocked(self, is_blocked: bool) -> None:
        self._is_blocked = is_blocked
        if is_blocked:
            self._owner.warn("slow", "the agent does not read; what the telephone says is dropped")
            loop = asyncio.get_running_loop()
            self._stuck = loop.call_later(STUCK_S, self._give_up)
        elif self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None
            self._owner.note("the agent reads again", dropped_frames=self._dropped_frames)

    def _give_up(self) -> None:
        self.lost(False, f"the agent has read nothing for {STUCK_S:g} s")
        self._end_transport()

    def lost(self, closed: bool, detail: str) -> None:
        if self.ended.done():
            return
        if not closed:
            self._end(None, detail)
            return
        reason = EndReason(EndKind.CHANNEL_CLOSED, detail, Party.CHANNEL)
        if self._speech.queued:  # it has said goodbye
            self._speech.mark(lambda cleared: self._end(reason, detail))
        else:
            self._end(reason, detail)

    def _end(self, reason: EndReason | None, detail: str) -> None:
        self.detail = detail
        if not self.ended.done():
            self.ended.set_result(reason)
        self.ready.set()
