# SPDX-License-Identifier: GPL-3.0-or-later
"""Tokens that somebody else makes: one request by HTTP, with JSON both ways."""

from collections.abc import Mapping
from typing import Any

import httpx
from pydantic import SecretStr


class TokenError(Exception):
    """No token, or none that is valid; its text says why."""


async def ask_token_server(
    url: str, body: Mapping[str, Any], headers: Mapping[str, SecretStr], timeout_s: float
) -> Any:
    """What it answers, None where that is no JSON. TokenError when it does not answer, or refuses."""
    secrets = {name: secret.get_secret_value() for name, secret in headers.items()}
    try:
        async with httpx.AsyncClient(timeout=timeout_s) as client:
            response = await client.post(url, json=dict(body), headers=secrets)
            response.raise_for_status()
            return response.json()
    except httpx.HTTPStatusError as error:
        raise TokenError(f"the token server answers {error.response.status_code}") from error
    except httpx.HTTPError as error:
        raise TokenError(f"the token server cannot be reached: {error or type(error).__name__}") from error
    except ValueError:
        return None
