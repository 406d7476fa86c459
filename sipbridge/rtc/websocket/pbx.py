# SPDX-License-Identifier: GPL-3.0-or-later
"""A PBX that hands its calls to us by a stream of its own instead of SIP: AudioSocket, or chan_websocket.

::

    PBX ──► transport ──► PbxProtocol.receive() ──► port, and on as what a telephone says
    PBX ◄── transport ◄── PbxProtocol.audio() ◄──── port, a frame every 20 ms

Each connection is one call, a leg like that of a SIP telephone. All of it is on the event loop, but for the
frames on their way from the port.
"""

import asyncio
import functools
import hmac
import ipaddress
import time
import urllib.parse
import uuid
from base64 import b64encode
from collections.abc import Callable, Mapping

from sipbridge import ports
from sipbridge.config import PbxConfig
from sipbridge.errors import CallError, ConfigError, EndKind, EndReason, Party
from sipbridge.keys import parse_digits
from sipbridge.leg import NO_HEADERS, LegListener, LegState, LegStats
from sipbridge.log import get_logger
from sipbridge.media.remote import SamplePort
from sipbridge.media.tones import Clip, dtmf_samples
from sipbridge.routing import join_host_port, split_host_port
from sipbridge.rtc.base import RtcContext, Samples
from sipbridge.rtc.websocket.asterisk import AsteriskPbx
from sipbridge.rtc.websocket.audiosocket import AudioSocketPbx
from sipbridge.rtc.websocket.protocol import (
    Begun,
    Conversation,
    Digits,
    Event,
    Hangup,
    PbxProtocol,
)
from sipbridge.rtc.websocket.pump import get_pump
from sipbridge.rtc.websocket.session import Notes, Session, keys_of
from sipbridge.rtc.websocket.transport import listen_stream, listen_websocket

_BEGIN_S = 1.0  # that a PBX has to say what the call is; without, it begins with what is known
_PROTOCOLS: dict[str, type[PbxProtocol]] = {"audiosocket": AudioSocketPbx, "asterisk": AsteriskPbx}


class PbxServer:
    """Listens for one ``[[pbx]]``."""

    def __init__(self, config: PbxConfig, context: RtcContext, take: Callable[["StreamLeg"], None]) -> None:
        """`take` is given each call, whose `pbx` says where it is from."""
        self.config = config
        self._context = context
        self._take = take
        self._protocol = _PROTOCOLS[config.protocol]
        self._server: asyncio.Server | None = None
        self._legs: set[StreamLeg] = set()
        self._log = get_logger(__name__, pbx=config.name)
        host, port = split_host_port(config.listen)
        self._host = host
        self._port = port or 0

    @property
    def address(self) -> str:
        """Where it listens; the real port, once started, where 0 was configured."""
        return join_host_port(self._host, self._port)

    async def start(self) -> None:
        """ConfigError when it cannot listen there."""
        try:
            sock = ports.open_socket("tcp", self._host, self._port)
        except OSError as error:
            message = ports.explain(error, "tcp", self._host, self._port)
            raise ConfigError(message, table=f'[[pbx]] "{self.config.name}"', key="listen") from None
        self._port = sock.getsockname()[1]
        if self._protocol.transport == "tcp":
            self._server = await listen_stream(sock, self._accept)
        else:
            self._server = await listen_websocket(
                sock, self._accept, self._protocol.subprotocol, self._may_enter
            )

    async def stop(self) -> None:
        """Takes no more calls, and ends those that are left. Harmless when it never started."""
        if self._server is not None:
            self._server.close()
            self._server = None
        legs = list(self._legs)
        for leg in legs:
            leg.hangup(EndReason(EndKind.SHUTDOWN, "the server stops"))
        await asyncio.gather(*(leg.gone.wait() for leg in legs))

    def _may_enter(self, headers: Mapping[str, str]) -> bool:
        auth = self.config.auth
        if auth is None:
            return True
        user = f"{auth.username}:{auth.password.get_secret_value()}"
        wanted = "Basic " + b64encode(user.encode()).decode()
        return hmac.compare_digest(headers.get("Authorization", "").encode(), wanted.encode())

    def _accept(self, host: str, path: str) -> Session | None:
        """Somebody has connected."""
        networks = self.config.allowed_addresses
        address = ipaddress.ip_address(host)
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        if networks and not any(address in network for network in networks):
            self._log.warning("a stranger was refused", address=host)
            return None
        conversation = Conversation(call_id="", parameters=_parameters(path))
        leg = StreamLeg(self._context, self.config, self._protocol(conversation), self._take)
        self._legs.add(leg)
        leg.on_gone = lambda: self._legs.discard(leg)
        return leg.session


