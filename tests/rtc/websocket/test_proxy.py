# SPDX-License-Identifier: GPL-3.0-or-later
import json

import numpy as np

from sipbridge.rtc.websocket.protocol import (
    Audio,
    Broken,
    Clear,
    Conversation,
    Digits,
    Hangup,
    Hold,
    Mark,
    Message,
    Transfer,
    Unknown,
)
from sipbridge.rtc.websocket.proxy import ProxyProtocol

SAMPLES = np.array([0, 1, -2, 32767], np.int16)
OCTETS = b"\x00\x00\x01\x00\xfe\xff\xff\x7f"


def test_parameters_come_first() -> None:
    parameters = {"assistantPrompt": "Be kind.", "audioFormat": "pcm16", "vadThreshold": 0.5, "mine": [1]}
    protocol = ProxyProtocol(Conversation(call_id="a", parameters=parameters))
    (first,) = protocol.start()
    assert json.loads(str(first)) == parameters


def test_without_parameters_audio_comes_first() -> None:
    assert ProxyProtocol(Conversation(call_id="a")).start() == ()


def test_what_the_agent_is_told() -> None:
    protocol = ProxyProtocol(Conversation(call_id="a"))
    assert protocol.send_rate_hz == protocol.receive_rate_hz == 16000
    assert protocol.audio(SAMPLES) == (OCTETS,)
    told = [
        *protocol.digit("5", 160),
        *protocol.message("hello", ""),
        *protocol.mark_reached(Mark("m"), False),
        *protocol.mark_reached(Mark("n"), True),
        *protocol.speech(True),
        *protocol.speech(False),
        *protocol.refused("transfer", "busy"),
    ]
    assert [json.loads(str(message)) for message in told] == [
        {"type": "dtmf", "digit": "5", "durationMs": 160},
        {"type": "text", "content": "hello"},
        {"type": "mark", "name": "m", "event": "played"},
        {"type": "mark", "name": "n", "event": "cleared"},
        {"type": "speech_started"},
        {"type": "speech_stopped"},
        {"type": "refused", "request": "transfer", "reason": "busy"},
    ]


def test_what_the_agent_says() -> None:
    protocol = ProxyProtocol(Conversation(call_id="a"))
    (event,) = protocol.receive(OCTETS)
    assert isinstance(event, Audio)
    assert np.array_equal(event.samples, SAMPLES)
    said = [
        {"type": "text", "content": "hi"},
        {"type": "clear"},
        {"type": "mark", "name": "m"},
        {"type": "dtmf", "digits": "1w2#"},
        {"type": "hangup"},
        {"type": "transfer", "to": "200"},
        {"type": "hold"},
        {"type": "unhold"},
        {"type": "transfer"},
        {"type": "sing"},
        {"type": "text"},
    ]
    assert [event for message in said for event in protocol.receive(json.dumps(message))] == [
        Message("text", "hi"),
        Clear(),
        Mark("m"),
        Digits("1w2#"),
        Hangup(after_speech=True),
        Transfer("200"),
        Hold(True),
        Hold(False),
        Broken('a message without the text "to"'),
        Unknown("a message of type 'sing'"),
        Broken('a message without the text "content"'),
    ]
