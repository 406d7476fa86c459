# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of sipbridge.log."""

import asyncio
import json
import logging
import os
import pty
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydantic import SecretStr

from sipbridge import log
from sipbridge.config import LogConfig
from sipbridge.errors import EndKind, EndReason, Party
from sipbridge.events import CallAnswered, CallEnded, CallMessage, CallStarted
from sipbridge.log import LogWriter, get_logger, in_call, log_event


@pytest.fixture(autouse=True)
def _root_logger_as_before() -> Iterator[None]:
    root = logging.getLogger()
    level = root.level
    yield
    root.setLevel(level)


class Pipe:
    """A pipe that a LogWriter writes into."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()

    def read(self) -> str:
        """All that was written; the writing end is closed."""
        os.close(self.writing)
        with open(self.reading, encoding="utf-8") as file:
            return file.read()


def _logged(config: LogConfig, write: Callable[[], None]) -> str:
    pipe = Pipe()
    with LogWriter(config, pipe.writing):
        write()
    return pipe.read()


def _lines(write: Callable[[], None], level: Any = "info") -> list[dict[str, Any]]:
    return [json.loads(line) for line in _logged(LogConfig(level=level), write).splitlines()]


def test_json_lines_when_no_terminal_reads() -> None:
    """One object a line with time, level, event and the call id."""
    (line,) = _lines(lambda: get_logger("a.b", call_id="c1").info("joined", room="demo"))
    assert line.pop("time").endswith("Z")
    assert line == {"level": "info", "event": "joined", "logger": "a.b", "call_id": "c1", "room": "demo"}


def test_the_call_id_is_on_every_line_of_a_call() -> None:
    """On those of libraries too, within in_call, and gone after it."""

    def write() -> None:
        with in_call("c1"):
            logging.getLogger("library").warning("lost %d", 3)
            get_logger("ours").info("ours")
        logging.getLogger("library").warning("outside")

    lines = _lines(write)
    assert [(line["event"], line.get("call_id")) for line in lines] == [
        ("lost 3", "c1"),
        ("ours", "c1"),
        ("outside", None),
    ]


def test_in_call_is_of_one_task() -> None:
    """Tasks of other calls that run meanwhile have their own id."""

    async def call(call_id: str, barrier: asyncio.Barrier) -> None:
        with in_call(call_id):
            await barrier.wait()
            get_logger("x").info(call_id)

    async def calls() -> None:
        barrier = asyncio.Barrier(3)
        async with asyncio.TaskGroup() as group:
            for name in "abc":
                group.create_task(call(name, barrier))

    lines = _lines(lambda: asyncio.run(calls()))
    assert {line["call_id"] for line in lines} == {"a", "b", "c"}
    assert all(line["event"] == line["call_id"] for line in lines)


def test_the_level_holds() -> None:
    """Lines below it are not written, of ours and of libraries."""

    def write() -> None:
        for logger in (get_logger("ours"), logging.getLogger("library")):
            logger.info("quiet")
            logger.error("loud")

    assert [line["event"] for line in _lines(write, "warning")] == ["loud", "loud"]


def test_an_exception_is_written_with_its_traceback() -> None:
    """The traceback is that of the thread that logged."""

    def write() -> None:
        try:
            raise RuntimeError("broken")
        except RuntimeError:
            get_logger("ours").exception("ours failed")
            logging.getLogger("library").exception("library failed")

    for line in _lines(write):
        assert "RuntimeError: broken" in line["exception"]
        assert "in write" in line["exception"]


def test_secrets_are_masked() -> None:
    """A secret that gets into a line by mistake is not readable there."""
    for as_json in (True, False):
        text = _logged(
            LogConfig(json_=as_json),
            lambda: get_logger("x").info("e", password=SecretStr("hush"), all=[SecretStr("hush")]),
        )
        assert "hush" not in text
        assert "***" in text


def test_text_from_strangers_cannot_steer_a_terminal() -> None:
    """Escape sequences and line feeds come out as text."""
    text = _logged(
        LogConfig(json_=False),
        lambda: get_logger("x").info("call\x1b[2J", from_="\x1b]0;title\x07", to="a\r\n12:00 [info] forged"),
    )
    assert text.count("\n") == 1
    assert not any(ord(char) < 32 for char in text.rstrip("\n"))
    assert "^[[2J" in text


def test_a_line_stays_one_line_in_json() -> None:
    """A line feed within a value does not forge a second line."""
    lines = _lines(lambda: get_logger("x").info("e", to='a\n{"event": "forged"}\x00\ud800'))
    assert [line["event"] for line in lines] == ["e"]


def test_people_read_a_terminal() -> None:
    """On a terminal there is no JSON unless asked for."""
    for config, as_json in ((LogConfig(), False), (LogConfig(json_=True), True)):
        leader, follower = pty.openpty()
        with LogWriter(config, follower):
            get_logger("x", call_id="c1").info("hello")
        text = os.read(leader, 4096).decode()
        os.close(leader)
        os.close(follower)
        assert "hello" in text
        assert text.startswith("{") == as_json


def test_a_reader_that_hangs_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writers go on, the queue is bounded, and the loss is counted and told."""
    monkeypatch.setattr(log, "MAX_QUEUED_LINES", 100)
    pipe = Pipe()
    writer = LogWriter(LogConfig(), pipe.writing)
    writer.start()
    logger = get_logger("x")
    for number in range(5000):  # far more than the pipe and the queue hold; nobody reads
        logger.info("line", number=number, padding="x" * 100)
    lines: list[dict[str, Any]] = []

    def read() -> None:
        with open(pipe.reading, encoding="utf-8") as file:
            lines.extend(json.loads(line) for line in file)

    reader = threading.Thread(target=read)
    reader.start()
    writer.stop()
    os.close(pipe.writing)
    reader.join()
    told = [int(line["event"].split()[0]) for line in lines if "dropped" in line["event"]]
    written = [line["number"] for line in lines if "number" in line]
    assert told
    assert len(written) + sum(told) == 5000
    assert written == sorted(written)


