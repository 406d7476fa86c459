# SPDX-License-Identifier: GPL-3.0-or-later
"""Logging: structlog over the standard library, written by a thread of its own.

::

    any thread:  log.info("…") ─► level ─► handler ─► bounded queue ─┐   no formatting, no I/O
    log thread:                                   format ◄───────────┘ ─► standard error output

So neither the media nor the SIP thread waits for a terminal or a pipe. When the reader is slower
than the writers, lines are dropped and counted, and the count is logged.
"""

import copy
import json
import logging
import os
import queue
import re
import threading
from collections.abc import Mapping, MutableMapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self, cast

import structlog
from structlog.stdlib import BoundLogger, ProcessorFormatter

from sipbridge.config import LogConfig
from sipbridge.events import CallEnded, CallEvent, CallMessage, CallStarted

MAX_QUEUED_LINES = 10_000

# They log every request or connection at info, which says nothing that our own lines do not.
_TALKATIVE = ("httpx", "httpcore", "picows", "uvicorn.access")

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_CONTROL_BUT_LINES = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

_CALLER_SIDE: list[structlog.typing.Processor] = [
    structlog.stdlib.filter_by_level,
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.PositionalArgumentsFormatter(),
    structlog.processors.format_exc_info,  # here: on the log thread there is no exception at hand
    ProcessorFormatter.wrap_for_formatter,
]


def get_logger(name: str, **fields: object) -> BoundLogger:
    """A logger that adds `fields`, such as ``call_id=…``, to each of its lines."""
    logger = structlog.wrap_logger(
        logging.getLogger(name),
        processors=_CALLER_SIDE,
        wrapper_class=BoundLogger,
        cache_logger_on_first_use=True,
    )
    return cast(BoundLogger, logger.bind(**fields))


def in_call(call_id: str) -> AbstractContextManager[None]:
    """Within it, all lines of this asyncio task or thread have the call id, those of libraries too."""
    return structlog.contextvars.bound_contextvars(call_id=call_id)


def log_event(event: CallEvent) -> None:
    """Logs an event of a call: its start and its end at info, all between at debug."""
    fields = event.as_dict()
    name = fields.pop("event")
    del fields["at"]
    if isinstance(event, CallMessage):
        fields["text"] = f"{len(event.text)} characters"  # what people say is not for the log
    if isinstance(event, CallEnded):
        fields |= {
            "reason": event.reason.kind.value,
            "detail": event.reason.detail,
            "ended_by": event.reason.by.value,
            "sip_code": event.reason.sip_code,
        }
    level = logging.INFO if isinstance(event, CallStarted | CallEnded) else logging.DEBUG
    _CALLS.log(level, name, **fields)


_CALLS = get_logger("sipbridge.calls")


class LogWriter:
    """The log thread, from `start` to `stop`; there is one in a process at a time.

    JSON lines, or lines for people when a terminal reads them or the configuration says so.
    """

    def __init__(self, config: LogConfig, descriptor: int = 2) -> None:
        # Written by os.write: a file object that is stuck in a write cannot be flushed at exit, and
        # the interpreter dies of that.
        self._descriptor = descriptor
        is_terminal = os.isatty(descriptor)
        as_json = not is_terminal if config.json_ is None else config.json_
        self._formatter = _make_formatter(as_json, colors=is_terminal and "NO_COLOR" not in os.environ)
        self._level = getattr(logging, config.level.upper())
        self._handler = _QueueHandler()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)

    def start(self) -> None:
        """Takes over the root logger of the standard library."""
        root = logging.getLogger()
        root.setLevel(self._level)
        root.addHandler(self._handler)
        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(max(self._level, logging.WARNING))
        self._thread.start()

    def stop(self, timeout_s: float = 2.0) -> None:
        """Writes what is queued and ends the thread; a reader that hangs is not waited for longer."""
        logging.getLogger().removeHandler(self._handler)
        self._handler.records.put(None)
        self._thread.join(timeout_s)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self) -> None:
        records = self._handler.records
        while (record := records.get()) is not None:
            self._write(record)
            dropped = self._handler.take_dropped()
            if dropped:
                self._write(
                    logging.makeLogRecord(
                        {
                            "name": __name__,
                            "levelno": logging.WARNING,
                            "levelname": "WARNING",
                            "msg": f"{dropped} log lines dropped: the reader of the log is too slow",
                        }
                    )
                )

    def _write(self, record: logging.LogRecord) -> None:
        # A closed pipe, a full disk or an object that cannot be shown ends no call: the line is lost.
        try:
            line = memoryview((self._formatter.format(record) + "\n").encode(errors="backslashreplace"))
            while line:
                line = line[os.write(self._descriptor, line) :]
        except Exception:
            return


class _QueueHandler(logging.Handler):
    """Hands records to the log thread. `emit` runs under the handler's lock, which I/O never holds."""

    def __init__(self) -> None:
        super().__init__()
        self.records: queue.SimpleQueue[logging.LogRecord | None] = queue.SimpleQueue()
        self._dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        if self.records.qsize() >= MAX_QUEUED_LINES:
            self._dropped += 1
            return
        if not isinstance(record.msg, dict):  # a line of a library
            record = copy.copy(record)  # other handlers see it as it was
            try:
                record.msg = record.getMessage()  # now: its arguments may change later
            except (TypeError, ValueError):
                record.msg = str(record.msg)
            record.args = None
            record.context = structlog.contextvars.get_contextvars()
        self.records.put(record)

    def take_dropped(self) -> int:
        """The number of records dropped since the last time."""
        self.acquire()
        dropped, self._dropped = self._dropped, 0
        self.release()
        return dropped


# ---------------------------------------------------------------- on the log thread


def _make_formatter(as_json: bool, colors: bool) -> ProcessorFormatter:
    renderer: structlog.typing.Processor
    if as_json:
        renderer = structlog.processors.JSONRenderer(serializer=json.dumps)
    else:
        renderer = structlog.dev.ConsoleRenderer(
            colors=colors,
            pad_event_to=16,
            sort_keys=False,
            timestamp_key="time",
            exception_formatter=structlog.dev.plain_traceback,
        )
    return ProcessorFormatter(
        foreign_pre_chain=[_add_context, structlog.processors.format_exc_info],
        processors=[_complete_json if as_json else _complete_text, renderer],
    )


def _add_context(_: object, __: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    return {**getattr(event["_record"], "context", {}), **event}


def _complete_json(_: object, __: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    record = event.pop("_record")
    event.pop("_from_structlog")
    at = datetime.fromtimestamp(record.created, UTC)
    return {
        "time": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": record.levelname.lower(),
        "event": event.pop("event"),
        "logger": record.name,
        **event,
    }


def _complete_text(_: object, __: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """Local time and level in front; what strangers wrote cannot steer the terminal."""
    record = event.pop("_record")
    event.pop("_from_structlog")
    at = datetime.fromtimestamp(record.created)
    line = {
        "time": at.strftime("%H:%M:%S.") + f"{at.microsecond // 1000:03}",
        "level": record.levelname.lower(),
        "event": event.pop("event"),
    }
    for key, value in event.items():
        if value == "" or value is None:
            continue
        pattern = _CONTROL_BUT_LINES if key in ("exception", "stack") else _CONTROL
        line[key] = pattern.sub(_escape, value) if isinstance(value, str) else value
    line["event"] = _CONTROL.sub(_escape, str(line["event"]))
    return line


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"^{chr(code ^ 0x40)}" if code < 0x80 else "?"  # caret notation: ESC is ^[
