# SPDX-License-Identifier: GPL-3.0-or-later
"""Lets pipecat's serializers talk to our codecs, and writes down what they said to `pipecat.json`.

pipecat-ai brings numba, onnxruntime and other versions of our own libraries with it, so it is no dependency
of the tests. In an environment of its own that has it, and numpy, soxr, soundfile and pydantic::

    python -m tests.rtc.websocket.record_pipecat

It ends with an error when a serializer does not understand what a codec of ours sends.
"""

import asyncio
import importlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import numpy as np

from sipbridge.rtc.websocket.protocol import Conversation, Protocol, Wire, format_base64, load_protocol

RECORD = Path(__file__).with_name("pipecat.json")
PIPELINE_HZ = 16000
TONE_HZ = 440.0


def tone(rate_hz: int, seconds: float) -> Any:
    time_s = np.arange(round(rate_hz * seconds)) / rate_hz
    return np.rint(8000 * np.sin(2 * np.pi * TONE_HZ * time_s)).astype(np.int16)


def make_serializer(name: str, protocol: Protocol) -> Any:
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
            params = module.VonageFrameSerializer.InputParams(vonage_sample_rate=protocol.send_rate_hz)
            return module.VonageFrameSerializer(params=params)


async def record(name: str) -> list[dict[str, str]]:
    frames: Any = importlib.import_module("pipecat.frames.frames")
    protocol = load_protocol(name)(Conversation(call_id="call", caller="100", callee="200"))
    serializer = make_serializer(name, protocol)
    start = frames.StartFrame(audio_in_sample_rate=PIPELINE_HZ, audio_out_sample_rate=PIPELINE_HZ)
    await serializer.setup(start)

    heard = []
    said = tone(protocol.send_rate_hz, 0.4)
    for piece in said.reshape(20, -1):
        for message in protocol.audio(piece):
            frame = await serializer.deserialize(message)
            if frame is not None:
                heard.append(np.frombuffer(frame.audio, np.int16))
    spectrum = np.abs(np.fft.rfft(np.concatenate(heard)))
    found_hz = float(np.argmax(spectrum)) * PIPELINE_HZ / sum(map(len, heard))
    assert abs(found_hz - TONE_HZ) < 10, f"{name}: pipecat heard {found_hz} Hz"
    (digit,) = protocol.digit("5", 160)
    frame = await serializer.deserialize(digit)
    assert frame.button.value == "5", f"{name}: pipecat took no key from {digit!r}"

    sent: list[Wire | None] = []
    for piece in tone(PIPELINE_HZ, 0.4).reshape(20, -1):
        frame = frames.OutputAudioRawFrame(piece.tobytes(), PIPELINE_HZ, 1)
        sent.append(await serializer.serialize(frame))
    sent.append(await serializer.serialize(frames.InterruptionFrame()))
    return [
        {"text": item} if isinstance(item, str) else {"binary": format_base64(item)} for item in sent if item
    ]


async def main() -> None:
    version = importlib.metadata.version("pipecat-ai")
    record_of = {name: await record(name) for name in ("twilio", "telnyx", "vonage")}
    RECORD.write_text(json.dumps({"pipecat-ai": version, **record_of}, indent=1) + "\n")


if __name__ == "__main__":
    asyncio.run(main())
