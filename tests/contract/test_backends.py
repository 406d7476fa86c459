# SPDX-License-Identifier: GPL-3.0-or-later
"""What every channel backend has to do; one suite, run over all of them.

To run it over a backend of your own, install that (its entry point is in the group ``sipbridge.rtc``),
describe it in a test module of yours, and let pytest run that from a checkout of sipbridge::

    from tests.contract.test_backends import *  # all tests and their fixtures

    class Mine(Backend):
        target = "mine:room"  # one that works
        bad_targets = ("mine:",)
        says_hz = 440.0  # the tone that your far side says; 0: it says nothing

        async def open(self, media, context): ...  # starts the far side
        def heard(self): ...  # what it has heard so far, and at which rate; None: it cannot listen
        async def shut(self): ...  # ends it

    @pytest.fixture
    def backend():
        return Mine()

The tests run on a real media loop whose ticks they call themselves. A far side that takes its time overrides
`Backend.wait`.
"""

import asyncio
import contextlib
import importlib.metadata
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from websockets.asyncio.server import ServerConnection

from sipbridge.config import AgentConfig, Config
from sipbridge.errors import EndKind, RtcError
from sipbridge.media.tones import Tone
from sipbridge.routing import Target
from sipbridge.rtc import registry
from sipbridge.rtc.agora.connection import AgoraConnection
from sipbridge.rtc.base import RtcContext
from sipbridge.rtc.livekit import connection
from sipbridge.rtc.registry import make_connection
from sipbridge.rtc.websocket.audiosocket import format_message
from sipbridge.rtc.websocket.transport import forget_certificates
from tests.contract.duplex import DuplexConnection
from tests.support import agents, audio, fake_agora, fake_livekit
from tests.support.agora_engine import in_this_process
from tests.support.certificates import Authority, Certificate
from tests.support.codecs import Samples
from tests.support.event_loop import in_event_loop, settle, until
from tests.support.fake_bank import FakeMedia
from tests.support.fake_livekit import FakeSession
from tests.support.fake_rtc import FakeCall, make_context
from tests.support.ports import free_port

PHONE_HZ = 700.0  # what the telephone says


class Backend:
    """What the suite has to know of a backend."""

    target: str
    bad_targets: tuple[str, ...] = ()
    says_hz: float = 0.0
    config = Config()

    async def open(self, media: FakeMedia, context: RtcContext) -> None:
        """Before the first call."""

    def heard(self) -> tuple[Samples, int] | None:
        """All that the far side has heard, and its rate in Hz."""
        return None

    async def wait(self) -> None:
        """Until what was sent has come to the far side, and back."""
        await settle()

    async def wait_codec(self, media: FakeMedia, call: FakeCall) -> None:
        """Until what the far side says comes at a rate that the telephone has just got."""
        await self.wait()

    async def shut(self) -> None:
        """After the last call."""


class Local(Backend):
    """The far side is one more member of the room."""

    target = "local:room"
    bad_targets = ("local:",)
    says_hz = 1100.0

    async def open(self, media: FakeMedia, context: RtcContext) -> None:
        self._call = FakeCall(media, context, self.target, "far")
        self._call.phone.say(Tone(self.says_hz, 8000))
        await self._call.connect()

    def heard(self) -> tuple[Samples, int]:
        return self._call.phone.heard, 8000

    async def shut(self) -> None:
        await self._call.close()


class EchoBackend(Backend):
    target = "echo:"
    says_hz = PHONE_HZ


class ToneBackend(Backend):
    target = "tone:440"
    bad_targets = ("tone:", "tone:high", "tone:1", "tone:30000", "tone:nan", "tone:inf")
    says_hz = 440.0


class Silence(Backend):
    target = "silence:"


class Play(Backend):
    bad_targets = ("play:",)
    says_hz = 620.0

    def __init__(self, directory: Path) -> None:
        path = audio.write_wav(directory / "tone.wav", audio.tone(self.says_hz, 1.0, 16000), 16000)
        self.target = f"play:{path}"

    async def wait_codec(self, media: FakeMedia, call: FakeCall) -> None:
        """The file is read anew by a thread."""

        def is_heard() -> bool:
            media.run()
            return bool(call.phone.heard.any())

        call.phone.forget()
        await until(is_heard)


class Duplex(Backend):
    target = "duplex:900"
    bad_targets = ("duplex:", "duplex:x")
    says_hz = 900.0

    async def open(self, media: FakeMedia, context: RtcContext) -> None:
        DuplexConnection.heard = []

    def heard(self) -> tuple[Samples, int]:
        return np.concatenate([np.zeros(0, np.int16), *DuplexConnection.heard]), DuplexConnection.heard_hz


