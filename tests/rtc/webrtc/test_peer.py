# SPDX-License-Identifier: GPL-3.0-or-later
"""Two of our own connections with each other, over loopback."""

import asyncio
import functools
import time

import numpy as np
import pytest

from sipbridge.errors import RtcError
from sipbridge.media.loop import Channel as Route
from sipbridge.media.loop import Room, Source
from sipbridge.media.tones import Tone
from sipbridge.rtc.webrtc.peer import AudioTrack, Channel, Peer, PeerState
from sipbridge.rtc.webrtc.sdp import AudioChoice, Direction, OfferedAudio, choose_codecs
from tests.rtc.webrtc.test_sdp import BROWSER
from tests.support import audio
from tests.support.codecs import Samples
from tests.support.webrtc import Engine, with_engine

WAIT_S = 10.0


class Listener:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.states: list[PeerState] = []
        self.candidates: list[tuple[str, str]] = []
        self.channels: list[Channel] = []
        self.messages: list[str | bytes] = []
        self.changed = asyncio.Event()

    def peer_state(self, state: PeerState) -> None:
        self.states.append(state)
        self.changed.set()

    def peer_candidate(self, candidate: str, mid: str) -> None:
        self.candidates.append((candidate, mid))
        self.changed.set()

    def peer_channel(self, channel: Channel) -> None:
        channel.on_message = self.take_message
        self.channels.append(channel)
        self.changed.set()

    def take_message(self, message: str | bytes) -> None:
        self.messages.append(message)
        self.changed.set()

    async def wait_state(self, *states: PeerState) -> None:
        async with asyncio.timeout(WAIT_S):
            while not self.states or self.states[-1] not in states:
                self.changed.clear()
                await self.changed.wait()

    async def wait_messages(self, count: int) -> None:
        async with asyncio.timeout(WAIT_S):
            while len(self.messages) < count:
                self.changed.clear()
                await self.changed.wait()


def accept(offered: OfferedAudio) -> AudioChoice:
    codecs = choose_codecs(offered, ["opus", "G722", "PCMU", "PCMA"])
    return AudioChoice(offered.direction.reverse, codecs)


async def hear(engine: Engine, track: AudioTrack, seconds: float) -> Samples:
    """What comes over a track from now on, after the beginning's fade."""
    heard: list[Samples] = []
    assert track.port is not None
    engine.media.attach(track.port.port_id, Route(lambda samples, rate_hz: heard.append(samples.copy())))
    await asyncio.sleep(0.3)
    heard.clear()
    await asyncio.sleep(seconds)
    return np.concatenate(heard)


async def opened(*tracks: AudioTrack) -> None:
    async with asyncio.timeout(WAIT_S):
        for track in tracks:
            await track.opened.wait()


async def speak(codec: str, rate_hz: int, engine: Engine) -> None:
    ours, theirs = Listener(), Listener()
    a, b = (Peer(engine.config, engine.remotes, listener) for listener in (ours, theirs))
    said = a.add_audio(Direction.SENDRECV, [codec], stream_id="stream", track_id="track")
    channel = a.open_channel("words")
    answer = await b.answer(await a.offer(), accept)
    assert "a=candidate:" in answer
    await a.accept(answer)
    heard = b.tracks["0"]
    assert (heard.stream_id, heard.track_id) == ("stream", "track")
    assert said.send_codec is not None
    assert said.send_codec.name == codec
    for track, tone_hz in (said, 440.0), (heard, 700.0):
        port = track.open(rate_hz)
        engine.media.attach(port.port_id, Source(functools.partial(Tone, tone_hz)))
    await opened(said, heard)
    for listener in ours, theirs:
        await listener.wait_state(PeerState.CONNECTED)
    for track, tone_hz in (heard, 440), (said, 700):
        other = said if track is heard else heard
        assert other.port is not None
        engine.media.attach(other.port.port_id, Source(functools.partial(Tone, float(tone_hz))))
        samples = await hear(engine, track, 1.0)
        assert abs(audio.find_tone(samples, rate_hz) - tone_hz) < 5
        assert track.port is not None
        stats = track.port.track_stats()
        assert stats.received > 40
        assert stats.malformed == stats.ignored == stats.overflow == 0
        assert stats.silent_ms < 500

    async with asyncio.timeout(WAIT_S):
        await channel.opened.wait()
    assert channel.send("words")
    assert channel.send(b"bytes")
    await theirs.wait_messages(2)
    assert theirs.messages == ["words", b"bytes"]
    assert theirs.channels[0].label == "words"
    async with asyncio.timeout(WAIT_S):
        await theirs.channels[0].opened.wait()
    assert theirs.channels[0].send("back")
    back: asyncio.Future[str | bytes] = asyncio.get_running_loop().create_future()
    channel.on_message = back.set_result
    assert await asyncio.wait_for(back, WAIT_S) == "back"

    for track in said, heard:
        assert track.port is not None
        engine.media.detach(track.port.port_id)
    await asyncio.sleep(0.05)
    await a.close()
    await a.close()
    await theirs.wait_state(PeerState.CLOSED, PeerState.DISCONNECTED)
    assert not channel.send("nobody is there")
    await b.close()
    assert engine.ports() == 0


