# SPDX-License-Identifier: GPL-3.0-or-later
"""Results as one page that needs nothing beside itself: a table, and for each scenario its plots."""

import html
import io
from collections.abc import Iterator
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from bench import report

matplotlib.use("svg")
_SIZE_IN = (5.2, 3.2)  # so that the letters can be read on a telephone too
_BLUE, _ORANGE, _GREY = "#1f5fa8", "#d1632a", "#9aa3ad"
_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.45 system-ui, sans-serif; color: #1c2126; background: #fff; margin: 0 auto; padding: 1rem;
       max-width: 76rem; }
h1 { font-size: 1.5rem; margin: 0.2rem 0; } h2 { font-size: 1.15rem; margin: 2rem 0 0.3rem; }
p { margin: 0.3rem 0; } .quiet { color: #59626b; font-size: 0.9rem; overflow-wrap: anywhere; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 0.7rem; text-align: right; border-bottom: 1px solid #dde2e7; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { font-weight: 600; color: #59626b; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1rem; }
svg { width: 100%; height: auto; }
"""


def page(results: dict[str, Any]) -> str:
    """The whole page, of what run.py writes as JSON."""
    machine = results["machine"]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        '<meta name=viewport content="width=device-width, initial-scale=1">',
        f"<title>sipbridge bench, {results['date'][:10]}</title><style>{_STYLE}</style>",
        "<h1>What the bridge adds</h1>",
        f"<p>{html.escape(results['date'])} · {machine['cores']} cores, {html.escape(machine['cpu'])}, Linux "
        f"{html.escape(machine['kernel'])}, Python {machine['python']} · restarts: {results['restarts']}</p>",
        f"<p class=quiet>{html.escape(' '.join(results['command']))}</p>",
        _table(results["pooled"]),
    ]
    figures = list(_size_figures(results["pooled"]))
    if figures:
        parts.append(f"<h2>Cost against calls</h2><div class=plots>{''.join(figures)}</div>")
    for pooled in results["pooled"]:
        runs = [run for run in results["runs"] if run["scenario"] == pooled["scenario"]]
        parts.append(f"<h2>{html.escape(pooled['scenario'])}</h2>")
        parts += [f"<p class=quiet>{html.escape(line)}</p>" for line in list(report.lines(pooled))[1:]]
        parts.append(f"<div class=plots>{_histogram(runs)}{_over_time(runs)}</div>")
    return "".join(parts)


def _table(pooled: list[dict[str, Any]]) -> str:
    head = (
        "scenario",
        "answered",
        "delay p50",
        "p95",
        "p99",
        "max ms",
        "lost",
        "gaps",
        "set-up p95 ms",
        "% core a call",
        "MB a call",
    )
    rows = []
    for result in pooled:
        delay, server = result["delay_ms"], result.get("server", {})
        speech = result.get("speech", {})
        rows.append(
            (
                result["scenario"],
                f"{result['answered']}/{result['calls'] * result['runs']}",
                *(f"{delay[name]:.1f}" if delay else "-" for name in ("p50", "p95", "p99", "max")),
                result["rtp"]["lost"],
                speech.get("gaps_over_40_ms", result["rtp"]["gaps_over_40_ms"]),
                f"{result['setup_ms']['p95']:.1f}" if result["setup_ms"] else "-",
                server.get("percent_core_a_call", "-"),
                server.get("pss_mb_a_call", "-"),
            )
        )
    cells = "".join(f"<tr>{''.join(f'<td>{html.escape(str(cell))}' for cell in row)}" for row in rows)
    return f"<div class=wide><table><tr>{''.join(f'<th>{name}' for name in head)}{cells}</table></div>"


def _figure(title: str, x: str, y: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=_SIZE_IN, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e9ec")
    axes.set_axisbelow(True)
    return figure, axes


def _svg(figure: Figure) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def _histogram(runs: list[dict[str, Any]]) -> str:
    values = np.array([delay for run in runs for delay in report.delays(run)])
    figure, axes = _figure("Added delay", "ms", "share, %")
    if values.size:
        # a few far off are told of, and do not squeeze the rest
        low, high = float(values.min()), float(np.percentile(values, 99.5)) + 2
        step = max(0.5, round((high - low) / 60, 1))
        edges = np.arange(np.floor(low), high + step, step)
        weights = np.full(values.size, 100 / values.size)
        axes.hist(values, edges, weights=weights, color=_BLUE)
        top = axes.get_ylim()[1]
        for share, height in ((50, 1.0), (99, 0.92)):
            at = float(np.percentile(values, share))
            axes.axvline(at, color=_ORANGE, linewidth=1.2)
            axes.text(at, height * top, f" p{share} {at:.1f}", color=_ORANGE, va="top", fontsize=9)
        if (beyond := int(np.sum(values > edges[-1]))) > 0:
            axes.set_xlabel(f"ms ({beyond} of {values.size} beyond the right edge, up to {values.max():.0f})")
    return _svg(figure)


def _over_time(runs: list[dict[str, Any]]) -> str:
    points = np.array([point for run in runs for point in _points(run)])
    figure, axes = _figure("Delay over time, all listeners", "s", "ms")
    if points.size:
        seconds = points[:, 0]
        # at most a hundred places on the axis
        step = max(1.0, float(np.ceil(seconds.max() / 100)))
        slots = np.floor(seconds / step)
        at = np.unique(slots)
        chosen = [points[slots == slot, 1] for slot in at]
        p50, p99 = ([float(np.percentile(values, share)) for values in chosen] for share in (50, 99))
        axes.fill_between(
            at * step, [values.min() for values in chosen], p99, color=_GREY, alpha=0.35, linewidth=0
        )
        axes.plot(at * step, p50, color=_BLUE, label="p50")
        axes.plot(at * step, p99, color=_ORANGE, label="p99", linewidth=1)
        axes.set_ylim(min(0.0, float(points[:, 1].min())), 1.1 * max(p99))
        axes.legend(frameon=False, fontsize=9, loc="lower right")
    return _svg(figure)


def _points(run: dict[str, Any]) -> Iterator[tuple[float, float]]:
    """(second, delay in ms)."""
    for pair in run.get("speech_raw", []):
        yield from zip(pair["at_s"], pair["delay_ms"], strict=True)
    for at_s, _, delay_ms in run["bursts_raw"]:
        yield at_s, delay_ms


def _size_figures(pooled: list[dict[str, Any]]) -> Iterator[str]:
    """CPU, memory and delay against the number of calls, where one scenario ran with several."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for result in pooled:
        if "server" in result and result["delay_ms"]:
            kinds.setdefault(result["scenario"].partition(":")[0], []).append(result)
    series = {
        kind: sorted(results, key=lambda result: result["calls"])
        for kind, results in kinds.items()
        if kind in ("room", "echo", "speech") and len({result["calls"] for result in results}) > 1
    }
    for title, unit, table, key in (
        ("CPU", "cores", "server", "cores"),
        ("CPU a call", "% of a core", "server", "percent_core_a_call"),
        ("Memory a call", "MB", "server", "pss_mb_a_call"),
        ("Delay p99", "ms", "delay_ms", "p99"),
    ):
        if not series:
            return
        figure, axes = _figure(title, "calls", unit)
        for (kind, results), color in zip(series.items(), (_BLUE, _ORANGE, _GREY), strict=False):
            values = [result[table][key] for result in results]
            axes.plot([result["calls"] for result in results], values, marker="o", color=color, label=kind)
        low, high = axes.get_ylim()
        axes.set_ylim(min(0.0, low), 1.15 * high)
        axes.legend(frameon=False, fontsize=9, loc="upper left")
        yield _svg(figure)
