# SPDX-License-Identifier: GPL-3.0-or-later
"""One call leg: a telephone on the other end of a SIP dialog.

A `CallLeg` belongs to the event loop; the pjsua2 call behind it to the SIP thread. What the loop asks for
is posted there, what happens there is told to a `LegListener` on the loop. A leg that dials may need
several attempts (servers in order, redirections): each is a pjsua2 call of its own behind the same leg.
"""

import asyncio
import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pjsua2 as pj

from sipbridge.config import TrunkConfig
from sipbridge.errors import CallError, EndKind, EndReason, Party
from sipbridge.events import Direction, DtmfMethod
from sipbridge.keys import DigitFilter, parse_digits
from sipbridge.leg import NO_HEADERS, LegListener, LegState, LegStats
from sipbridge.log import get_logger
from sipbridge.routing import SipUri, check_text, clean_number
from sipbridge.sip.media_port import MediaPort
from sipbridge.sip.message import read_message
from sipbridge.sip.resolve import Destination

if TYPE_CHECKING:
    from sipbridge.sip.endpoint import SipEndpoint, Timer

MAX_REDIRECTIONS = 5
NO_ACK_S = 31.0  # an answer that nobody acknowledges: a second before pjsip sends a BYE, for as long again
TRANSFER_S = 60.0  # that a telephone has to say how its new call goes
NO_RESPONSE_S = 4.0  # a server that says nothing at all to an INVITE; then the next one of the trunk is tried


class NativeCall(pj.BridgeCall):  # type: ignore[misc]  # pjsua2 has no types
    """One SIP dialog. Thread: SIP; an exception here would only be printed, so none gets out."""

    def __init__(self, leg: "CallLeg", account: "pj.Account", call_id: int = -1) -> None:
        super().__init__(leg.endpoint.engine, account, leg.port, call_id)
        self._leg = leg

    def let_go(self) -> None:
        """After the last callback: nothing keeps the leg and its audio buffers from being freed then."""
        del self._leg

    def onCallState(self, prm: "pj.OnCallStateParam") -> None:  # noqa: N802
        self._leg.guarded(self._leg.on_state, self, prm)

    def onCallMediaState(self, prm: "pj.OnCallMediaStateParam") -> None:  # noqa: N802
        self._leg.guarded(self._leg.on_media_state, self)

    def onCallTransferStatus(self, prm: "pj.OnCallTransferStatusParam") -> None:  # noqa: N802
        self._leg.guarded(self._leg.on_transfer_status, prm.statusCode, prm.reason, prm.finalNotify)

    def onCallRedirected(self, prm: "pj.OnCallRedirectedParam") -> int:  # noqa: N802
        accepted = self._leg.guarded(self._leg.on_redirected, prm.targetUri)
        return int(pj.PJSIP_REDIRECT_ACCEPT if accepted else pj.PJSIP_REDIRECT_REJECT)


def add_headers(prm: "pj.CallOpParam", headers: Mapping[str, str]) -> None:
    """To the message that an operation sends."""
    for name, value in headers.items():
        header = pj.SipHeader()
        header.hName, header.hValue = name, value
        prm.txOption.headers.append(header)


@dataclass(slots=True)
class _Transfer:
    """A REFER that the telephone has not told the end of. SIP thread."""

    to: str
    settle: Callable[[EndReason | None], None]  # with why it failed
    accepted: bool = False


