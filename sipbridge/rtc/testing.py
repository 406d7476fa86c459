# SPDX-License-Identifier: GPL-3.0-or-later
"""Channels for trying a line: `echo:`, `tone:HZ`, `silence:` and `play:FILE.wav` (again and again)."""

import abc
import asyncio
from pathlib import Path

import numpy as np

from sipbridge.errors import EndKind, EndReason, MediaError, RtcError
from sipbridge.media.loop import Echo, Route, Source
from sipbridge.media.tones import Clip, Tone
from sipbridge.media.wav import open_wav
from sipbridge.routing import Target
from sipbridge.rtc.base import JoinRequest, PlaybackQueue, RtcConnection, RtcContext, RtcListener


class _RoutedConnection(RtcConnection):
    """A channel that is nothing but a route in the media loop."""

    def __init__(self, target: Target, context: RtcContext) -> None:
        super().__init__(target, context)
        self._closed = False
        self._port_id: int | None = None  # while joined

    @abc.abstractmethod
    async def route(self, rate_hz: int) -> Route:
        """What a leg that has this rate now is to hear."""

    async def connect(self, join: JoinRequest, playback: PlaybackQueue, listener: RtcListener) -> None:
        route = await self.route(playback.sample_rate_hz)
        if not self._closed:
            self._port_id = playback.port_id
            self.context.media.attach(playback.port_id, route)

    async def close(self, reason: EndReason) -> None:
        self._closed = True
        if self._port_id is not None:
            self.context.media.detach(self._port_id)
            self._port_id = None


class EchoConnection(_RoutedConnection):
    """The caller hears itself."""

    async def route(self, rate_hz: int) -> Route:
        return Echo()


class SilenceConnection(_RoutedConnection):
    """The caller hears nothing; RTP flows."""

    async def route(self, rate_hz: int) -> Route:
        return Source(lambda rate_hz: Clip(np.zeros(rate_hz, np.int16), loop=True))


class ToneConnection(_RoutedConnection):
    """The caller hears a sine wave, `tone:440`."""

    def __init__(self, target: Target, context: RtcContext) -> None:
        super().__init__(target, context)
        try:
            self._frequency_hz = float(target.address)
        except ValueError:
            raise ValueError("expected tone:HZ, as in tone:440") from None
        if not 20 <= self._frequency_hz <= 20000:
            raise ValueError("a tone has 20 to 20000 Hz")

    async def route(self, rate_hz: int) -> Route:
        return Source(lambda rate_hz: Tone(self._frequency_hz, rate_hz))


class PlayConnection(_RoutedConnection):
    """The caller hears a sound file, again and again."""

    def __init__(self, target: Target, context: RtcContext) -> None:
        super().__init__(target, context)
        if not target.address:
            raise ValueError("expected play:FILE.wav")

    async def route(self, rate_hz: int) -> Route:
        path = Path(self.target.address)
        try:
            return Source(await asyncio.to_thread(open_wav, path, rate_hz, loop=True))
        except MediaError as error:
            raise RtcError(EndReason(EndKind.CHANNEL_FAILED, str(error))) from error
