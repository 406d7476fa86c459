# SPDX-License-Identifier: GPL-3.0-or-later
"""What lets a participant into a room: tokens of our own, those of a token server, and checking others'."""

import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jwt
from jwt.warnings import InsecureKeyLengthWarning

from sipbridge.config import LiveKitConfig
from sipbridge.rtc.livekit.participant import Participant
from sipbridge.rtc.token_server import TokenError, ask_token_server

_LEEWAY_S = 60  # that clocks may differ
_ALGORITHM = "HS256"

# Whoever made the secret decides on its length; that of `livekit-server --dev` has six characters.
warnings.filterwarnings("ignore", category=InsecureKeyLengthWarning)


@dataclass(frozen=True, slots=True)
class Entry:
    """Where to go, and what opens."""

    url: str
    token: str


@dataclass(frozen=True, slots=True)
class Grants:
    """What the bearer of a token may do."""

    video: Mapping[str, Any]
    sip: Mapping[str, Any]


def make_token(config: LiveKitConfig, room: str, participant: Participant) -> str:
    """A token for one participant of one room."""
    assert config.api_secret is not None
    now = int(time.time())
    claims: dict[str, Any] = {
        "iss": config.api_key,
        "sub": participant.identity,
        "nbf": now - _LEEWAY_S,
        "exp": now + config.token_ttl_s,
        "name": participant.name,
        "kind": "sip",
        "metadata": participant.metadata,
        "attributes": dict(participant.attributes),
        "video": {
            "roomJoin": True,
            "room": room,
            "canPublish": True,
            "canSubscribe": True,
            "canPublishData": True,
            "canUpdateOwnMetadata": True,
        },
    }
    if participant.room_configuration:
        claims["roomConfig"] = dict(participant.room_configuration)
    return jwt.encode(claims, config.api_secret.get_secret_value(), _ALGORITHM)


def read_token(token: str, api_key: str, api_secret: str) -> Grants:
    """What somebody's token allows. TokenError when it is not made with our secret, or is over."""
    try:
        claims = jwt.decode(
            token,
            api_secret,
            [_ALGORITHM],
            issuer=api_key,
            leeway=_LEEWAY_S,
            options={"require": ["exp", "iss"], "verify_aud": False},
        )
    except jwt.InvalidTokenError as error:
        raise TokenError(str(error)) from None
    video, sip = claims.get("video"), claims.get("sip")
    return Grants(
        video if isinstance(video, dict) else {},
        sip if isinstance(sip, dict) else {},
    )


async def obtain(config: LiveKitConfig, room: str, participant: Participant) -> Entry:
    """A token by whichever way is configured. TokenError."""
    if config.token_url is None:
        return Entry(config.url, make_token(config, room, participant))
    body: dict[str, Any] = {
        "room_name": room,
        "participant_identity": participant.identity,
        "participant_name": participant.name,
        "participant_metadata": participant.metadata,
        "participant_attributes": dict(participant.attributes),
    }
    if participant.room_configuration:
        body["room_config"] = dict(participant.room_configuration)
    timeout_s = config.connect_timeout_s
    answer = await ask_token_server(config.token_url, body, config.token_headers, timeout_s)
    if not isinstance(answer, dict) or "participant_token" not in answer:
        raise TokenError("the token server's answer has no participant_token")
    return Entry(str(answer.get("server_url") or config.url), str(answer["participant_token"]))
