# SPDX-License-Identifier: GPL-3.0-or-later
"""What changing the sample rate does to sound, and what it costs: `python -m bench.audio`.

Measures the live resampler beside soxr, writes the tables into docs/audio.md and draws docs/audio-*.png.
What it does to sound is the same wherever it runs; the times need an idle machine.
"""

import argparse
import datetime
import itertools
import math
import os
import platform
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import soxr
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sipbridge.resample import LiveResampler, PolyphaseResampler, SoxrResampler

DOCS = Path(__file__).parent.parent / "docs"
PAGE = DOCS / "audio.md"
BEGIN, END = "<!-- {} by python -m bench.audio -->", "<!-- end of {} -->"

RATES_HZ = (8000, 16000, 24000, 32000, 44100, 48000)
PAIRS = list(itertools.permutations(RATES_HZ, 2))
BATCHES = ((8000, 16000), (16000, 8000), (8000, 48000), (48000, 8000))
DRAWN = ((8000, 16000), (16000, 8000), (8000, 48000), (48000, 8000), (16000, 48000), (48000, 16000))
CALLS = 400
TICKS_MS = (5, 20)
_NEAR_S = 0.012  # no impulse response reaches farther from its peak
PASSED, STOPPED = 0.85, 1.15  # edges of the two bands, over the lower Nyquist frequency

# (channels, n) to (channels, m), from rest; what is not rounded yet is float64
type Resample = Callable[[NDArray[np.int16]], NDArray[np.int16] | NDArray[np.float64]]


@dataclass(frozen=True)
class Kind:
    """One way to change rates."""

    name: str
    start: Callable[[int, int, int], Resample]
    reach_s: float  # more than its impulse response begins before the impulse, or ends after it


@dataclass(frozen=True)
class Response:
    """Gain in dB at frequencies over the lower Nyquist frequency, and the delay of the impulse."""

    frequency: NDArray[np.float64]
    gain_db: NDArray[np.float64]
    delay_ms: float

    @property
    def ripple_db(self) -> float:
        """Most that a frequency of the passed band is louder or softer than it was."""
        return float(np.abs(self.gain_db[self.frequency <= PASSED]).max())

    @property
    def stop_db(self) -> float:
        """The loudest image or alias."""
        return float(self.gain_db[self.frequency >= STOPPED].max())


@dataclass(frozen=True)
class Quality:
    response: Response
    sinad_db: float


def _live(make: Callable[[int, int, int], LiveResampler]) -> Callable[[int, int, int], Resample]:
    def start(rate_in_hz: int, rate_out_hz: int, channels: int) -> Resample:
        resampler = make(rate_in_hz, rate_out_hz, channels)
        size = rate_in_hz // 100

        def resample(samples: NDArray[np.int16]) -> NDArray[np.int16]:
            starts = range(0, samples.shape[1], size)
            return np.concatenate(
                [resampler.process(samples[:, at : at + size]).copy() for at in starts], axis=1
            )

        return resample

    return start


def _soxr_hq(rate_in_hz: int, rate_out_hz: int, channels: int) -> Resample:
    """soxr's HQ over a whole recording: no delay, because it knows what comes."""

    def resample(samples: NDArray[np.int16]) -> NDArray[np.float64]:
        resampled: NDArray[np.float64] = soxr.resample(
            samples.T.astype(np.float64), rate_in_hz, rate_out_hz, quality="HQ"
        )
        return resampled.T

    return resample


KINDS = (
    Kind("polyphase", _live(PolyphaseResampler), 0.005),
    Kind("soxr live", _live(SoxrResampler), 0.15),
    Kind("soxr HQ", _soxr_hq, 0.15),
)


