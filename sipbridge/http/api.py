# SPDX-License-Identifier: GPL-3.0-or-later
"""The routes of the API, and its errors as problem details (RFC 9457).

Everything runs on the event loop, as the registry does. ``/openapi.json`` is complete by itself; the
page at ``/docs`` that shows it loads its script from the network.
"""

import asyncio
import http
import json
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Response, WebSocket
from fastapi.exceptions import RequestValidationError, ValidationException, WebSocketRequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sipbridge import __version__
from sipbridge.calls import CallRegistry
from sipbridge.config import LiveKitConfig
from sipbridge.errors import (
    CallError,
    ConfigError,
    EndKind,
    EndReason,
    MediaError,
    RtcError,
    SipbridgeError,
)
from sipbridge.events import CallAnswered, CallEnded, CallEvent
from sipbridge.http import schema
from sipbridge.http.browser import OtherOrigins, make_browser_routes
from sipbridge.http.links import RoomLinks
from sipbridge.http.socket import AcceptedSocket
from sipbridge.http.token import is_token

MAX_BODY_BYTES = 65_536
KEEP_ALIVE_S = 15.0  # a stream of events without any shows that it lives, so that proxies keep it
HEALTH_TIMEOUT_S = 5.0

_DESCRIPTION = """
Calls are made, watched and ended here. All of `/v1` wants `Authorization: Bearer TOKEN`. The token of
the user who runs the server is in `~/.local/state/sipbridge/api-token`; more can be given in `[http]
tokens` of the configuration. Errors are problem details (`application/problem+json`, RFC 9457).
"""

_STATUS_OF_KIND = {
    EndKind.NOT_FOUND: 404,
    EndKind.FORBIDDEN: 403,
    EndKind.OVERLOAD: 503,
    EndKind.SHUTDOWN: 503,
    EndKind.ERROR: 500,
}


def create_api(
    calls: CallRegistry,
    tokens: Collection[str],
    closing: asyncio.Event,
    livekit: LiveKitConfig | None = None,
) -> FastAPI:
    """The API over `calls`. Streams of events end once `closing` is set.

    With `livekit` it also takes LiveKit's own requests to dial out.
    """
    api = FastAPI(
        title="sipbridge",
        version=__version__,
        description=_DESCRIPTION,
        redoc_url=None,
        redirect_slashes=False,
        responses=_PROBLEMS,
    )
    links = RoomLinks(tokens)
    routers = [
        _make_health_routes(calls),
        _make_call_routes(calls, closing),
        make_browser_routes(calls, links),
    ]
    if livekit is not None and livekit.api_secret is not None:
        from sipbridge.http.livekit import make_livekit_routes

        routers.append(make_livekit_routes(calls, livekit))
    for router in routers:
        api.include_router(router)
    api.include_router(_make_socket_routes(calls))
    api.state.routes = [route for router in routers for route in router.routes]
    api.add_middleware(_Limits, tokens=tuple(tokens), links=links)
    api.add_middleware(OtherOrigins)  # before it: a browser asks without a token whether it may
    api.add_exception_handler(StarletteHTTPException, _on_http_error)
    api.add_exception_handler(RequestValidationError, _on_invalid_request)
    api.add_exception_handler(WebSocketRequestValidationError, _on_invalid_socket)
    api.add_exception_handler(SipbridgeError, _on_own_error)
    api.add_exception_handler(Exception, _on_fault)
    return api


# ---------------------------------------------------------------- routes


