# SPDX-License-Identifier: GPL-3.0-or-later
"""The protocols of telephony clouds and PBXs, by conversations as their documentations show them."""

import base64
import io
import json
import re
import uuid
import wave
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from sipbridge.rtc.websocket import audiosocket
from sipbridge.rtc.websocket.asterisk import AsteriskPbx, AsteriskProtocol
from sipbridge.rtc.websocket.audiosocket import AudioSocketPbx, AudioSocketProtocol, format_message
from sipbridge.rtc.websocket.jambonz import JambonzProtocol
from sipbridge.rtc.websocket.protocol import (
    Audio,
    Begun,
    Broken,
    Clear,
    Conversation,
    Digits,
    Hangup,
    Mark,
    Pause,
    StatusAsked,
    Unknown,
    Wire,
)
from sipbridge.rtc.websocket.telnyx import TelnyxProtocol
from sipbridge.rtc.websocket.twilio import TwilioProtocol
from sipbridge.rtc.websocket.vonage import VonageProtocol
from tests.support import audio
from tests.support.codecs import Pcma, Pcmu, Samples

CALL = Conversation(
    call_id="5f2c9e0a1b7d", caller="+4930123", callee="7000", parameters={"tenant": "acme", "level": 3}
)
TONE = audio.tone(440, 0.02)


def objects(messages: Sequence[Wire]) -> list[dict[str, Any]]:
    return [json.loads(str(message)) for message in messages]


def samples_of(event: object) -> Samples:
    assert isinstance(event, Audio)
    return event.samples


# ---------------------------------------------------------------- Twilio


def test_twilio_conversation() -> None:
    """What an agent is told, in the order of a call."""
    protocol = TwilioProtocol(CALL)
    connected, start = objects(protocol.start())
    assert connected == {"event": "connected", "protocol": "Call", "version": "1.0.0"}
    stream, call, account = (start["start"][key] for key in ("streamSid", "callSid", "accountSid"))
    assert re.fullmatch("MZ[0-9a-f]{32}", stream)
    assert re.fullmatch("CA[0-9a-f]{32}", call)
    assert re.fullmatch("AC[0-9a-f]{32}", account)
    assert start == {
        "event": "start",
        "sequenceNumber": "1",
        "start": {
            "accountSid": account,
            "streamSid": stream,
            "callSid": call,
            "tracks": ["inbound"],
            "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
            "customParameters": {
                "call_id": "5f2c9e0a1b7d",
                "caller": "+4930123",
                "callee": "7000",
                "direction": "inbound",
                "tenant": "acme",
                "level": "3",
            },
        },
        "streamSid": stream,
    }
    payload = base64.b64encode(Pcmu().encode(TONE)).decode()
    assert objects([*protocol.audio(TONE), *protocol.audio(TONE)]) == [
        {
            "event": "media",
            "sequenceNumber": str(number + 1),
            "media": {
                "track": "inbound",
                "chunk": str(number),
                "timestamp": str(20 * (number - 1)),
                "payload": payload,
            },
            "streamSid": stream,
        }
        for number in (1, 2)
    ]
    assert objects(
        [*protocol.digit("1", 200), *protocol.mark_reached(Mark("a"), False), *protocol.stop()]
    ) == [
        {
            "event": "dtmf",
            "sequenceNumber": "4",
            "dtmf": {"track": "inbound_track", "digit": "1"},
            "streamSid": stream,
        },
        {"event": "mark", "sequenceNumber": "5", "mark": {"name": "a"}, "streamSid": stream},
        {
            "event": "stop",
            "sequenceNumber": "6",
            "stop": {"accountSid": account, "callSid": call},
            "streamSid": stream,
        },
    ]


def test_twilio_identifiers() -> None:
    """A call keeps its own; a connection that is made again is a new stream."""
    first, second = (objects(TwilioProtocol(CALL).start())[1]["start"] for _ in range(2))
    other = objects(TwilioProtocol(Conversation(call_id="other")).start())[1]["start"]
    assert first["callSid"] == second["callSid"] != other["callSid"]
    assert first["streamSid"] != second["streamSid"]


