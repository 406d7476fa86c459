# SPDX-License-Identifier: GPL-3.0-or-later
"""Agora's Python SDK over a native engine of ours: a simulation, for tests alone. See `engine.cpp`.

`root()` is a folder for ``PYTHONPATH``: the package `agora` as its source distribution has it, unchanged, and
in the place of the vendor's libraries ours. It is made once for each user; nothing comes from the vendor.
"""

import contextlib
import json
import os
import platform
import re
import socket
import sys
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sipbridge.sip.native import build
from tests.support.codecs import Samples
from tests.support.waiting import wait_until

PACKAGE = "agora-python-server-sdk"
SOURCE = Path(__file__).with_name("engine.cpp")
SOCKET = "AGORA_SIM_SOCKET"  # the environment variable that says where it listens for commands
_FLAGS = ("-std=c++20", "-O1", "-fPIC", "-shared", "-pthread", "-Wall", "-Wextra")
_ROOT = Path(__file__).resolve().parents[3]


# ---------------------------------------------------------------- the package


def _version() -> str:
    (version,) = re.findall(rf"^{PACKAGE}==(.+)$", (_ROOT / "constraints.txt").read_text(), re.MULTILINE)
    return str(version)


def _fetch(folder: Path) -> Path:
    """The source distribution, which is not installed: that would fetch the vendor's libraries."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    build.run(
        [*command, "--no-build-isolation", "--dest", folder, f"{PACKAGE}=={_version()}"],
        "agora-sdk",
        "fetching Agora's Python SDK",
    )
    (archive,) = folder.glob("*.tar.gz")
    return archive


def _library_url(package: Path) -> str:
    """Where the package would have its libraries from. It is content where a file says it has been there."""
    text = (package / "__init__.py").read_text()
    word = "aarch64" if platform.machine() == "aarch64" else "x86_64"
    urls = re.findall(r'^ *(?:linux_sdk|url) ?= ?"(https://[^"]+)"', text, re.MULTILINE)
    return str([url for url in urls if word in url][-1])


def root() -> Path:
    """What goes into ``PYTHONPATH``; BuildError."""
    key = build.digest([SOURCE.read_bytes(), *_FLAGS, build.version_of("g++"), _version()])[:24]
    entry = build.cache_dir() / "programs" / f"agora-simulation-{key}"
    if build.is_cached(entry):  # as mostly; somebody else may be building something for minutes
        return entry
    with build.locked():
        if build.is_cached(entry):
            return entry
        with build.scratch() as folder:
            made = folder / "made"
            with tarfile.open(_fetch(folder)) as archive:
                archive.extractall(folder / "source", filter="data")
            (source,) = (folder / "source").glob("*/agora")
            made.mkdir()
            package = source.rename(made / "agora")
            libraries = package / "agora_sdk"
            libraries.mkdir()
            for name in ("libagora_rtc_sdk.so", "libaosl.so"):
                library = libraries / name
                if name == "libaosl.so":  # is loaded before the other, and holds nothing that we need
                    empty = folder / "empty.cpp"
                    empty.write_text("")
                    build.run(["g++", *_FLAGS, "-o", library, empty], "agora-empty", "compiling nothing")
                else:
                    build.run(["g++", *_FLAGS, "-o", library, SOURCE], "agora-engine", "compiling the engine")
            (package / "version.txt").write_text(_library_url(package))
            return build.keep(made, entry)


@contextlib.contextmanager
def in_this_process() -> Iterator["Engine"]:
    """Lets `import agora` find it. Once loaded, a library stays: there is one engine in a process."""
    if SOCKET not in os.environ:
        os.environ[SOCKET] = str(Path(tempfile.mkdtemp(prefix="agora-")) / "s")
    path = str(root())
    sys.path.insert(0, path)
    try:
        import ctypes

        ctypes.CDLL(str(Path(path) / "agora" / "agora_sdk" / "libagora_rtc_sdk.so"))
        engine = Engine(Path(os.environ[SOCKET]))
        engine.ask("reset")
        with contextlib.closing(engine):
            yield engine
    finally:
        sys.path.remove(path)


def environment(folder: Path) -> dict[str, str]:
    """What a server process is started with to have this `agora`; `Engine(folder / "s")` speaks to it."""
    folder.mkdir(parents=True, exist_ok=True)
    return {"PYTHONPATH": str(root()), SOCKET: str(folder / "s")}


# ---------------------------------------------------------------- its control


class Engine:
    """Commands to an engine, in this process or another. Any thread."""

    def __init__(self, path: Path, timeout_s: float = 10.0) -> None:
        wait_until(path.exists, timeout_s, "the engine listens")
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(10.0)
        self._socket.connect(str(path))
        self._answers = self._socket.makefile("r", encoding="latin-1", newline="\n")
        self._lock = threading.Lock()
        self._folder = Path(tempfile.mkdtemp(prefix="agora-"))
        self._files = 0

    def ask(self, *words: object) -> str:
        """One command; its answer. See `obey` in engine.cpp."""
        with self._lock:
            self._socket.sendall((" ".join(str(word) for word in words) + "\n").encode())
            answer = self._answers.readline().rstrip("\n")
        kind, _, rest = answer.partition(" ")
        assert kind == "ok", f"{words}: {answer}"
        return rest

    def set(self, **settings: int) -> None:
        for name, value in settings.items():
            self.ask("set", name, int(value))

    def fail(self, function: str, code: int = -1, times: int = 1) -> None:
        """The next calls of a function answer this (or no handle, where it gives one); -1 times: all."""
        self.ask("fail", function, code, times)

    def log(self, kind: str = "") -> list[list[str]]:
        """What was called, as words; of one kind."""
        lines = [line.split(" ") for line in self.ask("log", 0).split("\x1f") if line]
        return [line[1:] if kind else line for line in lines if line[0] == kind or not kind]

    def wait_log(self, kind: str, count: int = 1, timeout_s: float = 10.0) -> list[list[str]]:
        wait_until(lambda: len(self.log(kind)) >= count, timeout_s, f"{count} × {kind}: {self.ask('log', 0)}")
        return self.log(kind)

    def stats(self) -> dict[str, int]:
        """How many of what there are."""
        return dict(json.loads(self.ask("stats")))

    def join(self, channel: str, uid: str, rate_hz: int = 16000) -> "FarUser":
        """Somebody else is in the channel from now on."""
        self.ask("join", channel, uid, rate_hz)
        return FarUser(self, channel, uid, rate_hz)

    def new_file(self) -> Path:
        self._files += 1
        return self._folder / f"{self._files}.s16"

    def close(self) -> None:
        self._answers.close()
        self._socket.close()


class FarUser:
    """Somebody in a channel, without the SDK."""

    def __init__(self, engine: Engine, channel: str, uid: str, rate_hz: int) -> None:
        self._engine = engine
        self.channel, self.uid, self.rate_hz = channel, uid, rate_hz
        self._record: Path | None = None

    def _ask(self, command: str, *words: object) -> None:
        self._engine.ask(command, self.channel, self.uid, *words)

    def say(self, samples: Samples) -> None:
        """For ever."""
        self._ask("say", self._save(samples))

    def burst(self, samples: Samples) -> None:
        """Once; as fast as it can where the engine does not keep time."""
        self._ask("burst", self._save(samples))

    def _save(self, samples: Samples) -> Path:
        path = self._engine.new_file()
        samples.tofile(path)
        return path

    def hush(self) -> None:
        self._ask("hush")

    def record(self) -> None:
        """Begins `heard` anew."""
        self._record = self._engine.new_file()
        self._ask("listen", self._record)

    @property
    def heard(self) -> Samples:
        """All others, since `record`."""
        if self._record is None or not self._record.exists():
            return np.zeros(0, np.int16)
        return np.frombuffer(self._record.read_bytes()[: self._record.stat().st_size // 2 * 2], np.int16)

    def listen(self, seconds: float) -> Samples:
        """What all others say from now on."""
        self.record()
        count = round(seconds * self.rate_hz)
        wait_until(lambda: len(self.heard) >= count, seconds + 10.0, f"{self.uid} hears")
        return self.heard[:count]

    def use_key(self, mode: int, key: str, salt: bytes = bytes(32)) -> None:
        self._ask("key", f"{mode}:{key}:{salt.hex()}")

    def tell(self, data: bytes) -> None:
        """A stream message."""
        self._ask("message", data.hex())

    def tell_metadata(self, data: bytes) -> None:
        self._ask("metadata", data.hex())

    def leave(self, reason: int = 0) -> None:
        self._ask("leave", reason)


def main() -> None:
    """Makes it; says in one line why it cannot be had, and leaves it to the tests to fail."""
    try:
        root()
    except (build.BuildError, OSError) as error:
        print(f"Agora's SDK cannot be had, so its tests will fail: {str(error).splitlines()[0]}")
