# SPDX-License-Identifier: GPL-3.0-or-later
"""`local:ROOM`: a room inside this process, whose members hear all others and not themselves."""

from sipbridge.errors import EndReason
from sipbridge.media import tones
from sipbridge.media.loop import Room
from sipbridge.routing import Target
from sipbridge.rtc.base import JoinRequest, PlaybackQueue, RtcConnection, RtcContext, RtcListener


class LocalRooms:
    """Who is in which room. Event loop."""

    def __init__(self) -> None:
        self._members: dict[str, list[LocalConnection]] = {}

    def members(self) -> dict[str, tuple[str, ...]]:
        """The call ids in each room, in the order of their coming."""
        return {room: tuple(member.call_id for member in members) for room, members in self._members.items()}

    def others(self, connection: "LocalConnection") -> list["LocalConnection"]:
        return [member for member in self._members.get(connection.room, []) if member is not connection]

    def add(self, connection: "LocalConnection") -> None:
        self._members.setdefault(connection.room, []).append(connection)

    def remove(self, connection: "LocalConnection") -> None:
        members = self._members.get(connection.room, [])
        if connection in members:
            members.remove(connection)
        if not members:
            self._members.pop(connection.room, None)


class LocalConnection(RtcConnection):
    """A member of a room. All rooms are mixed in one step of the media loop, at once."""

    def __init__(self, target: Target, context: RtcContext) -> None:
        super().__init__(target, context)
        if not target.address:
            raise ValueError("expected local:ROOM")
        self.room = target.address
        self.call_id = ""
        self._closed = False
        self._playback: PlaybackQueue | None = None  # while joined
        self._listener: RtcListener

    async def connect(self, join: JoinRequest, playback: PlaybackQueue, listener: RtcListener) -> None:
        if self._closed:
            return
        self.call_id = join.call_id
        self._playback, self._listener = playback, listener
        media, rooms = self.context.media, self.context.rooms
        rooms.add(self)
        media.attach(playback.port_id, Room(self.room))
        others = rooms.others(self)
        if not others:
            media.overlay(playback.port_id, tones.hint)
        for other in others:
            other._listener.participant_joined(self.call_id)
            listener.participant_joined(other.call_id)

    async def send_dtmf(self, digit: str, duration_ms: int) -> None:
        """The other telephones of the room are sent the key: their audio has not got it."""
        if self._playback is None:
            return
        for other in self.context.rooms.others(self):
            other._listener.dtmf(digit)

    async def close(self, reason: EndReason) -> None:
        self._closed = True
        if self._playback is None:
            return
        others = self.context.rooms.others(self)
        self.context.rooms.remove(self)
        self.context.media.detach(self._playback.port_id)
        self._playback = None
        for other in others:
            other._listener.participant_left(self.call_id, len(others) - 1)
