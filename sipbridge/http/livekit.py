# SPDX-License-Identifier: GPL-3.0-or-later
"""LiveKit's requests of calls, as its server has them: ``CreateSIPParticipant``, ``TransferSIPParticipant``.

A program that dials with LiveKit's own client needs nothing but our address in place of the server's. Who
may is decided by LiveKit's token, made with the key and secret of ``[livekit]``. Errors are Twirp's; those
of a call carry the SIP code as LiveKit's do.
"""

import uuid
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from google.protobuf.empty_pb2 import Empty
from google.protobuf.json_format import MessageToDict, Parse, ParseError
from google.protobuf.message import DecodeError, Message
from livekit.protocol.sip import (
    CreateSIPParticipantRequest,
    SIPParticipantInfo,
    TransferSIPParticipantRequest,
)

from sipbridge import routing
from sipbridge.calls import CallRegistry, DialRequest
from sipbridge.config import LiveKitConfig
from sipbridge.errors import CallError, ConfigError, EndReason
from sipbridge.events import CallAnswered, CallEnded
from sipbridge.routing import SipUri
from sipbridge.rtc.base import ParticipantWish
from sipbridge.rtc.livekit.token import Grants, read_token
from sipbridge.rtc.token_server import TokenError

_PROTOBUF, _JSON = "application/protobuf", "application/json"
_TRANSPORTS = {1: "udp", 2: "tcp", 3: "tls"}

# https://twitchtv.github.io/twirp/docs/spec_v7.html#error-codes
_STATUS_OF_CODE = {
    "aborted": 409,
    "bad_route": 404,
    "deadline_exceeded": 408,
    "failed_precondition": 412,
    "invalid_argument": 400,
    "not_found": 404,
    "permission_denied": 403,
    "resource_exhausted": 429,
    "unauthenticated": 401,
    "unavailable": 503,
    "unimplemented": 501,
}
# As LiveKit's server tells the failures of a call.
_CODE_OF_SIP = {
    **dict.fromkeys((401, 403, 407, 603, 607, 608), "permission_denied"),
    **dict.fromkeys((404, 410, 604), "not_found"),
    **dict.fromkeys((408, 504), "deadline_exceeded"),
    **dict.fromkeys((480, 503), "unavailable"),
    **dict.fromkeys((486, 600), "resource_exhausted"),
    487: "aborted",
}


class _TwirpError(Exception):
    def __init__(self, code: str, message: str, **meta: str) -> None:
        super().__init__(message)
        self.code = code
        self.meta = meta


def make_livekit_routes(calls: CallRegistry, config: LiveKitConfig) -> APIRouter:
    """The routes, which need no token of the API."""
    routes = APIRouter(prefix="/twirp/livekit.SIP", include_in_schema=False)

    @routes.post("/{method}")
    async def call(method: str, request: Request) -> Response:
        try:
            return await _answer(calls, config, method, request)
        except _TwirpError as error:
            body = {"code": error.code, "msg": str(error), "meta": error.meta}
            return JSONResponse(body, _STATUS_OF_CODE[error.code])

    return routes


async def _answer(calls: CallRegistry, config: LiveKitConfig, method: str, request: Request) -> Response:
    grants = _read_grants(config, request)
    if method == "CreateSIPParticipant":
        if not (grants.sip.get("call") or grants.sip.get("admin")):
            raise _TwirpError("permission_denied", "the token has no grant sip.call")
        wanted = await _read(request, CreateSIPParticipantRequest())
        return _reply(request, await _create(calls, wanted))
    if method == "TransferSIPParticipant":
        transfer = await _read(request, TransferSIPParticipantRequest())
        admin = grants.video.get("roomAdmin") and grants.video.get("room") == transfer.room_name
        if not (admin and grants.sip.get("call")):
            raise _TwirpError("permission_denied", "the token needs roomAdmin of the room, and sip.call")
        await _transfer(calls, transfer)
        return _reply(request, Empty())
    if "SIP" in method:
        raise _TwirpError("unimplemented", f"{method}: trunks and rules are in the configuration file")
    raise _TwirpError("bad_route", f"there is no method {method}")


def _read_grants(config: LiveKitConfig, request: Request) -> Grants:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or config.api_secret is None:
        raise _TwirpError("unauthenticated", "this needs a token: Authorization: Bearer TOKEN")
    try:
        return read_token(token.strip(), config.api_key, config.api_secret.get_secret_value())
    except TokenError as error:
        raise _TwirpError("unauthenticated", f"the token is not valid: {error}") from None


async def _read[M: Message](request: Request, message: M) -> M:
    body = await request.body()
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if kind == _PROTOBUF:
            message.ParseFromString(body)
        elif kind == _JSON:
            Parse(body, message, ignore_unknown_fields=True)
        else:
            raise _TwirpError("bad_route", f"Content-Type is neither {_PROTOBUF} nor {_JSON}")
    except (DecodeError, ParseError, UnicodeDecodeError) as error:
        raise _TwirpError("invalid_argument", f"the request cannot be read: {error}") from None
    return message