@pytest.mark.parametrize(("codec", "rate_hz"), [("PCMU", 8000), ("G722", 16_000), ("opus", 48_000)])
def test_they_hear_each_other(codec: str, rate_hz: int) -> None:
    with_engine(functools.partial(speak, codec, rate_hz))


async def renegotiate(engine: Engine) -> None:
    """As a conference server does: data first, then tracks, which come and go while others are heard."""
    ours, theirs = Listener(), Listener()
    server, client = (Peer(engine.config, engine.remotes, listener) for listener in (ours, theirs))
    channel = server.open_channel("_reliable")
    await server.accept(await client.answer(await server.offer(), accept))
    async with asyncio.timeout(WAIT_S):
        await channel.opened.wait()
    for mid, tone_hz, codec in ("5", 440.0, "opus"), ("6", 700.0, "PCMU"):
        track = server.add_audio(Direction.SENDONLY, [codec], mid=mid)
        await server.accept(await client.answer(await server.offer(gather=False), accept, gather=False))
        engine.media.attach(track.open(8000).port_id, Source(functools.partial(Tone, tone_hz)))
        await opened(track, client.tracks[mid])
        engine.media.attach(client.tracks[mid].open(8000).port_id, Room("mixed"))
    listener = Listener()
    ear = Peer(engine.config, engine.remotes, listener)  # a leg that hears the room, for want of a telephone
    mouth = Peer(engine.config, engine.remotes, listener)
    sent = ear.add_audio(Direction.SENDONLY, ["PCMU"])
    await ear.accept(await mouth.answer(await ear.offer(), accept))
    engine.media.attach(sent.open(8000).port_id, Room("mixed"))
    mouth.tracks["0"].open(8000)
    await opened(sent, mouth.tracks["0"])
    samples = await hear(engine, mouth.tracks["0"], 1.0)
    for tone_hz in 440, 700:
        assert audio.tone_level_dbfs(samples, 8000, tone_hz) > -30
    # one falls silent for good
    server.tracks["6"].turn(AudioChoice(Direction.INACTIVE, server.tracks["6"].codecs))
    await server.accept(await client.answer(await server.offer(), accept))
    assert client.tracks["6"].direction is Direction.INACTIVE
    samples = await hear(engine, mouth.tracks["0"], 0.5)
    assert abs(audio.find_tone(samples, 8000) - 440) < 5
    for peer in server, client, ear, mouth:
        for track in peer.tracks.values():
            assert track.port is not None
            engine.media.detach(track.port.port_id)
        await asyncio.sleep(0.05)
        await peer.close()
    assert engine.ports() == 0


def test_tracks_come_and_go_while_others_are_heard() -> None:
    with_engine(renegotiate)


