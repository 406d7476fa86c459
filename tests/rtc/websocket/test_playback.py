# SPDX-License-Identifier: GPL-3.0-or-later
import asyncio
from collections.abc import Callable

import numpy as np
import pytest

from sipbridge.media.loop import SampleSource
from sipbridge.media.tones import Clip
from sipbridge.rtc.websocket.playback import AgentPlayback
from tests.support import audio
from tests.support.codecs import Samples
from tests.support.event_loop import in_event_loop, settle

TONE_HZ = 440.0


class Phone:
    """Reads a frame of 20 ms at a time; the send side takes it at once."""

    def __init__(self, rate_hz: int = 8000, agent_hz: int = 8000, max_buffer_s: float = 120.0) -> None:
        self.now_s = 0.0
        self.rate_hz = rate_hz
        self.clears = 0
        self.marks: list[tuple[str, bool]] = []
        self.room = 0
        self.heard: list[Samples] = []
        self.playback = AgentPlayback(
            self,
            rate_hz=agent_hz,
            max_buffer_s=max_buffer_s,
            on_room=self._has_room,
            clock=lambda: self.now_s,
        )
        self.source: SampleSource = self.playback.make(rate_hz)

    def mark_speech(self, name: str) -> None:
        self.playback.mark(lambda cleared: self.marks.append((name, cleared)))

    def _has_room(self) -> None:
        self.room += 1

    # --- what a leg offers

    def clear(self) -> None:
        self.clears += 1

    def mark(self, reached: Callable[[bool], None]) -> None:
        reached(False)

    # --- time

    def listen(self, seconds: float) -> Samples:
        """What is heard within this time; silence where there is nothing."""
        count = self.rate_hz // 50
        frames = []
        for _ in range(round(seconds * 50)):
            self.now_s += 0.02
            frame = np.zeros(count, np.int16)
            samples = self.source.read(count)
            assert samples.dtype == np.int16
            frame[: samples.size] = samples
            frames.append(frame)
        self.heard += frames
        return np.concatenate(frames)


