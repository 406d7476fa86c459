# SPDX-License-Identifier: GPL-3.0-or-later
"""What goes over data channels."""

from livekit.protocol.models import (
    ChatMessage,
    DataPacket,
    DataStream,
    RpcRequest,
    SipDTMF,
    Transcription,
    TranscriptionSegment,
    UserPacket,
)

from sipbridge.rtc.livekit import packets
from sipbridge.rtc.livekit.packets import MAX_TEXT_BYTES, Key, MethodCall, MethodError, PacketReader, Text


def read(*sent: DataPacket | bytes) -> list[Key | Text | MethodCall]:
    reader = PacketReader()
    raw = [packet if isinstance(packet, bytes) else packet.SerializeToString() for packet in sent]
    return [event for packet in raw for event in reader.read(packet)]


def parse(data: bytes) -> DataPacket:
    packet = DataPacket()
    packet.ParseFromString(data)
    return packet


def test_keys() -> None:
    """By their digit or their code; what is none is no key."""
    keys = [SipDTMF(code=5, digit="5"), SipDTMF(code=11), SipDTMF(digit="d"), SipDTMF(code=16)]
    keys += [SipDTMF(digit="12"), SipDTMF(digit="x")]
    assert read(*(DataPacket(sip_dtmf=key) for key in keys)) == [Key("5"), Key("#"), Key("D")]
    assert [parse(packets.key(digit)).sip_dtmf.code for digit in "09*#A"] == [0, 9, 10, 11, 12]
    assert parse(packets.key("#")).sip_dtmf.digit == "#"


def test_texts_come_back_as_they_were_sent() -> None:
    """In pieces; a character that lies across two of them stays whole."""
    for text in ("", "hello", "ä" * 40_000):
        assert read(*packets.text(text, "notes")) == ([Text("notes", text)] if text else [])
    assert read(*packets.text("x", "")) == [Text("lk.chat", "x")]
    assert all(len(packet) < 16_000 for packet in packets.text("y" * 100_000, ""))


def test_what_else_is_a_message() -> None:
    user = UserPacket(payload="ü".encode(), topic="t")
    assert read(DataPacket(user=user)) == [Text("t", "ü")]
    assert read(DataPacket(chat_message=ChatMessage(message="m"))) == [Text("lk.chat", "m")]
    said = [TranscriptionSegment(text="so", final=True), TranscriptionSegment(text="s", final=False)]
    assert read(DataPacket(transcription=Transcription(segments=said))) == [Text("lk.transcription", "so")]
    assert parse(packets.data(b"\x00\xff", "t")).user == UserPacket(payload=b"\x00\xff", topic="t")


def test_only_the_end_of_a_transcription_is_told() -> None:
    """The SDKs send the guesses before it as streams of their own."""
    events = []
    for final in ("false", "true"):
        header, *rest = packets.text(final, "lk.transcription")
        packet = parse(header)
        packet.stream_header.attributes["lk.transcription_final"] = final
        events += read(packet, *rest)
    assert events == [Text("lk.transcription", "true")]


def test_streams_have_their_limits() -> None:
    """What is too long is dropped, what is broken off too, and of too many the oldest; files always."""
    long = DataPacket(stream_chunk=DataStream.Chunk(stream_id="s", content=b"x" * (MAX_TEXT_BYTES // 2 + 1)))
    begin = DataPacket(
        stream_header=DataStream.Header(stream_id="s", topic="t", text_header=DataStream.TextHeader())
    )
    end = DataPacket(stream_trailer=DataStream.Trailer(stream_id="s"))
    assert read(begin, long, end) == [Text("t", "x" * (MAX_TEXT_BYTES // 2 + 1))]
    assert read(begin, long, long, end) == []
    assert (
        read(begin, long, DataPacket(stream_trailer=DataStream.Trailer(stream_id="s", reason="error"))) == []
    )
    assert read(long, end) == []
    file = DataStream.Header(stream_id="s", topic="t", byte_header=DataStream.ByteHeader(name="f"))
    assert read(DataPacket(stream_header=file), long, end) == []
    many = [
        DataPacket(stream_header=DataStream.Header(stream_id=f"m{i}", text_header=DataStream.TextHeader()))
        for i in range(40)
    ]
    assert read(begin, *many, long, end) == []


def test_calls_of_methods() -> None:
    """And what is answered, to the caller alone."""
    request = RpcRequest(id="1", method="sip.hangup", payload="{}", version=1)
    (call,) = read(DataPacket(rpc_request=request, participant_identity="agent"))
    assert call == MethodCall("1", "sip.hangup", "{}", "agent")
    answers = [
        parse(packets.acknowledgement(call)),
        parse(packets.result(call, "done")),
        parse(packets.failure(call, MethodError(1400, "ü" * 300))),
    ]
    assert [list(answer.destination_identities) for answer in answers] == [["agent"]] * 3
    assert answers[0].rpc_ack.request_id == answers[1].rpc_response.request_id == "1"
    assert answers[1].rpc_response.payload == "done"
    assert answers[2].rpc_response.error.code == 1400
    assert answers[2].rpc_response.error.message == "ü" * 128


def test_rubbish_is_ignored() -> None:
    assert read(b"\xff\xff\xff", b"", DataPacket()) == []
