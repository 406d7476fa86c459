# SPDX-License-Identifier: GPL-3.0-or-later
"""The sockets to agents and of PBXs: WebSocket by picows, and a plain byte stream. Event loop.

picows and not `websockets`: it takes a third of the processor time for a small message each way, and that
is most of what a call with an agent costs.
"""

import abc
import asyncio
import functools
import socket
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, cast

import picows

from sipbridge.routing import split_host_port
from sipbridge.rtc.websocket.protocol import MAX_MESSAGE_BYTES, Wire

# What a reader that has stopped finds when it goes on is old: little may wait on the way to it.
_SEND_BUFFER_BYTES = 16 << 10  # the system's
_WRITE_LIMIT_BYTES = 32 << 10  # ours; beyond, the transport says that it is blocked
_CLOSE_S = 1.0  # that the far side has to close as well; closed at once, it might not see what was said last
_HARD_LIMIT_BYTES = 16 * MAX_MESSAGE_BYTES  # a longer frame ends the connection
_TEXT, _BINARY = picows.WSMsgType.TEXT, picows.WSMsgType.BINARY


class ConnectError(Exception):
    """An agent that cannot be reached, or refuses; its text says why."""


class Incoming(Protocol):
    """What a transport tells."""

    def received(self, data: Wire) -> None: ...
    def unreadable(self, detail: str) -> None:
        """A message that is too long, or no text."""
        ...

    def blocked(self, is_blocked: bool) -> None:
        """Whether more is waiting to be sent than should."""
        ...

    def lost(self, closed: bool, detail: str) -> None:
        """The connection is gone; `closed`: the far side has closed it in order. Not told after `close()`."""
        ...


class Accepted(Incoming, Protocol):
    """Who takes a connection that was made to us."""

    def begin(self, transport: "Transport") -> None:
        """It is open."""
        ...


class Transport(abc.ABC):
    """A connection that is open."""

    @abc.abstractmethod
    def send(self, data: Wire) -> None:
        """Never waits; does nothing once the connection is gone."""

    @abc.abstractmethod
    def pause_reading(self, paused: bool) -> None:
        """Nothing more is received, but for what has been read already, until this is taken back."""

    @abc.abstractmethod
    def close(self, error: str = "") -> None:
        """Ends it in order, when all was sent; with an error for a fault of the far side's."""


# Of whoever has connected, by its address, with what path: it is closed at once with None.
type Accept = Callable[[str, str], Accepted | None]


async def open_transport(
    url: str,
    incoming: Incoming,
    *,
    headers: Mapping[str, str],
    subprotocol: str,
    ca: Path | None,
    timeout_s: float,
) -> Transport:
    """Connects to ws://, wss:// or audiosocket://. ConnectError; the caller keeps the time as well."""
    scheme, _, rest = url.partition("://")
    try:
        if scheme == "audiosocket":
            return await _open_stream(rest, incoming)
        return await _open_websocket(url, incoming, headers, subprotocol, ca, timeout_s)
    except TimeoutError as error:
        raise ConnectError(f"no answer within {timeout_s:g} s") from error
    except picows.WSHandshakeError as error:
        status = "" if error.response is None else f" with {int(error.response.status)}"
        raise ConnectError(f"the agent refused the connection{status}") from error
    except picows.WSError as error:
        raise ConnectError(f"no WebSocket: {error}") from error
    except ssl.SSLCertVerificationError as error:
        raise ConnectError(f"its certificate is not trusted: {error.verify_message}") from error
    except ValueError as error:
        raise ConnectError(str(error)) from error
    except OSError as error:
        raise ConnectError(f"cannot connect: {error.strerror or error}") from error


# ---------------------------------------------------------------- WebSocket


@functools.cache
def _ssl_context(ca: Path | None) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=ca)  # takes some 20 ms: not for each call


def forget_certificates() -> None:
    """Reads the trusted ones anew for the next connection: files may have been renewed."""
    _ssl_context.cache_clear()


async def _open_websocket(
    url: str,
    incoming: Incoming,
    headers: Mapping[str, str],
    subprotocol: str,
    ca: Path | None,
    timeout_s: float,
) -> Transport:
    extra = dict(headers)
    if subprotocol:
        extra["Sec-WebSocket-Protocol"] = subprotocol
    listener = _Listener(incoming)
    try:
        transport, _ = await picows.ws_connect(
            lambda: listener,
            url,
            ssl_context=_ssl_context(ca) if url.startswith("wss:") else None,
            websocket_handshake_timeout=timeout_s,  # picows goes on when this coroutine is cancelled
            max_frame_size=_HARD_LIMIT_BYTES,
            extra_headers=extra,
            max_redirects=0,  # a secret is not for whoever the agent names
            use_aiofastnet=False,
        )
    except BaseException:
        listener.incoming = None
        raise
    if not listener.is_connected:  # picows takes an end without an answer for a handshake
        raise ConnectError("the agent has closed the connection without an answer")
    limit_sending(transport.underlying_transport)
    return _WebSocket(transport, listener)


