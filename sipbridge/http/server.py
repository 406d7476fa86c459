# SPDX-License-Identifier: GPL-3.0-or-later
"""The HTTP server, on the event loop that everything else of ours runs on."""

import asyncio
import contextlib
import socket
from collections.abc import Generator

import uvicorn

from sipbridge import ports
from sipbridge.calls import CallRegistry
from sipbridge.config import HttpConfig, LiveKitConfig
from sipbridge.errors import ConfigError
from sipbridge.http.api import create_api
from sipbridge.http.socket import SocketProtocol
from sipbridge.http.token import read_or_make_token, token_path
from sipbridge.routing import join_host_port, split_host_port

STOP_TIMEOUT_S = 2  # that requests have to end


class HttpServer:
    """Serves the API from `start` to `stop`.

    Started last: whoever can connect may count on calls being taken.
    """

    def __init__(self, config: HttpConfig, calls: CallRegistry, livekit: LiveKitConfig | None = None) -> None:
        self._config = config
        self._livekit = livekit
        self._calls = calls
        host, port = split_host_port(config.listen)
        self._host = host
        self._port = port or 0
        self._closing = asyncio.Event()
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        """Where it listens, as ``127.0.0.1:8080``; the real port, once started, where 0 was configured."""
        return join_host_port(self._host, self._port)

    async def start(self) -> None:
        """Returns once requests are answered.

        Makes this user's token where there is none yet. ConfigError when that cannot be done, or when it
        cannot listen at its address.
        """
        tokens = [read_or_make_token(token_path())]
        tokens += [secret.get_secret_value() for secret in self._config.tokens]
        try:
            sock = ports.open_socket("tcp", self._host, self._port)
        except OSError as error:
            message = ports.explain(error, "tcp", self._host, self._port)
            raise ConfigError(message, table="http", key="listen") from None
        self._port = sock.getsockname()[1]
        self._server = _Server(
            uvicorn.Config(
                create_api(self._calls, tokens, self._closing, self._livekit),
                http="h11",
                ws=SocketProtocol,
                ws_per_message_deflate=False,
                lifespan="off",
                log_config=None,
                log_level="warning",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=STOP_TIMEOUT_S,
            )
        )
        self._task = asyncio.create_task(self._server.serve([sock]), name="http")
        listening = asyncio.create_task(self._server.listening.wait())
        await asyncio.wait((self._task, listening), return_when=asyncio.FIRST_COMPLETED)
        if not listening.done():
            listening.cancel()
            self._task.result()

    async def stop(self) -> None:
        """Ends event streams, lets requests end for a moment, and closes. Harmless when it never started."""
        self._closing.set()
        if self._task is not None and self._server is not None:
            self._server.should_exit = True
            await self._task
            self._task = None


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield  # signals are the command line's: they drain calls first
