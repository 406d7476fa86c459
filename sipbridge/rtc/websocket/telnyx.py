# SPDX-License-Identifier: GPL-3.0-or-later
"""`telnyx`: Telnyx's media streaming with `stream_bidirectional_mode` "rtp", in PCMU or PCMA.

https://developers.telnyx.com/docs/voice/programmable-voice/media-streaming
"""

import datetime
import json
import uuid
from collections.abc import Sequence

from sipbridge.rtc.websocket.g711 import decode_alaw, decode_ulaw, encode_alaw, encode_ulaw
from sipbridge.rtc.websocket.media_stream import MediaStream
from sipbridge.rtc.websocket.protocol import Conversation, Wire, parameters_with_call

_CODECS = {"PCMU": (encode_ulaw, decode_ulaw), "PCMA": (encode_alaw, decode_alaw)}


class TelnyxProtocol(MediaStream):
    """Telnyx's side. The parameter `encoding` chooses between PCMU and PCMA, both ways."""

    sequence_key, stream_key = "sequence_number", "stream_id"

    def __init__(self, conversation: Conversation) -> None:
        self._parameters = parameters_with_call(conversation)
        self._encoding = self._parameters.pop("encoding", "PCMU")
        if self._encoding not in _CODECS:
            raise ValueError(f"encoding {self._encoding!r} is not one of {', '.join(_CODECS)}")
        super().__init__(conversation, str(uuid.uuid4()), *_CODECS[self._encoding])
        self._call = {
            "user_id": str(uuid.uuid5(uuid.NAMESPACE_OID, "sipbridge user")),
            "call_control_id": f"v3:{conversation.call_id}",
        }

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

    def digit(self, digit: str, duration_ms: int) -> Sequence[Wire]:
        now = datetime.datetime.now(datetime.UTC).isoformat()
        return (self._message("dtmf", {"digit": digit}, occurred_at=now),)

    def stop(self) -> Sequence[Wire]:
        return (self._message("stop", self._call),)
