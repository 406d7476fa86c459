# SPDX-License-Identifier: GPL-3.0-or-later
"""Two telephones that others wrote."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import audio, setup
from tests.support.baresip import Baresip
from tests.support.server import Server

VOICES = (audio.speech(60.0, voice=0), audio.speech(60.0, voice=2))
SECONDS = 4.0


@pytest.fixture
def phone(tmp_path: Path) -> Iterator[Callable[..., Baresip]]:
    """Makes telephones, each with a voice of its own; they end with the test."""
    phones: list[Baresip] = []

    def make(**options: Any) -> Baresip:
        number = len(phones)
        phones.append(
            Baresip(tmp_path / f"phone{number}", VOICES[number], user=f"baresip{number}", **options)
        )
        return phones[-1]

    yield make
    for made in phones:
        made.close()


@pytest.mark.parametrize("codec", ["PCMU", "G722", "opus"])
def test_two_telephones_hear_each_other(codec: str, server: Server, phone: Callable[..., Baresip]) -> None:
    """In one room each hears the other's speech, and not its own."""
    phones = [phone(codec=codec), phone(codec=codec)]
    for made in phones:
        made.dial(f"sip:room-baresip-{codec}@127.0.0.1:{server.sip_port}")
    calls = [server.call_of(f"baresip{number}") for number in (0, 1)]
    assert [found["codec"] for found in calls] == [codec, codec]
    phones[0].wait_for_audio(SECONDS + 1)
    for made in phones:
        made.hang_up()
    for number, made in enumerate(phones):
        heard, rate_hz = made.heard()
        heard = audio.resample(heard, rate_hz, 8000)[-round(SECONDS * 8000) :]
        others, own = VOICES[1 - number][: 30 * 8000], VOICES[number][: 30 * 8000]
        assert audio.likeness(others, heard, 8000) >= 0.9
        assert audio.likeness(own, heard, 8000) < 0.65  # two voices are alike by chance


def test_telephone_registers_and_rings(server: Server, phone: Callable[..., Baresip]) -> None:
    """A telephone that registered from the desk is called by its name, and hears the tone."""
    made = phone(register=("127.0.0.1", server.sip_port, setup.ALICE), host=setup.DESK, answers=True)
    made.wait_registered()
    call_id = server.dial("alice", "tone:1000", trunk="alice")
    made.wait_event("CALL_ESTABLISHED")
    made.wait_for_audio(1.5)
    server.hang_up(call_id)
    made.wait_event("CALL_CLOSED")
    heard, rate_hz = made.heard()
    assert audio.find_tone(audio.steady_part(heard, rate_hz), rate_hz) == audio.near(1000)
