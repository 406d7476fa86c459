# SPDX-License-Identifier: GPL-3.0-or-later
"""Between a client and a LiveKit server: signalling that goes through as it is, altered, or not at all.

::

    client ──► SignalRequest ──► alter ──► server
           ◄── alter ◄── SignalResponse ◄──
"""

import contextlib
import http
import re
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from livekit.protocol.rtc import SignalRequest, SignalResponse
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import ServerConnection, serve

from tests.support.livekit import LiveKitServer

# Changes a message as it passes; False where it shall not.
type Alter = Callable[[SignalRequest | SignalResponse], bool]

_FINGERPRINT = re.compile(r"^(a=fingerprint:\S+ )(..)", re.MULTILINE)


def nothing(message: SignalRequest | SignalResponse) -> bool:
    return True


def fingerprint_of_server(message: SignalRequest | SignalResponse) -> bool:
    """The client expects another certificate than the one that the server has."""
    if isinstance(message, SignalResponse):
        _rewrite(message, _with_other_fingerprints)
    return True


def fingerprint_of_client(message: SignalRequest | SignalResponse) -> bool:
    """The server expects another one."""
    if isinstance(message, SignalRequest):
        _rewrite(message, _with_other_fingerprints)
    return True


def candidates(message: SignalRequest | SignalResponse) -> bool:
    """No side learns an address of the other."""
    _rewrite(message, lambda sdp: re.sub(r"^a=candidate:.*\r?\n", "", sdp, flags=re.MULTILINE))
    return not message.HasField("trickle")


def _rewrite(message: SignalRequest | SignalResponse, change: Callable[[str], str]) -> None:
    match message.WhichOneof("message"):
        case "offer":
            message.offer.sdp = change(message.offer.sdp)
        case "answer":
            message.answer.sdp = change(message.answer.sdp)


def _with_other_fingerprints(sdp: str) -> str:
    return _FINGERPRINT.sub(lambda found: f"{found[1]}{int(found[2], 16) ^ 0xFF:02X}", sdp)


class LiveKitProxy:
    """`alter` and `is_shut` may be changed at any time."""

    def __init__(self, server: LiveKitServer) -> None:
        self.alter: Alter = nothing
        self.is_shut = False  # whoever comes is sent away
        self._server_url = server.url
        self._clients: set[ServerConnection] = set()
        self._listener = serve(
            self._talk, "127.0.0.1", 0, process_request=self._judge, ping_interval=None, compression=None
        )
        self.url = f"ws://127.0.0.1:{self._listener.socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._listener.serve_forever, name="livekit-proxy")
        self._thread.start()

    def tell(self, message: SignalResponse) -> None:
        """As if the server had said it to all clients that are there."""
        for client in list(self._clients):
            client.send(message.SerializeToString())

    def _judge(self, client: ServerConnection, request: Request) -> Response | None:
        return client.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "shut\n") if self.is_shut else None

    def _talk(self, client: ServerConnection) -> None:
        assert client.request is not None
        authorization = {"Authorization": client.request.headers["Authorization"]}
        with connect(
            self._server_url + client.request.path,
            additional_headers=authorization,
            ping_interval=None,
            compression=None,
        ) as server:
            self._clients.add(client)
            back = threading.Thread(target=self._carry_back, args=(server, client), name="livekit-proxy")
            back.start()
            with contextlib.suppress(ConnectionClosed):
                for data in client:
                    assert isinstance(data, bytes)
                    request = SignalRequest.FromString(data)
                    if self.alter(request):
                        server.send(request.SerializeToString())
            self._clients.discard(client)
            server.close()
            back.join()

    def _carry_back(self, server: ClientConnection, client: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            for data in server:
                assert isinstance(data, bytes)
                response = SignalResponse.FromString(data)
                if self.alter(response):
                    client.send(response.SerializeToString())
        client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for client in list(self._clients):
            client.close()
        self._listener.shutdown()
        self._thread.join()
