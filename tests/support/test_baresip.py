# SPDX-License-Identifier: GPL-3.0-or-later
"""Two telephones call each other directly, which shows what they do to audio by themselves."""

from pathlib import Path

import pytest

from tests.support import audio
from tests.support.baresip import Baresip


@pytest.mark.parametrize("codec", ["PCMU", "G722", "opus"])
def test_telephones_record_what_the_other_says(codec: str, tmp_path: Path) -> None:
    """Each records the other's file, and not its own."""
    voices = [audio.speech(60.0, voice=0), audio.speech(60.0, voice=2)]
    with (
        Baresip(tmp_path / "a", voices[0], user="a", codec=codec) as a,
        Baresip(tmp_path / "b", voices[1], user="b", codec=codec, answers=True) as b,
    ):
        a.dial(f"sip:b@127.0.0.1:{b.port}")
        for phone in (a, b):
            phone.wait_for_audio(2.5)
        a.hang_up()
        b.wait_event("CALL_CLOSED")
        for number, phone in enumerate((a, b)):
            heard, rate_hz = phone.heard()
            heard = audio.resample(heard, rate_hz, 8000)[-16_000:]
            assert audio.likeness(voices[1 - number][:160_000], heard, 8000) >= 0.9
            assert audio.likeness(voices[number][:160_000], heard, 8000) < 0.5
