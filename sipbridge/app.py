# SPDX-License-Identifier: GPL-3.0-or-later
"""The one place where everything is made and wired together."""

import asyncio

from sipbridge.calls import CallRegistry
from sipbridge.config import Config
from sipbridge.http.server import HttpServer
from sipbridge.media.loop import MediaLoop
from sipbridge.media.remote import RemotePorts
from sipbridge.rtc import registry
from sipbridge.rtc.websocket.pbx import PbxServer
from sipbridge.sip import CallLeg, SipEndpoint


class App:
    """A bridge, started once. Event loop.

    ::

        SipEndpoint ──(clock, ports)──► MediaLoop, RemotePorts
             │                              │
             └────────► CallRegistry ◄──────┘ ◄──── HttpServer, PbxServers
    """

    def __init__(self, config: Config, *, http: bool = True) -> None:
        self.config = config
        self.calls: CallRegistry  # from start() on
        self.listening: list[str] = []
        self._with_http = http
        self._endpoint: SipEndpoint | None = None
        self._media: MediaLoop | None = None
        self._remotes: RemotePorts | None = None
        self._pbxs: list[PbxServer] = []
        self._http: HttpServer | None = None

    async def start(self) -> None:
        """Listens. ConfigError when a port cannot be had; nothing is left running then."""
        self._endpoint = SipEndpoint(self.config, self._on_incoming)
        await self._endpoint.start()
        try:
            media = self.config.media
            self._media = MediaLoop(
                self._endpoint.engine.clock(),
                self._endpoint.engine.bank(),
                tick_ms=media.tick_ms,
                live_resampler=media.live_resampler,
            )
            self._media.start()
            registry.load_configured(self.config)
            self._remotes = RemotePorts(
                self._endpoint.engine.outbox(),
                self._endpoint.make_sample_port,
                self._endpoint.make_track_port,
            )
            self._remotes.start()
            await registry.start_up(self.config)
            self.calls = CallRegistry(self.config, self._endpoint, self._media, self._remotes)
            self.listening = list(self._endpoint.listening)
            for pbx in self.calls.make_pbx_servers():
                self._pbxs.append(pbx)
                await pbx.start()
                self.listening.append(f"{pbx.config.protocol} {pbx.address}")
            if self._with_http:
                self._http = HttpServer(self.config.http, self.calls, self.config.livekit)
                await self._http.start()
                self.listening.append(f"http {self._http.address}")
        except BaseException:
            await self.stop()
            raise
        # until here the gate answered 503
        self._endpoint.set_draining(False)

    def _on_incoming(self, leg: CallLeg) -> None:
        self.calls.on_incoming(leg)

    async def drain(self, timeout_s: float) -> None:
        """Refuses new calls with 503 and returns when the last one has ended, or the time is up."""
        await self.calls.drain(timeout_s)

    async def stop(self) -> None:
        """Ends what is left: calls with a reason, then the servers and threads."""
        if self._endpoint is not None and self._media is not None and hasattr(self, "calls"):
            self._endpoint.set_draining(True)
            await self.calls.end_all()
        for pbx in self._pbxs:
            await pbx.stop()
        self._pbxs.clear()
        if self._http is not None:
            await self._http.stop()
            self._http = None
        await registry.shut_down()
        if self._remotes is not None:
            await asyncio.to_thread(self._remotes.stop)
            self._remotes = None
        if self._media is not None:
            await asyncio.to_thread(self._media.stop)
            self._media = None
        if self._endpoint is not None:
            await self._endpoint.stop()
            self._endpoint = None
