# SPDX-License-Identifier: GPL-3.0-or-later
"""The API's token of this user: made once, kept where the user alone can read it.

A command on the same host and of the same user reads the same file, so nothing needs setting up.
"""

import contextlib
import hmac
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Collection
from pathlib import Path

import platformdirs

from sipbridge.errors import ConfigError

_TOKEN = re.compile(r"[A-Za-z0-9_-]{32,128}")


def token_path() -> Path:
    """Where the token is kept: in the user's state directory, that of ``XDG_STATE_HOME`` when it is set."""
    return platformdirs.user_state_path("sipbridge", appauthor=False) / "api-token"


def read_token(path: Path) -> str | None:
    """The token in `path`, or None when there is no such file.

    ConfigError when it cannot be read, is no token, or others may read it as well.
    """
    try:
        with path.open(encoding="ascii", errors="replace") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            token = file.read(1024).strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"cannot read the API token: {error.strerror}", file=path) from None
    if mode & 0o077:
        raise ConfigError(
            "others on this host may have read it; delete it, and the next start makes a new one",
            file=path,
        )
    if not _TOKEN.fullmatch(token):
        raise ConfigError("it holds no API token; delete it, and the next start makes a new one", file=path)
    return token


def read_or_make_token(path: Path) -> str:
    """The token in `path`, made when there is none yet; of two processes at once both get the same.

    ConfigError as `read_token`, or when it cannot be written.
    """
    token = read_token(path)
    if token is not None:
        return token
    token = secrets.token_urlsafe(32)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # mkstemp makes it 0600. The link appears whole or not at all, and never over another's.
        handle, name = tempfile.mkstemp(prefix=".api-token-", dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="ascii") as file:
                file.write(token + "\n")
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(name, path)
        finally:
            os.unlink(name)
    except OSError as error:
        raise ConfigError(
            f"cannot write the API token: {error.strerror}; XDG_STATE_HOME names another directory", file=path
        ) from None
    return read_token(path) or token


def is_token(candidate: bytes, tokens: Collection[str]) -> bool:
    """True when `candidate` is one of `tokens`; the time it takes tells nothing about them."""
    matches = [hmac.compare_digest(candidate, token.encode()) for token in tokens]
    return any(matches)
