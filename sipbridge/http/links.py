# SPDX-License-Identifier: GPL-3.0-or-later
"""Links that let a browser into one room for some time, and nowhere else.

A link's token is its end as Unix time and a signature over that and the room. The key is made of an API
token, so nothing is stored, and whoever has only a link learns nothing of that token.
"""

import base64
import hashlib
import hmac
import re
import time
import urllib.parse
from collections.abc import Collection

MAX_TTL_S = 30 * 86400
WEBRTC_PATH = re.compile(r"/v1/rooms/([^/]+)/webrtc(?:/[^/]+)?")
_TOKEN = re.compile(r"([0-9]{1,12})\.([A-Za-z0-9_-]{43})")


class RoomLinks:
    """Signs and checks them."""

    def __init__(self, tokens: Collection[str]) -> None:
        """Of API tokens: the first signs, any may have signed."""
        self._keys = [
            hmac.digest(token.encode(), b"sipbridge: links of rooms", hashlib.sha256) for token in tokens
        ]

    def make(self, room: str, ttl_s: int) -> tuple[str, int]:
        """A token and its end as Unix time."""
        end = int(time.time()) + ttl_s
        return f"{end}.{_sign(self._keys[0], room, end)}", end

    def admits(self, path: str, candidate: bytes) -> bool:
        """True when it is a token for the room that this (decoded) path of the API belongs to."""
        place = WEBRTC_PATH.fullmatch(path)
        token = _TOKEN.fullmatch(candidate.decode("ascii", "replace"))
        if place is None or token is None or int(token[1]) < time.time():
            return False
        signatures = [_sign(key, place[1], int(token[1])) for key in self._keys]
        matches = [hmac.compare_digest(token[2], signature) for signature in signatures]
        return any(matches)


def room_url(base: str, room: str, token: str) -> str:
    """The page of a room, with a token that stays in the browser: what is behind # is sent to nobody."""
    return f"{base.rstrip('/')}/rooms/{urllib.parse.quote(room, safe='')}#{token}"


def _sign(key: bytes, room: str, end: int) -> str:
    signature = hmac.digest(key, f"{end}:{room}".encode(), hashlib.sha256)
    return base64.urlsafe_b64encode(signature).decode().rstrip("=")
