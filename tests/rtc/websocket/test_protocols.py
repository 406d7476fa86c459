# SPDX-License-Identifier: GPL-3.0-or-later
"""What all protocols have in common."""

import importlib.metadata
from typing import Any

import numpy as np
import pytest

from sipbridge.rtc.websocket import protocol as protocols
from sipbridge.rtc.websocket.protocol import (
    Broken,
    Conversation,
    Protocol,
    Unknown,
    Wire,
    load_protocol,
)


def make(name: str, **changes: Any) -> Protocol:
    fields: dict[str, Any] = {"call_id": "5f2c", "caller": "100", "callee": "200", **changes}
    return load_protocol(name)(Conversation(**fields))


@pytest.mark.parametrize("name", protocols.PROTOCOLS)
def test_starts_and_takes_audio(name: str) -> None:
    """With any number of samples, as the frame's length is configured."""
    protocol = make(name)
    protocol.start()
    for ms in (10, 20, 60):
        messages = protocol.audio(np.zeros(protocol.send_rate_hz * ms // 1000, np.int16))
        assert len(messages) == 1
    for message in (*protocol.digit("#", 160), *protocol.message("text", "topic"), *protocol.stop()):
        assert isinstance(message, str if protocol.transport == "websocket" else bytes)


@pytest.mark.parametrize("name", protocols.PROTOCOLS)
@pytest.mark.parametrize(
    "message",
    [
        *(
            "{",
            "[]",
            "null",
            '"media"',
            "{}",
            "[" * 100_000,
            "\x00",
            "3",
            '{"event":"media"}',
            '{"type":7}',
            "",
        ),
        *('{"event":"media","media":{"payload":"?"}}', '{"event":"media","media":{"payload":5}}'),
        *('{"type":"response.output_audio.delta","delta":"AAAA"}', '{"type":"mark"}', '{"action":"notify"}'),
        '{"type":"response.output_audio.delta","item_id":"a","content_index":"x","delta":"?"}',
        '{"type":"playAudio","data":{"audioContent":"AAAA","sampleRate":"1"}}',
        '{"type":"playAudio","data":{"audioContent":"AAAA","audioContentType":"wav"}}',
        *('{"event":{}}', '{"command":["a"]}'),
    ],
)
def test_nothing_that_comes_raises(name: str, message: str) -> None:
    """It is told as broken or unknown, or not told at all."""
    protocol = make(name)
    protocol.start()
    for event in protocol.receive(message):
        assert isinstance(event, Broken | Unknown)


@pytest.mark.parametrize("name", ["proxy", "twilio", "telnyx", "vonage", "jambonz", "openai"])
def test_no_json_is_broken(name: str) -> None:
    (event,) = make(name).receive("{oh")
    assert event == Broken("a text message that is no JSON")


@pytest.mark.parametrize("name", ["twilio", "telnyx", "openai"])
def test_binary_where_text_belongs_is_broken(name: str) -> None:
    (event,) = make(name).receive(b"\x00\x00")
    assert isinstance(event, Broken)


@pytest.mark.parametrize("name", ["proxy", "vonage", "jambonz"])
def test_half_a_sample_is_broken(name: str) -> None:
    (event,) = make(name).receive(b"\x00\x00\x00")
    assert isinstance(event, Broken)


@pytest.mark.parametrize("name", protocols.PROTOCOLS)
def test_a_rate_that_it_has_not(name: str) -> None:
    with pytest.raises(ValueError, match="11025 Hz is not carried"):
        make(name, rate_hz=11025)


@pytest.mark.parametrize("name", ["telnyx", "openai", "asterisk"])
def test_an_encoding_that_it_has_not(name: str) -> None:
    with pytest.raises(ValueError, match="encoding 'speex' is not one of"):
        make(name, parameters={"encoding": "speex"})


class Mine(Protocol):
    """A protocol as somebody else would write it."""

    def start(self) -> list[Wire]:
        return []

    def audio(self, samples: protocols.Samples) -> list[Wire]:
        return [samples.tobytes()]

    def receive(self, data: Wire) -> list[protocols.Event]:
        return []


def test_a_protocol_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = importlib.metadata.EntryPoint("mine", f"{__name__}:Mine", protocols.ENTRY_POINTS)
    points = importlib.metadata.EntryPoints([entry])
    monkeypatch.setattr(importlib.metadata, "entry_points", points.select)
    protocol = make("mine")
    assert protocol.digit("5", 100) == protocol.stop() == protocol.message("a", "b") == ()
    assert type(protocol) is Mine


def test_a_protocol_that_is_not_there() -> None:
    with pytest.raises(LookupError, match="no protocol 'twillio': expected one of asterisk, "):
        load_protocol("twillio")
