# SPDX-License-Identifier: GPL-3.0-or-later
"""Stream messages: what is short goes as it is, what is long in parts."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipbridge.rtc.agora.messages import MAX_BYTES, MessageReader, MessageWriter


def read(packets: list[bytes], reader: MessageReader | None = None) -> list[tuple[str, str]]:
    reader = reader or MessageReader()
    said = [reader.read("ann", packet) for packet in packets]
    return [one for one in said if one is not None]


def test_short_text_is_the_message() -> None:
    assert MessageWriter().write("grüß dich") == ["grüß dich".encode()]
    assert read([b'{"a": 1}']) == [("", '{"a": 1}')]


def test_topic_goes_along() -> None:
    (packet,) = MessageWriter().write("5", "dtmf")
    assert json.loads(packet) == {"topic": "dtmf", "message": "5"}
    assert read([packet]) == [("dtmf", "5")]


def test_answer_is_no_message_with_its_topic() -> None:
    """Who reads it takes it for a text."""
    (packet,) = MessageWriter().write("greeting", "mark", state="played")
    assert json.loads(packet) == {"topic": "mark", "message": "greeting", "state": "played"}
    assert read([packet]) == [("", packet.decode())]


def test_data_and_long_texts_are_cut() -> None:
    """No packet is longer than Agora lets through, and none has a zero byte."""
    packets = MessageWriter().write(b"\0\xff" * 1000)
    assert len(packets) == 3
    assert all(len(packet) <= MAX_BYTES and b"\0" not in packet for packet in packets)
    parts = [base64.b64decode(packet.split(b"|")[3]) for packet in packets]
    assert b"".join(parts) == b"\0\xff" * 1000
    assert [packet.split(b"|")[1:3] for packet in packets] == [[b"1", b"3"], [b"2", b"3"], [b"3", b"3"]]


def test_parts_of_two_may_be_mixed() -> None:
    first, second = (MessageWriter().write(text * 2000) for text in "ab")
    mixed = [packet for pair in zip(first, reversed(second), strict=True) for packet in pair]
    assert sorted(read(mixed)) == [("", 2000 * "a"), ("", 2000 * "b")]


def test_parts_that_never_become_whole_are_forgotten() -> None:
    """The last few are kept."""
    reader = MessageReader()
    begun = [MessageWriter().write(f"{number}" * 2000) for number in range(40)]
    for packets in begun:
        assert reader.read("ann", packets[0]) is None
    assert read(begun[0][1:], reader) == []
    assert read(begun[-1][1:], reader) == [("", "39" * 2000)]


def test_too_long() -> None:
    with pytest.raises(ValueError, match="are the most"):
        MessageWriter().write(bytes(1_000_000))


@given(st.text(max_size=3000), st.text(max_size=20))
def test_whatever_is_said_is_heard(text: str, topic: str) -> None:
    """But for what looks like a message with a topic, or a part of one."""
    if not topic and text.startswith("{"):
        return
    packets = MessageWriter().write(text, topic)
    assert all(len(packet) <= MAX_BYTES for packet in packets)
    assert read(packets) == [(topic, text)]


@given(st.lists(st.binary(max_size=40)))
def test_nothing_that_others_say_does_harm(packets: list[bytes]) -> None:
    read([*packets, b"a|1|0|", b"a|0|1|QQ==", b"a|2|1|QQ==", b"x|1|9999|"])
