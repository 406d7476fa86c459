# SPDX-License-Identifier: GPL-3.0-or-later
"""Tries the configured project against Agora's real network: two of ours meet in a channel for some seconds.

What the bridge's tests have seen is a simulation. This is what tells whether the real one is like it.
"""

import asyncio
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sipbridge.config import AgoraConfig
from sipbridge.errors import RtcError
from sipbridge.rtc.agora.reasons import connection_reason, encryption_reason, failed
from sipbridge.rtc.agora.service import Link, Place, SdkCallError, Service
from sipbridge.rtc.agora.token import obtain_token
from sipbridge.rtc.base import Samples
from sipbridge.rtc.token_server import TokenError

_FRAME_MS = 20
_SPEAK_S = 3.0
_HEAR_S = 5.0
_TONES_HZ = 500.0, 800.0
_LEVEL = 8000
_PURE = 0.5  # of the power of what is heard, in the tone that was said


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that was tried."""

    name: str
    is_well: bool
    detail: str


class _Party:
    """Somebody in the channel. Event loop, but for `hear`."""

    def __init__(self, name: str, rate_hz: int) -> None:
        self.name = name
        self.loop = asyncio.get_running_loop()
        self.told: list[str] = []  # every callback, in its order
        self.pieces: list[Samples] = []
        self.messages: list[bytes] = []
        self.others: list[str] = []
        self.let_in: asyncio.Future[None] = self.loop.create_future()
        self.link: Link
        self._rate_hz = rate_hz

    def hear(self, user_id: str, samples: Samples) -> None:
        self.pieces.append(samples)

    @property
    def heard(self) -> Samples:
        return np.concatenate([np.zeros(0, np.int16), *self.pieces])

    def share_of(self, hz: float) -> float:
        """Of the power of the last second that was heard, what lies in this tone."""
        samples = self.heard[-self._rate_hz :].astype(np.float64)
        power = float(np.sum(samples**2))
        if len(samples) < self._rate_hz // 2 or not power:
            return 0.0
        turn = np.exp(-2j * np.pi * hz * np.arange(len(samples)) / self._rate_hz)
        return float(2 * abs(np.sum(samples * turn)) ** 2 / len(samples) / power)

    def connected(self) -> None:
        self._tell("connected")
        if not self.let_in.done():
            self.let_in.set_result(None)

    def _refuse(self, error: RtcError) -> None:
        if not self.let_in.done():
            self.let_in.set_exception(error)

    def failed(self, code: int) -> None:
        self._tell(f"failed {code}")
        self._refuse(RtcError(connection_reason(code)))

    def disconnected(self, code: int) -> None:
        self._tell(f"disconnected {code}")
        self._refuse(RtcError(connection_reason(code)))

    def encryption_failed(self, code: int) -> None:
        self._tell(f"encryption failed {code}")
        self._refuse(RtcError(encryption_reason(code)))

    def user_joined(self, user_id: str) -> None:
        self.others.append(user_id)
        self._tell(f"joined {user_id}")

    def user_left(self, user_id: str, reason: int) -> None:
        self._tell(f"left {user_id} {reason}")

    def stream_message(self, user_id: str, data: bytes) -> None:
        self.messages.append(data)

    def metadata(self, user_id: str, data: bytes) -> None:
        self._tell("metadata")

    def volumes(self, volumes: Mapping[str, int]) -> None:
        pass

    def reconnecting(self) -> None:
        self._tell("reconnecting")

    def reconnected(self) -> None:
        self._tell("reconnected")

    def lost(self) -> None:
        self._tell("lost")

    def token_expires(self) -> None:
        self._tell("token expires")

    def token_expired(self) -> None:
        self._tell("token expired")

    def _tell(self, what: str) -> None:
        self.told.append(what)


async def check_online(config: AgoraConfig, report: Callable[[Step], None]) -> bool:
    """Tries one thing after the other, up to the first that fails, and reports each. True: all went well."""
    check = _Check(config, report)
    try:
        await check.run()
    except (RtcError, SdkCallError, TokenError, TimeoutError) as error:
        detail = str(error) or f"not within {config.connect_timeout_s:g} s"
        check.tell(check.doing, False, detail)
    finally:
        for party in check.parties:
            check.told(party)
        await Service.shut_down()
    return check.is_well


class _Check:
    def __init__(self, config: AgoraConfig, report: Callable[[Step], None]) -> None:
        self._config = config
        self._report = report
        self._service = Service.get(config)
        self.parties: list[_Party] = []
        self.is_well = True
        self.doing = ""

    def tell(self, name: str, is_well: bool, detail: str) -> None:
        self.is_well = self.is_well and is_well
        self._report(Step(name, is_well, detail))

    def told(self, party: _Party) -> None:
        self._report(Step(f"callbacks of {party.name}", True, ", ".join(party.told) or "none"))

    async def run(self) -> None:
        self.doing = "SDK"
        began = time.monotonic()
        await self._service.start()
        self.tell("SDK", True, f"loaded and initialised in {_ms(began)}")
        channel = f"sipbridge-check-{secrets.token_hex(4)}"
        for name, number in (("one", 1), ("two", 2)):
            await self._join(name, channel, f"{secrets.randbelow(10**8) * 10 + number}")
        one, two = self.parties
        self.doing = "presence"
        began = time.monotonic()
        await self._until(lambda: bool(one.others and two.others))
        self.tell(self.doing, True, f"each knows of the other after {_ms(began)}")
        for says, hears, hz in ((two, one, _TONES_HZ[0]), (one, two, _TONES_HZ[1])):
            await self._speak(says, hears, hz)
        self.doing = "stream message"
        began = time.monotonic()
        await self._service.run(one.link.send_message, b"hello")
        await self._until(lambda: b"hello" in two.messages)
        self.tell(self.doing, True, f"came after {_ms(began)}")
        self.doing = "leaving"
        began = time.monotonic()
        for party in self.parties:
            await self._service.run(party.link.leave)
        if not all([await asyncio.to_thread(party.link.left.wait, 5.0) for party in self.parties]):
            raise RtcError(failed("the SDK has not said within 5 s that the channel was left"))
        self.tell(self.doing, True, f"done after {_ms(began)}")

    async def _join(self, name: str, channel: str, user_id: str) -> None:
        config = self._config
        self.doing = f"joining {channel} as {name}"
        began = time.monotonic()
        token = await obtain_token(config, channel, user_id, "check")
        party = _Party(name, config.sample_rate_hz)
        party.link = await self._service.acquire(config.scenario)
        self.parties.append(party)
        party.link.user = party
        place = Place(channel=channel, user_id=user_id, token=token, scenario=config.scenario)
        await self._service.run(party.link.join, place)
        async with asyncio.timeout(config.connect_timeout_s):
            await party.let_in
        await self._service.run(party.link.publish)
        self.tell(self.doing, True, f"user {user_id}, {_ms(began)}")

    async def _speak(self, says: _Party, hears: _Party, hz: float) -> None:
        self.doing = f"audio from {says.name} to {hears.name}"
        hears.pieces.clear()
        began, first = time.monotonic(), 0.0
        for number, frame in enumerate(_frames(hz, self._config.sample_rate_hz)):
            await asyncio.sleep(max(0.0, began + number * _FRAME_MS / 1000 - time.monotonic()))
            says.link.push(frame)
            if not first and hears.pieces and np.abs(hears.pieces[-1]).max() > _LEVEL // 8:
                first = time.monotonic() - began
        share = hears.share_of(hz)
        if share < _PURE:
            raise RtcError(failed(f"{hz:g} Hz was said; {share:.0%} of what was heard is that"))
        self.tell(self.doing, True, f"{hz:g} Hz, heard after {first * 1000:.0f} ms, {share:.0%} of it pure")

    async def _until(self, happened: Callable[[], bool]) -> None:
        async with asyncio.timeout(_HEAR_S):
            while not happened():
                await asyncio.sleep(0.02)


def _ms(began: float) -> str:
    return f"{(time.monotonic() - began) * 1000:.0f} ms"


def _frames(hz: float, rate_hz: int) -> Iterator[Samples]:
    count = rate_hz * _FRAME_MS // 1000
    for number in range(round(_SPEAK_S * 1000 / _FRAME_MS)):
        at: Any = np.arange(number * count, (number + 1) * count)
        yield (_LEVEL * np.sin(2 * np.pi * hz * at / rate_hz)).astype(np.int16)
