# SPDX-License-Identifier: GPL-3.0-or-later
"""One run: so many callers on a bridge, and what they saw.

::

    Load ─► generator (its own process) ─► SIP, RTP ─► bridge under test (its own process, or --target)
                 │                                        │
                 └─ raw: bursts, speech, packets          └─ Usage: CPU, memory, from /proc
                                  └──────► summarize ◄────┘
"""

import concurrent.futures
import dataclasses
import os
import platform
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from sipbridge.loadtest import agent, generator, speech, webrtc
from sipbridge.loadtest.server import Server, Usage, serve

# The gate allows each source 50 requests a second and we call at up to 100, with three requests a call.
SOURCES = [f"127.0.1.{i}" for i in range(1, 17)]


@dataclasses.dataclass(frozen=True)
class Load:
    """What the callers of one run do."""

    mode: str = "room"  # or "echo", "agent", "webrtc": an echo behind one, or "wire": no bridge at all
    calls: int = 2
    room_size: int = 2
    codecs: str = "PCMU"  # of the calls in turn, as in "PCMU*5,G722*5,opus"
    seconds: float = 15.0  # measured
    settle_s: float = 3.0  # from the last answer to the first second that is measured
    rate: float = 40.0  # calls a second, set up and ended
    others_rate: float = 0.0  # calls a second that others begin, in rooms of their own, while it is measured
    drift_ppm: float = 0.0  # every second caller is faster by it, the others are slower
    loss_percent: float = 0.0  # this and what follows: of what the callers send
    loss_burst: float = 1.0  # mean number of packets lost in a row
    jitter_ms: float = 0.0  # evenly distributed over 0..jitter_ms, without reordering
    reorder_percent: float = 0.0
    duplicate_percent: float = 0.0
    seed: int = 1
    is_speech: bool = False  # speech without an end instead of bursts
    speech_file: Path | None = None  # None: espeak-ng's, or one of ours
    record: Path | None = None  # a folder for what is heard
    rtp_port: int = 12_000  # the first of the callers'
    settings: str = ""  # of the bridge's, where they are others than usual

    def arguments(self) -> list[str]:
        """For the generator; without `--uri` and `--source`."""
        pairs = {
            "--mode": "echo" if self.mode in ("agent", "webrtc") else self.mode,
            "--calls": self.calls,
            "--room-size": self.room_size,
            "--codecs": self.codecs,
            "--seconds": self.seconds,
            "--settle": self.settle_s,
            "--rate": self.rate,
            "--drift-ppm": self.drift_ppm,
            "--loss": self.loss_percent,
            "--loss-burst": self.loss_burst,
            "--jitter": self.jitter_ms,
            "--reorder": self.reorder_percent,
            "--duplicate": self.duplicate_percent,
            "--seed": self.seed,
            "--rtp-port": self.rtp_port,
        }
        if self.is_speech:
            pairs["--speech"] = str(speech.prepare(self.speech_file))
        if self.record is not None:
            pairs["--record"] = str(self.record)
        return [str(part) for pair in pairs.items() for part in pair]

    @property
    def codec_names(self) -> list[str]:
        return [item.partition("*")[0] for item in self.codecs.split(",")]


def run(load: Load, target: str | None = None, pid: int | None = None) -> dict[str, Any]:
    """One run of the load; against a bridge of its own unless `target` names one.

    `target` is a SIP URI, with {room} where each room has a name of its own; `pid` is that bridge's process,
    where it runs on this machine. Raises LoadtestError when no call is answered.
    """
    if load.mode == "wire":
        return summarize(load, _generate(load, [], {}), {})
    if target is not None:
        usage: dict[str, Usage] = {}
        if pid is not None:
            usage["idle"] = Usage.of(pid)
        raw = _generate(load, ["--uri", target], _moments(pid, usage))
        return summarize(load, raw, usage)
    with serve(load.settings) as server:
        if load.mode == "webrtc":
            with webrtc.waiting(server.url, server.token, load.calls, load.codec_names[0]):
                return summarize(load, *_run_on(server, load))
        if load.mode != "agent":
            return summarize(load, *_run_on(server, load))
        with agent.answering(server.agent_port) as echo:
            raw, usage = _run_on(server, load)
        return {
            **summarize(load, raw, usage),
            "first_audio_ms": percentiles(_first_audio(raw, echo.first_at)),
        }


def _first_audio(raw: Mapping[str, Any], came_at: Mapping[str, float]) -> list[float]:
    """From the first RTP packet of each caller until the agent has it, in ms."""
    sent_at = {f"load{index}": at_s for index, at_s in enumerate(raw["first_sent_s"]) if at_s}
    return [1000 * (came_at[caller] - at_s) for caller, at_s in sent_at.items() if caller in came_at]


