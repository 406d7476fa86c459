# SPDX-License-Identifier: GPL-3.0-or-later
"""How many calls a machine carries: more and more of them, until what is heard is no longer good."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from sipbridge.loadtest.measure import Load, run

SIZES = (20, 50, 100, 200, 400, 800)


@dataclasses.dataclass(frozen=True)
class Step:
    """What so many calls at the same time were like."""

    calls: int
    answered: int
    problems: tuple[str, ...]  # none: it was good
    setup_ms: dict[str, float]  # INVITE to 200: min, p50, p95, p99, max
    delay_ms: dict[str, float]  # what the bridge adds, in the same way
    percent_core_a_call: float | None  # None: not a bridge of ours
    mb_a_call: float | None

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def sizes_to(limit: int) -> list[int]:
    """Growing numbers of calls, even ones as two make a room; the last is the limit."""
    return [*(size for size in SIZES if size < limit - 1), limit - limit % 2]


def measure(
    sizes: Sequence[int],
    *,
    load: Load,
    p99_limit_ms: float,
    target: str | None,
    show: Callable[[Step], None],
) -> list[Step]:
    """One run for each number of calls, up to the first that is not good.

    Every run has a bridge of its own, unless `target` names one. LoadtestError when no call is answered.
    """
    steps = []
    for calls in sizes:
        result = run(dataclasses.replace(load, calls=calls), target)
        steps.append(judge(calls, result, p99_limit_ms))
        show(steps[-1])
        if steps[-1].problems:
            break
    return steps


def judge(calls: int, result: dict[str, Any], p99_limit_ms: float) -> Step:
    """What a run says about so many calls."""
    delay_ms, bursts, rtp = result["delay_ms"], result["bursts"], result["rtp"]
    server = result.get("server", {})
    problems = []
    if result["answered"] < calls:
        problems.append(f"{calls - result['answered']} calls not answered ({_counts(result['failures'])})")
    if result["ended_early"]:
        problems.append(f"{result['ended_early']} calls ended by the bridge")
    if (unheard := bursts["sent"] - bursts["heard"]) > 0:
        problems.append(f"{unheard} of {bursts['sent']} sounds not heard")
    if rtp["lost"]:
        problems.append(f"{rtp['lost']} packets lost")
    if rtp["gaps_over_40_ms"]:
        problems.append(f"{rtp['gaps_over_40_ms']} gaps over 40 ms, up to {rtp['longest_gap_ms']:.0f} ms")
    if delay_ms.get("p99", 0.0) > p99_limit_ms:
        problems.append(f"delay above {p99_limit_ms:g} ms")
    return Step(
        calls=calls,
        answered=result["answered"],
        problems=tuple(problems),
        setup_ms=result["setup_ms"],
        delay_ms=delay_ms,
        percent_core_a_call=server.get("percent_core_a_call"),
        mb_a_call=server.get("pss_mb_a_call"),
    )


def _counts(failures: dict[str, int]) -> str:
    return ", ".join(f"{count} times {code}" for code, count in failures.items())
