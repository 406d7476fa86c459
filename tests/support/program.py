# SPDX-License-Identifier: GPL-3.0-or-later
"""A program that joins a room of the whole server, and writes down what comes. A thread reads."""

import contextlib
import json
import threading
from types import TracebackType
from typing import Any, Self

import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.support.codecs import Samples
from tests.support.server import Server
from tests.support.waiting import wait_until

RATE_HZ = 16000


class Program:
    """One that speaks `proxy`."""

    def __init__(self, server: Server, room: str, name: str = "") -> None:
        self._stack = contextlib.ExitStack()
        self._socket = self._stack.enter_context(
            connect(
                f"ws://127.0.0.1:{server.http_port}/v1/rooms/{room}/audio?name={name}",
                additional_headers={"Authorization": server.http.headers["Authorization"]},
                compression=None,
            )
        )
        self.messages: list[dict[str, Any]] = []
        self._frames: list[bytes] = []
        self._thread = threading.Thread(target=self._read, name="program", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            for message in self._socket:
                if isinstance(message, bytes):
                    self._frames.append(message)
                else:
                    self.messages.append(json.loads(message))
        except ConnectionClosed:
            pass

    @property
    def heard(self) -> Samples:
        return np.frombuffer(b"".join(self._frames), "<i2").astype(np.int16)

    def listen(self, seconds: float) -> Samples:
        """What comes from now on."""
        start = len(self._frames)
        wanted = round(seconds * 50)
        wait_until(lambda: len(self._frames) >= start + wanted, seconds + 5.0, "the program hears")
        return np.frombuffer(b"".join(self._frames[start : start + wanted]), "<i2").astype(np.int16)

    def say(self, samples: Samples) -> None:
        """All at once; it is heard in its time."""
        for start in range(0, len(samples), RATE_HZ):
            self._socket.send(samples[start : start + RATE_HZ].tobytes())

    def send(self, **message: Any) -> None:
        self._socket.send(json.dumps(message))

    def close(self) -> None:
        self._stack.close()
        self._thread.join(5.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
