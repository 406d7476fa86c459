# SPDX-License-Identifier: GPL-3.0-or-later
"""The test's own codecs give back what they were given, as well as the codec can."""

import numpy as np
import pytest

from tests.support import audio
from tests.support.codecs import G722, Codec, Opus, Pcma, Pcmu


@pytest.mark.parametrize("codec", [Pcmu(), Pcma()], ids=lambda codec: codec.name)
def test_g711_octets_survive(codec: Codec) -> None:
    """Decoding and encoding again gives the same octet, but for µ-law's negative zero."""
    octets = bytes(range(256))
    again = codec.encode(codec.decode(octets))
    differing = {octet for octet in range(256) if again[octet] != octet}
    assert differing == ({0x7F} if codec.name == "PCMU" else set())


@pytest.mark.parametrize(
    ("codec", "octet", "sample"),
    [
        # ITU-T G.711 tables 1a to 2b, scaled to 16 bits.
        (Pcmu(), 0x80, 32_124),
        (Pcmu(), 0x00, -32_124),
        (Pcmu(), 0xFF, 0),
        (Pcmu(), 0xFE, 8),
        (Pcmu(), 0xEF, 132),
        (Pcma(), 0xAA, 32_256),
        (Pcma(), 0x2A, -32_256),
        (Pcma(), 0xD5, 8),
        (Pcma(), 0x55, -8),
        (Pcma(), 0xC5, 264),
    ],
)
def test_g711_values(codec: Codec, octet: int, sample: int) -> None:
    """Values of the standard's tables."""
    assert codec.decode(bytes([octet])).tolist() == [sample]
    assert codec.encode(np.array([sample], dtype=np.int16)) == bytes([octet])


@pytest.mark.parametrize("codec", [Pcmu(), Pcma()], ids=lambda codec: codec.name)
def test_g711_takes_the_nearest(codec: Codec) -> None:
    """Every sample within the range comes back within half a step of its segment."""
    samples = np.arange(-32_000, 32_001).astype(np.int16)
    error = np.abs(codec.decode(codec.encode(samples)).astype(int) - samples.astype(int))
    assert np.all(error <= np.maximum(16, (np.abs(samples.astype(int)) + 132) / 31))


@pytest.mark.parametrize("kind", [Pcmu, Pcma, G722, Opus])
def test_speech_survives(kind: type[Codec]) -> None:
    """Speech goes through frame by frame and stays recognisable."""
    codec = kind()
    sent = audio.speech(2.0, codec.rate_hz)
    frames = sent.reshape(-1, codec.frame_samples)
    heard = np.concatenate([codec.decode(codec.encode(frame)) for frame in frames])
    assert len(heard) == len(sent)
    delay_s, correlation = audio.align_and_correlate(sent, heard, codec.rate_hz)
    assert correlation > 0.9
    assert 0 <= delay_s < 0.02


def test_g722_is_wideband() -> None:
    """5 kHz passes G.722 twice with less than 1 dB lost, and G.711 not at all."""
    codecs = [G722(), G722()]
    sent = audio.tone(5000, 1.0, 16_000)
    heard = sent
    for codec in codecs:
        frames = heard.reshape(-1, codec.frame_samples)
        heard = np.concatenate([codec.decode(codec.encode(frame)) for frame in frames])
    assert audio.tone_level_dbfs(heard[1600:], 16_000, 5000) > -13