def test_twilio_agent() -> None:
    """Messages as an agent sends them; a whole answer may be in one."""
    protocol = TwilioProtocol(CALL)
    speech = Pcmu().encode(audio.speech(3.0))
    media = {"event": "media", "streamSid": "MZ", "media": {"payload": base64.b64encode(speech).decode()}}
    (event,) = protocol.receive(json.dumps(media))
    assert np.array_equal(samples_of(event), Pcmu().decode(speech))
    assert protocol.receive('{"event":"mark","streamSid":"MZ","mark":{"name":"end"}}') == (Mark("end"),)
    assert protocol.receive('{"event":"clear","streamSid":"MZ"}') == (Clear(),)
    assert protocol.receive('{"event":"sing"}') == (Unknown("an event 'sing'"),)


# ---------------------------------------------------------------- Telnyx


@pytest.mark.parametrize(("encoding", "codec"), [("PCMU", Pcmu()), ("PCMA", Pcma())])
def test_telnyx_conversation(encoding: str, codec: Pcmu | Pcma) -> None:
    protocol = TelnyxProtocol(
        Conversation(call_id="a", caller="100", callee="200", parameters={"encoding": encoding})
    )
    connected, start = objects(protocol.start())
    assert connected == {"event": "connected", "version": "1.0.0"}
    stream = start["stream_id"]
    assert uuid.UUID(stream)
    assert start["sequence_number"] == "1"
    assert start["start"]["media_format"] == {"encoding": encoding, "sample_rate": 8000, "channels": 1}
    assert (start["start"]["from"], start["start"]["to"]) == ("100", "200")
    assert start["start"]["custom_parameters"]["call_id"] == "a"
    payload = base64.b64encode(codec.encode(TONE)).decode()
    assert objects(protocol.audio(TONE)) == [
        {
            "event": "media",
            "sequence_number": "2",
            "media": {"track": "inbound", "chunk": "1", "timestamp": "0", "payload": payload},
            "stream_id": stream,
        }
    ]
    (dtmf,) = objects(protocol.digit("1", 200))
    assert dtmf.pop("occurred_at").endswith("+00:00")
    assert dtmf == {"event": "dtmf", "sequence_number": "3", "dtmf": {"digit": "1"}, "stream_id": stream}
    (mark,) = objects(protocol.mark_reached(Mark("end"), True))
    assert mark == {"event": "mark", "sequence_number": "4", "mark": {"name": "end"}, "stream_id": stream}
    (stop,) = objects(protocol.stop())
    assert stop["stop"].keys() == {"user_id", "call_control_id"}
    (event,) = protocol.receive(json.dumps({"event": "media", "media": {"payload": payload}}))
    assert np.array_equal(samples_of(event), codec.decode(codec.encode(TONE)))
    assert protocol.receive('{"event":"mark","mark":{"name":"end"}}') == (Mark("end"),)
    assert protocol.receive('{"event":"clear"}') == (Clear(),)


# ---------------------------------------------------------------- Vonage


def test_vonage_conversation() -> None:
    protocol = VonageProtocol(CALL)
    (connected,) = objects(protocol.start())
    assert connected["event"] == "websocket:connected"
    assert connected["content-type"] == "audio/l16;rate=16000"
    assert (connected["caller"], connected["tenant"]) == ("+4930123", "acme")
    (frame,) = protocol.audio(audio.tone(440, 0.02, 16000))
    assert len(frame) == 640
    assert objects(protocol.digit("5", 260)) == [{"event": "websocket:dtmf", "digit": "5", "duration": 260}]
    assert protocol.receive('{"action":"clear"}') == (Clear(),)
    assert objects(protocol.cleared(0)) == [{"event": "websocket:cleared"}]
    (mark,) = protocol.receive('{"action":"notify","payload":{"part":{"number":3}}}')
    assert isinstance(mark, Mark)
    assert objects(protocol.mark_reached(mark, False)) == [
        {"event": "websocket:notify", "payload": {"part": {"number": 3}}}
    ]
    (event,) = protocol.receive(frame)
    assert np.array_equal(samples_of(event), audio.tone(440, 0.02, 16000))