def test_a_reader_that_is_gone_stops_nothing() -> None:
    """A closed pipe loses lines and ends nothing."""
    reading, writing = os.pipe()
    os.close(reading)
    with LogWriter(LogConfig(), writing):
        get_logger("x").info("lost")
    os.close(writing)


def test_after_stop_the_thread_is_gone() -> None:
    """Stop writes what is queued and leaves nothing behind."""
    pipe = Pipe()
    writer = LogWriter(LogConfig(), pipe.writing)
    writer.start()
    for number in range(200):  # less than a pipe holds
        get_logger("x").info("line", number=number)
    writer.stop()
    assert "log" not in [thread.name for thread in threading.enumerate()]
    assert len(pipe.read().splitlines()) == 200


def test_events_of_a_call() -> None:
    """Start and end at info, what is between at debug; the end says who and why."""

    def write() -> None:
        call = {
            "direction": "inbound",
            "from_": "100",
            "to": "200",
            "trunk": "t",
            "rule": "r",
            "target": "echo:",
        }
        log_event(CallStarted(call_id="c1", **call))  # type: ignore[arg-type]
        log_event(CallAnswered(call_id="c1", codec="PCMU"))
        reason = EndReason(EndKind.HANGUP, "BYE", Party.CALLER)
        log_event(CallEnded(call_id="c1", reason=reason, codec="PCMU", duration_s=2.5, mos=4.4, **call))  # type: ignore[arg-type]

    start, end = _lines(write)
    assert (start["event"], start["from"], start["target"]) == ("call.started", "100", "echo:")
    assert (end["event"], end["call_id"], end["reason"], end["ended_by"]) == (
        "call.ended",
        "c1",
        "hangup",
        "caller",
    )
    assert (end["detail"], end["duration_s"], end["mos"], end["codec"]) == ("BYE", 2.5, 4.4, "PCMU")
    assert [line["event"] for line in _lines(write, "debug")] == [
        "call.started",
        "call.answered",
        "call.ended",
    ]


def test_what_people_say_is_not_logged() -> None:
    """A message is counted, not quoted."""
    event = CallMessage(call_id="c1", topic="chat", text="my card is 4711")
    (line,) = _lines(lambda: log_event(event), "debug")
    assert "4711" not in str(line)
    assert line["topic"] == "chat"
