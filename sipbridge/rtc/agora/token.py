# SPDX-License-Identifier: GPL-3.0-or-later
"""What lets a user into a channel: tokens of version 007, made here, or those of somebody else's server.

::

    "007" base64( zlib( signature, body ) )
    body       app id, made at, valid for, salt, number of services, service: 1, its privileges, channel, user
    signature  HMAC-SHA256 of the body, with a key made of certificate, time and salt

Numbers are little-endian; texts and mappings have a length of 16 bits before them.
"""

import base64
import hmac
import secrets
import struct
import time
import zlib
from collections.abc import Mapping

from sipbridge.config import AgoraConfig
from sipbridge.rtc.token_server import TokenError, ask_token_server

_RTC = 1  # the service
_JOIN, _AUDIO, _VIDEO, _DATA = 1, 2, 3, 4  # its privileges: to join, and to publish each kind
_MAX_SALT = 99_999_999


def _u16(value: int) -> bytes:
    return struct.pack("<H", value)


def _u32(value: int) -> bytes:
    return struct.pack("<I", value)


def _text(value: bytes) -> bytes:
    return _u16(len(value)) + value


def _sign(key: bytes, message: bytes) -> bytes:
    return hmac.digest(key, message, "sha256")


def build_token(
    app_id: str,
    certificate: str,
    channel: str,
    user_id: str,
    *,
    privileges: Mapping[int, int],
    issued_at: int,
    ttl_s: int,
    salt: int,
) -> str:
    """A token for one user of one channel; each privilege is good for its seconds. User "" or "0": any."""
    user = "" if user_id == "0" else user_id
    granted = b"".join(_u16(kind) + _u32(seconds) for kind, seconds in sorted(privileges.items()))
    service = _u16(_RTC) + _u16(len(privileges)) + granted + _text(channel.encode()) + _text(user.encode())
    body = _text(app_id.encode()) + _u32(issued_at) + _u32(ttl_s) + _u32(salt) + _u16(1) + service
    key = _sign(_u32(salt), _sign(_u32(issued_at), certificate.encode()))
    packed = zlib.compress(_text(_sign(key, body)) + body)
    return "007" + base64.b64encode(packed).decode()


def make_token(config: AgoraConfig, channel: str, user_id: str) -> str:
    """One of our own; "" where the project has no certificate, and so asks for none."""
    if config.app_certificate is None:
        return ""
    return build_token(
        config.app_id,
        config.app_certificate.get_secret_value(),
        channel,
        user_id,
        privileges=dict.fromkeys((_JOIN, _AUDIO, _VIDEO, _DATA), config.token_ttl_s),
        issued_at=int(time.time()),
        ttl_s=config.token_ttl_s,
        salt=1 + secrets.randbelow(_MAX_SALT),
    )


async def obtain_token(config: AgoraConfig, channel: str, user_id: str, call_id: str) -> str:
    """A token by whichever way is configured. TokenError."""
    if config.token_url is None:
        return make_token(config, channel, user_id)
    body = {"channel": channel, "user_id": user_id, "call_id": call_id}
    timeout_s = config.connect_timeout_s
    answer = await ask_token_server(config.token_url, body, config.token_headers, timeout_s)
    token = answer.get("token") if isinstance(answer, dict) else None
    if not isinstance(token, str) or not token:
        raise TokenError("the token server's answer has no token")
    return token