class VoiceAgent(Backend):
    """The far side says a minute of a tone at once. Time stands still on its loop, sockets do not."""

    bad_targets = ("agent:", "agent:nobody")
    says_hz = 500.0
    subject = "agent:far"

    def __init__(self, tls: Certificate | None = None) -> None:
        port = free_port()
        url = f"ws{'s' if tls else ''}://127.0.0.1:{port}/calls"
        self.config = Config(agent=(AgentConfig(name="far", url=(url,)),))
        self.target = url if tls or self.subject == "ws:" else self.subject
        self._port, self._tls = port, tls

    async def open(self, media: FakeMedia, context: RtcContext) -> None:
        self._agent = agents.Agent(self._talk)
        options = {"ssl": self._tls.server_context()} if self._tls else {}
        await self._agent.start(self._port, **options)

    async def _talk(self, agent: agents.Agent, connection: ServerConnection) -> None:
        agent.messages.clear()
        for _ in range(60):
            await connection.send(audio.tone(self.says_hz, 1.0, 16000).tobytes())
        await agents.listen(agent, connection)

    def heard(self) -> tuple[Samples, int]:
        pieces = [piece for piece in self._agent.messages if isinstance(piece, bytes)]
        return np.frombuffer(b"".join(pieces), np.int16), 16000

    async def wait(self) -> None:
        for _ in range(12):
            await settle()
            time.sleep(0.001)

    async def shut(self) -> None:
        await self._agent.stop()


class BareAgent(VoiceAgent):
    bad_targets = ("ws:", "ws://127.0.0.1#speech")
    subject = "ws:"


class AudioSocket(VoiceAgent):
    bad_targets = ("audiosocket:", "audiosocket://127.0.0.1:5#twilio")

    def __init__(self) -> None:
        self._port = free_port()
        self.target = f"audiosocket://127.0.0.1:{self._port}"

    async def open(self, media: FakeMedia, context: RtcContext) -> None:
        self._heard = bytearray()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._heard.clear()
        for _ in range(60):
            writer.write(format_message(0x10, audio.tone(self.says_hz, 1.0).tobytes()))
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readexactly(3)
                payload = await reader.readexactly(int.from_bytes(head[1:], "big"))
                if head[0] == 0x10:
                    self._heard += payload
        writer.close()

    def heard(self) -> tuple[Samples, int]:
        return np.frombuffer(bytes(self._heard), np.int16), 8000

    async def shut(self) -> None:
        self._server.close()
        await self.wait()


class LiveKit(Backend):
    """What is a room's and a server's own is in tests/integration/test_livekit.py."""

    target = "livekit:room"
    bad_targets = ("livekit:",)
    says_hz = 820.0
    config = fake_livekit.config()

    async def open(self, media: FakeMedia, context: RtcContext) -> None:
        FakeSession.begin(media, self.says_hz)

    def heard(self) -> tuple[Samples, int]:
        (session,) = FakeSession.made
        return session.heard, session.out[-1].sample_rate_hz

    async def wait_codec(self, media: FakeMedia, call: FakeCall) -> None:
        call.connection.call_changed("active")
        await self.wait()


class Agora(Backend):
    """The SDK over a simulated engine, which keeps no time here."""

    target = "agora:room"
    bad_targets = ("agora:", "agora:a/b", f"agora:{65 * 'x'}")
    says_hz = 500.0

    def __init__(self, receive: Literal["mix", "users"] = "mix") -> None:
        self.config = fake_agora.config(receive=receive)

    async def open(self, media: FakeMedia, context: RtcContext) -> None:
        self._media = media
        self._stack = contextlib.ExitStack()
        self._engine = self._stack.enter_context(in_this_process())
        self._is_open = True
        self._engine.set(turbo=1, delay=0)
        self._far = self._engine.join("room", "7")
        self._far.record()

    def heard(self) -> tuple[Samples, int]:
        return self._far.heard, self._far.rate_hz

    async def wait(self) -> None:
        for _ in range(12):
            await settle()
            time.sleep(0.002)
        if not self._is_open:
            return
        await until(lambda: not self._engine.stats()["busy"])
        if self._engine.stats()["joined"]:
            self._far.burst(audio.tone(self.says_hz, 1.5, self._far.rate_hz))
            await until(lambda: not self._engine.stats()["busy"])

    async def wait_codec(self, media: FakeMedia, call: FakeCall) -> None:
        call.connection.call_changed("active")
        await self.wait()

    async def shut(self) -> None:
        for _ in range(4):  # ports leave once nobody hears them, one after the other
            await settle()
            self._media.run(4)
        await AgoraConnection.shut_down()
        assert self._engine.stats()["connections"] == self._engine.stats()["stale"] == 0
        self._is_open = False
        self._stack.close()


