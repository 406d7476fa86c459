# SPDX-License-Identifier: GPL-3.0-or-later
"""`audiosocket`: Asterisk's AudioSocket, of both sides.

::

    type (1 byte)   length (2 bytes, big-endian)   payload
    00  hang up          01  UUID, 16 bytes, the first message      03  key, one ASCII character
    10  audio, PCM16LE at 8 kHz; 11 … 18 at 12, 16, 24, 32, 44.1, 48, 96, 192 kHz      FF  error

https://docs.asterisk.org/Configuration/Channel-Drivers/AudioSocket/
"""

import abc
import uuid
from collections.abc import Iterator, Sequence

import numpy as np

from sipbridge.rtc.websocket.protocol import (
    Audio,
    Begun,
    Broken,
    BrokenError,
    Conversation,
    Digits,
    Event,
    Hangup,
    PbxProtocol,
    Protocol,
    Samples,
    Unknown,
    Wire,
    format_pcm,
    parse_pcm,
)

HANGUP, UUID, DIGIT, ERROR = 0x00, 0x01, 0x03, 0xFF
AUDIO_RATES_HZ = {
    0x10: 8000,
    0x11: 12000,
    0x12: 16000,
    0x13: 24000,
    0x14: 32000,
    0x15: 44100,
    0x16: 48000,
    0x17: 96000,
    0x18: 192000,
}
_KINDS = {rate_hz: kind for kind, rate_hz in AUDIO_RATES_HZ.items()}
_HEADER_BYTES = 3


def format_message(kind: int, payload: bytes = b"") -> bytes:
    """One message on the wire; a payload has at most 65,535 bytes."""
    return bytes((kind,)) + len(payload).to_bytes(2, "big") + payload


class _Messages:
    """The messages in a byte stream."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def split(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Kind and payload of each that is whole by now."""
        self._buffer += data
        start = 0
        while len(self._buffer) - start >= _HEADER_BYTES:
            end = start + _HEADER_BYTES + int.from_bytes(self._buffer[start + 1 : start + 3], "big")
            if len(self._buffer) < end:
                break
            yield self._buffer[start], bytes(self._buffer[start + _HEADER_BYTES : end])
            start = end
        del self._buffer[:start]


class _AudioSocket(Protocol):
    """What both sides do."""

    transport = "tcp"

    def __init__(self, conversation: Conversation) -> None:
        super().__init__(conversation)
        self._messages = _Messages()

    def audio(self, samples: Samples) -> Sequence[Wire]:
        return (format_message(_KINDS[self.send_rate_hz], format_pcm(samples)),)

    def stop(self) -> Sequence[Wire]:
        return (format_message(HANGUP),)

    def receive(self, data: Wire) -> Sequence[Event]:
        if isinstance(data, str):
            return (Broken("a text message on a byte stream"),)
        events: list[Event] = []
        for kind, payload in self._messages.split(data):
            try:
                events += self._events(kind, payload)
            except BrokenError as error:
                events.append(Broken(str(error)))
        return events

    @abc.abstractmethod
    def _audio(self, rate_hz: int, samples: Samples) -> Sequence[Event]:
        """Audio has come, at this rate."""

    def _events(self, kind: int, payload: bytes) -> Sequence[Event]:
        if kind in AUDIO_RATES_HZ:
            return self._audio(AUDIO_RATES_HZ[kind], parse_pcm(payload))
        if kind == HANGUP:
            return (Hangup(),)
        if kind == DIGIT:
            return (Digits(payload.decode("ascii", "replace")),)
        if kind == ERROR:
            return (Unknown(f"an error: {payload.hex()}"),)
        return (Unknown(f"a message of type {kind:#04x}"),)


class AudioSocketProtocol(_AudioSocket):
    """Asterisk's side. What the application sends sets the rate that is taken from it, once."""

    rates_hz = (8000, 16000, 24000, 48000)

    def __init__(self, conversation: Conversation) -> None:
        super().__init__(conversation)
        self._heard = False

    @property
    def uuid(self) -> uuid.UUID:
        """The call's id, as this protocol has them; that itself where it is one."""
        try:
            return uuid.UUID(self.conversation.call_id)
        except ValueError:
            return uuid.uuid5(uuid.NAMESPACE_OID, f"sipbridge {self.conversation.call_id}")

    def start(self) -> Sequence[Wire]:
        # an application that waits for the first audio before it speaks would wait for a silent telephone
        silence = np.zeros(self.send_rate_hz * self.conversation.frame_ms // 1000, np.int16)
        return (format_message(UUID, self.uuid.bytes), *self.audio(silence))

    def digit(self, digit: str, duration_ms: int) -> Sequence[Wire]:
        return (format_message(DIGIT, digit.encode("ascii")),)

    def _audio(self, rate_hz: int, samples: Samples) -> Sequence[Event]:
        if not self._heard:
            self._heard, self.receive_rate_hz = True, rate_hz
        elif rate_hz != self.receive_rate_hz:
            raise BrokenError(f"audio at {rate_hz} Hz behind audio at {self.receive_rate_hz} Hz")
        return (Audio(samples),)


class AudioSocketPbx(_AudioSocket, PbxProtocol):
    """An application's side. The callee is the UUID, which is all that Asterisk tells of a call.

    Its first audio sets the rate both ways; Asterisk takes nothing but audio and the end.
    """

    rates_hz = (8000, 12000, 16000, 24000, 32000, 48000)

    def __init__(self, conversation: Conversation) -> None:
        super().__init__(conversation)
        self._uuid = ""
        self._has_begun = False

    def wait_no_more(self) -> Sequence[Event]:
        """A telephone that is silent."""
        return () if self._has_begun or not self._uuid else self._begin()

    def _begin(self) -> Sequence[Event]:
        self._has_begun = True
        return (Begun(callee=self._uuid, codec="L16"),)

    def _audio(self, rate_hz: int, samples: Samples) -> Sequence[Event]:
        if self._has_begun:
            if rate_hz != self.receive_rate_hz:
                raise BrokenError(f"audio at {rate_hz} Hz in a call at {self.receive_rate_hz} Hz")
            return (Audio(samples),)
        if rate_hz not in self.rates_hz:
            raise BrokenError(f"audio at {rate_hz} Hz, which is not taken")
        self.send_rate_hz = self.receive_rate_hz = rate_hz
        return (*self._begin(), Audio(samples))

    def _events(self, kind: int, payload: bytes) -> Sequence[Event]:
        if kind != UUID:
            return super()._events(kind, payload)
        if len(payload) != 16 or self._uuid:
            raise BrokenError("a UUID that is none, or a second one")
        self._uuid = str(uuid.UUID(bytes=payload))
        return ()
