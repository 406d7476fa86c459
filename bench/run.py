# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the scenarios against a bridge and says what it adds: delay, losses, CPU, memory.

Without `--target` every run starts a server of its own, so `--restarts` are restarts.
"""

import argparse
import datetime
import json
import os
import platform
import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from bench import load
from bench.server import Server, Usage, serve

RESULTS = Path(__file__).with_name("results")
# The gate allows each source 50 requests a second and we call at up to 100, with three requests a call.
SOURCES = [f"127.0.1.{i}" for i in range(1, 17)]


@dataclass(frozen=True)
class Scenario:
    mode: str  # "room" or "echo"
    calls: int

    @classmethod
    def parse(cls, text: str) -> "Scenario":
        mode, _, calls = text.rpartition(":")
        if mode not in ("room", "echo", "wire") or not calls.isdecimal():
            raise argparse.ArgumentTypeError(f"expected room:N, echo:N or wire:N, not {text!r}")
        return cls(mode, int(calls))

    def __str__(self) -> str:
        return f"{self.mode}:{self.calls}"


def percentiles(values: ArrayLike) -> dict[str, float]:
    """min, p50, p95, p99 and max; nothing of nothing."""
    samples = np.asarray(values, np.float64)
    if not samples.size:
        return {}
    points = np.percentile(samples, [0, 50, 95, 99, 100])
    return {
        name: round(float(value), 3)
        for name, value in zip(("min", "p50", "p95", "p99", "max"), points, strict=True)
    }


def run_once(scenario: Scenario, options: argparse.Namespace) -> dict[str, Any]:
    """One run: its raw result with the server's usage."""
    common = ["--rate", str(options.rate), "--rtp-port", str(options.rtp_port)]
    if scenario.mode == "wire":
        arguments = ["--mode", "wire", "--calls", str(scenario.calls), "--seconds", str(options.seconds)]
        return summarize(scenario, load.run([*arguments, *common], {}), {})
    if options.target:
        arguments = ["--mode", scenario.mode, "--uri", options.target, "--calls", str(scenario.calls)]
        usage: dict[str, Usage] = {}
        moments = _moments(options.pid, usage) if options.pid else {}
        if options.pid:
            usage["idle"] = Usage.of(options.pid)
        raw = load.run([*arguments, "--seconds", str(options.seconds), *common], moments)
        return summarize(scenario, raw, usage)
    with serve() as server:
        return _run_on(server, scenario, options, common)


def _moments(pid: int, usage: dict[str, Usage]) -> dict[str, Any]:
    return {name: lambda name=name: usage.update({name: Usage.of(pid)}) for name in ("measuring", "measured")}


def _run_on(
    server: Server, scenario: Scenario, options: argparse.Namespace, common: list[str]
) -> dict[str, Any]:
    user = "echo" if scenario.mode == "echo" else "bench{room}"
    arguments = ["--mode", scenario.mode, "--uri", f"sip:{user}@127.0.0.1:{server.sip_port}", *common]
    for source in SOURCES:
        arguments += ["--source", source]
    # the first call of a process loads what all others share
    load.run([*arguments, "--calls", "2", "--settle", "0.5", "--seconds", "0.5"], {})
    usage = {"idle": Usage.of(server.pid)}
    raw = load.run(
        [*arguments, "--calls", str(scenario.calls), "--seconds", str(options.seconds)],
        _moments(server.pid, usage),
    )
    return summarize(scenario, raw, usage)


