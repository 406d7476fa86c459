# SPDX-License-Identifier: GPL-3.0-or-later
"""`audiosocket`: Asterisk's AudioSocket, as Asterisk speaks it to an application.

::

    type (1 byte)   length (2 bytes, big-endian)   payload
    00  hang up          01  UUID, 16 bytes, the first message      03  key, one ASCII character
    10  audio, PCM16LE at 8 kHz; 11 … 18 at 12, 16, 24, 32, 44.1, 48, 96, 192 kHz      FF  error

https://docs.asterisk.org/Configuration/Channel-Drivers/AudioSocket/
"""

import uuid
from collections.abc import Sequence

import numpy as np

from sipbridge.rtc.websocket.protocol import (
    Audio,
    Broken,
    BrokenError,
    Conversation,
    Digits,
    Event,
    Hangup,
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


class AudioSocketProtocol(Protocol):
    """Asterisk's side. What the application sends sets the rate that is taken from it, once."""

    transport = "tcp"
    rates_hz = (8000, 16000, 24000, 48000)

    def __init__(self, conversation: Conversation) -> None:
        super().__init__(conversation)
        self._buffer = bytearray()
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

    def audio(self, samples: Samples) -> Sequence[Wire]:
        return (format_message(_KINDS[self.send_rate_hz], format_pcm(samples)),)

    def digit(self, digit: str, duration_ms: int) -> Sequence[Wire]:
        return (format_message(DIGIT, digit.encode("ascii")),)

    def stop(self) -> Sequence[Wire]:
        return (format_message(HANGUP),)

    def receive(self, data: Wire) -> Sequence[Event]:
        if isinstance(data, str):
            return (Broken("a text message on a byte stream"),)
        self._buffer += data
        events: list[Event] = []
        start = 0
        while len(self._buffer) - start >= _HEADER_BYTES:
            end = start + _HEADER_BYTES + int.from_bytes(self._buffer[start + 1 : start + 3], "big")
            if len(self._buffer) < end:
                break
            payload = bytes(self._buffer[start + _HEADER_BYTES : end])
            try:
                events.append(self._event(self._buffer[start], payload))
            except BrokenError as error:
                events.append(Broken(str(error)))
            start = end
        del self._buffer[:start]
        return events

    def _event(self, kind: int, payload: bytes) -> Event:
        if kind in AUDIO_RATES_HZ:
            rate_hz = AUDIO_RATES_HZ[kind]
            if not self._heard:
                self._heard, self.receive_rate_hz = True, rate_hz
            elif rate_hz != self.receive_rate_hz:
                raise BrokenError(f"audio at {rate_hz} Hz behind audio at {self.receive_rate_hz} Hz")
            return Audio(parse_pcm(payload))
        if kind == HANGUP:
            return Hangup()
        if kind == DIGIT:
            return Digits(payload.decode("ascii", "replace"))
        if kind == ERROR:
            return Unknown(f"an error: {payload.hex()}")
        return Unknown(f"a message of type {kind:#04x}")
