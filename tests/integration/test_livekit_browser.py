# SPDX-License-Identifier: GPL-3.0-or-later
"""A telephone and LiveKit's own client for browsers, in Chromium, in a room of a real LiveKit server."""

import functools
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import MakeCall, StartServer
from tests.support import audio, livekit
from tests.support.chromium import Chromium
from tests.support.livekit import LiveKitServer
from tests.support.waiting import wait_until

MICROPHONE_HZ, PHONE_HZ = 640, 1000
_PAGE = """<!doctype html>
<meta charset="utf-8">
<link rel="icon" href="data:,">
<audio id="sound" autoplay></audio>
<script src="client.js"></script>
<script>
const keys = [];
async function join(url, token) {
  const room = (window.room = new LivekitClient.Room());
  room.on("trackSubscribed", (track) => track.attach(document.getElementById("sound")));
  room.on("sipDTMFReceived", (key) => keys.push(key.digit));
  await room.connect(url, token);
  // a tone is what noise suppression takes for noise
  const sound = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
  await room.localParticipant.setMicrophoneEnabled(true, sound);
}
const others = () => [...room.remoteParticipants.values()].map(
  ({ identity, kind, attributes }) => ({ identity, kind, attributes }));
</script>
"""
_SIP = 3  # ParticipantKind


@pytest.fixture
def page_url(tmp_path: Path) -> Iterator[str]:
    """Where the page is served, with the client beside it."""
    folder = tmp_path / "page"
    folder.mkdir()
    (folder / "index.html").write_text(_PAGE)
    (folder / "client.js").write_bytes(livekit.javascript_client().read_bytes())

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    serve = functools.partial(Handler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        thread = threading.Thread(target=server.serve_forever, name="page")
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def test_a_telephone_and_a_browser_of_livekits(
    tmp_path: Path, page_url: str, start_server: StartServer, call: MakeCall
) -> None:
    """Sound and keys both ways, what the browser knows of the telephone, and its leaving."""
    wav = audio.write_wav(tmp_path / "microphone.wav", audio.tone(MICROPHONE_HZ, 4.0, 48_000), 48_000)
    with LiveKitServer(tmp_path / "livekit") as server, Chromium(tmp_path, wav) as browser:
        bridge = start_server(
            {
                "trunk": [{"name": "line", "allowed_addresses": ["127.0.0.1"]}],
                "rule": [{"name": "rooms", "target": "livekit:{callee}"}],
                "livekit": server.table,
                "webrtc": {"bind_address": "127.0.0.1"},
            }
        )
        page = browser.open(page_url)
        page.evaluate(f"join({json.dumps(server.url)}, {json.dumps(server.token('eve', 'room'))})")
        phone = call("room", server=bridge.sip_address)
        phone.rtp.play(audio.tone(PHONE_HZ, 1.0, level_dbfs=-20), loop=True)
        wait_until(lambda: abs(phone.hears_tone(0.3) - MICROPHONE_HZ) < 10, 10.0, "the telephone hears it")
        page.wait_tones("#sound", PHONE_HZ)

        (other,) = page.evaluate("others()")
        assert other["kind"] == _SIP
        assert other["identity"].startswith(f"sip_{phone.caller}_")
        assert other["attributes"]["sip.phoneNumber"] == phone.caller
        assert other["attributes"]["sip.callStatus"] == "active"

        page.evaluate("room.localParticipant.publishDtmf(5, '5')")
        phone.rtp.wait_digits("5")
        phone.rtp.send_dtmf("7#")
        page.wait("keys.join('') === '7#'")

        phone.hang_up()
        page.wait("others().length === 0")
        assert page.errors == []
