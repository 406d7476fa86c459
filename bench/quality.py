# SPDX-License-Identifier: GPL-3.0-or-later
"""Speech quality: PESQ (ITU-T P.862, narrow band, mapped as in P.862.1) of what came through a bridge.

Beside it stands the same speech with the same lost packets, heard by a receiver without any bridge: G.711
decoded, and each lost packet covered by what such receivers do, the last pitch period over and over, fading.
"""

import numpy as np
from numpy.typing import NDArray
from pesq import NoUtterancesError, pesq

RATE_HZ = 8000
FRAME = 160
PIECE_S = 8.0  # PESQ is made for sentences of 8 to 12 s
_FADE_S = 0.06  # a concealment is silent after so long

type Samples = NDArray[np.int16]


def g711(samples: Samples) -> Samples:
    """The same through µ-law and back (ITU-T G.711)."""
    linear = samples.astype(np.int32)
    biased = np.minimum(np.abs(linear), 32_635) + 132
    exponent = np.floor(np.log2(biased)).astype(np.int32) - 7
    step = 8 << exponent
    magnitude = biased // step * step + step // 2 - 132
    heard: Samples = np.where(linear < 0, -magnitude, magnitude).astype(np.int16)
    return heard


def conceal(samples: Samples, lost: list[int]) -> Samples:
    """What a receiver plays of `samples` when these frames of 20 ms never came."""
    heard = samples.astype(np.float64)
    missing = sorted({frame for frame in lost if 0 < frame < len(samples) // FRAME})
    run_start, period = -1, 0
    for frame in missing:
        at = frame * FRAME
        if frame - 1 not in missing or run_start < 0:
            run_start = at
            period = _pitch_period(heard[max(0, at - 480) : at])
        source = heard[max(0, run_start - period) : run_start]
        if not len(source):
            source = np.zeros(FRAME)
        past = np.arange(at, at + FRAME) - run_start
        fade = np.clip(1.5 - past / (_FADE_S * RATE_HZ), 0.0, 1.0)
        heard[at : at + FRAME] = source[past % len(source)] * fade
        if frame + 1 not in missing and at + FRAME + 40 <= len(heard):  # 5 ms over into what follows
            past = np.arange(at + FRAME, at + FRAME + 40) - run_start
            fade = np.clip(1.5 - past / (_FADE_S * RATE_HZ), 0.0, 1.0)
            ramp = np.linspace(0.0, 1.0, 40)
            after = heard[at + FRAME : at + FRAME + 40]
            heard[at + FRAME : at + FRAME + 40] = (
                ramp * after + (1 - ramp) * source[past % len(source)] * fade
            )
    return np.clip(np.round(heard), -32_768, 32_767).astype(np.int16)


def _pitch_period(past: NDArray[np.float64]) -> int:
    """The shift, of 5 to 15 ms, at which the end of `past` is most like what was before it."""
    if len(past) < 320:
        return FRAME
    end = past[-160:]
    fits = []
    for lag in range(40, 121):
        before = past[-160 - lag : -lag]
        fits.append(float(end @ before) / np.sqrt(max(float(before @ before), 1.0)))
    return 40 + int(np.argmax(fits))


def alignment(said: Samples, heard: Samples) -> int:
    """By how many samples `heard` is behind `said`, by correlation; negative when it begins later."""
    size = 1 << int(np.ceil(np.log2(len(said) + len(heard))))
    product = np.fft.irfft(
        np.fft.rfft(heard.astype(np.float64), size) * np.conj(np.fft.rfft(said.astype(np.float64), size))
    )
    lag = int(np.argmax(product))
    return lag if lag < size // 2 else lag - size


def pieces_pesq(said: Samples, heard: Samples, piece_s: float = PIECE_S) -> list[float]:
    """Of each piece of two aligned signals; one in which there is no speech is left out."""
    scores: list[float] = []
    size = round(piece_s * RATE_HZ)
    for start in range(0, min(len(said), len(heard)) - size + 1, size):
        try:
            scores.append(pesq(RATE_HZ, said[start : start + size], heard[start : start + size], "nb"))
        except NoUtterancesError:
            continue
    return scores


def mean_pesq(said: Samples, heard: Samples) -> float | None:
    """The mean over pieces of 8 s of two aligned signals; None when there is no speech in them."""
    scores = pieces_pesq(said, heard)
    return float(np.mean(scores)) if scores else None


def compare(said: Samples, heard: Samples, lost: list[int]) -> dict[str, float] | None:
    """PESQ of `heard`, and of the codec alone: `said` with these frames of it lost.

    `said` begins with the first frame sent in the measured time, from which `lost` counts; `heard` is what
    came in the same time, later by the bridge's delay. None when nothing can be said.
    """
    lag = alignment(said[: 12 * RATE_HZ], heard[: 12 * RATE_HZ])
    if not -RATE_HZ < lag < RATE_HZ:
        return None
    alone = conceal(g711(said), lost)
    # the first frames, of which the bridge's share may have begun before, are left away
    first = max(RATE_HZ // 10, -lag)
    bridge = mean_pesq(said[first:], heard[first + lag :])
    codec = mean_pesq(said[first:], alone[first:])
    if bridge is None or codec is None:
        return None
    return {"bridge": bridge, "codec_alone": codec}
