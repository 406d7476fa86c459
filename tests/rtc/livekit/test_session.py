# SPDX-License-Identifier: GPL-3.0-or-later
"""What the end of a membership means for the call."""

import pytest
from livekit.protocol.models import DisconnectReason
from livekit.protocol.rtc import LeaveRequest

from sipbridge.errors import EndKind, Party
from sipbridge.rtc.livekit.session import end_of

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
