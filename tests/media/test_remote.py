# SPDX-License-Identifier: GPL-3.0-or-later
"""Members without a telephone, over the fake bank."""

import asyncio
import collections
import functools
import threading
import time

import numpy as np
import pytest

from sipbridge.media.loop import Room
from sipbridge.media.remote import PortStats, RemotePorts, SamplePort, TrackOptions, TrackStats
from tests.support import audio
from tests.support.codecs import Samples
from tests.support.event_loop import in_event_loop, pass_time, settle
from tests.support.fake_bank import FakeMedia, FakeOutbox, FakePort

FRAME = 160


def telephone_with(media: FakeMedia, member: SamplePort) -> FakePort:
    """A telephone in a room with it."""
    phone = media.bank.add()
    for port_id in member.port_id, phone.port_id:
        media.loop.attach(port_id, Room("r"))
    return phone


def test_it_speaks_with_a_telephone() -> None:
    media = FakeMedia()
    heard: list[Samples] = []

    def take(frame: Samples, rate_hz: int) -> None:
        assert rate_hz == 8000
        heard.append(frame)

    member = media.remotes.open_samples(8000, take)
    phone = telephone_with(media, member)
    speech = audio.speech(0.5)
    phone.say(speech)
    member.feed(audio.tone(700.0, 0.5))
    media.run_s(0.4)
    assert abs(audio.find_tone(phone.heard[400:], 8000) - 700) < 5
    assert {len(frame) for frame in heard} == {FRAME}
    np.testing.assert_array_equal(np.concatenate(heard)[400:], speech[400 : len(heard) * FRAME])


def test_one_at_another_rate() -> None:
    """It says and hears at 16 kHz what a telephone hears and says at 8."""
    media = FakeMedia()
    heard: list[Samples] = []

    def take(frame: Samples, rate_hz: int) -> None:
        assert rate_hz == 16000
        heard.append(frame)

    member = media.remotes.open_samples(8000, take, member_rate_hz=16000)
    phone = telephone_with(media, member)
    phone.say(audio.tone(1000.0, 0.5))
    member.feed(audio.tone(700.0, 0.5, rate_hz=16000))
    media.run_s(0.4)
    assert abs(audio.find_tone(phone.heard[400:], 8000) - 700) < 5
    assert {len(frame) for frame in heard} == {2 * FRAME}
    assert abs(audio.find_tone(np.concatenate(heard)[800:], 16000) - 1000) < 5


