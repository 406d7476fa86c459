# SPDX-License-Identifier: GPL-3.0-or-later
"""`local:ROOM`: a room inside this process, whose members hear all others and not themselves."""

from dataclasses import dataclass
from typing import Protocol

from sipbridge.errors import EndReason
from sipbridge.media import tones
from sipbridge.media.loop import Room
from sipbridge.routing import Target
from sipbridge.rtc.base import JoinRequest, PlaybackQueue, RtcConnection, RtcContext, RtcListener


class RoomListener(Protocol):
    """What a member of a room is told; a call's `RtcListener` is one."""

    def participant_joined(self, identity: str) -> None: ...
    def participant_left(self, identity: str, remaining: int) -> None: ...
    def dtmf(self, digit: str) -> None: ...
    def message(self, topic: str, text: str) -> None: ...


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """Somebody in a room."""

    room: str
    identity: str  # of a call its id, else a name that need not be the only one
    listener: RoomListener
    port_id: int = 0  # its leg in the media loop
    label: str = ""  # for people: of a call the number at its other end


class LocalRooms:
    """Who is in which room. Event loop."""

    def __init__(self) -> None:
        self._members: dict[str, list[Member]] = {}

    def members(self) -> dict[str, tuple[str, ...]]:
        """The identities in each room, in the order of their coming."""
        return {room: tuple(member.identity for member in members) for room, members in self._members.items()}

    def others(self, member: Member) -> list[Member]:
        return [other for other in self._members.get(member.room, []) if other is not member]

    def present(self, room: str) -> list[Member]:
        return list(self._members.get(room, []))

    def enter(
        self, room: str, identity: str, listener: RoomListener, port_id: int = 0, label: str = ""
    ) -> Member:
        """Somebody is in the room from now on; it and all others are told of each other."""
        member = Member(room, identity, listener, port_id, label or identity)
        self._members.setdefault(room, []).append(member)
        for other in self.others(member):
            other.listener.participant_joined(identity)
            listener.participant_joined(other.identity)
        return member

    def leave(self, member: Member) -> None:
        others = self.others(member)
        self._members[member.room].remove(member)
        if not others:
            del self._members[member.room]
        for other in others:
            other.listener.participant_left(member.identity, len(others) - 1)

    def press(self, member: Member, digit: str) -> None:
        """All others are sent the key: the member's audio has not got it."""
        for other in self.others(member):
            other.listener.dtmf(digit)

    def tell(self, member: Member, topic: str, text: str) -> None:
        """All others get the message."""
        for other in self.others(member):
            other.listener.message(topic, text)


class LocalConnection(RtcConnection):
    """A member of a room. All rooms are mixed in one step of the media loop, at once."""

    def __init__(self, target: Target, context: RtcContext) -> None:
        super().__init__(target, context)
        if not target.address:
            raise ValueError("expected local:ROOM")
        self._closed = False
        self._port_id = 0
        self._member: Member | None = None  # while joined

    async def connect(self, join: JoinRequest, playback: PlaybackQueue, listener: RtcListener) -> None:
        if self._closed:
            return
        media, rooms = self.context.media, self.context.rooms
        room, self._port_id = self.target.address, playback.port_id
        media.attach(self._port_id, Room(room))
        label = join.caller if join.direction == "inbound" else join.callee
        self._member = rooms.enter(room, join.call_id, listener, self._port_id, label)
        if not rooms.others(self._member):
            media.overlay(self._port_id, tones.hint)

    async def send_dtmf(self, digit: str, duration_ms: int) -> None:
        if self._member is not None:
            self.context.rooms.press(self._member, digit)

    async def send_message(self, message: str | bytes, topic: str = "") -> None:
        if self._member is not None:
            text = message if isinstance(message, str) else message.decode("utf-8", "replace")
            self.context.rooms.tell(self._member, topic, text)

    async def close(self, reason: EndReason) -> None:
        self._closed = True
        if self._member is not None:
            member, self._member = self._member, None
            self.context.media.detach(self._port_id)
            self.context.rooms.leave(member)
