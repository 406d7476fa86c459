# SPDX-License-Identifier: GPL-3.0-or-later
"""A project of Agora's for tests. Its network is that of `tests.support.agora_engine`."""

from typing import Any

from pydantic import SecretStr

from sipbridge.config import AgoraConfig, Config

APP_ID = 4 * "0123abcd"
CERTIFICATE = 4 * "4567cdef"

TABLE = {"app_id": APP_ID, "app_certificate": CERTIFICATE}


def config(**changes: Any) -> Config:
    table = {"app_id": APP_ID, "app_certificate": SecretStr(CERTIFICATE)}
    return Config(agora=AgoraConfig(**{**table, **changes}))
