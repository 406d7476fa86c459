# SPDX-License-Identifier: GPL-3.0-or-later
"""baresip as a telephone without a sound device: it plays a file and records what it hears."""

import json
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.audio import read_wav, resample, write_wav
from tests.support.codecs import Samples
from tests.support.ports import free_port, free_udp_range
from tests.support.waiting import wait_until

# Module, rate and channels: it offers what it has loaded, and its sound file has to fit the codec.
_CODECS = {"PCMU": ("g711", 8000, 1), "G722": ("g722", 16_000, 1), "opus": ("opus", 48_000, 2)}
_MODULES = Path("/usr/lib/baresip/modules")


class Baresip:
    """One telephone, and the voice of who speaks into it (8 kHz), which has to outlast the calls."""

    def __init__(
        self,
        directory: Path,
        speaks: Samples,
        *,
        user: str = "phone",
        host: str = "127.0.0.1",
        codec: str = "PCMU",
        answers: bool = False,
        register: tuple[str, int, tuple[str, str]] | None = None,
    ) -> None:
        """Starts it. `register` is (host, port, (user, password)); `answers` lets it pick up at once."""
        program = shutil.which("baresip")
        assert program, "baresip is not installed (Debian: baresip-core)"
        directory.mkdir(parents=True)
        self.directory = directory
        self.port = free_port()
        module, rate_hz, channels = _CODECS[codec]
        voice = write_wav(directory / "voice.wav", resample(speaks, 8000, rate_hz), rate_hz, channels)
        rtp = free_udp_range(20)
        control = free_port()
        (directory / "config").write_text(
            "\n".join(
                [
                    f"sip_listen {host}:{self.port}",
                    f"net_interface {host}",
                    f"audio_player aufile,{directory / 'unused.wav'}",
                    f"audio_source aufile,{voice}",
                    f"audio_alert aufile,{directory / 'unused.wav'}",
                    "audio_txmode thread",
                    f"rtp_ports {rtp}-{rtp + 19}",
                    "jitter_buffer_delay 1-5",
                    f"snd_path {directory}",
                    f"ctrl_tcp_listen 127.0.0.1:{control}",
                    f"module_path {_MODULES}",
                    *(f"module {name}.so" for name in (module, "aufile", "sndfile")),
                    *(f"module_app {name}.so" for name in ("account", "menu", "ctrl_tcp")),
                    "",
                ]
            )
        )
        if register is None:
            account = f"<sip:{user}@{host}>;auth_pass=none;regint=0"
        else:
            registrar, port, (user, password) = register
            account = f"<sip:{user}@{registrar}:{port}>;auth_pass={password};regint=60"
        mode = ";answermode=auto" if answers else ""
        (directory / "accounts").write_text(f"{account}{mode}\n")
        (directory / "contacts").write_text("")
        self._log = (directory / "baresip.log").open("wb")
        self.process = subprocess.Popen(
            [program, "-4", "-f", str(directory)],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        self._control: socket.socket = wait_until(
            lambda: self._connect(control), 10.0, "baresip's control port is open"
        )
        self._unread = b""

    def _connect(self, port: int) -> Any:
        assert self.process.poll() is None, self.log()
        try:
            return socket.create_connection(("127.0.0.1", port), 1.0)
        except OSError:
            return None

    def log(self) -> str:
        """What it said."""
        return (self.directory / "baresip.log").read_text("utf-8", "replace")[-3000:]

    def command(self, name: str, parameters: str = "") -> None:
        """Send a command, as typed at its prompt."""
        text = json.dumps({"command": name, "params": parameters, "token": name})
        self._control.sendall(f"{len(text)}:{text},".encode())

    def wait_event(self, kind: str, timeout_s: float = 10.0) -> Mapping[str, object]:
        """Until it reports an event of this type, such as CALL_ESTABLISHED."""
        deadline = time.monotonic() + timeout_s
        while True:
            length, colon, rest = self._unread.partition(b":")
            if colon and len(rest) > int(length):
                message = json.loads(rest[: int(length)])
                self._unread = rest[int(length) + 1 :]
                if message.get("type") == kind:
                    assert isinstance(message, dict)
                    return message
                continue
            self._control.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                data = self._control.recv(65_536)
            except TimeoutError:
                data = b""
            assert data, f"no {kind} within {timeout_s} s:\n{self.log()}"
            self._unread += data

    def wait_registered(self) -> None:
        """Until its registration was accepted, which may be before anybody can listen for the event."""
        wait_until(lambda: "200 OK" in self.log(), 10.0, "baresip is registered")

    def dial(self, uri: str) -> None:
        """Call, and wait for the answer."""
        self.command("dial", uri)
        self.wait_event("CALL_ESTABLISHED")

    def hang_up(self) -> None:
        self.command("hangup")
        self.wait_event("CALL_CLOSED")

    def wait_for_audio(self, seconds: float) -> None:
        """Until its first call has lasted so long, by what it recorded."""

        def recorded() -> bool:
            data = b"".join(path.read_bytes() for path in self.directory.glob("dump-*-dec.wav"))
            if len(data) < 44:
                return False
            bytes_per_second: int = struct.unpack_from("<I", data, 28)[0]
            return len(data) - 44 >= seconds * bytes_per_second

        wait_until(recorded, 2 * seconds + 5, f"{seconds} s are recorded: {self.log()}", 0.2)

    def heard(self) -> tuple[Samples, int]:
        """What came out of its earpiece in its first call, and the rate; after the call's end."""
        (path,) = self.directory.glob("dump-*-dec.wav")
        return read_wav(path)

    def close(self) -> None:
        """End it, calls and all."""
        self._control.close()
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(5.0)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            error.add_note(self.log())
        self.close()
