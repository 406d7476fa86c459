# SPDX-License-Identifier: GPL-3.0-or-later
"""`twilio`: Twilio's Media Streams, bidirectional, as `<Connect><Stream>` begins one.

All messages are JSON; audio is base64 of µ-law at 8 kHz; numbers that count are strings.

https://www.twilio.com/docs/voice/media-streams/websocket-messages
"""

import json
import uuid
from collections.abc import Sequence

from sipbridge.rtc.websocket.g711 import decode_ulaw, encode_ulaw
from sipbridge.rtc.websocket.media_stream import MediaStream
from sipbridge.rtc.websocket.protocol import Conversation, Wire, parameters_with_call


def make_sid(prefix: str, of: str) -> str:
    """An identifier as Twilio has them: two letters and 32 hexadecimal digits, the same for the same call."""
    return prefix + uuid.uuid5(uuid.NAMESPACE_OID, f"sipbridge {prefix} {of}").hex


class TwilioProtocol(MediaStream):
    """Twilio's side."""

    sequence_key, stream_key = "sequenceNumber", "streamSid"

    def __init__(self, conversation: Conversation) -> None:
        # a connection that is made again is a new stream
        super().__init__(conversation, "MZ" + uuid.uuid4().hex, encode_ulaw, decode_ulaw)
        self._call_sid = make_sid("CA", conversation.call_id)
        self._account_sid = make_sid("AC", "")

    def start(self) -> Sequence[Wire]:
        parameters = parameters_with_call(self.conversation)
        return (
            json.dumps({"event": "connected", "protocol": "Call", "version": "1.0.0"}),
            self._message(
                "start",
                {
                    "accountSid": self._account_sid,
                    "streamSid": self._stream_id,
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

    def digit(self, digit: str, duration_ms: int) -> Sequence[Wire]:
        return (self._message("dtmf", {"track": "inbound_track", "digit": digit}),)

    def stop(self) -> Sequence[Wire]:
        return (self._message("stop", {"accountSid": self._account_sid, "callSid": self._call_sid}),)