def summarize(scenario: Scenario, raw: dict[str, Any], usage: dict[str, Usage]) -> dict[str, Any]:
    received = raw["received"]
    delays = [delay_ms for _, _, delay_ms in raw["bursts"]]
    result: dict[str, Any] = {
        "scenario": str(scenario),
        "calls": raw["calls"],
        "answered": raw["answered"],
        "failures": raw["failures"],
        "ended_early": raw["ended_early"],
        "setup_ms": percentiles(raw["setup_ms"]),
        "delay_ms": percentiles(delays),
        "bursts": {
            "sent": raw["bursts_sent"],
            "heard": len(delays),
            "unasked": raw["bursts_unasked"],
        },
        "rtp": {
            "sent": raw["rtp_sent"],
            "received": sum(leg["packets"] for leg in received),
            "lost": sum(leg["expected"] - leg["packets"] + leg["late_or_twice"] for leg in received),
            "late_or_twice": sum(leg["late_or_twice"] for leg in received),
            "gaps_over_40_ms": sum(leg["gaps_over_40_ms"] for leg in received),
            "longest_gap_ms": max((leg["longest_gap_ms"] for leg in received), default=0.0),
        },
        "generator": {
            "cores": round(raw["cpu_s"] / raw["measured_s"], 4),
            "send_late_ms": percentiles(raw["send_late_ms"]),
        },
        "measured_s": raw["measured_s"],
        # for plots and for pooling: [second, leg, delay in ms] and ms
        "bursts_raw": raw["bursts"],
        "setup_raw": raw["setup_ms"],
    }
    if "measuring" in usage:
        result["server"] = _server_usage(
            usage["idle"], usage["measuring"], usage["measured"], raw["answered"]
        )
    return result


def _server_usage(idle: Usage, start: Usage, end: Usage, calls: int) -> dict[str, Any]:
    seconds = end.at_s - start.at_s
    calls = max(calls, 1)
    cores = (end.cpu_s - start.cpu_s) / seconds
    threads: dict[str, float] = {}
    wakes: dict[str, float] = {}
    for key, used_s in end.threads_s.items():
        name = key.rsplit("/", 1)[0]
        threads[name] = threads.get(name, 0.0) + used_s - start.threads_s.get(key, 0.0)
        woken = end.switches[key] - start.switches.get(key, 0)
        wakes[name] = wakes.get(name, 0.0) + woken
    return {
        "cores": round(cores, 4),
        "percent_core_a_call": round(100 * cores / calls, 4),
        "threads_percent_core": {
            name: round(100 * used_s / seconds, 2)
            for name, used_s in sorted(threads.items(), key=lambda item: -item[1])
            if used_s > 0
        },
        "threads_wakes_a_s": {
            name: round(count / seconds, 1)
            for name, count in sorted(wakes.items(), key=lambda item: -item[1])
            if count > seconds
        },
        "machine_busy_cores": round((end.machine_busy_s - start.machine_busy_s) / seconds, 3),
        "rss_mb": round(end.rss_bytes / 1e6, 1),
        "rss_mb_a_call": round((end.rss_bytes - idle.rss_bytes) / 1e6 / calls, 4),
        "pss_mb": round(end.pss_bytes / 1e6, 1),
        "pss_mb_a_call": round((end.pss_bytes - idle.pss_bytes) / 1e6 / calls, 4),
    }


_HEAD = (
    f"{'scenario':10} {'up':>5} {'set-up ms p50/p95/p99':>22} {'delay ms min/p50/p95/p99/max':>34} "
    f"{'heard':>11} {'lost':>5} {'gaps':>5} {'% core':>7} {'MB/call':>8} {'late':>6} {'other':>6}"
)


def _line(result: dict[str, Any]) -> str:
    def many(values: dict[str, float], names: str) -> str:
        return " / ".join(f"{values[name]:.1f}" for name in names.split()) if values else "-"

    server = result.get("server", {})
    bursts, rtp = result["bursts"], result["rtp"]
    other = ""
    if server:
        cores = server["machine_busy_cores"] - server["cores"] - result["generator"]["cores"]
        other = f"{max(0.0, cores):.2f}"
    return (
        f"{result['scenario']:10} {result['answered']:>5} {many(result['setup_ms'], 'p50 p95 p99'):>22} "
        f"{many(result['delay_ms'], 'min p50 p95 p99 max'):>34} "
        f"{bursts['heard']:>5}/{bursts['sent']:<5} {rtp['lost']:>5} {rtp['gaps_over_40_ms']:>5} "
        f"{server.get('percent_core_a_call', ''):>7} {server.get('pss_mb_a_call', ''):>8} "
        f"{result['generator']['send_late_ms'].get('p99', ''):>6} {other:>6}"
    )


