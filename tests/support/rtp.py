# SPDX-License-Identifier: GPL-3.0-or-later
"""An RTP party of our own: it sends what it is given every 20 ms and keeps what arrives.

play(samples) ─► codec ─► queue ─┐                       ┌─► packets ─► heard(), digits()
send_dtmf("1") ────────► events ─┴─► one packet a slot    │
                                     ▼                    │
                                UDP socket ◄──────────────┘      one RtpLoop thread for all peers
"""

import contextlib
import dataclasses
import heapq
import itertools
import random
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import numpy as np

from tests.support.codecs import Codec, Pcmu, Samples
from tests.support.ports import free_udp_range

SLOT_S = 0.020
_DTMF_DIGITS = "0123456789*#ABCD"
# RFC 4733: the last packet of an event is sent three times.
_END_REPEATS = 3
# A jump of timestamps by more than this is a new stream, not a hole in the old one.
_NEW_STREAM_S = 20.0


@dataclasses.dataclass(frozen=True, slots=True)
class Packet:
    """One RTP packet as it arrived."""

    payload_type: int
    marker: bool
    sequence: int
    timestamp: int
    ssrc: int
    payload: bytes
    source: tuple[str, int]
    arrived_s: float  # time.monotonic()


@dataclasses.dataclass(frozen=True, slots=True)
class Digit:
    """One DTMF event received by RFC 4733."""

    digit: str
    duration_ms: float
    packets: int
    ends: int  # packets with the end bit
    marked: bool  # the first one had the marker bit
    arrived_s: float


@dataclasses.dataclass(slots=True)
class _Event:
    code: int
    slots: int
    timestamp: int = 0
    sent: int = 0
    ends: int = 0


