# SPDX-License-Identifier: GPL-3.0-or-later
"""`openai`: the Realtime API over WebSocket.

A telephone at 8 kHz is spoken with in G.711, which nothing has to resample; a better one in 24 kHz PCM.
The parameters are the `session` of the first `session.update`: `instructions`, `tools`, `audio` (of which
the formats are ours) and so on.

Barge-in: the server hears the caller speak; playback stops, and each item that was not heard to its end is
truncated where it was *played* to, so that the model knows what the caller has heard.

https://platform.openai.com/docs/guides/realtime-websocket
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sipbridge.rtc.websocket.g711 import decode_alaw, decode_ulaw, encode_alaw, encode_ulaw
from sipbridge.rtc.websocket.protocol import (
    Audio,
    Broken,
    BrokenError,
    Clear,
    Conversation,
    Digits,
    Event,
    Hangup,
    Message,
    Protocol,
    Ready,
    Samples,
    Transfer,
    Unknown,
    Wire,
    format_base64,
    format_pcm,
    get_text,
    parse_base64,
    parse_object,
    parse_pcm,
)

_G711 = {"PCMU": ("audio/pcmu", encode_ulaw, decode_ulaw), "PCMA": ("audio/pcma", encode_alaw, decode_alaw)}
# What else the server tells of needs no answer of ours.
_KNOWN = ("session.", "conversation.", "response.", "input_audio_buffer.", "rate_limits.")


@dataclass(slots=True)
class _Item:
    """A piece of the conversation that is being spoken."""

    id: str
    content_index: int
    start: int  # in samples of all that was received
    end: int


class OpenaiProtocol(Protocol):
    """A client. The parameter `encoding` (PCMU or PCMA) chooses the G.711 of 8 kHz."""

    rates_hz = (8000, 24000)
    says_ready = True

    def __init__(self, conversation: Conversation) -> None:
        super().__init__(conversation)
        if not conversation.rate_hz and conversation.leg_rate_hz > 8000:
            self.send_rate_hz = self.receive_rate_hz = 24000
        self._parameters = dict(conversation.parameters)
        encoding = self._parameters.pop("encoding", "PCMU")
        if encoding not in _G711:
            raise ValueError(f"encoding {encoding!r} is not one of {', '.join(_G711)}")
        self._format: dict[str, Any]
        self._encode: Callable[[Samples], bytes]
        self._decode: Callable[[bytes], Samples]
        if self.send_rate_hz == 24000:
            self._format = {"type": "audio/pcm", "rate": 24000}
            self._encode, self._decode = format_pcm, parse_pcm
        else:
            name, self._encode, self._decode = _G711[encoding]
            self._format = {"type": name}
        self._items: list[_Item] = []
        self._cut: set[str] = set()  # items of which no more is wanted
        self._received = 0
        self._responding = False
        self._heard_by_server = False  # it knows itself that the caller speaks

    def start(self) -> Sequence[Wire]:
        session = {"type": "realtime", **self._parameters}
        audio = dict(session.get("audio", {}))
        for way in ("input", "output"):
            audio[way] = {**audio.get(way, {}), "format": self._format}
        session["audio"] = audio
        return (json.dumps({"type": "session.update", "session": session}),)

    def audio(self, samples: Samples) -> Sequence[Wire]:
        return (f'{{"type":"input_audio_buffer.append","audio":"{format_base64(self._encode(samples))}"}}',)

    def digit(self, digit: str, duration_ms: int) -> Sequence[Wire]:
        return self.message(f"(The caller pressed the key {digit}.)", "")

    def message(self, text: str, topic: str) -> Sequence[Wire]:
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}
        return (json.dumps({"type": "conversation.item.create", "item": item}),)

    def cleared(self, position: int) -> Sequence[Wire]:
        messages: list[Wire] = []
        if self._responding and not self._heard_by_server:
            messages.append(json.dumps({"type": "response.cancel"}))
        for item in self._items:
            if item.end > position:
                self._cut.add(item.id)
                messages.append(
                    json.dumps(
                        {
                            "type": "conversation.item.truncate",
                            "item_id": item.id,
                            "content_index": item.content_index,
                            "audio_end_ms": max(0, position - item.start) * 1000 // self.receive_rate_hz,
                        }
                    )
                )
        self._items.clear()
        self._responding = self._heard_by_server = False
        return messages

    def receive(self, data: Wire) -> Sequence[Event]:
        try:
            message = parse_object(data)
            match message.get("type"):
                case "response.output_audio.delta" | "response.audio.delta":
                    return self._audio(message)
                case "input_audio_buffer.speech_started":
                    self._heard_by_server = True
                    return (Clear(),)
                case "session.updated":
                    return (Ready(),)
                case "response.created":
                    self._responding = True
                    return ()
                case "response.done":
                    self._responding = False
                    return ()
                case "response.output_audio_transcript.done" | "response.audio_transcript.done":
                    return (Message("agent", get_text(message, "transcript")),)
                case "conversation.item.input_audio_transcription.completed":
                    return (Message("caller", get_text(message, "transcript")),)
                case "response.function_call_arguments.done":
                    return self._call(message)
                case "error":
                    error = message.get("error")
                    detail = error.get("message") if isinstance(error, dict) else error
                    return (Unknown(f"an error: {detail}"),)
                case other:
                    known = isinstance(other, str) and other.startswith(_KNOWN)
                    return () if known else (Unknown(f"an event {other!r}"),)
        except BrokenError as error:
            return (Broken(str(error)),)

    def _audio(self, message: dict[str, Any]) -> Sequence[Event]:
        item_id, index = get_text(message, "item_id"), message.get("content_index", 0)
        samples = self._decode(parse_base64(get_text(message, "delta")))
        if item_id in self._cut:
            return ()
        if not self._items or self._items[-1].id != item_id:
            content_index = index if isinstance(index, int) else 0
            self._items.append(_Item(item_id, content_index, self._received, self._received))
            del self._items[:-16]  # what was heard long ago is not truncated
        self._received += samples.size
        self._items[-1].end = self._received
        return (Audio(samples),)

    def _call(self, message: dict[str, Any]) -> Sequence[Event]:
        """Tools by these names are ours; others are for whoever follows the messages of the call."""
        try:
            arguments = json.loads(get_text(message, "arguments") or "{}")
        except ValueError:
            raise BrokenError("a function call whose arguments are no JSON") from None
        match message.get("name"):
            case "hangup":
                return (Hangup(after_speech=True),)
            case "press_keys" if isinstance(arguments, dict):
                return (Digits(get_text(arguments, "keys")),)
            case "transfer" if isinstance(arguments, dict):
                return (Transfer(get_text(arguments, "to")),)
            case name:
                call = {"name": name, "call_id": message.get("call_id"), "arguments": arguments}
                return (Message("function_call", json.dumps(call)),)
