# SPDX-License-Identifier: GPL-3.0-or-later
"""How good a call sounded, as a mean opinion score: ITU-T G.107 (the E-model), simplified.

R = 93.2 - Id - Ie,eff, all else at the Recommendation's default values:

- Id, the impairment by delay, is 0.024 d, and 0.11 (d - 177.3) more above 177.3 ms: the fit of R. Cole
  and J. Rosenbluth, "Voice over IP performance monitoring", ACM SIGCOMM CCR 31(2), 2001.
- Ie,eff = Ie + (95 - Ie) * Ppl / (Ppl / BurstR + Bpl), with the burst ratio BurstR = 1: random loss.
- Ie and Bpl of G.711 (with loss concealment, as here; without it Bpl is 4.3) and G.729A are those of ITU-T
  G.113 appendix I. The Recommendation has none for G.722 and Opus on this narrow-band scale: they are taken
  for G.711, so their wider band earns them nothing.
- R becomes the score by G.107 annex B.
"""

from __future__ import annotations

import dataclasses
import math

_R_BEST = 93.2


@dataclasses.dataclass(frozen=True, slots=True)
class _Codec:
    impairment: float  # Ie
    loss_robustness: float  # Bpl, per cent


_G711_CONCEALED = _Codec(0, 25.1)
_CODECS = {
    "pcmu": _G711_CONCEALED,
    "pcma": _G711_CONCEALED,
    "g722": _G711_CONCEALED,
    "opus": _G711_CONCEALED,
    "g729": _Codec(11, 19.0),
}


def estimate_mos(codec: str, loss_percent: float, delay_ms: float) -> float | None:
    """Mean opinion score, 1 to 4.5, of what one side heard; None for a codec whose impairment is unknown.

    `codec` is the RTP encoding name in any case, `loss_percent` (0 to 100) includes what came too late to be
    played, `delay_ms` is one way, from mouth to ear. 4.41 is the best there is.
    """
    values = _CODECS.get(codec.lower())
    if values is None:
        return None
    delay_impairment = 0.024 * delay_ms + 0.11 * max(0.0, delay_ms - 177.3)
    loss_share = loss_percent / (loss_percent + values.loss_robustness)
    loss_impairment = values.impairment + (95 - values.impairment) * loss_share
    rating = _R_BEST - delay_impairment - loss_impairment
    if rating <= 0:
        return 1.0
    # Just above R = 0 the polynomial of annex B dips below the scale.
    return max(1.0, 1 + 0.035 * rating + rating * (rating - 60) * (100 - rating) * 7e-6)


def level_dbfs(peak: int) -> float:
    """A peak of int16 samples in dB relative to full scale; -100 for silence."""
    return -100.0 if peak <= 0 else max(-100.0, 20.0 * math.log10(peak / 32768))
