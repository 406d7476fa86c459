# SPDX-License-Identifier: GPL-3.0-or-later
"""What Twilio's and Telnyx's streams have in common: JSON messages, audio in base64, marks and `clear`."""

import json
from collections.abc import Callable, Sequence
from typing import ClassVar

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
    parse_base64,
    parse_object,
)


class MediaStream(Protocol):
    """The cloud's side. Numbers that count are strings."""

    sequence_key: ClassVar[str]  # what each message calls its number,
    stream_key: ClassVar[str]  # and the stream's id

    def __init__(
        self,
        conversation: Conversation,
        stream_id: str,
        encode: Callable[[Samples], bytes],
        decode: Callable[[bytes], Samples],
    ) -> None:
        super().__init__(conversation)
        self._stream_id = stream_id
        self._encode = encode
        self._decode = decode
        self._sequence = 0
        self._chunk = 0
        self._sent_samples = 0

    def audio(self, samples: Samples) -> Sequence[Wire]:
        self._sequence += 1
        self._chunk += 1
        timestamp = self._sent_samples * 1000 // self.send_rate_hz
        self._sent_samples += samples.size
        # not by json.dumps: this is said fifty times a second, and nothing in it needs to be escaped
        return (
            f'{{"event":"media","{self.sequence_key}":"{self._sequence}","media":{{"track":"inbound",'
            f'"chunk":"{self._chunk}","timestamp":"{timestamp}","payload":"'
            f'{format_base64(self._encode(samples))}"}},"{self.stream_key}":"{self._stream_id}"}}',
        )

    def mark_reached(self, mark: Mark, cleared: bool) -> Sequence[Wire]:
        return (self._message("mark", {"name": mark.name}),)

    def _message(self, event: str, content: object, **more: str) -> str:
        self._sequence += 1
        return json.dumps(
            {
                "event": event,
                self.sequence_key: str(self._sequence),
                **more,
                event: content,
                self.stream_key: self._stream_id,
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
