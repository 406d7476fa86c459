# SPDX-License-Identifier: GPL-3.0-or-later
"""What the end of a membership means for the call, and memberships with a server that a test scripts."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from livekit.protocol.models import DisconnectReason, ParticipantInfo, SpeakerInfo
from livekit.protocol.rtc import (
    JoinResponse,
    LeaveRequest,
    ParticipantUpdate,
    RegionInfo,
    RegionSettings,
    SignalResponse,
    SpeakersChanged,
)
from websockets.asyncio.server import ServerConnection, serve

from sipbridge.config import WebRtcConfig
from sipbridge.errors import EndKind, Party, RtcError
from sipbridge.rtc.livekit.session import MediaError, Session, end_of
from sipbridge.rtc.livekit.token import Entry
from tests.support.fake_bank import FakeMedia

DISCONNECT = LeaveRequest.Action.DISCONNECT
# A membership that ended so is made again.
AGAIN = {
    *("SERVER_SHUTDOWN", "STATE_MISMATCH", "JOIN_FAILURE", "MIGRATION", "SIGNAL_CLOSE"),
    *("CONNECTION_TIMEOUT", "MEDIA_FAILURE", "AGENT_ERROR"),
}


@pytest.mark.parametrize("name", DisconnectReason.keys())
def test_every_reason_ends_the_call_or_has_it_join_again(name: str) -> None:
    """In words of its own."""
    end = end_of(LeaveRequest(reason=name, action=DISCONNECT))
    if name in AGAIN:
        assert end is None
    else:
        assert end is not None
        assert end.by is Party.CHANNEL
        assert end.detail.startswith("LiveKit: ")
        assert end.kind in (*(EndKind.CHANNEL_CLOSED, EndKind.ALONE, EndKind.UNAVAILABLE, EndKind.DECLINED),)


def test_reasons_differ() -> None:
    """Those that people ask about can be told apart."""
    names = ("ROOM_DELETED", "PARTICIPANT_REMOVED", "DUPLICATE_IDENTITY", "ROOM_CLOSED")
    ends = [end_of(LeaveRequest(reason=name, action=DISCONNECT)) for name in names]
    assert len({end.detail for end in ends if end is not None}) == len(names)


def test_a_server_that_asks_us_to_come_again() -> None:
    """Whatever its reason, in its old words and its new ones."""
    for action in (LeaveRequest.Action.RESUME, LeaveRequest.Action.RECONNECT):
        assert end_of(LeaveRequest(reason=DisconnectReason.ROOM_DELETED, action=action)) is None
    assert end_of(LeaveRequest(reason=DisconnectReason.UNKNOWN_REASON, can_reconnect=True)) is None


# ---------------------------------------------------------------- with a server


class Listener:
    """Looks who speaks whenever it is told so."""

    def __init__(self) -> None:
        self.session: Session
        self.speakers: list[dict[str, float]] = []

    def speakers_changed(self) -> None:
        self.speakers.append(dict(self.session.speakers))

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *told: None


def joining(
    says: Sequence[SignalResponse], work: Callable[[Listener], Awaitable[None]] | None = None
) -> tuple[Session, BaseException | None]:
    """A membership at a server that says this once it has let us in, and why it could not be joined.

    It ends with `work`, if there is any.
    """
    me = ParticipantInfo(sid="PA_1", identity="me")
    others = [ParticipantInfo(sid="PA_2", identity="bob"), ParticipantInfo(sid="PA_3", identity="eve")]
    join = SignalResponse(join=JoinResponse(participant=me, other_participants=others))

    async def talk(connection: ServerConnection) -> None:
        for message in (join, *says):
            await connection.send(message.SerializeToString())
        await connection.wait_closed()

    async def main() -> tuple[Session, BaseException | None]:
        async with serve(talk, "127.0.0.1", 0) as server:
            port = next(iter(server.sockets)).getsockname()[1]
            listener: Any = Listener()
            webrtc = WebRtcConfig(bind_address="127.0.0.1")
            session = listener.session = Session(listener, webrtc, FakeMedia().remotes, "c1", resume_s=1.0)
            joins = asyncio.ensure_future(session.join(Entry(f"ws://127.0.0.1:{port}", "token"), 5.0))
            async with asyncio.timeout(10):
                await (work(listener) if work is not None else asyncio.wait([joins]))
            error = joins.exception() if joins.done() else None
            joins.cancel()
            await session.close()
            return session, error

    return asyncio.run(main())


def test_who_speaks_by_their_identities() -> None:
    """Only what has changed is said, and not that somebody has left or has no track any more.

    Whom nobody knows is nobody.
    """

    def says(*speakers: tuple[str, float, bool]) -> SignalResponse:
        infos = [SpeakerInfo(sid=sid, level=level, active=active) for sid, level, active in speakers]
        return SignalResponse(speakers_changed=SpeakersChanged(speakers=infos))

    gone = ParticipantInfo(sid="PA_3", identity="eve", state=ParticipantInfo.State.DISCONNECTED)
    silent = ParticipantInfo(sid="PA_2", identity="bob", state=ParticipantInfo.State.ACTIVE)
    messages = [
        says(("PA_1", 0.25, True), ("PA_3", 0.1, True), ("PA_9", 1.0, True)),
        says(("PA_2", 0.5, True), ("PA_1", 0.0, False)),
        SignalResponse(update=ParticipantUpdate(participants=[gone])),
        says(("PA_2", 0.75, True), ("PA_9", 0.0, False)),
        SignalResponse(update=ParticipantUpdate(participants=[silent])),
    ]

    async def work(listener: Listener) -> None:
        while len(listener.speakers) < len(messages):
            await asyncio.sleep(0.01)
        assert listener.speakers == [
            {"me": 0.25, "eve": 0.1},
            {"bob": 0.5, "eve": 0.1},
            {"bob": 0.5},
            {"bob": 0.75},
            {},
        ]

    joining(messages, work)


def test_where_the_server_wants_us() -> None:
    """As it says when it sends us away, for the one who joins again."""
    regions = RegionSettings(regions=[RegionInfo(url="https://b"), RegionInfo(), RegionInfo(url="https://a")])
    leave = LeaveRequest(action=LeaveRequest.Action.RECONNECT, regions=regions)
    session, error = joining([SignalResponse(leave=leave)])
    assert session.regions == ("https://b", "https://a")
    assert isinstance(error, MediaError)
    assert "asks us to come again" in str(error)


def test_an_end_before_audio_flows() -> None:
    """Is the same end as after that."""
    _, error = joining([SignalResponse(leave=LeaveRequest(reason=DisconnectReason.ROOM_DELETED))])
    assert isinstance(error, RtcError)
    assert error.reason.kind is EndKind.CHANNEL_CLOSED
    assert "the room was deleted" in error.reason.detail
