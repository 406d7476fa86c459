# SPDX-License-Identifier: GPL-3.0-or-later
"""Codecs of the test's own parties, made apart from the ones under test.

G.711 is computed here from the tables of ITU-T G.711; G.722 comes from the `G722` package and Opus from the
system's libopus.
"""

import abc
import ctypes
import ctypes.util
import importlib
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

type Samples = NDArray[np.int16]


class Codec(abc.ABC):
    """One direction pair of a stream; stateful codecs need one object a stream."""

    name: ClassVar[str]
    payload_type: ClassVar[int]
    rate_hz: ClassVar[int]
    # The RTP clock, which for G.722 is 8000 although it samples at 16,000 (RFC 3551, 4.5.2).
    clock_hz: ClassVar[int]
    rtpmap: ClassVar[str]

    @abc.abstractmethod
    def encode(self, samples: Samples) -> bytes:
        """One frame of 20 ms in, one payload out."""

    @abc.abstractmethod
    def decode(self, payload: bytes) -> Samples:
        """One payload in, its samples out at `rate_hz`."""

    @property
    def frame_samples(self) -> int:
        """Samples in 20 ms."""
        return self.rate_hz // 50

    @property
    def frame_ticks(self) -> int:
        """RTP timestamp units in 20 ms."""
        return self.clock_hz // 50


def _ulaw_tables() -> tuple[NDArray[np.uint8], Samples]:
    """Encode (indexed by the sample as uint16) and decode (by the octet)."""
    octets = ~np.arange(256, dtype=np.uint8)
    exponent = ((octets >> 4) & 7).astype(np.int32)
    mantissa = (octets & 15).astype(np.int32)
    magnitude = (((mantissa << 3) + 0x84) << exponent) - 0x84
    decode = np.where(octets & 0x80, -magnitude, magnitude).astype(np.int16)

    samples = np.arange(65_536, dtype=np.uint16).view(np.int16).astype(np.int32)
    biased = np.minimum(np.abs(samples), 32_635) + 0x84
    exponent = np.floor(np.log2(biased)).astype(np.int32) - 7
    code = (exponent << 4) | ((biased >> (exponent + 3)) & 15) | np.where(samples < 0, 0x80, 0)
    return (~code & 0xFF).astype(np.uint8), decode


def _alaw_tables() -> tuple[NDArray[np.uint8], Samples]:
    octets = np.arange(256, dtype=np.int32) ^ 0x55
    segment = (octets >> 4) & 7
    step = ((octets & 15) << 4) + 8
    magnitude = np.where(segment > 0, (step + 0x100) << np.maximum(segment - 1, 0), step)
    decode = np.where(octets & 0x80, magnitude, -magnitude).astype(np.int16)

    samples = np.arange(65_536, dtype=np.uint16).view(np.int16).astype(np.int32)
    linear = samples >> 3
    magnitude = np.where(linear >= 0, linear, -linear - 1)
    segment = np.maximum(np.floor(np.log2(np.maximum(magnitude, 1))).astype(np.int32) - 4, 0)
    code = (segment << 4) | ((magnitude >> np.maximum(segment, 1)) & 15)
    return (code ^ np.where(linear >= 0, 0xD5, 0x55)).astype(np.uint8), decode


_ULAW_ENCODE, _ULAW_DECODE = _ulaw_tables()
_ALAW_ENCODE, _ALAW_DECODE = _alaw_tables()


class Pcmu(Codec):
    """G.711 µ-law."""

    name = "PCMU"
    payload_type = 0
    rate_hz = 8000
    clock_hz = 8000
    rtpmap = "PCMU/8000"

    def encode(self, samples: Samples) -> bytes:
        return _ULAW_ENCODE[samples.view(np.uint16)].tobytes()

    def decode(self, payload: bytes) -> Samples:
        return _ULAW_DECODE[np.frombuffer(payload, dtype=np.uint8)]


class Pcma(Codec):
    """G.711 A-law."""

    name = "PCMA"
    payload_type = 8
    rate_hz = 8000
    clock_hz = 8000
    rtpmap = "PCMA/8000"

    def encode(self, samples: Samples) -> bytes:
        return _ALAW_ENCODE[samples.view(np.uint16)].tobytes()

    def decode(self, payload: bytes) -> Samples:
        return _ALAW_DECODE[np.frombuffer(payload, dtype=np.uint8)]


class G722(Codec):
    """G.722 at 64 kbit/s."""

    name = "G722"
    payload_type = 9
    rate_hz = 16_000
    clock_hz = 8000
    rtpmap = "G722/8000"

    def __init__(self) -> None:
        g722 = importlib.import_module("G722")
        self._encoder = g722.G722(16_000, 64_000)
        self._decoder = g722.G722(16_000, 64_000)

    def encode(self, samples: Samples) -> bytes:
        return bytes(self._encoder.encode(samples))

    def decode(self, payload: bytes) -> Samples:
        return np.array(self._decoder.decode(payload), dtype=np.int16)


class Opus(Codec):
    """Opus, mono, for speech, by way of libopus's C interface."""

    name = "opus"
    payload_type = 111
    rate_hz = 48_000
    clock_hz = 48_000
    rtpmap = "opus/48000/2"

    _VOIP = 2048
    _MAX_PAYLOAD_BYTES = 1275
    _MAX_FRAME_SAMPLES = 5760

    def __init__(self) -> None:
        self._lib = ctypes.CDLL(ctypes.util.find_library("opus") or "libopus.so.0")
        self._lib.opus_encoder_create.restype = ctypes.c_void_p
        self._lib.opus_decoder_create.restype = ctypes.c_void_p
        error = ctypes.c_int()
        self._encoder = ctypes.c_void_p(
            self._lib.opus_encoder_create(self.rate_hz, 1, self._VOIP, ctypes.byref(error))
        )
        assert error.value == 0, f"opus_encoder_create: {error.value}"
        self._decoder = ctypes.c_void_p(self._lib.opus_decoder_create(self.rate_hz, 1, ctypes.byref(error)))
        assert error.value == 0, f"opus_decoder_create: {error.value}"

    def encode(self, samples: Samples) -> bytes:
        source = np.ascontiguousarray(samples)
        payload = ctypes.create_string_buffer(self._MAX_PAYLOAD_BYTES)
        length = self._lib.opus_encode(
            self._encoder, source.ctypes.data_as(ctypes.c_void_p), len(source), payload, len(payload)
        )
        assert length > 0, f"opus_encode: {length}"
        return payload.raw[:length]

    def decode(self, payload: bytes) -> Samples:
        samples = np.empty(self._MAX_FRAME_SAMPLES, dtype=np.int16)
        count = self._lib.opus_decode(
            self._decoder, payload, len(payload), samples.ctypes.data_as(ctypes.c_void_p), len(samples), 0
        )
        assert count > 0, f"opus_decode: {count}"
        return samples[:count]

    def __del__(self) -> None:
        if hasattr(self, "_encoder"):
            self._lib.opus_encoder_destroy(self._encoder)
        if hasattr(self, "_decoder"):
            self._lib.opus_decoder_destroy(self._decoder)