def limit_sending(transport: asyncio.Transport) -> None:
    """Little waits for a far side that does not read."""
    if transport.is_closing():
        return
    sock = transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
    transport.set_write_buffer_limits(high=_WRITE_LIMIT_BYTES)


async def listen_websocket(
    sock: socket.socket, accept: Accept, subprotocol: str, may_enter: Callable[[Mapping[str, str]], bool]
) -> asyncio.Server:
    """Takes WebSockets; `may_enter(headers)` False is answered 401."""

    def take(request: picows.WSUpgradeRequest) -> picows.WSUpgradeResponseWithListener:
        if not may_enter(request.headers):
            challenge = {"WWW-Authenticate": 'Basic realm="sipbridge"'}
            refusal = picows.WSUpgradeResponse.create_error_response(401, None, challenge)
            return picows.WSUpgradeResponseWithListener(refusal, None)
        offered = request.headers.get("Sec-WebSocket-Protocol", "").replace(" ", "").split(",")
        extra = {"Sec-WebSocket-Protocol": subprotocol} if subprotocol in offered else {}
        response = picows.WSUpgradeResponse.create_101_response(extra)
        listener = _AcceptingListener(accept, request.path.decode("latin-1"))
        return picows.WSUpgradeResponseWithListener(response, listener)

    return await picows.ws_create_server(
        take, sock=sock, max_frame_size=_HARD_LIMIT_BYTES, use_aiofastnet=False
    )


class _Listener(picows.WSListener):
    """Whole messages out of frames."""

    def __init__(self, incoming: Incoming | None) -> None:
        super().__init__()
        self.incoming = incoming  # None: closed by us
        self.closing: asyncio.TimerHandle | None = None
        self.is_connected = False  # or was
        self._parts: list[bytes] | None = None  # of a message in several frames
        self._is_text = False
        self._size = 0

    def on_ws_connected(self, transport: picows.WSTransport) -> None:
        self.is_connected = True
        if self.incoming is None:  # nobody waits for it any more
            transport.disconnect(graceful=False)

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        kind, incoming = frame.msg_type, self.incoming
        if incoming is None:
            if kind == picows.WSMsgType.CLOSE:
                transport.disconnect()
            return
        if kind in (_BINARY, _TEXT):
            is_text = kind == _TEXT
            if frame.fin:
                if frame.payload_size > MAX_MESSAGE_BYTES:
                    self._too_long(frame.payload_size)
                elif is_text:
                    self._tell(frame.get_payload_as_bytes(), is_text)
                else:
                    incoming.received(frame.get_payload_as_bytes())
            else:
                self._parts, self._is_text, self._size = [], is_text, 0
                self._add(frame)
        elif kind == picows.WSMsgType.CONTINUATION and self._parts is not None:
            self._add(frame)
            if frame.fin:
                parts, self._parts = self._parts, None
                if self._size > MAX_MESSAGE_BYTES:
                    self._too_long(self._size)
                else:
                    self._tell(b"".join(parts), self._is_text)
        elif kind == picows.WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code())
            transport.disconnect()

    def _add(self, frame: picows.WSFrame) -> None:
        self._size += frame.payload_size
        if self._parts is not None and self._size <= MAX_MESSAGE_BYTES:
            self._parts.append(frame.get_payload_as_bytes())

    def _tell(self, payload: bytes, is_text: bool) -> None:
        assert self.incoming is not None
        if not is_text:
            self.incoming.received(payload)
            return
        try:
            text = payload.decode()
        except UnicodeDecodeError:
            self.incoming.unreadable("a text message that is no UTF-8")
        else:
            self.incoming.received(text)

    def _too_long(self, size: int) -> None:
        assert self.incoming is not None
        self.incoming.unreadable(f"a message of {size} bytes, more than {MAX_MESSAGE_BYTES}")

    def pause_writing(self) -> None:
        if self.incoming is not None:
            self.incoming.blocked(True)

    def resume_writing(self) -> None:
        if self.incoming is not None:
            self.incoming.blocked(False)

    def on_ws_disconnected(self, transport: picows.WSTransport) -> None:
        if self.closing is not None:
            self.closing.cancel()
        incoming, self.incoming = self.incoming, None
        if incoming is None:
            return
        handshake = transport.close_handshake  # None where there was none, whatever its type says
        received = getattr(handshake, "recv", None)
        if received is None:
            incoming.lost(False, "the connection broke")
        else:
            # 1001 is a server that goes down, to come again perhaps; none at all is how many say goodbye
            in_order = received.code in (picows.WSCloseCode.OK, picows.WSCloseCode.NO_INFO)
            reason = f" {received.reason}" if received.reason else ""
            incoming.lost(in_order, f"the far side has closed the connection ({received.code}{reason})")