def pool(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """One result of several runs: what was heard in all of them, the median of what was used."""

    def total(table: str) -> dict[str, float]:
        longest = {"longest_gap_ms"}
        return {
            key: (max if key in longest else sum)(run[table][key] for run in runs) for key in runs[0][table]
        }

    def median(table: str, key: str) -> float:
        return round(float(np.median([run[table][key] for run in runs])), 4)

    failures: dict[str, int] = {}
    for run in runs:
        for code, count in run["failures"].items():
            failures[code] = failures.get(code, 0) + count
    pooled: dict[str, Any] = {
        "scenario": runs[0]["scenario"],
        "runs": len(runs),
        "answered": sum(run["answered"] for run in runs),
        "failures": failures,
        "setup_ms": percentiles([value for run in runs for value in run["setup_raw"]]),
        "delay_ms": percentiles([delay for run in runs for _, _, delay in run["bursts_raw"]]),
        "bursts": total("bursts"),
        "rtp": total("rtp"),
        "generator": {
            "cores": median("generator", "cores"),
            "send_late_ms": {"p99": max(run["generator"]["send_late_ms"].get("p99", 0.0) for run in runs)},
        },
    }
    if all("server" in run for run in runs):
        keys = ("cores", "percent_core_a_call", "machine_busy_cores", "rss_mb_a_call", "pss_mb_a_call")
        pooled["server"] = {key: median("server", key) for key in keys}
    return pooled


def _machine() -> dict[str, Any]:
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cores": os.cpu_count(),
        "cpu": model[0].split(":", 1)[1].strip() if model else platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average": os.getloadavg(),
    }


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument(
        "scenarios",
        nargs="*",
        type=Scenario.parse,
        default=["room:2", "room:100", "room:400", "echo:100"],
        help="room:N (two calls a room), echo:N, or wire:N, the generator alone (default: %(default)s)",
    )
    parser.add_argument("--restarts", type=int, default=1, help="runs of each scenario (default: 1)")
    parser.add_argument("--seconds", type=float, default=15.0, help="measured in each run (default: 15)")
    parser.add_argument("--rate", type=float, default=40.0, help="calls a second (default: 40)")
    parser.add_argument("--rtp-port", type=int, default=12000, help="the generator's first (default: 12000)")
    parser.add_argument("--target", help="another bridge, such as 'sip:bench{room}@192.0.2.1'")
    parser.add_argument("--pid", type=int, help="its process, where it runs on this machine")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = _options(arguments)
    scenarios = [s if isinstance(s, Scenario) else Scenario.parse(s) for s in options.scenarios]
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    load.build()
    report: dict[str, Any] = {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": ["python", "-m", "bench", *(arguments if arguments is not None else sys.argv[1:])],
        "machine": _machine(),
        "runs": [],
    }
    print(_HEAD, flush=True)
    for _ in range(options.restarts):
        for scenario in scenarios:
            result = run_once(scenario, options)
            report["runs"].append(result)
            print(_line(result), flush=True)
            if result["failures"]:
                print(f"           failed: {result['failures']}", flush=True)
    if options.restarts > 1:
        print(f"\nall {options.restarts} together: delays pooled, CPU and memory the median run's")
        report["pooled"] = [
            pool([run for run in report["runs"] if run["scenario"] == str(scenario)])
            for scenario in dict.fromkeys(scenarios)
        ]
        for result in report["pooled"]:
            print(_line(result))
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{report['date'].replace(':', '')}.json"
    path.write_text(json.dumps(report))
    print(f"all of it: {path}")