class RtpLoop:
    """The thread that sends and receives for any number of peers."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._selector.register(self._wake_in, selectors.EVENT_READ, None)
        self._slots: list[tuple[float, int, RtpPeer]] = []
        self._tie = itertools.count()
        self._lock = threading.Lock()
        self._running = True
        self._thread = threading.Thread(target=self._run, name="rtp-peers", daemon=True)
        self._thread.start()

    def add(self, peer: "RtpPeer") -> None:
        with self._lock:
            self._selector.register(peer.socket, selectors.EVENT_READ, peer)
            heapq.heappush(self._slots, (time.monotonic(), next(self._tie), peer))
        self._wake_out.send(b"x")

    def remove(self, peer: "RtpPeer") -> None:
        with self._lock:
            self._selector.unregister(peer.socket)
            self._slots = [slot for slot in self._slots if slot[2] is not peer]
            heapq.heapify(self._slots)

    def close(self) -> None:
        self._running = False
        self._wake_out.send(b"x")
        self._thread.join()
        self._selector.close()
        self._wake_in.close()
        self._wake_out.close()

    def _run(self) -> None:
        while self._running:
            with self._lock:
                now = time.monotonic()
                while self._slots and self._slots[0][0] <= now:
                    due, _, peer = heapq.heappop(self._slots)
                    peer._send_slot()
                    # An absolute schedule; after a stop of the machine, no burst to catch up.
                    following = due + SLOT_S if now - due < 0.2 else now + SLOT_S
                    heapq.heappush(self._slots, (following, next(self._tie), peer))
                wait = self._slots[0][0] - time.monotonic() if self._slots else 1.0
            for key, _ in self._selector.select(max(wait, 0.0)):
                if key.data is None:
                    self._wake_in.recv(100)
                else:
                    key.data._receive()


class RtpPeer:
    """One RTP socket pair. It learns where to send from the first packet, unless `remote` is set before.

    With nothing to play it sends silence, as a telephone does; `pause()` stops it.
    """

    def __init__(
        self,
        loop: RtpLoop,
        codec: Codec | None = None,
        *,
        host: str = "127.0.0.1",
        port: int | None = None,
        dtmf_payload_type: int = 101,
    ) -> None:
        self.codec = codec or Pcmu()
        self.host = host
        self.port = port or free_udp_range(2)
        self.dtmf_payload_type = dtmf_payload_type
        self.remote: tuple[str, int] | None = None
        self.packets: list[Packet] = []
        self.sent = 0
        self.ssrc = random.getrandbits(32)
        self.sequence = random.getrandbits(15)
        self.timestamp = random.getrandbits(31)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_DGRAM)
        self.socket.bind((host, self.port))
        self.socket.setblocking(False)
        # Only so that reports find an open port.
        self._rtcp_socket = socket.socket(family, socket.SOCK_DGRAM)
        self._rtcp_socket.bind((host, self.port + 1))
        self._changed = threading.Condition()
        self._frames: deque[bytes] = deque()
        self._loops = False
        self._events: deque[_Event] = deque()
        self._paused = False
        self._marker = True
        self._loop = loop
        loop.add(self)

    # Sending --------------------------------------------------------------------------------------

    def play(self, samples: Samples, *, loop: bool = False) -> None:
        """Queue int16 samples at the codec's rate; a rest shorter than 20 ms is filled up with silence."""
        size = self.codec.frame_samples
        whole = np.concatenate((samples, np.zeros(-len(samples) % size, dtype=np.int16)))
        with self._changed:
            self._loops = loop
            self._frames.extend(self.codec.encode(frame) for frame in whole.reshape(-1, size))

    def play_payloads(self, payloads: Sequence[bytes]) -> None:
        """Queue payloads as they are."""
        with self._changed:
            self._loops = False
            self._frames.extend(payloads)

    def stop_playing(self) -> None:
        """Back to silence."""
        with self._changed:
            self._loops = False
            self._frames.clear()

    def send_dtmf(self, digits: str, *, duration_ms: int = 100) -> None:
        """Queue RFC 4733 events, with as long a pause after each."""
        slots = max(1, duration_ms // 20)
        with self._changed:
            self._events.extend(_Event(_DTMF_DIGITS.index(digit), slots) for digit in digits)

    def pause(self) -> None:
        """Send nothing at all, as after a pulled cable."""
        with self._changed:
            self._paused = True

    def resume(self) -> None:
        with self._changed:
            self._paused = False

    def wait_played(self, timeout_s: float = 30.0) -> None:
        """Until all that was queued is sent."""
        with self._changed:
            done = self._changed.wait_for(lambda: not self._frames and not self._events, timeout_s)
        assert done, f"not played within {timeout_s} s; remote is {self.remote}"

    def _send_slot(self) -> None:
        """On the loop's thread, every 20 ms."""
        with self._changed:
            if self._paused or self.remote is None:
                # Time goes on, so that a pause is a hole and not a late stream.
                self.timestamp = (self.timestamp + self.codec.frame_ticks) & 0xFFFFFFFF
                return
            event = self._events[0] if self._events else None
            if event and event.ends < _END_REPEATS:
                self._send_event(event)
            else:
                if event:
                    event.sent += 1
                    if event.sent >= 2 * event.slots:
                        self._events.popleft()
                self._send_audio()
            self.timestamp = (self.timestamp + self.codec.frame_ticks) & 0xFFFFFFFF
            self._changed.notify_all()

    def _send_audio(self) -> None:
        if self._frames:
            payload = self._frames.popleft()
            if self._loops:
                self._frames.append(payload)
        else:
            payload = self.codec.encode(np.zeros(self.codec.frame_samples, dtype=np.int16))
        self._send(self.codec.payload_type, self.timestamp, payload, marker=self._marker)
        self._marker = False

    def _send_event(self, event: _Event) -> None:
        first = event.sent == 0
        if first:
            event.timestamp = self.timestamp
        event.sent += 1
        ticks = min(event.sent, event.slots) * self.codec.frame_ticks
        last = event.sent >= event.slots
        for _ in range(_END_REPEATS if last else 1):
            payload = struct.pack("!BBH", event.code, (0x80 if last else 0) | 10, ticks)
            self._send(self.dtmf_payload_type, event.timestamp, payload, marker=first)
            first = False
        if last:
            event.ends = _END_REPEATS
            event.sent = event.slots

    def _send(self, payload_type: int, timestamp: int, payload: bytes, *, marker: bool) -> None:
        header = struct.pack(
            "!BBHII", 0x80, (0x80 if marker else 0) | payload_type, self.sequence, timestamp, self.ssrc
        )
        self.sequence = (self.sequence + 1) & 0xFFFF
        self.sent += 1
        assert self.remote is not None
        # When the far side's port is closed: what counts is what arrives, and that will be missed.
        with contextlib.suppress(OSError):
            self.socket.sendto(self._seal(header + payload), self.remote)

    def _seal(self, packet: bytes) -> bytes:
        """What goes out for an RTP packet."""
        return packet

    # Receiving ------------------------------------------------------------------------------------

    def _receive(self) -> None:
        """On the loop's thread, when the socket is readable."""
        while True:
            try:
                data, source = self.socket.recvfrom(4096)
            except OSError:
                return
            data = self._unseal(data)
            if len(data) < 12 or data[0] >> 6 != 2:
                continue
            _, second, sequence, timestamp, ssrc = struct.unpack_from("!BBHII", data)
            packet = Packet(
                second & 0x7F,
                bool(second & 0x80),
                sequence,
                timestamp,
                ssrc,
                data[12 + 4 * (data[0] & 15) :],
                (source[0], source[1]),
                time.monotonic(),
            )
            with self._changed:
                self.packets.append(packet)
                if self.remote is None:
                    self.remote = packet.source
                self._changed.notify_all()

    def _unseal(self, data: bytes) -> bytes:
        """The RTP packet in what came in; nothing when there is none."""
        return data

    def audio_packets(self, since_s: float = 0.0, until_s: float = float("inf")) -> list[Packet]:
        """Those of the codec that arrived in [since_s, until_s), by time.monotonic()."""
        with self._changed:
            return [
                packet
                for packet in self.packets
                if packet.payload_type == self.codec.payload_type and since_s <= packet.arrived_s < until_s
            ]

    def wait_packets(self, count: int = 1, timeout_s: float = 5.0) -> float:
        """Until `count` more packets than now have arrived; gives the time then."""
        with self._changed:
            wanted = len(self.packets) + count
            assert self._changed.wait_for(lambda: len(self.packets) >= wanted, timeout_s), (
                f"{len(self.packets) - wanted + count} packets in {timeout_s} s, {count} wanted"
            )
        return time.monotonic()

    def listen(self, seconds: float) -> Samples:
        """What is heard from now on, for so many seconds of audio."""
        since_s = time.monotonic()
        self.wait_packets(round(seconds / SLOT_S), timeout_s=2 * seconds + 5.0)
        return self.heard(since_s)

    def heard(self, since_s: float = 0.0, until_s: float = float("inf")) -> Samples:
        """Decoded audio at the codec's rate, laid out by RTP timestamps; what never came is silence."""
        packets = self.audio_packets(since_s, until_s)
        streams: list[list[tuple[int, Packet]]] = []
        origin = 0
        for packet in packets:
            if streams:
                place = (packet.timestamp - origin + 0x80000000) % 0x100000000 - 0x80000000
                last_place, last = streams[-1][-1]
                if last.ssrc == packet.ssrc and abs(place - last_place) < _NEW_STREAM_S * self.codec.clock_hz:
                    streams[-1].append((place, packet))
                    continue
            origin = packet.timestamp
            streams.append([(0, packet)])
        return np.concatenate([self._lay_out(stream) for stream in streams] or [np.empty(0, dtype=np.int16)])

    def _lay_out(self, stream: list[tuple[int, Packet]]) -> Samples:
        decoder = type(self.codec)()
        scale = self.codec.rate_hz / self.codec.clock_hz
        first = min(place for place, _ in stream)
        pieces = [
            (round((place - first) * scale), decoder.decode(packet.payload))
            for place, packet in sorted(stream, key=lambda item: item[0])
        ]
        whole = np.zeros(max(place + len(piece) for place, piece in pieces), dtype=np.int16)
        for place, piece in pieces:
            whole[place : place + len(piece)] = piece
        return whole

    def longest_pause(self) -> tuple[float, float]:
        """The longest time without an audio packet between two: (its start by time.monotonic(), seconds)."""
        times = [packet.arrived_s for packet in self.audio_packets()]
        return max(((a, b - a) for a, b in itertools.pairwise(times)), key=lambda pause: pause[1])

    def lost(self) -> int:
        """Audio and DTMF packets that never came, by sequence number, within each source."""
        with self._changed:
            packets = list(self.packets)
        missing = 0
        for ssrc in {packet.ssrc for packet in packets}:
            numbers = [packet.sequence for packet in packets if packet.ssrc == ssrc]
            steps = [(b - a + 0x8000) % 0x10000 - 0x8000 for a, b in itertools.pairwise(numbers)]
            reached = list(itertools.accumulate(steps, initial=0))
            missing += max(reached) - min(reached) + 1 - len(set(reached))
        return missing

    def digits(self) -> list[Digit]:
        """DTMF events received, in order."""
        with self._changed:
            packets = [p for p in self.packets if p.payload_type == self.dtmf_payload_type]
        events: dict[tuple[int, int], list[Packet]] = {}
        for packet in packets:
            events.setdefault((packet.ssrc, packet.timestamp), []).append(packet)
        found = []
        for group in events.values():
            code, _, _ = struct.unpack_from("!BBH", group[0].payload)
            ticks = max(struct.unpack_from("!H", packet.payload, 2)[0] for packet in group)
            found.append(
                Digit(
                    digit=_DTMF_DIGITS[code],
                    duration_ms=1000 * ticks / self.codec.clock_hz,
                    packets=len(group),
                    ends=sum(bool(packet.payload[1] & 0x80) for packet in group),
                    marked=group[0].marker,
                    arrived_s=group[0].arrived_s,
                )
            )
        return found

    def wait_digits(self, digits: str, timeout_s: float = 5.0) -> list[Digit]:
        """Until so many events have ended, each with all its ends; their digits must be these."""

        def ended() -> list[Digit]:
            return [digit for digit in self.digits() if digit.ends >= _END_REPEATS]

        with self._changed:
            self._changed.wait_for(lambda: len(ended()) >= len(digits), timeout_s)
        found = self.digits()
        assert "".join(digit.digit for digit in found) == digits, f"{found}"
        return found

    # Life -----------------------------------------------------------------------------------------

    def close(self) -> None:
        """Free the ports; what was heard stays readable."""
        self._loop.remove(self)
        self.socket.close()
        self._rtcp_socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
