# SPDX-License-Identifier: GPL-3.0-or-later
"""Browsers and telephones in one room: the page in headless Chromium, with a file as its microphone."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import MakeCall, StartServer
from tests.rtc.webrtc.test_sdp import BROWSER
from tests.support import audio
from tests.support.chromium import Chromium, Page
from tests.support.server import Server
from tests.support.waiting import wait_until

MICROPHONE_HZ = 640
CONFIG = {"webrtc": {"bind_address": "127.0.0.1"}}


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Chromium]:
    tone = audio.tone(MICROPHONE_HZ, 4.0, 48_000)
    wav = audio.write_wav(tmp_path / "microphone.wav", tone, 48_000)
    with Chromium(tmp_path, wav) as chromium:
        yield chromium


def link(server: Server, room: str) -> str:
    return str(server.http.post(f"/v1/rooms/{room}/link", json={}).json()["url"])


def join(browser: Chromium, server: Server, room: str, name: str) -> Page:
    page = browser.open(link(server, room))
    page.type("#name", name)
    page.click("#join")
    page.wait("document.querySelector('#state').textContent === 'Connected'")
    return page


def members(server: Server, room: str) -> list[str]:
    found = {entry["name"]: entry["members"] for entry in server.http.get("/v1/rooms").json()["rooms"]}
    return list(found.get(room, []))


def shows(page: Page, text: str) -> None:
    page.wait(f"document.body.innerText.includes({text!r})")


def test_a_telephone_and_a_browser_talk(start_server: StartServer, browser: Chromium, call: MakeCall) -> None:
    """Sound, keys and levels both ways; who is there; leaving."""
    server = start_server(CONFIG)
    page = join(browser, server, "demo", "Ada")
    phone = call("demo", server=server.sip_address)
    shows(page, phone.caller)
    phone.rtp.play(audio.tone(1000, 1.0, level_dbfs=-20), loop=True)
    time.sleep(1.0)
    heard = audio.steady_part(phone.rtp.listen(1.0), 8000)
    assert audio.find_tone(heard, 8000) == pytest.approx(MICROPHONE_HZ, abs=10)
    page.wait_tones("#sound", 1000)
    page.wait("[...document.querySelectorAll('#members meter')].every(meter => meter.value > -40)")
    page.wait("document.getElementById('round-trip').textContent.endsWith('ms')")

    page.click("#keys")
    page.evaluate("document.querySelectorAll('#pad button')[4].click()")  # 5
    phone.rtp.wait_digits("5")
    phone.rtp.send_dtmf("7")
    shows(page, "Key 7")

    page.click("#mute")
    time.sleep(0.5)
    assert audio.level_dbfs(phone.rtp.listen(0.5)) < -50
    page.click("#mute")
    assert page.errors == []

    phone.hang_up()
    shows(page, f"{phone.caller} has left")
    assert members(server, "demo") == ["Ada"]
    page.click("#leave")
    shows(page, "Not connected")
    wait_until(lambda: members(server, "demo") == [], 5.0, "nobody is there")
    assert server.wait_event("a browser has left the room", browser="Ada")["reason"] == "it has left"


def test_two_browsers_talk_until_one_is_closed(start_server: StartServer, browser: Chromium) -> None:
    """A tab that is closed has left at once. A link that is used up, or has no key, says so."""
    server = start_server(CONFIG)
    ada, grace = (join(browser, server, "demo", name) for name in ("Ada", "Grace"))
    shows(ada, "Grace has joined")
    shows(grace, "Ada")
    grace.wait_tones("#sound", MICROPHONE_HZ)
    ada.type("#words", "Hello")
    ada.evaluate("document.querySelector('#message button').click()")
    shows(grace, "Ada: Hello")
    grace.close()
    shows(ada, "Grace has left")
    assert members(server, "demo") == ["Ada"]
    stranger = browser.open(f"{server.base_url}/rooms/demo", (360, 740))
    assert "This link has no key" in stranger.text()
    assert stranger.evaluate("document.documentElement.scrollWidth") <= 360
    expired = browser.open(f"{server.base_url}/rooms/demo#1.{43 * 'A'}")
    shows(expired, "This link is no longer valid")
    forged = browser.open(f"{server.base_url}/rooms/demo#{2**40}.{43 * 'A'}")
    forged.click("#join")
    shows(forged, "This link is no longer valid")
    server.terminate()
    shows(ada, "The server has ended the connection: the server stops")


def test_who_vanishes_and_who_never_comes(start_server: StartServer, browser: Chromium) -> None:
    """Both are removed, with a reason in the log."""
    server = start_server(CONFIG)
    sdp = {"Content-Type": "application/sdp"}
    answer = server.http.post("/v1/rooms/demo/webrtc?name=nobody", content=BROWSER, headers=sdp)
    assert answer.status_code == 201
    join(browser, server, "demo", "Ada")
    assert members(server, "demo") == ["nobody", "Ada"]
    browser.kill()
    gone = server.wait_event("a browser has left the room", 25.0, browser="Ada")
    assert "nothing came" in gone["reason"] or "the connection broke" in gone["reason"]
    never = server.wait_event("a browser has left the room", 25.0, browser="nobody")
    assert "no UDP packet found a way" in never["reason"]
    assert members(server, "demo") == []


def test_an_offer_that_cannot_be_used(start_server: StartServer) -> None:
    """Is refused with words, and leaves nobody in the room."""
    server = start_server(CONFIG)
    sdp = {"Content-Type": "application/sdp"}
    video = BROWSER.replace("m=audio", "m=video")
    for offer, words in (
        ("nonsense", "the offer cannot be used"),
        (BROWSER.replace("a=ice-ufrag:abcd\n", ""), "the offer cannot be used"),
        (
            BROWSER.replace("opus", "lyra").replace("PCM", "LPC").replace("G722", "G729"),
            "none is one of ours",
        ),
        (video, "no audio section"),
    ):
        answer = server.http.post("/v1/rooms/demo/webrtc", content=offer, headers=sdp)
        assert answer.status_code == 406
        assert words in answer.json()["detail"]
    assert members(server, "demo") == []
