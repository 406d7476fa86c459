# SPDX-License-Identifier: GPL-3.0-or-later
"""DTMF as keys: what is to be pressed, and what was pressed once though it came twice."""

from collections.abc import Iterator
from dataclasses import dataclass

from sipbridge.events import DtmfMethod

KEYS = frozenset("0123456789*#ABCD")
DIGIT_MS = 160
GAP_MS = 100
PAUSE_MS = 500  # of a "w"
SAME_KEY_S = 0.15  # the same digit by another method within this time is the same key press


@dataclass(frozen=True, slots=True)
class Key:
    """One key to press (`digit` empty: a pause), how long, and how long until the next."""

    digit: str
    duration_ms: int
    total_s: float


def parse_digits(text: str) -> Iterator[Key]:
    """``123w#``: keys of 160 ms with 100 ms between, ``w`` half a second. ValueError names a wrong one."""
    digits = text.upper()
    for digit in digits:
        if digit not in KEYS and digit != "W":
            raise ValueError(
                f"{digit!r} is no key: expected 0-9, A-D, *, # or w for a pause of half a second"
            )
    for digit in digits:
        if digit == "W":
            yield Key("", 0, PAUSE_MS / 1000)
        else:
            yield Key(digit, DIGIT_MS, (DIGIT_MS + GAP_MS) / 1000)


class DigitFilter:
    """Lets a key press through once, though RFC 4733, INFO and the audio may all tell of it."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[DtmfMethod, float]] = {}

    def accept(self, digit: str, method: DtmfMethod, now: float) -> bool:
        """False for the same digit by another method within 150 ms; `now` in seconds."""
        before = self._last.get(digit)
        if before is not None and before[0] != method and now - before[1] < SAME_KEY_S:
            return False
        self._last[digit] = (method, now)
        return True
