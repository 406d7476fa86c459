# SPDX-License-Identifier: GPL-3.0-or-later
"""`proxy`: the audio proxy's own protocol, and the simplest one to write an agent for.

::

    to the agent                                  from the agent
    {parameters}                 first, if any    binary: PCM16LE mono, in pieces of any size
    binary: PCM16LE mono, 20 ms                   {"type": "text", "content": "…"}
    {"type": "dtmf", "digit": "5",                {"type": "clear"}
     "durationMs": 160}                           {"type": "mark", "name": "…"}
    {"type": "text", "content": "…"}              {"type": "dtmf", "digits": "12#"}
    {"type": "mark", "name": "…",                 {"type": "hangup"}
     "event": "played" | "cleared"}               {"type": "transfer", "to": "…"}, {"type": "hold"}
    {"type": "speech_started"}, and _stopped,
     where the configuration has a detector
    {"type": "refused", "request": "transfer", "reason": "…"}
    {"type": "joined", "identity": "…"}, and left,
     to a program in a room

16 kHz where the configuration does not say otherwise. An agent that knows binary messages and
``{"type": "text"}`` alone is a whole one.
"""

import json
from collections.abc import Sequence

from sipbridge.rtc.websocket.protocol import (
    Audio,
    Broken,
    BrokenError,
    Clear,
    Digits,
    Event,
    Hangup,
    Hold,
    Mark,
    Message,
    Protocol,
    Samples,
    Transfer,
    Unknown,
    Wire,
    format_pcm,
    get_text,
    parse_object,
    parse_pcm,
)


class ProxyProtocol(Protocol):
    """The bridge's side."""

    rates_hz = (16000, 8000, 12000, 22050, 24000, 32000, 44100, 48000)

    def start(self) -> Sequence[Wire]:
        parameters = self.conversation.parameters
        return (json.dumps(dict(parameters)),) if parameters else ()

    def audio(self, samples: Samples) -> Sequence[Wire]:
        return (format_pcm(samples),)

    def digit(self, digit: str, duration_ms: int) -> Sequence[Wire]:
        return (json.dumps({"type": "dtmf", "digit": digit, "durationMs": duration_ms}),)

    def speech(self, started: bool) -> Sequence[Wire]:
        return (json.dumps({"type": "speech_started" if started else "speech_stopped"}),)

    def message(self, text: str, topic: str) -> Sequence[Wire]:
        return (json.dumps({"type": "text", "content": text}),)

    def participant(self, identity: str, joined: bool) -> Sequence[Wire]:
        return (json.dumps({"type": "joined" if joined else "left", "identity": identity}),)

    def mark_reached(self, mark: Mark, cleared: bool) -> Sequence[Wire]:
        event = "cleared" if cleared else "played"
        return (json.dumps({"type": "mark", "name": mark.name, "event": event}),)

    def refused(self, wish: str, reason: str) -> Sequence[Wire]:
        return (json.dumps({"type": "refused", "request": wish, "reason": reason}),)

    def receive(self, data: Wire) -> Sequence[Event]:
        try:
            if isinstance(data, bytes):
                return (Audio(parse_pcm(data)),)
            message = parse_object(data)
            match message.get("type"):
                case "text":
                    return (Message("text", get_text(message, "content")),)
                case "clear":
                    return (Clear(),)
                case "mark":
                    return (Mark(get_text(message, "name")),)
                case "dtmf":
                    return (Digits(get_text(message, "digits")),)
                case "hangup":
                    return (Hangup(after_speech=True),)
                case "transfer":
                    return (Transfer(get_text(message, "to")),)
                case "hold" | "unhold" as wish:
                    return (Hold(wish == "hold"),)
                case other:
                    return (Unknown(f"a message of type {other!r}"),)
        except BrokenError as error:
            return (Broken(str(error)),)
