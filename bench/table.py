# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes results into docs/performance.md: python -m bench.table bench/results/FILE.json ...

Of a scenario that several files have, the last one counts.
"""

import argparse
import dataclasses
import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
BEGIN = "<!-- figures: written by `python -m bench.table` -->"
END = "<!-- end of figures -->"


@dataclasses.dataclass(frozen=True)
class Figure:
    """One number of a result, and what it should not be above."""

    name: str  # as in "p50 {} ms"
    value: Callable[[dict[str, Any]], float]
    bar: float
    aim: float | None = None
    digits: int = 1

    def shown(self, value: float) -> str:
        return self.name.format(f"{value:.{self.digits}f}")

    def limited(self, limit: float) -> str:
        """As in "p50 ≤ 26 ms", and "0 lost"."""
        return self.name.format(f"≤ {limit:g}" if limit else "0")


def _delay(point: str, bar: float, aim: float | None = None) -> Figure:
    return Figure(f"{point} {{}} ms", lambda result: float(result["delay_ms"][point]), bar, aim)


def _server(name: str, key: str, bar: float, aim: float | None = None, digits: int = 3) -> Figure:
    return Figure(name, lambda result: float(result["server"][key]), bar, aim, digits)


def _core(bar: float, aim: float | None = None) -> Figure:
    return _server("{} % core a call", "percent_core_a_call", bar, aim)


def _spoken(name: str, key: str, bar: float, digits: int = 0) -> Figure:
    return Figure(name, lambda result: abs(float(result["speech"][key])), bar, digits=digits)


def _unheard(result: dict[str, Any]) -> float:
    return float(result["bursts"]["sent"] - result["bursts"]["heard"])


def _lost(result: dict[str, Any]) -> float:
    return float(result["rtp"]["lost"])


def _pesq_loss(result: dict[str, Any]) -> float:
    return float(result["pesq"]["codec_alone"] - result["pesq"]["bridge"])


_UNHEARD = Figure("{} unheard", _unheard, 0, digits=0)
_GAPS = _spoken("{} gaps over 40 ms", "gaps_over_40_ms", 0)
_PAUSES = Figure("{} gaps over 40 ms", lambda result: float(result["rtp"]["gaps_over_40_ms"]), 0, digits=0)
_SET_UP = Figure("p95 {} ms", lambda result: float(result["setup_ms"]["p95"]), 20, 5)
_PESQ = Figure("{} below the codec alone", _pesq_loss, 0.2, 0.0, 2)
ROWS: Sequence[tuple[str, str, Sequence[Figure]]] = (
    ("2 calls", "room:2", [_delay("p50", 26, 15), _delay("p99", 32, 15)]),
    (
        "100 calls",
        "room:100",
        [
            _delay("p50", 26, 18),
            _delay("p99", 34, 25),
            _core(0.15, 0.10),
            _server("{} MB a call", "pss_mb_a_call", 0.2, digits=2),
        ],
    ),
    ("400 calls", "room:400", [_delay("p50", 30), _delay("p99", 40, 30), _core(0.12, 0.08)]),
    (
        "800 calls",
        "room:800",
        [
            _UNHEARD,
            Figure("{} lost", _lost, 0, digits=0),
            _delay("p99", 60),
            _server("{} cores", "cores", 1, digits=2),
        ],
    ),
    (
        "mixed codecs, ±100 ppm, 20 ms jitter, 110 calls",
        "mixed",
        [_core(0.35, 0.25), _GAPS, _delay("p99", 20 + 40)],
    ),
    ("echo of 100 calls, round trip", "echo:100", [_delay("p50", 20, 10), _delay("p99", 30, 10)]),
    (
        "an agent that echoes 50 calls, round trip",
        "agent:50",
        [
            _delay("p50", 40),
            _delay("p99", 70),
            _core(0.5),
            Figure("first audio p99 {} ms", lambda result: float(result["first_audio_ms"]["p99"]), 60),
        ],
    ),
    (
        "the same of 200 calls",
        "agent:200",
        [_UNHEARD, Figure("{} lost", _lost, 0, digits=0)],
    ),
    (
        "20 calls in LiveKit rooms, PCMU, two passes",
        "livekit:20",
        [_delay("p50", 90, 60), _delay("p99", 130), _UNHEARD, _core(0.8)],
    ),
    (
        "the same with Opus",
        "livekit-opus:20",
        [_delay("p50", 90, 60), _delay("p99", 130), _UNHEARD, _core(2.0)],
    ),
    ("50 calls in LiveKit rooms, PCMU", "livekit:50", [_UNHEARD]),
    ("50 calls, each with a WebRTC member of its own, G.711", "webrtc:50", [_UNHEARD, _core(1.0)]),
    (
        "100 calls, while 40 others begin each second",
        "starting:100",
        [_UNHEARD, _PAUSES],
    ),
    (
        "10 minutes of speech, 100 calls",
        "speech:100",
        [_spoken("the worst listener's delay changes by {} ms", "steepest_slope_ms", 5, 1), _GAPS],
    ),
    (
        "40 ms jitter",
        "jitter:40",
        [_spoken("{} % late", "damaged_percent", 1, 2), _delay("p99", 40 + 40)],
    ),
    ("5 % loss, PESQ", "loss:5", [_PESQ]),
    ("10 % loss, PESQ", "loss:10", [_PESQ]),
    ("set-up at 40 calls a second, INVITE to 200", "room:400", [_SET_UP]),
)


def text(files: Sequence[dict[str, Any]]) -> str:
    """Markdown of these results."""
    found = {result["scenario"]: result for file in files for result in file["pooled"]}
    parts = [*_about(files), "", "| work | bar | aim | measured | |", "|---|---|---|---|---|"]
    for work, scenario, figures in ROWS:
        bars = ", ".join(figure.limited(figure.bar) for figure in figures)
        aims = ", ".join(figure.limited(figure.aim) for figure in figures if figure.aim is not None)
        measured, verdict = "not measured", ""
        if scenario in found:
            values = [figure.value(found[scenario]) for figure in figures]
            shown = zip(figures, values, strict=True)
            measured = ", ".join(figure.shown(value) for figure, value in shown)
            verdict = _verdict(figures, values)
            if (pesq := found[scenario].get("pesq")) is not None:
                measured += f" ({pesq['bridge']:.2f} against {pesq['codec_alone']:.2f})"
        parts.append(f"| {work} | {bars} | {aims} | {measured} | {verdict} |")
    parts += ["", "All of it, delays pooled over the restarts, CPU and memory of the median run:", "", _HEAD]
    parts += [_row(result) for result in found.values()]
    return "\n".join(parts)


def _verdict(figures: Sequence[Figure], values: Sequence[float]) -> str:
    pairs = list(zip(figures, values, strict=True))
    if any(value > figure.bar for figure, value in pairs):
        return "**missed**"
    aimed = [value <= figure.aim for figure, value in pairs if figure.aim is not None]
    return "aim reached" if aimed and all(aimed) else "held"


def _about(files: Sequence[dict[str, Any]]) -> Iterator[str]:
    for file in files:
        machine = file["machine"]
        yield (
            f"- {file['date'][:10]}: {machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}, "
            f"Python {machine['python']}; restarts: {file['restarts']}; "
            f"`{shlex.join(file['command'])}`"
        )


_HEAD = (
    "| scenario | up | set-up ms p50 / p95 / p99 | delay ms min / p50 / p95 / p99 / max | heard | lost "
    "| gaps | % core a call | MB a call |\n|---|---|---|---|---|---|---|---|---|"
)


def _row(result: dict[str, Any]) -> str:
    def many(values: dict[str, float], names: str) -> str:
        return " / ".join(f"{values[name]:.1f}" for name in names.split()) if values else "-"

    server, speech, bursts = result.get("server", {}), result.get("speech"), result["bursts"]
    heard = f"{bursts['heard']} of {bursts['sent']}"
    gaps = result["rtp"]["gaps_over_40_ms"]
    if speech:
        heard = f"{speech['listeners'] - speech['unheard']} of {speech['listeners']}"
        gaps = speech["gaps_over_40_ms"]
    return (
        f"| {result['scenario']} | {result['answered']} of {result['calls'] * result['runs']} "
        f"| {many(result['setup_ms'], 'p50 p95 p99')} | {many(result['delay_ms'], 'min p50 p95 p99 max')} "
        f"| {heard} | {result['rtp']['lost']} | {gaps} "
        f"| {server.get('percent_core_a_call', '-')} | {server.get('pss_mb_a_call', '-')} |"
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="bench.table", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.json")
    parser.add_argument("--page", type=Path, default=PAGE, help="(default: docs/performance.md)")
    options = parser.parse_args(arguments)
    page: Path = options.page
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"bench.table: {page} has no place for figures, between {BEGIN} and {END}")
    files = [json.loads(path.read_text()) for path in options.files]
    page.write_text(f"{before}{BEGIN}\n\n{text(files)}\n\n{END}{after}")


if __name__ == "__main__":
    main()
