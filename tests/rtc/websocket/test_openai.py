# SPDX-License-Identifier: GPL-3.0-or-later
"""The Realtime API, by events as its reference shows them."""

import base64
import json
from typing import Any

import numpy as np
import pytest

from sipbridge.rtc.websocket.openai import OpenaiProtocol
from sipbridge.rtc.websocket.protocol import (
    Audio,
    Broken,
    Clear,
    Conversation,
    Digits,
    Event,
    Hangup,
    Message,
    Ready,
    Transfer,
    Unknown,
)
from tests.support import audio
from tests.support.codecs import Pcma, Pcmu, Samples

SECOND = audio.tone(440, 1.0)


def make(**changes: Any) -> OpenaiProtocol:
    return OpenaiProtocol(Conversation(call_id="a", **changes))


def say(protocol: OpenaiProtocol, kind: str, **content: Any) -> list[Event]:
    return list(protocol.receive(json.dumps({"type": kind, "event_id": "event_1", **content})))


def speak(
    protocol: OpenaiProtocol, item: str, samples: Samples, kind: str = "response.output_audio.delta"
) -> list[Event]:
    delta = base64.b64encode(Pcmu().encode(samples)).decode()
    return say(protocol, kind, response_id="r", item_id=item, output_index=0, content_index=0, delta=delta)


def truncations(protocol: OpenaiProtocol, position: int) -> list[dict[str, Any]]:
    return [json.loads(str(message)) for message in protocol.cleared(position)]


def cut(item: str, ms: int) -> dict[str, Any]:
    return {"type": "conversation.item.truncate", "item_id": item, "content_index": 0, "audio_end_ms": ms}


def test_session() -> None:
    """The parameters are the session's; the formats are ours."""
    parameters = {
        "instructions": "Be brief.",
        "audio": {"input": {"turn_detection": {"type": "server_vad"}}, "output": {"voice": "marin"}},
    }
    (update,) = make(parameters=parameters).start()
    assert json.loads(str(update)) == {
        "type": "session.update",
        "session": {
            "type": "realtime",
            "instructions": "Be brief.",
            "audio": {
                "input": {"turn_detection": {"type": "server_vad"}, "format": {"type": "audio/pcmu"}},
                "output": {"voice": "marin", "format": {"type": "audio/pcmu"}},
            },
        },
    }


@pytest.mark.parametrize(
    ("leg_hz", "rate_hz", "parameters", "wire"),
    [
        (8000, 0, {}, {"type": "audio/pcmu"}),
        (8000, 0, {"encoding": "PCMA"}, {"type": "audio/pcma"}),
        (16000, 0, {}, {"type": "audio/pcm", "rate": 24000}),
        (8000, 24000, {}, {"type": "audio/pcm", "rate": 24000}),
        (48000, 8000, {}, {"type": "audio/pcmu"}),
    ],
)
def test_format_fits_the_telephone(
    leg_hz: int, rate_hz: int, parameters: dict[str, str], wire: dict[str, Any]
) -> None:
    protocol = make(leg_rate_hz=leg_hz, rate_hz=rate_hz, parameters=parameters)
    session = json.loads(str(protocol.start()[0]))["session"]
    assert session["audio"]["input"]["format"] == session["audio"]["output"]["format"] == wire
    assert protocol.send_rate_hz == protocol.receive_rate_hz == wire.get("rate", 8000)
    samples = audio.tone(440, 0.02, protocol.send_rate_hz)
    message = json.loads(str(protocol.audio(samples)[0]))
    payload = {
        "audio/pcmu": Pcmu().encode(samples),
        "audio/pcma": Pcma().encode(samples),
        "audio/pcm": samples.tobytes(),
    }[wire["type"]]
    assert message == {"type": "input_audio_buffer.append", "audio": base64.b64encode(payload).decode()}


