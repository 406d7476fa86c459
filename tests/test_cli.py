# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands as a user types them, with a registry that has no telephones."""

import asyncio
import functools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import httpx
import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner, Result

from sipbridge import cli
from sipbridge.calls import RoomView
from sipbridge.client import ApiClient
from sipbridge.config import Config, load_config
from sipbridge.errors import CallError, ConfigError, EndKind, EndReason, Party
from sipbridge.http.api import create_api
from sipbridge.http.token import read_or_make_token, token_path
from tests.support.fake_calls import FakeCalls
from tests.support.ports import free_port

ANSWERED = {"state": "active", "codec": "PCMU", "seconds": 0.2}
HUNG_UP = {"seconds": 3.25, "end": EndReason(EndKind.HANGUP, "Normal", Party.CALLEE)}
BUSY = {"end": EndReason(EndKind.BUSY, "Busy Here", Party.CALLEE, 486)}


class FakeApp:
    """An App whose calls are told; `made` holds those that were made."""

    made: ClassVar[list["FakeApp"]] = []
    script: ClassVar[list[dict[str, Any]]] = []
    start_error: Exception | None = None

    def __init__(self, config: Config, *, http: bool = True) -> None:
        self.config = config
        self.http = http
        self.calls = FakeCalls(self.script)
        self.listening = ["udp 0.0.0.0:5060", "tcp 0.0.0.0:5060", "http 127.0.0.1:8080"]
        self.is_stopped = False
        FakeApp.made.append(self)

    async def start(self) -> None:
        if self.start_error is not None:
            raise self.start_error

    async def drain(self, timeout_s: float) -> None:
        pass

    async def stop(self) -> None:
        self.is_stopped = True


