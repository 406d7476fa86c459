# SPDX-License-Identifier: GPL-3.0-or-later
"""`twilio`: Twilio's Media Streams, bidirectional, as `<Connect><Stream>` begins one.

All messages are JSON; audio is base64 of µ-law at 8 kHz; numbers that count are strings.

https://www.twilio.com/docs/voice/media-streams/websocket-messages
"""

import json
import uuid
from collections.abc import Sequence

from sipbridge.rtc.websocket.g711 import decode_ulaw, encode_ulaw
from sipbridge.rtc.websocket.protocol import (
    Audio,
    Broken,
    BrokenError,
    Clear,
    Conversation,
    Event,
    Mark,
    Protocol,
    Samples,
    Unknown,
    Wire,
    format_base64,
    get_object,
    get_text,
    parameters_with_call,
    parse_base64,
    parse_object,
)


def make_sid(prefix: str, of: str) -> str:
    """An identifier as Twilio has them: two letters and 32 hexadecimal digits, the same for the same call."""
    return prefix + uuid.uuid5(uuid.NAMESPACE_OID, f"sipbridge {prefix} {of}").hex


class TwilioProtocol(Protocol):
    """Twilio's side."""

    def __init__(self, conversation: Conversation) -> None:
        super().__init__(conversation)
        self._stream_sid = "MZ" + uuid.uuid4().hex  # a connection that is made again is a new stream
        self._call_sid = make_sid("CA", conversation.call_id)
        self._account_sid = make_sid("AC", "")
        self._sequence = 0
        self._chunk = 0
        self._sent_samples = 0

    def start(self) -> Sequence[Wire]:
        parameters = parameters_with_call(self.conversation)
        return (
            json.dumps({"event": "connected", "protocol": "Call", "version": "1.0.0"}),
            self._message(
                "start",
                {
                    "accountSid": self._account_sid,
                    "streamSid": self._stream_sid,
                    "callSid": self._call_sid,
                    "tracks": ["inbound"],
                    "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
                    "customParameters": {
                        name: value if isinstance(value, str) else json.dumps(value)
                        for name, value in parameters.items()
                    },
                },
            ),
        )

    def audio(self, samples: Samples) -> Sequence[Wire]:
        self._sequence += 1
        self._chunk += 1
        timestamp = self._sent_samples * 1000 // self.send_rate_hz
        self._sent_samples += samples.size
        # not by json.dumps: this is said fifty times a second, and nothing in it needs to be escaped
        return (
            f'{{"event":"media","sequenceNumber":"{self._sequence}","media":{{"track":"inbound",'
            f'"chunk":"{self._chunk}","timestamp":"{timestamp}","payload":"'
            f'{format_base64(encode_ulaw(samples))}"}},"streamSid":"{self._stream_sid}"}}',
        )

    def digit(self, digit: str, duration_ms: int) -> Sequence[Wire]:
        return (self._message("dtmf", {"track": "inbound_track", "digit": digit}),)

    def mark_reached(self, mark: Mark, cleared: bool) -> Sequence[Wire]:
        return (self._message("mark", {"name": mark.name}),)

    def stop(self) -> Sequence[Wire]:
        return (self._message("stop", {"accountSid": self._account_sid, "callSid": self._call_sid}),)

    def _message(self, event: str, content: object) -> str:
        self._sequence += 1
        return json.dumps(
            {
                "event": event,
                "sequenceNumber": str(self._sequence),
                event: content,
                "streamSid": self._stream_sid,
            }
        )

    def receive(self, data: Wire) -> Sequence[Event]:
        try:
            message = parse_object(data)
            match message.get("event"):
                case "media":
                    payload = get_text(get_object(message, "media"), "payload")
                    return (Audio(decode_ulaw(parse_base64(payload))),)
                case "mark":
                    return (Mark(get_text(get_object(message, "mark"), "name")),)
                case "clear":
                    return (Clear(),)
                case other:
                    return (Unknown(f"an event {other!r}"),)
        except BrokenError as error:
            return (Broken(str(error)),)