async def change_rates(engine: Engine) -> None:
    """The numbers of packets go on: the far side, and SRTP, hear one stream."""
    listener = Listener()
    a, b = (Peer(engine.config, engine.remotes, listener) for _ in range(2))
    said = a.add_audio(Direction.SENDONLY, ["opus"])
    await a.accept(await b.answer(await a.offer(), accept))
    heard = b.tracks["0"]
    heard.open(16_000)
    said.open(8000)
    await opened(said, heard)
    for rate_hz in 48_000, 16_000, 8000, 24_000, 8000, 16_000:
        old, port = said.port, said.open(rate_hz)
        engine.media.attach(port.port_id, Source(functools.partial(Tone, 500.0)))
        assert old is not None
        old.close()
        await asyncio.sleep(0.1)
    assert abs(audio.find_tone(await hear(engine, heard, 0.5), 16_000) - 500) < 5
    assert heard.port is not None
    stats = heard.port.track_stats()
    assert stats.lost < 20
    assert stats.received > 40
    assert stats.ignored == 0
    for track in said, heard:
        assert track.port is not None
        engine.media.detach(track.port.port_id)
    await asyncio.sleep(0.05)
    for each in a, b:
        await each.close()
    assert engine.ports() == 0


def test_a_track_changes_its_rate() -> None:
    with_engine(change_rates)


async def refuse(engine: Engine) -> None:
    listener = Listener()
    for text in "", "nonsense", "v=0\r\nm=audio", BROWSER.replace("a=ice-ufrag:abcd\n", ""):
        peer = Peer(engine.config, engine.remotes, listener)
        with pytest.raises(RtcError):
            await peer.answer(text, accept)
        await peer.close()
    # nobody is at the far end: it says so by itself, and can be closed at any time
    peer = Peer(engine.config, engine.remotes, listener)
    video = BROWSER[BROWSER.index("m=audio") :].replace("m=audio", "m=video").replace("a=mid:0", "a=mid:1")
    answer = await peer.answer(BROWSER + video, accept)
    assert "m=audio 0 " not in answer
    assert "m=video 0 " in answer
    assert list(peer.tracks) == ["0"]
    peer.add_candidate("candidate:1 1 UDP 2114977791 127.0.0.1 9 typ host", "0")
    peer.add_candidate("nonsense", "0")
    peer.tracks["0"].open(48_000)
    await peer.close()
    # none of ours
    peer = Peer(engine.config, engine.remotes, listener)
    answer = await peer.answer(BROWSER, lambda offered: None)
    assert "m=audio 0 " in answer
    await peer.close()
    # trickling
    peer, other = (Peer(engine.config, engine.remotes, listener) for _ in range(2))
    peer.add_audio(Direction.SENDONLY, ["PCMU"])
    offer = await peer.offer(gather=False)
    await peer.accept(await other.answer(offer, accept))
    async with asyncio.timeout(WAIT_S):
        while not listener.candidates:
            await asyncio.sleep(0.01)
    assert listener.candidates[0][0].startswith("candidate:")
    for candidate, mid in listener.candidates:
        other.add_candidate(candidate, mid)
    await opened(peer.tracks["0"])
    for each in peer, other:
        await each.close()
    assert engine.ports() == 0


def test_what_cannot_be_used_is_refused() -> None:
    with_engine(refuse)


async def come_and_go(engine: Engine) -> None:
    """Many in a row; the polling thread and the interpreter's lock are in the middle of it."""
    started = time.monotonic()
    for _ in range(20):
        listener = Listener()
        a, b = (Peer(engine.config, engine.remotes, listener) for _ in range(2))
        track = a.add_audio(Direction.SENDRECV, ["PCMU"])
        a.open_channel("words")
        await a.accept(await b.answer(await a.offer(), accept))
        for each in track, b.tracks["0"]:
            each.open(8000)
        await opened(track)
        await asyncio.gather(a.close(), b.close())
    assert engine.ports() == 0
    assert time.monotonic() - started < 60


def test_many_in_a_row_leave_nothing() -> None:
    with_engine(come_and_go)
