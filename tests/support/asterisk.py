# SPDX-License-Identifier: GPL-3.0-or-later
"""An Asterisk that hands over a call, as its documentation and its sources have it: two ways, no SIP.

A thread sends a frame every 20 ms, another reads. What the real one does not take ends the call, as there.
"""

import contextlib
import json
import socket
import threading
import time
import uuid
from base64 import b64encode
from types import TracebackType
from typing import ClassVar, Self
from urllib.parse import urlencode

import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.support.codecs import Pcmu, Samples
from tests.support.waiting import wait_until

_FRAME_S = 0.02


class PbxCall:
    """What both ways have."""

    def __init__(self, rate_hz: int) -> None:
        self.rate_hz = rate_hz
        self.complaints: list[str] = []
        self.is_answered = False
        self.is_over = False  # the connection was closed
        self.was_hung_up = False  # by the application
        self.sends_audio = True
        self._said = np.zeros(0, np.int16)
        self._heard: list[Samples] = []
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._send, self._read)]

    def _start(self) -> None:
        for thread in self._threads:
            thread.start()

    def _send(self) -> None:
        due = time.monotonic()
        count = round(self.rate_hz * _FRAME_S)
        while not self.is_over:
            due += _FRAME_S
            time.sleep(max(0.0, due - time.monotonic()))
            frame = np.zeros(count, np.int16)
            piece, self._said = self._said[:count], self._said[count:]
            frame[: len(piece)] = piece
            if self.sends_audio and not self.is_over:
                self._send_audio(frame)

    def say(self, samples: Samples) -> None:
        self._said = samples

    @property
    def heard(self) -> Samples:
        return np.concatenate([np.zeros(0, np.int16), *self._heard])

    def listen(self, seconds: float) -> Samples:
        """What comes from now on."""
        start, wanted = len(self._heard), round(seconds / _FRAME_S)
        wait_until(lambda: len(self._heard) >= start + wanted, seconds + 5.0, "the PBX hears")
        return np.concatenate(self._heard[start : start + wanted])

    def wait_over(self) -> None:
        wait_until(lambda: self.is_over, 5.0, "the connection is closed")
        assert self.complaints == []

    def _read(self) -> None:
        raise NotImplementedError

    def _send_audio(self, frame: Samples) -> None:
        raise NotImplementedError

    def press(self, digit: str) -> None:
        raise NotImplementedError

    def hang_up(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.is_over:
            self.hang_up()
        for thread in self._threads:
            thread.join(5.0)


class AudioSocketCall(PbxCall):
    """``AudioSocket(uuid,host:port)``, or with another rate the channel of that name."""

    KINDS: ClassVar = {8000: 0x10, 16000: 0x12, 24000: 0x13, 48000: 0x16}

    def __init__(self, port: int, call: uuid.UUID, rate_hz: int = 8000, *, silent: bool = False) -> None:
        super().__init__(rate_hz)
        self.sends_audio = not silent
        self._kind = self.KINDS[rate_hz]
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._write(0x01, call.bytes)
        self._start()

    def _write(self, kind: int, payload: bytes) -> None:
        try:
            self._socket.sendall(bytes((kind,)) + len(payload).to_bytes(2, "big") + payload)
        except OSError:
            self.is_over = True

    def _send_audio(self, frame: Samples) -> None:
        self._write(self._kind, frame.tobytes())

    def _read(self) -> None:
        with self._socket.makefile("rb") as stream:
            try:
                while head := stream.read(3):
                    payload = stream.read(int.from_bytes(head[1:], "big"))
                    if head[0] == 0x00:
                        self.was_hung_up = True
                        break
                    if head[0] != self._kind or not payload:
                        self.complaints.append(f"a message of type {head[0]:#04x} with {len(payload)} bytes")
                        break
                    self._heard.append(np.frombuffer(payload, "<i2").astype(np.int16))
            except OSError:
                pass
        self.is_over = True
        self._socket.close()

    def press(self, digit: str) -> None:
        self._write(0x03, digit.encode())

    def hang_up(self) -> None:
        self._write(0x00, b"")
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def vanish(self) -> None:
        """Without a word, by a reset."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self._socket.shutdown(socket.SHUT_RD)
        self.is_over = True


class WebSocketChannel(PbxCall):
    """``Dial(WebSocket/name/c(ulaw)nv(from=…,to=…))``, with events as plain words or in JSON."""

    def __init__(
        self, port: int, *, json_events: bool = False, rate_hz: int = 8000, user: str = "", **said: str
    ) -> None:
        super().__init__(rate_hz)
        self._is_json = json_events
        self._channel_id = f"{time.time():.2f}"
        headers = {"Authorization": f"Basic {b64encode(user.encode()).decode()}"} if user else {}
        self._stack = contextlib.ExitStack()
        self._socket = self._stack.enter_context(
            connect(
                f"ws://127.0.0.1:{port}/calls?{urlencode(said)}",
                subprotocols=["media"],  # type: ignore[list-item]
                additional_headers=headers,
                compression=None,
            )
        )
        assert self._socket.subprotocol == "media"
        self._pcmu = rate_hz == 8000
        self._event(
            "MEDIA_START",
            connection_id="sipbridge",
            channel=f"WebSocket/sipbridge/0x{id(self):x}",
            channel_id=self._channel_id,
            format="ulaw" if self._pcmu else f"slin{rate_hz // 1000}",
            optimal_frame_size=160 if self._pcmu else rate_hz // 25,
            ptime=20,
        )
        self._start()

    def _event(self, event: str, **content: object) -> None:
        if self._is_json:
            self._socket.send(json.dumps({"event": event, **content}))
        else:
            self._socket.send(" ".join((event, *(f"{name}:{value}" for name, value in content.items()))))

    def _send_audio(self, frame: Samples) -> None:
        try:
            self._socket.send(Pcmu().encode(frame) if self._pcmu else frame.tobytes())
        except ConnectionClosed:
            self.is_over = True

    def _read(self) -> None:
        try:
            for message in self._socket:
                if isinstance(message, bytes):
                    self._heard.append(
                        Pcmu().decode(message)
                        if self._pcmu
                        else np.frombuffer(message, "<i2").astype(np.int16)
                    )
                    if len(self._heard[-1]) != round(self.rate_hz * _FRAME_S):
                        self.complaints.append(f"a frame of {len(self._heard[-1])} samples")
                else:
                    self._command(json.loads(message)["command"] if self._is_json else message)
        except ConnectionClosed:
            pass
        self.is_over = True

    def _command(self, command: str) -> None:
        if command == "ANSWER":
            self.is_answered = True
        elif command == "HANGUP":
            self.was_hung_up = True
        else:
            self.complaints.append(f"the command {command!r}")

    def press(self, digit: str) -> None:
        self._event("DTMF_END", digit=digit, channel_id=self._channel_id)

    def hang_up(self) -> None:
        self._stack.close()

    def vanish(self) -> None:
        self._socket.socket.shutdown(socket.SHUT_RDWR)
        self.is_over = True
