# SPDX-License-Identifier: GPL-3.0-or-later
"""WebSockets that clients open at the API, as the transports of conversations. Event loop."""

import asyncio
from collections import deque
from typing import cast

from starlette.types import Message
from starlette.websockets import WebSocket
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from sipbridge.rtc.websocket.protocol import MAX_MESSAGE_BYTES, Wire
from sipbridge.rtc.websocket.transport import Incoming, Transport, limit_sending

_MAX_WAITING_BYTES = 32 << 10  # to be sent; beyond, it says that it is blocked
_CLOSE_S = 1.0  # that the client has to close as well
_IN_ORDER = (1000, 1005)  # the latter: without a code
_KEYS = {bytes: "bytes", str: "text"}  # of ASGI


class SocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's, with short buffers; ``scope["state"]`` has the connection's asyncio transport."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        limit_sending(cast(asyncio.Transport, transport))
        self.app_state = {**self.app_state, "transport": transport}
        super().connection_made(transport)


def _judge(message: Message) -> tuple[bool, str]:
    """Whether a connection was closed in order, and how it ended, in words."""
    if "reason" not in message:  # uvicorn has no other word for one that was not closed at all
        return False, "the connection broke"
    code, reason = message["code"], message["reason"]
    return code in _IN_ORDER, f"the far side has closed the connection ({code}{reason and f' {reason}'})"


class AcceptedSocket(Transport):
    """One that was accepted, from then until `run` ends."""

    def __init__(self, socket: WebSocket, incoming: Incoming) -> None:
        self._socket = socket
        self._incoming: Incoming | None = incoming  # None: closed by us, or gone
        self._waiting: deque[Wire] = deque()  # to be sent
        self._waiting_bytes = 0
        self._is_blocked = False
        self._wake = asyncio.Event()
        self._may_read = asyncio.Event()
        self._may_read.set()
        self._close: tuple[int, str] | None = None  # code and reason
        self._deadline: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        """Carries messages both ways until one side has closed."""
        tasks = [asyncio.ensure_future(work) for work in (self._read(), self._write())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self._deadline is not None:
                self._deadline.cancel()
            if self._waiting:  # for a client that does not read: it would never be closed
                self._abort()

    async def _read(self) -> None:
        while True:
            await self._may_read.wait()
            message = await self._socket.receive()
            incoming = self._incoming
            if message["type"] == "websocket.disconnect":
                self._incoming = None
                if incoming is not None:
                    incoming.lost(*_judge(message))
                return
            data = message["text"] if message.get("bytes") is None else bytes(message["bytes"])
            if incoming is None:
                continue
            if len(data) > MAX_MESSAGE_BYTES:
                incoming.unreadable(f"a message of {len(data)} bytes, more than {MAX_MESSAGE_BYTES}")
            else:
                incoming.received(data)

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                data = self._waiting[0]
                # waits while the client does not read; ends with an exception once it is gone
                await self._socket.send({"type": "websocket.send", _KEYS[type(data)]: data})
                self._waiting.popleft()
                self._waiting_bytes -= len(data)
                if self._is_blocked and self._waiting_bytes <= _MAX_WAITING_BYTES // 2:
                    self._is_blocked = False
                    if self._incoming is not None:
                        self._incoming.blocked(False)
            if self._close is not None:
                await self._socket.close(*self._close)
                return

    def _abort(self) -> None:
        transport: asyncio.Transport | None = self._socket.scope.get("state", {}).get("transport")
        if transport is not None:
            transport.abort()

    # --- Transport

    def send(self, data: Wire) -> None:
        if self._incoming is None:
            return
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        if self._waiting_bytes > _MAX_WAITING_BYTES and not self._is_blocked:
            self._is_blocked = True
            self._incoming.blocked(True)
        self._wake.set()

    def pause_reading(self, paused: bool) -> None:
        if paused:
            self._may_read.clear()
        else:
            self._may_read.set()

    def close(self, error: str = "") -> None:
        if self._incoming is not None:
            self._incoming = None
            self._close = (1002, error) if error else (1000, "")
            self._may_read.set()
            self._wake.set()
            self._deadline = asyncio.get_running_loop().call_later(_CLOSE_S, self._abort)