class _AcceptingListener(_Listener):
    """Of a connection that was made to us."""

    def __init__(self, accept: Accept, path: str) -> None:
        super().__init__(None)
        self._accept = accept
        self._path = path

    def on_ws_connected(self, transport: picows.WSTransport) -> None:
        limit_sending(transport.underlying_transport)
        host = transport.underlying_transport.get_extra_info("peername")[0]
        self.incoming = accepted = self._accept(host, self._path)
        super().on_ws_connected(transport)
        if accepted is not None:
            accepted.begin(_WebSocket(transport, self))


class _WebSocket(Transport):
    def __init__(self, transport: picows.WSTransport, listener: _Listener) -> None:
        self._transport = transport
        self._listener = listener

    def send(self, data: Wire) -> None:
        if self._listener.incoming is not None:
            self._transport.send(_TEXT if isinstance(data, str) else _BINARY, data)

    def pause_reading(self, paused: bool) -> None:
        if self._listener.incoming is not None:
            transport = self._transport.underlying_transport
            if paused:
                transport.pause_reading()
            else:
                transport.resume_reading()

    def close(self, error: str = "") -> None:
        if self._listener.incoming is not None:
            self.pause_reading(False)
            self._listener.incoming = None
            code = picows.WSCloseCode.PROTOCOL_ERROR if error else picows.WSCloseCode.OK
            self._transport.send_close(code, error.encode()[:120])
            self._listener.closing = asyncio.get_running_loop().call_later(
                _CLOSE_S, functools.partial(self._transport.disconnect, graceful=False)
            )


# ---------------------------------------------------------------- a byte stream


async def _open_stream(address: str, incoming: Incoming) -> Transport:
    host, port = split_host_port(address)
    if port is None:
        raise ValueError(f"{address!r} has no port")
    loop = asyncio.get_running_loop()
    transport, stream = await loop.create_connection(lambda: _Stream(incoming), host, port)
    limit_sending(transport)
    return _Tcp(transport, stream)


async def listen_stream(sock: socket.socket, accept: Accept) -> asyncio.Server:
    """Takes byte streams."""
    return await asyncio.get_running_loop().create_server(lambda: _AcceptedStream(accept), sock=sock)


class _Stream(asyncio.Protocol):
    def __init__(self, incoming: Incoming | None) -> None:
        self.incoming = incoming  # None: closed by us
        self.closing: asyncio.TimerHandle | None = None
        self._ended = False

    def data_received(self, data: bytes) -> None:
        if self.incoming is not None:
            self.incoming.received(data)

    def eof_received(self) -> None:
        self._ended = True

    def pause_writing(self) -> None:
        if self.incoming is not None:
            self.incoming.blocked(True)

    def resume_writing(self) -> None:
        if self.incoming is not None:
            self.incoming.blocked(False)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.closing is not None:
            self.closing.cancel()
        incoming, self.incoming = self.incoming, None
        if incoming is not None:
            detail = "the far side has closed the connection" if self._ended else "the connection broke"
            incoming.lost(self._ended and exc is None, detail)


class _AcceptedStream(_Stream):
    """Of a connection that was made to us."""

    def __init__(self, accept: Accept) -> None:
        super().__init__(None)
        self._accept = accept

    def connection_made(self, made: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, made)  # uvloop's are of no such class
        limit_sending(transport)
        self.incoming = accepted = self._accept(transport.get_extra_info("peername")[0], "")
        if accepted is None:
            transport.abort()
        else:
            accepted.begin(_Tcp(transport, self))


class _Tcp(Transport):
    def __init__(self, transport: asyncio.Transport, stream: _Stream) -> None:
        self._transport = transport
        self._stream = stream

    def send(self, data: Wire) -> None:
        if self._stream.incoming is not None:
            self._transport.write(data.encode() if isinstance(data, str) else data)

    def pause_reading(self, paused: bool) -> None:
        if self._stream.incoming is not None:
            if paused:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def close(self, error: str = "") -> None:
        if self._stream.incoming is not None:
            self.pause_reading(False)
            self._stream.incoming = None
            self._transport.write_eof()
            self._stream.closing = asyncio.get_running_loop().call_later(_CLOSE_S, self._transport.abort)
