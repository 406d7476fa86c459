# SPDX-License-Identifier: GPL-3.0-or-later
"""Results as lines for people, and several runs of a scenario as one."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from sipbridge.loadtest.measure import percentiles

HEAD = (
    f"{'scenario':12} {'up':>5} {'set-up ms p50/p95/p99':>22} {'delay ms min/p50/p95/p99/max':>38} "
    f"{'heard':>11} {'lost':>5} {'gaps':>5} {'% core':>7} {'MB/call':>8} {'late':>6} {'other':>6}"
)


def lines(result: dict[str, Any]) -> Iterator[str]:
    """A line below HEAD, and more where there is more to tell.

    `late` is how late the generator itself sent (p99, ms), `other` how many cores were busy with neither of
    both: with more than a little of either, a run says nothing.
    """

    def many(values: dict[str, float], names: str) -> str:
        return " / ".join(f"{values[name]:.1f}" for name in names.split()) if values else "-"

    server = result.get("server", {})
    bursts, rtp, speech = result["bursts"], result["rtp"], result.get("speech")
    other = ""
    if server:
        cores = server["machine_busy_cores"] - server["cores"] - result["generator"]["cores"]
        other = f"{max(0.0, cores):.2f}"
    heard = f"{bursts['heard']}/{bursts['sent']}"
    if speech:
        heard = f"{speech['listeners'] - speech['unheard']}/{speech['listeners']}"
    yield (
        f"{result['scenario']:12} {result['answered']:>5} {many(result['setup_ms'], 'p50 p95 p99'):>22} "
        f"{many(result['delay_ms'], 'min p50 p95 p99 max'):>38} "
        f"{heard:>11} {rtp['lost']:>5} {rtp['gaps_over_40_ms']:>5} "
        f"{server.get('percent_core_a_call', ''):>7} {server.get('pss_mb_a_call', ''):>8} "
        f"{result['generator']['send_late_ms'].get('p99', ''):>6} {other:>6}"
    )
    if first := result.get("first_audio_ms"):
        yield f"             first audio at the agent after {many(first, 'p50 p99 max')} ms (p50/p99/max)"
    if speech:
        yield (
            f"             speech: {speech['damaged_percent']} % damaged, {speech['gaps_over_40_ms']} gaps "
            f"over 40 ms (longest {speech['longest_gap_ms']:.0f} ms), delay changed by "
            f"{speech['slope_ms']} ms (most: {speech['steepest_slope_ms']} ms)"
        )
    if result.get("pesq", {}).get("listeners"):
        pesq = result["pesq"]
        yield f"             PESQ: {pesq['bridge']:.2f}, the codec alone {pesq['codec_alone']:.2f}"
    if result["failures"]:
        yield f"             failed: {result['failures']}"


def pool_all(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One result for each scenario."""
    names = dict.fromkeys(run["scenario"] for run in runs)
    return [pool([run for run in runs if run["scenario"] == name]) for name in names]


def pool(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """One result of several runs: what was heard in all of them, the median of what was used."""

    def total(table: str) -> dict[str, float]:
        return {
            key: (max if key.startswith("longest") else sum)(run[table][key] for run in runs)
            for key in runs[0][table]
        }

    def median(table: str, key: str) -> float:
        return round(float(np.median([run[table][key] for run in runs])), 4)

    failures: dict[str, int] = {}
    for run in runs:
        for code, count in run["failures"].items():
            failures[code] = failures.get(code, 0) + count
    pooled: dict[str, Any] = {
        "scenario": runs[0]["scenario"],
        "load": runs[0]["load"],
        "runs": len(runs),
        "calls": runs[0]["calls"],
        "answered": sum(run["answered"] for run in runs),
        "failures": failures,
        "measured_s": sum(run["measured_s"] for run in runs),
        "setup_ms": percentiles([value for run in runs for value in run["setup_raw"]]),
        "delay_ms": percentiles([delay for run in runs for delay in delays(run)]),
        "bursts": total("bursts"),
        "rtp": total("rtp"),
        "generator": {
            "cores": median("generator", "cores"),
            "send_late_ms": {"p99": max(run["generator"]["send_late_ms"].get("p99", 0.0) for run in runs)},
        },
    }
    if all("first_audio_ms" in run for run in runs):  # the worst of them
        pooled["first_audio_ms"] = {
            point: max(run["first_audio_ms"][point] for run in runs) for point in runs[0]["first_audio_ms"]
        }
    if all("speech" in run for run in runs):
        pooled["speech"] = _pool_speech([run["speech"] for run in runs])
    if all(run.get("pesq", {}).get("listeners") for run in runs):
        pooled["pesq"] = {
            "bridge": median("pesq", "bridge"),
            "codec_alone": median("pesq", "codec_alone"),
            "listeners": sum(run["pesq"]["listeners"] for run in runs),
        }
    if all("server" in run for run in runs):
        keys = ("cores", "percent_core_a_call", "machine_busy_cores", "rss_mb_a_call", "pss_mb_a_call")
        pooled["server"] = {key: median("server", key) for key in keys}
    return pooled


def _pool_speech(parts: list[dict[str, Any]]) -> dict[str, Any]:
    spoken_s = sum(part["spoken_s"] for part in parts)
    damaged = sum(part["damaged_percent"] * part["spoken_s"] for part in parts)
    counts = ("listeners", "unheard", "unmatched", "gaps_over_40_ms")
    return {
        **{name: sum(part[name] for part in parts) for name in counts},
        "spoken_s": round(spoken_s, 2),
        "damaged_percent": round(damaged / spoken_s, 3) if spoken_s else 0.0,
        "longest_gap_ms": max(part["longest_gap_ms"] for part in parts),
        "slope_ms": round(float(np.median([part["slope_ms"] for part in parts])), 3),
        "steepest_slope_ms": max((part["steepest_slope_ms"] for part in parts), key=lambda slope: abs(slope)),
    }


def delays(run: dict[str, Any]) -> list[float]:
    """All delays of a run, in ms."""
    if "delays_raw" in run:
        return list(run["delays_raw"])
    return [delay for _, _, delay in run["bursts_raw"]]
