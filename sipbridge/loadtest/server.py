# SPDX-License-Identifier: GPL-3.0-or-later
"""The bridge under test: `sipbridge serve` with a configuration of its own, and what it uses."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sipbridge.loadtest.generator import LoadtestError

_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
_START_S = 20.0
_SETTINGS = """
[sip]
listen = ["127.0.0.1:{sip_port}"]
transports = ["udp"]
max_calls = 1000
rtp_ports = [20000, 29999]

[http]
listen = "127.0.0.1:{http_port}"

[log]
level = "warning"

[webrtc]
bind_address = "127.0.0.1"

[[trunk]]
name = "load"
allowed_addresses = ["127.0.0.0/8"]

[[agent]]
name = "echo"
url = "ws://127.0.0.1:{agent_port}"
sample_rate_hz = 8000
parameters = {{ caller = "{{caller}}" }}

{more}
[[rule]]
name = "echo"
to = "echo*"
target = "echo:"

[[rule]]
name = "agent"
to = "agent*"
target = "agent:echo"

[[rule]]
name = "room"
target = "local:{{callee}}"
"""


@dataclass(frozen=True)
class Usage:
    """What a process had used by some moment."""

    at_s: float
    cpu_s: float
    threads_s: dict[str, float]  # by thread, "NAME/TID"
    switches: dict[str, int]  # voluntary context switches: how often each thread was woken
    machine_busy_s: float  # all processes, all cores
    rss_bytes: int
    pss_bytes: int

    @classmethod
    def of(cls, pid: int) -> "Usage":
        threads: dict[str, float] = {}
        switches: dict[str, int] = {}
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):  # it ended just now
                stat = (task / "stat").read_text()
                name = f"{stat[stat.index('(') + 1 : stat.rindex(')')]}/{task.name}"
                fields = stat[stat.rindex(")") + 2 :].split()
                threads[name] = (int(fields[11]) + int(fields[12])) / _TICKS_A_SECOND
                status = (task / "status").read_text()
                switches[name] = int(status.split("\nvoluntary_ctxt_switches:")[1].split()[0])
        process = Path(f"/proc/{pid}/stat").read_text()
        fields = process[process.rindex(")") + 2 :].split()
        busy = [int(value) for value in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
        memory = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
        )
        return cls(
            at_s=time.monotonic(),
            cpu_s=(int(fields[11]) + int(fields[12])) / _TICKS_A_SECOND,
            threads_s=threads,
            switches=switches,
            machine_busy_s=(sum(busy[:3]) + sum(busy[5:7])) / _TICKS_A_SECOND,
            rss_bytes=int(memory["Rss"].split()[0]) * 1024,
            pss_bytes=int(memory["Pss"].split()[0]) * 1024,
        )


@dataclass(frozen=True)
class Server:
    pid: int
    sip_port: int
    url: str  # of its API
    token: str
    agent_port: int  # where it looks for the agent
    log: Path


def _free_port(kind: socket.SocketKind) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def serve(more: str = "") -> Iterator[Server]:
    """A server that is ready, until the end of the block; `more` is for its configuration, rules too."""
    sip_port = _free_port(socket.SOCK_DGRAM)
    http_port, agent_port = (_free_port(socket.SOCK_STREAM) for _ in range(2))
    with tempfile.TemporaryDirectory(prefix="sipbridge-load-") as name:
        directory = Path(name)
        config = directory / "sipbridge.toml"
        settings = _SETTINGS.format(sip_port=sip_port, http_port=http_port, agent_port=agent_port, more=more)
        config.write_text(settings)
        log = directory / "log"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SIPBRIDGE_")}
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "sipbridge", "serve", "--config", str(config)],
                stdout=out,
                stderr=out,
                env={**environment, "XDG_STATE_HOME": name},
            )
        try:
            _await_ready(process, http_port, log)
            token = (directory / "sipbridge" / "api-token").read_text().strip()
            yield Server(process.pid, sip_port, f"http://127.0.0.1:{http_port}", token, agent_port, log)
        finally:
            for _ in range(2):  # the second ends it without waiting for calls
                if process.poll() is None:
                    process.send_signal(signal.SIGTERM)
                    time.sleep(0.2)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _await_ready(process: "subprocess.Popen[bytes]", http_port: int, log: Path) -> None:
    until = time.monotonic() + _START_S
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{http_port}/readyz"):
            return
        time.sleep(0.05)
    raise LoadtestError(f"the bridge under test did not start:\n{log.read_text()}")
