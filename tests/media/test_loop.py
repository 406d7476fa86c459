# SPDX-License-Identifier: GPL-3.0-or-later
"""Who hears what, tick by tick."""

import itertools
import logging
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from numpy.typing import NDArray

from sipbridge.media.loop import Channel, Echo, Room, Route, Source
from sipbridge.media.tones import Clip, Tone, dtmf_samples
from sipbridge.resample import ResamplerKind, make_resampler
from tests.support import audio
from tests.support.codecs import Samples
from tests.support.fake_bank import FRAME_TICKS, TICK_MS, FakeMedia, FakePort

RATES_HZ = (8000, 16000, 48000)


def noise(seconds: float, rate_hz: int = 8000, seed: int = 0) -> Samples:
    """Full-scale noise: any change to it is seen."""
    return np.random.default_rng(seed).integers(-32768, 32768, round(seconds * rate_hz)).astype(np.int16)


def constant(value: int) -> Clip:
    return Clip(np.full(480, value, np.int16), loop=True)


def largest_step(samples: Samples) -> int:
    return int(np.abs(np.diff(samples.astype(int))).max(initial=0))


def ramp_step(value: int, rate_hz: int = 8000) -> int:
    """What a fade of `value` over 3 ms takes from sample to sample, rounded up."""
    return value // (rate_hz * 3 // 1000 - 1) + 1


@pytest.fixture
def media() -> FakeMedia:
    return FakeMedia()


@pytest.fixture
def join(media: FakeMedia) -> Callable[..., FakePort]:
    """Makes a leg and attaches it, to room "a" if not said otherwise."""

    def make(route: Route | None = None, rate_hz: int = 8000) -> FakePort:
        port = media.bank.add(rate_hz)
        media.loop.attach(port.port_id, Room("a") if route is None else route)
        return port

    return make


Join = Callable[..., FakePort]


def hear_anew(media: FakeMedia, *ports: FakePort, seconds: float) -> None:
    for port in ports:
        port.forget()
    media.run_s(seconds)


# --- rooms


@pytest.mark.parametrize("rate_hz", RATES_HZ)
def test_two_members_hear_each_other_bit_for_bit(media: FakeMedia, join: Join, rate_hz: int) -> None:
    """Also at full scale, and not themselves; only the first tick is faded in."""
    first, second = join(rate_hz=rate_hz), join(rate_hz=rate_hz)
    said = [noise(0.5, rate_hz, seed) for seed in range(2)]
    first.say(said[0])
    second.say(said[1])
    media.run_s(0.5)
    faded = rate_hz * TICK_MS // 1000
    np.testing.assert_array_equal(first.heard[faded:], said[1][faded:])
    np.testing.assert_array_equal(second.heard[faded:], said[0][faded:])


