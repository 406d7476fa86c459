# SPDX-License-Identifier: GPL-3.0-or-later
"""Rooms for browsers: the page, links to it, and WebRTC in WHIP's manner (RFC 9725)."""

import urllib.parse
from importlib import resources
from typing import Annotated

from fastapi import APIRouter, Depends, Header, HTTPException, Query, Request, Response
from fastapi.security import HTTPBearer
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from sipbridge.calls import CallRegistry
from sipbridge.errors import EndKind, RtcError
from sipbridge.http import schema
from sipbridge.http.links import WEBRTC_PATH, RoomLinks, room_url

SDP = "application/sdp"
_PAGE_TYPES = {"room.html": "text/html", "room.js": "text/javascript", "room.css": "text/css"}
# All that the page needs comes from here; sound comes by WebRTC.
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
    " img-src data:; media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Permissions-Policy": "microphone=(self), camera=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}
_SDP_BODY = {"content": {SDP: {"schema": {"type": "string"}}}}


def make_browser_routes(calls: CallRegistry, links: RoomLinks) -> APIRouter:
    """``/v1/rooms/{room}/webrtc`` and ``link``, ``/rooms/{room}``."""
    routes = APIRouter()
    api = APIRouter(prefix="/v1", tags=["rooms"], dependencies=[Depends(HTTPBearer(auto_error=False))])

    @api.post(
        "/rooms/{room}/webrtc",
        status_code=201,
        summary="Join a room by WebRTC",
        response_class=Response,
        responses={201: {"description": "The SDP answer. `Location` is what DELETE ends.", **_SDP_BODY}},
        openapi_extra={"requestBody": {"required": True, **_SDP_BODY}},
    )
    async def join(
        room: str,
        request: Request,
        content_type: Annotated[str, Header()] = "",
        name: Annotated[str, Query(max_length=64, description="Among the members; one is made up.")] = "",
    ) -> Response:
        """Takes an SDP offer with an audio section, as WHIP and WHEP clients send it, and puts its sender
        into the `local:` room. All candidates stand in the answer. Besides the API's tokens that of a link
        to the room lets in."""
        if content_type.partition(";")[0].strip().lower() != SDP:
            raise HTTPException(415, f"the body is an SDP offer, and Content-Type {SDP}")
        offer = (await request.body()).decode("utf-8", "replace")
        try:
            member, answer = await calls.join_browser(room, name, offer)
        except ValueError as error:
            raise HTTPException(422, str(error)) from None
        except RtcError as error:
            if error.reason.kind is not EndKind.NOT_ACCEPTABLE:
                raise
            raise HTTPException(406, str(error)) from None
        location = f"/v1/rooms/{urllib.parse.quote(room, safe='')}/webrtc/{member}"
        return Response(answer, 201, {"Location": location, "Cache-Control": "no-store"}, SDP)

    @api.delete("/rooms/{room}/webrtc/{member}", summary="Leave it")
    async def leave(room: str, member: str) -> None:
        """Ends the connection."""
        try:
            await calls.leave_browser(room, member)
        except LookupError as error:
            raise HTTPException(404, str(error)) from None

    @api.post("/rooms/{room}/link", status_code=201, summary="A link to a room")
    async def make_link(room: str, body: schema.LinkWish, request: Request) -> schema.Link:
        """The URL of a page where a browser joins the room, and nothing else of the API, for some time."""
        token, end = links.make(room, body.ttl_s)
        return schema.Link(url=room_url(str(request.base_url), room, token), token=token, expires_at=end)

    @routes.get("/rooms/{room}", include_in_schema=False)
    async def show_page(room: str) -> Response:
        return _page("room.html")

    @routes.get("/pages/{name}", include_in_schema=False)
    async def show_part(name: str) -> Response:
        if name not in _PAGE_TYPES:
            raise HTTPException(404, "there is nothing at this path")
        return _page(name)

    routes.include_router(api)
    return routes


class OtherOrigins:
    """Lets pages of other servers speak WHIP, and nothing else. No cookie lets anybody in, only a token."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._open = CORSMiddleware(
            app,
            allow_origins=["*"],
            allow_methods=["POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=["Location"],
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_open = scope["type"] == "http" and WEBRTC_PATH.fullmatch(scope["path"])
        await (self._open if is_open else self._app)(scope, receive, send)


def _page(name: str) -> Response:
    content = resources.files("sipbridge.http").joinpath("pages", name).read_bytes()
    return Response(content, 200, _PAGE_HEADERS, _PAGE_TYPES[name])
