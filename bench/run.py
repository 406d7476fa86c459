# SPDX-License-Identifier: GPL-3.0-or-later
"""Measures what a bridge adds to calls: delay, losses, quality, set-up time, CPU, memory.

Without --target every run starts a server of its own, so --restarts are restarts. Results go to
bench/results/ as JSON and as a page of plots.
"""

import argparse
import contextlib
import dataclasses
import datetime
import json
import os
import resource
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench import plots, quality, report
from bench.scenarios import DEFAULT, PUBLISHED, SCENARIOS, Scenario
from sipbridge.loadtest import generator, measure, speech
from sipbridge.loadtest.measure import Load

RESULTS = Path(__file__).with_name("results")
QUICK_S = 5.0
PESQ_S = 10.0  # the least for a piece that PESQ can judge
PUBLISHED_RESTARTS = 5
# What the command line changes in any scenario.
_LINE = {
    "codecs": (str, "of the calls in turn, as in PCMU*5,G722*5,opus"),
    "drift_ppm": (float, "every second caller's clock is so much faster, the others' slower"),
    "loss_percent": (float, "of the packets that callers send"),
    "loss_burst": (float, "mean number of packets lost in a row"),
    "jitter_ms": (float, "each packet is late by 0 to so much, evenly distributed, in order"),
    "reorder_percent": (float, "packets that come after the following one"),
    "duplicate_percent": (float, "packets that come twice"),
    "seed": (int, "of the line's chances"),
    "rate": (float, "calls a second"),
    "rtp_port": (int, "the callers' first"),
}


def run_once(scenario: Scenario, options: argparse.Namespace, restart: int = 0) -> dict[str, Any]:
    """One run, with its name."""
    changes = {name: getattr(options, name) for name in _LINE if getattr(options, name) is not None}
    if options.seconds is not None:
        changes["seconds"] = options.seconds
    load = dataclasses.replace(scenario.load, speech_file=options.speech, **changes)
    # each restart meets another line, and the same one when all is repeated
    load = dataclasses.replace(load, seed=load.seed + 10_000 * restart)
    with tempfile.TemporaryDirectory(prefix="sipbridge-heard-") as folder:
        if scenario.has_pesq:
            seconds = 45.0 if options.seconds is None else max(options.seconds, PESQ_S)
            load = dataclasses.replace(load, record=Path(folder), seconds=seconds)
        with _livekit(scenario, Path(folder)) as settings, _agora(scenario, Path(folder)) as more:
            load = dataclasses.replace(load, settings=settings + more)
            result = measure.run(load, options.target, options.pid)
        if scenario.has_pesq:
            result["pesq"] = _pesq(load, Path(folder), result["speech_raw"])
    for pair in result.get("speech_raw", []):  # of use for the above alone, and long
        del pair["lost_frames"], pair["delays_ms"]
    return {"scenario": str(scenario), "load": _as_json(load), **result}


@contextlib.contextmanager
def _livekit(scenario: Scenario, folder: Path) -> Iterator[str]:
    """A LiveKit server, where the scenario has one, and what the bridge is told of it."""
    if not scenario.livekit_codec:
        yield ""
        return
    from tests.support.livekit import API_KEY, API_SECRET, LiveKitServer

    with LiveKitServer(folder, logging={"level": "error"}) as server:
        yield f"""
[livekit]
url = "{server.url}"
api_key = "{API_KEY}"
api_secret = "{API_SECRET}"
codec = "{scenario.livekit_codec}"

[[rule]]
name = "livekit"
to = "bench*"
target = "livekit:{{callee}}"
"""


