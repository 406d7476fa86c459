# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine that stands in for Agora's, under the SDK alone."""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from sipbridge.rtc.agora import sdk
from tests.support import audio
from tests.support.agora_engine import Engine, in_this_process
from tests.support.waiting import wait_until

RATE_HZ = 16000


class Observer:
    """Writes down what the SDK tells."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.frames: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("on_"):
            raise AttributeError(name)

        def tell(*arguments: Any) -> int:
            if name == "on_playback_audio_frame":
                self.frames.append(bytes(arguments[2].buffer))
            self.told.append((name.removeprefix("on_"), *arguments[1:]))
            return 1

        return tell


@pytest.fixture
def engine() -> Iterator[Engine]:
    with in_this_process() as engine:
        yield engine


def test_sdk_runs_over_it(engine: Engine) -> None:
    """Somebody joins, hears and is heard, and leaves nothing behind."""
    before = engine.stats()
    names = sdk.load()
    service = names.AgoraService()
    service.initialize(names.AgoraServiceConfig(appid="0" * 32))
    connection = service.create_rtc_connection(
        names.RTCConnConfig(auto_subscribe_audio=1), names.RtcConnectionPublishConfig()
    )
    observer = Observer()
    connection.register_observer(observer)
    connection.get_local_user().set_playback_audio_frame_parameters(1, RATE_HZ, 0, 320)
    connection.register_audio_frame_observer(observer, 0, None)
    ann = engine.join("room", "ann")
    ann.say(audio.tone(500, 1.0, RATE_HZ))
    ann.record()
    assert connection.connect("token", "room", "5") == 0
    wait_until(lambda: "user_joined" in [told[0] for told in observer.told], 5.0, "it is in the room")
    connection.publish_audio()
    tone = audio.tone(700, 0.5, RATE_HZ)
    for start in range(0, len(tone), 320):
        assert connection.push_audio_pcm_data(bytearray(tone[start : start + 320].tobytes()), RATE_HZ, 1) == 0
        time.sleep(0.02)
    wait_until(lambda: len(observer.frames) > 20, 5.0, "it has heard something")
    heard = np.frombuffer(b"".join(observer.frames), np.int16)
    assert audio.find_tone(heard, RATE_HZ) == pytest.approx(500, rel=0.005)
    assert audio.find_tone(np.trim_zeros(ann.heard), RATE_HZ) == pytest.approx(700, rel=0.01)
    connection.disconnect()
    wait_until(lambda: observer.told[-1][0] == "disconnected", 5.0, "it has left")
    connection.release()
    service.release()
    after = engine.stats()
    for name in ("services", "connections", "tracks", "senders", "factories", "stale"):
        assert after[name] == before[name], name