def test_vonage_has_frames_of_20_ms() -> None:
    with pytest.raises(ValueError, match="20 ms"):
        VonageProtocol(Conversation(call_id="a", frame_ms=40))


# ---------------------------------------------------------------- jambonz


def test_jambonz_conversation() -> None:
    protocol = JambonzProtocol(CALL)
    (attributes,) = objects(protocol.start())
    assert attributes["sampleRate"] == 16000
    assert attributes["mixType"] == "mono"
    assert attributes["metadata"] == {"tenant": "acme", "level": 3}
    assert (attributes["from"], attributes["to"], attributes["direction"]) == ("+4930123", "7000", "inbound")
    (frame,) = protocol.audio(audio.tone(440, 0.02, 16000))
    assert len(frame) == 640
    assert objects(protocol.digit("5", 260)) == [{"event": "dtmf", "dtmf": "5", "duration": "260"}]
    assert protocol.receive('{"type":"killAudio"}') == (Clear(),)
    assert protocol.receive('{"type":"disconnect"}') == (Hangup(),)
    (mark,) = protocol.receive('{"type":"mark","data":{"name":"a"}}')
    assert isinstance(mark, Mark)
    assert objects([*protocol.mark_reached(mark, False), *protocol.mark_reached(mark, True)]) == [
        {"type": "mark", "data": {"name": "a", "event": "playout"}},
        {"type": "mark", "data": {"name": "a", "event": "cleared"}},
    ]


@pytest.mark.parametrize("kind", ["raw", "wav"])
def test_jambonz_play_audio(kind: str) -> None:
    """A file at a rate of its own, and word when it was played."""
    protocol = JambonzProtocol(CALL)
    sound = audio.tone(440, 0.5, 8000)
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(8000)
        writer.writeframes(sound.tobytes())
    content = file.getvalue() if kind == "wav" else sound.tobytes()
    data = {
        "audioContentType": kind,
        "sampleRate": "8000",
        "audioContent": base64.b64encode(content).decode(),
        "id": "one",
    }
    played, mark = protocol.receive(json.dumps({"type": "playAudio", "data": data}))
    assert len(samples_of(played)) == 8000
    assert audio.find_tone(samples_of(played), 16000) == pytest.approx(440, abs=2)
    assert isinstance(mark, Mark)
    assert objects(protocol.mark_reached(mark, False)) == [{"type": "playDone", "data": {"id": "one"}}]


# ---------------------------------------------------------------- AudioSocket


def test_audiosocket_conversation() -> None:
    call_id = str(uuid.uuid4())
    protocol = AudioSocketProtocol(Conversation(call_id=call_id))
    first, silence = protocol.start()
    assert first == b"\x01\x00\x10" + uuid.UUID(call_id).bytes
    assert silence == b"\x10\x01\x40" + bytes(320)
    assert protocol.audio(TONE) == (b"\x10\x01\x40" + TONE.tobytes(),)
    assert protocol.digit("#", 100) == (b"\x03\x00\x01#",)
    assert protocol.stop() == (b"\x00\x00\x00",)


def test_audiosocket_stream_in_any_pieces() -> None:
    stream = b"".join(
        [
            format_message(0x10, TONE.tobytes()),
            format_message(audiosocket.DIGIT, b"7"),
            format_message(0x10, b"\x01"),
            format_message(0x12, TONE.tobytes()),
            format_message(audiosocket.ERROR, b"\x02"),
            format_message(0x42, b"?"),
            format_message(audiosocket.HANGUP),
        ]
    )
    for size in (1, 2, 3, 7, 100, len(stream)):
        protocol = AudioSocketProtocol(CALL)
        events = [
            event
            for start in range(0, len(stream), size)
            for event in protocol.receive(stream[start : start + size])
        ]
        assert np.array_equal(samples_of(events[0]), TONE)
        assert events[1:] == [
            Digits("7"),
            Broken("1 bytes are no whole number of 16-bit samples"),
            Broken("audio at 16000 Hz behind audio at 8000 Hz"),
            Unknown("an error: 02"),
            Unknown("a message of type 0x42"),
            Hangup(),
        ]


