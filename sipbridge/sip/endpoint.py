# SPDX-License-Identifier: GPL-3.0-or-later
"""The one SIP endpoint of the process and the thread that it lives on.

Everything of pjsua2 runs on the `sip` thread: it creates the library, polls its events, and does what
other threads post. A post wakes it through the endpoint's own event queue, so nothing waits for a poll.
"""

import asyncio
import heapq
import itertools
import logging
import os
import socket
import ssl
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pjsua2 as pj

from sipbridge import ports
from sipbridge.config import Config, TlsConfig, TrunkConfig
from sipbridge.errors import CallError, ConfigError, EndKind, EndReason
from sipbridge.media.remote import TrackOptions
from sipbridge.routing import DialPlan, SipUri, join_host_port, split_host_port
from sipbridge.sip.call import CallLeg, NativeCall, add_headers
from sipbridge.sip.media_port import MediaPort
from sipbridge.sip.message import read_message
from sipbridge.sip.resolve import Destination, resolve_servers

log = logging.getLogger(__name__)
pjsip_log = logging.getLogger("pjsip")

_POLL_MS = 200  # of the event queue; posts do not wait for it
_MEDIA_CHECK_S = 1.0
_REFUSAL_S = 60.0  # a source that is turned away is told of so often
_MAX_TOLD_REFUSALS = 1000
_PYTHON_LEVELS = {0: logging.CRITICAL, 1: logging.ERROR, 2: logging.WARNING, 3: logging.INFO}
_MAX_BODY_BYTES = 10_000
_MAX_CALLS = 1024  # compiled into pjsua2; the gate refuses at the configured limit, below it

# Names as in SDP to the identifiers that pjsua2 knows codecs by.
_CODEC_IDS = {
    "pcmu": "PCMU/8000",
    "pcma": "PCMA/8000",
    "g722": "G722/16000",
    "opus": "opus/48000",
    "gsm": "GSM/8000",
    "speex": "speex/",
    "g729": "G729/8000",
}


class _Account(pj.Account):  # type: ignore[misc]  # pjsua2 has no types
    """Trunks that share a media policy are one account."""

    def __init__(self, endpoint: "SipEndpoint") -> None:
        super().__init__()
        self._endpoint = endpoint

    def onIncomingCall(self, prm: "pj.OnIncomingCallParam") -> None:  # noqa: N802
        try:
            self._endpoint.on_incoming(self, prm)
        except Exception:
            log.exception("an incoming call could not be taken")  # pjsua2 answers 500


@dataclass(order=True, slots=True)
class Timer:
    """Work for later; `work` is None once it is not wanted any more, which also frees what it holds."""

    due: float
    number: int
    work: Callable[[], None] | None = field(compare=False)


