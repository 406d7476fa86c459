# SPDX-License-Identifier: GPL-3.0-or-later
"""What can go wrong, and why a call ended.

::

    SipbridgeError
     ├── ConfigError ── ConfigFileError    the configuration cannot be used
     ├── CallError                          a call or a dial failed
     ├── RtcError                           a channel backend refused or broke
     └── MediaError                         a sound file cannot be used

No exception of pjsua2, or of an SDK of a channel, leaves its own package: it is translated into one
of these at that border.
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self


class EndKind(enum.StrEnum):
    """Why a call ended; the value is what records, metrics and the API show."""

    HANGUP = "hangup"  # an answered call was hung up
    CANCELLED = "cancelled"  # the caller gave up before the answer
    BUSY = "busy"
    DECLINED = "declined"
    NO_ANSWER = "no_answer"  # it rang, nobody answered in time
    UNAVAILABLE = "unavailable"  # the far side cannot be reached at the moment
    NOT_FOUND = "not_found"  # no such number, rule or room
    FORBIDDEN = "forbidden"
    NOT_ACCEPTABLE = "not_acceptable"  # no common codec, or an unusable offer
    CHANNEL_CLOSED = "channel_closed"  # the channel ended the call
    CHANNEL_FAILED = "channel_failed"  # the channel could not be joined, or broke
    MEDIA_TIMEOUT = "media_timeout"  # no RTP came for too long
    MAX_DURATION = "max_duration"
    ALONE = "alone"  # everybody else left the channel
    TRANSFERRED = "transferred"  # the telephone was sent elsewhere, and is there
    SHUTDOWN = "shutdown"  # the server is draining
    OVERLOAD = "overload"  # a limit was reached, or no RTP port was free
    TRANSPORT = "transport"  # the SIP connection was lost or could not be made
    ERROR = "error"  # a fault of ours


class Party(enum.StrEnum):
    """Who ended a call, or who did something in it."""

    CALLER = "caller"
    CALLEE = "callee"
    BRIDGE = "bridge"
    CHANNEL = "channel"
    OPERATOR = "operator"


# RFC 3261 section 21; where a kind has a Q.850 cause, the code is that of RFC 3398 section 7.2.4.1.
_CODE_OF_KIND = {
    EndKind.HANGUP: 480,
    EndKind.CANCELLED: 487,
    EndKind.BUSY: 486,
    EndKind.DECLINED: 603,
    EndKind.NO_ANSWER: 480,
    EndKind.UNAVAILABLE: 480,
    EndKind.NOT_FOUND: 404,
    EndKind.FORBIDDEN: 403,
    EndKind.NOT_ACCEPTABLE: 488,
    EndKind.CHANNEL_CLOSED: 480,
    EndKind.CHANNEL_FAILED: 502,
    EndKind.MEDIA_TIMEOUT: 408,
    EndKind.MAX_DURATION: 480,
    EndKind.ALONE: 480,
    EndKind.TRANSFERRED: 480,
    EndKind.SHUTDOWN: 503,
    EndKind.OVERLOAD: 503,
    EndKind.TRANSPORT: 503,
    EndKind.ERROR: 500,
}

# ITU-T Q.850; where RFC 3398 section 8.2.6.1 has one for the SIP code of a kind, it is that.
_CAUSE_OF_KIND = {
    EndKind.HANGUP: 16,
    EndKind.CANCELLED: 16,
    EndKind.BUSY: 17,
    EndKind.DECLINED: 21,
    EndKind.NO_ANSWER: 19,
    EndKind.UNAVAILABLE: 18,
    EndKind.NOT_FOUND: 1,
    EndKind.FORBIDDEN: 21,
    EndKind.NOT_ACCEPTABLE: 65,
    EndKind.CHANNEL_CLOSED: 16,
    EndKind.CHANNEL_FAILED: 38,
    EndKind.MEDIA_TIMEOUT: 102,
    EndKind.MAX_DURATION: 31,
    EndKind.ALONE: 16,
    EndKind.TRANSFERRED: 16,
    EndKind.SHUTDOWN: 41,
    EndKind.OVERLOAD: 42,
    EndKind.TRANSPORT: 38,
    EndKind.ERROR: 41,
}

_KIND_OF_CODE = {
    401: EndKind.FORBIDDEN,
    403: EndKind.FORBIDDEN,
    404: EndKind.NOT_FOUND,
    406: EndKind.NOT_ACCEPTABLE,
    407: EndKind.FORBIDDEN,
    408: EndKind.NO_ANSWER,
    410: EndKind.NOT_FOUND,
    415: EndKind.NOT_ACCEPTABLE,
    480: EndKind.UNAVAILABLE,
    484: EndKind.NOT_FOUND,
    485: EndKind.NOT_FOUND,
    486: EndKind.BUSY,
    487: EndKind.CANCELLED,
    488: EndKind.NOT_ACCEPTABLE,
    502: EndKind.UNAVAILABLE,
    503: EndKind.UNAVAILABLE,
    504: EndKind.UNAVAILABLE,
    600: EndKind.BUSY,
    603: EndKind.DECLINED,
    604: EndKind.NOT_FOUND,
    606: EndKind.NOT_ACCEPTABLE,
    607: EndKind.DECLINED,  # RFC 8197, unwanted
    608: EndKind.DECLINED,  # RFC 8688, rejected
}

# Challenges speak to us, not to whoever called us: they are never passed on.
_NOT_PASSED_ON = frozenset({401, 407, 422, 423, 494})


@dataclass(frozen=True, slots=True)
class EndReason:
    """Why a call ended, in words for people (`detail`) and in a `kind` for programs."""

    kind: EndKind
    detail: str
    by: Party = Party.BRIDGE
    sip_code: int = 0  # the code that was received; 0: none, `code` derives one from the kind

    @property
    def code(self) -> int:
        """The SIP status (400 to 699) that refuses an unanswered call for this reason."""
        if 400 <= self.sip_code <= 699 and self.sip_code not in _NOT_PASSED_ON:
            return self.sip_code
        return _CODE_OF_KIND[self.kind]

    @property
    def cause(self) -> int:
        """The cause of a telephone network (ITU-T Q.850) that this is nearest to."""
        return _CAUSE_OF_KIND[self.kind]

    @classmethod
    def from_sip(cls, code: int, phrase: str, by: Party) -> Self:
        """The reason that a final SIP status stands for; a 2xx is a call that was hung up."""
        if 200 <= code <= 299:
            return cls(EndKind.HANGUP, phrase, by)
        kind = _KIND_OF_CODE.get(code)
        if kind is None:
            # A redirection that was not followed leaves nobody to talk to.
            kind = EndKind.UNAVAILABLE if 300 <= code <= 399 else EndKind.ERROR
        return cls(kind, phrase, by, code)

    def __str__(self) -> str:
        code = f"{self.sip_code} " if self.sip_code else ""
        return f"{self.kind} by {self.by}: {code}{self.detail}".rstrip(": ")


class SipbridgeError(Exception):
    """The root of all errors that this package raises on purpose."""


class ConfigError(SipbridgeError):
    """A place in the configuration that cannot be used; str() is ``FILE: [table] key: message``."""

    def __init__(
        self,
        message: str,
        *,
        file: Path | str | None = None,
        table: str | None = None,
        key: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.file = file
        self.table = table  # "sip", or with brackets when it is one of a list: '[[trunk]] "carrier"'
        self.key = key

    @property
    def errors(self) -> tuple["ConfigError", ...]:
        """Every single error; this one alone unless it is a `ConfigFileError`."""
        return (self,)

    def __str__(self) -> str:
        table = self.table
        if table and not table.startswith("["):
            table = f"[{table}]"
        place = " ".join(part for part in (table, self.key) if part)
        return ": ".join(str(part) for part in (self.file, place, self.message) if part)


class ConfigFileError(ConfigError):
    """Several errors found in one configuration; str() has one a line."""

    def __init__(self, errors: Sequence[ConfigError]) -> None:
        super().__init__(f"{len(errors)} errors in the configuration", file=errors[0].file)
        self._errors = tuple(errors)

    @property
    def errors(self) -> tuple[ConfigError, ...]:
        return self._errors

    def __str__(self) -> str:
        return "\n".join(str(error) for error in self._errors)


class CallError(SipbridgeError):
    """A call that was refused, or a dial that failed."""

    def __init__(self, reason: EndReason) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.reason.sip_code or self.reason.code} {self.reason.detail}".rstrip()


class RtcError(SipbridgeError):
    """A channel backend refused to join, or broke."""

    def __init__(self, reason: EndReason) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason.detail or str(self.reason.kind)


class MediaError(SipbridgeError):
    """A sound file that cannot be read, written or played."""