@pytest.mark.parametrize("kind", ["response.output_audio.delta", "response.audio.delta"])
def test_speech_and_words(kind: str) -> None:
    protocol = make()
    assert say(protocol, "session.created", session={}) == []
    assert say(protocol, "session.updated", session={}) == [Ready()]
    (event,) = speak(protocol, "item_1", SECOND, kind)
    assert isinstance(event, Audio)
    assert np.array_equal(event.samples, Pcmu().decode(Pcmu().encode(SECOND)))
    words = say(protocol, "response.output_audio_transcript.done", item_id="item_1", transcript="Hello.")
    assert words == [Message("agent", "Hello.")]
    kind = "conversation.item.input_audio_transcription.completed"
    assert say(protocol, kind, item_id="item_0", transcript="Hi.") == [Message("caller", "Hi.")]


def test_barge_in_truncates_where_it_was_played_to() -> None:
    """Two seconds came at once; the caller speaks after 350 ms of them."""
    protocol = make()
    say(protocol, "response.created", response={})
    speak(protocol, "item_1", SECOND)
    speak(protocol, "item_1", SECOND)
    assert say(protocol, "input_audio_buffer.speech_started", audio_start_ms=100, item_id="u") == [Clear()]
    assert truncations(protocol, 2800) == [cut("item_1", 350)]
    assert truncations(protocol, 2800) == []


def test_barge_in_with_several_items() -> None:
    """Those that were heard to their end stay whole; those behind were not heard at all."""
    protocol = make()
    for item in ("a", "b", "c"):
        speak(protocol, item, SECOND)
    say(protocol, "input_audio_buffer.speech_started")
    assert truncations(protocol, 8000 + 4000) == [cut("b", 500), cut("c", 0)]
    speak(protocol, "d", SECOND)
    say(protocol, "input_audio_buffer.speech_started")
    assert truncations(protocol, 3 * 8000 + 80) == [cut("d", 10)]


def test_nothing_is_truncated_that_was_heard() -> None:
    protocol = make()
    speak(protocol, "a", SECOND)
    say(protocol, "input_audio_buffer.speech_started")
    assert truncations(protocol, 8000) == []


def test_barge_in_of_our_own_cancels_the_response() -> None:
    """The server has not heard the caller: it goes on speaking, and is not listened to."""
    protocol = make()
    say(protocol, "response.created", response={})
    speak(protocol, "a", SECOND)
    assert truncations(protocol, 1600) == [{"type": "response.cancel"}, cut("a", 200)]
    assert speak(protocol, "a", SECOND) == []
    say(protocol, "response.done", response={})
    assert len(speak(protocol, "b", SECOND)) == 1
    assert truncations(protocol, 8000 + 800) == [cut("b", 100)]


def test_tools_of_ours_and_of_others() -> None:
    protocol = make()
    call = {"call_id": "c1", "item_id": "i"}
    kind = "response.function_call_arguments.done"
    assert say(protocol, kind, name="hangup", arguments="{}", **call) == [Hangup(after_speech=True)]
    assert say(protocol, kind, name="press_keys", arguments='{"keys":"1w2"}', **call) == [Digits("1w2")]
    assert say(protocol, kind, name="transfer", arguments='{"to":"200"}', **call) == [Transfer("200")]
    (message,) = say(protocol, kind, name="weather", arguments='{"city":"Ulm"}', **call)
    assert isinstance(message, Message)
    assert message.topic == "function_call"
    assert json.loads(message.text) == {"name": "weather", "call_id": "c1", "arguments": {"city": "Ulm"}}
    assert isinstance(say(protocol, kind, name="hangup", arguments="{", **call)[0], Broken)


def test_errors_and_strangers() -> None:
    protocol = make()
    error = {"type": "invalid_request_error", "message": "no such voice"}
    assert say(protocol, "error", error=error) == [Unknown("an error: no such voice")]
    assert say(protocol, "rate_limits.updated", rate_limits=[]) == []
    assert say(protocol, "response.content_part.added") == []
    assert say(protocol, "horoscope.updated") == [Unknown("an event 'horoscope.updated'")]


def test_keys_are_told_in_words() -> None:
    (message,) = make().digit("5", 160)
    item = json.loads(str(message))
    assert item["type"] == "conversation.item.create"
    assert "5" in item["item"]["content"][0]["text"]
