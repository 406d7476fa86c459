# SPDX-License-Identifier: GPL-3.0-or-later
"""The load generator measures what it says it measures: on a wire, where the answer is known."""

import concurrent.futures
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sipbridge.loadtest import generator, measure, speech
from sipbridge.loadtest.measure import Load
from tests.conftest import Measured
from tests.support.ports import free_udp_range

type Raw = dict[str, Any]


def _wire(**more: Any) -> Load:
    load = {"mode": "wire", "calls": 2, "seconds": 4, "settle_s": 0.1, **more}
    return Load(rtp_port=free_udp_range(2 * load["calls"]), **load)


LOADS = {
    **{codec: _wire(calls=10, seconds=2, codecs=codec) for codec in ("PCMU", "PCMA", "G722", "opus")},
    "many": _wire(calls=40, seconds=1),
    "drift": _wire(calls=4, drift_ppm=20_000),
    "seed 5": _wire(loss_percent=20, seed=5),
    "seed 5 again": _wire(loss_percent=20, seed=5),
    "seed 6": _wire(loss_percent=20, seed=6),
    "out of order": _wire(calls=4, reorder_percent=5, duplicate_percent=10),
    "speech": _wire(calls=8, codecs="PCMU*2,PCMA*2,G722*2,opus*2", is_speech=True),
    "late speech": _wire(jitter_ms=40, is_speech=True),
    "lost speech": _wire(loss_percent=30, loss_burst=4, seed=3, is_speech=True),
}


@pytest.fixture(scope="module")
def built() -> None:
    speech.prepare()
    for load in LOADS.values():
        generator.build(load.codec_names)


@pytest.fixture
def runs(measured: Measured, built: None) -> Mapping[str, Raw]:
    """The raw result of each, all run at the same time: they take little."""
    return measured(_run_all)


def _run_all() -> Mapping[str, Raw]:
    with concurrent.futures.ThreadPoolExecutor(len(LOADS)) as pool:
        results = pool.map(
            lambda load: generator.run(load.arguments(), {}, codecs=load.codec_names), LOADS.values()
        )
        return dict(zip(LOADS, results, strict=True))


@pytest.mark.parametrize(("codec", "exact_ms"), [("PCMU", 0.3), ("PCMA", 0.3), ("G722", 0.5), ("opus", 0.8)])
def test_a_wire_adds_no_delay(codec: str, exact_ms: float, runs: Mapping[str, Raw]) -> None:
    """Each burst is heard once, at the moment it was sent; a codec's own delay is no bridge's."""
    result = runs[codec]
    delays = [delay_ms for _, _, delay_ms in result["bursts"]]
    assert len(delays) == result["bursts_sent"] >= 5
    assert result["bursts_unasked"] == 0
    assert abs(statistics.median(delays)) < exact_ms
    assert all(leg["packets"] == leg["expected"] > 0 for leg in result["received"])


def test_callers_are_spread_over_20_ms(runs: Mapping[str, Raw]) -> None:
    """Of forty callers, each two milliseconds of the twenty have at least one."""
    phases = runs["many"]["phases_ms"]
    assert len(phases) == 40
    assert np.all(np.histogram(phases, 10, (0, 20))[0] > 0)


def test_clocks_differ_as_asked(runs: Mapping[str, Raw]) -> None:
    """Every second caller is faster by the drift and the others slower, in packets sent."""
    # each hears the other of its pair
    packets = [leg["packets"] / 200 for leg in runs["drift"]["received"]]
    assert packets == pytest.approx([0.98, 1.02] * 2, abs=0.012)


def test_speech_is_followed_on_a_wire(runs: Mapping[str, Raw]) -> None:
    """Continuous speech reads 0 ms too, with nothing damaged and no gap, in every codec."""
    heard = runs["speech"]["speech"]
    assert [pair["codec"] for pair in heard] == ["PCMU", "PCMA", "G722", "opus"]
    for pair in heard:
        assert pair["spoken"] > 50
        assert pair["damaged"] == pair["unmatched"] == 0
        assert pair["gap_ms"] == []
        assert abs(statistics.median(pair["delay_ms"])) < 0.8


def test_jitter_is_delay(runs: Mapping[str, Raw]) -> None:
    """What a line holds packets back is counted, from the moment at which they should have left."""
    [pair] = runs["late speech"]["speech"]
    assert 15 < statistics.median(pair["delays_ms"]) < 35
    assert 35 < np.percentile(pair["delays_ms"], 95) < 45
    assert pair["damaged"] == 0


def test_lost_speech_is_a_gap(runs: Mapping[str, Raw]) -> None:
    """With runs of packets lost and nothing to conceal it, there are gaps and damaged pieces."""
    [pair] = runs["lost speech"]["speech"]
    assert pair["gap_ms"]
    assert min(pair["gap_ms"]) > 40
    assert 0.1 < pair["damaged"] / pair["spoken"] < 0.6
    assert 0.15 < len(pair["lost_frames"]) / (4 * 50) < 0.6


def test_the_same_seed_loses_the_same(runs: Mapping[str, Raw]) -> None:
    """A run can be repeated: by its seed a line loses the same packets, by another one others."""
    one, again, other = (runs[name]["rtp_dropped"] for name in ("seed 5", "seed 5 again", "seed 6"))
    assert one == pytest.approx(again, abs=3)  # a run may have a packet more
    assert one > 50
    assert other > 50


def test_reordering_and_doubling(runs: Mapping[str, Raw]) -> None:
    """Late and doubled packets arrive so; none is lost."""
    rtp = measure.summarize(LOADS["out of order"], runs["out of order"], {})["rtp"]
    assert rtp["lost"] <= 4  # on its way when the run ended
    assert rtp["late_or_twice"] / rtp["sent"] == pytest.approx(0.15, abs=0.06)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who lacks what a codec needs is told what to install."""
    monkeypatch.setitem(generator.LIBRARIES, "g722", ("no-such-module", "libspandsp-dev"))
    with pytest.raises(generator.LoadtestError, match="libspandsp-dev"):
        generator.build(["G722"])


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(generator.LoadtestError, match=r"g\+\+"):
        generator.build()


def test_any_sound_file_can_be_said(tmp_path: Path) -> None:
    """What is no sound file is named; without a file there is speech anyway."""
    bad = tmp_path / "words.wav"
    bad.write_text("words")
    with pytest.raises(generator.LoadtestError, match=r"words\.wav"):
        speech.prepare(bad)
    with pytest.raises(generator.LoadtestError, match="none"):
        speech.prepare(tmp_path / "none")


def test_speech_without_a_synthesizer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where espeak-ng is missing, callers say something that is like speech."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("shutil.which", lambda _: None)
    samples = speech.samples_8k(speech.prepare())
    assert len(samples) > 30 * 8000
    loud = np.abs(samples.astype(int)) > 500
    assert 0.2 < np.mean(loud) < 0.9
