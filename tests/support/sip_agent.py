# SPDX-License-Identifier: GPL-3.0-or-later
"""A scripted SIP party for what SIPp does not do: odd messages, silence, replays, one step at a time.

Nothing happens by itself: each message is sent and awaited by the test, with blocking sockets.
"""

import dataclasses
import hashlib
import itertools
import random
import re
import socket
import ssl
import time
import uuid
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from tests.support.codecs import Codec
from tests.support.ports import free_port
from tests.support.rtp import RtpPeer
from tests.support.sdp import Description, describe

_tags = itertools.count(random.getrandbits(24))
_COMPACT = {
    "v": "via",
    "f": "from",
    "t": "to",
    "i": "call-id",
    "m": "contact",
    "l": "content-length",
    "c": "content-type",
}


@dataclasses.dataclass(frozen=True)
class Message:
    """A SIP message, taken apart as far as needed."""

    start: str
    headers: tuple[tuple[str, str], ...]
    body: str

    @classmethod
    def parse(cls, data: bytes) -> "Message":
        head, _, body = data.partition(b"\r\n\r\n")
        start, *lines = re.sub(rb"\r\n[ \t]+", b" ", head).decode("utf-8", "replace").split("\r\n")
        headers = []
        for line in lines:
            name, _, value = line.partition(":")
            headers.append((_COMPACT.get(name.strip().lower(), name.strip().lower()), value.strip()))
        return cls(start, tuple(headers), body.decode("utf-8", "replace"))

    @property
    def status(self) -> int:
        """The status code; 0 in a request."""
        return int(self.start.split()[1]) if self.start.startswith("SIP/2.0 ") else 0

    @property
    def method(self) -> str:
        """The method, also of the request that a response answers."""
        return self.get("cseq").split()[-1]

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name.lower()]

    def get(self, name: str) -> str:
        """The first such header, or an empty string."""
        return next(iter(self.all(name)), "")

    @property
    def contact_uri(self) -> str:
        found = re.search(r"<([^>]+)>", self.get("contact"))
        return found.group(1) if found else self.get("contact").split(";")[0]

    @property
    def sdp(self) -> Description:
        return Description.parse(self.body)


class RefusedError(AssertionError):
    """A final response of 300 or more where a call was wanted."""

    def __init__(self, response: Message) -> None:
        super().__init__(response.start)
        self.response = response
        self.status = response.status


def digest(
    challenge: str,
    method: str,
    uri: str,
    username: str,
    password: str,
    *,
    count: int = 1,
    cnonce: str = "0a4f113b",
) -> str:
    """The value of an Authorization header that answers `challenge` (RFC 8760; qop=auth where offered)."""
    fields = {
        key.lower(): value.strip('"') for key, value in re.findall(r'(\w+)=("[^"]*"|[^\s,]+)', challenge)
    }
    algorithm = fields.get("algorithm", "MD5")
    make = hashlib.sha256 if algorithm.upper().startswith("SHA-256") else hashlib.md5

    def h(text: str) -> str:
        return make(text.encode()).hexdigest()

    first = h(f"{username}:{fields['realm']}:{password}")
    second = h(f"{method}:{uri}")
    parts = [
        f'username="{username}"',
        f'realm="{fields["realm"]}"',
        f'nonce="{fields["nonce"]}"',
        f'uri="{uri}"',
        f"algorithm={algorithm}",
    ]
    if "qop" in fields:
        response = h(f"{first}:{fields['nonce']}:{count:08x}:{cnonce}:auth:{second}")
        parts += ["qop=auth", f"nc={count:08x}", f'cnonce="{cnonce}"']
    else:
        response = h(f"{first}:{fields['nonce']}:{second}")
    if "opaque" in fields:
        parts.append(f'opaque="{fields["opaque"]}"')
    return "Digest " + ", ".join([*parts, f'response="{response}"'])