@contextlib.contextmanager
def _agora(scenario: Scenario, folder: Path) -> Iterator[str]:
    """Agora's SDK over a simulated engine, where the scenario has it, and what the bridge is told of it."""
    if not scenario.agora_hz:
        yield ""
        return
    from tests.support import agora_engine, fake_agora

    before = dict(os.environ)
    os.environ.update(agora_engine.environment(folder / "engine"))
    try:
        yield f"""
[agora]
app_id = "{fake_agora.APP_ID}"
app_certificate = "{fake_agora.CERTIFICATE}"
sample_rate_hz = {scenario.agora_hz}

[[rule]]
name = "agora"
to = "bench*"
target = "agora:{{callee}}"
"""
    finally:
        os.environ.clear()
        os.environ.update(before)


def _as_json(load: Load) -> dict[str, Any]:
    paths = ("record", "speech_file", "settings")
    return {name: value for name, value in dataclasses.asdict(load).items() if name not in paths}


def _pesq(load: Load, folder: Path, pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """Of every listener to G.711, and the means."""
    words = speech.samples_8k(speech.prepare(load.speech_file))
    scores = []
    for pair in pairs:
        heard = np.fromfile(folder / f"{pair['leg']}.s16", dtype="<i2").astype(np.int16)
        said = np.resize(np.roll(words, -pair["speech_from"]), round(load.seconds * quality.RATE_HZ))
        if (found := quality.compare(said, heard, pair["lost_frames"])) is not None:
            scores.append(found)
    names = ("bridge", "codec_alone")
    means = {name: round(float(np.mean([score[name] for score in scores])), 3) for name in names if scores}
    return {**means, "listeners": len(scores), "each": scores}


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="scenarios:\n" + "\n".join(f"  {name:17} {about}" for name, about in SCENARIOS.items()),
    )
    parser.add_argument("scenarios", nargs="*", type=Scenario.parse, help=f"default: {' '.join(DEFAULT)}")
    parser.add_argument(
        "--published",
        action="store_true",
        help=f"all that docs/performance.md has, {PUBLISHED_RESTARTS} restarts each: about two hours",
    )
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_S:g} s each: does it work at all?")
    parser.add_argument("--restarts", type=int, help="runs of each scenario (default: 1)")
    parser.add_argument("--seconds", type=float, help="measured in each run (default: 15; loss: 45)")
    parser.add_argument("--speech", type=Path, metavar="FILE", help="what callers say (default: espeak-ng)")
    parser.add_argument("--target", help="another bridge, such as 'sip:bench{room}@192.0.2.1'")
    parser.add_argument("--pid", type=int, help="its process, where it runs on this machine")
    for name, (kind, about) in _LINE.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=about)
    options = parser.parse_args(arguments)
    if not options.scenarios:
        options.scenarios = [Scenario.parse(name) for name in (PUBLISHED if options.published else DEFAULT)]
    if options.restarts is None:
        options.restarts = PUBLISHED_RESTARTS if options.published else 1
    if options.quick and options.seconds is None:
        options.seconds = QUICK_S
    return options


def main(arguments: list[str] | None = None) -> None:
    options = _options(arguments)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        _measure(options, arguments if arguments is not None else sys.argv[1:])
    except generator.LoadtestError as error:
        raise SystemExit(f"bench: {error}") from None


def _measure(options: argparse.Namespace, arguments: list[str]) -> None:
    results: dict[str, Any] = {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": ["python", "-m", "bench", *arguments],
        "machine": measure.machine(),
        "restarts": options.restarts,
        "runs": [],
    }
    print(report.HEAD, flush=True)
    for restart in range(options.restarts):
        for scenario in options.scenarios:
            result = run_once(scenario, options, restart)
            results["runs"].append(result)
            for line in report.lines(result):
                print(line, flush=True)
    results["pooled"] = report.pool_all(results["runs"])
    if options.restarts > 1:
        print(f"\nall {options.restarts} together: delays pooled, CPU and memory the median run's")
        for result in results["pooled"]:
            for line in report.lines(result):
                print(line)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{results['date'].replace(':', '')}.json"
    path.write_text(json.dumps(results))
    page = path.with_suffix(".html")
    page.write_text(plots.page(results))
    print(f"all of it: {path}\nplots:     {page}")
