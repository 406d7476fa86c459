# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs SIPp scenarios. SIPp speaks SIP; the audio is that of an RtpPeer whose port the scenario names.

Keys of the scenarios: [caller], [callee], [rtp_port]; more by `keys`.
"""

import itertools
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from tests.support.ports import free_port, free_udp_range
from tests.support.waiting import wait_until

SCENARIOS = Path(__file__).resolve().parents[1] / "sipp_scenarios"
_runs = itertools.count(1)


class Sipp:
    """One running SIPp process."""

    def __init__(
        self,
        scenario: str,
        directory: Path,
        *,
        remote: tuple[str, int] | None = None,
        host: str = "127.0.0.1",
        port: int | None = None,
        rtp_port: int = 9,
        caller: str = "tester",
        callee: str = "echo",
        keys: Mapping[str, str] | None = None,
        transport: str = "u1",
        duration_ms: int = 1000,
        calls: int = 1,
        rate: float = 1.0,
        credentials: tuple[str, str] | None = None,
        injection: Sequence[Sequence[str]] = (),
        timeout_s: int = 30,
    ) -> None:
        """Starts `scenario`, a name in tests/sipp_scenarios; with `remote` it calls, else it waits."""
        program = shutil.which("sipp")
        assert program, "sipp is not installed (Debian: sip-tester)"
        self.scenario = scenario
        self.host = host
        self.port = port or free_port()
        self.timeout_s = timeout_s
        self._base = directory / f"{scenario}_{next(_runs)}"
        directory.mkdir(parents=True, exist_ok=True)
        literal = f"[{host}]" if ":" in host else host
        command = [program]
        if remote is not None:
            remote_host = f"[{remote[0]}]" if ":" in remote[0] else remote[0]
            command.append(f"{remote_host}:{remote[1]}")
        options = {
            "-sf": SCENARIOS / f"{scenario}.xml",
            "-i": literal,
            "-p": self.port,
            "-mi": literal,
            # SIPp opens audio ports too, although none of its own is used.
            "-mp": free_udp_range(4),
            "-t": transport,
            "-m": calls,
            "-l": calls,
            "-r": f"{rate:g}",
            "-d": duration_ms,
            "-timeout": f"{timeout_s}s",
        }
        command += [str(part) for option in options.items() for part in option]
        command += ["-bind_local", "-timeout_error", "-nostdin"]
        command += ["-key", "rtp_port", str(rtp_port), "-key", "caller", caller, "-key", "callee", callee]
        for name, value in (keys or {}).items():
            command += ["-key", name, value]
        if credentials is not None:
            command += ["-au", credentials[0], "-ap", credentials[1]]
        if injection:
            rows = Path(f"{self._base}.csv")
            rows.write_text("SEQUENTIAL\n" + "".join(";".join(row) + "\n" for row in injection))
            command += ["-inf", str(rows)]
        self._messages = Path(f"{self._base}_messages.log")
        self._errors = Path(f"{self._base}_errors.log")
        # SIPp writes its tables of figures where it is started.
        command += ["-trace_msg", "-message_file", str(self._messages)]
        command += ["-trace_err", "-error_file", str(self._errors)]
        self._screen = Path(f"{self._base}_screen.log")
        with self._screen.open("wb") as screen:
            self.process = subprocess.Popen(
                command,
                cwd=directory,
                env={**os.environ, "TERM": "xterm"},
                stdin=subprocess.DEVNULL,
                stdout=screen,
                stderr=subprocess.STDOUT,
            )

    def wait_listening(self) -> None:
        """Until its SIP port is open, for a callee."""

        def listens() -> bool:
            assert self.process.poll() is None, self.report()
            sockets = psutil.Process(self.process.pid).net_connections(kind="inet")
            return any(item.laddr and item.laddr.port == self.port for item in sockets)

        wait_until(listens, 5.0, f"{self.scenario} listens")

    def messages(self) -> str:
        """All messages sent and received so far."""
        return self._messages.read_text("utf-8", "replace") if self._messages.exists() else ""

    def report(self) -> str:
        """What to read when it failed."""
        parts = [f"{self.scenario}: exit code {self.process.returncode}"]
        if self._errors.exists():
            parts.append(self._errors.read_text("utf-8", "replace")[-2000:])
        parts.append(self.messages()[-6000:])
        if len(parts[-1]) < 10:
            parts.append(self._screen.read_text("utf-8", "replace")[-1500:])
        return "\n".join(parts)

    def wait(self) -> None:
        """Until the scenario is over; it must have gone as written."""
        try:
            code = self.process.wait(self.timeout_s + 5)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"SIPp hangs: {self.report()}") from None
        assert code == 0, self.report()

    def kill(self) -> None:
        """A sudden death: no BYE, no answer, closed ports."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.kill()
            error.add_note(self.report())
        else:
            self.wait()
