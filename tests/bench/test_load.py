# SPDX-License-Identifier: GPL-3.0-or-later
"""The load generator measures what it says it measures."""

import statistics

from bench import load
from tests.support.ports import free_udp_range


def test_a_wire_adds_no_delay() -> None:
    """Without a bridge each burst is heard once, at the moment it was sent."""
    calls = 10
    port = free_udp_range(2 * calls)
    result = load.run(
        [
            "--mode",
            "wire",
            "--calls",
            str(calls),
            "--settle",
            "0.1",
            "--seconds",
            "2",
            "--rtp-port",
            str(port),
        ],
        {},
    )
    delays = [delay_ms for _, _, delay_ms in result["bursts"]]
    assert len(delays) == result["bursts_sent"] >= calls // 2
    assert result["bursts_unasked"] == 0
    assert abs(statistics.median(delays)) < 0.3
    assert all(leg["packets"] == leg["expected"] > 0 for leg in result["received"])
