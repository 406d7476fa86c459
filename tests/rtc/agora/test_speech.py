# SPDX-License-Identifier: GPL-3.0-or-later
"""The states of a voice."""

import numpy as np
import pytest

from sipbridge.media.vad import VadSettings
from sipbridge.rtc.agora.speech import FarVoice, State, Voice
from tests.support import audio
from tests.support.codecs import Samples

RATE_HZ = 16000
FRAME = RATE_HZ // 50
SETTINGS = VadSettings(stop_ms=700)  # longer than the pauses between words


def said(seconds: float) -> Samples:
    """Speech, and a second of silence."""
    return np.concatenate((audio.speech(seconds, RATE_HZ), np.zeros(RATE_HZ, np.int16)))


def states(items: list[State | Samples]) -> list[str]:
    return [item for item in items if isinstance(item, str)]


def frames(samples: Samples) -> list[Samples]:
    return [samples[start : start + FRAME] for start in range(0, len(samples) // FRAME * FRAME, FRAME)]


@pytest.mark.parametrize("only_speech", [False, True])
def test_states_of_a_voice(only_speech: bool) -> None:
    """Start, speaking once a second, stop; the same again. What is passed on is all, or the speech alone."""
    voice = Voice(RATE_HZ, SETTINGS, only_speech=only_speech)
    told: list[str] = []
    passed = 0
    samples = np.concatenate((np.zeros(RATE_HZ, np.int16), said(4.5), said(1.5)))
    for frame in frames(samples):
        items = voice.feed(frame)
        told += states(items)
        passed += sum(item.size for item in items if not isinstance(item, str))
    first = told.index("stop")
    assert told[: first + 1] == ["start", *["speaking"] * (first - 1), "stop"]
    assert first - 1 in (4, 5)  # the silence by which the end is known counts as well
    assert told[first + 1 :] in (["start", "speaking", "stop"], ["start", "speaking", "speaking", "stop"])
    assert not voice.is_speaking
    if only_speech:
        assert 5 * RATE_HZ < passed < len(samples) - RATE_HZ
    else:
        assert passed == len(samples)


def test_far_voice_is_judged_apart_from_hearing() -> None:
    voice = FarVoice(RATE_HZ, SETTINGS)
    told: list[str] = []
    for frame in frames(said(1.5)):
        voice.hear(frame[: FRAME // 2])
        voice.hear(frame[FRAME // 2 :])
        told += voice.judge()
    assert told == ["start", "speaking", "stop"] or told == ["start", "speaking", "speaking", "stop"]


def test_far_voice_that_sends_nothing_any_more_has_stopped() -> None:
    """What is only late is not silence."""
    voice = FarVoice(RATE_HZ, SETTINGS)
    told: list[str] = []
    for frame in frames(audio.speech(0.6, RATE_HZ)):
        voice.hear(frame)
        told += voice.judge()
    assert told == ["start"]
    assert [voice.judge() for _ in range(9)] == [[]] * 9
    for _ in range(60):
        told += voice.judge()
    assert [state for state in told if state != "speaking"] == ["start", "stop"]
    assert voice.judge() == []


def test_far_voice_that_nobody_judges_keeps_little() -> None:
    voice = FarVoice(RATE_HZ, SETTINGS)
    for frame in frames(audio.speech(20.0, RATE_HZ)):
        voice.hear(frame)
    assert len(voice._pieces) == 50
