# SPDX-License-Identifier: GPL-3.0-or-later
"""Pipecat's serializers, written for the clouds that our codecs stand in for, talk with the codecs."""

import asyncio
import importlib
import json
from typing import Any

import numpy as np
import pytest

from sipbridge.rtc.websocket.protocol import Audio, Clear, Conversation, Protocol, load_protocol
from tests.support import audio
from tests.support.codecs import Samples

PIPELINE_HZ = 16000
PIECES = 20  # of a tone of 400 ms


@pytest.fixture(params=["twilio", "telnyx", "vonage"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def make_serializer(name: str, protocol: Protocol) -> Any:
    """What a pipeline makes of the first messages of a call."""
    module = importlib.import_module(f"pipecat.serializers.{name}")
    match name:
        case "twilio":
            start = json.loads(str(protocol.start()[1]))
            params = module.TwilioFrameSerializer.InputParams(auto_hang_up=False)
            return module.TwilioFrameSerializer(start["streamSid"], start["start"]["callSid"], params=params)
        case "telnyx":
            start = json.loads(str(protocol.start()[1]))
            params = module.TelnyxFrameSerializer.InputParams(auto_hang_up=False)
            encoding = start["start"]["media_format"]["encoding"]
            return module.TelnyxFrameSerializer(start["stream_id"], encoding, encoding, params=params)
        case _:
            protocol.start()
            params = module.VonageFrameSerializer.InputParams(vonage_sample_rate=protocol.send_rate_hz)
            return module.VonageFrameSerializer(params=params)


def pieces(hz: float, rate_hz: int) -> Samples:
    return audio.tone(hz, 0.4, rate_hz).reshape(PIECES, -1)


def test_they_understand_each_other(name: str) -> None:
    """A tone each way, a key, an interruption."""
    frames: Any = importlib.import_module("pipecat.frames.frames")
    protocol = load_protocol(name)(Conversation(call_id="call", caller="100", callee="200"))
    serializer = make_serializer(name, protocol)

    async def talk() -> None:
        await serializer.setup(
            frames.StartFrame(audio_in_sample_rate=PIPELINE_HZ, audio_out_sample_rate=PIPELINE_HZ)
        )
        heard = []
        for piece in pieces(700, protocol.send_rate_hz):
            for message in protocol.audio(piece):
                frame = await serializer.deserialize(message)
                if frame is not None:  # its resampler has begun to give
                    heard.append(np.frombuffer(frame.audio, np.int16))
        assert audio.find_tone(np.concatenate(heard), PIPELINE_HZ) == pytest.approx(700, abs=10)
        (digit,) = protocol.digit("5", 160)
        assert (await serializer.deserialize(digit)).button.value == "5"

        said = [
            frames.OutputAudioRawFrame(piece.tobytes(), PIPELINE_HZ, 1) for piece in pieces(440, PIPELINE_HZ)
        ]
        messages = [await serializer.serialize(frame) for frame in [*said, frames.InterruptionFrame()]]
        events = [event for message in messages if message for event in protocol.receive(message)]
        assert events[-1] == Clear()
        samples = np.concatenate([event.samples for event in events[:-1] if isinstance(event, Audio)])
        assert len(samples) > 0.3 * protocol.receive_rate_hz
        assert audio.find_tone(samples, protocol.receive_rate_hz) == pytest.approx(440, abs=10)

    asyncio.run(talk())
