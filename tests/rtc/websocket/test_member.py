# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs in rooms: over the fake bank, with a transport that writes down what it is given."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from sipbridge.errors import EndKind, EndReason
from sipbridge.rtc.websocket.member import MAX_BUFFER_S, ProgramMember
from sipbridge.rtc.websocket.protocol import Wire
from sipbridge.rtc.websocket.transport import Transport
from tests.support import audio
from tests.support.codecs import Samples
from tests.support.event_loop import in_event_loop, pass_time, settle
from tests.support.fake_bank import FakeMedia
from tests.support.fake_rtc import FakeCall, make_context


class Pipe(Transport):
    """The connection of a program, as the bridge sees it."""

    def __init__(self) -> None:
        self.sent: list[Wire] = []
        self.closed: str | None = None
        self.paused = False

    def send(self, data: Wire) -> None:
        if self.closed is None:
            self.sent.append(data)

    def pause_reading(self, paused: bool) -> None:
        self.paused = paused

    def close(self, error: str = "") -> None:
        self.closed = error

    @property
    def heard(self) -> Samples:
        return np.frombuffer(b"".join(item for item in self.sent if isinstance(item, bytes)), np.int16)

    def objects(self) -> list[dict[str, Any]]:
        return [json.loads(item) for item in self.sent if isinstance(item, str)]


class Stage:
    """A room with telephones and programs; within an event loop."""

    def __init__(self) -> None:
        self.media = FakeMedia()
        self.context = make_context(self.media)
        self.left: dict[str, EndReason] = {}

    async def phone(self, call_id: str, rate_hz: int = 8000) -> FakeCall:
        call = FakeCall(self.media, self.context, "local:room", call_id, rate_hz)
        await call.connect()
        return call

    @contextlib.asynccontextmanager
    async def program(self, name: str = "p", **options: Any) -> AsyncIterator[tuple[ProgramMember, Pipe]]:
        member, pipe = ProgramMember(self.context, "room", name=name, **options), Pipe()

        async def stay() -> None:
            self.left[name] = await member.stay(pipe)

        staying = asyncio.ensure_future(stay())
        await settle()
        yield member, pipe
        if not staying.done():
            member.session.lost(False, "the connection broke")
            await self.run(0.1)
        await staying

    async def run(self, seconds: float) -> None:
        """Lets audio flow; everybody else does at once what is to be done."""
        for _ in range(round(seconds * 50)):
            self.media.run(4)
            await asyncio.sleep(0)
            await asyncio.sleep(0)


