# SPDX-License-Identifier: GPL-3.0-or-later
"""What goes over data channels, as LiveKit's SDKs have it: keys, texts, transcriptions, calls of methods.

Pure: bytes in, events out. What cannot be read is ignored, as the SDKs do.
"""

import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError
from livekit.protocol.models import (
    DataPacket,
    DataStream,
    RpcAck,
    RpcError,
    RpcResponse,
    SipDTMF,
    UserPacket,
)

CHAT_TOPIC = "lk.chat"
TRANSCRIPTION_TOPIC = "lk.transcription"
MAX_TEXT_BYTES = 256 << 10  # of a stream that others send
_MAX_STREAMS = 32  # at once
_CHUNK_BYTES = 15_000
_MAX_ERROR_BYTES = 256
# RFC 4733 section 3.2
_KEYS = "0123456789*#ABCD"


@dataclass(frozen=True, slots=True)
class Key:
    """Somebody in the room presses a key to the telephone."""

    digit: str


@dataclass(frozen=True, slots=True)
class Text:
    """A message; a transcription has the topic `TRANSCRIPTION_TOPIC`."""

    topic: str
    text: str


@dataclass(frozen=True, slots=True)
class MethodCall:
    """Somebody calls a method of ours and waits for what it returns."""

    id: str
    method: str
    payload: str
    caller: str  # an identity


class MethodError(Exception):
    """What a method answers instead of a result."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


# As the SDKs number them.
UNSUPPORTED_METHOD, APPLICATION_ERROR = 1400, 1500


@dataclass(slots=True)
class _Stream:
    """A text that comes in pieces."""

    topic: str
    is_final: bool
    content: bytearray = field(default_factory=bytearray)


class PacketReader:
    """Events out of the packets of one membership."""

    def __init__(self) -> None:
        self._streams: dict[str, _Stream] = {}

    def read(self, data: bytes) -> Iterator[Key | Text | MethodCall]:
        packet = DataPacket()
        try:
            packet.ParseFromString(data)
        except DecodeError:
            return
        match packet.WhichOneof("value"):
            case "sip_dtmf":
                yield from _read_key(packet.sip_dtmf)
            case "user":
                yield Text(packet.user.topic, packet.user.payload.decode("utf-8", "replace"))
            case "chat_message":
                yield Text(CHAT_TOPIC, packet.chat_message.message)
            case "transcription":
                for segment in packet.transcription.segments:
                    if segment.final and segment.text:
                        yield Text(TRANSCRIPTION_TOPIC, segment.text)
            case "rpc_request":
                request = packet.rpc_request
                yield MethodCall(request.id, request.method, request.payload, packet.participant_identity)
            case "stream_header":
                self._begin(packet.stream_header)
            case "stream_chunk":
                self._add(packet.stream_chunk)
            case "stream_trailer":
                yield from self._end(packet.stream_trailer)

    def _begin(self, header: DataStream.Header) -> None:
        if header.WhichOneof("content_header") != "text_header":
            return  # a file, which a call has no use for
        if len(self._streams) >= _MAX_STREAMS:
            self._streams.pop(next(iter(self._streams)))
        is_final = header.attributes.get("lk.transcription_final", "true") != "false"
        self._streams[header.stream_id] = _Stream(header.topic, is_final)

    def _add(self, chunk: DataStream.Chunk) -> None:
        stream = self._streams.get(chunk.stream_id)
        if stream is None:
            return
        if len(stream.content) + len(chunk.content) > MAX_TEXT_BYTES:
            del self._streams[chunk.stream_id]
        else:
            stream.content += chunk.content

    def _end(self, trailer: DataStream.Trailer) -> Iterator[Text]:
        stream = self._streams.pop(trailer.stream_id, None)
        if stream is None or trailer.reason:
            return
        if stream.content and stream.is_final:
            yield Text(stream.topic, stream.content.decode("utf-8", "replace"))


def _read_key(dtmf: SipDTMF) -> Iterator[Key]:
    digit = dtmf.digit or (_KEYS[dtmf.code] if dtmf.code < len(_KEYS) else "")
    if len(digit) == 1 and digit.upper() in _KEYS:
        yield Key(digit.upper())


# ---------------------------------------------------------------- what we send


def key(digit: str) -> bytes:
    """A key that the telephone pressed, for everybody."""
    return DataPacket(sip_dtmf=SipDTMF(code=_KEYS.index(digit), digit=digit)).SerializeToString()


def text(message: str, topic: str) -> Iterator[bytes]:
    """A text stream, for everybody."""
    content = message.encode("utf-8", "replace")
    stream_id = uuid.uuid4().hex
    header = DataStream.Header(
        stream_id=stream_id,
        timestamp=time.time_ns() // 1_000_000,
        topic=topic or CHAT_TOPIC,
        mime_type="text/plain",
        total_length=len(content),
        text_header=DataStream.TextHeader(),
    )
    yield DataPacket(stream_header=header).SerializeToString()
    for index, start in enumerate(range(0, len(content), _CHUNK_BYTES)):
        piece = content[start : start + _CHUNK_BYTES]
        chunk = DataStream.Chunk(stream_id=stream_id, chunk_index=index, content=piece)
        yield DataPacket(stream_chunk=chunk).SerializeToString()
    yield DataPacket(stream_trailer=DataStream.Trailer(stream_id=stream_id)).SerializeToString()


def data(payload: bytes, topic: str) -> bytes:
    """Data, for everybody."""
    return DataPacket(user=UserPacket(payload=payload, topic=topic)).SerializeToString()


def acknowledgement(call: MethodCall) -> bytes:
    """The call has come; to its caller, at once."""
    packet = DataPacket(rpc_ack=RpcAck(request_id=call.id), destination_identities=[call.caller])
    return packet.SerializeToString()


def result(call: MethodCall, payload: str) -> bytes:
    """What a method returned, to its caller."""
    response = RpcResponse(request_id=call.id, payload=payload)
    packet = DataPacket(rpc_response=response, destination_identities=[call.caller])
    return packet.SerializeToString()


def failure(call: MethodCall, error: MethodError) -> bytes:
    """Why a method did not do it, to its caller."""
    message = str(error).encode()[:_MAX_ERROR_BYTES].decode("utf-8", "ignore")
    response = RpcResponse(request_id=call.id, error=RpcError(code=error.code, message=message))
    packet = DataPacket(rpc_response=response, destination_identities=[call.caller])
    return packet.SerializeToString()