def _parameters(path: str) -> dict[str, str]:
    """Those of a URL that can be used: what has control characters is left out."""
    pairs = urllib.parse.parse_qsl(urllib.parse.urlsplit(path).query, errors="replace")
    return {name: value for name, value in pairs if value.isprintable()}


class _PbxSession(Session):
    """Everything that comes is the leg's."""

    def _heard(self, samples: Samples) -> None:
        assert isinstance(self._owner, StreamLeg)
        self._owner.said(samples)

    def lost(self, closed: bool, detail: str) -> None:
        if not self.ended.done():
            assert isinstance(self._owner, StreamLeg)
            self._end(self._owner.hung_up() if closed else self._owner.failed(detail), detail)


class _Port:
    """What the bridge does to the leg's port."""

    def __init__(self, samples: SamplePort) -> None:
        self._samples = samples
        self.port_id = samples.port_id

    def rateHz(self) -> int:  # noqa: N802
        return self._samples.sample_rate_hz

    def write(self, samples: Samples) -> None:
        self._samples.write(samples)

    def clear(self) -> None:
        self._samples.clear_heard()


class StreamLeg:
    """One call of a PBX. It is taken once the PBX has said what it is."""

    def __init__(
        self,
        context: RtcContext,
        pbx: PbxConfig,
        protocol: PbxProtocol,
        take: Callable[["StreamLeg"], None],
    ) -> None:
        self.id = uuid.uuid4().hex[:12]
        self.pbx = pbx
        self.caller = self.callee = ""
        self.headers: Mapping[str, str] = {}
        self.state = LegState.NEW
        self.codec = ""
        self.answered_at: float | None = None
        self.listener: LegListener | None = None
        self.gone = asyncio.Event()  # nothing of it is left
        self.on_gone: Callable[[], None] = lambda: None
        self.notes = Notes(get_logger(__name__, call_id=self.id, pbx=pbx.name))
        self._context = context
        self._protocol = protocol
        self._take = take
        self.session = _PbxSession(self, self._protocol)
        self.session.ended.add_done_callback(self._on_session_end)
        self._samples: SamplePort | None = None  # from its beginning on
        self._port: _Port | None = None
        self._stats = LegStats()
        self._waiting = asyncio.get_running_loop().call_later(_BEGIN_S, self._wait_no_more)
        self._letting_go: asyncio.Task[None] | None = None

    @property
    def port(self) -> _Port:
        assert self._port is not None  # who has the leg has it since its beginning
        return self._port

    # --- what the bridge asks for

    def ring(self) -> None:
        self.state = LegState.RINGING

    def progress(self) -> None:
        self.state = LegState.EARLY

    def answer(self, headers: Mapping[str, str] = NO_HEADERS) -> None:
        if self.state in (LegState.ACTIVE, LegState.ENDED):
            return
        self.session.send(self._protocol.answer())
        self.state = LegState.ACTIVE
        self.answered_at = time.monotonic()
        self._tell(lambda listener: listener.leg_answered())

    def hangup(self, reason: EndReason, headers: Mapping[str, str] = NO_HEADERS) -> None:
        """Also of one that has not begun."""
        if self.state is LegState.ENDED:
            return
        self._stats = self._read_stats()
        self.state = LegState.ENDED
        self.session.send(self._protocol.stop())
        self.session.close()
        self._waiting.cancel()
        self._tell(lambda listener: listener.leg_ended(reason, self._stats))
        self._letting_go = asyncio.ensure_future(self._let_go())

    async def _let_go(self) -> None:
        if self._samples is not None:
            await self._samples.leave(self._context.media)
        self.gone.set()
        self.on_gone()

    async def send_digits(self, digits: str) -> None:
        """As tones: neither protocol has keys on the way to the PBX."""
        for key in parse_digits(digits):
            if key.digit and self.state is not LegState.ENDED:
                self._context.media.overlay(self.port.port_id, functools.partial(_make_tone, key.digit))
            await asyncio.sleep(key.total_s)

    async def transfer(self, to: str) -> None:
        """Neither protocol can."""
        detail = f"[[pbx]] {self.pbx.name}: its protocol cannot transfer calls"
        raise CallError(EndReason(EndKind.NOT_ACCEPTABLE, detail))

    async def hold(self, held: bool) -> None:
        """Neither protocol can."""
        detail = f"[[pbx]] {self.pbx.name}: its protocol cannot hold calls"
        raise CallError(EndReason(EndKind.NOT_ACCEPTABLE, detail))

    async def stats(self) -> LegStats:
        return self._read_stats()

    def _read_stats(self) -> LegStats:
        if self._samples is None or self.state is LegState.ENDED:
            return self._stats
        port = self._samples.stats()
        return LegStats(
            codec=self.codec,
            capture_ms=self._context.config.media.tick_ms / 2 + port.capture_wait_ms,
            playback_ms=port.playback_wait_ms,
            capture_peak=port.capture_peak,
            playback_peak=port.playback_peak,
        )

    async def inband_keys(self) -> None:
        """Keys come as messages."""

    # --- what the PBX says

    def wishes(self, session: Session, event: Event) -> None:
        match event:
            case Begun():
                self._begin(event)
            case Digits(digits):
                for digit in keys_of(digits, self.notes):
                    self._press(digit)
            case Hangup():
                self.session.lost(True, "")

    def said(self, samples: Samples) -> None:
        if self._samples is not None:
            self._samples.feed(samples)

    def _press(self, digit: str) -> None:
        self._tell(lambda listener: listener.leg_digit(digit, 0, "info"))

    def _begin(self, call: Begun) -> None:
        self._waiting.cancel()
        self.caller, self.callee, self.headers, self.codec = (
            call.caller,
            call.callee,
            call.headers,
            call.codec,
        )
        pump, hear = get_pump(), self._hear
        self._samples = self._context.remotes.open_samples(
            self._protocol.receive_rate_hz, lambda frame, rate_hz: pump.put(hear, frame, rate_hz)
        )
        self._port = _Port(self._samples)
        self._take(self)

    def _wait_no_more(self) -> None:
        for event in self._protocol.wait_no_more():
            self.wishes(self.session, event)
        if self._samples is None:
            self.notes.warn("silent", "a PBX has connected and says nothing of a call")
            self.session.lost(False, "no call has begun")

    def _hear(self, frame: Samples, rate_hz: int) -> None:
        self.session.say(frame)

    def _on_session_end(self, ended: "asyncio.Future[EndReason | None]") -> None:
        if not ended.cancelled():
            self.hangup(ended.result() or self.failed(self.session.detail))

    def hung_up(self) -> EndReason:
        if self.answered_at is None:
            return EndReason(EndKind.CANCELLED, "the caller gave up", Party.CALLER)
        return EndReason(EndKind.HANGUP, "hung up", Party.CALLER)

    def failed(self, detail: str) -> EndReason:
        return EndReason(EndKind.TRANSPORT, f"the stream of {self.pbx.name}: {detail}")

    # --- small things

    def _tell(self, tell: Callable[[LegListener], None]) -> None:
        asyncio.get_running_loop().call_soon(self._told, tell)

    def _told(self, tell: Callable[[LegListener], None]) -> None:
        if self.listener is not None:
            tell(self.listener)


def _make_tone(digit: str, rate_hz: int) -> Clip:
    return Clip(dtmf_samples(digit, rate_hz))
