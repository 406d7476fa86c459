# SPDX-License-Identifier: GPL-3.0-or-later
"""Texts and data as stream messages, which hold 1 KB each and no zero byte.

A text that fits is the message itself; with a topic it is ``{"topic": …, "message": …}``. Whatever is longer,
and data that are no text, are cut into ``ID|PART|PARTS|BASE64``, parts counted from 1, as Agora's own agents
do it.
"""

import base64
import itertools
import json
import re
import secrets
from collections import OrderedDict

MAX_BYTES = 1024
MAX_METADATA_BYTES = 64
_PART_BYTES = 720  # 960 in base64, which leaves room for what stands before it
_MAX_PARTS = 1000
_MAX_OPEN = 16  # messages of which parts have come
_PART = re.compile(rb"([0-9A-Za-z_-]{1,36})\|(\d{1,4})\|(\d{1,4}|\?\?\?)\|([A-Za-z0-9+/=]*)")


class MessageWriter:
    """Makes packets of what a call says."""

    def __init__(self) -> None:
        self._start = secrets.token_hex(3)  # ids of two calls in one channel differ
        self._numbers = itertools.count(1)

    def write(self, message: str | bytes, topic: str = "", **more: str) -> list[bytes]:
        """The packets of one message, in their order. ValueError when it is too long.

        With `more` beside its topic it is an answer, which nobody takes for a message with this topic.
        """
        if topic:
            text = message if isinstance(message, str) else base64.b64encode(message).decode()
            message = json.dumps({"topic": topic, "message": text, **more}, ensure_ascii=False)
        data = message.encode() if isinstance(message, str) else message
        if isinstance(message, str) and 0 < len(data) <= MAX_BYTES and b"\0" not in data:
            return [data]
        parts = [data[i : i + _PART_BYTES] for i in range(0, len(data), _PART_BYTES)] or [b""]
        if len(parts) > _MAX_PARTS:
            raise ValueError(f"a message of {len(data)} bytes: {_MAX_PARTS * _PART_BYTES} are the most")
        head = f"{self._start}{next(self._numbers):x}"
        return [
            f"{head}|{number}|{len(parts)}|".encode() + base64.b64encode(part)
            for number, part in enumerate(parts, 1)
        ]


class MessageReader:
    """Puts together what others in the channel say."""

    def __init__(self) -> None:
        self._open: OrderedDict[tuple[str, bytes], dict[int, bytes]] = OrderedDict()

    def read(self, user_id: str, packet: bytes) -> tuple[str, str] | None:
        """Topic and text of the message that is whole with this packet."""
        found = _PART.fullmatch(packet)
        if found is None:
            return _split_topic(packet)
        head, number, count = found[1], int(found[2]), found[3]
        try:
            data = base64.b64decode(found[4], validate=True)
        except ValueError:
            return _split_topic(packet)
        key = user_id, head
        parts = self._open.setdefault(key, {})
        parts[number] = data
        self._open.move_to_end(key)
        while len(self._open) > _MAX_OPEN:
            self._open.popitem(last=False)
        if count == b"???" or len(parts) < int(count):
            return None
        del self._open[key]
        if sorted(parts) != list(range(1, int(count) + 1)):
            return None
        return _split_topic(b"".join(parts[i] for i in sorted(parts)))


def _split_topic(data: bytes) -> tuple[str, str]:
    text = data.decode("utf-8", "replace")
    if text.startswith("{"):
        try:
            said = json.loads(text)
        except (ValueError, RecursionError):
            return "", text
        topic, message = said.get("topic"), said.get("message")
        if isinstance(topic, str) and isinstance(message, str) and len(said) == 2:
            return topic, message
    return "", text
