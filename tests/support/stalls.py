# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the machine itself stood still while a test ran: a guest whose host gave its processor to others.

No real-time audio survives that, so a test that fails in such a time has judged the machine and not the
product, and is run again. A process of its own, ``python -m tests.support.stalls FILE``, has one thread a
processor, which sleeps and looks whether it was woken in time, where it may before anything else that runs.
"""

import contextlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple, TextIO

STALL_S = 0.010
TRIES_AFTER_STALL = 2
_SLEEP_S = 0.005
_STOLEN_SHARE = 0.01  # of the time of all processors


class Mark(NamedTuple):
    """A moment, and what the host had taken by then."""

    at_s: float
    stolen_s: float


class StallWatch:
    """Watches from its making until `close`."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._file.touch()
        self._process = subprocess.Popen([sys.executable, "-m", "tests.support.stalls", str(file)])
        self.begin()

    def begin(self) -> Mark:
        """What is asked about begins here."""
        self._begun = Mark(time.monotonic(), _stolen_s())
        return self._begun

    def begin_at(self, mark: Mark) -> None:
        """What is asked about began then."""
        self._begun = mark

    def has_stalled(self) -> bool:
        """Since `begin`: a processor did not wake us for STALL_S, or the host took more than a hundredth."""
        now_s = time.monotonic()
        lines = self._file.read_text().splitlines()
        if any(float(line) >= self._begun.at_s for line in lines):
            return True
        cores = os.cpu_count() or 1
        return _stolen_s() - self._begun.stolen_s > _STOLEN_SHARE * cores * (now_s - self._begun.at_s)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._file.unlink()


def _stolen_s() -> float:
    """What the host has taken of all processors since the start (proc(5), /proc/stat)."""
    fields = Path("/proc/stat").read_text().split(maxsplit=9)
    return int(fields[8]) / os.sysconf("SC_CLK_TCK")


def _watch(core: int, file: TextIO) -> None:
    os.sched_setaffinity(0, [core])  # 0: this thread
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(os.sched_get_priority_max(os.SCHED_FIFO)))
    while True:
        start_s = time.monotonic()
        time.sleep(_SLEEP_S)
        end_s = time.monotonic()
        if end_s - start_s > _SLEEP_S + STALL_S:
            print(end_s, file=file, flush=True)


def _main(file: Path) -> None:
    parent = os.getppid()
    with file.open("a") as stalls:
        for core in sorted(os.sched_getaffinity(0)):
            threading.Thread(target=_watch, args=[core, stalls], daemon=True).start()
        while os.getppid() == parent:  # who was killed cannot end us
            time.sleep(1.0)


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
