# SPDX-License-Identifier: GPL-3.0-or-later
"""The watch for a machine that stands still."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.support import stalls
from tests.support.stalls import StallWatch
from tests.support.waiting import wait_until


def stall(file: Path, end_s: float) -> None:
    with file.open("a") as lines:
        print(end_s, file=lines)


@pytest.fixture
def stolen_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the host is said to have taken."""
    taken = [0.0]
    monkeypatch.setattr(stalls, "_stolen_s", lambda: taken[0])
    return taken


@pytest.mark.usefixtures("stolen_s")
def test_a_stall_counts_from_the_beginning_on(tmp_path: Path) -> None:
    file = tmp_path / "stalls"
    watch = StallWatch(file)
    try:
        stall(file, time.monotonic())
        assert watch.has_stalled()
        watch.begin()
        file.write_text("")  # so that one of this machine's own does not count
        stall(file, time.monotonic() - 60)
        assert not watch.has_stalled()
    finally:
        watch.close()
    assert not file.exists()


def test_what_the_host_takes_counts(tmp_path: Path, stolen_s: list[float]) -> None:
    file = tmp_path / "stalls"
    watch = StallWatch(file)
    watch.close()
    file.touch()
    time.sleep(0.05)
    assert not watch.has_stalled()
    stolen_s[0] += 10
    assert watch.has_stalled()
    watch.begin()
    assert not watch.has_stalled()


def test_a_process_that_stood_still_is_noticed(tmp_path: Path) -> None:
    """Stopped and let go on, which is what it looks like from within."""
    file = tmp_path / "stalls"
    watch = StallWatch(file)
    try:
        pid = watch._process.pid
        wait_until(lambda: len(os.listdir(f"/proc/{pid}/task")) > 1, 5.0, "its threads run")
        watch.begin()
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.1)
        os.kill(pid, signal.SIGCONT)
        wait_until(watch.has_stalled, 5.0, "the stall is seen")
    finally:
        watch.close()
