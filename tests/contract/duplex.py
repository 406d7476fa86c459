# SPDX-License-Identifier: GPL-3.0-or-later
"""A backend as somebody else would write it: `duplex:HZ`, named by an entry point, with audio of its own.

It takes the call's frames and writes playback itself, as one does that speaks to a server.
"""

import asyncio

from sipbridge.errors import EndReason
from sipbridge.media.loop import Channel
from sipbridge.media.tones import Tone
from sipbridge.routing import Target
from sipbridge.rtc.base import JoinRequest, PlaybackQueue, RtcConnection, RtcContext, RtcListener, Samples


class DuplexConnection(RtcConnection):
    """Its far side says a sine wave and remembers what it hears."""

    heard: list[Samples]  # of all calls
    heard_hz: int

    def __init__(self, target: Target, context: RtcContext) -> None:
        super().__init__(target, context)
        self._hz = float(target.address)
        self._closed = False
        self._playback: PlaybackQueue | None = None
        self._voice = Tone(self._hz, 8000)
        self._rate_hz = 8000

    async def connect(self, join: JoinRequest, playback: PlaybackQueue, listener: RtcListener) -> None:
        await asyncio.sleep(0)  # a server is asked
        if not self._closed:
            self._playback = playback
            self.context.media.attach(playback.port_id, Channel(self._take))
            listener.participant_joined("server")

    def _take(self, samples: Samples, rate_hz: int) -> None:  # media thread
        playback = self._playback
        if playback is not None:
            DuplexConnection.heard.append(samples.copy())
            DuplexConnection.heard_hz = rate_hz
            if rate_hz != self._rate_hz:
                self._rate_hz = rate_hz
                self._voice = Tone(self._hz, rate_hz)
            playback.write(self._voice.read(samples.size))

    async def close(self, reason: EndReason) -> None:
        self._closed = True
        if self._playback is not None:
            self.context.media.detach(self._playback.port_id)
            self._playback = None