def test_audiosocket_application_chooses_its_rate() -> None:
    protocol = AudioSocketProtocol(CALL)
    protocol.receive(format_message(0x13, TONE.tobytes()))
    assert (protocol.send_rate_hz, protocol.receive_rate_hz) == (8000, 24000)
    assert AudioSocketProtocol(Conversation(call_id="a", rate_hz=16000)).audio(TONE)[0][0] == 0x12


# ---------------------------------------------------------------- Asterisk's chan_websocket


def test_asterisk_conversation() -> None:
    protocol = AsteriskProtocol(CALL)
    (start,) = objects(protocol.start())
    assert start["event"] == "MEDIA_START"
    assert (start["format"], start["optimal_frame_size"], start["ptime"]) == ("ulaw", 160, 20)
    assert start["channel"] == f"WebSocket/{start['connection_id']}"
    assert start["channel_variables"]["tenant"] == "acme"
    assert protocol.audio(TONE) == (Pcmu().encode(TONE),)
    channel = {"channel_id": start["channel_id"]}
    assert objects(protocol.digit("5", 100)) == [
        {"event": "DTMF_END", **channel, "digit": "5", "duration_ms": 100}
    ]
    (event,) = protocol.receive(Pcmu().encode(TONE))
    assert np.array_equal(samples_of(event), Pcmu().decode(Pcmu().encode(TONE)))


@pytest.mark.parametrize("plain", [False, True])
def test_asterisk_commands(plain: bool) -> None:
    """As JSON, and as words."""
    protocol = AsteriskProtocol(CALL)
    (start,) = objects(protocol.start())

    def say(command: str, correlation_id: str = "") -> Sequence[object]:
        if plain:
            return protocol.receive(f"{command} {correlation_id}".strip())
        identifier = {"correlation_id": correlation_id} if correlation_id else {}
        return protocol.receive(json.dumps({"command": command, **identifier}))

    def reached(mark: object, cleared: bool = False) -> list[dict[str, Any]]:
        assert isinstance(mark, Mark)
        messages = objects(protocol.mark_reached(mark, cleared))
        for message in messages:
            assert message.pop("channel_id") == start["channel_id"]
        return messages

    assert say("ANSWER") == ()
    assert say("START_MEDIA_BUFFERING") == ()
    assert say("GET_STATUS") == (StatusAsked(),)
    (status,) = objects(protocol.status(1000))
    assert (status["queue_length"], status["bulk_media"], status["media_paused"]) == (50, True, False)
    (buffered,) = say("STOP_MEDIA_BUFFERING", "x")
    assert reached(buffered) == [{"event": "MEDIA_BUFFERING_COMPLETED", "correlation_id": "x"}]
    assert reached(buffered, cleared=True) == []
    (mark,) = say("MARK_MEDIA", "y")
    assert reached(mark) == [{"event": "MEDIA_MARK_PROCESSED", "correlation_id": "y"}]
    (mark,) = say("MARK_MEDIA")
    assert reached(mark) == [{"event": "MEDIA_MARK_PROCESSED"}]
    (drained,) = say("REPORT_QUEUE_DRAINED")
    assert reached(drained) == [{"event": "QUEUE_DRAINED"}]
    assert say("PAUSE_MEDIA") == (Pause(True),)
    assert objects(protocol.status(0))[0]["media_paused"]
    assert say("CONTINUE_MEDIA") == (Pause(False),)
    assert say("FLUSH_MEDIA") == (Clear(), Pause(False))
    assert say("HANGUP") == (Hangup(),)
    assert say("DANCE") == (Unknown("a command 'DANCE'"),)


