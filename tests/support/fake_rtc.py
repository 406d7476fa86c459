# SPDX-License-Identifier: GPL-3.0-or-later
"""What stands around a channel backend: its context, and a call that writes down what it is told."""

from sipbridge.config import Config
from sipbridge.errors import EndKind, EndReason
from sipbridge.routing import Target
from sipbridge.rtc.base import JoinRequest, RtcConnection, RtcContext
from sipbridge.rtc.local import LocalRooms
from sipbridge.rtc.registry import make_connection
from tests.support.fake_bank import FakeMedia, FakePort

HUNG_UP = EndReason(EndKind.HANGUP, "hung up")


def make_context(media: FakeMedia) -> RtcContext:
    return RtcContext(Config(), media.loop, LocalRooms())


class FakeCall:
    """A telephone, and the listener of its channel."""

    def __init__(
        self, media: FakeMedia, context: RtcContext, target: str, call_id: str, rate_hz: int = 8000
    ) -> None:
        self.call_id = call_id
        self.phone: FakePort = media.bank.add(rate_hz)
        self.told: list[tuple[object, ...]] = []
        self.connection: RtcConnection = make_connection(Target.parse(target), context)

    async def connect(self) -> None:
        join = JoinRequest(call_id=self.call_id, direction="inbound", caller="100", callee="200")
        await self.connection.connect(join, self.phone, self)

    async def close(self) -> None:
        await self.connection.close(HUNG_UP)

    # --- RtcListener

    def participant_joined(self, identity: str) -> None:
        self.told.append(("joined", identity))

    def participant_left(self, identity: str, remaining: int) -> None:
        self.told.append(("left", identity, remaining))

    def dtmf(self, digit: str) -> None:
        self.told.append(("dtmf", digit))

    def message(self, topic: str, text: str) -> None:
        self.told.append(("message", topic, text))

    def hangup_requested(self, reason: EndReason) -> None:
        self.told.append(("hangup", reason))

    def closed(self, reason: EndReason) -> None:
        self.told.append(("closed", reason))