def _make_call_routes(calls: CallRegistry, closing: asyncio.Event) -> APIRouter:
    # The scheme is for OpenAPI; `_Limits` has checked the token before anything of the body was read.
    routes = APIRouter(prefix="/v1", dependencies=[Depends(HTTPBearer(auto_error=False))])

    async def find(call_id: str) -> schema.Call:
        try:
            return schema.Call.from_view(await calls.get(call_id))
        except LookupError:
            raise _no_such_call(call_id) from None

    @routes.post("/calls", status_code=201, tags=["calls"], summary="Dial")
    async def dial(
        body: schema.Dial,
        response: Response,
        wait: Annotated[
            Literal["answered"] | None,
            Query(description="`answered`: reply once the call was answered or has ended."),
        ] = None,
    ) -> schema.Call:
        """Calls `to` and connects it with `target`.

        Replies at once with a call that may still fail: its `state` and `end` tell. A call goes on when
        whoever asked for it disconnects.
        """
        async with AsyncExitStack() as stack:
            # From before the call begins, so that none of its events is missed.
            events = await stack.enter_async_context(calls.events()) if wait else None
            call_id = await calls.dial(body.to_request())
            if events is not None:
                async for event in events:
                    if event.call_id == call_id and isinstance(event, CallAnswered | CallEnded):
                        break
        response.headers["Location"] = f"/v1/calls/{call_id}"
        return await find(call_id)

    @routes.get("/calls", tags=["calls"], summary="All calls")
    async def list_calls() -> schema.Calls:
        """Every call there is at the moment."""
        return schema.Calls(calls=[schema.Call.from_view(view) for view in await calls.list()])

    @routes.get("/calls/{call_id}", tags=["calls"], summary="One call")
    async def get_call(call_id: str) -> schema.Call:
        """The call as it is at the moment. One that ended stays visible for a minute, with its reason."""
        return await find(call_id)

    @routes.post("/calls/{call_id}/hangup", status_code=204, tags=["calls"], summary="Hang up")
    async def hang_up(call_id: str) -> None:
        """Ends the call. It is over once its state is `ended`."""
        try:
            await calls.hangup(call_id)
        except LookupError:
            raise _no_such_call(call_id) from None

    @routes.post("/calls/{call_id}/dtmf", status_code=204, tags=["calls"], summary="Send digits")
    async def send_dtmf(call_id: str, body: schema.Digits) -> None:
        """Queues digits, sent one after the other by the method of the trunk."""
        try:
            await calls.send_dtmf(call_id, body.digits)
        except LookupError:
            raise _no_such_call(call_id) from None
        except ValueError as error:
            raise HTTPException(422, str(error)) from None

    @routes.post("/calls/{call_id}/transfer", status_code=204, tags=["calls"], summary="Transfer")
    async def transfer(call_id: str, body: schema.Transfer) -> None:
        """Asks the telephone to call somebody else (REFER, blind). Replies once it is there, and the call
        ends; the error says why it stays."""
        try:
            await calls.transfer(call_id, body.to)
        except LookupError:
            raise _no_such_call(call_id) from None

    @routes.post("/calls/{call_id}/hold", status_code=204, tags=["calls"], summary="Hold")
    async def hold(call_id: str) -> None:
        """The telephone waits in silence, and is heard by nobody."""
        try:
            await calls.hold(call_id, True)
        except LookupError:
            raise _no_such_call(call_id) from None

    @routes.post("/calls/{call_id}/unhold", status_code=204, tags=["calls"], summary="Take back from hold")
    async def unhold(call_id: str) -> None:
        """The end of a hold."""
        try:
            await calls.hold(call_id, False)
        except LookupError:
            raise _no_such_call(call_id) from None

    @routes.post("/calls/{call_id}/rebridge", status_code=204, tags=["calls"], summary="Change the channel")
    async def rebridge(call_id: str, body: schema.Rebridge) -> None:
        """Joins `target`, and then leaves the channel that the call has. When that fails, it stays there."""
        try:
            await calls.rebridge(call_id, body.target)
        except LookupError:
            raise _no_such_call(call_id) from None
        except ValueError as error:
            raise HTTPException(409, str(error)) from None

    @routes.get("/rooms", tags=["rooms"], summary="All rooms")
    async def list_rooms() -> schema.Rooms:
        """The `local:` rooms that have members."""
        return schema.Rooms(rooms=[schema.Room.from_view(view) for view in calls.rooms()])

    @routes.get(
        "/rooms/{room}/audio",
        tags=["rooms"],
        summary="Join a room with a program",
        status_code=101,
        response_class=Response,
        responses={101: {"description": "The WebSocket is open, and the program in the room."}},
    )
    async def join_room(room: str, program: Annotated[schema.Program, Query()]) -> Response:
        """A WebSocket: the program hears all others in the `local:` room and is heard by them, sees keys
        and messages, and may send its own. docs/agents.md has the protocols; a program takes the side that
        an agent has there."""
        raise HTTPException(426, "this is a WebSocket", {"Upgrade": "websocket"})

    @routes.get(
        "/events",
        tags=["events"],
        summary="What happens, as it happens",
        response_class=Response,
        responses={200: {"description": "Server-sent events.", "content": {"text/event-stream": {}}}},
    )
    async def stream_events() -> Response:
        """A stream of server-sent events: `event` is the name, as `call.ended`; `data` is JSON with
        `event`, `call_id`, `at` (Unix time) and what belongs to the event."""
        return _EventStream(calls.events(), closing)

    return routes