class SipEndpoint:
    """Listens, dials and keeps the legs. Public methods: event loop, if not said otherwise."""

    def __init__(self, config: Config, on_incoming: Callable[[CallLeg], None]) -> None:
        self.config = config
        self.engine: pj.Engine  # set by start()
        self.listening: list[str] = []
        self.play_inband: Callable[[CallLeg, str], None] = lambda leg, digit: None
        self._on_incoming = on_incoming
        self._loop: asyncio.AbstractEventLoop
        self._thread: threading.Thread | None = None
        self._running = False
        self._posted: deque[Callable[[], None]] = deque()
        # --- SIP thread
        self._accounts: dict[tuple[object, ...], _Account] = {}
        self._legs: dict[str, CallLeg] = {}
        self._retired: list[NativeCall] = []
        self._timers: list[Timer] = []
        self._timer_count = itertools.count()
        first, last = config.sip.rtp_ports
        self._limit = min(config.sip.max_calls, (last - first + 1) // 2)  # a call has a pair of ports
        self._told_refusals: dict[str, float] = {}

    # --- life

    async def start(self) -> None:
        """Opens the sockets. ConfigError when that cannot be done, with nothing left open."""
        self._loop = asyncio.get_running_loop()
        started: asyncio.Future[None] = self._loop.create_future()
        self._running = True
        self._thread = threading.Thread(target=self._run, args=(started,), name="sip", daemon=True)
        self._thread.start()
        await started

    async def stop(self) -> None:
        """Closes everything; legs that still live are hung up."""
        if self._thread is None:
            return
        self._running = False
        self.engine.wake()
        await asyncio.to_thread(self._thread.join)
        self._thread = None

    def _run(self, started: "asyncio.Future[None]") -> None:
        try:
            self._open()
        except Exception as error:
            failure = error
            if isinstance(error, pj.Error):
                failure = ConfigError(f"SIP cannot start: {error.reason}", table="sip")
            self._close()
            self._loop.call_soon_threadsafe(started.set_exception, failure)
            return
        self._loop.call_soon_threadsafe(started.set_result, None)
        next_check = time.monotonic() + _MEDIA_CHECK_S
        while self._running:
            self.engine.libHandleEvents(self._poll_ms(next_check))
            for _ in range(len(self._posted)):
                self._guard(self._posted.popleft())
            for event in self.engine.takeEvents():
                self._guard(self._on_event, event)
            for cut in self.engine.gate().takeCutCalls():
                self._guard(self._on_cut, cut)
            for refusal in self.engine.gate().takeRefusals():
                self._guard(self._on_refusal, refusal)
            now = time.monotonic()
            while self._timers and self._timers[0].due <= now:
                work = heapq.heappop(self._timers).work
                if work is not None:
                    self._guard(work)
            if now >= next_check:
                next_check = now + _MEDIA_CHECK_S
                for leg in list(self._legs.values()):
                    leg.guarded(leg.check_media, now)
            self._let_go_retired()
            self._drain_log()
        self._close()

    def _poll_ms(self, next_check: float) -> int:
        due = min(next_check, self._timers[0].due) if self._timers else next_check
        return max(0, min(_POLL_MS, int((due - time.monotonic()) * 1000) + 1))

    def _open(self) -> None:
        sip = self.config.sip
        self.engine = pj.Engine(self.config.media.tick_ms, self.config.media.jitter_max_ms)
        self.engine.libCreate()
        settings = pj.EpConfig()
        settings.uaConfig.maxCalls = _MAX_CALLS
        settings.uaConfig.threadCnt = 0
        settings.uaConfig.mainThreadOnly = True
        settings.uaConfig.userAgent = sip.user_agent
        settings.logConfig.level = 5 if pjsip_log.isEnabledFor(logging.DEBUG) else 2
        settings.logConfig.consoleLevel = 0
        settings.logConfig.msgLogging = 1 if pjsip_log.isEnabledFor(logging.DEBUG) else 0
        media = settings.medConfig
        media.clockRate = media.sndClockRate = 8000
        media.audioFramePtime = 100  # of the conference bridge, which carries no audio here
        media.ptime = 20
        media.maxMediaPorts = 2 * _MAX_CALLS + 8
        media.threadCnt = 1
        media.noVad = True
        media.ecTailLen = 0
        media.sndAutoCloseTime = -1  # closing the device that there is not holds the SIP thread for 100 ms
        # pjmedia's buffer only puts packets in order; ours follows the jitter
        media.jbInit = 0
        media.jbMinPre = 0
        media.jbMaxPre = 10
        media.jbMax = max(200, self.config.media.jitter_max_ms)
        media.jbDiscardAlgo = pj.PJMEDIA_JB_DISCARD_NONE
        self.engine.libInit(settings)
        self.engine.install()
        self._configure_gate()
        self._set_codecs()
        self._listen()
        self.engine.libStart()
        self.engine.audDevManager().setNullDev()
        for number, trunk in enumerate(self.config.trunk):
            v4, v6 = (self._account(trunk, host).getId() for host in ("127.0.0.1", "::1"))
            self.engine.setTrunkAccounts(number, v4, v6)
        self.engine.startClock()

    def _close(self) -> None:
        reason = EndReason(EndKind.SHUTDOWN, "the server stops")
        for leg in list(self._legs.values()):
            leg.guarded(leg.end, reason)
        try:
            deadline = time.monotonic() + 2.0
            while self.engine.counters().calls and time.monotonic() < deadline:
                self.engine.libHandleEvents(20)  # lets the BYEs out
            self._let_go_retired()
            for account in self._accounts.values():
                account.shutdown()
            self._accounts.clear()
            self.engine.uninstall()
            self.engine.libDestroy(pj.PJSUA_DESTROY_NO_RX_MSG)
        except pj.Error as error:
            log.debug("while closing: %s", error.reason)
        self._drain_log()

    def _configure_gate(self) -> None:
        sip = self.config.sip
        policy = pj.GatePolicy()
        policy.refuseAloud = sip.unknown == "403"
        policy.maxCalls = self._limit
        policy.maxBodyBytes = _MAX_BODY_BYTES
        policy.requestsPerSecond, policy.burst = 200.0, 800
        policy.algorithms = pj.StringVector(sip.digest)
        trunks = pj.GateTrunkVector()
        for trunk in self.config.trunk:
            gate_trunk = pj.GateTrunk()
            gate_trunk.name = trunk.name
            gate_trunk.phone = trunk.kind == "phone"
            gate_trunk.addresses = pj.StringVector([str(network) for network in trunk.allowed_addresses])
            if trunk.auth is not None:
                gate_trunk.username = trunk.auth.username
                gate_trunk.password = trunk.auth.password.get_secret_value()
            gate_trunk.maxCalls = trunk.max_calls or 0
            gate_trunk.srtpRequired = trunk.srtp == "require"
            trunks.append(gate_trunk)
        problem = self.engine.gate().configure(policy, trunks)
        if problem:
            raise ConfigError(problem, table="trunk")
        self.engine.gate().setDraining(True)  # until somebody takes the calls

    def _set_codecs(self) -> None:
        """Enables what any trunk may use; which of them a call offers, and in which order, is per call."""
        wanted = [*self.config.sip.codecs]
        for trunk in self.config.trunk:
            wanted += [codec for codec in trunk.codecs or () if codec not in wanted]
        for info in self.engine.codecEnum2():
            self.engine.codecSetPriority(info.codecId, 0)
        for place, codec in enumerate(wanted):
            self.engine.codecSetPriority(_CODEC_IDS[codec.lower()], 200 - place)

    def _listen(self) -> None:
        sip = self.config.sip
        kinds = {
            ("udp", 4): pj.PJSIP_TRANSPORT_UDP,
            ("udp", 6): pj.PJSIP_TRANSPORT_UDP6,
            ("tcp", 4): pj.PJSIP_TRANSPORT_TCP,
            ("tcp", 6): pj.PJSIP_TRANSPORT_TCP6,
            ("tls", 4): pj.PJSIP_TRANSPORT_TLS,
            ("tls", 6): pj.PJSIP_TRANSPORT_TLS6,
        }
        for listen in sip.listen:
            host, port = split_host_port(listen)
            family = 6 if ":" in host else 4
            for name in sip.transports:
                settings = pj.TransportConfig()
                settings.boundAddress = host
                settings.port = 5060 if port is None else port
                if sip.public_address:
                    settings.publicAddress = sip.public_address
                if name == "tls" and sip.tls is not None:
                    settings.port = sip.tls.port
                    _set_tls(settings.tlsConfig, sip.tls)
                problem = ports.find_problem("udp" if name == "udp" else "tcp", host, settings.port)
                if problem is not None:
                    raise ConfigError(problem, table="sip", key="listen")
                try:
                    transport = self.engine.transportCreate(kinds[name, family], settings)
                except pj.Error as error:
                    address = join_host_port(host, settings.port)
                    raise ConfigError(
                        f"cannot listen on {address}/{name}: {error.reason}",
                        table="sip",
                        key="listen",
                    ) from error
                bound = self.engine.transportGetInfo(transport).localName
                self.listening.append(f"{name} {join_host_port(host, int(bound.rpartition(':')[2]))}")

    def _account(self, trunk: TrunkConfig | None, host: str) -> _Account:
        """The account for this trunk's media policy; calls from and to IPv6 hosts have one of their own."""
        srtp = trunk.srtp if trunk is not None else "off"
        auth = trunk.outbound.auth if trunk is not None and trunk.outbound is not None else None
        ipv6 = ":" in host
        key = (srtp, auth.username if auth else None, auth, ipv6)
        if key in self._accounts:
            return self._accounts[key]
        settings = pj.AccountConfig()
        settings.idUri = "sip:sipbridge@localhost"
        settings.regConfig.registerOnAdd = False
        first, last = self.config.sip.rtp_ports
        media = settings.mediaConfig
        media.transportConfig.port = first
        media.transportConfig.portRange = last - first - 1
        media.lockCodecEnabled = False
        media.srtpUse = {
            "off": pj.PJMEDIA_SRTP_DISABLED,
            "allow": pj.PJMEDIA_SRTP_OPTIONAL,
            "require": pj.PJMEDIA_SRTP_MANDATORY,
        }[srtp]
        media.srtpSecureSignaling = 0
        media.ipv6Use = pj.PJSUA_IPV6_ENABLED_USE_IPV6_ONLY if ipv6 else pj.PJSUA_IPV6_DISABLED
        # Each call's SDP says its own address. Without one here pjsua would look this host's name up for
        # every call, in DNS, on this thread.
        media.transportConfig.publicAddress = "::1" if ipv6 else "127.0.0.1"
        nat = settings.natConfig
        nat.contactRewriteUse = nat.viaRewriteUse = nat.sdpNatRewriteUse = nat.sipOutboundUse = 0
        nat.iceEnabled = False
        nat.contactUseSrcPort = 0  # Contact names our listener, and costs no connection of its own
        settings.callConfig.timerUse = pj.PJSUA_SIP_TIMER_OPTIONAL
        if auth is not None:
            credentials = pj.AuthCredInfo("digest", "*", auth.username, 0, auth.password.get_secret_value())
            settings.sipConfig.authCreds.append(credentials)
        account = _Account(self)
        account.create(settings)
        self._accounts[key] = account
        return account

    # --- from other threads

    def post(self, work: Callable[[], None]) -> None:
        """Runs `work` on the SIP thread, soon. Any thread."""
        self._posted.append(work)
        self.engine.wake()

    async def run[R](self, work: Callable[[], R]) -> R:
        """Runs `work` on the SIP thread and returns what it returned, or raises what it raised."""
        done: asyncio.Future[R] = self._loop.create_future()

        def settle(result: R | None, error: Exception | None) -> None:
            if not done.cancelled():
                if error is not None:
                    done.set_exception(error)
                else:
                    done.set_result(result)  # type: ignore[arg-type]

        def do() -> None:
            try:
                result, failure = work(), None
            except Exception as error:
                result, failure = None, error
            self._loop.call_soon_threadsafe(settle, result, failure)

        self.post(do)
        return await done

    def tell(self, told: Callable[[], None]) -> None:
        """Runs `told` on the event loop. SIP thread."""
        self._loop.call_soon_threadsafe(told)

    def later(self, delay_s: float, work: Callable[[], None]) -> Timer:
        """Runs `work` on the SIP thread after a time. SIP thread."""
        timer = Timer(time.monotonic() + delay_s, next(self._timer_count), work)
        heapq.heappush(self._timers, timer)
        return timer

    def set_draining(self, draining: bool) -> None:
        """New INVITEs are answered 503 from now on."""
        self.engine.gate().setDraining(draining)

    # --- calls

    async def dial(
        self, call_id: str, plan: DialPlan, *, caller: SipUri | None, headers: Mapping[str, str]
    ) -> CallLeg:
        """A leg that is being dialled; it tells how that goes. CallError when there is nobody to dial."""
        destinations = await resolve_servers(plan)
        leg, destinations = await self.run(
            lambda: self._make_leg(call_id, plan, destinations, caller, headers)
        )
        # only now, so that nothing happens to the leg before somebody listens to it
        self.post(lambda: leg.guarded(leg.dial, destinations))
        return leg

    def _make_leg(
        self,
        call_id: str,
        plan: DialPlan,
        destinations: list[Destination],
        caller: SipUri | None,
        headers: Mapping[str, str],
    ) -> tuple[CallLeg, list[Destination]]:
        if plan.phone:
            contact = self.engine.gate().contactOf(plan.phone)
            if not contact:
                detail = f"the phone {plan.phone!r} is not registered"
                raise CallError(EndReason(EndKind.UNAVAILABLE, detail))
            uri = SipUri.parse(contact)
            destinations = [Destination(uri, uri.host, uri.port)]
        self._check_limits(plan.trunk)
        leg = CallLeg(
            self,
            call_id=call_id,
            direction="outbound",
            trunk=plan.trunk,
            caller=caller.party if caller is not None else "",
            callee=plan.callee,
            headers={},
            port=MediaPort(self.engine),
        )
        leg.from_uri = caller
        leg.extra_headers = {**(plan.trunk.headers if plan.trunk is not None else {}), **headers}
        self._legs[leg.id] = leg
        self._count(leg, started=True)
        return leg, destinations

    def _check_limits(self, trunk: TrunkConfig | None) -> None:
        if len(self._legs) >= self._limit:
            raise CallError(EndReason(EndKind.OVERLOAD, f"{self._limit} calls are up: that is the limit"))
        limit = trunk.max_calls if trunk is not None else None
        if limit is not None and sum(leg.trunk is trunk for leg in self._legs.values()) >= limit:
            raise CallError(
                EndReason(EndKind.OVERLOAD, f"{limit} calls of this trunk are up: that is its limit")
            )

    def make_sample_port(self, rate_hz: int, member_rate_hz: int, frame_ms: int) -> "pj.SamplePort":
        """The port of a member that is no telephone. Any thread."""
        engine = self.engine
        return pj.SamplePort(
            engine.clock(), engine.bank(), engine.outbox(), rate_hz, member_rate_hz, frame_ms
        )

    def make_track_port(self, options: TrackOptions) -> "pj.TrackPort":
        """The port of a member behind a track. Any thread. ValueError for a codec that there is not."""
        settings = pj.TrackSettings()
        settings.rate_hz, settings.ssrc = options.rate_hz, options.ssrc
        settings.cname, settings.nack = options.cname, options.nack
        settings.level_id = options.level_id
        if options.begins is not None:
            settings.first_sequence, settings.first_timestamp = options.begins
        for payload_type, codec in options.receives.items():
            settings.receives.append(_track_format(payload_type, codec))
        if options.sends is not None:
            settings.sends = _track_format(*options.sends)
        opus = settings.opus
        opus.bitrate, opus.complexity = options.opus.bitrate, options.opus.complexity
        opus.fec, opus.dtx = options.opus.fec, options.opus.dtx
        engine = self.engine
        return pj.TrackPort(engine.clock(), engine.bank(), engine.outbox(), settings)

    def make_call(self, leg: CallLeg, destination: Destination) -> NativeCall:
        """One attempt; pj.Error when it cannot even begin. SIP thread."""
        self.engine.alignRtpPorts()
        native = NativeCall(leg, self._account(leg.trunk, destination.host))
        codecs = (leg.trunk.codecs if leg.trunk is not None else None) or self.config.sip.codecs
        native.setCodecs(pj.StringVector(codecs))
        address = self._media_address(destination.host, destination.port or 5060)
        native.setMediaAddress(address)
        leg.guard_media(native, destination.host)
        prm = pj.CallOpParam(True)
        prm.opt.audioCount, prm.opt.videoCount, prm.opt.textCount = 1, 0, 0
        user = leg.from_uri
        host = user.host if user is not None and user.host != "localhost" else address or "localhost"
        prm.txOption.localUri = str(
            SipUri(user=user.user if user else "sipbridge", host=host, display=user.display if user else "")
        )
        add_headers(prm, leg.extra_headers)
        native.makeCallBy(destination.uri.uri, prm, destination.next_hop)
        return native

    def on_incoming(self, account: _Account, prm: "pj.OnIncomingCallParam") -> None:
        """An INVITE that the gate let in. SIP thread."""
        number = self.engine.gate().currentTrunk()
        trunk = self.config.trunk[number]
        start, headers = read_message(prm.rdata.wholeMsg)
        leg = CallLeg(
            self,
            call_id=uuid.uuid4().hex[:12],
            direction="inbound",
            trunk=trunk,
            caller=_party(headers.get("from", "")),
            callee=_party(start.split(" ")[1]),
            headers=headers,
            port=MediaPort(self.engine),
        )
        host, port = split_host_port(prm.rdata.srcAddress)
        leg.take_incoming(
            account,
            prm.callId,
            host,
            self._media_address(host, port or 5060),
            trunk.codecs or self.config.sip.codecs,
        )
        self._legs[leg.id] = leg
        self._count(leg, started=True)
        self.tell(lambda: self._on_incoming(leg))

    def _media_address(self, host: str, port: int) -> str:
        """What SDP says: the public address, or that of the route to who we signal with."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect((host, port))
                local = str(probe.getsockname()[0])
            except OSError:
                local = ""
        public = self.config.sip.public_address
        # a peer on this machine or network segment without a public address would not find it
        if public and not local.startswith("127.") and local != "::1":
            return public
        return local

    def trunk_hosts(self, trunk: TrunkConfig | None) -> set[str]:
        """Where a call of this trunk may be redirected to."""
        servers = trunk.outbound.servers if trunk is not None and trunk.outbound is not None else ()
        return {split_host_port(server)[0] for server in servers}

    def forget(self, leg: CallLeg) -> None:
        """The leg has ended. SIP thread."""
        if self._legs.pop(leg.id, None) is not None:
            self._count(leg, started=False)
            leg.port.close()

    def retire(self, native: NativeCall) -> None:
        """Keeps a call that has ended until its last callback has returned. SIP thread."""
        self._retired.append(native)

    def _let_go_retired(self) -> None:
        for native in self._retired:
            native.let_go()
        self._retired.clear()

    def _count(self, leg: CallLeg, *, started: bool) -> None:
        number = next((i for i, trunk in enumerate(self.config.trunk) if trunk is leg.trunk), -1)
        gate = self.engine.gate()
        (gate.callStarted if started else gate.callEnded)(number)

    def counters(self) -> dict[str, int]:
        """What exists in the engine at this moment. Any thread."""
        counters = self.engine.counters()
        clock = self.engine.clock().stats()
        return {
            "calls": counters.calls,
            "streams": counters.streams,
            "ports": counters.ports,
            "transactions": counters.transactions,
            "pool_bytes": counters.pool_bytes,
            "dropped_log_lines": counters.dropped_log_lines,
            "late_ticks": clock.late_ticks,
            "threads": threading.active_count(),
            "descriptors": len(os.listdir("/proc/self/fd")),
        }

    # --- SIP thread

    def _guard[**P](self, work: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            work(*args, **kwargs)
        except Exception:
            log.exception("work on the SIP thread failed")

    def _on_event(self, event: "pj.EngineEvent") -> None:
        if event.kind == pj.EngineEvent.kRejected:
            log.info("INVITE from %s to %s got %s %s", event.caller, event.callee, event.code, event.reason)
            return
        for leg in self._legs.values():
            if event.kind == pj.EngineEvent.kTelephoneEvent and leg.port.port_id == event.port_id:
                leg.guarded(leg.on_digit, event.digit, event.duration_ms, "rfc4733")
            elif event.kind == pj.EngineEvent.kInfoDigit and leg.native_id() == event.call_id:
                leg.guarded(leg.on_digit, event.digit, event.duration_ms, "info")

    def _on_refusal(self, refusal: "pj.GateRefusal") -> None:
        """Says once a minute and source who was turned away, and why."""
        now = time.monotonic()
        source = refusal.source.rpartition(":")[0]
        if now - self._told_refusals.get(source, -_REFUSAL_S) < _REFUSAL_S:
            return
        if len(self._told_refusals) >= _MAX_TOLD_REFUSALS:
            self._told_refusals.clear()
        self._told_refusals[source] = now
        why = refusal.reason or (
            "refused" if refusal.code else "in no trunk's addresses, banned, or too many requests"
        )
        log.info(
            "%s %s from %s got %s: %s",
            refusal.method,
            refusal.uri,
            refusal.source,
            refusal.code or "no answer",
            why,
        )

    def _on_cut(self, cut: "pj.GateCut") -> None:
        """The gate closed a connection, or kept a body from pjsip, and the call cannot go on."""
        for leg in list(self._legs.values()):
            if leg.sip_call_id() == cut.callId:
                reason = EndReason(EndKind.TRANSPORT, cut.reason)
                leg.guarded(leg.end, reason)

    def _drain_log(self) -> None:
        for line in self.engine.takeLog():
            if "socket bind() at" in line.message:  # one port of the range is taken: the next one is
                line.level = 4
            pjsip_log.log(_PYTHON_LEVELS.get(line.level, logging.DEBUG), "%s", line.message)


def _set_tls(settings: "pj.TlsConfig", tls: TlsConfig) -> None:
    """ConfigError for files that are no use; pjsip reads them when the first peer connects."""
    authorities = tls.ca
    if tls.verify and authorities is None:
        authorities = _system_authorities()
        if authorities is None:
            raise ConfigError("the system has no list of authorities; name a file", table="sip.tls", key="ca")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(tls.certificate, tls.private_key)
    except (OSError, ValueError) as error:
        detail = f"cannot be used with its private key: {error}"
        raise ConfigError(detail, table="sip.tls", key="certificate") from error
    if authorities is not None:
        try:
            context.load_verify_locations(authorities)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{authorities}: {error}", table="sip.tls", key="ca") from error
    settings.certFile = str(tls.certificate)
    settings.privKeyFile = str(tls.private_key)
    settings.CaListFile = str(authorities or "")
    settings.verifyServer = settings.verifyClient = settings.requireClientCert = tls.verify
    settings.proto = pj.PJ_SSL_SOCK_PROTO_TLS1_2 | pj.PJ_SSL_SOCK_PROTO_TLS1_3


def _system_authorities() -> Path | None:
    """The file of all authorities that this system trusts; by itself pjsip trusts nobody."""
    named = ssl.get_default_verify_paths().cafile  # also by $SSL_CERT_FILE
    places = (named, "/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt")
    return next((Path(place) for place in places if place and os.path.isfile(place)), None)


def _track_format(payload_type: int, codec: str) -> "pj.TrackFormat":
    made = pj.TrackFormat()
    made.payload_type, made.codec = payload_type, codec
    return made


def _party(uri: str) -> str:
    """The number or user of a URI that came in; "" when it makes no sense."""
    try:
        return SipUri.parse(uri).party
    except ValueError:
        return ""