@pytest.fixture(autouse=True)
def _clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No server at the default address, no token, no configuration of whoever runs the tests."""
    for name in list(os.environ):
        if name.startswith("SIPBRIDGE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("SIPBRIDGE_HTTP__LISTEN", f"127.0.0.1:{free_port()}")
    monkeypatch.setattr(cli, "POLL_S", 0.001)
    monkeypatch.setattr(cli, "SETUP_POLL_S", 0.001)
    monkeypatch.setattr(cli, "_make_app", FakeApp)
    yield
    FakeApp.made = []
    FakeApp.script = []
    FakeApp.start_error = None


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> FakeCalls:
    """The calls of a server that runs."""
    calls = FakeCalls()
    token = read_or_make_token(token_path())
    transport = httpx.ASGITransport(create_api(calls, [token], asyncio.Event()))
    monkeypatch.setattr(cli, "ApiClient", functools.partial(ApiClient, transport=transport))
    return calls


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.cli, arguments, catch_exceptions=False)


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    """A sound file of two seconds."""
    path = tmp_path / "sound.wav"
    soundfile.write(path, np.zeros(16000, np.int16), 8000)
    return path


# ---------------------------------------------------------------- help and version


@pytest.mark.parametrize(
    "command", ["serve", "check", "dial", "calls", "hangup", "rebridge", "dtmf", "rooms", "version"]
)
def test_each_command_explains_itself(command: str) -> None:
    assert f"\n  {command} " in run("--help").stdout
    result = run(command, "--help")
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) >= 5


def test_version() -> None:
    assert re.fullmatch(r"sipbridge \d+\.\d+\.\d+ \(Python .*\)\n", run("version").stdout)
    assert set(json.loads(run("version", "--json").stdout)) == {"sipbridge", "python"}


def test_wrong_usage_is_2() -> None:
    assert run("nothing").exit_code == 2
    assert run("dial").exit_code == 2
    assert run("calls", "--nothing").exit_code == 2


# ---------------------------------------------------------------- calls of the running server


def test_calls_are_listed(server: FakeCalls) -> None:
    server.add("c1")
    server.add("c2", from_="\x1b[2Jevil")
    result = run("calls")
    assert result.exit_code == 0
    heading, first, second = result.stdout.splitlines()
    assert heading.split()[:3] == ["ID", "DIRECTION", "FROM"]
    assert first.split()[:7] == ["c1", "inbound", "1001", "demo", "local:demo", "active", "PCMU"]
    assert "\x1b" not in second
    listed = json.loads(run("calls", "--json").stdout)["calls"]
    assert [call["id"] for call in listed] == ["c1", "c2"]
    assert listed[0]["from"] == "1001"


def test_nothing_to_list(server: FakeCalls) -> None:
    assert run("calls").stdout == "no calls\n"
    assert run("rooms").stdout == "no rooms\n"
    assert json.loads(run("rooms", "--json").stdout) == {"rooms": []}


def test_rooms_are_listed(server: FakeCalls) -> None:
    server.room_views = [RoomView(name="demo", rate_hz=16000, members=("c1", "c2"))]
    assert run("rooms").stdout.splitlines()[1].split() == ["demo", "16000", "Hz", "c1", "c2"]


def test_call_is_hung_up(server: FakeCalls) -> None:
    server.add("c1")
    result = run("hangup", "c1")
    assert (result.exit_code, result.output) == (0, "")
    assert server.hung_up == ["c1"]


def test_digits_are_sent(server: FakeCalls) -> None:
    server.add("c1")
    result = run("dtmf", "c1", "12w#")
    assert (result.exit_code, result.output) == (0, "")
    assert server.digits == [("c1", "12w#")]
    assert run("dtmf", "c1", "12x").exit_code == 2


def test_a_telephone_is_transferred(server: FakeCalls) -> None:
    server.add("c1")
    result = run("transfer", "c1", "200")
    assert (result.exit_code, result.output) == (0, "")
    assert server.transfers == [("c1", "200")]
    server.add("c2")
    server.error = CallError(EndReason(EndKind.NOT_FOUND, "Not Found", Party.CALLER, 404))
    result = run("transfer", "c2", "201")
    assert result.exit_code == 1
    assert "404 Not Found" in result.stderr


def test_channel_is_changed(server: FakeCalls) -> None:
    server.add("c1")
    result = run("rebridge", "c1", "local:next")
    assert (result.exit_code, result.output) == (0, "")
    assert server.calls["c1"].target == "local:next"
    assert run("rebridge", "c1", "next").exit_code == 2


def test_networks_that_cannot_be_tried(tmp_path: Path) -> None:
    """What is not known, and what is not configured."""
    config = tmp_path / "sipbridge.toml"
    config.write_text("")
    result = run("check", "--config", str(config), "--online", "skype")
    assert (result.exit_code, "can be tried online: agora" in result.stderr) == (2, True)
    result = run("check", "--config", str(config), "--online", "agora")
    assert (result.exit_code, "there is no [agora]" in result.stderr) == (2, True)


def test_unknown_call_is_1(server: FakeCalls) -> None:
    result = run("hangup", "nobody")
    assert result.exit_code == 1
    assert result.stderr == "sipbridge: there is no call 'nobody'\n"


@pytest.mark.parametrize(
    "arguments", [["calls"], ["rooms"], ["hangup", "c1"], ["dtmf", "c1", "1"], ["transfer", "c1", "2"]]
)
def test_without_a_server_is_1(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 1
    assert "no server answers at" in result.stderr
    assert "sipbridge serve" in result.stderr


def test_server_that_refuses_our_token_is_1(server: FakeCalls) -> None:
    token_path().unlink()
    result = run("calls")
    assert result.exit_code == 1
    assert "token" in result.stderr


# ---------------------------------------------------------------- dial


def test_dial_by_the_running_server(server: FakeCalls, sound: Path) -> None:
    server.script = [{}, {}, {"state": "ringing"}, ANSWERED, HUNG_UP]
    arguments = ["--target", "local:demo", "--from", "1001", "--header", "X-A=1=2", "--header", "X-B="]
    arguments += ["--play", str(sound), "--dtmf", "w1#", "--ring", "7", "--record", "heard.wav"]
    result = run("dial", "sip:alice@example.com", *arguments)
    assert result.exit_code == 0, result.output
    (asked,) = server.requests
    assert (asked.to, asked.target, asked.from_) == ("sip:alice@example.com", "local:demo", "1001")
    assert asked.headers == {"X-A": "1=2", "X-B": ""}
    assert (asked.play, asked.record) == (str(sound), str(Path.cwd() / "heard.wav"))
    assert (asked.dtmf, asked.ring_s) == ("w1#", 7)
    assert asked.max_duration_s == 2.5  # the file and half a second
    assert FakeApp.made == []
    assert result.stdout.splitlines() == [
        "calling sip:alice@example.com (call out-1)",
        "ringing",
        "answered, PCMU",
        "ended after 3.2 s by the callee: Normal",
    ]


def test_duration_has_the_last_word(server: FakeCalls, sound: Path) -> None:
    server.script = [ANSWERED, HUNG_UP]
    assert run("dial", "sip:a@example.com", "--play", str(sound), "--duration", "9").exit_code == 0
    assert server.requests[0].max_duration_s == 9


def test_without_file_and_duration_the_call_is_not_limited(server: FakeCalls) -> None:
    server.script = [ANSWERED, HUNG_UP]
    assert run("dial", "sip:a@example.com").exit_code == 0
    assert server.requests[0].max_duration_s == 0


def test_refused_dial_is_1_with_the_sip_code(server: FakeCalls) -> None:
    server.script = [{"state": "ringing"}, BUSY]
    result = run("dial", "sip:a@example.com")
    assert result.exit_code == 1
    assert result.stderr == "sipbridge: 486 Busy Here\n"


@pytest.mark.parametrize("kind", [EndKind.MEDIA_TIMEOUT, EndKind.TRANSPORT, EndKind.CHANNEL_FAILED])
def test_call_that_broke_is_1(server: FakeCalls, kind: EndKind) -> None:
    server.script = [ANSWERED, {"seconds": 20.0, "end": EndReason(kind, "it broke")}]
    assert run("dial", "sip:a@example.com").exit_code == 1


@pytest.mark.parametrize("kind", [EndKind.MAX_DURATION, EndKind.ALONE, EndKind.CHANNEL_CLOSED])
def test_call_that_ended_as_asked_is_0(server: FakeCalls, kind: EndKind) -> None:
    server.script = [ANSWERED, {"seconds": 20.0, "end": EndReason(kind, "")}]
    assert run("dial", "sip:a@example.com").exit_code == 0


def test_dial_as_json_prints_the_call_alone(server: FakeCalls) -> None:
    server.script = [ANSWERED, HUNG_UP]
    result = run("dial", "sip:a@example.com", "--json")
    call = json.loads(result.stdout)
    assert (call["state"], call["end"]["kind"], call["seconds"]) == ("ended", "hangup", 3.25)
    server.script = [BUSY]
    result = run("dial", "sip:a@example.com", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["end"]["sip_code"] == 486
    assert "486" in result.stderr


def test_server_that_cannot_dial_says_why(server: FakeCalls) -> None:
    server.error = ConfigError("there is no trunk 'x'")
    result = run("dial", "123", "--trunk", "x")
    assert (result.exit_code, result.stderr) == (2, "sipbridge: there is no trunk 'x'\n")
    server.error = CallError(EndReason(EndKind.SHUTDOWN, "the server is going down"))
    result = run("dial", "sip:a@example.com")
    assert (result.exit_code, result.stderr) == (1, "sipbridge: 503 the server is going down\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--header", "X-A"], "--header: 'X-A' has no =; expected NAME=VALUE"),
        (["--header", "X-A=1\r\nX-B: 2"], "--header: header X-A contains a control character"),
        (["--target", "nothing"], "--target: 'nothing' is no target"),
        (["--from", "a@b"], "--from: 'a@b' is neither a number nor a URI"),
        (["--dtmf", "12x"], "--dtmf: "),
        (["--ring", "-1"], "--ring: "),
        (["--play", "/nowhere/a.wav"], "--play: /nowhere/a.wav: No such file or directory"),
        (["--play", "/etc/passwd"], "--play: /etc/passwd is no sound file"),
        (["--record", "/nowhere/a.wav"], "--record: there is no folder /nowhere"),
        (["--config", "/nowhere/a.toml"], "/nowhere/a.toml: cannot read it"),
        (["--trunk", "nobody"], "--trunk: there is no trunk 'nobody'"),
    ],
)
def test_wrong_dial_is_2_and_starts_nothing(arguments: list[str], message: str) -> None:
    result = run("dial", "sip:a@example.com", *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"sipbridge: {message}")
    assert FakeApp.made == []


def test_dial_without_a_server_runs_one_for_the_call(tmp_path: Path) -> None:
    file = tmp_path / "sipbridge.toml"
    file.write_text('[sip]\nlisten = "192.0.2.1:5060"\nrtp_ports = [40000, 40099]\n', encoding="utf-8")
    FakeApp.script = [ANSWERED, HUNG_UP]
    result = run("dial", "sip:a@example.com", "--config", str(file))
    assert result.exit_code == 0
    (app,) = FakeApp.made
    assert app.is_stopped
    assert not app.http
    assert app.config.sip.listen[0] == "0.0.0.0:0"
    assert app.config.sip.rtp_ports == (40000, 40099)
    assert app.config.rule == ()  # nobody is let in meanwhile
    assert app.config.log.level == "warning"
    assert app.calls.requests[0].to == "sip:a@example.com"


def test_own_server_that_cannot_start_is_2() -> None:
    FakeApp.start_error = ConfigError("no RTP ports")
    result = run("dial", "sip:a@example.com")
    assert (result.exit_code, result.stderr) == (2, "sipbridge: no RTP ports\n")


def test_dial_with_a_server_of_somebody_else_makes_its_own_call(server: FakeCalls) -> None:
    token_path().unlink()
    FakeApp.script = [ANSWERED, HUNG_UP]
    result = run("dial", "sip:a@example.com")
    assert result.exit_code == 0
    assert "calling without it" in result.stderr
    assert server.requests == []
    assert len(FakeApp.made) == 1


def test_named_server_has_to_be_there() -> None:
    result = run("dial", "sip:a@example.com", "--api", "http://127.0.0.1:1")
    assert result.exit_code == 1
    assert FakeApp.made == []


def test_terminal_shows_levels(server: FakeCalls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("typer.testing._NamedTextIOWrapper.isatty", lambda _: True, raising=False)
    server.script = [ANSWERED, {"seconds": 61.0, "capture_level_dbfs": -12.0}, HUNG_UP]
    result = run("dial", "sip:a@example.com")
    assert "  1:01  from callee ████████·· -12 dB  to callee ·········· silent" in result.stdout
    assert result.stdout.endswith("\nended after 3.2 s by the callee: Normal\n")


# ---------------------------------------------------------------- check


def test_check_shows_what_a_server_would_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port, http_port = free_port(), free_port()
    monkeypatch.delenv("SIPBRIDGE_HTTP__LISTEN")
    file = tmp_path / "sipbridge.toml"
    file.write_text(
        textwrap.dedent(
            f"""
            [sip]
            listen = "0.0.0.0:{port}"
            [http]
            listen = "127.0.0.1:{http_port}"
            [[trunk]]
            name = "carrier"
            allowed_addresses = "192.0.2.0/24"
            outbound = {{ servers = "sip.example.com", auth = {{ username = "u", password = "hidden" }} }}
            [[rule]]
            name = "support"
            to = "+49*"
            target = "local:support"
            """
        ),
        encoding="utf-8",
    )
    result = run("check", "--config", str(file))
    assert result.exit_code == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["udp", f"0.0.0.0:{port}", "free"] in lines
    assert ["http", f"127.0.0.1:{http_port}", "free"] in lines
    assert [
        "carrier",
        "trunk",
        "192.0.2.0/24",
        "-",
        "sip.example.com",
        "PCMU",
        "PCMA",
        "G722",
        "opus",
    ] in lines
    assert ["support", "any", "any", "+49*", "local:support"] in lines
    assert ["udp", "20000-29999", "RTP", "and", "RTCP"] in lines
    assert "Open files:" in result.stdout
    answer = run("check", "--config", str(file), "--json")
    data = json.loads(answer.stdout)
    assert [listener["problem"] for listener in data["listeners"]] == [None, None, None]
    assert data["rules"][0]["to"] == "+49*"
    assert data["open_files"]["needed"] == 1056
    assert "hidden" not in result.output + answer.output


def test_check_names_who_has_a_port(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        monkeypatch.setenv("SIPBRIDGE_HTTP__LISTEN", f"127.0.0.1:{port}")
        monkeypatch.setenv("SIPBRIDGE_SIP__LISTEN", f"127.0.0.1:{free_port()}")
        result = run("check")
    assert result.exit_code == 2
    message = f"port {port}/tcp is in use by "
    assert message in result.stdout
    assert result.stderr.startswith(f"sipbridge: [http] listen: {message}")
    assert f"(pid {os.getpid()})" in result.stderr


def test_check_says_when_too_few_files_may_be_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIPBRIDGE_SIP__LISTEN", f"127.0.0.1:{free_port()}")
    monkeypatch.setattr("resource.getrlimit", lambda _: (256, 512))
    result = run("check")
    assert result.exit_code == 0
    assert "1056 are needed for max_calls, and the system allows 512" in result.stdout
    assert "LimitNOFILE=1056" in result.stdout


@pytest.mark.parametrize("command", ["check", "serve"])
def test_wrong_configuration_is_2_with_its_place(command: str, tmp_path: Path) -> None:
    file = tmp_path / "sipbridge.toml"
    file.write_text('[sip]\nlissten = "0.0.0.0:5060"\n[log]\nlevel = 5\n', encoding="utf-8")
    result = run(command, "--config", str(file))
    assert result.exit_code == 2
    first, second = result.stderr.splitlines()
    assert first.startswith(f'sipbridge: {file}: [sip] lissten: unknown key; did you mean "listen"?')
    assert second.startswith(f"sipbridge: {file}: [log] level: ")
    assert FakeApp.made == []


# ---------------------------------------------------------------- serve


def test_serve_that_cannot_listen_is_2_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "sipbridge.toml"
    file.write_text("", encoding="utf-8")
    FakeApp.start_error = ConfigError(
        "port 5060/udp is in use by asterisk (pid 812)", table="sip", key="listen"
    )
    result = run("serve", "--config", str(file))
    assert result.exit_code == 2
    assert (
        result.stderr == f"sipbridge: {file}: [sip] listen: port 5060/udp is in use by asterisk (pid 812)\n"
    )


PHONE = """
[[trunk]]
name = "alice"
kind = "phone"
allowed_addresses = "127.0.0.0/8"
auth = { username = "alice", password = "hidden" }
[[rule]]
name = "rooms"
target = "local:{callee}"
"""
CARRIER = """
[[trunk]]
name = "carrier"
outbound = { servers = "sip.example.com" }
"""


@pytest.mark.parametrize(
    ("text", "listening", "says", "says_not"),
    [
        ("", "udp 0.0.0.0:5060", ["dial sip:echo@127.0.0.1:5060 --play"], ["NUMBER", "registers"]),
        ("", "tcp [::]:5062", ["dial 'sip:echo@[::1]:5062;transport=tcp' --play"], []),
        ("", "udp 192.0.2.1:5060", [], ["dial sip:"]),  # calls come from there, and only loopback is let in
        (PHONE, "udp 127.0.0.1:5060", ["registers as alice at 127.0.0.1:5060 (UDP)", "dial alice"], ["demo"]),
        (CARRIER, "udp 0.0.0.0:5060", ["dial NUMBER --trunk carrier"], ["demo", "registers"]),
    ],
    ids=["default", "tcp", "address", "phone", "carrier"],
)
def test_first_call_is_one_that_this_configuration_lets_in(
    text: str, listening: str, says: list[str], says_not: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "sipbridge.toml"
    file.write_text(text, encoding="utf-8")
    lines = "\n".join(cli._first_call(load_config(file, {}), [listening, "http 127.0.0.1:8080"]))
    assert all(part in lines for part in says)
    assert not any(part in lines for part in says_not)
    assert "hidden" not in lines


@pytest.mark.parametrize(
    ("target", "is_offered"), [("local:{callee}", True), ("local:demo", True), ("livekit:{callee}", False)]
)
def test_a_link_is_offered_where_callers_meet_in_rooms(target: str, is_offered: bool) -> None:
    """To their room; elsewhere a browser that came would be alone for ever."""
    table = {
        "trunk": [{"name": "line", "allowed_addresses": ["192.0.2.1"]}],
        "rule": [{"name": "all", "target": target}],
        "livekit": {"url": "ws://127.0.0.1:1", "api_key": "key", "api_secret": 32 * "x"},
    }
    read_or_make_token(token_path())
    lines = list(cli._first_room(Config.model_validate(table), ["http 127.0.0.1:8080"]))
    assert any("http://127.0.0.1:8080/rooms/demo#" in line for line in lines) == is_offered


@pytest.mark.parametrize(
    ("limits", "raised"),
    [
        ((1024, 4096), [(1056, 4096)]),
        ((1024, 1024), [(1024, 1024)]),
        ((1024, -1), [(1056, -1)]),
        ((2048, 4096), []),
    ],
)
def test_limit_of_open_files_is_raised_as_far_as_allowed(
    limits: tuple[int, int],
    raised: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr("resource.getrlimit", lambda _: limits)
    monkeypatch.setattr("resource.setrlimit", lambda _, pair: seen.append(pair))
    cli._raise_open_files(1056)
    assert seen == raised
    assert ("LimitNOFILE=1056" in capsys.readouterr().err) == (limits == (1024, 1024))


# A process of its own, because signals are its matter.
_SERVER = """
import asyncio
from sipbridge import cli
from tests.support.fake_calls import FakeCalls