class SipAgent:
    """One socket that speaks SIP to `server` (host, port)."""

    def __init__(
        self,
        server: tuple[str, int],
        *,
        host: str = "127.0.0.1",
        port: int | None = None,
        transport: str = "udp",
        user: str = "tester",
        tls: ssl.SSLContext | None = None,
        connection: socket.socket | None = None,
    ) -> None:
        """`tls` is what transport "tls" takes to connect; `connection` is a stream that is open already."""
        self.server = server
        self.transport = transport
        self.user = user
        self.host = host
        self._literal = f"[{host}]" if ":" in host else host
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        if connection is not None:
            self._socket = connection
        elif transport == "udp":
            self._socket = socket.socket(family, socket.SOCK_DGRAM)
            self._socket.bind((host, port or free_port()))
        else:
            self._socket = socket.socket(family, socket.SOCK_STREAM)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind((host, port or free_port()))
            self._socket.connect(server)
            if tls is not None:
                self._socket = tls.wrap_socket(self._socket, server_hostname=server[0])
        self.port: int = self._socket.getsockname()[1]
        self._sent_by = f"SIP/2.0/{transport.upper()} {self._literal}:{self.port}"
        self._unread = b""  # of a TCP stream
        self.log: list[str] = []

    # Sending --------------------------------------------------------------------------------------

    @property
    def contact(self) -> str:
        suffix = "" if self.transport == "udp" else f";transport={self.transport}"
        return f"sip:{self.user}@{self._literal}:{self.port}{suffix}"

    def uri(self, user: str) -> str:
        """A user at the server."""
        host = f"[{self.server[0]}]" if ":" in self.server[0] else self.server[0]
        return f"sip:{user}@{host}:{self.server[1]}" if user else f"sip:{host}:{self.server[1]}"

    def via(self) -> str:
        return f"{self._sent_by};rport;branch=z9hG4bK{uuid.uuid4().hex}"

    def send(self, message: str | bytes) -> None:
        data = message.encode() if isinstance(message, str) else message
        self.log.append(f"--> {data[:2000].decode('utf-8', 'replace')}")
        if self.transport == "udp":
            self._socket.sendto(data, self.server)
        else:
            self._socket.sendall(data)

    def request(
        self,
        method: str,
        uri: str,
        *,
        to: str = "",
        from_: str = "",
        call_id: str = "",
        cseq: int = 1,
        via: str = "",
        headers: dict[str, str] | None = None,
        body: str = "",
        content_type: str = "application/sdp",
    ) -> str:
        """The text of a request; what is not given is made up."""
        lines = [
            f"{method} {uri} SIP/2.0",
            f"Via: {via or self.via()}",
            "Max-Forwards: 70",
            f"From: {from_ or self.from_header()}",
            f"To: {to or f'<{uri}>'}",
            f"Call-ID: {call_id or uuid.uuid4().hex}",
            f"CSeq: {cseq} {method}",
            f"Contact: <{self.contact}>",
            *(f"{name}: {value}" for name, value in (headers or {}).items()),
            *([f"Content-Type: {content_type}"] if body else []),
            f"Content-Length: {len(body.encode())}",
        ]
        return "\r\n".join([*lines, "", body])

    def from_header(self) -> str:
        return f"<sip:{self.user}@{self._literal}>;tag=t{next(_tags):x}"

    def respond(
        self,
        request: Message,
        status: int,
        phrase: str = "-",
        *,
        tag: str = "",
        headers: dict[str, str] | None = None,
        body: str = "",
    ) -> None:
        """Answer a request; `tag` goes to its To header where it has none."""
        to = request.get("to")
        if tag and "tag=" not in to:
            to += f";tag={tag}"
        lines = [
            f"SIP/2.0 {status} {phrase}",
            *(f"Via: {via}" for via in request.all("via")),
            *(f"Record-Route: {route}" for route in request.all("record-route")),
            f"From: {request.get('from')}",
            f"To: {to}",
            f"Call-ID: {request.get('call-id')}",
            f"CSeq: {request.get('cseq')}",
            f"Contact: <{self.contact}>",
            *(f"{name}: {value}" for name, value in (headers or {}).items()),
            *(["Content-Type: application/sdp"] if body else []),
            f"Content-Length: {len(body.encode())}",
        ]
        self.send("\r\n".join([*lines, "", body]))

    # Receiving ------------------------------------------------------------------------------------

    def _read(self, timeout_s: float) -> bytes:
        self._socket.settimeout(max(timeout_s, 0.001))
        if self.transport == "udp":
            return self._socket.recv(65_535)
        while True:
            head, separator, rest = self._unread.partition(b"\r\n\r\n")
            if separator and not head.strip():  # a keep-alive
                self._unread = rest
                continue
            if separator:
                found = re.search(rb"(?im)^(?:content-length|l)\s*:\s*(\d+)", head)
                length = int(found.group(1)) if found else 0
                if len(rest) >= length:
                    self._unread = rest[length:]
                    return head + separator + rest[:length]
            data = self._socket.recv(65_535)
            if not data:
                raise ConnectionError("closed by the server")
            self._unread += data

    def receive(self, timeout_s: float = 5.0) -> Message:
        """The next message; TimeoutError when none comes."""
        deadline = time.monotonic() + timeout_s
        while True:
            data = self._read(deadline - time.monotonic())
            if data.strip():  # else a keep-alive
                self.log.append(f"<-- {data[:2000].decode('utf-8', 'replace')}")
                return Message.parse(data)

    def hears_nothing(self, seconds: float) -> bool:
        """Whether no message at all arrives for so long."""
        try:
            self.receive(seconds)
        except TimeoutError:
            return True
        return False

    def closed_by_server(self, timeout_s: float = 5.0) -> bool:
        """Whether the server ends this TCP connection."""
        try:
            while True:
                self.receive(timeout_s)
        except ConnectionError:
            return True
        except TimeoutError:
            return False

    def final(self, method: str, timeout_s: float = 5.0) -> Message:
        """The final response to `method`; provisional ones and other methods' are passed over."""
        deadline = time.monotonic() + timeout_s
        while True:
            message = self.receive(deadline - time.monotonic())
            if message.status >= 200 and message.method == method:
                return message

    def response(self, method: str, status: int, timeout_s: float = 5.0) -> Message:
        """A response with this status, provisional or final; any other final one fails."""
        deadline = time.monotonic() + timeout_s
        while True:
            message = self.receive(deadline - time.monotonic())
            if message.method == method and message.status == status:
                return message
            assert not (message.method == method and message.status >= 200), message.start

    def wait_request(self, method: str, timeout_s: float = 5.0) -> Message:
        """The next request of this method; others are passed over."""
        deadline = time.monotonic() + timeout_s
        while True:
            message = self.receive(deadline - time.monotonic())
            if not message.status and message.method == method:
                return message

    # Calls ----------------------------------------------------------------------------------------

    def options(self, user: str = "", timeout_s: float = 5.0) -> Message:
        """Send OPTIONS; the answer."""
        self.send(self.request("OPTIONS", self.uri(user)))
        return self.final("OPTIONS", timeout_s)

    def call(
        self,
        callee: str,
        rtp: RtpPeer,
        *,
        codecs: Sequence[type[Codec]] = (),
        sdp: str | None = None,
        headers: dict[str, str] | None = None,
        credentials: tuple[str, str] | None = None,
        timeout_s: float = 10.0,
    ) -> "Dialog":
        """INVITE, digest where asked and given, ACK. Raises RefusedError for anything but a 2xx.

        The offer has `codecs`, or that of `rtp` alone; `sdp` takes its place ("" for none).
        """
        uri = self.uri(callee)
        from_, call_id = self.from_header(), uuid.uuid4().hex
        extra = dict(headers or {})
        cseq = 1
        while True:
            via = self.via()
            offer = describe(rtp, codecs=codecs) if sdp is None else sdp
            self.send(
                self.request(
                    "INVITE", uri, from_=from_, call_id=call_id, cseq=cseq, via=via, headers=extra, body=offer
                )
            )
            answer = self.final("INVITE", timeout_s)
            if answer.status < 300:
                break
            self.send(
                self.request(
                    "ACK", uri, from_=from_, to=answer.get("to"), call_id=call_id, cseq=cseq, via=via
                )
            )
            if answer.status != 401 or credentials is None or "Authorization" in extra:
                raise RefusedError(answer)
            extra["Authorization"] = digest(answer.get("www-authenticate"), "INVITE", uri, *credentials)
            cseq += 1
        dialog = Dialog(self, call_id, from_, answer.get("to"), answer.contact_uri, cseq)
        dialog.take(answer, rtp)
        # Without an offer of ours the answer was one, and the ACK has to answer it.
        dialog.ack(describe(rtp) if sdp == "" else "")
        return dialog

    def accept(
        self, invite: Message, rtp: RtpPeer, *, status: int = 200, sdp: str | None = None, tag: str = ""
    ) -> "Dialog":
        """Answer an INVITE and wait for the ACK; `tag` is that of an answer before."""
        tag = tag or f"t{next(_tags):x}"
        if invite.body:
            rtp.remote = (invite.sdp.address, invite.sdp.port)
        self.respond(invite, status, "OK", tag=tag, body=describe(rtp) if sdp is None else sdp)
        ack = self.wait_request("ACK")
        dialog = Dialog(
            self,
            invite.get("call-id"),
            f"{invite.get('to')};tag={tag}",
            invite.get("from"),
            invite.contact_uri,
            1,
        )
        if not invite.body:
            rtp.remote = (ack.sdp.address, ack.sdp.port)
        return dialog

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if error is not None:
            error.add_note("\n".join(self.log[-12:]))


