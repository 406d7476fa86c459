# SPDX-License-Identifier: GPL-3.0-or-later
"""A registry without telephones, for tests of what stands above it."""

import asyncio
import builtins
import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from sipbridge.calls import CallRegistry, CallView, DialRequest, RoomView
from sipbridge.errors import EndKind, EndReason, Party
from sipbridge.events import CallAnswered, CallEnded, CallEvent, CallStarted
from sipbridge.rtc.websocket.member import ProgramMember
from tests.support.fake_bank import FakeMedia
from tests.support.fake_rtc import make_context


class FakeCalls(CallRegistry):
    """Calls are told what happens to them, each step when the next look is taken at it.

    `script` is a list of changes to a dialled call, as ``{"state": "ringing"}``; the last one stays.
    """

    def __init__(self, script: list[dict[str, Any]] | None = None) -> None:
        self.draining = False
        self.script = script or []
        self.calls: dict[str, CallView] = {}
        self.requests: list[DialRequest] = []
        self.digits: list[tuple[str, str]] = []
        self.hung_up: list[str] = []
        self.transfers: list[tuple[str, str]] = []
        self.error: Exception | None = None  # what `dial` and `transfer` raise
        self.room_views: list[RoomView] = []
        self.counters: dict[str, int | float | bool] = {"calls": 0, "descriptors": 12}
        self.subscribers: list[asyncio.Queue[CallEvent]] = []
        self.media = FakeMedia()
        self.context = make_context(self.media)
        self._steps: dict[str, list[dict[str, Any]]] = {}

    def add(self, call_id: str, **changes: Any) -> CallView:
        """An inbound call in room demo."""
        fields: dict[str, Any] = {
            "id": call_id,
            "direction": "inbound",
            "from_": "1001",
            "to": "demo",
            "trunk": "loopback",
            "rule": "local",
            "target": "local:demo",
            "state": "active",
            "codec": "PCMU",
            "seconds": 7.25,
            "capture_level_dbfs": -23.5,
            "playback_level_dbfs": -100.0,
            "capture_ms": 4.0,
            "mix_ms": 0.5,
            "playback_ms": 5.0,
            "delay_ms": 9.5,
            "loss_percent": 0.1,
            "jitter_ms": 1.5,
        }
        view = CallView(**(fields | changes))
        self.calls[call_id] = view
        return view

    def publish(self, event: CallEvent) -> None:
        """Shows an event to all that listen."""
        for queue in self.subscribers:
            queue.put_nowait(event)

    def end(self, call_id: str, reason: EndReason) -> None:
        """The call is over."""
        view = dataclasses.replace(self.calls[call_id], state="ended", end=reason)
        self.calls[call_id] = view
        self._steps.pop(call_id, None)
        self.publish(
            CallEnded(
                call_id=call_id,
                reason=reason,
                direction=view.direction,
                from_=view.from_,
                to=view.to,
                trunk=view.trunk,
                rule=view.rule,
                target=view.target,
            )
        )

    async def list(self) -> builtins.list[CallView]:
        return [*self.calls.values()]

    async def get(self, call_id: str) -> CallView:
        steps = self._steps.get(call_id)
        if steps:
            step = steps.pop(0)
            if step.get("end") is not None:
                step = {"state": "ended", **step}
            self.calls[call_id] = dataclasses.replace(self.calls[call_id], **step)
        return self.calls[call_id]

    async def dial(self, request: DialRequest) -> str:
        if self.error is not None:
            raise self.error
        self.requests.append(request)
        call_id = f"out-{len(self.requests)}"
        self.add(
            call_id,
            direction="outbound",
            from_=request.from_ or "sipbridge",
            to=request.to,
            trunk=request.trunk,
            rule="",
            target=request.target or "silence:",
            state="new",
            codec="",
            seconds=0.0,
        )
        self._steps[call_id] = list(self.script)
        self.publish(
            CallStarted(
                call_id=call_id,
                direction="outbound",
                from_="sipbridge",
                to=request.to,
                trunk=request.trunk,
                rule="",
                target=request.target,
            )
        )
        return call_id

    def answer(self, call_id: str) -> None:
        """The callee answers."""
        self.calls[call_id] = dataclasses.replace(self.calls[call_id], state="active", codec="PCMU")
        self.publish(CallAnswered(call_id=call_id, codec="PCMU"))

    async def hangup(self, call_id: str) -> None:
        view = self.calls[call_id]
        self.hung_up.append(call_id)
        kind = EndKind.HANGUP if view.state in ("active", "held") else EndKind.CANCELLED
        self.end(call_id, EndReason(kind, "asked by the operator", Party.OPERATOR))

    async def transfer(self, call_id: str, to: str) -> None:
        if call_id not in self.calls:
            raise LookupError(f"there is no call {call_id}")
        if self.error is not None:
            raise self.error
        self.transfers.append((call_id, to))
        self.end(call_id, EndReason(EndKind.TRANSFERRED, f"transferred to {to}", Party.OPERATOR))

    async def hold(self, call_id: str, held: bool) -> None:
        if call_id not in self.calls:
            raise LookupError(f"there is no call {call_id}")
        state = "held" if held else "active"
        self.calls[call_id] = dataclasses.replace(self.calls[call_id], state=state)  # type: ignore[arg-type]

    def find_participant(self, target: str, identity: str) -> str:
        for call_id, view in self.calls.items():
            if (view.target, view.from_) == (target, identity):  # a caller's number is its identity here
                return call_id
        raise LookupError(f"there is no call {identity!r} in {target}")

    async def rebridge(self, call_id: str, target: str) -> None:
        if self.calls[call_id].state == "ended":
            raise ValueError("the call is in no channel")
        self.calls[call_id] = dataclasses.replace(self.calls[call_id], target=target)

    async def send_dtmf(self, call_id: str, digits: str) -> None:
        if self.calls[call_id].state == "ended":
            raise ValueError("the call has ended")
        self.digits.append((call_id, digits))

    def rooms(self) -> builtins.list[RoomView]:
        return self.room_views

    def make_program(self, room: str, *, name: str, protocol: str, rate_hz: int) -> ProgramMember:
        return ProgramMember(self.context, room, name=name, protocol=protocol, rate_hz=rate_hz)

    async def health(self) -> dict[str, int | float | bool]:
        return self.counters

    @asynccontextmanager
    async def events(self) -> AsyncIterator[AsyncIterator[CallEvent]]:
        queue: asyncio.Queue[CallEvent] = asyncio.Queue()
        self.subscribers.append(queue)

        async def iterate() -> AsyncIterator[CallEvent]:
            while True:
                yield await queue.get()

        try:
            yield iterate()
        finally:
            self.subscribers.remove(queue)