def _make_socket_routes(calls: CallRegistry) -> APIRouter:
    """What is spoken over WebSockets; OpenAPI has the requests that open them above."""
    routes = APIRouter(prefix="/v1")

    @routes.websocket("/rooms/{room}/audio")
    async def join_room(socket: WebSocket, room: str, program: Annotated[schema.Program, Query()]) -> None:
        try:
            member = calls.make_program(room, **dict(program))
        except (ValueError, LookupError, ImportError) as error:
            await socket.send_denial_response(_problem(422, str(error)))
            return
        await socket.accept(subprotocol=member.subprotocol or None)
        transport = AcceptedSocket(socket, member.session)
        carrying = asyncio.ensure_future(transport.run())
        try:
            await member.stay(transport)
        finally:
            await carrying

    return routes


def _make_health_routes(calls: CallRegistry) -> APIRouter:
    routes = APIRouter(tags=["health"])

    @routes.get("/healthz", summary="Is it alive")
    async def health() -> schema.Health:
        """200 with its counters while the SIP engine answers; 503 when it does not. Needs no token."""
        try:
            counters = await asyncio.wait_for(calls.health(), HEALTH_TIMEOUT_S)
        except TimeoutError:
            raise HTTPException(503, "the SIP engine does not answer") from None
        return schema.Health(version=__version__, draining=calls.draining, counters=counters)

    @routes.get("/readyz", summary="Does it take calls")
    async def readiness() -> schema.Readiness:
        """200 while new calls are taken; 503 while draining. Needs no token."""
        if calls.draining:
            raise HTTPException(503, "draining: new calls are refused")
        return schema.Readiness()

    return routes


class _EventStream(Response):
    """Server-sent events of a subscription, which ends with the connection or with `closing`."""

    media_type = "text/event-stream"

    def __init__(
        self,
        subscription: AbstractAsyncContextManager[AsyncIterator[CallEvent]],
        closing: asyncio.Event,
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._subscription = subscription
        self._closing = closing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Subscribed before the first byte: a client that has the headers misses nothing.
        async with self._subscription as events, asyncio.TaskGroup() as tasks:
            ended = [
                tasks.create_task(_wait_for_disconnect(receive)),
                tasks.create_task(_wait_for(self._closing)),
            ]
            next_event = tasks.create_task(_next(events))
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await _send_chunk(send, b": listening\n\n")
            try:
                while True:
                    done, _ = await asyncio.wait(
                        (*ended, next_event), timeout=KEEP_ALIVE_S, return_when=asyncio.FIRST_COMPLETED
                    )
                    if not done.isdisjoint(ended):
                        break
                    if next_event not in done:
                        await _send_chunk(send, b":\n\n")
                        continue
                    event = next_event.result()
                    if event is None:
                        break
                    await _send_chunk(send, _encode_event(event))
                    next_event = tasks.create_task(_next(events))
            finally:
                for task in (*ended, next_event):
                    task.cancel()
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _next(events: AsyncIterator[CallEvent]) -> CallEvent | None:
    return await anext(events, None)


async def _wait_for(event: asyncio.Event) -> None:
    await event.wait()


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send_chunk(send: Send, chunk: bytes) -> None:
    await send({"type": "http.response.body", "body": chunk, "more_body": True})


def _encode_event(event: CallEvent) -> bytes:
    data = json.dumps(event.as_dict())
    return f"event: {event.name}\ndata: {data}\n\n".encode()


# ---------------------------------------------------------------- before a route


class _Limits:
    """Asks for the token under ``/v1``, then bounds the body; nothing is read before that."""

    def __init__(self, app: ASGIApp, tokens: tuple[str, ...], links: RoomLinks) -> None:
        self._app = app
        self._tokens = tokens
        self._links = links

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        authorization = headers.get(b"authorization", b"")
        if scope["path"].startswith("/v1") and not self._may_enter(scope["path"], authorization):
            response = _problem(
                401, "this needs a valid token: Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"}
            )
            await response(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await self._app(scope, receive, send)
            return
        try:
            body = await _read_body(headers, receive)
        except _TooLargeError:
            await _problem(413, f"a body has at most {MAX_BODY_BYTES} bytes")(scope, receive, send)
            return
        if body is None:
            return  # the client left

        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def replay() -> Message:
            return next(messages, None) or await receive()

        await self._app(scope, replay, send)

    def _may_enter(self, path: str, authorization: bytes) -> bool:
        scheme, _, token = authorization.partition(b" ")
        token = token.strip()
        return scheme.lower() == b"bearer" and (
            is_token(token, self._tokens) or self._links.admits(path, token)
        )


class _TooLargeError(Exception):
    pass


async def _read_body(headers: Mapping[bytes, bytes], receive: Receive) -> bytes | None:
    length = headers.get(b"content-length", b"0")
    if not length.isdigit() or int(length) > MAX_BODY_BYTES:
        raise _TooLargeError
    body = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > MAX_BODY_BYTES:
            raise _TooLargeError
    return bytes(body)


# ---------------------------------------------------------------- errors


class _ProblemResponse(JSONResponse):
    media_type = "application/problem+json"


def _problem(
    status: int,
    detail: str,
    headers: Mapping[str, str] | None = None,
    errors: list[schema.FieldProblem] | None = None,
    reason: EndReason | None = None,
) -> Response:
    body = schema.Problem(
        title=http.HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        errors=errors,
        reason=None if reason is None else schema.Reason.from_reason(reason),
    )
    return _ProblemResponse(body.model_dump(mode="json", exclude_none=True), status, headers)


_PROBLEMS: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "An error: problem details (RFC 9457).",
        "content": {
            "application/problem+json": {
                "schema": {
                    "type": "object",
                    "required": ["type", "title", "status", "detail"],
                    "properties": {
                        "type": {"type": "string"},
                        "title": {"type": "string"},
                        "status": {"type": "integer"},
                        "detail": {"type": "string"},
                        "errors": {
                            "type": "array",
                            "description": "Each place that is wrong.",
                            "items": {
                                "type": "object",
                                "properties": {"field": {"type": "string"}, "detail": {"type": "string"}},
                            },
                        },
                        "reason": {
                            "description": "Why a call could not be made.",
                            "$ref": "#/components/schemas/Reason",
                        },
                    },
                }
            }
        },
    }
}


