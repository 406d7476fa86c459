# SPDX-License-Identifier: GPL-3.0-or-later
"""The pjsua2 module that was built: its limits and codecs, and our classes in it."""

import contextlib
import gc
import multiprocessing
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pjsua2 as pj
import psutil
from numpy.typing import NDArray

from tests.support import audio

TICK_MS = 5
RATE_HZ = 8000
TICK_SAMPLES = RATE_HZ * TICK_MS // 1000

Samples = NDArray[np.int16]


def with_engine[T](work: Callable[[pj.Engine], T]) -> T:
    """What `work` gives, run in a process of its own with an endpoint like the server's, but without sockets.

    The endpoint is closed when all that `work` had made is gone.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_work_with_engine, work).result()


def _work_with_engine[T](work: Callable[[pj.Engine], T]) -> T:
    engine = pj.Engine(TICK_MS, 200)
    engine.libCreate()
    settings = pj.EpConfig()
    settings.uaConfig.maxCalls = 1_000_000
    settings.uaConfig.threadCnt = 0
    settings.uaConfig.mainThreadOnly = True
    settings.logConfig.level = settings.logConfig.consoleLevel = 0
    settings.medConfig.clockRate = settings.medConfig.sndClockRate = RATE_HZ
    settings.medConfig.audioFramePtime = 20
    settings.medConfig.ecTailLen = 0
    settings.medConfig.maxMediaPorts = 4096
    engine.libInit(settings)
    engine.install()
    found = work(engine)
    gc.collect()
    engine.uninstall()
    engine.libDestroy()
    return found


def start_media(engine: pj.Engine) -> None:
    """Our clock, and that of pjsua2's conference bridge."""
    engine.libStart()
    engine.audDevManager().setNullDev()
    engine.startClock()


def on_the_bridge(port: pj.FramePort) -> pj.FramePort:
    """Gives a port its place on the conference bridge."""
    pcm = pj.MediaFormatAudio()
    pcm.init(pj.PJMEDIA_FORMAT_PCM, RATE_HZ, 1, 20_000, 16)
    port.createPort("port", pcm)
    return port


def listen(engine: pj.Engine) -> int:
    """Opens a UDP transport on the loopback; returns its port."""
    transport = pj.TransportConfig()
    transport.port = 0
    transport.boundAddress = "127.0.0.1"
    number = engine.transportCreate(pj.PJSIP_TRANSPORT_UDP, transport)
    return int(engine.transportGetInfo(number).localName.rpartition(":")[2])


class Media(threading.Thread):
    """The media thread: writes a wave into each port and keeps what it reads from them.

    The bank's rows are laid out anew whenever `ids` changes.
    """

    def __init__(self, engine: pj.Engine, ids: list[int], wave: Samples) -> None:
        super().__init__()
        self.ids = ids
        self.heard: list[Samples] = []  # a matrix a tick
        self.is_enough = threading.Event()
        self._clock, self._bank = engine.clock(), engine.bank()
        self._wave = wave
        self._wanted = len(wave) // TICK_SAMPLES
        self._running = True
        self.start()

    def run(self) -> None:
        ids: list[int] = []
        last = self._clock.wait(0, 1000)
        position = 0
        while self._running:
            now = self._clock.wait(last, 1000)
            if self.ids != ids:
                ids = list(self.ids)
                rates_hz = np.zeros(len(ids), np.int32)
                self._bank.layout(np.array(ids, np.int32), rates_hz, np.zeros(0, np.int32))
                matrix = np.zeros((len(ids), TICK_SAMPLES), np.int16)
            for _ in range(now - last):
                self._bank.read(matrix)
                self.heard.append(matrix.copy())
                matrix[:] = np.take(self._wave, range(position, position + TICK_SAMPLES), mode="wrap")
                self._bank.write(matrix)
                position += TICK_SAMPLES
            last = now
            if len(self.heard) >= self._wanted:
                self.is_enough.set()

    def stop(self) -> None:
        self._running = False
        self.join()


# --- what the module is


