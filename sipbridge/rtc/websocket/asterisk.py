# SPDX-License-Identifier: GPL-3.0-or-later
"""`asterisk`: the media protocol of Asterisk's chan_websocket, of both sides.

Binary messages are raw audio; text messages are commands and events. Events are JSON (`f(json)` in
Asterisk's dial string); commands are understood in JSON and as the plain words of older versions.

https://docs.asterisk.org/Configuration/Channel-Drivers/WebSocket/
"""

import json
import uuid
from collections.abc import Mapping, Sequence

from sipbridge.rtc.websocket.g711 import decode_alaw, decode_ulaw, encode_alaw, encode_ulaw
from sipbridge.rtc.websocket.protocol import (
    Audio,
    Begun,
    Broken,
    BrokenError,
    Clear,
    Conversation,
    Digits,
    Event,
    Hangup,
    Mark,
    Pause,
    PbxProtocol,
    Protocol,
    Samples,
    StatusAsked,
    Unknown,
    Wire,
    format_pcm,
    get_text,
    parameters_with_call,
    parse_object,
    parse_pcm,
)

_FORMATS = {
    "ulaw": (encode_ulaw, decode_ulaw, 1),
    "alaw": (encode_alaw, decode_alaw, 1),
    "slin": (format_pcm, parse_pcm, 2),
}
_MARK, _BUFFERED, _DRAINED = "MEDIA_MARK_PROCESSED", "MEDIA_BUFFERING_COMPLETED", "QUEUE_DRAINED"
# Of a queue in frames of 20 ms; it is told, and never reached: ours pauses the socket instead.
_XON, _XOFF = 800, 900


class AsteriskProtocol(Protocol):
    """Asterisk's side. The parameter `encoding` (ulaw, alaw or slin) chooses the codec of 8 kHz."""

    subprotocol = "media"
    rates_hz = (8000, 16000, 24000, 48000)

    def __init__(self, conversation: Conversation) -> None:
        super().__init__(conversation)
        self._parameters = parameters_with_call(conversation)
        encoding = self._parameters.pop("encoding", "ulaw" if self.send_rate_hz == 8000 else "slin")
        if encoding not in _FORMATS:
            raise ValueError(f"encoding {encoding!r} is not one of {', '.join(_FORMATS)}")
        if encoding != "slin" and self.send_rate_hz != 8000:
            raise ValueError(f"{encoding} has 8000 Hz")
        self._encode, self._decode, self._sample_bytes = _FORMATS[encoding]
        self._format = encoding if self.send_rate_hz == 8000 else f"slin{self.send_rate_hz // 1000}"
        self._channel_id = f"sipbridge-{conversation.call_id}"
        self._buffering = self._paused = False

    def start(self) -> Sequence[Wire]:
        connection_id = str(uuid.uuid4())
        return (
            self._event(
                "MEDIA_START",
                connection_id=connection_id,
                channel=f"WebSocket/{connection_id}",
                format=self._format,
                optimal_frame_size=self.send_rate_hz // 50 * self._sample_bytes,
                ptime=20,
                channel_variables=self._parameters,
            ),
        )

    def audio(self, samples: Samples) -> Sequence[Wire]:
        return (self._encode(samples),)

    def digit(self, digit: str, duration_ms: int) -> Sequence[Wire]:
        return (self._event("DTMF_END", digit=digit, duration_ms=duration_ms),)

    def mark_reached(self, mark: Mark, cleared: bool) -> Sequence[Wire]:
        if mark.kind == _BUFFERED and cleared:
            return ()  # as Asterisk has it
        if mark.kind == _DRAINED or not mark.name:
            return (self._event(mark.kind),)
        return (self._event(mark.kind, correlation_id=mark.name),)

    def status(self, queued_ms: int) -> Sequence[Wire]:
        frames = queued_ms // 20
        return (
            self._event(
                "STATUS",
                queue_length=frames,
                xon_level=_XON,
                xoff_level=_XOFF,
                queue_full=False,
                bulk_media=self._buffering,
                media_paused=self._paused,
            ),
        )

    def _event(self, event: str, **content: object) -> str:
        return json.dumps({"event": event, "channel_id": self._channel_id, **content})

    def receive(self, data: Wire) -> Sequence[Event]:
        try:
            if isinstance(data, bytes):
                return (Audio(self._decode(data)),)
            if data.lstrip().startswith("{"):
                message = parse_object(data)
                return self._command(message.get("command"), str(message.get("correlation_id") or ""))
            command, _, argument = data.strip().partition(" ")
            return self._command(command, argument)
        except BrokenError as error:
            return (Broken(str(error)),)

    def _command(self, command: object, correlation_id: str) -> Sequence[Event]:
        match command:
            case "HANGUP":
                return (Hangup(),)
            case "FLUSH_MEDIA":
                self._buffering = self._paused = False
                return (Clear(), Pause(False))
            case "MARK_MEDIA":
                return (Mark(correlation_id, _MARK),)
            case "START_MEDIA_BUFFERING":
                self._buffering = True
                return ()  # pieces of any size are joined anyway
            case "STOP_MEDIA_BUFFERING":
                self._buffering = False
                return (Mark(correlation_id, _BUFFERED),)
            case "PAUSE_MEDIA" | "CONTINUE_MEDIA":
                self._paused = command == "PAUSE_MEDIA"
                return (Pause(self._paused),)
            case "REPORT_QUEUE_DRAINED":
                return (Mark("", _DRAINED),)
            case "GET_STATUS":
                return (StatusAsked(),)
            case "ANSWER":
                return ()  # the call is answered when the connection is there
            case other:
                return (Unknown(f"a command {other!r}"),)