def _no_such_call(call_id: str) -> HTTPException:
    return HTTPException(404, f"there is no call {call_id!r}")


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    headers = dict(error.headers or {})
    if error.status_code == 503:
        headers.setdefault("Retry-After", "10")
    if error.status_code == 405:
        # The framework names the methods of the first route at this path alone.
        headers["Allow"] = ", ".join(_methods_at(request))
    detail = error.detail
    if detail == http.HTTPStatus(error.status_code).phrase:  # the framework's own, which says nothing
        detail = {404: "there is nothing at this path", 405: "this path has other methods"}.get(
            error.status_code, detail
        )
    return _problem(error.status_code, detail, headers)


def _methods_at(request: Request) -> list[str]:
    routes = [route for route in request.app.state.routes if isinstance(route, APIRoute)]
    at_path = [route for route in routes if route.path_regex.match(request.url.path)]
    return sorted({method for route in at_path for method in route.methods or ()})


async def _on_invalid_request(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return _invalid(error)


async def _on_invalid_socket(socket: WebSocket, error: Exception) -> None:
    assert isinstance(error, WebSocketRequestValidationError)
    await socket.send_denial_response(_invalid(error))


def _invalid(error: ValidationException) -> Response:
    errors = []
    for item in error.errors():
        place = [str(part) for part in item["loc"] if part not in ("body", "query", "path")]
        if item["type"] == "json_invalid":
            place = ["body"]
        message = str(item["msg"]).removeprefix("Value error, ")
        errors.append(schema.FieldProblem(field=".".join(place) or "body", detail=message))
    return _problem(422, "; ".join(f"{item.field}: {item.detail}" for item in errors), errors=errors)


async def _on_own_error(_: Request, error: Exception) -> Response:
    if isinstance(error, CallError | RtcError):
        status = _STATUS_OF_KIND.get(error.reason.kind, 502)
        headers = {"Retry-After": "10"} if status == 503 else None
        return _problem(status, str(error), headers, reason=error.reason)
    if isinstance(error, ConfigError):
        errors = [schema.FieldProblem(field=e.key, detail=e.message) for e in error.errors if e.key]
        return _problem(422, str(error), errors=errors or None)
    return _problem(422 if isinstance(error, MediaError) else 500, str(error))


async def _on_fault(_: Request, __: Exception) -> Response:
    return _problem(500, "a fault of the server; its log says more")