def test_frame_port_is_a_port_of_pjsua2() -> None:
    """Our port is used wherever pjsua2 takes one of its own, and Python adds to it without a call a frame."""
    assert issubclass(pj.FramePort, pj.AudioMediaPort)
    assert issubclass(pj.Engine, pj.Endpoint)
    assert issubclass(pj.BridgeCall, pj.Call)

    class Port(pj.FramePort):  # type: ignore[misc]  # pjsua2 has no types
        heard = 0

        def onFrameReceived(self, frame: pj.MediaFrame) -> None:  # noqa: N802
            self.heard += 1

    bank = pj.PortBank(TICK_MS, 200)
    port = Port(bank, 16000)
    assert (port.id(), port.rateHz(), bank.size()) == (1, 16000, 1)
    port.close()
    assert bank.size() == 0
    assert port.heard == 0


def test_arguments_that_are_no_arrays_are_refused() -> None:
    """A wrong buffer is an exception, whichever argument it is."""
    bank = pj.PortBank(TICK_MS, 200)
    ids, rates_hz = np.ones(2, np.int32), np.zeros(2, np.int32)
    read_only = np.zeros(2, np.int32)
    read_only.flags.writeable = False
    none = np.zeros(0, np.int32)
    for arguments in (
        ("x", rates_hz, none),
        (ids, None, none),
        (ids, read_only, none),
        (ids[::-1], rates_hz, none),
        (ids, rates_hz, None),
    ):
        try:
            bank.layout(*arguments)
        except (TypeError, BufferError, ValueError):
            continue
        raise AssertionError(f"taken: {arguments}")
    bank.layout(ids, rates_hz, none)


def look_at_endpoint(engine: pj.Engine) -> tuple[str, set[str], int]:
    codecs = {info.codecId.rpartition("/")[0] for info in engine.codecEnum2()}
    return engine.libVersion().full, codecs, engine.mediaMaxPorts()


def test_version_codecs_and_ports() -> None:
    """The library is the one asked for, with all codecs of the design."""
    version, codecs, ports = with_engine(look_at_endpoint)
    assert tuple(map(int, version.split("-")[0].split("."))) >= (2, 17)
    wanted = {"PCMU/8000", "PCMA/8000", "G722/16000", "opus/48000", "GSM/8000", "speex/8000", "speex/16000"}
    assert wanted <= codecs
    assert ports == 4096


# --- limits


def place_calls(engine: pj.Engine) -> tuple[int, str]:
    listen(engine)
    engine.libStart()
    settings = pj.AccountConfig()
    settings.idUri = "sip:caller@127.0.0.1"
    # else each call asks the name service for the host's own address
    settings.mediaConfig.ipv6Use = pj.PJSUA_IPV6_DISABLED
    account = pj.Account()
    account.create(settings)
    without_media = pj.CallOpParam(True)
    without_media.opt.audioCount = 0
    calls: list[pj.Call] = []
    refusal = ""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        while not refusal and len(calls) < 2000:
            call = pj.Call(account)
            try:
                call.makeCall(f"sip:silent@127.0.0.1:{silent.getsockname()[1]}", without_media)
                calls.append(call)
            except pj.Error as error:
                refusal = error.reason
    in_use = engine.counters().calls
    engine.hangupAllCalls()
    return in_use, refusal


def test_1024_calls_at_once() -> None:
    """As many calls are possible as the design says, whatever pjsua's default is."""
    in_use, refusal = with_engine(place_calls)
    assert in_use == 1024
    assert "ETOOMANY" in refusal


def options(port: int, size: int, number: int) -> bytes:
    """An OPTIONS request of exactly `size` bytes."""
    head = (
        f"OPTIONS sip:bridge@127.0.0.1 SIP/2.0\r\n"
        f"Via: SIP/2.0/UDP 127.0.0.1:{port};branch=z9hG4bK{number}\r\n"
        f"Max-Forwards: 70\r\nFrom: <sip:a@127.0.0.1>;tag=1\r\nTo: <sip:bridge@127.0.0.1>\r\n"
        f"Call-ID: size{number}\r\nCSeq: {number} OPTIONS\r\nContent-Length: 0\r\nX-Padding: "
    ).encode()
    return head + b"x" * (size - len(head) - 4) + b"\r\n\r\n"