class CallLeg:
    """A telephone call as the bridge knows it. All public methods: event loop."""

    def __init__(
        self,
        endpoint: "SipEndpoint",
        *,
        call_id: str,
        direction: Direction,
        trunk: TrunkConfig | None,
        caller: str,
        callee: str,
        headers: Mapping[str, str],
        port: MediaPort,
    ) -> None:
        self.endpoint = endpoint
        self.id = call_id
        self.log = get_logger(__name__, call_id=call_id)
        self.direction: Direction = direction
        self.trunk = trunk
        self.caller = caller
        self.callee = callee
        self.headers = headers  # of the INVITE that came; empty for one that goes out
        self.port = port
        self.state = LegState.NEW
        self.codec = ""
        self.answered_at: float | None = None  # time.monotonic()
        self.listener: LegListener | None = None
        # --- SIP thread from here on
        self.from_uri: SipUri | None = None  # who a dialled call says it is from
        self.extra_headers: Mapping[str, str] = {}  # of the INVITE that goes out
        self._native: NativeCall | None = None
        self._ending: EndReason | None = None
        self._ended = False
        self._ack_timer: Timer | None = None
        self._destinations: list[Destination] = []
        self._next = 0
        self._redirections = 0
        self._rang = False
        self._confirmed = False
        self._held = False  # by the telephone
        self._holding = False  # by us
        self._transfer: _Transfer | None = None
        self._peer_takes_info = "info" in headers.get("allow", "").lower()
        self._digits = DigitFilter()
        self._last_packets = -1
        self._silent_since = time.monotonic()
        self._stats = LegStats()

    # --- what the bridge asks for, event loop

    def ring(self) -> None:
        """180 Ringing to the caller."""
        self._post(lambda: self._answer(180))

    def progress(self) -> None:
        """183 with an answer to the offer: audio flows both ways before the call is answered."""
        self._post(lambda: self._answer(183))

    def answer(self, headers: Mapping[str, str] = NO_HEADERS) -> None:
        """200 OK."""
        self._post(lambda: self._answer(200, headers))

    def hangup(self, reason: EndReason, headers: Mapping[str, str] = NO_HEADERS) -> None:
        """Ends the leg in whatever state it is; `leg_ended` follows with this reason."""
        self._post(lambda: self.end(reason, headers))

    async def send_digits(self, digits: str) -> None:
        """Presses keys one after the other; ``w`` is half a second. Returns when the last was sent.

        ValueError names a character that is no key.
        """
        for key in parse_digits(digits):
            if key.digit and self.state is not LegState.ENDED:
                await self.endpoint.run(functools.partial(self._send_digit, key.digit, key.duration_ms))
            await asyncio.sleep(key.total_s)

    async def transfer(self, to: str) -> None:
        """Asks the telephone to call `to` instead (REFER, RFC 3515); see `Leg.transfer`."""
        told: asyncio.Future[EndReason | None] = asyncio.get_running_loop().create_future()

        def settle(reason: EndReason | None) -> None:
            if not told.done():
                told.set_result(reason)

        await self.endpoint.run(
            lambda: self._refer(to, lambda reason: self.endpoint.tell(lambda: settle(reason)))
        )
        try:
            async with asyncio.timeout(TRANSFER_S):
                failure = await told
        except TimeoutError:
            failure = EndReason(EndKind.NO_ANSWER, "the telephone does not say how the transfer goes")
        finally:
            self._post(self._forget_transfer)
        if failure is not None:
            raise CallError(failure)

    async def hold(self, held: bool) -> None:
        """By a re-INVITE (RFC 3264 8.4) and silence; see `Leg.hold`."""
        await self.endpoint.run(lambda: self._hold(held))

    async def stats(self) -> LegStats:
        """A snapshot; after the end, the whole call's."""
        return await self.endpoint.run(self._read_stats)

    async def inband_keys(self) -> Callable[[str], None] | None:
        """Who is to be told of keys in the audio; None where the telephone tells of them otherwise."""
        wanted = self.trunk.dtmf if self.trunk is not None else "auto"
        events = await self.endpoint.run(self.hears_telephone_events)
        if wanted == "inband" or (wanted == "auto" and not events):
            return lambda digit: self.endpoint.post(lambda: self.on_digit(digit, 0, "inband"))
        return None

    def _post(self, work: Callable[[], None]) -> None:
        self.endpoint.post(lambda: self.guarded(work))

    # --- SIP thread

    def guarded[**P, R](self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R | None:
        """Runs a callback; a fault of ours ends this call and no other."""
        try:
            return work(*args, **kwargs)
        except Exception as error:
            self.log.exception("a fault in the handling of this leg")
            reason = EndReason(EndKind.ERROR, f"internal error: {error}")
            if not self._ended:
                self._ending = self._ending or reason
                try:
                    self.end(reason)
                except Exception:
                    self._finish(reason)
            return None

    def take_incoming(
        self, account: "pj.Account", native_id: int, source: str, media_address: str, codecs: tuple[str, ...]
    ) -> None:
        """The INVITE that just came from the address `source` becomes this leg."""
        self._native = NativeCall(self, account, native_id)
        self.guard_media(self._native, source)
        self._native.setCodecs(pj.StringVector(codecs))
        self._native.setMediaAddress(media_address)

    def guard_media(self, native: NativeCall, signalling_address: str) -> None:
        """Audio is for where the far side's SDP says, and beyond that for the trunk's own addresses alone."""
        networks = [str(network) for network in self.trunk.allowed_addresses] if self.trunk else []
        networks += [destination.host for destination in self._destinations]
        nat = self.trunk.nat if self.trunk else "auto"
        native.setMediaSources(pj.StringVector(networks), nat, signalling_address)

    def dial(self, destinations: list[Destination]) -> None:
        """Tries these one after the other until one rings or answers."""
        self._destinations = destinations
        self._next = 0
        self._try_next()

    def _try_next(self) -> None:
        destination = self._destinations[self._next]
        self._next += 1
        self._rang = False
        try:
            self._native = self.endpoint.make_call(self, destination)
        except pj.Error as error:
            self._attempt_failed(
                EndReason(
                    EndKind.TRANSPORT, f"cannot call {destination.uri}: {error.reason}", Party.BRIDGE, 503
                )
            )
            return
        if self._next < len(self._destinations):
            native = self._native
            self.endpoint.later(NO_RESPONSE_S, lambda: self.guarded(self._give_up_silent, native))

    def _give_up_silent(self, native: NativeCall) -> None:
        if native is self._native and not self._ended and self._ending is None:
            info = native.getInfo()
            if info.state == pj.PJSIP_INV_STATE_CALLING and info.lastStatusCode == 0:
                self._native = None
                self._drop(native, 408)
                self._attempt_failed(
                    EndReason(EndKind.NO_ANSWER, "the server does not respond", Party.CALLEE, 408)
                )

    def _attempt_failed(self, reason: EndReason) -> None:
        retry = reason.sip_code in (408, 502, 503) and not self._rang and self._ending is None
        if retry and self._next < len(self._destinations):
            self.log.info("trying the next server", why=reason.detail)
            self._try_next()
        else:
            self._finish(reason)

    def _answer(self, code: int, headers: Mapping[str, str] = NO_HEADERS) -> None:
        if self._native is None or self._ended or self._ending is not None or self._confirmed:
            return
        prm = pj.CallOpParam(True)
        prm.statusCode = code
        add_headers(prm, headers)
        prm.opt.audioCount, prm.opt.videoCount, prm.opt.textCount = 1, 0, 0
        if code == 200:
            unacknowledged = functools.partial(self.guarded, self._give_up_unacknowledged)
            self._ack_timer = self.endpoint.later(NO_ACK_S, unacknowledged)
        try:
            self._native.answer(prm)
        except pj.Error as error:
            kind = (
                EndKind.NOT_ACCEPTABLE
                if "SDP" in error.reason or "media" in error.reason.lower()
                else EndKind.ERROR
            )
            self.end(EndReason(kind, f"cannot answer: {error.reason}"))

    def _refer(self, to: str, settle: Callable[[EndReason | None], None]) -> None:
        native = self._native
        if native is None or not self._confirmed or self._ending is not None:
            raise CallError(EndReason(EndKind.NOT_ACCEPTABLE, "only a call that is up can be transferred"))
        if self._transfer is not None:
            raise CallError(EndReason(EndKind.NOT_ACCEPTABLE, "the call is being transferred already"))
        try:
            uri = self._refer_uri(native, to)
            native.xfer(f"<{uri.uri}>", pj.CallOpParam(True))
        except ValueError as error:
            raise CallError(EndReason(EndKind.NOT_FOUND, str(error))) from None
        except pj.Error as error:
            raise CallError(EndReason(EndKind.ERROR, f"cannot transfer: {error.reason}")) from None
        self._transfer = _Transfer(to, settle)

    @staticmethod
    def _refer_uri(native: NativeCall, to: str) -> SipUri:
        """`to`, or that user at the host that the far side goes by; ValueError when it is none."""
        if to.lower().startswith(("sip:", "sips:", "tel:")):
            return SipUri.parse(to)
        far = SipUri.parse(native.getInfo().remoteUri)
        return SipUri(far.scheme, clean_number(check_text(to, "the number")), far.host, far.port)

    def on_transfer_status(self, code: int, phrase: str, final: bool) -> None:
        """The answer to a REFER, and what the telephone tells of its new call."""
        transfer = self._transfer
        if transfer is None:
            return
        if code >= 300:
            far = Party.CALLER if self.direction == "inbound" else Party.CALLEE
            self._transfer = None
            transfer.settle(EndReason.from_sip(code, phrase, far))
        elif final or (code >= 200 and transfer.accepted):
            self._transfer = None
            transfer.settle(None)
        else:
            transfer.accepted = True

    def _forget_transfer(self) -> None:
        self._transfer = None

    def _hold(self, held: bool) -> None:
        native = self._native
        if native is None or not self._confirmed or self._ending is not None:
            raise CallError(EndReason(EndKind.NOT_ACCEPTABLE, "only a call that is up can be held"))
        if held == self._holding:
            return
        prm = pj.CallOpParam(True)
        prm.opt.audioCount, prm.opt.videoCount, prm.opt.textCount = 1, 0, 0
        try:
            if held:
                native.setHold(prm)
            else:
                prm.opt.flag |= pj.PJSUA_CALL_UNHOLD
                native.reinvite(prm)
        except pj.Error as error:
            what = "held" if held else "taken back"
            raise CallError(EndReason(EndKind.ERROR, f"the call cannot be {what}: {error.reason}")) from None
        self._holding = held
        native.setSilent(held)

    def _give_up_unacknowledged(self) -> None:
        if not self._confirmed:
            detail = "the caller did not acknowledge the answer"
            self.end(EndReason(EndKind.TRANSPORT, detail, Party.BRIDGE, 408))

    def end(self, reason: EndReason, headers: Mapping[str, str] = NO_HEADERS) -> None:
        """`hangup`, on the SIP thread."""
        if self._ended:
            return
        self._ending = self._ending or reason
        if self._native is None:
            self._finish(self._ending)
            return
        self._stats = self._read_stats()
        code = 0 if self._confirmed or self.direction == "outbound" else reason.code
        self._drop(self._native, code, headers)

    def _drop(self, native: NativeCall, code: int, headers: Mapping[str, str] = NO_HEADERS) -> None:
        prm = pj.CallOpParam(True)
        prm.statusCode = code
        add_headers(prm, headers)
        try:
            native.hangup(prm)
        except pj.Error as error:
            self.log.debug("it has ended already", why=error.reason)

    def on_state(self, native: NativeCall, prm: "pj.OnCallStateParam") -> None:
        info = native.getInfo()
        state = info.state
        if state == pj.PJSIP_INV_STATE_DISCONNECTED:
            self.endpoint.retire(native)
            if native is self._native:
                self._read_stats()
                self._native = None
                event = prm.e
                unreachable = (
                    event.type == pj.PJSIP_EVENT_TSX_STATE
                    and event.body.tsxState.type == pj.PJSIP_EVENT_TRANSPORT_ERROR
                )
                self._disconnected(info.lastStatusCode, info.lastReason, unreachable)
        elif native is not self._native or self._ending is not None:
            return
        elif state == pj.PJSIP_INV_STATE_EARLY and self.direction == "outbound":
            self._rang = True
            early = info.lastStatusCode == 183
            self._tell(lambda listener: self._ringing(listener, early))
        elif state == pj.PJSIP_INV_STATE_CONFIRMED and not self._confirmed:
            self._confirmed = True
            if self.direction == "outbound":
                message = prm.e.body.tsxState.src.rdata.wholeMsg
                self._peer_takes_info = "info" in read_message(message)[1].get("allow", "").lower()
            now = time.monotonic()
            self._silent_since = now
            self._tell(lambda listener: self._answered(listener, now))

    def _disconnected(self, code: int, phrase: str, unreachable: bool) -> None:
        far = Party.CALLER if self.direction == "inbound" else Party.CALLEE
        if self._ending is not None:
            self._finish(self._ending)
        elif self._confirmed:
            transfer = self._transfer
            if transfer is not None and transfer.accepted:  # some hang up at once, and tell nothing more
                transfer.settle(None)
                self._finish(EndReason(EndKind.TRANSFERRED, f"transferred to {transfer.to}", far, code))
            elif code < 300:
                self._finish(EndReason(EndKind.HANGUP, "hung up", far, code))
            else:
                reason = EndReason.from_sip(code, phrase, Party.BRIDGE)
                self._finish(EndReason(reason.kind, f"the dialog broke: {phrase}", Party.BRIDGE, code))
        elif self.direction == "inbound":
            if code == 487:
                self._finish(EndReason(EndKind.CANCELLED, "the caller gave up", far, code))
            else:
                self._finish(EndReason.from_sip(code, phrase, Party.BRIDGE))
        elif unreachable:  # the code is pjsip's own, and nobody's answer
            self._attempt_failed(
                EndReason(EndKind.TRANSPORT, f"cannot reach it: {phrase}", Party.BRIDGE, code)
            )
        else:
            self._attempt_failed(EndReason.from_sip(code, phrase, far))

    def on_media_state(self, native: NativeCall) -> None:
        if native is not self._native:
            return
        held = False
        codec = self.codec
        info = native.getInfo()  # kept: what SWIG gives of its parts lives no longer than it does
        for media in info.media:
            if media.type == pj.PJMEDIA_TYPE_AUDIO:
                held = media.status == pj.PJSUA_CALL_MEDIA_REMOTE_HOLD
        rtp = native.rtpStats()
        if rtp.running:
            codec = rtp.codec.partition("/")[0]
        self._held = held
        self._last_packets = -1
        self._silent_since = time.monotonic()
        held = held or self._holding
        self._tell(lambda listener: self._media(listener, codec, held))

    def on_redirected(self, target: str) -> bool:
        """302 is followed only to hosts of the same trunk, and not for ever."""
        self._redirections += 1
        uri = SipUri.parse(target)
        allowed = self.endpoint.trunk_hosts(self.trunk) | {
            destination.uri.host for destination in self._destinations
        }
        accepted = self._redirections <= MAX_REDIRECTIONS and uri.host in allowed
        self.log.info("redirected", to=uri.uri, followed=accepted)
        return accepted

    def on_digit(self, digit: str, duration_ms: int, method: DtmfMethod) -> None:
        """A key the telephone pressed, by whichever method; SIP thread."""
        if self._digits.accept(digit, method, time.monotonic()):
            self._tell(lambda listener: listener.leg_digit(digit, duration_ms, method))

    def _send_digit(self, digit: str, duration_ms: int) -> None:
        if self._native is None or self._ended:
            return
        wanted = self.trunk.dtmf if self.trunk is not None else "auto"
        events = self._native.canSendTelephoneEvents()
        method: str = wanted
        if wanted == "auto":
            method = "rfc4733" if events else ("info" if self._peer_takes_info else "inband")
        elif wanted == "rfc4733" and not events:
            method = "inband"
        if method == "rfc4733":
            self._native.sendTelephoneEvent(digit, duration_ms)
        elif method == "info":
            prm = pj.CallSendRequestParam()
            prm.method = "INFO"
            prm.txOption.contentType = "application/dtmf-relay"
            prm.txOption.msgBody = f"Signal={digit}\r\nDuration={duration_ms}\r\n"
            self._native.sendRequest(prm)
        else:
            self.endpoint.play_inband(self, digit)

    def native_id(self) -> int:
        """pjsua2's number of the call, -1 without one."""
        return -1 if self._native is None else int(self._native.getId())

    def sip_call_id(self) -> str:
        """SIP's own Call-ID; SIP thread."""
        return "" if self._native is None else str(self._native.getInfo().callIdString)

    def hears_telephone_events(self) -> bool:
        """RFC 4733 was agreed on; SIP thread."""
        return self._native is not None and bool(self._native.canSendTelephoneEvents())

    def check_media(self, now: float) -> None:
        """Ends a leg whose RTP has stopped; called once a second on the SIP thread."""
        if self._native is None or self._ended or self._ending is not None:
            return
        rtp = self._native.rtpStats()
        expected = (
            rtp.running and rtp.receiving and not rtp.silence_suppressed and not (self._held or self._holding)
        )
        if not expected or not self._confirmed or rtp.received_packets != self._last_packets:
            self._last_packets = rtp.received_packets
            self._silent_since = now
            return
        sip = self.endpoint.config.sip
        limit_s = sip.media_timeout_s if rtp.received_packets else sip.first_media_timeout_s
        if now - self._silent_since >= limit_s:
            detail = f"no RTP came for {now - self._silent_since:.0f} s"
            self.end(EndReason(EndKind.MEDIA_TIMEOUT, detail))

    def _read_stats(self) -> LegStats:
        if self._native is None or self._ended:
            return self._stats
        rtp = self._native.rtpStats()
        port = self.port.stats()
        expected = rtp.received_packets + rtp.lost_packets
        self._stats = LegStats(
            codec=rtp.codec.partition("/")[0],
            received_packets=rtp.received_packets,
            sent_packets=rtp.sent_packets,
            lost_packets=rtp.lost_packets,
            foreign_packets=rtp.foreign_packets,
            loss_percent=100.0 * rtp.lost_packets / expected if expected else 0.0,
            jitter_ms=rtp.jitter_ms,
            round_trip_ms=rtp.round_trip_ms,
            capture_ms=self.endpoint.config.media.tick_ms / 2 + port.capture_wait_ms,
            mix_ms=self.endpoint.engine.clock().mediaMs() if port.mixed else 0.0,
            playback_ms=port.playback_wait_ms,
            capture_peak=port.capture_peak,
            playback_peak=port.playback_peak,
        )
        return self._stats

    def _finish(self, reason: EndReason) -> None:
        if self._ended:
            return
        stats = self._read_stats()
        if stats.foreign_packets:
            self.log.warning("dropped RTP of foreign addresses", packets=stats.foreign_packets)
        if self._ack_timer is not None:
            self._ack_timer.work = None
        self._ended = True
        self._native = None
        if self._transfer is not None:
            self._transfer.settle(reason)
        self.endpoint.forget(self)
        self._tell(lambda listener: self._over(listener, reason, stats))

    # --- told on the event loop

    def _tell(self, tell: Callable[[LegListener], None]) -> None:
        self.endpoint.tell(lambda: self._told(tell))

    def _told(self, tell: Callable[[LegListener], None]) -> None:
        if self.listener is not None:
            tell(self.listener)

    def _ringing(self, listener: LegListener, early: bool) -> None:
        if self.state in (LegState.NEW, LegState.RINGING):
            self.state = LegState.EARLY if early else LegState.RINGING
        listener.leg_ringing(early)

    def _answered(self, listener: LegListener, at: float) -> None:
        self.state = LegState.HELD if self.state is LegState.HELD else LegState.ACTIVE
        self.answered_at = at
        listener.leg_answered()

    def _media(self, listener: LegListener, codec: str, held: bool) -> None:
        self.codec = codec
        if held:
            self.state = LegState.HELD
        elif self.state is LegState.HELD:
            self.state = LegState.ACTIVE
        listener.leg_media()

    def _over(self, listener: LegListener, reason: EndReason, stats: LegStats) -> None:
        self.state = LegState.ENDED
        self.codec = stats.codec or self.codec
        self.listener = None
        listener.leg_ended(reason, stats)
