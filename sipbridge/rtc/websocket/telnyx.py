# SPDX-License-Identifier: GPL-3.0-or-later
"""`telnyx`: Telnyx's media streaming with `stream_bidirectional_mode` "rtp", in PCMU or PCMA.

https://developers.telnyx.com/docs/voice/programmable-voice/media-streaming
"""

import datetime
import json
import uuid
from collections.abc import Sequence

from sipbridge.rtc.websocket.g711 import decode_alaw, decode_ulaw, encode_alaw, encode_ulaw
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

_CODECS = {"PCMU": (encode_ulaw, decode_ulaw), "PCMA": (encode_alaw, decode_alaw)}


class TelnyxProtocol(Protocol):
    """Telnyx's side. The parameter `encoding` chooses between PCMU and PCMA, both ways."""

    def __init__(self, conversation: Conversation) -> None:
        super().__init__(conversation)
        self._parameters = parameters_with_call(conversation)
        self._encoding = self._parameters.pop("encoding", "PCMU")
        if self._encoding not in _CODECS:
            raise ValueError(f"encoding {self._encoding!r} is not one of {', '.join(_CODECS)}")
        self._encode, self._decode = _CODECS[self._encoding]
        self._stream_id = str(uuid.uuid4())
        self._call = {
            "user_id": str(uuid.uuid5(uuid.NAMESPACE_OID, "sipbridge user")),
            "call_control_id": f"v3:{conversation.call_id}",
        }
        self._sequence = 0
        self._chunk = 0
        self._sent_samples = 0

    def start(self) -> Sequence[Wire]:
        call = self.conversation
        return (
            json.dumps({"event": "connected", "version": "1.0.0"}),
            self._message(
                "start",
                {
                    **self._call,
                    "call_session_id": str(uuid.uuid5(uuid.NAMESPACE_OID, f"sipbridge {call.call_id}")),
                    "from": call.caller,
                    "to": call.callee,
                    "custom_parameters": self._parameters,
                    "media_format": {"encoding": self._encoding, "sample_rate": 8000, "channels": 1},
                },
            ),
        )

    def audio(self, samples: Samples) -> Sequence[Wire]:
        self._sequence += 1
        self._chunk += 1
        timestamp = self._sent_samples * 1000 // self.send_rate_hz
        self._sent_samples += samples.size
        return (
            f'{{"event":"media","sequence_number":"{self._sequence}","media":{{"track":"inbound",'
            f'"chunk":"{self._chunk}","timestamp":"{timestamp}","payload":"'
            f'{format_base64(self._encode(samples))}"}},"stream_id":"{self._stream_id}"}}',
        )

    def digit(self, digit: str, duration_ms: int) -> Sequence[Wire]:
        now = datetime.datetime.now(datetime.UTC).isoformat()
        return (self._message("dtmf", {"digit": digit}, occurred_at=now),)

    def mark_reached(self, mark: Mark, cleared: bool) -> Sequence[Wire]:
        return (self._message("mark", {"name": mark.name}),)

    def stop(self) -> Sequence[Wire]:
        return (self._message("stop", self._call),)

    def _message(self, event: str, content: object, **more: str) -> str:
        self._sequence += 1
        return json.dumps(
            {
                "event": event,
                "sequence_number": str(self._sequence),
                **more,
                event: content,
                "stream_id": self._stream_id,
            }
        )

    def receive(self, data: Wire) -> Sequence[Event]:
        try:
            message = parse_object(data)
            match message.get("event"):
                case "media":
                    payload = get_text(get_object(message, "media"), "payload")
                    return (Audio(self._decode(parse_base64(payload))),)
                case "mark":
                    return (Mark(get_text(get_object(message, "mark"), "name")),)
                case "clear":
                    return (Clear(),)
                case other:
                    return (Unknown(f"an event {other!r}"),)
        except BrokenError as error:
            return (Broken(str(error)),)
