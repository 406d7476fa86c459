# SPDX-License-Identifier: GPL-3.0-or-later
"""The media engine of a server in a process of its own, for tests of what speaks WebRTC."""

import asyncio
import multiprocessing
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from sipbridge.app import App
from sipbridge.config import Config, SipConfig, WebRtcConfig
from sipbridge.media.loop import MediaLoop
from sipbridge.media.remote import RemotePorts
from tests.support.ports import free_port, free_udp_range


@dataclass
class Engine:
    """What backends get."""

    media: MediaLoop
    remotes: RemotePorts
    config: WebRtcConfig
    app: App

    def ports(self) -> int:
        """How many legs there are."""
        assert self.app._endpoint is not None
        return int(self.app._endpoint.counters()["ports"])


def with_engine(work: Callable[[Engine], Awaitable[None]]) -> None:
    """Runs `work`, a function of a module, in a new process. Its exceptions come here."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pool.submit(_run, work).result()


def _run(work: Callable[[Engine], Awaitable[None]]) -> None:
    async def run() -> None:
        first = free_udp_range(64)
        sip = SipConfig(
            listen=(f"127.0.0.1:{free_port()}",), transports=("udp",), rtp_ports=(first, first + 31)
        )
        webrtc = WebRtcConfig(bind_address="127.0.0.1", ports=(first + 32, first + 63))
        app = App(Config(sip=sip, webrtc=webrtc), http=False)
        await app.start()
        assert app._media is not None
        assert app._remotes is not None
        try:
            await work(Engine(app._media, app._remotes, webrtc, app))
        finally:
            await app.stop()

    asyncio.run(run())
