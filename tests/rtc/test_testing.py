# SPDX-License-Identifier: GPL-3.0-or-later
"""The channels for trying a line; what they have in common with all others is in tests/contract."""

import gc
from pathlib import Path

import numpy as np
import pytest

from sipbridge.errors import EndKind, RtcError
from sipbridge.rtc.base import RtcContext
from tests.support import audio
from tests.support.event_loop import in_event_loop
from tests.support.fake_bank import FakeMedia
from tests.support.fake_rtc import FakeCall, make_context


@pytest.fixture
def media() -> FakeMedia:
    return FakeMedia()


@pytest.fixture
def context(media: FakeMedia) -> RtcContext:
    return make_context(media)


@in_event_loop
async def test_echo_is_exact(media: FakeMedia, context: RtcContext) -> None:
    """What is said comes back bit for bit in the same tick."""
    call = FakeCall(media, context, "echo:", "1", 16000)
    said = audio.speech(0.5, 16000)
    call.phone.say(said)
    await call.connect()
    media.run_s(0.5)
    np.testing.assert_array_equal(call.phone.heard[80:], said[80:])


@pytest.mark.parametrize(
    ("target", "rate_hz"), [("tone:100", 8000), ("tone:3000.5", 8000), ("tone:12e3", 48000)]
)
@in_event_loop
async def test_tone(media: FakeMedia, context: RtcContext, target: str, rate_hz: int) -> None:
    """Its frequency may have a fraction; its level is that of call-progress tones."""
    call = FakeCall(media, context, target, "1", rate_hz)
    await call.connect()
    media.run_s(1.0)
    hz = float(target.partition(":")[2])
    assert audio.tone_level_dbfs(call.phone.heard, rate_hz, hz) == pytest.approx(-16, abs=0.2)
    assert audio.phase_jumps(call.phone.heard, rate_hz, hz) == []


@in_event_loop
async def test_tone_that_the_codec_cannot_carry(media: FakeMedia, context: RtcContext) -> None:
    """It is silence, not another tone."""
    call = FakeCall(media, context, "tone:5000", "1")
    await call.connect()
    media.run_s(0.1)
    assert not call.phone.heard.any()


@in_event_loop
async def test_file_is_played_again_and_again(media: FakeMedia, context: RtcContext, tmp_path: Path) -> None:
    """Without a sample between its end and its beginning; each call from the start."""
    said = audio.speech(0.333)
    path = audio.write_wav(tmp_path / "speech.wav", said)
    calls = [FakeCall(media, context, f"play:{path}", str(i)) for i in range(2)]
    await calls[0].connect()
    media.run_s(0.5)
    await calls[1].connect()
    media.run_s(1.0)
    expected = np.resize(said, 12000)
    np.testing.assert_array_equal(calls[0].phone.heard[40:], expected[40:])
    np.testing.assert_array_equal(calls[1].phone.heard[40:], expected[40:8000])


@pytest.mark.parametrize("content", [None, b"", b"this is no sound"])
@in_event_loop
async def test_file_that_cannot_be_played(
    media: FakeMedia, context: RtcContext, tmp_path: Path, content: bytes | None
) -> None:
    """It fails when it is joined, with the file's name, and leaves nothing."""
    path = tmp_path / "sound.wav"
    if content is not None:
        path.write_bytes(content)
    call = FakeCall(media, context, f"play:{path}", "1")
    with pytest.raises(RtcError) as caught:
        await call.connect()
    assert caught.value.reason.kind is EndKind.CHANNEL_FAILED
    assert str(path) in caught.value.reason.detail
    await call.close()
    media.run(3)
    assert media.bank.attached == set()
    gc.collect()  # no file is left open: that would be warned of
