# SPDX-License-Identifier: GPL-3.0-or-later
"""A LiveKit room without a server: memberships that a test scripts, with ports of the fake bank."""

import asyncio
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import numpy as np
from pydantic import SecretStr

from sipbridge.config import Config, LiveKitConfig
from sipbridge.errors import EndReason
from sipbridge.media.tones import Tone
from sipbridge.rtc.livekit.session import SessionListener
from sipbridge.rtc.livekit.token import Entry
from sipbridge.rtc.webrtc.peer import AudioTrack
from tests.support.codecs import Samples
from tests.support.fake_bank import FakeMedia, FakePort

SERVER: dict[str, Any] = {
    "url": "ws://livekit.invalid",
    "api_key": "key",
    "api_secret": SecretStr("secret_of_at_least_32_characters_x"),
}


def config(**changes: Any) -> Config:
    return Config(livekit=LiveKitConfig(**{**SERVER, **changes}))


class FakeTrackPort:
    """A port of the bank that speaks, or hears."""

    def __init__(self, media: FakeMedia, rate_hz: int) -> None:
        self.port: FakePort = media.bank.add(rate_hz)
        self.port_id = self.port.port_id
        self.sample_rate_hz = rate_hz
        self.closed = False
        self._media = media

    def close(self) -> None:
        assert self.port_id not in self._media.bank.attached, "closed while it is heard"
        if self.closed:
            return
        self.closed = True
        self._media.bank.remove(self.port)


class FakeTrack:
    """Somebody's audio."""

    def __init__(self, media: FakeMedia, hz: float) -> None:
        self.hz = hz
        self.ports: list[FakeTrackPort] = []
        self._media = media

    def open(self, rate_hz: int) -> FakeTrackPort:
        port = FakeTrackPort(self._media, rate_hz)
        port.port.say(Tone(self.hz, rate_hz))
        self.ports.append(port)
        return port

    def close(self) -> None:
        for port in self.ports[-1:]:
            port.close()


class FakeSession:
    """Takes the place of `Session`; class attributes are the script."""

    media: ClassVar[FakeMedia]
    made: ClassVar[list["FakeSession"]]
    hz: ClassVar[float]  # of the one other, who is there from the beginning; 0: nobody
    failures: ClassVar[list[BaseException]]  # of the next attempts to join
    may_join: ClassVar[asyncio.Event | None]

    @classmethod
    def begin(cls, media: FakeMedia, hz: float = 0.0) -> None:
        cls.media, cls.made, cls.hz = media, [], hz
        cls.failures, cls.may_join = [], None

    def __init__(
        self, listener: SessionListener, webrtc: Any, remotes: Any, call_id: str, *, resume_s: float
    ) -> None:
        self.listener = listener
        self.ended: asyncio.Future[EndReason | None] = asyncio.get_running_loop().create_future()
        self.detail = ""
        self.lost_at = 0.0
        self.refreshed_token = ""
        self.regions: tuple[str, ...] = ()
        self.speakers: dict[str, float] = {}
        self.is_let_in = False
        self.others: set[str] = set()
        self.tracks: list[FakeTrack] = []
        self.entry: Entry
        self.codec = ""
        self.is_published = False
        self.out: list[FakeTrackPort] = []
        self.sent: list[bytes] = []
        self.attributes: dict[str, str] = {}
        self.muted = False
        self.left: list[EndReason | None] = []
        self.is_closed = False
        FakeSession.made.append(self)

    # --- what the test does

    def come(self, identity: str) -> None:
        self.others.add(identity)
        self.listener.participant_joined(identity)

    def go(self, identity: str) -> None:
        self.others.discard(identity)
        self.listener.participant_left(identity)

    def raise_voices(self, **levels: float) -> None:
        self.speakers = dict(levels)
        self.listener.speakers_changed()

    def speak(self, hz: float) -> FakeTrack:
        track = FakeTrack(self.media, hz)
        self.tracks.append(track)
        self.listener.track_added(cast(AudioTrack, track))
        return track

    def cease(self, track: FakeTrack) -> None:
        self.tracks.remove(track)
        self.listener.track_removed(cast(AudioTrack, track))

    def lose(self, detail: str = "signalling: the connection broke") -> None:
        self.detail = detail
        self.lost_at = asyncio.get_running_loop().time()
        self.ended.set_result(None)

    @property
    def heard(self) -> Samples:
        """What the call has said."""
        return np.concatenate([np.zeros(0, np.int16), *(port.port.heard for port in self.out)])

    # --- as `Session`

    async def join(self, entry: Entry, timeout_s: float) -> None:
        self.entry = entry
        if self.failures:
            raise self.failures.pop(0)
        self.is_let_in = True
        if self.may_join is not None:
            await self.may_join.wait()
        if self.hz:
            self.come("far")
            self.speak(self.hz)

    def publish(self, codec: str) -> None:
        if not self.codec:
            self.codec = codec
            asyncio.get_running_loop().call_soon(self._publish)

    def _publish(self) -> None:
        if not self.left:
            self.is_published = True
            self.listener.published()

    def open_track(self, rate_hz: int) -> FakeTrackPort:
        self.out.append(FakeTrackPort(self.media, rate_hz))
        return self.out[-1]

    def send_packet(self, packet: bytes) -> None:
        self.sent.append(packet)

    def set_attributes(self, attributes: Mapping[str, str]) -> None:
        self.attributes.update(attributes)

    def mute(self, muted: bool) -> None:
        self.muted = muted

    def leave(self, reason: EndReason | None = None) -> None:
        if not self.left:
            self.left.append(reason)

    async def close(self) -> None:
        self.leave()
        self.is_closed = True
        self.ended.cancel()
        for track in self.tracks:
            track.close()
        for port in self.out[-1:]:
            port.close()