@pytest.fixture(params=[*registry.BACKENDS, "agora-users", "duplex"])
def backend(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """Every backend of the package, and one that is found by its entry point."""
    if request.param == "play":
        return Play(tmp_path)
    if request.param == "duplex":
        entry = importlib.metadata.EntryPoint(
            "duplex", "tests.contract.duplex:DuplexConnection", registry.ENTRY_POINTS
        )
        points = importlib.metadata.EntryPoints([entry])
        monkeypatch.setattr(importlib.metadata, "entry_points", points.select)
    if request.param == "livekit":
        monkeypatch.setattr(connection, "Session", FakeSession)
    if request.param == "wss":
        authority = Authority(tmp_path)
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.certificate))
        forget_certificates()
        return VoiceAgent(authority.issue("127.0.0.1"))
    backends: dict[str, Callable[[], Backend]] = {
        "local": Local,
        "echo": EchoBackend,
        "tone": ToneBackend,
        "silence": Silence,
        "duplex": Duplex,
        "agent": VoiceAgent,
        "ws": BareAgent,
        "audiosocket": AudioSocket,
        "livekit": LiveKit,
        "agora": Agora,
        "agora-users": lambda: Agora("users"),
    }
    return backends[request.param]()


@pytest.fixture
def media() -> FakeMedia:
    return FakeMedia()


@pytest.fixture
def context(media: FakeMedia, backend: Backend) -> RtcContext:
    return make_context(media, backend.config)


def make_call(media: FakeMedia, context: RtcContext, backend: Backend, rate_hz: int = 8000) -> FakeCall:
    call = FakeCall(media, context, backend.target, f"call-{len(media.bank.ports)}", rate_hz)
    call.phone.say(Tone(PHONE_HZ, rate_hz))
    return call


async def listen(media: FakeMedia, backend: Backend, *calls: FakeCall, seconds: float = 0.5) -> None:
    """Begins what the telephones hear anew."""
    await backend.wait()
    media.run(4)
    for call in calls:
        call.phone.forget()
    media.run_s(seconds)
    await backend.wait()


def assert_hears(call: FakeCall, hz: float) -> None:
    heard = call.phone.heard
    assert len(heard) > 0
    if not hz:
        assert not heard.any()
    else:
        assert audio.find_tone(heard, call.phone.rate_hz) == audio.near(hz)
        assert audio.gaps_ms(heard, call.phone.rate_hz) == []


async def assert_left(media: FakeMedia, context: RtcContext, backend: Backend, call: FakeCall) -> None:
    """Nothing of the call is left in the channel, nor is anything played to it."""
    await backend.wait()
    media.run(4)
    call.phone.forget()
    media.run(4)
    assert call.phone.port_id not in media.bank.attached
    assert not len(call.phone.heard)
    assert not any(call.call_id in members for members in context.rooms.members().values())


@pytest.mark.parametrize("rate_hz", [8000, 16000, 48000])
@in_event_loop
async def test_audio_flows_both_ways(
    media: FakeMedia, context: RtcContext, backend: Backend, rate_hz: int
) -> None:
    """At whatever rate the telephone has: at the right pitch, without a gap."""
    await backend.open(media, context)
    call = make_call(media, context, backend, rate_hz)
    await call.connect()
    await listen(media, backend, call, seconds=1.0)
    assert len(call.phone.heard) == rate_hz
    assert_hears(call, backend.says_hz)
    far = backend.heard()
    if far is not None:
        heard, heard_hz = far
        assert audio.find_tone(heard[-heard_hz:], heard_hz) == audio.near(PHONE_HZ)
    await call.close()
    await backend.shut()


@in_event_loop
async def test_codec_changes_while_joined(media: FakeMedia, context: RtcContext, backend: Backend) -> None:
    """A leg's rate is that of its codec, which may be agreed on, or change, after the channel was joined."""
    await backend.open(media, context)
    call = make_call(media, context, backend)
    await call.connect()
    for rate_hz in (16000, 8000, 48000):
        media.run(4)
        call.phone.rate_hz = rate_hz
        call.phone.say(Tone(PHONE_HZ, rate_hz))
        await backend.wait_codec(media, call)
        await listen(media, backend, call)
        assert_hears(call, backend.says_hz)
    await call.close()
    await backend.shut()