def measure_response(kind: Kind, rate_in_hz: int, rate_out_hz: int) -> Response:
    """The filter as it is at the least common multiple of the rates, images and aliases included.

    Each channel has its impulse at another input sample, so together their outputs hold every coefficient.
    """
    up, down = (rate // math.gcd(rate_in_hz, rate_out_hz) for rate in (rate_out_hz, rate_in_hz))
    lead = -(-int(kind.reach_s * rate_in_hz) // down) * down
    impulses = np.zeros((down, 2 * lead + down), np.int16)
    impulses[np.arange(down), lead + np.arange(down)] = 30000
    outputs = kind.start(rate_in_hz, rate_out_hz, down)(impulses)
    position = down * np.arange(outputs.shape[1]) - up * np.arange(down)[:, None]
    response = np.zeros(int(position.max()) + 1)
    response[position[position >= 0]] = outputs[position >= 0]
    # What lies far from the peak is nothing but the rounding of the samples.
    peak, near = int(np.argmax(np.abs(response))), int(_NEAR_S * rate_in_hz * up)
    first = max(0, peak - near)
    response = response[first : peak + near]
    gain = np.abs(np.fft.rfft(response, 2 ** math.ceil(math.log2(8 * response.size)))) / (30000 * up)
    frequency = np.linspace(0, max(rate_in_hz, rate_out_hz) * min(up, down), gain.size)
    frequency /= min(rate_in_hz, rate_out_hz)
    centre = first + np.sum(np.arange(response.size) * response) / response.sum()
    delay_ms = 1000 * (centre / (rate_in_hz * up) - lead / rate_in_hz)
    return Response(frequency, 20 * np.log10(np.maximum(gain, 1e-9)), float(delay_ms))


def measure_sinad(kind: Kind, rate_in_hz: int, rate_out_hz: int) -> float:
    """A 1 kHz tone near full scale over all that came out besides, in dB."""
    tone = np.rint(30000 * np.sin(2 * np.pi * 1000 * np.arange(rate_in_hz) / rate_in_hz)).astype(np.int16)
    heard = kind.start(rate_in_hz, rate_out_hz, 1)(tone[None])[0]
    heard = np.rint(heard[rate_out_hz // 4 : rate_out_hz * 3 // 4]).astype(np.float64)
    angle = 2 * np.pi * 1000 * np.arange(heard.size) / rate_out_hz
    basis = np.stack((np.cos(angle), np.sin(angle)), axis=1)
    tone_heard = basis @ np.linalg.lstsq(basis, heard)[0]
    return float(10 * np.log10(np.mean(tone_heard**2) / np.mean((heard - tone_heard) ** 2)))


def measure(kind: Kind, rate_in_hz: int, rate_out_hz: int) -> Quality:
    return Quality(
        measure_response(kind, rate_in_hz, rate_out_hz), measure_sinad(kind, rate_in_hz, rate_out_hz)
    )


def hq_holds_back_ms(rate_in_hz: int, rate_out_hz: int) -> float:
    """The most that soxr's HQ owes when it is given a stream bit by bit."""
    stream = soxr.ResampleStream(rate_in_hz, rate_out_hz, 1, dtype="float32", quality="HQ")
    chunk = np.zeros(rate_in_hz // 200, np.float32)
    owed, received = 0.0, 0
    for sent in range(chunk.size, 2 * rate_in_hz, chunk.size):
        received += len(stream.resample_chunk(chunk))
        owed = max(owed, sent / rate_in_hz - received / rate_out_hz)
    return 1000 * owed


def price(
    make: Callable[[int, int, int], LiveResampler],
    rate_in_hz: int,
    rate_out_hz: int,
    tick_ms: int,
    repeat: int,
) -> float:
    """Microseconds a call and tick: the median of `repeat` ticks of CALLS calls."""
    resampler = make(rate_in_hz, rate_out_hz, CALLS)
    shape = (CALLS, rate_in_hz * tick_ms // 1000)
    noise = np.random.default_rng(1).integers(-9000, 9000, shape).astype(np.int16)
    times = []
    for _ in range(repeat + 5):
        start = time.perf_counter()
        resampler.process(noise)
        times.append(time.perf_counter() - start)
    return float(np.median(times[5:])) * 1e6 / CALLS


def _khz(rate_hz: int) -> str:
    return f"{rate_hz / 1000:g}"


def quality_table(all_of: dict[str, dict[tuple[int, int], Quality]]) -> str:
    ours, live, hq = (all_of[kind.name] for kind in KINDS)
    lines = [
        "| kHz | delay ms | | | ripple dB | | | stop dB | | | SINAD dB | | |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
        "| |" + " **polyphase** | soxr live | soxr HQ |" * 4,
    ]
    for pair in PAIRS:
        qualities = (ours[pair], live[pair], hq[pair])
        held_back_ms = hq_holds_back_ms(*pair)
        cells = [f"{quality.response.delay_ms:.2f}" for quality in qualities[:2]] + [f"{held_back_ms:.0f}"]
        cells += [f"{quality.response.ripple_db:.3f}" for quality in qualities]
        cells += [f"{quality.response.stop_db:.1f}" for quality in qualities]
        cells += [f"{quality.sinad_db:.1f}" for quality in qualities]
        lines.append(f"| {_khz(pair[0])} → {_khz(pair[1])} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def worst_table(all_of: dict[str, dict[tuple[int, int], Quality]]) -> str:
    lines = [
        "| worst of all pairs | asked for | polyphase | soxr live | soxr HQ |",
        "|---|--:|--:|--:|--:|",
    ]
    by_kind = [list(all_of[kind.name].values()) for kind in KINDS]
    delays = [f"{max(quality.response.delay_ms for quality in by_kind[i]):.2f} ms" for i in (0, 1)]
    delays.append(f"{max(hq_holds_back_ms(*pair) for pair in PAIRS):.0f} ms live")
    ripples = [f"{max(quality.response.ripple_db for quality in kind):.3f} dB" for kind in by_kind]
    stops = [f"{max(quality.response.stop_db for quality in kind):.1f} dB" for kind in by_kind]
    sinads = [f"{min(quality.sinad_db for quality in kind):.1f} dB" for kind in by_kind]
    for name, limit, cells in (
        ("delay", "≤ 2 ms", delays),
        ("ripple to 85 % of the lower Nyquist frequency", "≤ 0.1 dB", ripples),
        ("images and aliases from 115 % of it on", "≤ −60 dB", stops),
        ("SINAD of a 1 kHz tone", "≥ 70 dB", sinads),
    ):
        lines.append(f"| {name} | {limit} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def price_table(repeat: int) -> str:
    cpu = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    machine = (
        f"Measured on {datetime.date.today().isoformat()}: {os.cpu_count()} cores, "
        f"{cpu[1] if cpu else platform.machine()}, Python {platform.python_version()}, "
        f"numpy {np.__version__}; load average before it {os.getloadavg()[0]:.2f}."
    )
    lines = [
        "| kHz | tick | polyphase: µs a call and tick | % of a core a call | soxr live: µs | % |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for pair in BATCHES:
        for tick_ms in TICKS_MS:
            cells = []
            for make in (PolyphaseResampler, SoxrResampler):
                us = price(make, *pair, tick_ms, repeat)
                cells += [f"{us:.2f}", f"{us / (10 * tick_ms):.4f}"]
            lines.append(f"| {_khz(pair[0])} → {_khz(pair[1])} | {tick_ms} ms | " + " | ".join(cells) + " |")
    lines += ["", machine]
    return "\n".join(lines)


def put(page: str, name: str, text: str) -> str:
    """The page with what lies between the two comments of that name replaced."""
    begin, end = BEGIN.format(name), END.format(name)
    before, found, rest = page.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found or not found_end:
        raise SystemExit(f"{PAGE}: expected the lines {begin!r} and {end!r}")
    return f"{before}{begin}\n{text}\n{end}{after}"


# --- pictures


def _save(figure: Figure, name: str) -> None:
    figure.savefig(DOCS / name, dpi=100, pil_kwargs={"optimize": True})
    print(f"drawn: {DOCS / name}")


def _thinned(response: Response, low: float, high: float, peaks: bool) -> tuple[NDArray[np.float64], ...]:
    """A few hundred points of the curve; of the stop band, the peaks."""
    first, last = np.searchsorted(response.frequency, (low, high))
    step = max(1, (last - first) // 300)
    count = (last - first) // step
    frequency = response.frequency[first : first + count * step].reshape(count, step)
    gain_db = response.gain_db[first : first + count * step].reshape(count, step)
    return frequency.mean(axis=1), gain_db.max(axis=1) if peaks else gain_db.mean(axis=1)


def draw_responses(all_of: dict[str, dict[tuple[int, int], Quality]]) -> None:
    """Of some pairs: the whole response, and the passed band enlarged."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    whole, passed = figure.subplots(1, 2)
    drawn = [(f"{_khz(a)} → {_khz(b)} kHz", all_of["polyphase"][a, b].response) for a, b in DRAWN]
    drawn.append(("soxr HQ, 48 → 8", all_of["soxr HQ"][48000, 8000].response))
    drawn.append(("soxr live, 48 → 8", all_of["soxr live"][48000, 8000].response))
    for name, response in drawn:
        style = {"polyphase": "-", "soxr HQ": "--", "soxr live": ":"}
        line = next((dash for key, dash in style.items() if name.startswith(key)), "-")
        whole.plot(*_thinned(response, 0, 2, True), line, lw=1, label=name)
        passed.plot(*_thinned(response, 0, 0.95, False), line, lw=1)
    for axes in (whole, passed):
        axes.set_xlabel("frequency / lower Nyquist frequency")
        axes.set_ylabel("gain in dB")
        axes.grid(alpha=0.3)
        axes.axvline(PASSED, color="gray", lw=0.8, ls="-.")
    whole.axvline(STOPPED, color="gray", lw=0.8, ls="-.")
    whole.plot([STOPPED, 2], [-60, -60], color="black", lw=1.2)
    whole.set(xlim=(0, 2), ylim=(-120, 5), title="the whole response")
    for limit_db in (-0.1, 0.1):
        passed.plot([0, PASSED], [limit_db, limit_db], color="black", lw=1.2)
    passed.set(xlim=(0, 0.95), ylim=(-0.2, 0.2), title="the passed band, enlarged")
    whole.legend(fontsize=7, loc="lower left")
    _save(figure, "audio-response.png")


def draw_pairs(all_of: dict[str, dict[tuple[int, int], Quality]]) -> None:
    """Delay, ripple, stop band and SINAD of every pair, with the limits."""
    figure = Figure(figsize=(9, 8), layout="constrained")
    plots = figure.subplots(4, 1, sharex=True)
    names = [f"{_khz(a)}→{_khz(b)}" for a, b in PAIRS]
    marks = {"polyphase": "o", "soxr live": "^", "soxr HQ": "x"}
    for kind in KINDS:
        qualities = [all_of[kind.name][pair] for pair in PAIRS]
        if kind.name == "soxr HQ":
            delays = [hq_holds_back_ms(*pair) for pair in PAIRS]
        else:
            delays = [quality.response.delay_ms for quality in qualities]
        for axes, values in zip(
            plots,
            (
                delays,
                [quality.response.ripple_db for quality in qualities],
                [quality.response.stop_db for quality in qualities],
                [quality.sinad_db for quality in qualities],
            ),
            strict=True,
        ):
            axes.plot(names, values, marks[kind.name], ms=4, label=kind.name)
    titles = ("delay in ms, live", "ripple in dB", "images and aliases in dB", "SINAD in dB")
    for axes, title, limit in zip(plots, titles, (2, 0.1, -60, 70), strict=True):
        axes.axhline(limit, color="black", lw=1)
        axes.set_ylabel(title)
        axes.grid(alpha=0.3)
    plots[0].set_yscale("log")
    plots[1].set_yscale("log")
    plots[0].legend(fontsize=8, ncols=3)
    plots[-1].tick_params(axis="x", rotation=90, labelsize=7)
    _save(figure, "audio-pairs.png")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.audio", description=__doc__)
    parser.add_argument("--repeat", type=int, default=300, help="ticks timed of each batch (default: 300)")
    options = parser.parse_args(arguments)
    mpl.rcParams["font.size"] = 9
    prices = price_table(options.repeat)
    print(prices)
    all_of = {kind.name: {pair: measure(kind, *pair) for pair in PAIRS} for kind in KINDS}
    page = PAGE.read_text()
    for name, text in (
        ("worst", worst_table(all_of)),
        ("quality", quality_table(all_of)),
        ("prices", prices),
    ):
        page = put(page, name, text)
    PAGE.write_text(page)
    print(worst_table(all_of))
    print(f"written: {PAGE}")
    draw_responses(all_of)
    draw_pairs(all_of)


if __name__ == "__main__":
    main()