class AsteriskPbx(PbxProtocol):
    """An application's side. The parameters are those of the URL, which a dialplan adds with `v()`.

    Of these, `from` and `to` are the two numbers, the others headers. Commands are in the form that the
    events have: JSON or plain words.
    """

    subprotocol = "media"
    rates_hz = (8000, 12000, 16000, 24000, 32000, 48000)

    def __init__(self, conversation: Conversation) -> None:
        super().__init__(conversation)
        self._encode, self._decode, _ = _FORMATS["slin"]
        self._has_begun = self._is_json = False

    def audio(self, samples: Samples) -> Sequence[Wire]:
        return (self._encode(samples),)

    def answer(self) -> Sequence[Wire]:
        return (self._command("ANSWER"),)

    def stop(self) -> Sequence[Wire]:
        return (self._command("HANGUP"),)

    def _command(self, command: str) -> str:
        return json.dumps({"command": command}) if self._is_json else command

    def receive(self, data: Wire) -> Sequence[Event]:
        try:
            if isinstance(data, bytes):
                if not self._has_begun:
                    raise BrokenError("audio before MEDIA_START")
                return (Audio(self._decode(data)),)
            if data.lstrip().startswith("{"):
                message = parse_object(data)
                return self._event(get_text(message, "event"), message)
            event, *words = data.split()
            return self._event(event, dict(word.split(":", 1) for word in words if ":" in word))
        except BrokenError as error:
            return (Broken(str(error)),)

    def _event(self, event: str, content: Mapping[str, object]) -> Sequence[Event]:
        match event:
            case "MEDIA_START":
                self._is_json = "event" in content
                return self._begin(str(content.get("format")))
            case "DTMF_END":
                return (Digits(str(content.get("digit"))),)
            case "MEDIA_XON" | "MEDIA_XOFF" | "QUEUE_DRAINED":
                return ()  # what is sent comes in real time, so nothing queues up
            case other:
                return (Unknown(f"an event {other!r}: {content.get('error_text', '')}"),)

    def _begin(self, codec: str) -> Sequence[Event]:
        name, rate = codec.rstrip("0123456789"), codec.lstrip("abcdefghijklmnopqrstuvwxyz")
        rate_hz = int(rate) * 1000 if rate.isdecimal() and name == "slin" else 8000
        if name not in _FORMATS or (rate and name != "slin") or rate_hz not in self.rates_hz:
            raise BrokenError(f"a call in {codec!r}: only ulaw, alaw and slin are taken, by c(…) in Dial")
        if self._has_begun:
            raise BrokenError("a second MEDIA_START")
        self._has_begun = True
        self._encode, self._decode, _ = _FORMATS[name]
        self.send_rate_hz = self.receive_rate_hz = rate_hz
        said = {key: str(value) for key, value in self.conversation.parameters.items()}
        return (Begun(caller=said.pop("from", ""), callee=said.pop("to", ""), headers=said, codec=codec),)
