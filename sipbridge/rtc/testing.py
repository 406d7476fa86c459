# SPDX-License-Identifier: GPL-3.0-or-later
"""Channels for trying a line: `echo:`, `tone:HZ`, `silence:` and `play:FILE.wav` (again and again)."""

from pathlib import Path

import numpy as np

from sipbridge.errors import EndKind, EndReason, MediaError, RtcError
from sipbridge.media.loop import Echo, Route, SampleSource, Source
from sipbridge.media.tones import Clip, Tone
from sipbridge.media.wav import WavSource
from sipbridge.routing import Target
from sipbridge.rtc.base import JoinRequest, PlaybackQueue, RtcConnection, RtcContext, RtcListener


class _RoutedConnection(RtcConnection):
    """A channel that is nothing but a route in the media loop."""

    def __init__(self, target: Target, context: RtcContext) -> None:
        super().__init__(target, context)
        self._port_id: int | None = None

    def route(self, rate_hz: int) -> Route:
        raise NotImplementedError

    async def connect(self, join: JoinRequest, playback: PlaybackQueue, listener: RtcListener) -> None:
        route = self.route(playback.sample_rate_hz)
        self._port_id = playback.port_id
        self.context.media.attach(playback.port_id, route)

    async def close(self, reason: EndReason) -> None:
        if self._port_id is not None:
            self.context.media.detach(self._port_id)
            self._port_id = None


class EchoConnection(_RoutedConnection):
    """The caller hears itself."""

    def route(self, rate_hz: int) -> Route:
        return Echo()


class SilenceConnection(_RoutedConnection):
    """The caller hears nothing; RTP flows."""

    def route(self, rate_hz: int) -> Route:
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

    def route(self, rate_hz: int) -> Route:
        return Source(lambda rate_hz: Tone(self._frequency_hz, rate_hz))


class PlayConnection(_RoutedConnection):
    """The caller hears a sound file, again and again."""

    def __init__(self, target: Target, context: RtcContext) -> None:
        super().__init__(target, context)
        if not target.address:
            raise ValueError("expected play:FILE.wav")

    def route(self, rate_hz: int) -> Route:
        path, asked_hz = Path(self.target.address), rate_hz
        try:
            first = WavSource(path, rate_hz, loop=True)
        except MediaError as error:
            raise RtcError(EndReason(EndKind.CHANNEL_FAILED, str(error))) from error

        def make(rate_hz: int) -> SampleSource:
            # the file is read here and not on the media thread, unless a codec changes the rate
            return first if rate_hz == asked_hz else WavSource(path, rate_hz, loop=True)

        return Source(make)
