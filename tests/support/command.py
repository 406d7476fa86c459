# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the command line as a user does."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.ports import free_port, free_udp_range
from tests.support.server import ROOT, Server, clean_environment


@dataclasses.dataclass(frozen=True)
class Result:
    """What a command left behind."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


def environment_of(server: Server) -> dict[str, str]:
    """The environment in which commands find this server and its token."""
    return {**server.environment, "SIPBRIDGE_HTTP__LISTEN": f"127.0.0.1:{server.http_port}"}


def lone_environment(directory: Path) -> dict[str, str]:
    """An environment in which no server runs."""
    first = free_udp_range(20)
    return {
        **clean_environment(directory / "state"),
        "SIPBRIDGE_HTTP__LISTEN": f"127.0.0.1:{free_port()}",
        "SIPBRIDGE_SIP__RTP_PORTS": f"{first},{first + 19}",
    }


def start(*arguments: str | Path, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """`sipbridge ARGUMENTS` as a process whose output is kept."""
    return subprocess.Popen(
        [sys.executable, "-m", "sipbridge", *map(str, arguments)],
        cwd=ROOT,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], timeout_s: float = 30.0) -> Result:
    """Waits for its end."""
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"{process.args!r} hangs:\n{out}\n{err}") from None
    return Result(process.returncode, out, err)


def run(*arguments: str | Path, environment: Mapping[str, str], timeout_s: float = 30.0) -> Result:
    """`sipbridge ARGUMENTS`, to its end."""
    return finish(start(*arguments, environment=environment), timeout_s)
