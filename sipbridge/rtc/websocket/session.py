# SPDX-License-Identifier: GPL-3.0-or-later
"""One connection of a conversation: what comes is carried out, what is said becomes messages. Event loop."""

import asyncio
import functools
from collections.abc import Iterator, Sequence
from typing import Protocol as Interface

import numpy as np
from structlog.stdlib import BoundLogger

from sipbridge.errors import EndKind, EndReason, Party
from sipbridge.keys import KEYS
from sipbridge.resample import LiveResampler, ResamplerKind, make_resampler
from sipbridge.rtc.websocket.playback import AgentPlayback
from sipbridge.rtc.websocket.protocol import (
    Audio,
    Broken,
    Clear,
    Event,
    Mark,
    Pause,
    Protocol,
    Ready,
    Samples,
    StatusAsked,
    Unknown,
    Wire,
)
from sipbridge.rtc.websocket.transport import Transport

STUCK_S = 15.0  # who reads nothing for so long is lost
_BROKEN_IN_A_ROW = 3
_MAX_KEYS = 64  # in one message


class Owner(Interface):
    """Whose conversation it is."""

    notes: "Notes"

    def failed(self, detail: str) -> EndReason:
        """The reason of an end that is the far side's fault."""
        ...

    def wishes(self, session: "Session", event: Event) -> None:
        """What the far side says beside its speech."""
        ...


class Notes:
    """The log of one conversation: whatever the far side repeats, there is one warning of each kind."""

    def __init__(self, log: BoundLogger) -> None:
        self._log = log
        self._warned: set[str] = set()

    def warn(self, kind: str, event: str, **fields: object) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            self._log.warning(event, **fields)

    def info(self, event: str, **fields: object) -> None:
        self._log.info(event, **fields)


def keys_of(digits: str, notes: Notes) -> Iterator[str]:
    """The keys that the far side asks for, without what is none."""
    for digit in digits[:_MAX_KEYS].upper():
        if digit in KEYS:
            yield digit
        else:
            notes.warn("key", "the far side asks for a key that is none", digit=digit)


class Converter:
    """Frames at another rate; nothing is done where they have it."""

    def __init__(self, kind: ResamplerKind) -> None:
        self._kind: ResamplerKind = kind
        self._resampler: LiveResampler | None = None

    def convert(self, frame: Samples, rate_hz: int, wanted_hz: int) -> Samples:
        """Good until the next call."""
        if rate_hz == wanted_hz:
            return frame
        resampler = self._resampler
        if resampler is None or (resampler.rate_in_hz, resampler.rate_out_hz) != (rate_hz, wanted_hz):
            self._resampler = resampler = make_resampler(self._kind, rate_hz, wanted_hz, 1)
        converted: Samples = resampler.process(frame.reshape(1, -1))[0]
        return converted