class App:
    def __init__(self, config, *, http=True):
        self.calls = FakeCalls([{"state": "ringing"}])
        self.listening = ["udp 0.0.0.0:5060", "tcp 0.0.0.0:5060", "http 127.0.0.1:8080"]
    async def start(self): pass
    async def drain(self, timeout_s):
        print("draining", timeout_s, flush=True)
        if DRAINS_FOR_EVER:
            await asyncio.Event().wait()
    async def stop(self):
        print("stopped", flush=True)

cli._make_app = App
cli.main()
"""


class Process:
    """A command in a process, whose output is read by line."""

    def __init__(self, *arguments: str, drains_for_ever: bool = False) -> None:
        code = _SERVER.replace("DRAINS_FOR_EVER", str(drains_for_ever))
        command = [sys.executable, "-c", code, *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def read_until(self, text: str) -> str:
        """The output up to a line that has `text`."""
        assert self.process.stdout is not None
        read = ""
        for line in self.process.stdout:
            read += line
            if text in line:
                return read
        raise AssertionError(f"{text!r} was not printed: {read}{self.process.communicate()[1]}")

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> tuple[int, str, str]:
        """Exit code, the rest of the output, and the errors."""
        out, errors = self.process.communicate(timeout=20)
        return self.process.returncode, out, errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_drains_then_ends(number: int) -> None:
    with Process("serve") as server:
        text = server.read_until("sip:echo@127.0.0.1:5060\n")
        assert "  udp   0.0.0.0:5060\n" in text
        assert "http://127.0.0.1:8080/docs" in text
        assert "dial sip:echo@127.0.0.1:5060 --play FILE.wav --record heard.wav" in text
        server.signal(number)
        code, out, _ = server.end()
    assert (code, out) == (0, "draining 60.0\nstopped\n")


def test_second_signal_ends_at_once() -> None:
    with Process("serve", "--json", drains_for_ever=True) as server:
        assert json.loads(server.read_until("}"))["listening"][0] == "udp 0.0.0.0:5060"
        server.signal(signal.SIGTERM)
        server.read_until("draining")
        server.signal(signal.SIGTERM)
        code, out, _ = server.end()
    assert (code, out) == (0, "stopped\n")


def test_ctrl_c_hangs_up_and_waits_for_the_end() -> None:
    with Process("dial", "sip:a@example.com") as call:
        call.read_until("ringing")
        call.signal(signal.SIGINT)
        code, out, errors = call.end()
    assert code == 1  # it was not answered
    assert out == "ended after 0.0 s by the operator: asked by the operator\nstopped\n"
    assert "487 asked by the operator" in errors