def test_asterisk_formats() -> None:
    wide = AsteriskProtocol(Conversation(call_id="a", rate_hz=16000))
    (start,) = objects(wide.start())
    assert (start["format"], start["optimal_frame_size"]) == ("slin16", 640)
    assert wide.receive(b"\x00") == (Broken("1 bytes are no whole number of 16-bit samples"),)
    with pytest.raises(ValueError, match="ulaw has 8000 Hz"):
        AsteriskProtocol(Conversation(call_id="a", rate_hz=16000, parameters={"encoding": "ulaw"}))


# ---------------------------------------------------------------- PBXs that hand over their calls


def test_audiosocket_pbx() -> None:
    """The call begins with the first audio, at its rate, or without one when it has been waited for."""
    call_id = uuid.uuid4()
    protocol = AudioSocketPbx(Conversation(call_id=""))
    assert protocol.wait_no_more() == ()
    assert protocol.receive(format_message(audiosocket.UUID, call_id.bytes)) == []
    begun, event = protocol.receive(format_message(0x12, TONE.tobytes()))
    assert begun == Begun(callee=str(call_id), codec="L16")
    assert np.array_equal(samples_of(event), TONE)
    assert (protocol.send_rate_hz, protocol.receive_rate_hz) == (16000, 16000)
    assert protocol.wait_no_more() == ()
    assert protocol.audio(TONE) == (format_message(0x12, TONE.tobytes()),)
    assert protocol.stop() == (format_message(audiosocket.HANGUP),)
    kinds = (0x10, b""), (audiosocket.DIGIT, b"7"), (audiosocket.HANGUP, b"")
    other = b"".join(format_message(kind, payload) for kind, payload in kinds)
    assert protocol.receive(other)[1:] == [Digits("7"), Hangup()]
    silent = AudioSocketPbx(Conversation(call_id=""))
    silent.receive(format_message(audiosocket.UUID, call_id.bytes))
    assert silent.wait_no_more() == (begun,)
    assert silent.receive_rate_hz == 8000


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize(
    ("codec", "rate_hz"), [("ulaw", 8000), ("alaw", 8000), ("slin", 8000), ("slin16", 16000)]
)
def test_asterisk_pbx(codec: str, rate_hz: int, as_json: bool) -> None:
    """It is answered in the form in which it speaks."""
    said = {"from": "100", "to": "200", "tenant": "acme"}
    protocol = AsteriskPbx(Conversation(call_id="", parameters=said))

    def tell(event: str, **content: str) -> Wire:
        if as_json:
            return json.dumps({"event": event, "channel_id": "1.2", **content})
        return " ".join((event, "channel_id:1.2", *(f"{name}:{value}" for name, value in content.items())))

    assert protocol.receive(b"too early") == (Broken("audio before MEDIA_START"),)
    assert protocol.receive(tell("MEDIA_START", format=codec)) == (
        Begun(caller="100", callee="200", headers={"tenant": "acme"}, codec=codec),
    )
    assert (protocol.send_rate_hz, protocol.receive_rate_hz) == (rate_hz, rate_hz)
    (frame,) = protocol.audio(TONE)
    (event,) = protocol.receive(frame)
    assert np.abs(samples_of(event).astype(int) - TONE).max() < 600
    assert protocol.receive(tell("DTMF_END", digit="#")) == (Digits("#"),)
    assert protocol.receive(tell("MEDIA_XOFF")) == ()
    (unknown,) = protocol.receive(tell("ERROR", error_text="oh"))
    assert isinstance(unknown, Unknown)
    commands = [*protocol.answer(), *protocol.stop()]
    assert [json.loads(str(text))["command"] if as_json else text for text in commands] == [
        "ANSWER",
        "HANGUP",
    ]


@pytest.mark.parametrize("codec", ["opus", "slin44", "slin192", "slin1", "ulaw8", "g722", "", "slin１６"])
def test_asterisk_pbx_with_a_codec_that_is_not_taken(codec: str) -> None:
    protocol = AsteriskPbx(Conversation(call_id=""))
    (event,) = protocol.receive(json.dumps({"event": "MEDIA_START", "format": codec}))
    assert isinstance(event, Broken)
    assert repr(codec) in event.detail