def inner(loud: Samples, rate_hz: int) -> Samples:
    """Without what is faded at both ends."""
    return loud[rate_hz // 50 : -rate_hz // 50]


def lead(samples: Samples) -> int:
    """Zeros at the start."""
    return int(np.argmax(samples != 0))


@in_event_loop
async def test_a_whole_answer_at_once_is_heard_in_its_time() -> None:
    """All of it, bit by bit, but for the fades at both ends."""
    phone = Phone()
    speech = audio.speech(10.0)
    phone.playback.write(speech)
    assert phone.playback.queued_ms == 10_000
    heard = phone.listen(5.0)
    assert phone.playback.queued_ms == 5_000
    heard = np.concatenate((heard, phone.listen(6.0)))
    assert np.array_equal(heard[32 : len(speech)], speech[32:])
    assert not heard[len(speech) + 32 :].any()
    assert phone.playback.queued == 0


@pytest.mark.parametrize(
    ("agent_hz", "rate_hz"), [(8000, 16000), (16000, 8000), (24000, 8000), (24000, 48000), (48000, 16000)]
)
@pytest.mark.parametrize("piece", [37, 320, 100_000])
@in_event_loop
async def test_rates_and_pieces_of_any_size(agent_hz: int, rate_hz: int, piece: int) -> None:
    """No click, no gap, nothing lost."""
    phone = Phone(rate_hz, agent_hz)
    said = audio.tone(TONE_HZ, 2.0, agent_hz)
    for start in range(0, len(said), piece):
        phone.playback.write(said[start : start + piece])
    heard = phone.listen(2.2)
    loud = audio.steady_part(heard, rate_hz)
    assert len(loud) == pytest.approx(2 * rate_hz, abs=0.03 * rate_hz)
    assert audio.find_tone(loud, rate_hz) == pytest.approx(TONE_HZ, abs=1)
    assert audio.clicks(inner(loud, rate_hz), rate_hz, TONE_HZ) == []
    assert audio.phase_jumps(inner(loud, rate_hz), rate_hz, TONE_HZ) == []


@in_event_loop
async def test_a_codec_that_changes() -> None:
    """A new source goes on where the old one was."""
    phone = Phone(agent_hz=16000)
    phone.playback.write(audio.tone(TONE_HZ, 2.0, 16000))
    phone.listen(1.0)
    phone.source, phone.rate_hz = phone.playback.make(48000), 48000
    heard = audio.steady_part(phone.listen(1.2), 48000)
    assert audio.find_tone(heard, 48000) == pytest.approx(TONE_HZ, abs=1)
    assert len(heard) == pytest.approx(48000, abs=1000)


@in_event_loop
async def test_frame_by_frame_in_real_time() -> None:
    """Heard with what is late now and then, without growing: one gap at most, and at the end none."""
    phone = Phone()
    tone = audio.tone(TONE_HZ, 4.0).reshape(-1, 160)
    for number, frame in enumerate(tone):
        if number % 50 == 7:  # this one comes with the next
            phone.listen(0.02)
            phone.playback.write(frame)
            continue
        phone.playback.write(frame)
        phone.listen(0.02)
        assert phone.playback.queued_ms <= 60
    heard = np.concatenate(phone.heard)
    gaps = audio.gaps_ms(heard[lead(heard) : 31_000], 8000)
    assert len(gaps) <= 2
    assert not [start for start, _ in gaps if start > 1000]


@in_event_loop
async def test_speech_that_starts_and_breaks_off_does_not_click() -> None:
    """In the middle of a tone, at the edge of a frame and within it."""
    for size in (1600, 1603):
        phone = Phone()
        for _ in range(3):
            phone.playback.write(audio.tone(TONE_HZ, 1.0)[5 : 5 + size])
            phone.listen(0.4)
        heard = np.concatenate(phone.heard)
        assert np.abs(np.diff(heard.astype(np.int32))).max() < 4500  # a tone's own steepest step is 4,080
        assert len(audio.gaps_ms(heard, 8000)) >= 2


@in_event_loop
async def test_clear_is_heard_at_once_and_leaves_nothing() -> None:
    """60 s at once, an interruption, and other speech: that alone is heard, as soon as it ever was."""
    phone = Phone()
    phone.playback.write(audio.tone(TONE_HZ, 1.0))
    first = lead(phone.listen(2.0))
    for _ in range(60):
        phone.playback.write(audio.tone(TONE_HZ, 1.0))
    phone.listen(3.0)
    position = phone.playback.clear()
    assert position == 8000 * (1 + 3)
    assert phone.clears == 1
    assert phone.playback.queued == 0
    assert not phone.listen(1.0).any()
    phone.playback.write(audio.tone(1000.0, 1.0))
    heard = phone.listen(2.0)
    assert lead(heard) == first
    loud = audio.steady_part(heard, 8000)
    assert audio.find_tone(loud, 8000) == pytest.approx(1000, abs=2)
    assert audio.tone_level_dbfs(loud[800:-800], 8000, TONE_HZ) < -60
    assert audio.clicks(inner(loud, 8000), 8000, 1000.0) == []
    assert phone.playback.position == 8000 * 62


@in_event_loop
async def test_clear_and_more_speech_before_the_next_frame() -> None:
    """What was written behind the cut is heard, what was before is not."""
    for agent_hz in (8000, 16000):
        phone = Phone(agent_hz=agent_hz)
        phone.playback.write(audio.tone(TONE_HZ, 5.0, agent_hz))
        phone.listen(1.0)
        phone.playback.clear()
        phone.playback.write(audio.tone(1000.0, 0.5, agent_hz))
        heard = phone.listen(1.0)
        assert audio.find_tone(heard, 8000) == pytest.approx(1000, abs=2)
        assert len(audio.steady_part(heard, 8000)) == pytest.approx(4000, abs=160)


@in_event_loop
async def test_marks_are_answered_when_they_are_heard() -> None:
    phone = Phone()
    phone.mark_speech("at once")
    phone.playback.write(audio.tone(TONE_HZ, 0.5))
    phone.mark_speech("half")
    phone.playback.write(audio.tone(TONE_HZ, 0.5))
    phone.mark_speech("whole")
    times: dict[str, int] = {}
    for number in range(60):
        phone.listen(0.02)
        await settle()
        for name, cleared in phone.marks:
            assert not cleared
            times.setdefault(name, number * 20)
    assert times["at once"] <= 20
    assert times["half"] == pytest.approx(500, abs=20)
    assert times["whole"] == pytest.approx(1000, abs=20)
    assert [name for name, _ in phone.marks] == ["at once", "half", "whole"]


@in_event_loop
async def test_clear_answers_the_marks_that_wait() -> None:
    """Each once; one behind the cut waits for its own time."""
    phone = Phone()
    phone.playback.write(audio.tone(TONE_HZ, 0.1))
    phone.mark_speech("heard")
    phone.playback.write(audio.tone(TONE_HZ, 5.0))
    phone.mark_speech("a")
    phone.mark_speech("b")
    phone.listen(0.2)
    await settle()
    phone.playback.clear()
    assert phone.marks == [("heard", False), ("a", True), ("b", True)]
    phone.playback.write(audio.tone(TONE_HZ, 0.1))
    phone.mark_speech("c")
    phone.listen(0.3)
    await settle()
    assert phone.marks[3:] == [("c", False)]


@in_event_loop
async def test_a_full_buffer_asks_for_a_pause() -> None:
    """Nothing that is written is lost, also beyond; there is room again while it still speaks."""
    phone = Phone(max_buffer_s=2.0)
    phone.playback.write(audio.tone(TONE_HZ, 2.0))
    assert not phone.playback.is_full
    phone.playback.write(audio.tone(TONE_HZ, 1.0))
    assert phone.playback.is_full
    phone.listen(1.9)
    await settle()
    assert phone.room == 0
    phone.listen(0.2)
    await settle()
    assert phone.room == 1
    assert not phone.playback.is_full
    phone.listen(2.0)
    loud = audio.steady_part(np.concatenate(phone.heard), 8000)
    assert len(loud) == pytest.approx(24_000, abs=160)
    phone.playback.write(audio.tone(TONE_HZ, 3.0))
    phone.playback.clear()
    assert phone.room == 2


@in_event_loop
async def test_marks_without_end_fill_it_too() -> None:
    phone = Phone()
    for number in range(1001):
        assert not phone.playback.is_full
        phone.mark_speech(str(number))
    assert phone.playback.is_full
    phone.listen(0.06)
    await settle()
    phone.listen(0.02)
    await settle()
    assert not phone.playback.is_full
    assert len(phone.marks) == 1001
    assert phone.room == 1


@in_event_loop
async def test_pause() -> None:
    """What waits is kept."""
    phone = Phone()
    phone.playback.write(audio.tone(TONE_HZ, 1.0))
    phone.listen(0.5)
    phone.playback.paused = True
    assert not phone.listen(1.0)[40:].any()
    phone.playback.paused = False
    assert len(audio.steady_part(phone.listen(1.0), 8000)) == pytest.approx(4000, abs=160)


@in_event_loop
async def test_a_stall_of_a_real_time_agent_is_caught_up_with_in_silence() -> None:
    """An echo that was held for a second says all that it missed; the delay does not stay."""
    phone = Phone()
    speech = audio.speech(30.0)
    pauses = np.concatenate(
        [np.concatenate((piece, np.zeros(4000, np.int16))) for piece in speech.reshape(15, -1)]
    )
    frames = pauses[: len(pauses) // 160 * 160].reshape(-1, 160)
    for frame in frames[:100]:
        phone.playback.write(frame)
        phone.listen(0.02)
    phone.listen(1.0)
    for frame in frames[100:150]:
        phone.playback.write(frame)
    assert phone.playback.queued_ms >= 1000
    for frame in frames[150:]:
        phone.playback.write(frame)
        phone.listen(0.02)
    assert phone.playback.queued_ms <= 140
    heard = np.concatenate([*phone.heard, phone.listen(1.0)])
    # no word is missing
    assert np.abs(heard.astype(np.float64)).sum() == pytest.approx(
        np.abs(pauses.astype(np.float64)).sum(), rel=0.002
    )


@in_event_loop
async def test_pauses_in_an_answer_that_came_at_once_stay() -> None:
    phone = Phone()
    word = audio.tone(TONE_HZ, 0.5)
    answer = np.concatenate([np.concatenate((word, np.zeros(8000, np.int16))) for _ in range(8)])
    phone.playback.write(answer)
    heard = phone.listen(13.0)
    assert np.array_equal(heard[32:80_000], answer[32:80_000])


@in_event_loop
async def test_a_prompt_is_heard_where_there_is_no_speech() -> None:
    phone = Phone()
    phone.playback.prompt = lambda rate_hz: Clip(audio.tone(300.0, 1.0, rate_hz), loop=True)
    assert audio.find_tone(phone.listen(1.0), 8000) == pytest.approx(300, abs=2)
    phone.playback.prompt = None
    assert not phone.listen(0.5)[40:].any()


@in_event_loop
async def test_closed_it_answers_nothing() -> None:
    phone = Phone()
    phone.playback.write(audio.tone(TONE_HZ, 1.0))
    phone.mark_speech("a")
    phone.playback.close()
    assert not phone.listen(1.0).any()
    await settle()
    assert phone.marks == []


def test_two_threads() -> None:
    """One writes and clears while the other reads: nothing is lost or heard twice."""

    async def run() -> None:
        phone = Phone()
        done = False

        def read() -> int:
            count = 0
            while not done or phone.playback.queued:
                phone.now_s += 0.02
                count += phone.source.read(160).size
            return count

        reading = asyncio.to_thread(read)
        task = asyncio.ensure_future(reading)
        for number in range(3000):
            phone.playback.write(np.full(1 + number % 400, 1000, np.int16))
            phone.mark_speech(str(number))
            if number % 500 == 499:
                phone.playback.clear()
            if number % 20 == 0:
                await asyncio.sleep(0.0005)
        done = True
        await task
        phone.source.read(160)
        await settle()
        assert [name for name, _ in phone.marks] == [str(number) for number in range(3000)]
        assert phone.playback.queued == 0

    asyncio.run(run())
