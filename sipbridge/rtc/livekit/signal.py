# SPDX-License-Identifier: GPL-3.0-or-later
"""LiveKit's signalling, as its `/rtc/v1` has it: messages over a WebSocket. Event loop."""

import asyncio
import base64
import time
import urllib.parse
from typing import Protocol

import httpx
import picows
from google.protobuf.message import DecodeError
from livekit.protocol.models import ClientInfo, DisconnectReason, ReconnectReason
from livekit.protocol.rtc import (
    ConnectionSettings,
    JoinRequest,
    JoinResponse,
    LeaveRequest,
    Ping,
    SignalRequest,
    SignalResponse,
    WrappedJoinRequest,
)

from sipbridge import __version__
from sipbridge.rtc.livekit.token import Entry
from sipbridge.rtc.websocket.protocol import Wire
from sipbridge.rtc.websocket.transport import ConnectError, Transport, open_transport

_PROTOCOL = 15
_OLDEST = "LiveKit 1.9.10"  # whose signalling this is
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
        """The connection is gone. Not told after `close()`, nor before `open` or `resume` has returned."""
        ...


class Signal:
    """One WebSocket."""

    def __init__(self, listener: SignalListener) -> None:
        self._listener = listener
        self._transport: Transport | None = None
        self._first: asyncio.Future[SignalResponse] = asyncio.get_running_loop().create_future()
        self._is_open = self._closed = False
        self._ping: asyncio.TimerHandle | None = None
        self._ping_s = _PING_S
        self._ping_timeout_s = 3 * _PING_S
        self._round_trip_ms = 0
        self._last_pong_at = 0.0

    async def open(self, entry: Entry, timeout_s: float) -> JoinResponse:
        """Connects and is let in. UnreachableError or RefusedError; the caller keeps the time as well."""
        first = await self._begin(entry, _join_request(), timeout_s)
        if first.WhichOneof("message") != "join":
            raise RefusedError(f"the server began with {first.WhichOneof('message')} and not with join")
        self._keep_alive(first.join.ping_interval, first.join.ping_timeout)
        return first.join

    async def resume(self, entry: Entry, sid: str, before: "Signal", timeout_s: float) -> None:
        """Goes on where the connection before was lost, as the participant `sid`. Raises as `open` does."""
        request = _join_request()
        request.reconnect, request.participant_sid = True, sid
        request.reconnect_reason = ReconnectReason.RR_SIGNAL_DISCONNECTED
        first = await self._begin(entry, request, timeout_s)
        if first.WhichOneof("message") != "reconnect":
            raise RefusedError(f"the server began with {first.WhichOneof('message')} and not with reconnect")
        self._keep_alive(before._ping_s, before._ping_timeout_s)

    async def _begin(self, entry: Entry, request: JoinRequest, timeout_s: float) -> SignalResponse:
        url = _signal_url(entry.url, request)
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
                if status == 404 and not why:
                    raise RefusedError(f"the server has no /rtc/v1: it is older than {_OLDEST}") from error
                if 500 <= status <= 599:
                    raise UnreachableError(f"the server answers {status} {why}".rstrip()) from error
                raise RefusedError(f"the server refuses us: {status} {why}".rstrip(), status) from error
            raise UnreachableError(str(error)) from error
        if self._closed:  # meanwhile; what the server has said before counts all the same
            self._stop()
            if not self._first.done():
                raise UnreachableError("closed")
        first = await self._first
        if first.WhichOneof("message") == "leave":
            if first.leave.action != LeaveRequest.Action.DISCONNECT and not request.reconnect:
                raise UnreachableError(f"the server asks us to come again: {name_of(first.leave)}")
            raise RefusedError(f"the server sends us away: {name_of(first.leave)}")
        if self._closed and first.WhichOneof("message") in ("join", "reconnect"):
            raise UnreachableError("the connection was lost as soon as the server had let us in")
        self._is_open = True
        return first

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

    def _keep_alive(self, ping_s: float, ping_timeout_s: float) -> None:
        """0 where the server does not say."""
        self._ping_s = ping_s or _PING_S
        self._ping_timeout_s = ping_timeout_s or 3 * self._ping_s
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
        if self._is_open:
            self._listener.signal_lost(detail.replace("the agent", "the server"))


def _join_request() -> JoinRequest:
    return JoinRequest(
        client_info=ClientInfo(sdk=ClientInfo.SDK.PYTHON, version=__version__, protocol=_PROTOCOL),
        connection_settings=ConnectionSettings(auto_subscribe=False),
    )


def _signal_url(url: str, request: JoinRequest) -> str:
    """ws://HOST/rtc/v1 of ws:// or http://: one connection for audio both ways, which we offer."""
    scheme, _, rest = url.partition("://")
    scheme = {"http": "ws", "https": "wss"}.get(scheme, scheme)
    wrapped = WrappedJoinRequest(join_request=request.SerializeToString()).SerializeToString()
    query = urllib.parse.urlencode({"join_request": base64.urlsafe_b64encode(wrapped).decode()})
    return f"{scheme}://{rest.rstrip('/')}/rtc/v1?{query}"


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
