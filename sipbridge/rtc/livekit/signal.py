# SPDX-License-Identifier: GPL-3.0-or-later
"""LiveKit's signalling: its messages over a WebSocket. Event loop."""

import asyncio
import time
import urllib.parse
from typing import Protocol

import httpx
import picows
from google.protobuf.message import DecodeError
from livekit.protocol.models import DisconnectReason
from livekit.protocol.rtc import JoinResponse, LeaveRequest, Ping, SignalRequest, SignalResponse

from sipbridge import __version__
from sipbridge.rtc.livekit.token import Entry
from sipbridge.rtc.websocket.protocol import Wire
from sipbridge.rtc.websocket.transport import ConnectError, Transport, open_transport

_PROTOCOL = 15
_PING_S = 5.0  # where the server does not say
_EXPLAIN_S = 2.0  # that it may take to find out why we are refused


class UnreachableError(Exception):
    """No server there, or none that answers; it may come back."""


class RefusedError(Exception):
    """The server does not let us in; its text says why."""

    def __init__(self, detail: str, status: int = 0) -> None:
        super().__init__(detail)
        self.status = status  # of HTTP, where it was refused by that


class SignalListener(Protocol):
    """What signalling tells; on the event loop."""

    def signalled(self, message: SignalResponse) -> None:
        """Any message after the first, but for pongs."""
        ...

    def signal_lost(self, detail: str) -> None:
        """The connection is gone. Not told after `close()`."""
        ...


class Signal:
    """One WebSocket."""

    def __init__(self, listener: SignalListener) -> None:
        self._listener = listener
        self._transport: Transport | None = None
        self._first: asyncio.Future[SignalResponse] = asyncio.get_running_loop().create_future()
        self._closed = False
        self._ping: asyncio.TimerHandle | None = None
        self._ping_s = _PING_S
        self._ping_timeout_s = 3 * _PING_S
        self._round_trip_ms = 0
        self._last_pong_at = 0.0

    async def open(self, entry: Entry, timeout_s: float) -> JoinResponse:
        """Connects and is let in. UnreachableError or RefusedError; the caller keeps the time as well."""
        url = _signal_url(entry.url)
        headers = {"Authorization": f"Bearer {entry.token}"}
        try:
            self._transport = await open_transport(
                url, self, headers=headers, subprotocol="", ca=None, timeout_s=timeout_s
            )
        except ConnectError as error:
            cause = error.__cause__
            if isinstance(cause, picows.WSHandshakeError) and cause.response is not None:
                status = int(cause.response.status)
                why = await _explain(entry)
                if 500 <= status <= 599:
                    raise UnreachableError(f"the server answers {status} {why}".rstrip()) from error
                raise RefusedError(f"the server refuses us: {status} {why}".rstrip(), status) from error
            raise UnreachableError(str(error)) from error
        if self._closed:  # meanwhile; what the server has said before counts all the same
            self._stop()
            if not self._first.done():
                raise UnreachableError("closed")
        first = await self._first
        match first.WhichOneof("message"):
            case "join" if self._closed:
                raise UnreachableError("the connection was lost as soon as the server had let us in")
            case "join":
                self._keep_alive(first.join)
                return first.join
            case "leave":
                raise RefusedError(f"the server sends us away: {name_of(first.leave)}")
            case kind:
                raise RefusedError(f"the server began with {kind} and not with join")

    def send(self, request: SignalRequest) -> None:
        """Never waits; does nothing once the connection is gone."""
        if self._transport is not None:
            self._transport.send(request.SerializeToString())

    def close(self) -> None:
        """When all was sent. Nothing more is told."""
        self._closed = True
        self._stop()

    def _stop(self) -> None:
        if self._ping is not None:
            self._ping.cancel()
            self._ping = None
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()

    # --- the server drops who is silent, and so do we

    def _keep_alive(self, join: JoinResponse) -> None:
        self._ping_s = float(join.ping_interval) or _PING_S
        self._ping_timeout_s = float(join.ping_timeout) or 3 * self._ping_s
        loop = asyncio.get_running_loop()
        self._last_pong_at = loop.time()
        self._ping = loop.call_later(self._ping_s, self._send_ping)

    def _send_ping(self) -> None:
        loop = asyncio.get_running_loop()
        if loop.time() - self._last_pong_at > self._ping_s + self._ping_timeout_s:
            self.lost(False, f"the server has said nothing for {self._ping_timeout_s:g} s")
            return
        now_ms = time.time_ns() // 1_000_000
        self.send(SignalRequest(ping_req=Ping(timestamp=now_ms, rtt=self._round_trip_ms)))
        self._ping = loop.call_later(self._ping_s, self._send_ping)

    # --- Incoming

    def received(self, data: Wire) -> None:
        if self._closed or isinstance(data, str):
            return
        message = SignalResponse()
        try:
            message.ParseFromString(data)
        except DecodeError:
            self.lost(False, "the server sends what is none of its messages")
            return
        if not self._first.done():
            self._first.set_result(message)
            return
        if message.WhichOneof("message") == "pong_resp":
            self._last_pong_at = asyncio.get_running_loop().time()
            self._round_trip_ms = max(0, time.time_ns() // 1_000_000 - message.pong_resp.last_ping_timestamp)
        else:
            self._listener.signalled(message)

    def unreadable(self, detail: str) -> None:
        self.lost(False, detail)

    def blocked(self, is_blocked: bool) -> None:
        pass  # a server that does not read does not answer pings either

    def lost(self, closed: bool, detail: str) -> None:
        if self._closed:
            return
        self._closed = True
        if not self._first.done():
            self._first.set_exception(
                UnreachableError("the server closed the connection before it let us in")
            )
            self._first.exception()  # there may be nobody any more who waits for it
        self._stop()
        self._listener.signal_lost(detail.replace("the agent", "the server"))


def _signal_url(url: str) -> str:
    """ws://HOST/rtc of ws:// or http://."""
    scheme, _, rest = url.partition("://")
    scheme = {"http": "ws", "https": "wss"}.get(scheme, scheme)
    query = urllib.parse.urlencode(
        {"auto_subscribe": "0", "protocol": _PROTOCOL, "sdk": "python", "version": __version__}
    )
    return f"{scheme}://{rest.rstrip('/')}/rtc?{query}"


async def _explain(entry: Entry) -> str:
    """Why the server did not let us in, in its own words."""
    scheme, _, rest = entry.url.partition("://")
    scheme = {"ws": "http", "wss": "https"}.get(scheme, scheme)
    try:
        async with httpx.AsyncClient(timeout=_EXPLAIN_S) as client:
            response = await client.get(
                f"{scheme}://{rest.rstrip('/')}/rtc/validate",
                headers={"Authorization": f"Bearer {entry.token}"},
            )
    except httpx.HTTPError:
        return ""
    return " ".join(response.text[:200].split()) if response.is_error else ""


def name_of(leave: LeaveRequest) -> str:
    """ROOM_DELETED and so on."""
    try:
        return DisconnectReason.Name(leave.reason)
    except ValueError:
        return str(leave.reason)