def send_large_requests(engine: pj.Engine) -> list[str]:
    trunk = pj.GateTrunk()
    trunk.name = "loopback"
    trunk.addresses = pj.StringVector(["127.0.0.0/8"])
    assert not engine.gate().configure(pj.GatePolicy(), pj.GateTrunkVector([trunk]))
    address = ("127.0.0.1", listen(engine))
    engine.libStart()
    answered: list[str] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind(("127.0.0.1", 0))
        peer.setblocking(False)
        for number, size in enumerate((500, 4500, 11_900, 12_500, 40_000, 500), start=1):
            peer.sendto(options(peer.getsockname()[1], size, number), address)
        while "6" not in answered:
            engine.libHandleEvents(100)
            with contextlib.suppress(BlockingIOError):
                while True:
                    answer = peer.recv(65536).decode()
                    answered.append(answer.split("branch=z9hG4bK")[1].split("\r\n")[0].split(";")[0])
    return answered


def test_messages_of_12000_bytes() -> None:
    """A request of nearly 12,000 bytes is answered; a larger one harms nothing."""
    assert sorted(with_engine(send_large_requests)) == ["1", "2", "3", "6"]


# --- FramePort


def connect_through_the_bridge(engine: pj.Engine) -> tuple[Samples, Samples]:
    start_media(engine)
    # the two clocks may drift apart by whole ticks, which are whole waves
    wave = audio.tone(400, 1.5)
    speaker, listener = (on_the_bridge(pj.FramePort(engine.bank(), RATE_HZ)) for _ in range(2))
    speaker.startTransmit(listener)
    media = Media(engine, [speaker.id(), listener.id()], wave)
    media.is_enough.wait(30)
    media.stop()
    speaker.stopTransmit(listener)
    return wave, np.concatenate(media.heard, axis=1)


def test_frame_port_works_on_the_conference_bridge() -> None:
    """What is written to one port is read from the other, over pjsua2's own bridge."""
    wave, (by_speaker, by_listener) = with_engine(connect_through_the_bridge)
    assert not by_speaker.any()  # nobody transmits to it
    steady = audio.steady_part(by_listener, RATE_HZ)
    assert len(steady) > RATE_HZ
    # of all of it: the queue may read it 0.2 % faster or slower for a while, which turns a tone's phase
    assert abs(audio.level_dbfs(steady) - audio.level_dbfs(wave)) < 0.5
    assert audio.find_tone(steady, RATE_HZ) == audio.near(400)


def churn_ports(engine: pj.Engine) -> dict[str, int]:
    start_media(engine)
    kept = [on_the_bridge(pj.FramePort(engine.bank(), RATE_HZ)) for _ in range(10)]
    kept[0].startTransmit(kept[1])
    kept_ids = [port.id() for port in kept]
    media = Media(engine, kept_ids, audio.tone(440, 1.5))
    memory_bytes: list[int] = []
    for number in range(10_000):
        port = pj.FramePort(engine.bank(), (8000, 16000, 48000)[number % 3])
        if number % 20 == 0:
            media.ids = [*kept_ids, port.id()]  # it goes while the media thread reads it
        if number % 10 == 0:
            kept[0].startTransmit(on_the_bridge(port))
        port.write(np.zeros(160, np.int16))
        engine.bank().mark(port.id(), 1)
        port.close()
        del port
        if number % 100 == 0:
            engine.libHandleEvents(0)
        if number in (4_999, 9_999):
            gc.collect()
            memory_bytes.append(psutil.Process().memory_info().rss)
    media.ids = kept_ids
    media.is_enough.wait(30)
    media.heard.clear()
    media.is_enough.clear()
    media.is_enough.wait(30)
    media.stop()
    last = np.concatenate(media.heard[-100:], axis=1)
    engine.libHandleEvents(0)
    return {
        "ports": engine.bank().size(),
        "bridge_ports": len(engine.mediaEnumPorts2()),
        "grown_bytes": memory_bytes[1] - memory_bytes[0],
        "threads": threading.active_count(),
        "heard_rows": sum(bool(row.any()) for row in last),
    }


def test_10000_ports_come_and_go_under_a_running_clock() -> None:
    """No port is left anywhere, no memory with it, and those that stay go on."""
    found = with_engine(churn_ports)
    grown_bytes = found.pop("grown_bytes")
    # on the bridge: those that were kept, and the sound device's
    assert found == {"ports": 10, "bridge_ports": 11, "threads": 1, "heard_rows": 1}
    assert grown_bytes < 2_000_000
