# SPDX-License-Identifier: GPL-3.0-or-later
"""The SIP side without SIP: legs whose telephone is played by a test, on the event loop alone."""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import cast

from sipbridge.config import Config, TrunkConfig
from sipbridge.errors import EndKind, EndReason, Party
from sipbridge.events import Direction, DtmfMethod
from sipbridge.leg import NO_HEADERS, LegListener, LegState, LegStats
from sipbridge.routing import DialPlan, SipUri
from sipbridge.sip import CallLeg, SipEndpoint
from sipbridge.sip.media_port import MediaPort
from tests.support.fake_bank import FakeMedia, FakePort


class FakeEndpoint(SipEndpoint):
    """What is posted to the SIP thread happens on the event loop, soon."""

    def __init__(self, config: Config, media: FakeMedia) -> None:
        self.config = config
        self.media = media
        self.play_inband: Callable[[CallLeg, str], None] = lambda leg, digit: None
        self.dialled: list[FakeLeg] = []
        self.plans: list[DialPlan] = []
        self.dial_error: Exception | None = None
        self.may_dial = asyncio.Event()  # cleared: looking up whom to dial takes its time
        self.may_dial.set()
        self.draining = False
        self._loop = asyncio.get_running_loop()

    def post(self, work: Callable[[], None]) -> None:
        self._loop.call_soon_threadsafe(work)

    def tell(self, told: Callable[[], None]) -> None:
        self._loop.call_soon_threadsafe(told)

    async def run[R](self, work: Callable[[], R]) -> R:
        await asyncio.sleep(0)
        return work()

    def set_draining(self, draining: bool) -> None:
        self.draining = draining

    def counters(self) -> dict[str, int]:
        return {"calls": sum(leg.state is not LegState.ENDED for leg in self.dialled)}

    async def dial(
        self, call_id: str, plan: DialPlan, *, caller: SipUri | None, headers: Mapping[str, str]
    ) -> CallLeg:
        await self.may_dial.wait()
        if self.dial_error is not None:
            raise self.dial_error
        leg = FakeLeg(
            self,
            call_id,
            direction="outbound",
            trunk=plan.trunk,
            caller=caller.party if caller is not None else "",
            callee=plan.callee,
        )
        leg.extra_headers = headers
        self.plans.append(plan)
        self.dialled.append(leg)
        return leg


class FakeLeg(CallLeg):
    """A leg, with what the bridge `asked` it for, and the telephone at its far end, which does the verbs."""

    def __init__(
        self,
        endpoint: FakeEndpoint,
        call_id: str,
        *,
        direction: Direction = "inbound",
        trunk: TrunkConfig | None = None,
        caller: str = "100",
        callee: str = "200",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.phone: FakePort = endpoint.media.bank.add()
        super().__init__(
            endpoint,
            call_id=call_id,
            direction=direction,
            trunk=trunk,
            caller=caller,
            callee=callee,
            headers=headers or {},
            port=cast(MediaPort, self.phone),
        )
        self.asked: list[str] = []
        self.reasons: list[EndReason] = []  # why the bridge hung up
        self.pressed: list[str] = []
        self.events_agreed = True  # telephone events, RFC 4733
        self.at_end = LegStats(codec="PCMU", received_packets=500, jitter_ms=1.23, loss_percent=0.456)
        self._bank = endpoint.media.bank

    # --- what the bridge asks for

    def ring(self) -> None:
        self.asked.append("ring")

    def progress(self) -> None:
        self.asked.append("progress")

    def answer(self, headers: Mapping[str, str] = NO_HEADERS) -> None:
        """The caller acknowledges at once."""
        self.asked.append("answer")
        self.endpoint.post(self.answers)

    def hangup(self, reason: EndReason, headers: Mapping[str, str] = NO_HEADERS) -> None:
        self.asked.append("hangup")
        self.reasons.append(reason)
        self.endpoint.post(lambda: self.ends(reason))

    async def send_digits(self, digits: str) -> None:
        self.pressed += [f"<{digits}", f"{digits}>"] if len(digits) > 1 else [digits]
        await asyncio.sleep(0.26)

    async def stats(self) -> LegStats:
        return await self.endpoint.run(lambda: self.at_end)

    def hears_telephone_events(self) -> bool:
        return self.events_agreed

    # --- what the telephone does

    @property
    def _told_to(self) -> LegListener:
        assert self.listener is not None
        return self.listener

    def rings(self, early_media: bool = False) -> None:
        self.state = LegState.EARLY if early_media else LegState.RINGING
        self._told_to.leg_ringing(early_media)

    def agrees(self, codec: str, rate_hz: int) -> None:
        """On a codec."""
        self.codec = codec
        self.phone.rate_hz = rate_hz
        self._told_to.leg_media()

    def answers(self) -> None:
        if self.state is not LegState.ENDED:
            self.agrees(self.codec or "PCMU", self.phone.rate_hz)
            self.state = LegState.ACTIVE
            self.answered_at = time.monotonic()
            self._told_to.leg_answered()

    def holds(self, held: bool = True) -> None:
        self.state = LegState.HELD if held else LegState.ACTIVE
        self._told_to.leg_media()

    def presses(self, digit: str, method: DtmfMethod = "rfc4733", duration_ms: int = 160) -> None:
        self.on_digit(digit, duration_ms, method)

    def hangs_up(self) -> None:
        far = Party.CALLER if self.direction == "inbound" else Party.CALLEE
        kind = EndKind.HANGUP if self.answered_at is not None else EndKind.CANCELLED
        self.ends(EndReason(kind, "hung up", far))

    def ends(self, reason: EndReason) -> None:
        if self.state is not LegState.ENDED:
            self.state = LegState.ENDED
            self._bank.remove(self.phone)
            listener, self.listener = self._told_to, None
            listener.leg_ended(reason, self.at_end)
