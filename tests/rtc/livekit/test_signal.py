# SPDX-License-Identifier: GPL-3.0-or-later
"""Signalling with servers that a test scripts: those that refuse, fall silent, or speak rubbish."""

import asyncio
import base64
import contextlib
import http
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from livekit.protocol.models import DisconnectReason, ParticipantInfo
from livekit.protocol.rtc import (
    JoinRequest,
    JoinResponse,
    LeaveRequest,
    Pong,
    ReconnectResponse,
    SignalRequest,
    SignalResponse,
    WrappedJoinRequest,
)
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response

from sipbridge.rtc.livekit.signal import RefusedError, Signal, UnreachableError
from sipbridge.rtc.livekit.token import Entry
from tests.support.ports import free_port

Talk = Callable[[ServerConnection], Awaitable[None]]
JOIN = SignalResponse(
    join=JoinResponse(participant=ParticipantInfo(sid="PA_1"), ping_interval=1, ping_timeout=1)
)


class Told:
    """Who listens to the signalling."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.lost: list[str] = []

    def signalled(self, message: SignalResponse) -> None:
        self.messages.append(str(message.WhichOneof("message")))

    def signal_lost(self, detail: str) -> None:
        self.lost.append(detail)


@contextlib.asynccontextmanager
async def server(talk: Talk, refusal: int = 0) -> AsyncIterator[Entry]:
    """A server whose connections `talk`, or that refuses them with a status."""

    def answer(connection: ServerConnection, request: Request) -> Response | None:
        assert request.headers["Authorization"] == "Bearer token"
        if refusal:
            return connection.respond(http.HTTPStatus(refusal), "because I say so\n")
        return None

    async with serve(talk, "127.0.0.1", 0, process_request=answer, ping_interval=None) as listening:
        port = next(iter(listening.sockets)).getsockname()[1]
        yield Entry(f"http://127.0.0.1:{port}", "token")


async def joined(connection: ServerConnection) -> None:
    await connection.send(JOIN.SerializeToString())


async def resumed(connection: ServerConnection) -> None:
    await connection.send(SignalResponse(reconnect=ReconnectResponse()).SerializeToString())


def request_of(connection: ServerConnection) -> JoinRequest:
    """What the client asks for in its address."""
    assert connection.request is not None
    url = urllib.parse.urlsplit(connection.request.path)
    assert url.path == "/rtc/v1"
    wrapped, request = WrappedJoinRequest(), JoinRequest()
    wrapped.ParseFromString(base64.urlsafe_b64decode(urllib.parse.parse_qs(url.query)["join_request"][0]))
    request.ParseFromString(wrapped.join_request)
    return request


async def until(happened: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not happened():
            await asyncio.sleep(0.005)


def test_what_the_server_says_is_told() -> None:
    """What is none of its messages, and a text, end or are ignored; pongs are ours alone."""

    async def talk(connection: ServerConnection) -> None:
        await joined(connection)
        await connection.recv()
        await connection.send("a text")
        await connection.send(SignalResponse(refresh_token="x").SerializeToString())
        await connection.send(SignalResponse(pong_resp=Pong()).SerializeToString())
        await connection.send(b"\xff\xff\xff")
        await connection.wait_closed()

    async def main() -> None:
        told = Told()
        async with server(talk) as entry:
            signal = Signal(told)
            assert (await signal.open(entry, 5)).participant.sid == "PA_1"
            signal.send(SignalRequest(ping=1))
            await until(lambda: told.lost)
            assert told.messages == ["refresh_token"]
            assert told.lost == ["the server sends what is none of its messages"]
            signal.close()

    asyncio.run(main())


def test_pings_are_sent_and_a_silent_server_is_given_up() -> None:
    asked: list[str] = []

    async def talk(connection: ServerConnection) -> None:
        await joined(connection)
        async for data in connection:
            request = SignalRequest()
            assert isinstance(data, bytes)
            request.ParseFromString(data)
            asked.append(str(request.WhichOneof("message")))

    async def main() -> None:
        told = Told()
        async with server(talk) as entry:
            signal = Signal(told)
            await signal.open(entry, 5)
            await until(lambda: told.lost)
            assert "has said nothing for 1 s" in told.lost[0]
            assert set(asked) == {"ping_req"}

    asyncio.run(main())


def test_a_connection_that_goes_on_where_another_was_lost() -> None:
    """As the same participant; it is kept alive as often as the first."""
    asked: list[JoinRequest] = []
    pings: list[str] = []

    async def talk(connection: ServerConnection) -> None:
        asked.append(request_of(connection))
        if not asked[-1].reconnect:
            await joined(connection)
            connection.transport.abort()
            return
        await resumed(connection)
        async for data in connection:
            assert isinstance(data, bytes)
            pings.append(str(SignalRequest.FromString(data).WhichOneof("message")))

    async def main() -> None:
        told = Told()
        async with server(talk) as entry:
            first, second = Signal(told), Signal(told)
            await first.open(entry, 5)
            await until(lambda: told.lost)
            await second.resume(entry, "PA_1", first, 5)
            await until(lambda: pings)
            second.close()
        assert [request.reconnect for request in asked] == [False, True]
        assert [request.participant_sid for request in asked] == ["", "PA_1"]
        assert not any(request.connection_settings.auto_subscribe for request in asked)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("first", "complaint"),
    [
        (SignalResponse(leave=LeaveRequest(reason=DisconnectReason.STATE_MISMATCH)), "STATE_MISMATCH"),
        (JOIN, "began with join"),
    ],
)
def test_a_server_that_does_not_know_the_participant_any_more(first: SignalResponse, complaint: str) -> None:
    async def talk(connection: ServerConnection) -> None:
        await connection.send(first.SerializeToString())
        await connection.wait_closed()

    async def main() -> None:
        async with server(talk) as entry:
            signal = Signal(Told())
            with pytest.raises(RefusedError, match=complaint):
                await signal.resume(entry, "PA_1", Signal(Told()), 5)
            signal.close()

    asyncio.run(main())


def test_a_connection_that_breaks() -> None:
    """Is told once; after our own end nothing is."""

    async def talk(connection: ServerConnection) -> None:
        await joined(connection)
        await connection.recv()
        connection.transport.abort()

    async def main() -> None:
        for is_closed in (False, True):
            told = Told()
            async with server(talk) as entry:
                signal = Signal(told)
                await signal.open(entry, 5)
                signal.send(SignalRequest(ping=1))
                if is_closed:
                    signal.close()
                await asyncio.sleep(0.2)
                assert len(told.lost) == (0 if is_closed else 1)
                assert not any("agent" in detail for detail in told.lost)
                signal.send(SignalRequest(ping=2))

    asyncio.run(main())


@pytest.mark.parametrize(
    ("status", "error"),
    [(401, RefusedError), (404, RefusedError), (500, UnreachableError), (503, UnreachableError)],
)
def test_a_server_that_refuses(status: int, error: type[Exception]) -> None:
    """In its own words. One that is only ill at the moment may be asked again."""

    async def main() -> None:
        async with server(joined, status) as entry:
            with pytest.raises(error, match=f"{status} because I say so") as caught:
                await Signal(Told()).open(entry, 5)
            assert getattr(caught.value, "status", status) == status

    asyncio.run(main())


def test_a_server_that_is_too_old() -> None:
    """It takes the token, and does not know the way."""

    def answer(connection: ServerConnection, request: Request) -> Response:
        known = request.path == "/rtc/validate"
        return connection.respond(http.HTTPStatus.OK if known else http.HTTPStatus.NOT_FOUND, "")

    async def main() -> None:
        async with serve(joined, "127.0.0.1", 0, process_request=answer) as listening:
            port = next(iter(listening.sockets)).getsockname()[1]
            with pytest.raises(RefusedError, match="older than LiveKit 1"):
                await Signal(Told()).open(Entry(f"ws://127.0.0.1:{port}", "token"), 5)

    asyncio.run(main())


@pytest.mark.parametrize("is_closed", [False, True])
@pytest.mark.parametrize(
    ("first", "complaint"),
    [
        (SignalResponse(refresh_token="x"), "began with refresh_token"),
        (SignalResponse(leave=LeaveRequest(reason=DisconnectReason.JOIN_FAILURE)), "JOIN_FAILURE"),
        (SignalResponse(), "began with None"),
    ],
)
def test_a_server_that_does_not_begin_with_join(
    first: SignalResponse, complaint: str, is_closed: bool
) -> None:
    """Whether it stays or goes at once."""

    async def talk(connection: ServerConnection) -> None:
        await connection.send(first.SerializeToString())
        if not is_closed:
            await connection.wait_closed()

    async def main() -> None:
        async with server(talk) as entry:
            signal = Signal(Told())
            with pytest.raises(RefusedError, match=complaint):
                await signal.open(entry, 5)
            signal.close()

    asyncio.run(main())


def test_a_server_that_sends_everybody_away() -> None:
    """It is one that may be asked again, or whose neighbour may."""
    leave = LeaveRequest(
        reason=DisconnectReason.SERVER_SHUTDOWN, action=LeaveRequest.Action.RECONNECT, can_reconnect=True
    )

    async def talk(connection: ServerConnection) -> None:
        await connection.send(SignalResponse(leave=leave).SerializeToString())

    async def main() -> None:
        async with server(talk) as entry:
            with pytest.raises(UnreachableError, match="come again: SERVER_SHUTDOWN"):
                await Signal(Told()).open(entry, 5)

    asyncio.run(main())


def test_nobody_there_and_an_end_without_a_word() -> None:
    async def talk(connection: ServerConnection) -> None:
        connection.transport.abort()

    async def main() -> None:
        with pytest.raises(UnreachableError, match="cannot connect"):
            await Signal(Told()).open(Entry(f"ws://127.0.0.1:{free_port()}", "token"), 5)
        async with server(talk) as entry:
            told = Told()
            with pytest.raises(UnreachableError):
                await Signal(told).open(entry, 5)
            with pytest.raises(UnreachableError):
                await Signal(told).resume(entry, "PA_1", Signal(told), 5)
        assert told.lost == []  # whoever waits knows

    asyncio.run(main())
