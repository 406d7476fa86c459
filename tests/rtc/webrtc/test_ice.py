# SPDX-License-Identifier: GPL-3.0-or-later
"""Addresses by way of servers: STUN says how others see us, TURN gives one of its own (RFC 8489, 8656)."""

import hashlib
import hmac
import socket
import struct
import threading
from types import TracebackType
from typing import Self

from sipbridge.config import WebRtcConfig
from sipbridge.rtc.webrtc.peer import Peer
from sipbridge.rtc.webrtc.sdp import Direction
from tests.rtc.webrtc.test_peer import Listener
from tests.support.webrtc import Engine, with_engine

SEEN, RELAYED = "203.0.113.7", "203.0.113.8"
USER, PASSWORD, REALM, NONCE = "bridge", "let me in", "example.com", "3f0c1d2e"
_COOKIE = 0x2112A442
_BINDING, _ALLOCATE = 1, 3
_SUCCESS, _ERROR = 0x0100, 0x0110
_USERNAME, _INTEGRITY, _ERROR_CODE, _LIFETIME = 0x0006, 0x0008, 0x0009, 0x000D
_REALM, _NONCE, _RELAYED, _MAPPED = 0x0014, 0x0015, 0x0016, 0x0020


class IceServer:
    """Both kinds, on loopback, with addresses that are made up. Use it as a context manager."""

    def __init__(self) -> None:
        self.users: list[str] = []  # whom it gave an address
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, name="ice", daemon=True)

    def _serve(self) -> None:
        while True:
            data, source = self._socket.recvfrom(2048)
            if not data:
                return
            answer = self._answer(data)
            if answer:
                self._socket.sendto(answer, source)

    def _answer(self, request: bytes) -> bytes:
        method, _, cookie = struct.unpack_from("!HHI", request)
        if cookie != _COOKIE:
            return b""
        if method == _BINDING:
            return _message(_SUCCESS | _BINDING, request, [(_MAPPED, _address(SEEN, 40000))])
        attributes = _attributes(request)
        if _USERNAME not in attributes:
            refusal = [
                (_ERROR_CODE, struct.pack("!HBB", 0, 4, 1) + b"Unauthorized"),
                (_REALM, REALM.encode()),
                (_NONCE, NONCE.encode()),
            ]
            return _message(_ERROR | method, request, refusal)
        if not self._is_authentic(request):
            return b""
        if method == _ALLOCATE:
            self.users.append(attributes[_USERNAME].decode())
        given = [
            (_RELAYED, _address(RELAYED, 50000)),
            (_MAPPED, _address(SEEN, 40000)),
            (_LIFETIME, struct.pack("!I", 600)),
        ]
        return _sealed(_message(_SUCCESS | method, request, given))

    def _is_authentic(self, request: bytes) -> bool:
        at = request.index(struct.pack("!HH", _INTEGRITY, 20))
        # its length is counted up to the seal, whatever stands behind it
        signed = request[:2] + struct.pack("!H", at + 24 - 20) + request[4:at]
        return hmac.compare_digest(request[at + 4 : at + 24], _seal(signed))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()


def _message(kind: int, request: bytes, attributes: list[tuple[int, bytes]]) -> bytes:
    body = b"".join(
        struct.pack("!HH", number, len(value)) + value + bytes(-len(value) % 4)
        for number, value in attributes
    )
    return struct.pack("!HH", kind, len(body)) + request[4:20] + body


def _seal(signed: bytes) -> bytes:
    key = hashlib.md5(f"{USER}:{REALM}:{PASSWORD}".encode()).digest()
    return hmac.digest(key, signed, hashlib.sha1)


def _sealed(message: bytes) -> bytes:
    message = message[:2] + struct.pack("!H", len(message) - 20 + 24) + message[4:]
    return message + struct.pack("!HH", _INTEGRITY, 20) + _seal(message)


def _address(host: str, port: int) -> bytes:
    (number,) = struct.unpack("!I", socket.inet_aton(host))
    return struct.pack("!BBHI", 0, 1, port ^ (_COOKIE >> 16), number ^ _COOKIE)


def _attributes(message: bytes) -> dict[int, bytes]:
    found, at = {}, 20
    while at + 4 <= len(message):
        number, length = struct.unpack_from("!HH", message, at)
        found[number] = message[at + 4 : at + 4 + length]
        at += 4 + length + -length % 4
    return found


async def gather(engine: Engine) -> None:
    with IceServer() as server:
        config = WebRtcConfig.model_validate(
            {
                "bind_address": "127.0.0.1",
                "ice_servers": [
                    {"url": f"stun:{server.address}"},
                    {"url": f"turn:{server.address}", "username": USER, "credential": PASSWORD},
                ],
            }
        )
        peer = Peer(config, engine.remotes, Listener())
        peer.add_audio(Direction.SENDRECV, ["opus"])
        offer = await peer.offer()
        await peer.close()
    candidates = [line.split() for line in offer.splitlines() if line.startswith("a=candidate:")]
    assert {(words[4], words[7]) for words in candidates} == {
        ("127.0.0.1", "host"),
        (SEEN, "srflx"),
        (RELAYED, "relay"),
    }
    assert server.users == [USER]


def test_servers_of_the_configuration_are_asked() -> None:
    """What they say stands in the offer."""
    with_engine(gather)
