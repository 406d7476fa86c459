# SPDX-License-Identifier: GPL-3.0-or-later
"""A client of the API: the calls of a running server."""

import builtins
import ipaddress
import urllib.parse
from types import TracebackType
from typing import Any, Self

import httpx
from pydantic import BaseModel, ValidationError

from sipbridge.config import Config
from sipbridge.errors import CallError, ConfigError, SipbridgeError
from sipbridge.http import schema
from sipbridge.http.token import read_token, token_path
from sipbridge.routing import join_host_port, split_host_port

TIMEOUT_S = 10.0
TRANSFER_TIMEOUT_S = 75.0  # a telephone may let the other one ring


class ApiError(SipbridgeError):
    """The server refused a request, or gave no sensible answer to it."""


class NoServerError(ApiError):
    """No sipbridge answers at this address."""


class TokenError(ApiError):
    """A server is there, and we have no token that it takes."""


def api_url(listen: str) -> str:
    """The URL to reach a server that listens at ``host:port`` on this host."""
    host, port = split_host_port(listen)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{join_host_port(host, port)}"


def find_token(config: Config) -> str | None:
    """The first of ``[http] tokens``, else this user's own; None when there is neither."""
    for secret in config.http.tokens:
        return secret.get_secret_value()
    return read_token(token_path())


class ApiClient:
    """The calls of a running server. Use it as an async context manager.

    Its methods raise LookupError for a call that is not there, CallError and ConfigError for a call
    that cannot be made, and ApiError otherwise.
    """

    def __init__(
        self, url: str, token: str | None, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        """`transport` takes the place of the network, for tests."""
        self.url = url.rstrip("/")
        self._token = token
        self._http = httpx.AsyncClient(
            base_url=self.url,
            timeout=TIMEOUT_S,
            transport=transport,
            trust_env=not _is_on_this_host(url),  # no proxy gets our token on its way to ourselves
        )

    async def __aenter__(self) -> Self:
        """Makes sure that it is a sipbridge; only then is the token shown to it.

        NoServerError when it is none, TokenError when it does not take our token.
        """
        try:
            await self._check_server()
        except BaseException:
            await self._http.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def _check_server(self) -> None:
        try:
            answer = await self._http.get("/healthz")
            body = answer.json()
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
                raise NoServerError(f"no server answers at {self.url}") from None
            raise NoServerError(f"what answers at {self.url} is no sipbridge") from None
        is_own = isinstance(body, dict) and body.get("service") == "sipbridge"
        if not is_own and not (answer.status_code == 503 and _is_problem(answer)):
            raise NoServerError(f"what answers at {self.url} is no sipbridge")
        if self._token is None:
            raise TokenError(f"the server at {self.url} wants a token, and this user has none")
        self._http.headers["Authorization"] = f"Bearer {self._token}"
        await self.list()

    async def list(self) -> builtins.list[schema.Call]:
        """All calls."""
        answer = await self._ask("GET", "/v1/calls")
        return self._read(schema.Calls, answer).calls

    async def get(self, call_id: str) -> schema.Call:
        """One call."""
        answer = await self._ask("GET", _path(call_id), call_id=call_id)
        return self._read(schema.Call, answer)

    async def dial(self, body: schema.Dial) -> str:
        """Begins a call and returns its id."""
        answer = await self._ask("POST", "/v1/calls", body.model_dump(mode="json", by_alias=True))
        return self._read(schema.Call, answer).id

    async def hangup(self, call_id: str) -> None:
        """Ends a call."""
        await self._ask("POST", _path(call_id) + "/hangup", call_id=call_id)

    async def rebridge(self, call_id: str, target: str) -> None:
        """Takes a call to another channel."""
        await self._ask("POST", _path(call_id) + "/rebridge", {"target": target}, call_id)

    async def send_dtmf(self, call_id: str, digits: str) -> None:
        """Sends digits; ``w`` waits half a second."""
        await self._ask("POST", _path(call_id) + "/dtmf", {"digits": digits}, call_id)

    async def transfer(self, call_id: str, to: str) -> None:
        """Sends the telephone elsewhere, and returns once it is there."""
        await self._ask("POST", _path(call_id) + "/transfer", {"to": to}, call_id, TRANSFER_TIMEOUT_S)

    async def rooms(self) -> builtins.list[schema.Room]:
        """All rooms."""
        answer = await self._ask("GET", "/v1/rooms")
        return self._read(schema.Rooms, answer).rooms

    async def link(self, room: str, ttl_s: int) -> schema.Link:
        """A link that lets browsers into a room."""
        path = f"/v1/rooms/{urllib.parse.quote(room, safe='')}/link"
        return self._read(schema.Link, await self._ask("POST", path, {"ttl_s": ttl_s}))

    async def _ask(
        self, method: str, path: str, body: Any = None, call_id: str = "", timeout_s: float = TIMEOUT_S
    ) -> httpx.Response:
        try:
            answer = await self._http.request(method, path, json=body, timeout=timeout_s)
        except httpx.HTTPError as error:
            what = str(error) or type(error).__name__
            raise ApiError(f"the server at {self.url} is gone: {what}") from None
        if answer.is_success:
            return answer
        if not _is_problem(answer):
            raise ApiError(f"{self.url}{path} answered {answer.status_code}")
        problem = self._read(schema.Problem, answer)
        if answer.status_code == 401:
            raise TokenError(f"the server at {self.url} does not take this user's token")
        if answer.status_code == 404 and call_id and problem.reason is None:
            raise LookupError(problem.detail)
        if problem.reason is not None:
            raise CallError(problem.reason.to_reason())
        if answer.status_code == 422:
            raise ConfigError(problem.detail)
        raise ApiError(problem.detail)

    def _read[T: BaseModel](self, model: type[T], answer: httpx.Response) -> T:
        try:
            return model.model_validate_json(answer.content)
        except ValidationError:
            raise ApiError(f"the answer of {self.url} is not understood; is it of this version?") from None


def _path(call_id: str) -> str:
    return f"/v1/calls/{urllib.parse.quote(call_id, safe='')}"


def _is_problem(answer: httpx.Response) -> bool:
    return str(answer.headers.get("content-type")).startswith("application/problem+json")


def _is_on_this_host(url: str) -> bool:
    host = urllib.parse.urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
