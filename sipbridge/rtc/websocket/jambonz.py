# SPDX-License-Identifier: GPL-3.0-or-later
"""`jambonz`: the far side of jambonz's `listen` verb, with `bidirectionalAudio` streaming.

A first text with the call's attributes, then binary PCM16LE both ways, and commands and events as JSON.

https://docs.jambonz.org/verbs/verbs/listen
"""

import io
import json
import uuid
import wave
from collections.abc import Sequence

import numpy as np

from sipbridge.resample import resample_whole
from sipbridge.rtc.websocket.protocol import (
    Audio,
    Broken,
    BrokenError,
    Clear,
    Event,
    Hangup,
    Mark,
    Protocol,
    Samples,
    Unknown,
    Wire,
    format_pcm,
    get_object,
    get_text,
    parse_base64,
    parse_object,
    parse_pcm,
)

_PLAY_RATES_HZ = range(4000, 96001)


class JambonzProtocol(Protocol):
    """jambonz's side. Parameters become the `metadata` of the first message."""

    subprotocol = "audio.jambonz.org"
    rates_hz = (16000, 8000, 24000, 48000)

    def start(self) -> Sequence[Wire]:
        call = self.conversation
        return (
            json.dumps(
                {
                    "sampleRate": self.send_rate_hz,
                    "mixType": "mono",
                    "callSid": str(uuid.uuid5(uuid.NAMESPACE_OID, f"sipbridge {call.call_id}")),
                    "direction": call.direction,
                    "from": call.caller,
                    "to": call.callee,
                    "callId": call.call_id,
                    "sipStatus": 200,
                    "sipReason": "OK",
                    "callStatus": "in-progress",
                    "metadata": dict(call.parameters),
                }
            ),
        )

    def audio(self, samples: Samples) -> Sequence[Wire]:
        return (format_pcm(samples),)

    def digit(self, digit: str, duration_ms: int) -> Sequence[Wire]:
        return (json.dumps({"event": "dtmf", "dtmf": digit, "duration": str(duration_ms)}),)

    def mark_reached(self, mark: Mark, cleared: bool) -> Sequence[Wire]:
        if mark.kind == "playDone":
            return (json.dumps({"type": "playDone", "data": {"id": mark.name}}),)
        event = "cleared" if cleared else "playout"
        return (json.dumps({"type": "mark", "data": {"name": mark.name, "event": event}}),)

    def receive(self, data: Wire) -> Sequence[Event]:
        try:
            if isinstance(data, bytes):
                return (Audio(parse_pcm(data)),)
            message = parse_object(data)
            match message.get("type"):
                case "killAudio":
                    return (Clear(),)
                case "mark":
                    return (Mark(get_text(get_object(message, "data"), "name")),)
                case "disconnect":
                    return (Hangup(),)
                case "playAudio":
                    return self._play(get_object(message, "data"))
                case other:
                    return (Unknown(f"a command {other!r}"),)
        except BrokenError as error:
            return (Broken(str(error)),)

    def _play(self, data: dict[str, object]) -> Sequence[Event]:
        """A whole piece of audio in one message, at a rate of its own."""
        content = parse_base64(get_text(data, "audioContent"))
        rate_hz = self.send_rate_hz
        if data.get("audioContentType") in ("wav", "wave"):
            try:
                with wave.open(io.BytesIO(content)) as sound:
                    if sound.getsampwidth() != 2 or sound.getnchannels() != 1:
                        raise BrokenError("playAudio with WAV that is not 16 bits, mono")
                    rate_hz, content = sound.getframerate(), sound.readframes(sound.getnframes())
            except (wave.Error, EOFError) as error:
                raise BrokenError(f"playAudio with no WAV: {error}") from None
        else:
            try:
                rate_hz = int(str(data.get("sampleRate", rate_hz)))
            except ValueError:
                raise BrokenError("playAudio with a sampleRate that is no number") from None
        if rate_hz not in _PLAY_RATES_HZ:
            raise BrokenError(f"playAudio with a rate of {rate_hz} Hz")
        samples = parse_pcm(content)
        if rate_hz != self.receive_rate_hz and samples.size:
            samples = resample_whole(np.ascontiguousarray(samples), rate_hz, self.receive_rate_hz)
        done = data.get("id")
        return (Audio(samples), *([Mark(str(done), "playDone")] if done is not None else []))
