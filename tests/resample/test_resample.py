# SPDX-License-Identifier: GPL-3.0-or-later
"""The choice of a resampler by name."""

import pytest

from sipbridge.resample import PolyphaseResampler, ResamplerKind, SoxrResampler, make_resampler


@pytest.mark.parametrize(("kind", "expected"), [("polyphase", PolyphaseResampler), ("soxr", SoxrResampler)])
def test_kinds(kind: ResamplerKind, expected: type) -> None:
    """A name gives its resampler, set up as asked."""
    resampler = make_resampler(kind, 8000, 16000, 3)
    assert isinstance(resampler, expected)
    assert (resampler.rate_in_hz, resampler.rate_out_hz, resampler.channels) == (8000, 16000, 3)


def test_equal_rates_are_an_error() -> None:
    """Audio whose rate is right already is not to be touched."""
    with pytest.raises(ValueError, match="16000"):
        make_resampler("polyphase", 16000, 16000, 1)
