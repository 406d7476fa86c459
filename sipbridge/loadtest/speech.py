# SPDX-License-Identifier: GPL-3.0-or-later
"""What the callers say: a sound file, as raw samples at each rate that a codec has."""

import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import platformdirs
import soundfile
import soxr
from numpy.typing import NDArray

from sipbridge.loadtest.generator import LoadtestError

RATES_HZ = (8000, 16_000, 48_000)
_LEVEL_DBFS = -26.0  # of the whole: what ITU-T P.862 is made for
_TEXT = """
The train to the coast leaves at a quarter past seven, and it will be full, so book your seats tonight.
My sister grows tomatoes on her balcony, eleven kinds of them, and every summer she gives half of them away.
Could you read me the number again, please, more slowly this time? I have a pencil now.
When the bridge was opened, a brass band marched across it in the rain, and nobody went home early.
We have looked through all the boxes in the cellar and found the old camera, two maps, and a broken umbrella.
Turn left behind the bakery, follow the river for about a mile, and look out for a house with a red door.
"""


def prepare(file: Path | None = None) -> Path:
    """The prefix PREFIX of files PREFIX.RATE.s16 with the speech of `file`, kept in the user's cache.

    Without a file: English by espeak-ng where that is installed, else a signal that is like speech in its
    spectrum, pitch and rhythm. Raises LoadtestError for a file that cannot be read.
    """
    folder = platformdirs.user_cache_path("sipbridge") / "loadtest"
    if file is not None:
        try:
            data = file.read_bytes()
        except OSError as error:
            raise LoadtestError(f"{file}: {error.strerror}") from None
        key = hashlib.sha256(data).hexdigest()[:16]
    else:
        maker = "espeak" if shutil.which("espeak-ng") else "made"
        key = f"{maker}-{hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]}"
    prefix = folder / f"speech-{key}"
    paths = {rate_hz: Path(f"{prefix}.{rate_hz}.s16") for rate_hz in RATES_HZ}
    if not all(path.exists() for path in paths.values()):
        folder.mkdir(parents=True, exist_ok=True)
        if file is not None:
            samples, rate_hz = _read(file)
        elif shutil.which("espeak-ng"):
            samples, rate_hz = _spoken(_TEXT)
        else:
            samples, rate_hz = _speech_like(40.0), RATES_HZ[-1]
        samples = samples * (10 ** (_LEVEL_DBFS / 20) / max(float(np.sqrt(np.mean(samples**2))), 1e-9))
        for wanted_hz, path in paths.items():
            resampled = soxr.resample(samples, rate_hz, wanted_hz, "VHQ")
            path.write_bytes(np.clip(np.round(resampled * 32_768), -32_768, 32_767).astype("<i2").tobytes())
    return prefix


def samples_8k(prefix: Path) -> NDArray[np.int16]:
    """The speech at 8 kHz, cut to whole frames of 20 ms as the generator does."""
    samples = np.fromfile(f"{prefix}.8000.s16", dtype="<i2").astype(np.int16)
    return samples[: len(samples) // 160 * 160]


def _read(file: Path) -> tuple[NDArray[np.float64], int]:
    try:
        samples, rate_hz = soundfile.read(file, always_2d=True)
    except soundfile.SoundFileError:
        raise LoadtestError(f"{file} is no sound file that can be read") from None
    if len(samples) < rate_hz:
        raise LoadtestError(f"{file} is shorter than a second")
    return samples[:, 0], rate_hz


def _spoken(text: str) -> tuple[NDArray[np.float64], int]:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "speech.wav"
        command = ["espeak-ng", "-v", "en-us", "-w", str(path), " ".join(text.split())]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True)
        return _read(path)


def _speech_like(seconds: float) -> NDArray[np.float64]:
    """Syllables of a moving pitch with formants, hissed consonants and short pauses, at 48 kHz."""
    rate_hz = RATES_HZ[-1]
    rng = np.random.default_rng(1)
    pieces = []
    made = 0
    while made < seconds * rate_hz:
        length = int(rng.uniform(0.12, 0.28) * rate_hz)
        time_s = np.arange(length) / rate_hz
        pitch_hz = rng.uniform(90, 160) * (1 + 0.15 * np.sin(2 * np.pi * rng.uniform(1, 4) * time_s))
        phase = 2 * np.pi * np.cumsum(pitch_hz) / rate_hz
        formants_hz = (rng.uniform(300, 800), rng.uniform(900, 2200), rng.uniform(2300, 3200))
        voice = np.zeros(length)
        for harmonic in range(1, 30):
            hz = harmonic * float(np.mean(pitch_hz))
            gain = sum(1 / (1 + ((hz - formant_hz) / 120) ** 2) for formant_hz in formants_hz)
            voice += (0.02 / harmonic + gain) * np.sin(harmonic * phase)
        hiss = 0.3 * rng.standard_normal(int(rng.uniform(0.02, 0.06) * rate_hz))
        pause = np.zeros(int((rng.uniform(0.2, 0.4) if rng.random() < 0.1 else 0.01) * rate_hz))
        for part in (voice * np.hanning(length) ** 0.5, hiss * np.hanning(len(hiss)), pause):
            pieces.append(part)
            made += len(part)
    return np.concatenate(pieces)
