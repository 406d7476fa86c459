# SPDX-License-Identifier: GPL-3.0-or-later
"""The quality estimate at known points and in its tendencies."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipbridge.media.quality import estimate_mos

codecs = st.sampled_from(["PCMU", "PCMA", "G722", "opus", "G729"])


@pytest.mark.parametrize(
    ("codec", "loss_percent", "delay_ms", "expected"),
    [
        ("PCMU", 0, 0, 4.41),  # R = 93.2
        ("PCMA", 0, 100, 4.36),  # R = 90.8
        ("PCMU", 2, 50, 4.20),  # R = 93.2 - 1.2 - 7.01 = 84.99
        ("PCMU", 0, 400, 3.05),  # R = 93.2 - 9.6 - 24.50 = 59.10
        ("G729", 0, 0, 4.12),  # R = 82.2
        ("PCMU", 100, 0, 1.18),  # R = 17.2
    ],
)
def test_known_points(codec: str, loss_percent: float, delay_ms: float, expected: float) -> None:
    """Worked by hand from the formulas."""
    assert estimate_mos(codec, loss_percent, delay_ms) == pytest.approx(expected, abs=0.02)


@given(codec=codecs, loss=st.floats(0, 100), delay=st.floats(0, 5000), more=st.floats(0, 100))
def test_worse_never_sounds_better(codec: str, loss: float, delay: float, more: float) -> None:
    """The score stays on its scale and falls with loss and with delay."""
    score = estimate_mos(codec, loss, delay)
    later = estimate_mos(codec, loss, delay + more)
    lossier = estimate_mos(codec, min(100, loss + more), delay)
    assert score is not None
    assert later is not None
    assert lossier is not None
    assert 1 <= score <= 4.5
    assert later <= score + 1e-9
    assert lossier <= score + 1e-9


def test_unknown_codec_has_no_score() -> None:
    """No number is better than a made-up one."""
    assert estimate_mos("x-lpc", 0, 0) is None
