# SPDX-License-Identifier: GPL-3.0-or-later
"""The trial against the real network, run against the simulated one."""

import asyncio
from collections.abc import Callable, Iterator

import pytest

from sipbridge.rtc.agora import check
from sipbridge.rtc.agora.check import Step, check_online
from tests.support import fake_agora
from tests.support.agora_engine import Engine, in_this_process


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    monkeypatch.setattr(check, "_SPEAK_S", 1.0)
    monkeypatch.setattr(check, "_HEAR_S", 1.0)
    with in_this_process() as engine:
        yield engine
        assert engine.stats()["connections"] == 0


def run(**config: object) -> list[Step]:
    agora = fake_agora.config(connect_timeout_s=2.0, **config).agora
    assert agora is not None
    steps: list[Step] = []
    is_well = asyncio.run(check_online(agora, steps.append))
    assert is_well == all(step.is_well for step in steps)
    return steps


@pytest.mark.parametrize("receive", ["mix", "users"])
def test_network_that_works(engine: Engine, receive: str) -> None:
    steps = run(receive=receive)
    assert [step.name for step in steps if not step.is_well] == []
    names = [step.name.partition(" sipbridge")[0] for step in steps]
    assert names == [
        "SDK",
        "joining",
        "joining",
        "presence",
        "audio from two to one",
        "audio from one to two",
        "stream message",
        "leaving",
        "callbacks of one",
        "callbacks of two",
    ]
    assert "connected, joined " in steps[-2].detail


@pytest.mark.parametrize(
    ("breaks", "name", "words"),
    [
        (lambda engine: engine.ask("refuse", "*", 8), "joining", "token is not valid"),
        (lambda engine: engine.ask("refuse", "*", -1), "joining", "not within 2 s"),
        (lambda engine: engine.set(loss=100), "audio from two to one", "500 Hz was said; 0%"),
        (lambda engine: engine.fail("agora_service_initialize"), "SDK", "initialize"),
        (lambda engine: engine.fail("agora_rtc_conn_send_stream_message"), "stream", "send_stream_message"),
    ],
)
def test_network_that_does_not(
    engine: Engine, breaks: Callable[[Engine], object], name: str, words: str
) -> None:
    """The step that fails says why, and is the last one."""
    breaks(engine)
    steps = [step for step in run() if not step.name.startswith("callbacks")]
    assert steps[-1].name.startswith(name)
    assert not steps[-1].is_well
    assert words in steps[-1].detail
