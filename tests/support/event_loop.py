# SPDX-License-Identifier: GPL-3.0-or-later
"""An event loop whose time stands still until a test lets it pass: no waiting, and no race with a timer."""

import asyncio
import functools
import time
from collections.abc import Callable, Coroutine
from typing import Any

_ROUNDS = 30  # of the loop; more than any chain of callbacks here takes
_LONGEST_S = 10.0  # real seconds, for what a thread does


class StandingLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.now_s = 0.0
        super().__init__()

    def time(self) -> float:
        return self.now_s


def in_event_loop[**P](test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Makes a test of a coroutine function."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        with asyncio.Runner(loop_factory=StandingLoop) as runner:
            runner.run(test(*args, **kwargs))

    return run


async def settle() -> None:
    """Lets everything happen that waits for no time."""
    for _ in range(_ROUNDS):
        await asyncio.sleep(0)


async def pass_time(seconds: float) -> None:
    """Lets time pass, and all that is due happen."""
    await settle()
    loop = asyncio.get_running_loop()
    assert isinstance(loop, StandingLoop)
    loop.now_s += seconds
    await settle()


async def until(happened: Callable[[], object]) -> None:
    """Waits for what a thread does."""
    deadline = time.monotonic() + _LONGEST_S
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        await asyncio.sleep(0)
