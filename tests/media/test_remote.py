# SPDX-License-Identifier: GPL-3.0-or-later
"""Members without a telephone, over the fake bank."""

import asyncio
import collections
import functools
import threading
from typing import NoReturn

import numpy as np
import pytest

from sipbridge.media.loop import Room
from sipbridge.media.remote import PortStats, RemotePorts, SamplePort, TrackOptions, TrackStats
from tests.support import audio
from tests.support.codecs import Samples
from tests.support.event_loop import in_event_loop, pass_time, settle
from tests.support.fake_bank import FakeMedia, FakeOutbox, FakePort

FRAME = 160


def _remotes(outbox: FakeOutbox) -> RemotePorts:
    return RemotePorts(outbox, lambda rate_hz, member_rate_hz, frame_ms: pytest.fail("no samples"))


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
    remotes = _remotes(outbox)
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


def test_packets_of_a_track_go_both_ways() -> None:
    outbox, made = FakeOutbox(), list[_Track]()

    def make(options: TrackOptions) -> _Track:
        made.append(_Track(options))
        return made[-1]

    remotes = RemotePorts(outbox, lambda rate_hz, member_rate_hz, frame_ms: pytest.fail("no samples"), make)
    sent: list[bytes] = []
    far = collections.deque([b"in", b"and in"])
    port = remotes.open_track(TrackOptions(rate_hz=16_000, ssrc=1))
    assert (port.port_id, port.sample_rate_hz) == (9, 16_000)
    outbox.frames.append((9, b"early"))
    remotes.work(0)
    remotes.listen(port.port_id, sent.append)
    end = remotes.link(lambda: far.popleft() if far else None, port.received)
    outbox.frames.append((9, b"out"))
    remotes.work(0)
    assert made[0].packets == [b"in", b"and in"]
    assert sent == [b"out"]
    port.close()
    end()
    far.append(b"late")
    outbox.frames.append((9, b"late"))
    remotes.work(0)
    assert sent == [b"out"]
    assert made[0].packets == [b"in", b"and in"]
    assert made[0].closed


def test_a_track_that_cannot_send_now_may_later(caplog: pytest.LogCaptureFixture) -> None:
    outbox = FakeOutbox()
    remotes = _remotes(outbox)
    sent: list[bytes] = []

    def send(packet: bytes) -> None:
        if packet == b"now":
            raise RuntimeError("the track is closed")
        sent.append(packet)

    remotes.listen(9, send)
    outbox.frames += [(9, b"now"), (9, b"later")]
    remotes.work(0)
    assert sent == [b"later"]
    assert not caplog.records


def test_a_fault_of_one_track_is_not_the_others(caplog: pytest.LogCaptureFixture) -> None:
    """Neither its packets' fault, nor that of who is asked for something else; each is told of once."""
    remotes = _remotes(FakeOutbox())
    far, came = collections.deque[bytes](), list[bytes]()

    def fail() -> NoReturn:
        raise ValueError("a fault")

    remotes.link(fail, came.append)
    remotes.link(lambda: far.popleft() if far else None, came.append)
    remotes.poll(fail, 1)
    for packet in b"one", b"two":
        far.append(packet)
        remotes.work(0)
    assert came == [b"one", b"two"]
    assert len([record for record in caplog.records if "a fault" in str(record.exc_info)]) == 2


def test_many_tracks_are_served_at_every_second_tick() -> None:
    """A few at each, and with none at all there is nothing to wake up for."""
    outbox = FakeOutbox()
    remotes = _remotes(outbox)
    remotes.work(0)
    ends = []
    for _ in range(9):
        ends.append(remotes.link(lambda: None, lambda packet: None))
        remotes.work(0)
    for end in ends:
        end()
    remotes.work(0)
    assert outbox.paces == [0, *[1] * 8, 2, 0]


def test_what_has_ended_can_be_waited_for() -> None:
    """Where it is under way, until it is over."""
    remotes = _remotes(FakeOutbox())
    under_way, go_on, over = threading.Event(), threading.Event(), threading.Event()

    def receive() -> bytes | None:
        under_way.set()
        assert go_on.wait(10)
        over.set()
        return None

    end = remotes.link(receive, lambda packet: None)
    remotes.start()
    assert under_way.wait(10)
    end()
    threading.Timer(0.05, go_on.set).start()
    remotes.settle()
    assert over.is_set()
    remotes.stop()


def test_what_is_asked_rarely_is_asked_in_turn() -> None:
    """Every second, fourth or eighth round; of eight that are asked every eighth, one in each."""
    remotes = _remotes(FakeOutbox())
    asked: collections.Counter[str] = collections.Counter()
    at: list[int] = []
    ends = [remotes.poll(functools.partial(asked.update, [str(every)]), every) for every in (1, 2, 4, 8)]
    for _ in range(16):
        remotes.work(0)
    assert asked == {"1": 16, "2": 8, "4": 4, "8": 2}
    for end in ends:
        end()
    for number in range(8):
        remotes.poll(functools.partial(at.append, number), 8)
    for turn in range(8):
        remotes.work(0)
        assert len(at) == turn + 1
    assert sorted(at) == list(range(8))
    assert asked.total() == 30
