# SPDX-License-Identifier: GPL-3.0-or-later
"""Ports that come and go under the running clock."""

import subprocess
import sys
from pathlib import Path

from tests.conftest import MakeCall
from tests.support import audio, toml
from tests.support.ports import free_port, free_udp_range


def test_ten_thousand_ports_disturb_no_call(tmp_path: Path, call: MakeCall) -> None:
    """A tone goes on without a gap or a splice, and only the call's own port is left."""
    sip_port, first = free_port(), free_udp_range(20)
    config = tmp_path / "sipbridge.toml"
    config.write_text(
        toml.dump(
            {
                "sip": {"listen": [f"127.0.0.1:{sip_port}"], "rtp_ports": [first, first + 19]},
                "trunk": [{"name": "line", "allowed_addresses": ["127.0.0.1"]}],
                "rule": [{"name": "tone", "target": "tone:1000"}],
            }
        )
    )
    with subprocess.Popen(
        [sys.executable, "-m", "tests.support.churn", str(config)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        party = call("x", server=("127.0.0.1", sip_port))
        since_s = party.rtp.wait_packets(25)
        server.stdin.write("go\n")
        server.stdin.flush()
        assert server.stdout.readline() == "1\n"
        party.rtp.wait_packets(25)
        heard = party.rtp.heard(since_s)
        party.hang_up()
        server.stdin.close()
        assert server.wait(timeout=20) == 0
    assert audio.gaps_ms(heard, 8000) == []
    assert audio.phase_jumps(heard, 8000, 1000) == []
    assert party.rtp.lost() == 0
