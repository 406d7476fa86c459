# SPDX-License-Identifier: GPL-3.0-or-later
"""Participants made with LiveKit's SDK, in a process of their own: commands come as lines of JSON.

An answer is one line: ``{"result": …}`` or ``{"error": "…"}``. The process ends with its input.
"""

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from livekit import rtc

RATE_HZ = 48000
_FRAME_S = 0.01


class Somebody:
    """One participant."""

    def __init__(self) -> None:
        self.room = rtc.Room()
        self.told: list[dict[str, Any]] = []
        self.heard: dict[str, list[bytes]] = {}  # by track sid
        self.speakers: dict[str, str] = {}  # track sid → identity
        self.tracks: dict[str, tuple[rtc.LocalAudioTrack, asyncio.Task[None]]] = {}
        self.listeners: dict[str, asyncio.Task[None]] = {}
        self.room.on("participant_connected", lambda who: self.note("joined", who=who.identity))
        self.room.on(
            "participant_disconnected",
            lambda who: self.note("left", who=who.identity, reason=who.disconnect_reason),
        )
        self.room.on("track_subscribed", self._on_track)
        self.room.on("track_unsubscribed", self._on_track_gone)
        self.room.on("track_muted", lambda who, _: self.note("muted", who=who.identity))
        self.room.on("track_unmuted", lambda who, _: self.note("unmuted", who=who.identity))
        self.room.on(
            "participant_attributes_changed",
            lambda changed, who: self.note("attributes", who=who.identity, changed=dict(changed)),
        )
        self.room.on(
            "sip_dtmf_received",
            lambda key: self.note("key", digit=key.digit, code=key.code, who=_identity(key.participant)),
        )
        self.room.on(
            "data_received",
            lambda packet: self.note(
                "data",
                data=packet.data.decode("latin-1"),
                topic=packet.topic or "",
                who=_identity(packet.participant),
            ),
        )
        self.room.on(
            "active_speakers_changed",
            lambda speakers: self.note("speakers", who=[speaker.identity for speaker in speakers]),
        )
        self.room.on("disconnected", lambda reason: self.note("disconnected", reason=int(reason)))

    def note(self, kind: str, **fields: Any) -> None:
        self.told.append({"kind": kind, "at": time.time(), **fields})

    # --- what it hears

    def _on_track(self, track: rtc.Track, _: Any, who: rtc.RemoteParticipant) -> None:
        self.note("track", who=who.identity)
        if isinstance(track, rtc.RemoteAudioTrack):
            self.heard[track.sid] = []
            self.speakers[track.sid] = who.identity
            self.listeners[track.sid] = asyncio.ensure_future(self._hear(track))

    def _on_track_gone(self, track: rtc.Track, _: Any, who: rtc.RemoteParticipant) -> None:
        self.note("track gone", who=who.identity)
        self.speakers.pop(track.sid, None)

    async def _hear(self, track: rtc.RemoteAudioTrack) -> None:
        stream = rtc.AudioStream(track, sample_rate=RATE_HZ, num_channels=1, frame_size_ms=20, capacity=100)
        async for event in stream:
            self.heard[track.sid].append(bytes(event.frame.data))
        await stream.aclose()

    # --- commands

    async def join(self, url: str, token: str) -> None:
        self.room.register_text_stream_handler("lk.chat", self._on_text)
        self.room.register_text_stream_handler("notes", self._on_text)
        await self.room.connect(url, token)

    def _on_text(self, reader: rtc.TextStreamReader, identity: str) -> None:
        async def read() -> None:
            text = await reader.read_all()
            self.note("text", topic=reader.info.topic, text=text, who=identity)

        asyncio.ensure_future(read())  # noqa: RUF006

    async def publish(self, name: str, path: str, rate_hz: int) -> str:
        source = rtc.AudioSource(rate_hz, 1, queue_size_ms=0)
        track = rtc.LocalAudioTrack.create_audio_track(name, source)
        options = rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE, dtx=False, red=False)
        publication = await self.room.local_participant.publish_track(track, options)
        speaking = asyncio.ensure_future(_speak(source, np.fromfile(Path(path), np.int16), rate_hz))
        self.tracks[name] = track, speaking
        return str(publication.sid)

    async def unpublish(self, name: str) -> None:
        track, speaking = self.tracks.pop(name)
        speaking.cancel()
        await self.room.local_participant.unpublish_track(track.sid)

    async def mute(self, name: str, muted: bool) -> None:
        track = self.tracks[name][0]
        if muted:
            track.mute()
        else:
            track.unmute()

    async def listen(self, seconds: float, to: str, path: str) -> None:
        """Writes what comes from now on; waits for the track first."""
        async with asyncio.timeout(10):
            while not (sids := [sid for sid, who in self.speakers.items() if who.startswith(to)]):
                await asyncio.sleep(0.02)
        frames = self.heard[sids[-1]]
        start, wanted = len(frames), round(seconds / 0.02)
        async with asyncio.timeout(seconds + 10):
            while len(frames) < start + wanted:
                await asyncio.sleep(0.01)
        Path(path).write_bytes(b"".join(frames[start : start + wanted]))

    async def others(self) -> list[dict[str, Any]]:
        return [
            {
                "identity": who.identity,
                "name": who.name,
                "kind": int(who.kind),
                "metadata": who.metadata,
                "attributes": dict(who.attributes),
                "tracks": [
                    {"name": track.name, "muted": track.muted, "mime": track.mime_type}
                    for track in who.track_publications.values()
                ],
            }
            for who in self.room.remote_participants.values()
        ]

    async def events(self) -> list[dict[str, Any]]:
        return self.told

    async def press(self, digit: str) -> None:
        await self.room.local_participant.publish_dtmf(code="0123456789*#ABCD".index(digit), digit=digit)

    async def text(self, text: str, topic: str) -> None:
        await self.room.local_participant.send_text(text, topic=topic)

    async def data(self, data: str, topic: str) -> None:
        await self.room.local_participant.publish_data(data, topic=topic)

    async def transcribe(self, text: str, is_final: bool) -> None:
        """As LiveKit's agents tell what they have understood."""
        attributes = {"lk.transcription_final": str(is_final).lower()}
        participant = self.room.local_participant
        await participant.send_text(text, topic="lk.transcription", attributes=attributes)

    async def call(self, to: str, method: str, payload: str) -> dict[str, Any]:
        try:
            answer = await self.room.local_participant.perform_rpc(
                destination_identity=to, method=method, payload=payload
            )
        except rtc.RpcError as error:
            return {"code": error.code, "message": error.message}
        return {"payload": answer}

    async def leave(self) -> None:
        for _, speaking in self.tracks.values():
            speaking.cancel()
        await self.room.disconnect()
        for listener in self.listeners.values():
            listener.cancel()


def _identity(who: Any) -> str:
    return who.identity if who is not None else ""


async def _speak(source: rtc.AudioSource, samples: np.ndarray[Any, Any], rate_hz: int) -> None:
    """Says these samples again and again, in time."""
    size = round(rate_hz * _FRAME_S)
    due, position = time.perf_counter(), 0
    while True:
        piece = samples.take(range(position, position + size), mode="wrap")
        position = (position + size) % len(samples)
        await source.capture_frame(rtc.AudioFrame(piece.tobytes(), rate_hz, 1, size))
        due += _FRAME_S
        await asyncio.sleep(max(0.0, due - time.perf_counter()))


async def main() -> None:
    everybody: dict[str, Somebody] = {}
    reader = asyncio.StreamReader(limit=1 << 24)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    while line := await reader.readline():
        request = json.loads(line)
        who, command = request.pop("who"), request.pop("command")
        if command == "join":
            everybody[who] = Somebody()
        try:
            work: Callable[..., Any] = getattr(everybody[who], command)
            answer = {"result": await work(**request)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)
    for somebody in everybody.values():
        with contextlib.suppress(Exception):
            await somebody.leave()


if __name__ == "__main__":
    asyncio.run(main())