def _run_on(server: Server, load: Load) -> tuple[dict[str, Any], dict[str, Usage]]:
    """What the callers saw, and what the server used."""
    user = load.mode if load.mode in ("echo", "agent") else "bench{room}"
    way = ["--uri", f"sip:{user}@127.0.0.1:{server.sip_port}"]
    for source in SOURCES:
        way += ["--source", source]
    # the first call of a process loads what all others share
    first = dataclasses.replace(
        load, calls=load.room_size, settle_s=0.5, seconds=0.5, is_speech=False, record=None
    )
    _generate(first, way, {})
    usage = {"idle": Usage.of(server.pid)}
    moments = _moments(server.pid, usage)
    if not load.others_rate:
        return _generate(load, way, moments), usage
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        others: list[concurrent.futures.Future[None]] = []
        look = moments["measuring"]

        def begin() -> None:
            look()
            others.append(pool.submit(_start_others, load, way))

        raw = _generate(load, way, {**moments, "measuring": begin})
        for other in others:
            other.result()
    return raw, usage


def _start_others(load: Load, way: list[str]) -> None:
    """Calls that come one after the other for as long as `load` is measured, and then go."""
    calls = round(load.others_rate * load.seconds / load.room_size) * load.room_size
    others = Load(
        calls=calls, rate=load.others_rate, settle_s=0.0, seconds=0.5, rtp_port=load.rtp_port + 2 * load.calls
    )
    _generate(others, [part.replace("sip:bench", "sip:other") for part in way], {})


def _generate(load: Load, way: Iterable[str], moments: Mapping[str, Callable[[], None]]) -> dict[str, Any]:
    raw = generator.run([*load.arguments(), *way], moments, codecs=load.codec_names)
    if not raw["answered"]:
        reasons = ", ".join(f"{count} times {code}" for code, count in raw["failures"].items())
        raise generator.LoadtestError(f"of {load.calls} calls none was answered: {reasons}")
    return raw


def _moments(pid: int | None, usage: dict[str, Usage]) -> dict[str, Callable[[], None]]:
    def look_at(name: str, pid: int) -> Callable[[], None]:
        return lambda: usage.update({name: Usage.of(pid)})

    return {} if pid is None else {name: look_at(name, pid) for name in ("measuring", "measured")}


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


def summarize(load: Load, raw: dict[str, Any], usage: Mapping[str, Usage]) -> dict[str, Any]:
    """What a run's raw result means, with the raw values that plots and pooling need."""
    received = raw["received"]
    delays = [delay_ms for _, _, delay_ms in raw["bursts"]]
    result: dict[str, Any] = {
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
            "dropped": raw["bursts_dropped"],  # by the line: never sent
        },
        "rtp": {
            "sent": raw["rtp_sent"],
            "dropped": raw["rtp_dropped"],
            "received": sum(leg["packets"] for leg in received),
            "lost": sum(leg["expected"] - leg["packets"] + leg["twice"] for leg in received),
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
        "phases_raw": raw["phases_ms"],
    }
    if load.is_speech:
        result["delays_raw"] = [delay for pair in raw["speech"] for delay in pair["delays_ms"]]
        result["delay_ms"] = percentiles(result["delays_raw"])
        result["speech"] = _speech_summary(raw["speech"], load.calls)
        result["speech_raw"] = raw["speech"]
    if "measuring" in usage:
        result["server"] = _server_usage(
            usage["idle"], usage["measuring"], usage["measured"], raw["answered"]
        )
    return result


def _speech_summary(pairs: list[dict[str, Any]], calls: int) -> dict[str, Any]:
    slopes: list[float] = [
        _slope_ms(pair["at_s"], pair["delay_ms"]) for pair in pairs if len(pair["at_s"]) >= 8
    ]
    steepest: float = max(slopes, key=abs, default=0.0)
    # Opus changes the waveform of hisses: there a piece that fits nowhere says nothing
    exact = [pair for pair in pairs if "opus" not in (pair["codec"], pair["talker_codec"])]
    spoken = sum(pair["spoken"] for pair in exact)
    damaged = sum(pair["damaged"] for pair in exact)
    return {
        "listeners": len(pairs),
        "unheard": sum(not pair["at_s"] for pair in pairs),  # listeners who never heard a word
        "spoken_s": round(0.02 * spoken, 2),
        "damaged_percent": round(100 * damaged / spoken, 3) if spoken else 0.0,
        "unmatched": sum(pair["unmatched"] for pair in pairs),
        "gaps_over_40_ms": sum(len(pair["gap_ms"]) for pair in pairs),
        "longest_gap_ms": max((gap for pair in pairs for gap in pair["gap_ms"]), default=0.0),
        # how much the delay of one listener has changed over the run, by a straight line through it
        "slope_ms": round(float(np.median(slopes)), 3) if slopes else 0.0,
        "steepest_slope_ms": round(steepest, 3),
    }


def _slope_ms(at_s: list[float], delay_ms: list[float]) -> float:
    slope = np.polyfit(at_s, delay_ms, 1)[0]
    return float(slope * (at_s[-1] - at_s[0]))


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


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cores": os.cpu_count(),
        "cpu": model[0].split(":", 1)[1].strip() if model else platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average": os.getloadavg(),
    }
