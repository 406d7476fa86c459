# SPDX-License-Identifier: GPL-3.0-or-later
"""The agents of examples/ as processes, a call to each; and one whose process dies, or stands."""

import asyncio
import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest

from sipbridge.config import AgentConfig, Config
from sipbridge.errors import EndKind
from sipbridge.media.tones import Tone
from tests.support import audio
from tests.support.agents import EXAMPLES, Line, call, program, until, until_hears
from tests.support.ports import free_port

PHONE_HZ = 700.0


def configure(port: int, reconnect_s: float = 10.0) -> Config:
    url = f"ws://127.0.0.1:{port}"
    return Config(agent=(AgentConfig(name="a", url=(url,), reconnect_s=reconnect_s),))


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_they_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 80


def test_echo() -> None:
    """The caller hears itself, and hangs up with a key."""

    async def run(port: int) -> None:
        line = Line(16000)
        line.say(Tone(PHONE_HZ, 16000))
        async with call(Config(), f"ws://127.0.0.1:{port}", line) as (_, connection):
            await until_hears(line, PHONE_HZ, 0.5)
            await connection.send_dtmf("#", 100)
            await until(lambda: line.told)
            assert line.told[0][0] == "hangup"

    port = free_port()
    with program("agent_echo.py", port):
        asyncio.run(run(port))


def test_ivr() -> None:
    """A prompt is interrupted by a key; digits are gathered; a transfer is refused in words; it hangs up."""

    async def run(port: int) -> None:
        line = Line()

        async def hears_speech() -> None:
            await until(lambda: line.is_loud(10))

        async def press(keys: str) -> None:
            for key in keys:
                before = len(line.clears)
                await connection.send_dtmf(key, 100)
                await until(lambda: len(line.clears) > before)  # noqa: B023

        async with call(Config(), f"ws://127.0.0.1:{port}", line) as (_, connection):
            await hears_speech()
            await press("1")
            await hears_speech()
            await press("4711#")
            await until(lambda: ("message", "text", "4711") in line.told)
            await press("2")
            await hears_speech()
            await press("9")
            await until(lambda: "hangup" in [told[0] for told in line.told])
            assert len(line.clears) == 8

    port = free_port()
    with program("agent_ivr.py", port):
        asyncio.run(run(port))


def test_a_killed_agent() -> None:
    """The call goes on when it comes back, and ends with a reason when it does not."""

    async def run(port: int, process: subprocess.Popen[str]) -> None:
        line = Line()
        line.say(Tone(PHONE_HZ, 8000))
        async with call(configure(port), "agent:a", line):
            await until_hears(line, PHONE_HZ)
            process.kill()
            await until(lambda: not line.is_loud(5))
            with program("agent_echo.py", port):
                await until_hears(line, PHONE_HZ)
                assert line.told == []

    async def run_for_good(port: int, process: subprocess.Popen[str]) -> None:
        line = Line()
        line.say(Tone(PHONE_HZ, 8000))
        async with call(configure(port, 1.5), "agent:a", line):
            await until_hears(line, PHONE_HZ)
            process.kill()
            await until(lambda: line.told)
            assert line.told[0][0] == "closed"
            assert line.told[0][1].kind is EndKind.CHANNEL_FAILED
            assert not line.is_loud(5)

    for what in run, run_for_good:
        port = free_port()
        with program("agent_echo.py", port) as process:
            asyncio.run(what(port, process))


def test_an_agent_that_stands_for_5_s() -> None:
    """The call outlives it; what was said meanwhile comes late, and the delay does not stay."""

    async def run(port: int, process: subprocess.Popen[str]) -> None:
        line = Line()
        speech = audio.speech(3.0)
        line.say(np.concatenate((speech, audio.silence(1.0))))
        async with call(configure(port), "agent:a", line):
            await until(lambda: line.is_loud(10))
            os.kill(process.pid, signal.SIGSTOP)
            line.say(Tone(PHONE_HZ, 8000))
            await asyncio.sleep(5.0)
            assert not line.is_loud(100)
            assert line.told == []
            os.kill(process.pid, signal.SIGCONT)
            await until_hears(line, PHONE_HZ)
            line.say(audio.silence(0.1))
            # what waited is heard, and then nothing
            await until(lambda: not line.is_loud(25))
            line.say(Tone(1000.0, 8000))
            await until_hears(line, 1000.0, 0.2)

    port = free_port()
    with program("agent_echo.py", port) as process:
        asyncio.run(run(port, process))
