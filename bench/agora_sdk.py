# SPDX-License-Identifier: GPL-3.0-or-later
"""What Agora's SDK costs by itself, over the simulated engine: `python -m bench.agora_sdk 50`.

The connections of the scenario agora:N without the bridge and without telephones: two a channel, each is
pushed a frame every 20 ms, all by one thread, and copies the frames that it is called back with. What a call
of agora:N takes beyond this is the bridge's own: its Python, its native code, SIP and RTP.
"""

import argparse
import os
import time
from typing import Any

from sipbridge.loadtest.server import Usage
from sipbridge.rtc.agora import sdk
from tests.support.agora_engine import in_this_process

_TICK_S = 0.005  # of the bridge's clock, over four of which its telephones are spread
_SETTLE_S = 3.0


class _Observer:
    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: 0

    def on_get_audio_frame_position(self, user: Any) -> int:
        return 1  # where all others are mixed

    def on_playback_audio_frame(self, user: Any, channel: str, frame: Any) -> int:
        bytes(frame.buffer)
        return 1


def _join(names: Any, service: Any, number: int, rate_hz: int) -> Any:
    settings = names.RTCConnConfig(auto_subscribe_audio=1, enable_audio_recording_or_playout=1)
    scenario = names.AudioScenarioType.AUDIO_SCENARIO_CHORUS
    publish = names.RtcConnectionPublishConfig(audio_scenario=scenario, is_publish_audio=True)
    connection = service.create_rtc_connection(settings, publish)
    connection.get_local_user().set_playback_audio_frame_parameters(1, rate_hz, 0, rate_hz // 50)
    connection.register_audio_frame_observer(_Observer(), 0, None)
    connection.connect("", f"room{number // 2}", f"{number + 1}")
    time.sleep(0.02)
    connection.publish_audio()
    return connection


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.agora_sdk", description=__doc__)
    parser.add_argument("connections", type=int)
    parser.add_argument("--rate-hz", type=int, default=8000)
    parser.add_argument("--seconds", type=float, default=15.0)
    options = parser.parse_args()
    rate_hz, frame = options.rate_hz, bytes(options.rate_hz // 25)
    with in_this_process():
        names = sdk.load()
        service = names.AgoraService()
        service.initialize(names.AgoraServiceConfig(appid="0" * 32))
        all_of = [_join(names, service, number, rate_hz) for number in range(options.connections)]
        began, ticks, usage = time.monotonic(), 0, Usage.of(os.getpid())
        while usage.at_s < began + _SETTLE_S or time.monotonic() < usage.at_s + options.seconds:
            if usage.at_s < began + _SETTLE_S <= time.monotonic():
                usage = Usage.of(os.getpid())
            for connection in all_of[ticks % 4 :: 4]:
                connection.push_audio_pcm_data(bytearray(frame), rate_hz, 1)
            ticks += 1
            time.sleep(max(0.0, began + ticks * _TICK_S - time.monotonic()))
        end = Usage.of(os.getpid())
        percent = 100 * (end.cpu_s - usage.cpu_s) / (end.at_s - usage.at_s) / options.connections
        print(f"{options.connections} connections, {rate_hz} Hz: {percent:.3f} % of a core each")
        for connection in all_of:
            connection.disconnect()
        time.sleep(0.1)
        for connection in all_of:
            connection.release()
        service.release()


if __name__ == "__main__":
    main()
