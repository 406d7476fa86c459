# SPDX-License-Identifier: GPL-3.0-or-later
import numpy as np
import pytest

from sipbridge.rtc.websocket import g711
from tests.support.codecs import Codec, Pcma, Pcmu

ALL = np.arange(-32768, 32768).astype(np.int16)
OCTETS = bytes(range(256))


@pytest.mark.parametrize(
    ("codec", "encode", "decode"),
    [(Pcmu(), g711.encode_ulaw, g711.decode_ulaw), (Pcma(), g711.encode_alaw, g711.decode_alaw)],
    ids=["ulaw", "alaw"],
)
def test_as_itu_has_it(codec: Codec, encode: object, decode: object) -> None:
    """Every sample and every octet, against tables that were made apart."""
    assert callable(encode)
    assert callable(decode)
    assert encode(ALL) == codec.encode(ALL)
    assert np.array_equal(decode(OCTETS), codec.decode(OCTETS))


def test_what_was_decoded_is_encoded_to_the_same() -> None:
    """All but the second zero of µ-law, which is the same sample."""
    assert g711.encode_alaw(g711.decode_alaw(OCTETS)) == OCTETS
    again = g711.encode_ulaw(g711.decode_ulaw(OCTETS))
    assert [i for i in range(256) if again[i] != i] == [0x7F]
