# SPDX-License-Identifier: GPL-3.0-or-later
"""Backends by the scheme of their targets. Only the one that is asked for is imported."""

import contextlib
import sys

from sipbridge.config import Config
from sipbridge.errors import EndKind, EndReason, RtcError
from sipbridge.routing import Target
from sipbridge.rtc import named
from sipbridge.rtc.base import RtcConnection, RtcContext
from sipbridge.rtc.websocket.protocol import load_protocol

ENTRY_POINTS = "sipbridge.rtc"

BACKENDS = {
    "local": "sipbridge.rtc.local:LocalConnection",
    "echo": "sipbridge.rtc.testing:EchoConnection",
    "tone": "sipbridge.rtc.testing:ToneConnection",
    "silence": "sipbridge.rtc.testing:SilenceConnection",
    "play": "sipbridge.rtc.testing:PlayConnection",
    "livekit": "sipbridge.rtc.livekit.connection:LiveKitConnection",
    "agora": "sipbridge.rtc.agora.connection:AgoraConnection",
    "agent": "sipbridge.rtc.websocket.connection:WebSocketConnection",
    "ws": "sipbridge.rtc.websocket.connection:WebSocketConnection",
    "wss": "sipbridge.rtc.websocket.connection:WebSocketConnection",
    "audiosocket": "sipbridge.rtc.websocket.connection:WebSocketConnection",
}


def schemes() -> list[str]:
    """All schemes that a target may have."""
    return named.all_names(BACKENDS, ENTRY_POINTS)


def load_backend(scheme: str) -> type[RtcConnection]:
    """The class behind a scheme. LookupError when there is none, ImportError when it cannot be had."""
    backend: type[RtcConnection] = named.load(scheme, BACKENDS, ENTRY_POINTS, "channel backend for")
    return backend


def joins_early(scheme: str) -> bool:
    """Whether a call that is dialled joins its channel while it is dialled."""
    try:
        return load_backend(scheme).joins_early
    except (LookupError, ImportError):
        return False


def make_connection(target: Target, context: RtcContext) -> RtcConnection:
    """A connection that is not joined yet. RtcError when the target makes no sense."""
    try:
        return load_backend(target.scheme)(target, context)
    except (LookupError, ValueError, ImportError) as error:
        raise RtcError(EndReason(EndKind.CHANNEL_FAILED, f"target {target}: {error}")) from error


async def start_up(config: Config) -> None:
    """Every backend that a rule names readies what its connections share."""
    for scheme in {Target.parse(rule.target).scheme for rule in config.rule}:
        with contextlib.suppress(LookupError, ImportError):
            await load_backend(scheme).start_up(config)


async def shut_down() -> None:
    """Every backend that was loaded gives back what its connections share."""
    for scheme, location in BACKENDS.items():
        if location.partition(":")[0] in sys.modules:
            await load_backend(scheme).shut_down()


def load_configured(config: Config) -> None:
    """Imports what the rules and agents name, so that the first call need not wait for it.

    What cannot be imported is told by the call that asks for it.
    """
    for scheme in {Target.parse(rule.target).scheme for rule in config.rule}:
        with contextlib.suppress(LookupError, ImportError):
            load_backend(scheme)
    for agent in config.agent:
        with contextlib.suppress(LookupError, ImportError):
            load_protocol(agent.protocol)