@pytest.mark.parametrize("rate_hz", [0, 8000, 22050, 44100])
@in_event_loop
async def test_all_hear_the_others(rate_hz: int) -> None:
    """And not themselves; at whatever rate the program has."""
    stage = Stage()
    phones = [await stage.phone("1"), await stage.phone("2", 16000)]
    async with stage.program(rate_hz=rate_hz) as (member, pipe):
        rate_hz = rate_hz or 16000
        assert stage.context.rooms.members() == {"room": ("1", "2", "p")}
        for call, hz in zip(phones, (440, 1000), strict=True):
            call.phone.say(audio.tone(hz, 3.0, call.phone.rate_hz, -20))
        member.session.received(audio.tone(1700, 3.0, rate_hz, -20).tobytes())
        await stage.run(0.3)
        for call in phones:
            call.phone.forget()
        pipe.sent.clear()
        await stage.run(1.0)
        heard = [(call.phone.heard, call.phone.rate_hz) for call in phones] + [(pipe.heard, rate_hz)]
        for (samples, of_hz), own_hz in zip(heard, (440, 1000, 1700), strict=True):
            assert len(samples) == pytest.approx(of_hz, abs=of_hz // 50)
            for hz in (440, 1000, 1700):
                level_dbfs = audio.tone_level_dbfs(samples, of_hz, hz)
                assert level_dbfs < -55 if hz == own_hz else level_dbfs == pytest.approx(-20, abs=1)
    assert stage.context.rooms.members() == {"room": ("1", "2")}
    assert stage.media.bank.attached == {call.phone.port_id for call in phones}
    assert len(stage.media.bank.ports) == 2
    assert phones[0].told[-1] == ("left", "p", 1)


@in_event_loop
async def test_what_is_told() -> None:
    """Who is there, keys and texts; nobody gets its own back."""
    stage = Stage()
    first = await stage.phone("1")
    async with stage.program() as (member, pipe), stage.program("q") as (_, other):
        second = await stage.phone("2")
        await second.connection.send_dtmf("7", 100)
        await second.connection.send_message("hi")
        member.session.received('{"type": "dtmf", "digits": "1x#"}')
        member.session.received('{"type": "text", "content": "hello"}')
        await second.close()
        assert [item for item in pipe.objects() if item["type"] != "dtmf"] == [
            {"type": "joined", "identity": "1"},
            {"type": "joined", "identity": "q"},
            {"type": "joined", "identity": "2"},
            {"type": "text", "content": "hi"},
            {"type": "left", "identity": "2"},
        ]
        assert [item["digit"] for item in pipe.objects() if item["type"] == "dtmf"] == ["7"]
        assert [item["digit"] for item in other.objects() if item["type"] == "dtmf"] == ["7", "1", "#"]
        assert {"type": "text", "content": "hello"} in other.objects()
        told = [
            ("dtmf", "7"),
            ("message", "", "hi"),
            ("dtmf", "1"),
            ("dtmf", "#"),
            ("message", "text", "hello"),
        ]
        assert [item for item in first.told if item[0] in ("dtmf", "message")] == told
        assert [item for item in second.told if item[0] in ("dtmf", "message")] == told[2:]


@in_event_loop
async def test_marks_and_clear() -> None:
    """A mark is answered once the others have heard what came before; after a clear there is silence."""
    stage = Stage()
    call = await stage.phone("1", 16000)
    async with stage.program() as (member, pipe):
        await stage.run(1.0)
        call.phone.forget()
        member.session.received(audio.tone(440, 1.0, 16000).tobytes())
        member.session.received('{"type": "mark", "name": "end"}')
        while not pipe.objects()[1:]:
            await stage.run(0.02)
        assert pipe.objects()[1:] == [{"type": "mark", "name": "end", "event": "played"}]
        heard = call.phone.heard
        assert np.abs(heard[:16000]).max() > 1000
        assert 16000 <= len(np.trim_zeros(heard, "b")) <= 16000 + 400
        member.session.received(audio.tone(440, 60.0, 16000).tobytes()[: 1 << 20])
        member.session.received('{"type": "mark", "name": "never"}')
        await stage.run(0.2)
        member.session.received('{"type": "clear"}')
        assert pipe.objects()[-1] == {"type": "mark", "name": "never", "event": "cleared"}
        await stage.run(0.04)
        call.phone.forget()
        await stage.run(0.5)
        assert not call.phone.heard.any()


@in_event_loop
async def test_more_than_is_kept() -> None:
    """Whoever speaks for longer than the buffer at once is not read from until there is room."""
    stage = Stage()
    async with stage.program(rate_hz=8000) as (member, pipe):
        second = np.zeros(8000, np.int16).tobytes()
        for _ in range(round(MAX_BUFFER_S)):
            member.session.received(second)
        assert not pipe.paused
        member.session.received(second)
        assert pipe.paused
        await stage.run(MAX_BUFFER_S / 2 + 3)
        assert not pipe.paused


@in_event_loop
async def test_goodbye() -> None:
    """One that hangs up, or closes, is heard to the end; one whose connection breaks is not."""
    stage = Stage()
    call = await stage.phone("1", 16000)
    for goodbye in ("hangup", "close", "break"):
        async with stage.program(goodbye) as (member, pipe):
            await stage.run(0.5)
            call.phone.forget()
            member.session.received(audio.tone(440, 1.0, 16000).tobytes())
            if goodbye == "hangup":
                member.session.received('{"type": "hangup"}')
            else:
                member.session.lost(goodbye == "close", goodbye)
            await stage.run(1.2)
            heard_s = np.count_nonzero(call.phone.heard) / 16000
            assert heard_s < 0.05 if goodbye == "break" else heard_s > 0.95
            assert pipe.closed == ""
    kinds = [reason.kind for reason in stage.left.values()]
    assert kinds == [EndKind.CHANNEL_CLOSED, EndKind.CHANNEL_CLOSED, EndKind.CHANNEL_FAILED]
    assert [told[:2] for told in call.told if told[0] == "left"] == [
        ("left", "hangup"),
        ("left", "close"),
        ("left", "break"),
    ]


@in_event_loop
async def test_garbage_ends_it(caplog: pytest.LogCaptureFixture) -> None:
    """With one warning that names the room and the program; the others notice that it has left."""
    stage = Stage()
    call = await stage.phone("1")
    async with stage.program("noisy") as (member, pipe):
        for _ in range(3):
            member.session.received("{oh")
        await stage.run(0.1)
        assert pipe.closed == "protocol error"
    assert stage.left["noisy"].kind is EndKind.CHANNEL_FAILED
    assert call.told == [("joined", "noisy"), ("left", "noisy", 0)]
    (warning,) = [str(record.msg) for record in caplog.records if record.levelname == "WARNING"]
    assert "noisy" in warning
    assert "room" in warning


@in_event_loop
async def test_one_that_is_never_ready() -> None:
    """It is in no room, and has to go."""
    stage = Stage()
    async with stage.program(protocol="openai"):
        assert stage.context.rooms.members() == {}
        await pass_time(11)
    assert "not ready" in stage.left["p"].detail
    assert stage.media.bank.ports == {}


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"protocol": "speech"}, "no protocol 'speech'"),
        ({"protocol": "audiosocket"}, "not spoken over WebSocket"),
        ({"rate_hz": 11025}, "11025 Hz is not carried"),
        ({"protocol": "twilio", "rate_hz": 16000}, "16000 Hz is not carried"),
        ({"name": "a\nb"}, "the name"),
    ],
)
@in_event_loop
async def test_what_cannot_join(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises((ValueError, LookupError)) as caught:
        ProgramMember(make_context(FakeMedia()), "room", **options)
    assert complaint in str(caught.value)


@in_event_loop
async def test_a_name_is_made_up() -> None:
    context = make_context(FakeMedia())
    one, other = (ProgramMember(context, "room") for _ in range(2))
    assert one.identity.startswith("program-")
    assert one.identity != other.identity