class Session:
    """One connection, without what becomes of the far side's audio."""

    def __init__(self, owner: Owner, protocol: Protocol) -> None:
        self.protocol = protocol
        self.ready = asyncio.Event()  # or ended
        # None when the connection is lost, the reason when it is over for good
        self.ended: asyncio.Future[EndReason | None] = asyncio.get_running_loop().create_future()
        self.detail = ""  # why it ended
        self._owner = owner
        self._transport: Transport | None = None
        self._early: list[Wire] = []  # said before the transport was there
        self._frame: list[Samples] = []  # less than a message's audio
        self._frame_size = 0
        self._broken = 0  # messages in a row
        self._is_blocked = False
        self._dropped_frames = 0
        self._is_paused = False  # reading
        self._stuck: asyncio.TimerHandle | None = None

    # --- to the far side

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
        """What the far side is to hear, at the protocol's rate, cut into messages of `frame_ms`."""
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
        transport = self._transport
        if self._is_blocked:
            self._dropped_frames += 1
        elif transport is not None and not self.ended.done():
            for message in self.protocol.audio(samples):
                transport.send(message)

    def pause_reading(self, paused: bool) -> None:
        if self._is_paused != paused and self._transport is not None:
            self._is_paused = paused
            self._transport.pause_reading(paused)

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

    # --- from the far side: Incoming

    def received(self, data: Wire) -> None:
        if self.ended.done():
            return
        try:
            events = self.protocol.receive(data)
        except Exception as error:  # of a codec that somebody else may have written
            events = (Broken(f"a message that its codec fails on: {error!r}"),)
        broken = False
        for event in events:
            if isinstance(event, Audio):
                self._heard(event.samples)
            elif isinstance(event, Broken):
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
        self._owner.notes.warn("broken", "a message cannot be read", reason=detail)
        if self._broken >= _BROKEN_IN_A_ROW:
            self._end(self._owner.failed(f"protocol error: {detail}"), detail)
            self._end_transport("protocol error")

    def _heard(self, samples: Samples) -> None:
        """The far side has said this."""

    def _carry_out(self, event: Event) -> None:
        match event:
            case Ready():
                self.ready.set()
            case Unknown(detail):
                self._owner.notes.warn("unknown", "a message means nothing here", reason=detail)
            case _:
                self._owner.wishes(self, event)

    def blocked(self, is_blocked: bool) -> None:
        self._is_blocked = is_blocked
        notes = self._owner.notes
        if is_blocked:
            notes.warn("slow", "the far side does not read; what it should hear is dropped")
            self._stuck = asyncio.get_running_loop().call_later(STUCK_S, self._give_up)
        elif self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None
            notes.info("the far side reads again", dropped_frames=self._dropped_frames)

    def _give_up(self) -> None:
        self._end(None, f"the far side has read nothing for {STUCK_S:g} s")
        self._end_transport()

    def lost(self, closed: bool, detail: str) -> None:
        self._end(EndReason(EndKind.CHANNEL_CLOSED, detail, Party.CHANNEL) if closed else None, detail)

    def _end(self, reason: EndReason | None, detail: str) -> None:
        self.detail = detail
        if not self.ended.done():
            self.ended.set_result(reason)
        self.ready.set()


class SpeechSession(Session):
    """The far side's audio is speech that may come at any speed, and waits in a playback to be heard."""

    def __init__(self, owner: Owner, protocol: Protocol, speech: AgentPlayback) -> None:
        super().__init__(owner, protocol)
        self._speech = speech
        self._base = speech.written  # where this session's speech begins

    def clear(self) -> None:
        """Stops the speech, and tells the far side where."""
        position = self._speech.clear()
        self.send(self.protocol.cleared(max(0, position - self._base)))

    def _carry_out(self, event: Event) -> None:
        speech = self._speech
        match event:
            case Clear():
                self.clear()
            case Mark():
                speech.mark(functools.partial(self._mark_reached, event))
            case Pause(paused):
                speech.paused = paused
            case StatusAsked():
                self.send(self.protocol.status(speech.queued_ms))
            case _:
                super()._carry_out(event)

    def _heard(self, samples: Samples) -> None:
        speech, notes = self._speech, self._owner.notes
        if speech.rate_hz != self.protocol.receive_rate_hz:
            if speech.written:
                notes.warn("rate", "the rate of the speech has changed; it is not played")
                return
            speech.rate_hz = self.protocol.receive_rate_hz
        speech.write(samples)
        if speech.is_full and not self._is_paused and self._transport is not None:
            self.pause_reading(True)
            notes.info("the speech is far ahead; it is not read from for a while")

    def _mark_reached(self, mark: Mark, cleared: bool) -> None:
        self.send(self.protocol.mark_reached(mark, cleared))

    def lost(self, closed: bool, detail: str) -> None:
        """One that has said goodbye is heard to the end."""
        if self.ended.done():
            return
        if closed and self._speech.queued:
            self._speech.mark(lambda cleared: Session.lost(self, closed, detail))
        else:
            super().lost(closed, detail)
