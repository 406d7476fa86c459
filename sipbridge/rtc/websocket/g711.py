# SPDX-License-Identifier: GPL-3.0-or-later
"""G.711 by tables (ITU-T G.711): what was decoded here or by a telephone is encoded to the same octets."""

import numpy as np
from numpy.typing import NDArray

type Samples = NDArray[np.int16]

_BIAS = 0x84


def _ulaw() -> tuple[NDArray[np.uint8], Samples]:
    """Encoding by the sample as uint16, decoding by the octet."""
    code = ~np.arange(256, dtype=np.uint8)
    magnitude = ((((code & 15).astype(np.int32) << 3) + _BIAS) << ((code >> 4) & 7)) - _BIAS
    decode = np.where(code & 0x80, -magnitude, magnitude).astype(np.int16)
    sample = np.arange(1 << 16, dtype=np.uint16).view(np.int16).astype(np.int32)
    biased = np.minimum(np.abs(sample), 32635) + _BIAS
    segment = np.log2(biased).astype(np.int32) - 7
    encode = (segment << 4) | ((biased >> (segment + 3)) & 15) | ((sample < 0) << 7)
    return (~encode & 0xFF).astype(np.uint8), decode


def _alaw() -> tuple[NDArray[np.uint8], Samples]:
    code = np.arange(256, dtype=np.int32) ^ 0x55
    segment = (code >> 4) & 7
    step = ((code & 15) << 4) + 8
    magnitude = np.where(segment > 0, (step + 0x100) << np.maximum(segment - 1, 0), step)
    decode = np.where(code & 0x80, magnitude, -magnitude).astype(np.int16)
    # of 13 bits; a negative value is coded as its ones' complement
    value = np.arange(1 << 16, dtype=np.uint16).view(np.int16).astype(np.int32) >> 3
    positive = np.where(value < 0, ~value, value)
    segment = np.maximum(np.log2(np.maximum(positive, 1)).astype(np.int32) - 4, 0)
    mantissa = (positive >> np.maximum(segment, 1)) & 15
    encode = ((segment << 4) | mantissa) ^ np.where(value < 0, 0x55, 0xD5)
    return encode.astype(np.uint8), decode


_ULAW_ENCODE, _ULAW_DECODE = _ulaw()
_ALAW_ENCODE, _ALAW_DECODE = _alaw()


def encode_ulaw(samples: Samples) -> bytes:
    """PCMU of samples (n,), an octet each."""
    return _ULAW_ENCODE.take(samples.view(np.uint16)).tobytes()


def decode_ulaw(octets: bytes) -> Samples:
    """Samples (n,) of PCMU."""
    return _ULAW_DECODE.take(np.frombuffer(octets, np.uint8))


def encode_alaw(samples: Samples) -> bytes:
    """PCMA of samples (n,), an octet each."""
    return _ALAW_ENCODE.take(samples.view(np.uint16)).tobytes()


def decode_alaw(octets: bytes) -> Samples:
    """Samples (n,) of PCMA."""
    return _ALAW_DECODE.take(np.frombuffer(octets, np.uint8))
