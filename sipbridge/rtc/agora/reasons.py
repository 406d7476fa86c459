# SPDX-License-Identifier: GPL-3.0-or-later
"""What Agora's codes mean, for people and for the telephone's network."""

from sipbridge.errors import EndKind, EndReason, Party

_UNAVAILABLE = EndKind.UNAVAILABLE
_FAILED = EndKind.CHANNEL_FAILED

# Of a connection: why it failed or ended. Where no SIP code stands, the kind's own holds.
_OF_CONNECTION: dict[int, tuple[EndKind, str, int]] = {
    2: (_UNAVAILABLE, "the connection is interrupted", 503),
    3: (EndKind.FORBIDDEN, "banned from the channel by the server", 0),
    4: (_FAILED, "the channel could not be joined", 0),
    5: (EndKind.CHANNEL_CLOSED, "the channel was left", 0),
    6: (_FAILED, "the app id is not valid", 0),
    7: (EndKind.NOT_FOUND, "the channel's name is not valid", 0),
    8: (_FAILED, "the token is not valid for this channel and user", 0),
    9: (_FAILED, "the token has expired", 0),
    10: (EndKind.FORBIDDEN, "rejected by the server", 0),
    11: (_FAILED, "the proxy was being set", 0),
    14: (_UNAVAILABLE, "the server has not been heard for too long", 504),
    16: (_UNAVAILABLE, "the connection is lost", 503),
    19: (EndKind.CHANNEL_CLOSED, "somebody else has joined with the user id of this call", 0),
    20: (EndKind.OVERLOAD, "too many speak in this channel", 0),
    21: (_FAILED, "the licence is not valid", 0),
    22: (_FAILED, "the server's certificate is not valid", 0),
    23: (_UNAVAILABLE, "the channel is not available", 503),
    24: (_FAILED, "the app id is not the token's", 0),
}

# Of a function of the SDK.
_OF_CALL: dict[int, tuple[EndKind, str, int]] = {
    -2: (_FAILED, "an argument is not valid", 0),
    -5: (EndKind.FORBIDDEN, "refused", 0),
    -7: (_FAILED, "the SDK is not initialised", 0),
    -8: (_FAILED, "not possible in this state", 0),
    -17: (EndKind.FORBIDDEN, "the request to join was rejected", 0),
    -101: (_FAILED, "the app id is not valid", 0),
    -102: (EndKind.NOT_FOUND, "the channel's name is not valid", 0),
    -109: (_FAILED, "the token has expired", 0),
    -110: (_FAILED, "the token is not valid", 0),
    -134: (_FAILED, "the user id is not valid", 0),
}

_OF_ENCRYPTION = {
    0: "encryption failed inside the SDK",
    1: "what others send cannot be decrypted: key, mode or salt is not theirs",
    2: "what we say cannot be encrypted",
}


def _reason(kind: EndKind, detail: str, code: int = 0) -> EndReason:
    return EndReason(kind, f"Agora: {detail}", Party.CHANNEL, code)


def connection_reason(code: int) -> EndReason:
    """Why a connection failed, was closed or lost; CONNECTION_CHANGED_REASON_TYPE of Agora's documents."""
    if code not in _OF_CONNECTION:
        return _reason(_FAILED, f"the connection failed (reason {code})")
    kind, detail, sip_code = _OF_CONNECTION[code]
    return _reason(kind, f"{detail} (reason {code})", sip_code)


def call_reason(function: str, code: int) -> EndReason:
    """Why a function of the SDK did not do what it is for."""
    kind, detail, sip_code = _OF_CALL.get(code, (_FAILED, "failed", 0))
    return _reason(kind, f"{function}: {detail} (error {code})", sip_code)


def encryption_reason(code: int) -> EndReason:
    return _reason(_FAILED, _OF_ENCRYPTION.get(code, f"encryption failed (error {code})"), 488)


def failed(detail: str, kind: EndKind = _FAILED, code: int = 0) -> EndReason:
    """Any other."""
    return _reason(kind, detail, code)
