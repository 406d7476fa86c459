# SPDX-License-Identifier: GPL-3.0-or-later
"""Others say where a call goes: one request by HTTP, which is answered channel, user, token, scenario."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from sipbridge.config import AgoraConfig
from sipbridge.errors import EndKind, EndReason, Party, RtcError
from sipbridge.rtc.agora.reasons import failed
from sipbridge.rtc.agora.service import SCENARIOS
from sipbridge.rtc.base import JoinRequest

_MAX_BYTES = 64 * 1024
# What a refusal says by its status; any other is a fault of whoever was asked.
_REFUSALS = {
    401: 403,
    402: 403,
    403: 403,
    404: 404,
    409: 486,
    410: 404,
    429: 503,
    486: 486,
    503: 503,
    603: 603,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What was said; "" where it was not."""

    channel: str = ""
    user_id: str = ""
    token: str = ""
    scenario: str = ""


async def look_up(config: AgoraConfig, channel: str, join: JoinRequest) -> Found:
    """Asks. RtcError with the SIP code that the refusal, or the silence, stands for."""
    assert config.lookup_url is not None
    body: dict[str, Any] = {
        "call_id": join.call_id,
        "direction": join.direction,
        "caller": join.caller,
        "number": join.callee,
        "trunk": join.trunk,
        "rule": join.rule,
        "channel": channel,
        "headers": {name: text for name, text in join.headers.items() if name.lower().startswith("x-")},
    }
    headers = {name: secret.get_secret_value() for name, secret in config.lookup_headers.items()}
    try:
        async with httpx.AsyncClient(timeout=config.lookup_timeout_s) as client:
            response = await client.post(config.lookup_url, json=body, headers=headers)
    except httpx.TimeoutException as error:
        detail = f"the lookup has not answered within {config.lookup_timeout_s:g} s"
        raise RtcError(failed(detail, EndKind.UNAVAILABLE, 504)) from error
    except httpx.HTTPError as error:
        detail = f"the lookup cannot be reached: {error or type(error).__name__}"
        raise RtcError(failed(detail, EndKind.UNAVAILABLE, 503)) from error
    if response.status_code in _REFUSALS:
        raise RtcError(_refusal(_REFUSALS[response.status_code], _text_of(response)))
    if not response.is_success or len(response.content) > _MAX_BYTES:
        raise RtcError(failed(f"the lookup answers {response.status_code}"))
    return _read(response)


def _text_of(response: httpx.Response) -> str:
    try:
        answer = response.json()
    except ValueError:
        return ""
    return str(answer.get("reason") or "") if isinstance(answer, dict) else ""


def _refusal(code: int, text: str) -> EndReason:
    return EndReason.from_sip(code, f"Agora: the lookup refuses the call: {text or code}", Party.CHANNEL)


def _read(response: httpx.Response) -> Found:
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if not isinstance(answer, Mapping):
        raise RtcError(failed("the lookup's answer is no JSON object"))
    if "reject" in answer:
        code = answer["reject"]
        if not isinstance(code, int) or isinstance(code, bool) or not 400 <= code <= 699:
            raise RtcError(failed(f"the lookup's reject is {code!r}, and no SIP code from 400 to 699"))
        raise RtcError(_refusal(code, str(answer.get("reason") or "")))
    said: dict[str, str] = {}
    for name in ("channel", "user_id", "token", "scenario"):
        value = answer.get(name, "")
        if isinstance(value, int) and not isinstance(value, bool) and name == "user_id":
            value = str(value)
        if not isinstance(value, str):
            raise RtcError(failed(f"the lookup's {name} is no text"))
        said[name] = value
    if said["scenario"] and said["scenario"] not in SCENARIOS:
        known = ", ".join(SCENARIOS)
        raise RtcError(failed(f"the lookup's scenario {said['scenario']!r} is none of {known}"))
    return Found(**said)
