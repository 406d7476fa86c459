# SPDX-License-Identifier: GPL-3.0-or-later
"""The load generator measures what it says it measures: on a wire, where the answer is known."""

import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sipbridge.loadtest import generator, measure, speech
from sipbridge.loadtest.measure import Load
from tests.support.ports import free_udp_range


def wire(load: Load, **changes: Any) -> dict[str, Any]:
    """The raw result of a run without a bridge."""
    arguments = load.arguments()
    arguments[arguments.index("--rtp-port") + 1] = str(free_udp_range(2 * load.calls))
    return generator.run(arguments, {}, codecs=load.codec_names)


def bursts(codecs: str = "PCMU", calls: int = 10, seconds: float = 2, **more: Any) -> dict[str, Any]:
    return wire(Load(mode="wire", calls=calls, codecs=codecs, seconds=seconds, settle_s=0.1, **more))


def words(seconds: float = 4, calls: int = 2, **more: Any) -> list[dict[str, Any]]:
    load = Load(mode="wire", calls=calls, seconds=seconds, settle_s=0.1, is_speech=True, **more)
    heard: list[dict[str, Any]] = wire(load)["speech"]
    return heard


@pytest.mark.parametrize(("codec", "exact_ms"), [("PCMU", 0.3), ("PCMA", 0.3), ("G722", 0.5), ("opus", 0.8)])
def test_a_wire_adds_no_delay(codec: str, exact_ms: float) -> None:
    """Each burst is heard once, at the moment it was sent; a codec's own delay is no bridge's."""
    result = bursts(codec)
    delays = [delay_ms for _, _, delay_ms in result["bursts"]]
    assert len(delays) == result["bursts_sent"] >= 5
    assert result["bursts_unasked"] == 0
    assert abs(statistics.median(delays)) < exact_ms
    assert all(leg["packets"] == leg["expected"] > 0 for leg in result["received"])


def test_callers_are_spread_over_20_ms() -> None:
    """Of forty callers, no two milliseconds of the twenty have none of them."""
    phases = bursts(calls=40, seconds=1)["phases_ms"]
    assert len(phases) == 40
    assert np.all(np.histogram(phases, 10, (0, 20))[0] > 0)


def test_clocks_differ_as_asked() -> None:
    """At 2 % every second caller is faster and the others slower, in packets sent."""
    received = bursts(calls=4, seconds=3, drift_ppm=20_000)["received"]
    # each hears the other of its pair
    assert [leg["packets"] / 150 for leg in received] == pytest.approx([0.98, 1.02] * 2, abs=0.015)


def test_speech_is_followed_on_a_wire() -> None:
    """Continuous speech reads 0 ms too, with nothing damaged and no gap, in every codec."""
    heard = words(codecs="PCMU*2,PCMA*2,G722*2,opus*2", calls=8)
    assert [pair["codec"] for pair in heard] == ["PCMU", "PCMA", "G722", "opus"]
    for pair in heard:
        assert pair["spoken"] > 50
        assert pair["damaged"] == pair["unmatched"] == 0
        assert pair["gap_ms"] == []
        assert abs(statistics.median(pair["delay_ms"])) < 0.8


def test_jitter_is_delay() -> None:
    """What a line holds packets back is counted, from the moment at which they should have left."""
    [pair] = words(jitter_ms=40)
    assert 15 < statistics.median(pair["delays_ms"]) < 35
    assert 35 < max(pair["delays_ms"]) < 42
    assert pair["damaged"] == 0


def test_lost_speech_is_a_gap() -> None:
    """With runs of packets lost and nothing to conceal it, there are gaps, and pieces not as they were said."""
    [pair] = words(loss_percent=30, loss_burst=4, seed=3)
    assert pair["gap_ms"]
    assert min(pair["gap_ms"]) > 40
    assert 0.1 < pair["damaged"] / pair["spoken"] < 0.6
    assert 0.15 < len(pair["lost_frames"]) / (4 * 50) < 0.6


def test_the_same_seed_loses_the_same() -> None:
    """A run can be repeated: by its seed a line loses the same packets, by another one others."""
    one, again, other = (
        bursts(calls=2, seconds=1, loss_percent=20, seed=seed)["rtp_dropped"] for seed in (5, 5, 6)
    )
    assert one == pytest.approx(again, abs=2)  # a run may have a packet more
    assert one > 0
    assert other > 0


def test_reordering_and_doubling() -> None:
    """Late and doubled packets arrive so; none is lost."""
    load = Load(mode="wire", calls=4, seconds=3, settle_s=0.1, reorder_percent=5, duplicate_percent=10)
    rtp = measure.summarize(load, wire(load), {})["rtp"]
    assert rtp["lost"] <= 2  # on its way when the run ended
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