@dataclasses.dataclass
class Dialog:
    """An established call, from this party's side."""

    agent: SipAgent
    call_id: str
    local: str  # this party's From or To header with tag
    remote: str
    target: str
    cseq: int
    answer: Description | None = None
    ended: bool = False

    def take(self, message: Message, rtp: RtpPeer) -> None:
        """Send audio to where the other party's SDP says."""
        if message.body:
            self.answer = message.sdp
            rtp.remote = (self.answer.address, self.answer.port)

    def ack(self, body: str = "") -> None:
        self.agent.send(self._text("ACK", self.cseq, body=body))

    def _text(
        self,
        method: str,
        cseq: int,
        *,
        body: str = "",
        content_type: str = "application/sdp",
        headers: dict[str, str] | None = None,
    ) -> str:
        return self.agent.request(
            method,
            self.target,
            from_=self.local,
            to=self.remote,
            call_id=self.call_id,
            cseq=cseq,
            headers=headers,
            body=body,
            content_type=content_type,
        )

    def send(self, method: str, **more: Any) -> None:
        """Send a request in the dialog; `headers`, `body` and `content_type` as wanted."""
        self.cseq += 1
        self.agent.send(self._text(method, self.cseq, **more))

    def reinvite(self, sdp: str) -> Message:
        """Send an offer in the dialog, acknowledge the answer, give it back."""
        self.send("INVITE", body=sdp)
        answer = self.agent.final("INVITE")
        self.ack()
        return answer

    def info(self, content_type: str, body: str) -> Message:
        self.send("INFO", body=body, content_type=content_type)
        return self.agent.final("INFO")

    def hang_up(self) -> None:
        """BYE, and its 200."""
        self.send("BYE")
        answer = self.agent.final("BYE")
        assert answer.status == 200, answer.start
        self.ended = True

    def wait_bye(self, timeout_s: float = 5.0) -> Message:
        """Until the other party hangs up."""
        bye = self.agent.wait_request("BYE", timeout_s)
        self.agent.respond(bye, 200, "OK")
        self.ended = True
        return bye
