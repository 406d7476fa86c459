# SPDX-License-Identifier: GPL-3.0-or-later
"""Headless Chromium, by the DevTools protocol: a WebSocket that takes commands and tells what happens."""

import base64
import itertools
import json
import re
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from websockets.sync.client import connect

START_S = 30.0
_FLAGS = (
    "--headless=new",
    "--no-sandbox",  # for tests that run as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    # nothing of it has to do with the network
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-domain-reliability",
    "--remote-debugging-port=0",
    # a microphone that plays a file, and no question about it
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--autoplay-policy=no-user-gesture-required",
    # WebRTC between processes of one host
    "--allow-loopback-in-peer-connection",
    "--disable-features=WebRtcHideLocalIpsWithMdns",
)
# Listens to what an element plays, as its user does.
_EAR = """
(() => {{
  const context = new AudioContext();
  const analyser = context.createAnalyser();
  analyser.fftSize = 8192;
  context.createMediaStreamSource(document.querySelector({}).srcObject).connect(analyser);
  window.ear = {{ context, analyser }};
}})()
"""
_LEVEL = """
(() => {{
  const {{ context, analyser }} = window.ear;
  const bins = new Float32Array(analyser.frequencyBinCount);
  analyser.getFloatFrequencyData(bins);
  const at = Math.round(({} * analyser.fftSize) / context.sampleRate);
  return Math.max(...bins.slice(at - 3, at + 4));
}})()
"""


class Chromium:
    """A browser whose microphone plays a WAV file, again and again. Use it as a context manager."""

    def __init__(self, directory: Path, microphone: Path | None = None, flags: Sequence[str] = ()) -> None:
        command = ["chromium", *_FLAGS, *flags, f"--user-data-dir={directory / 'profile'}"]
        if microphone is not None:
            command.append(f"--use-file-for-fake-audio-capture={microphone}")
        self._lines: list[str] = []
        self._url = ""
        self._ready = threading.Event()
        self._process = subprocess.Popen(
            [*command, "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, name="chromium", daemon=True)
        self._reader.start()
        assert self._ready.wait(START_S), f"Chromium did not start:\n{self.tail()}"
        assert self._url, f"Chromium ended:\n{self.tail()}"

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._lines.append(line.rstrip())
            found = re.match(r"DevTools listening on (ws://\S+)", line)
            if found:
                self._url = found[1]
                self._ready.set()
        self._ready.set()

    def tail(self) -> str:
        return "\n".join(self._lines[-20:])

    def open(self, url: str, size: tuple[int, int] = (1000, 900)) -> "Page":
        """A new page of this size in CSS pixels."""
        return Page(self._url, url, size)

    def kill(self) -> None:
        """At once, as when a device loses power."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(10.0)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._reader.join(5.0)
        assert self._process.stderr is not None
        self._process.stderr.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Page:
    """One page, driven from one thread."""

    def __init__(self, browser_url: str, url: str, size: tuple[int, int]) -> None:
        self._numbers = itertools.count(1)
        self.errors: list[str] = []  # of its scripts, and what the browser says about them
        self._connecting = connect(browser_url, max_size=None, compression=None, proxy=None)
        self._socket = self._connecting.__enter__()
        self._session = ""
        target = self._command("Target.createTarget", url="about:blank")["targetId"]
        attached = self._command("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        self._target = target
        for domain in "Page", "Runtime", "Log":
            self._command(f"{domain}.enable")
        width, height = size
        self._command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        self._command("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def _command(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        request: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session:
            request["sessionId"] = self._session
        self._socket.send(json.dumps(request))
        while True:
            answer = json.loads(self._socket.recv(timeout=30.0))
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result
            self._note(answer)

    def _note(self, event: dict[str, Any]) -> None:
        said = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            details = said["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description") or details["text"])
        elif event.get("method") == "Log.entryAdded" and said["entry"]["level"] == "error":
            self.errors.append(said["entry"]["text"])

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise is awaited."""
        result = self._command(
            "Runtime.evaluate",
            expression=expression,
            awaitPromise=True,
            returnByValue=True,
            userGesture=True,
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, expression: str, timeout_s: float = 20.0) -> None:
        """Until a JavaScript expression is true."""
        until = time.monotonic() + timeout_s
        while not self.evaluate(expression):
            assert time.monotonic() < until, f"never true: {expression}\n{self.text()}\n{self.errors}"
            time.sleep(0.05)

    def text(self) -> str:
        """What a person can read."""
        return str(self.evaluate("document.body.innerText"))

    def click(self, selector: str) -> None:
        self.evaluate(f"document.querySelector({json.dumps(selector)}).click()")

    def type(self, selector: str, text: str) -> None:
        self.evaluate(f"document.querySelector({json.dumps(selector)}).value = {json.dumps(text)}")

    def wait_tones(self, selector: str, *tones_hz: float) -> None:
        """Until the element plays all of these, loudly."""
        self.wait(f"document.querySelector({json.dumps(selector)}).srcObject !== null")
        self.evaluate(_EAR.format(json.dumps(selector)))
        for hz in tones_hz:
            self.wait(f"{_LEVEL.format(hz)} > -50")

    def level_db(self, hz: float) -> float:
        """How loud a frequency is just now in what the element of `wait_tones` plays; a sine is near 0."""
        return float(self.evaluate(_LEVEL.format(hz)))

    def screenshot(self, path: Path) -> None:
        """The whole page as PNG."""
        data = self._command("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))

    def close(self) -> None:
        """As a person closes the tab."""
        session, self._session = self._session, ""
        self._command("Target.closeTarget", targetId=self._target)
        self._session = session
        self._connecting.__exit__(None, None, None)
