# SPDX-License-Identifier: GPL-3.0-or-later
"""Members by WebRTC in rooms of the whole server: what is the same bit by bit, who hears whom."""

import asyncio
import json
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from sipbridge.loadtest.webrtc import Member
from tests.conftest import MakeCall
from tests.support import audio
from tests.support.bits import has_stretch, send_speech
from tests.support.chromium import Chromium, Page
from tests.support.codecs import Codec, Pcma, Pcmu
from tests.support.program import RATE_HZ, Program
from tests.support.server import Server
from tests.support.waiting import wait_until

PHONE_HZ, BROWSER_HZ, PROGRAM_HZ = 1000, 640, 1700  # none is that of the hint for a lone member
# What any client does that speaks WHIP or WHEP.
_CLIENT = """
async function meet(direction, base, room, token) {
  const sound = document.body.appendChild(document.createElement("audio"));
  sound.id = "sound";
  sound.autoplay = true;
  const peer = (window.peer = new RTCPeerConnection());
  const microphone = direction === "sendonly" && (await navigator.mediaDevices.getUserMedia({ audio: true }));
  peer.addTransceiver(microphone ? microphone.getTracks()[0] : "audio", { direction });
  peer.addTransceiver("video", { direction: "recvonly" });
  peer.ontrack = ({ track }) => {
    if (track.kind === "audio") sound.srcObject = new MediaStream([track]);
  };
  await peer.setLocalDescription(await peer.createOffer());
  while (peer.iceGatheringState !== "complete") await new Promise((resolve) => setTimeout(resolve, 20));
  const headers = { "Content-Type": "application/sdp", Authorization: `Bearer ${token}` };
  const answer = await fetch(`${base}/v1/rooms/${room}/webrtc?name=${direction}`, {
    method: "POST", headers, body: peer.localDescription.sdp,
  });
  await peer.setRemoteDescription({ type: "answer", sdp: await answer.text() });
  window.leave = () => fetch(new URL(answer.headers.get("Location"), base), { method: "DELETE", headers });
}
"""
# Else tones are taken for noise, and levels are the browser's affair.
_PLAIN_MICROPHONE = """
(() => {
  const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
  const plain = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
  navigator.mediaDevices.getUserMedia = () => ask({ audio: plain });
})()
"""


@pytest.fixture(scope="module")
def webrtc_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    config = {
        "webrtc": {"bind_address": "127.0.0.1", "codecs": ["opus", "PCMU", "PCMA"]},
        "sip": {"codecs": ["PCMU", "PCMA"]},
    }
    with Server(tmp_path_factory.mktemp("server"), config) as server:
        yield server


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Chromium]:
    tone = audio.tone(BROWSER_HZ, 4.0, 48_000, level_dbfs=-20)
    with Chromium(tmp_path, audio.write_wav(tmp_path / "microphone.wav", tone, 48_000)) as chromium:
        yield chromium


def names(server: Server, room: str) -> list[str]:
    found = {entry["name"]: entry["members"] for entry in server.http.get("/v1/rooms").json()["rooms"]}
    return list(found.get(room, []))


async def join(server: Server, member: Member, room: str) -> None:
    headers = {"Authorization": server.http.headers["Authorization"]}
    async with httpx.AsyncClient(base_url=server.base_url, headers=headers) as client:
        await member.join(client, room)


@pytest.fixture
def echo(webrtc_server: Server) -> Iterator[Callable[[str, str], None]]:
    """Has a member join a room that says back what it hears, packet by packet."""
    members: list[Member] = []
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(0.002):
            for member in members:
                member.echo()

    thread = threading.Thread(target=run, name="echo")

    def make(room: str, codec: str) -> None:
        member = Member(codec)
        asyncio.run(join(webrtc_server, member, room))
        members.append(member)

    thread.start()
    yield make
    ended.set()
    thread.join()
    for member in members:
        member.close()


@pytest.mark.parametrize("codec", [Pcmu, Pcma])
def test_g711_passes_bit_for_bit(
    codec: type[Codec],
    webrtc_server: Server,
    echo: Callable[[str, str], None],
    call: MakeCall,
) -> None:
    """From the telephone to the member and back: a second of octets, and more, is as it was sent.

    Minus zero of µ-law arrives as plus zero, as between telephones.
    """
    room = f"bits-{codec.name}"
    phone = call(room, codec, server=webrtc_server.sip_address)
    phone.rtp.listen(0.7)
    echo(room, codec.name)
    sent = send_speech(phone.rtp, codec)
    phone.rtp.listen(0.2)
    assert has_stretch(sent, phone.rtp)


