# SPDX-License-Identifier: GPL-3.0-or-later
"""What becomes of results: one of several runs, a page of plots, a table in the documentation."""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import plots, quality, report, run, table
from bench.scenarios import DEFAULT, PUBLISHED, Scenario
from sipbridge.loadtest import speech
from tests.support.ports import free_udp_range


def _result(scenario: str, delay_ms: float = 20.0, **more: Any) -> dict[str, Any]:
    load = Scenario.parse(scenario).load
    return {
        "scenario": scenario,
        "load": run._as_json(load),
        "calls": load.calls,
        "answered": load.calls,
        "failures": {},
        "setup_raw": [2.0, 3.0],
        "setup_ms": {"p50": 2.5, "p95": 3.0, "p99": 3.0},
        "delay_ms": dict.fromkeys(("min", "p50", "p95", "p99", "max"), delay_ms),
        "bursts": {"sent": 10, "heard": 10, "unasked": 0, "dropped": 0},
        "rtp": {"lost": 0, "gaps_over_40_ms": 0, "longest_gap_ms": 25.0},
        "generator": {"cores": 0.1, "send_late_ms": {"p99": 0.4}},
        "measured_s": 15.0,
        "bursts_raw": [[float(second), 1, delay_ms] for second in range(15)],
        "server": {
            "cores": 0.1,
            "percent_core_a_call": 0.1,
            "machine_busy_cores": 0.2,
            "rss_mb_a_call": 0.1,
            "pss_mb_a_call": 0.1,
        },
        **more,
    }


def _results(*runs: dict[str, Any]) -> dict[str, Any]:
    return {
        "date": "2026-01-02T03:04:05+00:00",
        "command": ["python", "-m", "bench", "room:2"],
        "machine": {"cores": 2, "cpu": "A <fast> one", "kernel": "6.1", "python": "3.13.0"},
        "restarts": 2,
        "runs": list(runs),
        "pooled": report.pool_all(list(runs)),
    }


def test_first_audio_of_an_agent() -> None:
    """The worst of several runs; in the lines and in the table."""
    runs = [
        _result("agent:50", first_audio_ms={"p50": 4.0, "p99": p99_ms, "max": 9.0}) for p99_ms in (7.0, 8.5)
    ]
    results = _results(*runs)
    assert results["pooled"][0]["first_audio_ms"]["p99"] == 8.5
    assert any("first audio at the agent after 4.0 / 7.0 / 9.0 ms" in line for line in report.lines(runs[0]))
    assert "first audio p99 8.5 ms" in table.text([results])


@pytest.mark.parametrize("text", [*DEFAULT, *PUBLISHED, "mixed:22", "jitter:60:8", "wire:10"])
def test_scenarios(text: str) -> None:
    """All that is run by default can be parsed."""
    assert str(Scenario.parse(text)) == text


@pytest.mark.parametrize("text", ["room", "room:x", "room:3", "mixed:100", "what:5", "jitter", "loss:1:2:3"])
def test_bad_scenarios(text: str) -> None:
    """What cannot be run is an error of the command line."""
    with pytest.raises(argparse.ArgumentTypeError, match=text):
        Scenario.parse(text)


def test_runs_are_pooled() -> None:
    """Delays of all restarts count, and the median of what was used."""
    [pooled] = report.pool_all([_result("room:2", delay_ms) for delay_ms in (10, 20, 90)])
    assert pooled["runs"] == 3
    assert pooled["delay_ms"]["p50"] == 20
    assert pooled["delay_ms"]["max"] == 90
    assert pooled["bursts"]["sent"] == 30
    assert pooled["rtp"]["longest_gap_ms"] == 25


def test_the_page_stands_alone() -> None:
    """Plots of each scenario, and of cost against calls; nothing is loaded from elsewhere."""
    page = plots.page(_results(_result("room:2"), _result("room:100"), _result("echo:100")))
    assert page.count("<svg") == 4 + 2 * 3
    assert "A &lt;fast&gt; one" in page
    assert "src=" not in page
    assert 'href="http' not in page


def test_the_table_replaces_its_place_alone(tmp_path: Path) -> None:
    """Between two comments; a bar that is missed is said to be."""
    page, results = tmp_path / "page.md", tmp_path / "results.json"
    page.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    results.write_text(json.dumps(_results(_result("room:2", 14.0), _result("echo:100", 99.0))))
    for _ in range(2):
        table.main([str(results), "--page", str(page)])
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    rows = {line.split(" | ")[0]: line for line in text.splitlines()}
    assert rows["| 2 calls"].endswith("| aim reached |")
    assert rows["| echo of 100 calls, round trip"].endswith("| **missed** |")
    assert "not measured" in rows["| 100 calls"]
    page.write_text("no place")
    with pytest.raises(SystemExit, match="no place for figures"):
        table.main([str(results), "--page", str(page)])


def test_the_documentation_has_a_place_for_figures() -> None:
    text = table.PAGE.read_text()
    assert text.count(table.BEGIN) == text.count(table.END) == 1


def test_bad_lines_cost_quality() -> None:
    """PESQ falls with loss, less where it is concealed, and not at all by a delay."""
    words = speech.samples_8k(speech.prepare())[: 17 * 8000]
    rng = np.random.default_rng(1)
    lost = [frame for frame in range(len(words) // 160) if rng.random() < 0.1]
    decoded = quality.g711(words)
    dropped = decoded.copy()
    for frame in lost:
        dropped[160 * frame : 160 * (frame + 1)] = 0
    clean, concealed, holes = (
        quality.mean_pesq(words, heard) or 0.0 for heard in (decoded, quality.conceal(decoded, lost), dropped)
    )
    assert clean > concealed + 0.5 > holes + 0.5
    late = np.concatenate((np.zeros(700, np.int16), decoded))
    scores = quality.compare(words, late, [])
    assert scores is not None
    assert scores["bridge"] == pytest.approx(scores["codec_alone"], abs=0.05)


def test_a_whole_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the command line to the files, with the generator alone."""
    monkeypatch.setattr(run, "RESULTS", tmp_path)
    run.main(["wire:4", "--seconds", "1", "--rtp-port", str(free_udp_range(8))])
    assert "wire:4" in capsys.readouterr().out
    [results] = tmp_path.glob("*.json")
    [pooled] = json.loads(results.read_text())["pooled"]
    assert pooled["rtp"]["lost"] == 0
    assert results.with_suffix(".html").exists()
