# SPDX-License-Identifier: GPL-3.0-or-later
"""Waiting for what another process does, where it offers no event to wait on."""

import time
from collections.abc import Callable


def wait_until[T](probe: Callable[[], T], timeout_s: float, what: str, interval_s: float = 0.05) -> T:
    """Call `probe` until it gives something true, and return that; fail after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = probe()
        if found:
            return found
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what} (last: {found!r})")
        time.sleep(interval_s)