def hears(page: Page) -> dict[int, float]:
    """How loud each of the tones is in what the page plays, in dB."""
    return {hz: page.level_db(hz) for hz in (PHONE_HZ, BROWSER_HZ, PROGRAM_HZ)}


def test_a_telephone_a_browser_and_a_program(
    webrtc_server: Server, browser: Chromium, call: MakeCall
) -> None:
    """Each hears the two others, at one level, and not itself."""
    room = "three"
    link = webrtc_server.http.post(f"/v1/rooms/{room}/link", json={}).json()
    phone = call(room, server=webrtc_server.sip_address)
    phone.rtp.play(audio.tone(PHONE_HZ, 1.0, level_dbfs=-20), loop=True)
    page = browser.open(link["url"])
    page.evaluate(_PLAIN_MICROPHONE)
    page.click("#join")
    with Program(webrtc_server, room) as program:
        program.say(audio.tone(PROGRAM_HZ, 9.0, RATE_HZ, level_dbfs=-20))
        page.wait_tones("#sound", PHONE_HZ, PROGRAM_HZ)
        wait_until(lambda: audio.tone_level_dbfs(phone.rtp.listen(0.3), 8000, BROWSER_HZ) > -30, 10.0, "it")
        for samples, rate_hz, own_hz in (
            (phone.rtp.listen(1.0), 8000, PHONE_HZ),
            (program.listen(1.0), RATE_HZ, PROGRAM_HZ),
        ):
            for hz in (PHONE_HZ, BROWSER_HZ, PROGRAM_HZ):
                found_dbfs = audio.usual_level_dbfs(samples, rate_hz, hz)
                assert found_dbfs < -55 if hz == own_hz else found_dbfs == pytest.approx(-20, abs=2)
        levels = hears(page)
        assert levels[PHONE_HZ] == pytest.approx(levels[PROGRAM_HZ], abs=4)
        assert levels[BROWSER_HZ] < levels[PHONE_HZ] - 35


def test_any_client_that_speaks_whip_or_whep(
    webrtc_server: Server, browser: Chromium, call: MakeCall
) -> None:
    """One that only sends, one that only listens; both ask for video, which they do not get.

    They are pages of another server: localhost is another origin than 127.0.0.1.
    """
    room = "whip"
    link = webrtc_server.http.post(f"/v1/rooms/{room}/link", json={}).json()
    phone = call(room, server=webrtc_server.sip_address)
    phone.rtp.play(audio.tone(PHONE_HZ, 1.0, level_dbfs=-20), loop=True)
    pages = {}
    for direction in "sendonly", "recvonly":
        page = pages[direction] = browser.open(f"http://localhost:{webrtc_server.http_port}/openapi.json")
        page.evaluate(_PLAIN_MICROPHONE)
        page.evaluate(_CLIENT)
        arguments = ", ".join(
            json.dumps(text) for text in (direction, webrtc_server.base_url, room, link["token"])
        )
        page.evaluate(f"meet({arguments})")
        page.wait("peer.connectionState === 'connected'")
    wait_until(lambda: abs(phone.hears_tone(0.3) - BROWSER_HZ) < 10, 10.0, "the telephone hears the sender")
    pages["recvonly"].wait_tones("#sound", PHONE_HZ)
    assert names(webrtc_server, room)[1:] == ["sendonly", "recvonly"]
    for page in pages.values():
        assert page.evaluate("leave().then(answer => answer.ok)")
    assert len(names(webrtc_server, room)) == 1


class Impostor(Member):
    """Whose keys are not those that its offer says."""

    async def _offer(self) -> str:
        offer = await super()._offer()
        return re.sub("(?m)^(a=fingerprint:.*?)..\r?$", r"\g<1>00", offer)


def test_keys_of_somebody_else(webrtc_server: Server) -> None:
    """Its connection is refused, and it is out of the room at once."""
    member = Impostor("PCMU")
    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(join(webrtc_server, member, "keys"), 3.0))
    gone = webrtc_server.wait_event("a browser has left the room", room="keys")
    assert "keys are not those" in gone["reason"]
    assert names(webrtc_server, "keys") == []
    member.close()
