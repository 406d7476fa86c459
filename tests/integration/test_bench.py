# SPDX-License-Identifier: GPL-3.0-or-later
"""`sipbridge bench`: how many calls a machine carries."""

from pathlib import Path

import pytest

from sipbridge.loadtest import capacity, measure
from sipbridge.loadtest.measure import Load
from tests.support.command import environment_of, lone_environment, run
from tests.support.ports import free_udp_range
from tests.support.server import Server


def test_against_a_running_bridge(server: Server) -> None:
    """Calls are made, and what was seen is told as JSON; the bridge has none left afterwards."""
    result = run(
        "bench",
        "--target",
        f"sip:room-bench{{room}}@127.0.0.1:{server.sip_port}",
        "--max-calls",
        "4",
        "--seconds",
        "2",
        "--p99-limit",
        "5000",
        "--rtp-port",
        str(free_udp_range(8)),
        "--json",
        environment=environment_of(server),
    )
    found = result.json()
    [step] = found["steps"]
    assert step["calls"] == step["answered"] == 4
    assert 0 < step["delay_ms"]["p50"] < 5000
    assert step["setup_ms"]["p50"] > 0
    # a machine under test may be too busy for a good call, and then has to say so
    assert result.code == (1 if step["problems"] else 0)
    assert found["calls"] == (0 if step["problems"] else 4)


def test_with_a_bridge_of_its_own(tmp_path: Path) -> None:
    """Without a target it starts one, whose CPU and memory it tells."""
    result = run(
        "bench",
        "--max-calls",
        "2",
        "--seconds",
        "1",
        "--p99-limit",
        "5000",
        "--rtp-port",
        str(free_udp_range(8)),
        environment=lone_environment(tmp_path),
    )
    assert "% CORE/CALL" in result.out
    [line] = [line for line in result.out.splitlines() if line.split()[:1] == ["2"]]
    assert "-" not in line.split()[:6]
    assert "This machine carries 2 calls" in result.out or "Not even" in result.out


def test_calls_with_an_agent() -> None:
    """Each hears itself by way of the agent, which knows when it heard whom first."""
    load = Load(mode="agent", calls=2, seconds=2, settle_s=0.5, rtp_port=free_udp_range(4))
    result = measure.run(load)
    assert result["answered"] == 2
    assert result["bursts"]["heard"] >= 2
    assert result["first_audio_ms"]["min"] > 0


def test_calls_with_webrtc_members() -> None:
    """Each hears itself by way of the member that waits in its room."""
    load = Load(mode="webrtc", calls=2, seconds=2, settle_s=0.5, rtp_port=free_udp_range(4))
    result = measure.run(load)
    assert result["answered"] == 2
    assert result["bursts"]["heard"] >= 2


def test_a_bridge_that_refuses(server: Server) -> None:
    """The reason is told, with what the bridge said."""
    result = run(
        "bench",
        "--target",
        f"sip:nobody{{room}}@127.0.0.1:{server.sip_port}",
        "--max-calls",
        "2",
        "--rtp-port",
        str(free_udp_range(4)),
        environment=environment_of(server),
    )
    assert result.code == 1
    assert "404" in result.err


def test_no_port_for_callers(server: Server) -> None:
    """A port that is taken is named."""
    result = run(
        "bench",
        "--target",
        f"sip:room-bench{{room}}@127.0.0.1:{server.sip_port}",
        "--max-calls",
        "2",
        "--rtp-port",
        str(server.sip_port),
        environment=environment_of(server),
    )
    assert result.code == 1
    assert f":{server.sip_port}" in result.err


@pytest.mark.parametrize(
    ("limit", "sizes"), [(2, [2]), (20, [20]), (21, [20]), (60, [20, 50, 60]), (101, [20, 50, 100])]
)
def test_sizes(limit: int, sizes: list[int]) -> None:
    """Numbers of calls grow up to the limit, and fill their rooms."""
    assert capacity.sizes_to(limit) == sizes


def test_what_is_no_good_is_told() -> None:
    """Everything that a user would notice ends the climb."""
    result = {
        "answered": 18,
        "failures": {"503": 2},
        "ended_early": 1,
        "setup_ms": {},
        "delay_ms": {"p99": 61.0},
        "bursts": {"sent": 100, "heard": 99},
        "rtp": {"lost": 3, "gaps_over_40_ms": 2, "longest_gap_ms": 55.0},
    }
    step = capacity.judge(20, result, p99_limit_ms=60.0)
    text = "; ".join(step.problems)
    for word in ("2 calls", "503", "1 calls ended", "1 of 100", "3 packets", "55 ms", "above 60 ms"):
        assert word in text