def test_three_members_hear_the_other_two(media: FakeMedia, join: Join) -> None:
    """Sums are exact, and saturate without wrapping."""
    ports = [join() for _ in range(3)]
    said = [noise(0.1, seed=seed) // scale for seed, scale in enumerate((1, 1, 4))]
    for port, samples in zip(ports, said, strict=True):
        port.say(samples)
    media.run_s(0.1)
    for i, port in enumerate(ports):
        others = sum(samples.astype(int) for j, samples in enumerate(said) if j != i)
        np.testing.assert_array_equal(port.heard[40:], np.clip(others, -32768, 32767)[40:])


def test_a_lone_member_hears_silence(media: FakeMedia, join: Join) -> None:
    """A room of one has nothing to hear."""
    port = join()
    port.say(noise(0.1))
    media.run_s(0.1)
    assert len(port.heard) == 800
    assert not port.heard.any()


def test_rooms_are_apart(media: FakeMedia, join: Join) -> None:
    """Nothing of one room is heard in another, of whatever rates."""
    quiet = [join(Room(name), rate_hz) for name, rate_hz in itertools.product("bc", (*RATES_HZ, 8000))]
    loud = [join(Room("a"), rate_hz) for rate_hz in (*RATES_HZ, 8000)]
    for port in loud:
        port.say(constant(5000))
    media.run_s(0.1)
    assert all(len(port.heard) == port.rate_hz // 10 and not port.heard.any() for port in quiet)
    assert all(port.heard[-1] > 14000 for port in loud)


@pytest.mark.parametrize("others", [1, 2, 3])
def test_one_that_is_heard_apart(media: FakeMedia, join: Join, others: int) -> None:
    """It hears the room, which hears the others alone; the leg that it talks to hears it alone, exactly."""
    apart = join(Channel(lambda samples, rate_hz: None))
    phone = join(Room("a", apart.port_id))
    members = [join() for _ in range(others)]
    voices = [noise(0.2, seed=seed) // 4 for seed in range(others)]
    for member, voice in zip(members, voices, strict=True):
        member.say(voice)
    voice = noise(0.2, seed=9)
    phone.say(voice)
    media.run_s(0.2)
    np.testing.assert_array_equal(apart.heard[40:], voice[40:])
    np.testing.assert_array_equal(phone.heard[40:], np.sum(voices, axis=0)[40:])
    if others > 1:
        for i, member in enumerate(members):
            rest = np.sum(voices[:i] + voices[i + 1 :], axis=0)
            np.testing.assert_array_equal(member.heard[40:], rest[40:])


def test_one_that_is_heard_apart_while_others_come_and_go(media: FakeMedia, join: Join) -> None:
    """Neither what it says nor what it hears has a gap or a click; muted, it is silent."""
    apart = join(Channel(lambda samples, rate_hz: None))
    phone, first = join(Room("a", apart.port_id)), join()
    said = [audio.tone(frequency, 2.0) for frequency in (500.0, 900.0)]
    phone.say(said[0])
    first.say(said[1])
    media.run_s(0.5)
    second = join()
    media.run_s(0.5)
    media.loop.detach(second.port_id)
    media.run_s(0.5)
    np.testing.assert_array_equal(apart.heard[40:], said[0][40:12000])
    np.testing.assert_array_equal(phone.heard[40:], said[1][40:12000])
    media.loop.mute(phone.port_id, True)
    media.run(2)
    apart.forget()
    media.run_s(0.2)
    assert not apart.heard.any()


def test_rooms_say_their_rate(media: FakeMedia, join: Join) -> None:
    """It is that of the widest member, as long as it is there."""
    join(Room("a"))
    wide = join(Room("a"), 16000)
    join(Room("b"))
    join(Echo(), 48000)
    media.run(2)
    assert media.loop.rooms() == {"a": 16000, "b": 8000}
    media.loop.detach(wide.port_id)
    media.run(2)
    assert media.loop.rooms() == {"a": 8000, "b": 8000}


# --- several rates in one room


@pytest.mark.parametrize("kind", ["polyphase", "soxr"])
def test_several_rates_in_one_room(kind: ResamplerKind) -> None:
    """Each hears all others at their pitch and level, whatever its rate and theirs."""
    media = FakeMedia(live_resampler=kind)
    rates_hz = (8000, 8000, 16000, 48000, 48000)
    tones_hz = (500, 900, 1300, 1700, 2300)
    ports = [media.bank.add(rate_hz) for rate_hz in rates_hz]
    for port, tone_hz in zip(ports, tones_hz, strict=True):
        port.say(audio.tone(tone_hz, 2.0, port.rate_hz, level_dbfs=-25))
        media.loop.attach(port.port_id, Room("a"))
    media.run_s(0.5)
    hear_anew(media, *ports, seconds=1.0)
    for port, own_hz in zip(ports, tones_hz, strict=True):
        assert len(port.heard) == port.rate_hz
        for tone_hz in tones_hz:
            level_dbfs = audio.tone_level_dbfs(port.heard, port.rate_hz, tone_hz)
            if tone_hz == own_hz:
                assert level_dbfs < -80
            else:
                assert level_dbfs == pytest.approx(-25, abs=0.1)
        assert audio.level_dbfs(port.heard) == pytest.approx(-25 + 6.02, abs=0.1)  # four tones, no more


def test_what_a_low_rate_cannot_carry_is_not_folded(media: FakeMedia, join: Join) -> None:
    """6 kHz of a wideband leg does not come out as 2 kHz at a narrowband one."""
    low, high = join(), join(rate_hz=16000)
    high.say(audio.tone(6000, 1.0, 16000))
    media.run_s(1.0)
    assert audio.level_dbfs(low.heard[800:]) < -70


def test_other_rates_come_and_go_without_a_trace(media: FakeMedia, join: Join) -> None:
    """Two legs of one rate hear each other bit for bit, at the same delay, while others join and leave."""
    talker, listener = join(), join()
    said = noise(0.5)
    talker.say(said)
    media.run_s(0.1)
    for rate_hz in (16000, 48000, 8000):
        visitor = join(rate_hz=rate_hz)
        media.run_s(0.05)
        media.loop.detach(visitor.port_id)
        media.run_s(0.05)
        assert len(visitor.heard) == rate_hz // 20 + rate_hz * TICK_MS // 1000
    media.run_s(0.1)
    np.testing.assert_array_equal(listener.heard[40:], said[40:])


def test_a_room_keeps_its_conversion_while_others_change(media: FakeMedia, join: Join) -> None:
    """What one room hears of another rate goes on, sample for sample, while rooms beside it come and go."""
    talker, listener = join(Room("m")), join(Room("m"), 16000)
    said = noise(0.4) // 2
    talker.say(said)
    for step in range(8):
        visitors = [join(Room(name), rate_hz) for name in "az" for rate_hz in (8000, 16000)]
        for visitor in visitors:
            visitor.say(constant(30000))
        media.run_s(0.025)
        for visitor in visitors[step % 2 :]:
            media.loop.detach(visitor.port_id)
        media.run_s(0.025)
    expected = make_resampler("polyphase", 8000, 16000, 1)
    pieces = [expected.process(piece[None])[0].copy() for piece in said.reshape(-1, 40)]
    difference = listener.heard[160:].astype(int) - np.concatenate(pieces)[160:]
    assert np.abs(difference).max() <= 1


# --- the other routes


def test_echo(media: FakeMedia, join: Join) -> None:
    """A leg hears itself, and nobody else does."""
    port, other = join(Echo(), 16000), join(Echo())
    said = noise(0.2, 16000)
    port.say(said)
    media.run_s(0.2)
    np.testing.assert_array_equal(port.heard[80:], said[80:])
    assert not other.heard.any()


@pytest.mark.parametrize("rate_hz", RATES_HZ)
def test_source(media: FakeMedia, join: Join, rate_hz: int) -> None:
    """It is made for the leg's rate, and read without a break."""
    port = join(Source(lambda asked_hz: Tone(1000, asked_hz, -20)), rate_hz)
    port.say(constant(9000))
    media.run_s(1.0)
    assert audio.find_tone(port.heard, rate_hz) == pytest.approx(1000, abs=1)
    assert audio.phase_jumps(port.heard, rate_hz, 1000) == []
    assert audio.level_dbfs(port.heard[rate_hz // 100 :]) == pytest.approx(-20, abs=0.1)


def test_source_that_ends(media: FakeMedia, join: Join) -> None:
    """After its end there is silence."""
    said = noise(0.013)
    port = join(Source(lambda rate_hz: Clip(said)))
    media.run_s(0.1)
    np.testing.assert_array_equal(port.heard[40:], np.concatenate((said, np.zeros(696, np.int16)))[40:])


def test_channel(media: FakeMedia, join: Join) -> None:
    """It is given the leg's frames as they come, and asked for a frame whenever one is sent."""
    frames: list[tuple[Samples, int]] = []
    spoken = noise(0.07, 16000, seed=1)

    def take(samples: Samples, rate_hz: int) -> None:
        frames.append((samples.copy(), rate_hz))

    port = join(Channel(take, lambda rate_hz: Clip(spoken)), 16000)
    said = noise(0.1, 16000)
    port.say(said)
    media.run_s(0.1)
    assert [(len(frame), rate_hz) for frame, rate_hz in frames] == [(320, 16000)] * 5
    np.testing.assert_array_equal(np.concatenate([frame for frame, _ in frames])[48:], said[48:])
    expected = np.concatenate((spoken, np.zeros(480, np.int16)))
    np.testing.assert_array_equal(port.heard, expected[: len(port.heard)])
    assert len(port.heard) == 1600


def test_channel_that_writes_by_itself(media: FakeMedia, join: Join) -> None:
    """What the leg hears is not written by the loop, and what is added to it not either."""
    port = join(Channel(lambda samples, rate_hz: None))
    media.loop.overlay(port.port_id, lambda rate_hz: constant(9))
    media.run(3)
    port.write(np.full(80, 7, np.int16))
    media.run(3)
    np.testing.assert_array_equal(port.heard, np.full(80, 7))


def test_overlay_tap_mute_and_digits_of_a_channels_leg(media: FakeMedia, join: Join) -> None:
    """They are as those of any other leg."""
    frames: list[Samples] = []
    taken: list[Samples] = []
    digits: list[str] = []
    port = join(
        Channel(lambda samples, rate_hz: frames.append(samples.copy()), lambda rate_hz: constant(100))
    )
    media.loop.overlay(port.port_id, lambda rate_hz: Clip(np.full(800, 11, np.int16)))
    media.loop.tap(port.port_id, lambda samples: taken.append(samples.copy()))
    media.loop.detect_digits(port.port_id, digits.append)
    said = dtmf_samples("5", 8000)
    port.say(said)
    media.run_s(0.3)
    heard = port.heard
    assert (heard[:800] == 111).all()
    assert (heard[800:] == 100).all()
    np.testing.assert_array_equal(np.concatenate(taken)[40 : len(said)], said[40:])
    assert digits == ["5"]
    media.loop.mute(port.port_id, True)
    port.say(constant(1000))
    media.run(2 * FRAME_TICKS)
    frames.clear()
    media.run_s(0.1)
    assert len(frames) == 5
    assert not np.concatenate(frames).any()


# --- what is added to a leg


def test_overlay(media: FakeMedia, join: Join) -> None:
    """It is mixed into what the leg hears until it is over, then it is let go; nobody else hears it."""
    listener, talker = join(), join()
    said, added = noise(0.2, seed=1) // 2, noise(0.0525, seed=2)
    talker.say(said)
    media.run_s(0.05)
    reads: list[int] = []

    class Counted(Clip):
        def read(self, count: int) -> Samples:
            reads.append(count)
            return super().read(count)

    media.loop.overlay(listener.port_id, lambda rate_hz: Counted(added))
    media.run_s(0.15)
    expected = said.astype(int)
    expected[400:820] += added
    np.testing.assert_array_equal(listener.heard[40:], np.clip(expected, -32768, 32767)[40:])
    assert len(reads) == 11
    assert not talker.heard.any()


def test_overlay_is_made_for_the_rate_that_the_leg_gets(media: FakeMedia, join: Join) -> None:
    """A codec that is agreed on after the leg was attached changes neither pitch nor level."""
    port = join()
    media.loop.overlay(port.port_id, lambda rate_hz: Tone(1000, rate_hz, -20))
    media.run_s(0.02)
    port.rate_hz = 16000
    media.run_s(0.02)
    hear_anew(media, port, seconds=0.5)
    assert audio.find_tone(port.heard, 16000) == pytest.approx(1000, abs=1)
    assert audio.level_dbfs(port.heard) == pytest.approx(-20, abs=0.1)


def test_tap(media: FakeMedia, join: Join) -> None:
    """It is given what the leg says, wherever the leg goes, until it leaves."""
    port = join()
    said, taken = noise(0.2), []
    port.say(said)
    media.loop.tap(port.port_id, lambda samples: taken.append(samples.copy()))
    media.run_s(0.05)
    media.loop.attach(port.port_id, Echo())
    media.run_s(0.05)
    media.loop.detach(port.port_id)
    media.run_s(0.1)
    heard = np.concatenate(taken)
    assert len(heard) == 840
    np.testing.assert_array_equal(heard[40:400], said[40:400])
    np.testing.assert_array_equal(heard[480:800], said[480:800])


def test_mute(media: FakeMedia, join: Join) -> None:
    """A muted leg is heard by nobody and nowhere, but hears; it comes and goes without a click."""
    taken: list[Samples] = []
    port, other = join(), join()
    media.loop.tap(port.port_id, lambda samples: taken.append(samples.copy()))
    port.say(constant(8000))
    other.say(constant(500))
    media.run_s(0.05)
    media.loop.mute(port.port_id, True)
    media.run_s(0.01)
    hear_anew(media, port, other, seconds=0.05)
    assert not other.heard.any()
    assert (port.heard == 500).all()
    media.loop.mute(port.port_id, False)
    media.run_s(0.05)
    assert (other.heard[-160:] == 8000).all()
    said = np.concatenate(taken)
    assert largest_step(said) == largest_step(other.heard) <= ramp_step(8000)
    assert not said[440:880].any()


def test_muted_leg_stays_muted_where_it_goes(media: FakeMedia, join: Join) -> None:
    """Moving to another room lifts no mute, muting twice needs no unmuting twice."""
    port, listener = join(), join(Room("b"))
    port.say(constant(8000))
    media.run(2)
    for _ in range(2):
        media.loop.mute(port.port_id, True)
    media.run(2)
    media.loop.attach(port.port_id, Room("b"))
    media.run(4)
    assert not listener.heard.any()
    media.loop.mute(port.port_id, False)
    media.run(2)
    assert (listener.heard[-40:] == 8000).all()


def test_settings_of_a_leg_that_is_not_there(media: FakeMedia) -> None:
    """They are of no effect, and do no harm."""
    port = media.bank.add()
    media.loop.mute(port.port_id, True)
    media.loop.tap(port.port_id, lambda samples: pytest.fail("no such leg"))
    media.loop.overlay(port.port_id, constant)
    media.loop.detect_digits(port.port_id, lambda digit: None)
    media.loop.detach(99)
    media.run(3)
    assert media.bank.attached == set()


def test_mark(media: FakeMedia, join: Join) -> None:
    """It is told, in order, after the tick in which it was set; of a port that is gone as cleared."""
    port = join(Channel(lambda samples, rate_hz: None, constant))
    media.run(2)
    told: list[tuple[int, bool]] = []
    for number in (1, 2):
        media.loop.mark(port.port_id, lambda cleared, number=number: told.append((number, cleared)))  # type: ignore[misc]
    media.run()
    assert told == []
    media.run()
    assert told == [(1, False), (2, False)]
    media.bank.remove(port)
    media.loop.mark(port.port_id, lambda cleared: told.append((3, cleared)))
    media.run(2)
    assert told[2:] == [(3, True)]


# --- coming and going


@pytest.mark.parametrize("rate_hz", RATES_HZ)
def test_no_click_where_a_leg_comes_goes_or_moves(media: FakeMedia, join: Join, rate_hz: int) -> None:
    """The others, itself, and the room it goes to hear a short ramp and no step, through conversions too."""
    stays, other = join(Room("a")), join(Room("b"))
    media.run(2)
    visitor = join(Room("a"), rate_hz)
    visitor.say(constant(8000))
    for port in (stays, other):
        port.say(constant(6000))
    media.run(4)
    media.loop.attach(visitor.port_id, Room("b"))
    media.run(4)
    media.loop.attach(visitor.port_id, Source(lambda rate_hz: constant(7000)))
    media.run(4)
    media.loop.detach(visitor.port_id)
    media.run(4)
    for port, highest in ((stays, 8000), (other, 8000), (visitor, 7000)):
        assert port.heard.max() >= highest
        assert abs(port.heard[-1]) <= 1
        assert largest_step(port.heard) <= 1.1 * ramp_step(8000)  # a conversion rings a little


def test_move(media: FakeMedia, join: Join) -> None:
    """A leg that is attached again is in the other room, and there only."""
    port, first, second = join(), join(Room("a")), join(Room("b"))
    port.say(constant(1000))
    first.say(constant(10))
    second.say(constant(20))
    media.run(4)
    assert port.heard[-1] == 10
    assert (first.heard[-1], second.heard[-1]) == (1000, 0)
    media.loop.attach(port.port_id, Room("b"))
    media.run(4)
    assert port.heard[-1] == 20
    assert (first.heard[-1], second.heard[-1]) == (0, 1000)
    assert len(port.heard) == 8 * 40  # not a tick was left out


@pytest.mark.parametrize("ticks_between", [0, 1, 2])
def test_the_last_word_counts(media: FakeMedia, join: Join, ticks_between: int) -> None:
    """Attached and detached in any order, however close: what was asked for last is what is."""
    listener, port = join(Room("c")), media.bank.add()
    port.say(constant(1000))
    steps: list[Callable[[], None]] = [
        lambda: media.loop.attach(port.port_id, Room("a")),
        lambda: media.loop.attach(port.port_id, Room("b")),
        lambda: media.loop.detach(port.port_id),
        lambda: media.loop.attach(port.port_id, Room("c")),
        lambda: media.loop.detach(port.port_id),
        lambda: media.loop.detach(port.port_id),
        lambda: media.loop.attach(port.port_id, Room("c")),
    ]
    for step in steps:
        step()
        media.run(ticks_between)
    media.run(4)
    assert listener.heard[-1] == 1000
    media.loop.attach(port.port_id, Room("a"))
    media.loop.detach(port.port_id)
    media.run(4)
    assert media.bank.attached == {listener.port_id}


def test_channel_that_becomes_a_member(media: FakeMedia, join: Join) -> None:
    """From then on the loop writes what the leg hears, and the channel is given no more."""
    frames: list[int] = []
    port, other = join(Channel(lambda samples, rate_hz: frames.append(len(samples)))), join()
    other.say(constant(1000))
    media.run(2 * FRAME_TICKS)
    assert len(port.heard) == 0
    media.loop.attach(port.port_id, Room("a"))
    media.run(4)
    assert len(frames) == 2
    assert port.heard[-1] == 1000


def test_detach_tells_when_it_is_done(media: FakeMedia, join: Join) -> None:
    """When `done` is called the leg has been heard out, and no row of it is left."""
    port, other = join(), join()
    port.say(constant(8000))
    media.run(2)
    other.forget()
    left: list[set[int]] = []
    media.loop.detach(port.port_id, lambda: left.append(media.bank.attached))
    media.run(2)
    assert left == []
    media.run(2)
    assert left == [{other.port_id}]
    assert other.heard[-1] == 0
    assert largest_step(other.heard) <= ramp_step(8000)


def test_detach_is_done_in_any_case(media: FakeMedia, join: Join) -> None:
    """Asked for twice, of a leg that is not there, of one whose port goes, with nothing else attached."""
    port, gone = join(), join()
    media.run(2)
    done: list[str] = []
    for name in ("first", "second"):
        media.loop.detach(port.port_id, lambda name=name: done.append(name))  # type: ignore[misc]
    media.loop.detach(99, lambda: done.append("unknown"))
    media.bank.remove(gone)
    media.loop.detach(gone.port_id, lambda: done.append("gone"))
    media.run(5)
    assert sorted(done) == ["first", "gone", "second", "unknown"]
    assert media.bank.attached == set()


def test_change_of_rate(media: FakeMedia, join: Join) -> None:
    """A re-INVITE changes a leg's codec: after a tick of silence it goes on at the new rate."""
    port, other = join(), join()
    port.say(Tone(1000, 8000, -20))
    other.say(Tone(700, 8000, -20))
    media.run_s(0.1)
    port.rate_hz = 16000
    port.say(Tone(1000, 16000, -20))
    media.run_s(0.1)
    hear_anew(media, port, other, seconds=0.5)
    assert len(port.heard) == 8000
    assert audio.find_tone(port.heard, 16000) == pytest.approx(700, abs=1)
    assert audio.find_tone(other.heard, 8000) == pytest.approx(1000, abs=1)
    for samples in (port.heard, other.heard):
        assert audio.level_dbfs(samples) == pytest.approx(-20, abs=0.1)


def test_change_of_rate_makes_a_source_anew(media: FakeMedia, join: Join) -> None:
    """It is asked for at each rate that the leg has."""
    asked: list[int] = []

    def make(rate_hz: int) -> Tone:
        asked.append(rate_hz)
        return Tone(1000, rate_hz, -20)

    port = join(Source(make))
    for rate_hz in (8000, 48000, 16000):
        port.rate_hz = rate_hz
        media.run_s(0.02)
        hear_anew(media, port, seconds=0.2)
        assert audio.find_tone(port.heard, rate_hz) == pytest.approx(1000, abs=1)
    assert asked == [8000, 48000, 16000]


def test_rate_that_changes_while_rows_are_laid_out(media: FakeMedia, join: Join) -> None:
    """The SIP side may change it at any moment; the layout is one of rates that are true together."""
    ports = [join(rate_hz=rate_hz) for rate_hz in (8000, 16000, 8000)]
    layout = media.bank.layout
    changes = iter([(0, 48000), (1, 8000), (2, 16000)])

    def layout_and_change(
        ids: NDArray[np.int32], rates_hz: NDArray[np.int32], whole: NDArray[np.int32]
    ) -> None:
        layout(ids, rates_hz, whole)
        for number, rate_hz in itertools.islice(changes, 1):
            ports[number].rate_hz = rate_hz

    media.bank.layout = layout_and_change  # type: ignore[method-assign]
    for port in ports:
        port.say(constant(1000))
    media.run(10)
    hear_anew(media, *ports, seconds=0.1)
    assert [len(port.heard) for port in ports] == [4800, 800, 1600]
    assert all(abs(port.heard[-1] - 2000) <= 1 for port in ports)


def test_port_that_goes(media: FakeMedia, join: Join) -> None:
    """A leg whose port is closed leaves by itself, and the others go on."""
    first, second, third = (join(rate_hz=rate_hz) for rate_hz in (8000, 8000, 16000))
    for port in (first, second, third):
        port.say(constant(1000))
    media.run(4)
    media.bank.remove(second)
    media.run(2)
    assert media.bank.attached == {first.port_id, third.port_id}
    media.run(2)
    assert abs(first.heard[-1] - 1000) <= 1
    assert len(first.heard) == 8 * 40
    for port in (first, third):
        media.bank.remove(port)
    media.run(3)
    assert media.bank.attached == set()
    assert media.loop.rooms() == {}


# --- in-band DTMF


def test_digit_is_told_once(media: FakeMedia, join: Join) -> None:
    """Each key press of each leg, at its rate, in rooms and elsewhere."""
    digits: dict[int, str] = {}
    ports = [join(route, rate_hz) for route, rate_hz in itertools.product((Room("a"), Echo()), RATES_HZ)]

    def listen(port: FakePort) -> None:
        def heard(digit: str) -> None:
            digits[port.port_id] = digits.get(port.port_id, "") + digit

        media.loop.detect_digits(port.port_id, heard)

    keys = ["11", "0#", "A", "99*", "5", "D2"]
    for port, pressed in zip(ports, keys, strict=True):
        listen(port)
        port.say(dtmf_samples(pressed, port.rate_hz))
    media.run_s(0.7)
    assert digits == {port.port_id: pressed for port, pressed in zip(ports, keys, strict=True)}


def test_digit_is_told_once_while_others_come_and_go(media: FakeMedia, join: Join) -> None:
    """Rows are laid out anew in each tick of a digit."""
    heard: list[str] = []
    port = join(Room("m"))
    media.loop.detect_digits(port.port_id, heard.append)
    port.say(dtmf_samples("7", 8000))
    for i in range(20):
        visitor = join(Room("az"[i % 2]))
        visitor.say(dtmf_samples("3", 8000))
        media.loop.detect_digits(visitor.port_id, lambda digit: pytest.fail("it was not there long enough"))
        media.run()
        media.loop.detach(visitor.port_id)
    media.run_s(0.2)
    assert heard == ["7"]


def test_digits_are_no_longer_asked_for(media: FakeMedia, join: Join) -> None:
    """None ends it; a muted leg's are told."""
    heard: list[str] = []
    port = join()
    media.loop.detect_digits(port.port_id, heard.append)
    media.loop.mute(port.port_id, True)
    port.say(dtmf_samples("1", 8000))
    media.run_s(0.2)
    media.loop.detect_digits(port.port_id, None)
    port.say(dtmf_samples("2", 8000))
    media.run_s(0.2)
    assert heard == ["1"]


# --- faults


def fail(*_: object) -> NoReturn:
    raise RuntimeError("broken")


class BrokenLater:
    """A source that fails after a while."""

    def __init__(self) -> None:
        self._left = 3

    def read(self, count: int) -> Samples:
        self._left -= 1
        if not self._left:
            fail()
        return np.zeros(count, np.int16)


@pytest.mark.parametrize(
    "route",
    [
        Source(fail),
        Source(lambda rate_hz: BrokenLater()),
        Channel(fail),
        Channel(lambda *_: None, fail),
        None,
    ],
    ids=str,
)
def test_fault_of_a_channel(
    media: FakeMedia, join: Join, route: Route | None, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told once; the leg stays without sound until it is detached or moved, others hear no gap."""
    talker, listener = join(), join()
    talker.say(constant(1000))
    port = join(route or Room("a"))
    if route is None:
        media.loop.tap(port.port_id, fail)
        media.loop.overlay(port.port_id, fail)
    with caplog.at_level(logging.ERROR):
        media.run(10)
    assert len(caplog.records) == 1
    assert (listener.heard[40:] == 1000).all()
    assert len(listener.heard) == 400
    if route is None:
        assert port.heard[-1] == 1000
    else:
        assert not port.heard.any()
    media.loop.attach(port.port_id, Room("a"))
    media.run(3)
    assert port.heard[-1] == 1000


def test_fault_in_a_change(media: FakeMedia, join: Join, caplog: pytest.LogCaptureFixture) -> None:
    """What was asked for with it is done all the same."""
    port = join()
    media.run(2)
    media.loop.detach(port.port_id, fail)
    media.run(2)
    echo = join(Echo())
    echo.say(constant(1000))
    with caplog.at_level(logging.ERROR):
        media.run(4)
    assert len(caplog.records) == 1
    assert echo.heard[-1] == 1000


def test_fault_of_who_waits_for_a_mark(
    media: FakeMedia, join: Join, caplog: pytest.LogCaptureFixture
) -> None:
    """Others are told all the same."""
    port = join()
    told: list[bool] = []
    media.loop.mark(port.port_id, fail)
    media.loop.mark(port.port_id, told.append)
    with caplog.at_level(logging.ERROR):
        media.run(3)
    assert told == [False]
    assert len(caplog.records) == 1


# --- the thread


def test_thread_follows_the_clock(media: FakeMedia, join: Join) -> None:
    """A tick of the clock is a tick of the loop; lost time is not caught up with, but counted."""
    port = join(Echo())
    ticks = threading.Semaphore(0)
    media.loop.tap(port.port_id, lambda samples: ticks.release())
    held, go_on = threading.Event(), threading.Event()

    def hold(samples: Samples) -> None:
        held.set()
        go_on.wait(10)

    media.loop.start()
    try:
        for _ in range(3):
            media.clock.advance()
            assert ticks.acquire(timeout=10)
        media.loop.tap(port.port_id, hold)
        media.clock.advance()
        assert held.wait(10)
        media.clock.advance(10)
        go_on.set()
        for _ in range(5):
            assert ticks.acquire(timeout=10)
    finally:
        media.loop.stop()
    assert not ticks.acquire(blocking=False)
    assert len(port.heard) == 8 * 40
    assert media.loop.skipped_ticks == 6


def test_changes_need_no_tick(media: FakeMedia) -> None:
    """Before the first stream the clock may stand; what is asked for is done nevertheless."""
    done = threading.Event()
    media.loop.start()
    try:
        media.loop.detach(1, done.set)
        assert done.wait(10)
    finally:
        media.loop.stop()
        media.loop.stop()


def test_a_loop_at_rest_is_woken(media: FakeMedia) -> None:
    """Where no audio is here a change is done at once, and what the rest passed over is not made up for."""
    port = media.bank.add()
    ticks = threading.Semaphore(0)
    done = [threading.Event(), threading.Event()]
    media.loop.start()
    try:
        media.loop.detach(99, done[0].set)
        assert done[0].wait(10)
        media.clock.advance(3)
        media.loop.attach(port.port_id, Echo())
        media.loop.tap(port.port_id, lambda samples: ticks.release())
        media.loop.detach(99, done[1].set)
        assert done[1].wait(10)
        for _ in range(3):
            media.clock.advance()
            assert ticks.acquire(timeout=10)
    finally:
        media.loop.stop()
    assert not ticks.acquire(blocking=False)
    assert media.loop.skipped_ticks == 0


@pytest.mark.parametrize("tick_ms", [5, 10, 20])
def test_ticks_of_any_length(tick_ms: int) -> None:
    """All is the same with longer ticks."""

    def tone_hz(rate_hz: int) -> float:
        return 500 + rate_hz / 50

    media = FakeMedia(tick_ms)
    ports = [media.bank.add(rate_hz) for rate_hz in RATES_HZ]
    for port in ports:
        media.loop.attach(port.port_id, Room("a"))
        port.say(Tone(tone_hz(port.rate_hz), port.rate_hz, -20))
    media.run_s(0.5)
    for port in ports:
        assert len(port.heard) == port.rate_hz // 2
        for hz in {tone_hz(rate_hz) for rate_hz in RATES_HZ if rate_hz != port.rate_hz}:
            heard = port.heard[port.rate_hz // 10 :]
            assert audio.tone_level_dbfs(heard, port.rate_hz, hz) == pytest.approx(-20, abs=0.1)


# --- any rooms at any rates, against sums of sines


class Sine:
    """A voice that can be told exactly at any time and rate."""

    def __init__(self, hz: float, peak: float, rate_hz: int) -> None:
        self.hz, self.peak = hz, peak
        self._rate_hz = rate_hz
        self._position = 0

    def read(self, count: int) -> Samples:
        times = (np.arange(count) + self._position) / self._rate_hz
        self._position += count
        return np.rint(self.at(times)).astype(np.int16)

    def at(self, times_s: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.peak * np.sin(2 * np.pi * self.hz * times_s)


DELAY_S = {
    (rate_in, rate_out): make_resampler("polyphase", rate_in, rate_out, 1).delay_ms / 1000
    for rate_in, rate_out in itertools.permutations(RATES_HZ, 2)
}


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), members=st.sampled_from([3, 50, 400]), loud=st.booleans())
def test_any_rooms_at_any_rates(seed: int, members: int, loud: bool) -> None:
    """Each of up to 400 members hears the sum of all others of its room, and nothing else."""
    random = np.random.default_rng(seed)
    media = FakeMedia()
    rooms: dict[int, list[tuple[FakePort, Sine]]] = {}
    weights = random.dirichlet(np.ones(3))
    for _ in range(members):
        port = media.bank.add(int(random.choice(RATES_HZ, p=weights)))
        voice = Sine(random.uniform(200, 3000), 20000 if loud else random.uniform(0, 1500), port.rate_hz)
        port.say(voice)
        room = int(random.integers(-(-members // 2)))
        rooms.setdefault(room, []).append((port, voice))
        media.loop.attach(port.port_id, Room(f"room-{room}"))
    media.run(8)
    for present in rooms.values():
        for port, own in present:
            times = np.arange(160 * port.rate_hz // 8000, 320 * port.rate_hz // 8000) / port.rate_hz
            by_rate: dict[int, NDArray[np.float64]] = {}
            for other, voice in present:
                if voice is not own:
                    delay_s = DELAY_S.get((other.rate_hz, port.rate_hz), 0.0)
                    by_rate.setdefault(other.rate_hz, np.zeros(len(times)))
                    by_rate[other.rate_hz] += voice.at(times - delay_s)
            total = sum(by_rate.values(), np.zeros(len(times)))
            heard = port.heard[-len(times) :]
            if loud:  # cut, but never wrapped around
                beyond = np.abs(total) > 32767 + 2000
                same_sign = np.sign(heard[beyond]) == np.sign(total[beyond])
                assert same_sign.all() or len(by_rate) > 1
            else:
                tolerance = 1 + 0.002 * sum(voice.peak for _, voice in present) + len(present)
                assert np.abs(heard - total).max() <= tolerance


# --- any order of joins and leaves

SETTLED_TICKS = 4


class Comings(RuleBasedStateMachine):
    """Legs come, go, move and change while ticks pass.

    In even rooms everybody says something, in odd rooms and on all other routes nobody does: whoever is not
    in an even room has to hear nothing at all, in each tick. After some ticks without a change all sums are
    right.
    """

    def __init__(self) -> None:
        super().__init__()
        self.media = FakeMedia()
        self.routes: dict[FakePort, Route] = {}
        self.muted: set[FakePort] = set()
        self.moving: set[FakePort] = set()
        self.silent_since: dict[FakePort, int] = {}
        self.ticks = 0
        self.changed_at = 0
        self.taken: dict[FakePort, list[int]] = {}
        self.detached: list[FakePort] = []
        self.done: list[FakePort] = []

    def route(self, kind: str, port: FakePort) -> Route:
        if kind == "echo":
            return Echo()
        if kind == "source":
            return Source(lambda rate_hz: Clip(np.zeros(100, np.int16), loop=True))
        if kind == "channel":
            return Channel(lambda samples, rate_hz: self.taken.setdefault(port, []).append(len(samples)))
        return Room(kind)

    def is_loud(self, port: FakePort) -> bool:
        route = self.routes.get(port)
        return isinstance(route, Room) and int(route.name) % 2 == 0

    def change(self, port: FakePort) -> None:
        self.changed_at = self.ticks
        port.say(constant(0))  # for the tick in which it may still be where it was
        self.moving.add(port)
        self.silent_since[port] = self.ticks + 2  # what it hears fades out

    def any_port(self, data: st.DataObject) -> FakePort:
        return data.draw(st.sampled_from(sorted(self.routes, key=lambda port: port.port_id)))

    kinds = st.sampled_from(["0", "1", "2", "3", "echo", "source", "channel"])

    @rule(kind=kinds, rate_hz=st.sampled_from(RATES_HZ))
    def come(self, kind: str, rate_hz: int) -> None:
        port = self.media.bank.add(rate_hz)
        self.routes[port] = self.route(kind, port)
        self.media.loop.attach(port.port_id, self.routes[port])
        self.change(port)

    @precondition(lambda self: self.routes)
    @rule(data=st.data(), kind=kinds)
    def move(self, data: st.DataObject, kind: str) -> None:
        port = self.any_port(data)
        self.routes[port] = self.route(kind, port)
        self.media.loop.attach(port.port_id, self.routes[port])
        self.change(port)

    @precondition(lambda self: self.routes)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        port = self.any_port(data)
        del self.routes[port]
        self.muted.discard(port)
        self.detached.append(port)
        self.media.loop.detach(port.port_id, lambda: self.done.append(port))
        self.change(port)

    @precondition(lambda self: self.routes)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        port = self.any_port(data)
        del self.routes[port]
        self.muted.discard(port)
        self.media.bank.remove(port)
        self.change(port)

    @precondition(lambda self: self.routes)
    @rule(data=st.data(), rate_hz=st.sampled_from(RATES_HZ))
    def change_rate(self, data: st.DataObject, rate_hz: int) -> None:
        port = self.any_port(data)
        port.rate_hz = rate_hz
        self.change(port)

    @precondition(lambda self: self.routes)
    @rule(data=st.data())
    def mute(self, data: st.DataObject) -> None:
        port = self.any_port(data)
        self.muted ^= {port}
        self.media.loop.mute(port.port_id, port in self.muted)
        self.changed_at = self.ticks

    @precondition(lambda self: self.routes)
    @rule(data=st.data())
    def add_overlay(self, data: st.DataObject) -> None:
        port = self.any_port(data)
        self.media.loop.overlay(port.port_id, lambda rate_hz: Clip(np.zeros(90, np.int16)))
        self.media.loop.tap(port.port_id, lambda samples: None)
        self.media.loop.detect_digits(port.port_id, lambda digit: None)

    @rule(ticks=st.sampled_from([1, 1, 1, 2, SETTLED_TICKS]))
    def tick(self, ticks: int) -> None:
        for _ in range(ticks):
            for port in self.media.bank.ports.values():
                port.forget()
            self.media.run()
            self.ticks += 1
            self.check_silence()
            for port in self.moving:
                port.say(constant(100 + 10 * port.port_id if self.is_loud(port) else 0))
            if self.moving:
                self.moving.clear()
                self.changed_at = self.ticks

    def check_silence(self) -> None:
        for port in self.routes:
            if not self.is_loud(port) and self.ticks > self.silent_since[port]:
                assert not port.heard.any()

    @invariant()
    def settled(self) -> None:
        if self.ticks < self.changed_at + SETTLED_TICKS:
            return
        assert self.media.bank.attached == {port.port_id for port in self.routes}
        for port, route in self.routes.items():
            samples = 0 if isinstance(route, Channel) else port.rate_hz * TICK_MS // 1000
            assert len(port.heard) == samples
            if not self.is_loud(port):
                continue
            others = [other for other in self.routes if other is not port and self.routes[other] == route]
            said = [100 + 10 * other.port_id for other in others if other not in self.muted]
            assert np.abs(port.heard - sum(said)).max() <= len({other.rate_hz for other in others})
        assert sorted(port.port_id for port in self.done) == sorted(port.port_id for port in self.detached)


@pytest.fixture(autouse=True)
def no_unexpected_faults(caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest) -> Iterator[None]:
    """The loop logs what fails in it; no test but those of faults may see that."""
    yield
    if "fault" not in request.node.name:
        assert [record.message for record in caplog.records if record.levelno >= logging.ERROR] == []


Comings.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestComings = Comings.TestCase
