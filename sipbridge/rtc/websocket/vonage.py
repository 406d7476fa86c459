# SPDX-License-Identifier: GPL-3.0-or-later
"""`vonage`: the WebSocket endpoint of Vonage's Voice API.

Audio is binary PCM16LE, in messages of exactly 20 ms to the agent, of any length from it. The parameters
are what an NCCO's `headers` are: they stand beside the event in the first message.

https://developer.vonage.com/en/voice/voice-api/concepts/websockets
"""

import json
from collections.abc import Sequence

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
    format_pcm,
    get_object,
    parameters_with_call,
    parse_object,
    parse_pcm,
)


class VonageProtocol(Protocol):
    """Vonage's side."""

    rates_hz = (16000, 8000, 24000)

    def __init__(self, conversation: Conversation) -> None:
        super().__init__(conversation)
        if conversation.frame_ms != 20:
            raise ValueError("its messages have 20 ms")

    def start(self) -> Sequence[Wire]:
        return (
            json.dumps(
                {
                    **parameters_with_call(self.conversation),
                    "event": "websocket:connected",
                    "content-type": f"audio/l16;rate={self.send_rate_hz}",
                }
            ),
        )

    def audio(self, samples: Samples) -> Sequence[Wire]:
        return (format_pcm(samples),)

    def digit(self, digit: str, duration_ms: int) -> Sequence[Wire]:
        return (json.dumps({"event": "websocket:dtmf", "digit": digit, "duration": duration_ms}),)

    def mark_reached(self, mark: Mark, cleared: bool) -> Sequence[Wire]:
        return (json.dumps({"event": "websocket:notify", "payload": json.loads(mark.name)}),)

    def cleared(self, position: int) -> Sequence[Wire]:
        return (json.dumps({"event": "websocket:cleared"}),)

    def receive(self, data: Wire) -> Sequence[Event]:
        try:
            if isinstance(data, bytes):
                return (Audio(parse_pcm(data)),)
            message = parse_object(data)
            match message.get("action"):
                case "clear":
                    return (Clear(),)
                case "notify":
                    return (Mark(json.dumps(get_object(message, "payload"))),)
                case other:
                    return (Unknown(f"an action {other!r}"),)
        except BrokenError as error:
            return (Broken(str(error)),)