def test_one_that_only_speaks(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody is asked to take what it hears."""
    media = FakeMedia()
    member = media.remotes.open_samples(8000, None)
    phone = telephone_with(media, member)
    phone.say(audio.tone(1000.0, 0.5))
    member.feed(audio.tone(700.0, 0.5))
    media.run_s(0.4)
    assert abs(audio.find_tone(phone.heard[400:], 8000) - 700) < 5
    assert not caplog.records


def test_one_that_is_cleared_is_silent() -> None:
    media = FakeMedia()
    member = media.remotes.open_samples(8000, lambda frame, rate_hz: None)
    phone = telephone_with(media, member)
    member.feed(audio.tone(700.0, 1.0))
    media.run_s(0.2)
    member.clear()
    phone.forget()
    media.run_s(0.2)
    assert not phone.heard.any()


def test_one_that_is_closed_hears_no_more() -> None:
    media = FakeMedia()
    heard: list[Samples] = []
    member = media.remotes.open_samples(8000, lambda frame, rate_hz: heard.append(frame))
    media.loop.attach(member.port_id, Room("r"))
    media.run(4)
    assert len(heard) == 1
    media.loop.detach(member.port_id)
    media.run(4)
    member.close()
    assert member.port_id not in media.bank.ports
    heard.clear()
    media.run(8)
    assert heard == []


def test_a_fault_of_one_is_not_the_others(caplog: pytest.LogCaptureFixture) -> None:
    media = FakeMedia()
    heard: list[Samples] = []

    def fail(frame: Samples, rate_hz: int) -> None:
        raise ValueError("a fault")

    for take in fail, lambda frame, rate_hz: heard.append(frame):
        media.loop.attach(media.remotes.open_samples(8000, take).port_id, Room("r"))
    media.run(16)
    assert len(heard) == 4
    assert len([record for record in caplog.records if "a fault" in str(record.exc_info)]) == 1


def test_thread_takes_what_comes() -> None:
    outbox = FakeOutbox()
    remotes = RemotePorts(
        outbox, lambda rate_hz, member_rate_hz, frame_ms: pytest.fail("nobody asks for one")
    )
    came = threading.Event()
    remotes.listen(7, lambda data: came.set() if data == b"seven" else None)
    remotes.start()
    outbox.frames.append((7, b"seven"))
    assert came.wait(5)
    remotes.stop()
    remotes.stop()


@in_event_loop
async def test_one_that_leaves() -> None:
    """Its port is closed once nothing touches it any more; a media thread that stands is not waited for."""
    for runs in True, False:
        media = FakeMedia()
        member = media.remotes.open_samples(8000, lambda frame, rate_hz: None)
        media.loop.attach(member.port_id, Room("r"))
        media.run(4)
        leaving = asyncio.ensure_future(member.leave(media.loop))
        await settle()
        assert member.port_id in media.bank.ports
        if runs:
            media.run(4)
            await settle()
        else:
            await pass_time(1)
        assert leaving.done()
        assert member.port_id not in media.bank.ports


class _Track:
    """The native port of a track."""

    def __init__(self, options: TrackOptions) -> None:
        self.options = options
        self.packets: list[bytes] = []
        self.closed = False

    def id(self) -> int:
        return 9

    def rateHz(self) -> int:  # noqa: N802
        return self.options.rate_hz

    def received(self, packet: bytes) -> None:
        self.packets.append(packet)

    def write(self, samples: Samples) -> None:
        raise NotImplementedError

    def clearHeard(self) -> None:  # noqa: N802
        raise NotImplementedError

    def stats(self) -> PortStats:
        raise NotImplementedError

    def trackStats(self) -> TrackStats:  # noqa: N802
        raise NotImplementedError

    def close(self) -> None:
        self.closed = True


class _Clock:
    """Ticks every 5 ms."""

    def tickMs(self) -> int:  # noqa: N802
        return 5

    def nextTickNs(self) -> int:  # noqa: N802
        return (time.monotonic_ns() // 5_000_000 + 1) * 5_000_000


def test_packets_of_a_track_go_both_ways() -> None:
    outbox, made = FakeOutbox(), list[_Track]()

    def make(options: TrackOptions) -> _Track:
        made.append(_Track(options))
        return made[-1]

    remotes = RemotePorts(outbox, lambda rate_hz, member_rate_hz, frame_ms: pytest.fail("no samples"), make)
    sent: list[bytes] = []
    port = remotes.open_track(TrackOptions(rate_hz=16_000, ssrc=1), sent.append)
    assert (port.port_id, port.sample_rate_hz) == (9, 16_000)
    port.received(b"in")
    outbox.frames.append((9, b"out"))
    remotes.deliver(0)
    assert made[0].packets == [b"in"]
    assert sent == [b"out"]
    port.close()
    outbox.frames.append((9, b"late"))
    remotes.deliver(0)
    assert sent == [b"out"]
    assert made[0].closed


def test_tracks_are_asked_before_each_tick(caplog: pytest.LogCaptureFixture) -> None:
    """Until they want no more; one that fails is asked once."""
    clock = _Clock()
    remotes = RemotePorts(
        FakeOutbox(), lambda rate_hz, member_rate_hz, frame_ms: pytest.fail("no samples"), None, clock
    )
    to_tick_ms: list[float] = []
    enough = threading.Event()

    def ask() -> None:
        to_tick_ms.append((clock.nextTickNs() - time.monotonic_ns()) / 1e6)
        if len(to_tick_ms) == 100:
            enough.set()

    def fail() -> None:
        raise ValueError("a fault")

    remotes.poll(fail)
    end = remotes.poll(ask)
    remotes.start()
    assert enough.wait(30)
    end()
    time.sleep(0.02)
    asked = len(to_tick_ms)
    time.sleep(0.05)
    remotes.stop()
    assert len(to_tick_ms) == asked
    assert 0 < np.median(to_tick_ms) < 2.5
    assert len([record for record in caplog.records if "a fault" in str(record.exc_info)]) == 1


def test_what_is_asked_rarely_is_asked_in_turn() -> None:
    """Every second, fourth or eighth tick; of eight that are asked every eighth, one at each."""
    remotes = RemotePorts(FakeOutbox(), lambda rate_hz, member_rate_hz, frame_ms: pytest.fail("no samples"))
    asked: collections.Counter[str] = collections.Counter()
    at: list[int] = []
    ends = [remotes.poll(functools.partial(asked.update, [str(every)]), every) for every in (1, 2, 4, 8)]
    for _ in range(16):
        remotes.ask_all()
    assert asked == {"1": 16, "2": 8, "4": 4, "8": 2}
    for end in ends:
        end()
    for number in range(8):
        remotes.poll(functools.partial(at.append, number), 8)
    for tick in range(8):
        remotes.ask_all()
        assert len(at) == tick + 1
    assert sorted(at) == list(range(8))
    assert asked.total() == 30
