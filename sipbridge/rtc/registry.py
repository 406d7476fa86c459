# SPDX-License-Identifier: GPL-3.0-or-later
"""Backends by the scheme of their targets. Only the one that is asked for is imported."""

import importlib
import importlib.metadata

from sipbridge.errors import EndKind, EndReason, RtcError
from sipbridge.routing import Target
from sipbridge.rtc.base import RtcConnection, RtcContext

ENTRY_POINTS = "sipbridge.rtc"

BACKENDS = {
    "local": "sipbridge.rtc.local:LocalConnection",
    "echo": "sipbridge.rtc.testing:EchoConnection",
    "tone": "sipbridge.rtc.testing:ToneConnection",
    "silence": "sipbridge.rtc.testing:SilenceConnection",
    "play": "sipbridge.rtc.testing:PlayConnection",
    "agent": "sipbridge.rtc.websocket.connection:WebSocketConnection",
    "ws": "sipbridge.rtc.websocket.connection:WebSocketConnection",
    "wss": "sipbridge.rtc.websocket.connection:WebSocketConnection",
    "audiosocket": "sipbridge.rtc.websocket.connection:WebSocketConnection",
}


def schemes() -> list[str]:
    """All schemes that a target may have."""
    return sorted(
        BACKENDS.keys() | {entry.name for entry in importlib.metadata.entry_points(group=ENTRY_POINTS)}
    )


def load_backend(scheme: str) -> type[RtcConnection]:
    """The class behind a scheme. LookupError when there is none, ImportError when it cannot be had."""
    location = BACKENDS.get(scheme)
    if location is None:
        for entry in importlib.metadata.entry_points(group=ENTRY_POINTS, name=scheme):
            location = entry.value
    if location is None:
        raise LookupError(f"no channel backend for {scheme!r}: expected one of {', '.join(schemes())}")
    module, _, name = location.partition(":")
    try:
        backend: type[RtcConnection] = getattr(importlib.import_module(module), name)
    except AttributeError as error:
        raise ImportError(str(error)) from error
    return backend


def make_connection(target: Target, context: RtcContext) -> RtcConnection:
    """A connection that is not joined yet. RtcError when the target makes no sense."""
    try:
        return load_backend(target.scheme)(target, context)
    except (LookupError, ValueError, ImportError) as error:
        raise RtcError(EndReason(EndKind.CHANNEL_FAILED, f"target {target}: {error}")) from error