def _reply(request: Request, message: Message) -> Response:
    if request.headers.get("content-type", "").startswith(_PROTOBUF):
        return Response(message.SerializeToString(), media_type=_PROTOBUF)
    return JSONResponse(MessageToDict(message, preserving_proto_field_name=True))


async def _create(calls: CallRegistry, wanted: CreateSIPParticipantRequest) -> SIPParticipantInfo:
    try:
        dial = _dial_of(wanted)
    except ValueError as error:
        raise _TwirpError("invalid_argument", str(error)) from None
    end: EndReason | None = None
    try:
        async with calls.events() as events:
            call_id = await calls.dial(dial)
            if wanted.wait_until_answered:
                async for event in events:
                    if event.call_id == call_id and isinstance(event, CallAnswered | CallEnded):
                        end = event.reason if isinstance(event, CallEnded) else None
                        break
    except ConfigError as error:
        raise _TwirpError("invalid_argument", str(error)) from None
    except CallError as error:
        end = error.reason
    if end is not None:
        raise _failure("the call", end)
    return SIPParticipantInfo(
        participant_identity=dial.participant.identity, room_name=wanted.room_name, sip_call_id=call_id
    )


async def _transfer(calls: CallRegistry, wanted: TransferSIPParticipantRequest) -> None:
    if not wanted.transfer_to:
        raise _TwirpError("invalid_argument", "transfer_to is missing: a sip: or tel: URI, or a number")
    if wanted.headers:
        raise _TwirpError("invalid_argument", "headers: a transfer carries none")
    try:
        call_id = calls.find_participant(f"livekit:{wanted.room_name}", wanted.participant_identity)
        await calls.transfer(call_id, wanted.transfer_to)
    except LookupError as error:
        raise _TwirpError("not_found", str(error)) from None
    except CallError as error:
        raise _failure("the transfer", error.reason) from None


def _failure(what: str, end: EndReason) -> _TwirpError:
    code = end.sip_code or end.code
    return _TwirpError(
        _CODE_OF_SIP.get(code, "failed_precondition" if code >= 500 else "invalid_argument"),
        f"{what} failed: sip status: {code} ({end.detail})",
        sip_status_code=str(code),
        sip_status=end.detail,
    )


def _dial_of(wanted: CreateSIPParticipantRequest) -> DialRequest:
    """The call that is asked for; ValueError says what of it cannot be done."""
    for name in ("room_name", "sip_call_to"):
        if not getattr(wanted, name):
            raise ValueError(f"{name} is missing")
    if wanted.krisp_enabled:
        raise ValueError("krisp_enabled: there is no noise cancellation here")
    if wanted.media_encryption:
        raise ValueError("media_encryption: it is set at the trunk, as srtp")
    if wanted.include_headers:
        raise ValueError("include_headers: the headers of an answer are not told")
    to, number = wanted.sip_call_to, wanted.sip_number
    if wanted.HasField("trunk"):
        to = _uri_of(wanted)
    elif not wanted.sip_trunk_id:
        raise ValueError("sip_trunk_id is missing: the name of a [[trunk]]")
    suffix = uuid.uuid4().hex[:12]
    identity = f"sip_{suffix}" if wanted.hide_phone_number else f"sip_{wanted.sip_call_to}_{suffix}"
    request: dict[str, Any] = {}
    if wanted.HasField("ringing_timeout"):
        request["ring_s"] = wanted.ringing_timeout.ToTimedelta().total_seconds()
    if wanted.HasField("max_call_duration"):
        request["max_duration_s"] = wanted.max_call_duration.ToTimedelta().total_seconds()
    for name, text in wanted.headers.items():
        routing.check_header(name, text)
    return DialRequest(
        to=to,
        trunk=wanted.sip_trunk_id,
        target=f"livekit:{wanted.room_name}",
        from_=str(SipUri("sip", number, "localhost", display=wanted.display_name)) if number else "",
        headers=dict(wanted.headers),
        dtmf=wanted.dtmf.replace("W", "w"),
        participant=ParticipantWish(
            identity=wanted.participant_identity or identity,
            name=wanted.participant_name,
            metadata=wanted.participant_metadata,
            attributes=dict(wanted.participant_attributes),
            hide_phone_number=wanted.hide_phone_number,
            dial_tone=wanted.play_dialtone or wanted.play_ringtone,
        ),
        **request,
    )


def _uri_of(wanted: CreateSIPParticipantRequest) -> str:
    """Of a request that brings its trunk along."""
    trunk = wanted.trunk
    if wanted.sip_trunk_id:
        raise ValueError("sip_trunk_id and trunk exclude each other")
    if trunk.auth_username or trunk.auth_password:
        raise ValueError("trunk.auth_username: who proves a password is a [[trunk]] of the configuration")
    if trunk.headers_to_attributes or trunk.attributes_to_headers:
        raise ValueError("trunk: headers and attributes are mapped in the configuration")
    host, port = routing.split_host_port(trunk.hostname)
    transport = _TRANSPORTS.get(trunk.transport)
    params = (("transport", transport),) if transport is not None else ()
    return SipUri("sip", routing.clean_number(wanted.sip_call_to), host, port, params).uri
