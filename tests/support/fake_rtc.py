# SPDX-License-Identifier: GPL-3.0-or-later
"""What stands around a channel backend: its context, and a call that writes down what it is told."""

import asyncio
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from sipbridge.config import Config
from sipbridge.errors import CallError, EndKind, EndReason, Party, RtcError
from sipbridge.media.loop import Source
from sipbridge.media.tones import Tone
from sipbridge.routing import Target
from sipbridge.rtc import registry
from sipbridge.rtc.base import JoinRequest, PlaybackQueue, RtcConnection, RtcContext, RtcListener
from sipbridge.rtc.local import LocalRooms
from sipbridge.rtc.registry import make_connection
from tests.support.fake_bank import FakeMedia, FakePort

HUNG_UP = EndReason(EndKind.HANGUP, "hung up")


def make_context(media: FakeMedia, config: Config | None = None) -> RtcContext:
    return RtcContext(config or Config(), media.loop, LocalRooms(), media.remotes)


class FakeListener:
    """The listener of a channel: it writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.refusal: EndReason | None = None  # of a transfer or a hold

    def participant_joined(self, identity: str) -> None:
        self.told.append(("joined", identity))

    def participant_left(self, identity: str, remaining: int) -> None:
        self.told.append(("left", identity, remaining))

    def dtmf(self, digit: str) -> None:
        self.told.append(("dtmf", digit))

    def message(self, topic: str, text: str) -> None:
        self.told.append(("message", topic, text))

    def noticed(self, kind: str, identity: str, data: Mapping[str, Any]) -> None:
        self.told.append(("noticed", kind, identity, dict(data)))

    def hangup_requested(self, reason: EndReason) -> None:
        self.told.append(("hangup", reason))

    async def transfer(self, to: str) -> None:
        self.told.append(("transfer", to))
        if self.refusal is not None:
            raise CallError(self.refusal)

    async def hold(self, held: bool) -> None:
        self.told.append(("hold", held))
        if self.refusal is not None:
            raise CallError(self.refusal)

    def closed(self, reason: EndReason) -> None:
        self.told.append(("closed", reason))


class FakeCall(FakeListener):
    """A telephone, and the listener of its channel."""

    def __init__(
        self, media: FakeMedia, context: RtcContext, target: str, call_id: str, rate_hz: int = 8000
    ) -> None:
        super().__init__()
        self.call_id = call_id
        self.phone: FakePort = media.bank.add(rate_hz)
        self.connection: RtcConnection = make_connection(Target.parse(target), context)

    async def connect(self) -> None:
        join = JoinRequest(call_id=self.call_id, direction="inbound", caller="100", callee="200")
        await self.connection.connect(join, self.phone, self)

    async def close(self) -> None:
        await self.connection.close(HUNG_UP)


class ScriptedConnection(RtcConnection):
    """A channel that does what a test says: `scripted:` with how `connect` shall go."""

    made: ClassVar[list["ScriptedConnection"]] = []

    def __init__(self, target: Target, context: RtcContext) -> None:
        super().__init__(target, context)
        self.may_join = asyncio.Event()
        self.joined = False
        self.join: JoinRequest
        self.playback: PlaybackQueue
        self.listener: RtcListener
        self.sent: list[tuple[object, ...]] = []
        self.closed: list[EndReason] = []
        ScriptedConnection.made.append(self)

    async def connect(self, join: JoinRequest, playback: PlaybackQueue, listener: RtcListener) -> None:
        self.join, self.playback, self.listener = join, playback, listener
        match self.target.address:
            case "refuses":
                raise RtcError(EndReason(EndKind.BUSY, "the room is full", Party.CHANNEL))
            case "breaks":
                raise ZeroDivisionError("oh no")
            case "waits":
                await self.may_join.wait()
        if not self.closed:
            self.joined = True
            self.context.media.attach(playback.port_id, Source(lambda rate_hz: Tone(1000, rate_hz)))

    async def send_dtmf(self, digit: str, duration_ms: int) -> None:
        self.sent.append((digit, duration_ms))

    async def close(self, reason: EndReason) -> None:
        self.closed.append(reason)
        if self.joined:
            self.context.media.detach(self.playback.port_id)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> list[ScriptedConnection]:
    """The channels that were made; the scheme is known within the test."""
    monkeypatch.setitem(registry.BACKENDS, "scripted", f"{__name__}:ScriptedConnection")
    ScriptedConnection.made.clear()
    return ScriptedConnection.made
