# SPDX-License-Identifier: GPL-3.0-or-later
"""What can be measured, by names for the command line."""

import argparse
import dataclasses

from sipbridge.loadtest.measure import Load

SPEECH_S = 600.0
MIXED_ROOM = "PCMU*3,PCMA*2,G722*5,opus"  # of eleven

# Each with its arguments and what it means; N has a default where it stands in brackets.
SCENARIOS = {
    "room:N": "two calls a room, bursts from one to the other",
    "echo:N": "calls that hear themselves: the round trip",
    "agent:N": "calls that hear themselves by way of an agent behind a WebSocket",
    "webrtc:N": "calls that hear themselves by way of a WebRTC member of their room, with their codec",
    "livekit:N": "two calls a room of a LiveKit server on this machine: through the bridge twice, PCMU",
    "livekit-opus:N": "the same with Opus in the room",
    "agora:N": "two calls a channel of a simulated Agora, 8 kHz: through the bridge, and the SDK, twice",
    "agora-16k:N": "the same with 16 kHz in the channel, so all is converted",
    "starting:N": "as room:N, while others begin 40 calls a second: do they disturb?",
    "mixed[:N]": "rooms of 11 (5 G.711, 5 G.722, 1 Opus; N=110), speech, ±100 ppm, 20 ms jitter",
    "speech:N": f"two calls a room, speech for {SPEECH_S:g} s, delay by correlation all the time",
    "jitter:MS[:N]": "the same for --seconds, and each packet up to MS late (N=20)",
    "loss:PERCENT[:N]": "the same with lost packets, judged by PESQ (N=10)",
    "wire:N": "no bridge: what the generator itself adds",
}
DEFAULT = [
    "room:2",
    "room:100",
    "room:400",
    "echo:100",
    "agent:50",
    "starting:100",
    "mixed",
    "jitter:40",
    "loss:5",
    "loss:10",
]
PUBLISHED = [
    *DEFAULT[:3],
    "room:800",
    *DEFAULT[3:],
    "agent:200",
    "speech:100",
    "livekit:20",
    "livekit-opus:20",
    "livekit:50",
    "webrtc:50",
]


@dataclasses.dataclass(frozen=True)
class Scenario:
    name: str  # as it was asked for
    load: Load
    has_pesq: bool = False
    livekit_codec: str = ""  # in a room of LiveKit's, where that is where callers meet
    agora_hz: int = 0  # of a channel of Agora's, where that is where they meet

    @classmethod
    def parse(cls, text: str) -> "Scenario":
        """Raises ArgumentTypeError for what is none of SCENARIOS."""
        kind, *numbers = text.split(":")
        try:
            values = [float(number) for number in numbers]
            load = _load_of(kind, values)
        except (ValueError, TypeError):
            names = ", ".join(SCENARIOS)
            raise argparse.ArgumentTypeError(f"{text!r} is none of {names}") from None
        if load.calls < 1 or (load.mode not in ("echo", "agent", "webrtc") and load.calls % load.room_size):
            raise argparse.ArgumentTypeError(f"{text!r}: the calls have to fill rooms of {load.room_size}")
        livekit_codec = {"livekit": "pcmu", "livekit-opus": "opus"}.get(kind, "")
        agora_hz = {"agora": 8000, "agora-16k": 16000}.get(kind, 0)
        return cls(text, load, has_pesq=kind == "loss", livekit_codec=livekit_codec, agora_hz=agora_hz)

    def __str__(self) -> str:
        return self.name


def _load_of(kind: str, values: list[float]) -> Load:
    match kind, values:
        case (("room" | "echo" | "agent" | "webrtc" | "wire"), [calls]):
            return Load(mode=kind, calls=int(calls))
        case (("livekit" | "livekit-opus"), [calls]):
            # the server tells of who comes in batches, seconds apart
            return Load(calls=int(calls), rate=10.0, settle_s=6.0)
        case (("agora" | "agora-16k"), [calls]):
            return Load(calls=int(calls), rate=20.0)
        case "starting", [calls]:
            return Load(calls=int(calls), others_rate=40.0)
        case "mixed", [*calls] if len(calls) <= 1:
            return Load(
                calls=int(*calls or [110]),
                room_size=11,
                codecs=MIXED_ROOM,
                drift_ppm=100,
                jitter_ms=20,
                is_speech=True,
            )
        case "speech", [calls]:
            return Load(calls=int(calls), is_speech=True, seconds=SPEECH_S)
        case "jitter", [jitter_ms, *calls] if len(calls) <= 1:
            return Load(calls=int(*calls or [20]), jitter_ms=jitter_ms, is_speech=True)
        case "loss", [percent, *calls] if len(calls) <= 1:
            return Load(calls=int(*calls or [10]), loss_percent=percent, is_speech=True)
    raise ValueError(kind)
