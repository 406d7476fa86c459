# SPDX-License-Identifier: GPL-3.0-or-later
"""When a voice begins, goes on and ends, in the words that users of Agora's SDK know."""

from collections import deque
from typing import Literal

import numpy as np

from sipbridge.media.vad import SpeechGate, SpeechStarted, SpeechStopped, VadSettings, VoiceDetector
from sipbridge.rtc.base import Samples

State = Literal["start", "speaking", "stop"]

_MAX_PIECES = 50  # that wait to be judged
_ROUND_MS = 20
_LATE_ROUNDS = 10  # without audio; then it is silence


class Voice:
    """One voice. Used by one thread at a time."""

    def __init__(self, rate_hz: int, settings: VadSettings, *, only_speech: bool = False) -> None:
        self.rate_hz = rate_hz
        self._detector = VoiceDetector(rate_hz, settings)
        self._gate = SpeechGate(self._detector) if only_speech else None
        self._spoken = 0  # samples since it was last told

    @property
    def is_speaking(self) -> bool:
        return self._detector.speaking

    def feed(self, samples: Samples) -> list[State | Samples]:
        """What has become clear by these, and what is to be passed on now, in order.

        "speaking" comes once a second between "start" and "stop".
        """
        if self._gate is not None:
            items = self._gate.feed(samples)
        else:
            items = [*self._detector.feed(samples), samples]
        told: list[State | Samples] = []
        if self._detector.speaking:
            self._spoken += samples.size
            if self._spoken >= self.rate_hz:
                self._spoken -= self.rate_hz
                told.append("speaking")
        for item in items:
            if isinstance(item, SpeechStarted):
                self._spoken = 0
                told.append("start")
            elif isinstance(item, SpeechStopped):
                told.append("stop")
            else:
                told.append(item)
        return told


class FarVoice:
    """The voice of somebody in the channel.

    It is heard on a thread of the SDK's, on which nothing may last, and judged on another.
    """

    def __init__(self, rate_hz: int, settings: VadSettings) -> None:
        self._voice = Voice(rate_hz, settings)
        self._pieces: deque[Samples] = deque(maxlen=_MAX_PIECES)
        self._late = 0  # rounds in a row

    def hear(self, samples: Samples) -> None:
        self._pieces.append(samples)

    def judge(self) -> list[State]:
        """What has become clear since the last round, 20 ms ago. Whoever sends nothing says nothing."""
        pieces: list[Samples] = []
        while self._pieces:
            pieces.append(self._pieces.popleft())
        self._late = 0 if pieces else self._late + 1
        if not pieces:
            if not self._voice.is_speaking or self._late < _LATE_ROUNDS:
                return []
            pieces = [np.zeros(self._voice.rate_hz * _ROUND_MS // 1000, np.int16)]
        samples = np.concatenate(pieces) if len(pieces) > 1 else pieces[0]
        return [state for state in self._voice.feed(samples) if isinstance(state, str)]
