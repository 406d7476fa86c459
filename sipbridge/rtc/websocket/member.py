# SPDX-License-Identifier: GPL-3.0-or-later
"""A program in a room of this process: it has opened a WebSocket, hears all others and is heard by them.

::

    program ──► transport ──► Protocol.receive() ──► AgentPlayback ──► port, a frame for each that is heard
    program ◄── transport ◄── Protocol.audio() ◄──── FramePump ◄────── port

The program takes the side that an agent has, in any of the protocols. What it says beyond real time waits
in the playback; the port is fed just as fast as it hears. The thread of the remote ports reads one and
feeds the other; all else happens on the event loop.
"""

import asyncio
import uuid
from collections.abc import Callable

import numpy as np

from sipbridge.errors import EndKind, EndReason, Party
from sipbridge.keys import DIGIT_MS
from sipbridge.log import get_logger
from sipbridge.media.loop import Room
from sipbridge.media.remote import SamplePort
from sipbridge.routing import check_text
from sipbridge.rtc.base import RtcContext, Samples
from sipbridge.rtc.local import Member
from sipbridge.rtc.websocket.playback import AgentPlayback
from sipbridge.rtc.websocket.protocol import (
    WISHES,
    Conversation,
    Digits,
    Event,
    Hangup,
    Hold,
    Message,
    Transfer,
    load_protocol,
)
from sipbridge.rtc.websocket.pump import get_pump
from sipbridge.rtc.websocket.session import Converter, Notes, Session, SpeechSession, keys_of
from sipbridge.rtc.websocket.transport import Transport

READY_S = 10.0  # that a program has, in a protocol that says when it is
MAX_BUFFER_S = 120.0  # of its speech
_MAX_NAME_CHARS = 64


class ProgramMember:
    """One program, from its coming to its leaving."""

    def __init__(
        self, context: RtcContext, room: str, *, name: str = "", protocol: str = "proxy", rate_hz: int = 0
    ) -> None:
        """`rate_hz` 0: as the protocol prefers. ValueError, LookupError: it cannot be spoken with so."""
        check_text(name, "the name", _MAX_NAME_CHARS)
        self.room = room
        self.identity = name or f"program-{uuid.uuid4().hex[:6]}"
        kind = load_protocol(protocol)
        if kind.transport != "websocket":
            raise ValueError(f"the protocol {protocol} is not spoken over WebSocket")
        # the rate of whoever else is there is not known: as for a telephone with a good codec
        self._codec = kind(
            Conversation(call_id=self.identity, callee=room, leg_rate_hz=16000, rate_hz=rate_hz)
        )
        self.subprotocol = self._codec.subprotocol
        self.notes = Notes(get_logger(__name__, room=room, program=self.identity))
        self._context = context
        self._port: SamplePort | None = None  # while joined
        self._member: Member | None = None
        resampler = context.config.media.live_resampler
        self._converter = Converter(resampler)  # of what it hears
        self._speech = AgentPlayback(
            self,
            rate_hz=self._codec.receive_rate_hz,
            max_buffer_s=MAX_BUFFER_S,
            on_room=lambda: self.session.pause_reading(False),
            live_resampler=resampler,
        )
        self.session = SpeechSession(self, self._codec, self._speech)

    async def stay(self, transport: Transport) -> EndReason:
        """Joins, and returns when it has left, with the reason."""
        session = self.session
        session.begin(transport)
        try:
            async with asyncio.timeout(READY_S):
                await session.ready.wait()
            if not session.ended.done():
                self._join()
            end = await session.ended or self.failed(session.detail)
        except TimeoutError:
            end = self.failed(f"not ready within {READY_S:g} s")
        finally:
            session.send(self._codec.stop())
            session.close()
            self._speech.close()
            await self._leave()
        self.notes.info("a program has left the room", reason=end.detail)
        return end

    def _join(self) -> None:
        rate_hz = self._codec.send_rate_hz
        if rate_hz % 200:  # of a tick of 5 ms there is a whole number of samples
            rate_hz = 48000 if rate_hz > 32000 else 24000
        source = self._speech.make(rate_hz)
        pump, hear = get_pump(), self._hear

        def take(frame: Samples, rate_hz: int) -> None:  # thread of the remote ports
            port = self._port
            if port is not None:
                said = np.zeros(frame.size, np.int16)
                samples = source.read(frame.size)
                said[: samples.size] = samples
                port.feed(said)
                pump.put(hear, frame, rate_hz)

        self._port = port = self._context.remotes.open_samples(rate_hz, take)
        self._context.media.attach(port.port_id, Room(self.room))
        self._member = self._context.rooms.enter(self.room, self.identity, self, port.port_id)
        self.notes.info("a program has joined the room")

    async def _leave(self) -> None:
        if self._member is not None:
            self._context.rooms.leave(self._member)
            self._member = None
        if self._port is not None:
            port, self._port = self._port, None
            await port.leave(self._context.media)

    # --- what it hears

    def _hear(self, frame: Samples, rate_hz: int) -> None:
        if self._port is not None:
            self.session.say(self._converter.convert(frame, rate_hz, self._codec.send_rate_hz))

    def participant_joined(self, identity: str) -> None:
        self.session.send(self._codec.participant(identity, True))

    def participant_left(self, identity: str, remaining: int) -> None:
        self.session.send(self._codec.participant(identity, False))

    def dtmf(self, digit: str) -> None:
        self.session.send(self._codec.digit(digit, DIGIT_MS))

    def message(self, topic: str, text: str) -> None:
        self.session.send(self._codec.message(text, topic))

    # --- what it says

    def clear(self) -> None:
        """Of `Played`: what was fed and has not been heard is dropped."""
        if self._port is not None:
            self._port.clear()

    def mark(self, reached: Callable[[bool], None]) -> None:
        """Of `Played`, asked for when the next frame is due: what was fed before has been heard by then."""
        reached(False)

    def wishes(self, session: Session, event: Event) -> None:
        rooms, member = self._context.rooms, self._member
        if member is None:
            return
        match event:
            case Message(topic, text):
                rooms.tell(member, topic, text)
            case Digits(digits):
                for digit in keys_of(digits, self.notes):
                    rooms.press(member, digit)
            case Hangup(after_speech):
                if not after_speech:
                    self._speech.clear()
                session.lost(True, "it has asked to leave")
            case Transfer() | Hold():
                wish = WISHES[type(event)]
                self.notes.warn(wish, "the program asks for what is a call's alone", wish=wish)
                session.send(self._codec.refused(wish, "a program in a room has no call of its own"))

    def failed(self, detail: str) -> EndReason:
        return EndReason(EndKind.CHANNEL_FAILED, detail, Party.CHANNEL)