@in_event_loop
async def test_close_leaves_nothing(media: FakeMedia, context: RtcContext, backend: Backend) -> None:
    """However often it is closed."""
    await backend.open(media, context)
    call = make_call(media, context, backend)
    await call.connect()
    await listen(media, backend, call)
    for _ in range(3):
        await call.close()
        await assert_left(media, context, backend, call)
    await backend.shut()


@in_event_loop
async def test_close_before_connect(media: FakeMedia, context: RtcContext, backend: Backend) -> None:
    """A call that ended before its channel was asked for joins nothing any more."""
    await backend.open(media, context)
    call = make_call(media, context, backend)
    await call.close()
    with contextlib.suppress(RtcError):
        await call.connect()
    await assert_left(media, context, backend, call)
    assert call.told == []
    await call.close()
    await backend.shut()


@pytest.mark.parametrize("rounds", range(4))
@pytest.mark.parametrize("cancelled", [False, True])
@in_event_loop
async def test_close_while_connecting(
    media: FakeMedia, context: RtcContext, backend: Backend, rounds: int, cancelled: bool
) -> None:
    """At whatever moment the caller hangs up, or the bridge gives up waiting, nothing is left."""
    await backend.open(media, context)
    call = make_call(media, context, backend)
    connecting = asyncio.ensure_future(call.connect())
    for _ in range(rounds):
        await asyncio.sleep(0)
    if cancelled:
        connecting.cancel()
    await call.close()
    with contextlib.suppress(RtcError, asyncio.CancelledError):
        await connecting
    told = list(call.told)
    await assert_left(media, context, backend, call)
    await call.close()
    await assert_left(media, context, backend, call)
    assert call.told == told
    await backend.shut()


@in_event_loop
async def test_two_calls_at_once(media: FakeMedia, context: RtcContext, backend: Backend) -> None:
    """Each has its own audio; the end of one is nothing to the other."""
    await backend.open(media, context)
    calls = [make_call(media, context, backend, rate_hz) for rate_hz in (8000, 16000)]
    for call in calls:  # where they are heard by each other, softer than the far side
        call.phone.say(Tone(PHONE_HZ, call.phone.rate_hz, -50))
    await asyncio.gather(*(call.connect() for call in calls))
    await listen(media, backend, *calls)
    for call in calls:
        assert_hears(call, backend.says_hz)
    await calls[1].close()
    await assert_left(media, context, backend, calls[1])
    await listen(media, backend, calls[0])
    assert_hears(calls[0], backend.says_hz)
    await calls[0].close()
    await assert_left(media, context, backend, calls[0])
    await backend.shut()


@in_event_loop
async def test_bad_target(media: FakeMedia, context: RtcContext, backend: Backend) -> None:
    """The reason names the target; nothing but RtcError comes out."""
    for target in backend.bad_targets:
        with pytest.raises(RtcError) as caught:
            make_connection(Target.parse(target), context)
        assert caught.value.reason.kind is EndKind.CHANNEL_FAILED
        assert target in caught.value.reason.detail


@in_event_loop
async def test_keys_and_messages_do_no_harm(media: FakeMedia, context: RtcContext, backend: Backend) -> None:
    """Before it is joined, while, and after; the call does not get its own back."""
    await backend.open(media, context)
    call = make_call(media, context, backend)

    async def send() -> None:
        for digit in "0123456789*#ABCD":
            await call.connection.send_dtmf(digit, 160)
        await call.connection.send_message("text", "topic")
        await call.connection.send_message(b"\x00\xff")

    await send()
    assert call.told == []
    await call.connect()
    await send()
    await listen(media, backend, call)
    assert_hears(call, backend.says_hz)
    assert not [told for told in call.told if told[0] not in ("joined", "left")]
    await call.close()
    await send()
    await assert_left(media, context, backend, call)
    await backend.shut()


@in_event_loop
async def test_nothing_is_told_after_close(media: FakeMedia, context: RtcContext, backend: Backend) -> None:
    """Whatever happens in the channel."""
    await backend.open(media, context)
    call, other = (make_call(media, context, backend) for _ in range(2))
    await call.connect()
    await backend.wait()
    await call.close()
    told = list(call.told)
    await other.connect()
    await other.connection.send_dtmf("5", 160)
    await other.connection.send_message("text")
    await listen(media, backend, other)
    await other.close()
    await backend.shut()
    await backend.wait()
    media.run(4)
    assert call.told == told
