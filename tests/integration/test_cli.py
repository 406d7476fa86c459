# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line, as a user runs it."""

import os
import signal
import socket
from pathlib import Path

import pytest

from tests.conftest import MakeCall, MakePeer, RunSipp
from tests.support import audio, toml
from tests.support.command import environment_of, finish, lone_environment, run, start
from tests.support.ports import free_port
from tests.support.server import Server, clean_environment


def test_version(tmp_path: Path) -> None:
    """For people and as JSON."""
    environment = lone_environment(tmp_path)
    assert run("version", environment=environment).out.startswith("sipbridge ")
    assert run("version", "--json", environment=environment).json()["sipbridge"]


def test_no_command_is_usage(tmp_path: Path) -> None:
    """Wrong usage is exit code 2."""
    environment = lone_environment(tmp_path)
    assert run("nonsense", environment=environment).code == 2
    assert run("dial", environment=environment).code == 2


def test_calls_and_rooms(server: Server, call: MakeCall) -> None:
    """Who calls and who is in which room, for people and as JSON."""
    party = call("room-cli")
    environment = environment_of(server)
    shown = run("calls", environment=environment)
    assert shown.code == 0
    assert party.caller in shown.out
    found = [
        item
        for item in run("calls", "--json", environment=environment).json()["calls"]
        if item["state"] == "active"
    ]
    assert [item["from"] for item in found] == [party.caller]
    rooms = run("rooms", "--json", environment=environment).json()["rooms"]
    assert [(room["name"], room["members"]) for room in rooms] == [("room-cli", [found[0]["id"]])]
    assert "room-cli" in run("rooms", environment=environment).out


def test_dtmf_and_hangup(server: Server, call: MakeCall) -> None:
    """Digits reach the telephone, and so does the BYE."""
    party = call("silence")
    environment = environment_of(server)
    call_id = server.call_of(party.caller)["id"]
    assert run("dtmf", call_id, "1w5#", environment=environment).code == 0
    party.rtp.wait_digits("15#")
    assert run("dtmf", call_id, "xyz", environment=environment).code != 0
    assert run("hangup", call_id, environment=environment).code == 0
    party.dialog.wait_bye()
    assert server.ended(party.caller).by == "operator"


def test_unknown_call(server: Server) -> None:
    """A call that is not there is exit code 1, with a word about it."""
    for arguments in (("hangup", "nothing"), ("dtmf", "nothing", "1")):
        result = run(*arguments, environment=environment_of(server))
        assert result.code == 1
        assert "nothing" in result.err


def test_no_server(tmp_path: Path) -> None:
    """Without a server, commands about its calls say so."""
    result = run("calls", environment=lone_environment(tmp_path))
    assert result.code == 1
    assert "no server" in result.err


@pytest.mark.parametrize("with_server", [True, False])
def test_dial_plays_and_records(
    with_server: bool,
    request: pytest.FixtureRequest,
    sipp: RunSipp,
    rtp: MakePeer,
    tmp_path: Path,
) -> None:
    """By the server, or with none by itself: the callee hears the file, and its voice is recorded."""
    if with_server:
        environment = environment_of(request.getfixturevalue("server"))
    else:
        environment = lone_environment(tmp_path)
    played, spoken = audio.speech(2.5, voice=1), audio.speech(10.0, voice=2)
    play = audio.write_wav(tmp_path / "play.wav", played)
    record = tmp_path / "record.wav"
    peer = rtp()
    peer.play(spoken)
    callee = sipp("uas_answer", rtp_port=peer.port)
    result = run(
        "dial",
        f"sip:callee@127.0.0.1:{callee.port}",
        "--play",
        play,
        "--record",
        record,
        environment=environment,
    )
    callee.wait()
    assert result.code == 0, result.err
    assert "ringing" in result.out
    assert "answered" in result.out
    assert audio.likeness(played, peer.heard(), 8000) > 0.9
    recorded, rate_hz = audio.read_wav(record)
    assert len(recorded) > 2 * rate_hz
    assert audio.likeness(spoken, audio.resample(recorded, rate_hz, 8000), 8000) > 0.9


def test_first_call_needs_no_telephone(server: Server, tmp_path: Path) -> None:
    """The server calls itself: what is played comes back from its echo."""
    played = audio.speech(2.5)
    play, record = audio.write_wav(tmp_path / "play.wav", played), tmp_path / "heard.wav"
    uri = f"sip:echo@127.0.0.1:{server.sip_port}"
    result = run("dial", uri, "--play", play, "--record", record, environment=environment_of(server))
    assert result.code == 0, result.err
    recorded, rate_hz = audio.read_wav(record)
    assert audio.likeness(played, audio.resample(recorded, rate_hz, 8000), 8000) > 0.9


def test_dial_with_all_options(server: Server, sipp: RunSipp, rtp: MakePeer, far_ports: list[int]) -> None:
    """Trunk, caller, header, target, digits and duration."""
    peer = rtp()
    callee = sipp("uas_answer", port=far_ports[0], rtp_port=peer.port)
    result = run(
        *("dial", "+4930123", "--trunk", "far", "--from", "+4930999", "--header", "X-Ticket=7"),
        *("--target", "tone:1000", "--dtmf", "12w#", "--duration", "2.5", "--json"),
        environment=environment_of(server),
    )
    callee.wait()
    assert result.code == 0, result.err
    assert (result.json()["state"], result.json()["end"]["kind"]) == ("ended", "max_duration")
    assert "INVITE sip:+4930123@" in callee.messages()
    assert "+4930999" in callee.messages()
    assert "X-Ticket: 7" in callee.messages()
    assert "".join(digit.digit for digit in peer.digits()) == "12#"
    heard = audio.steady_part(peer.heard(), 8000)
    assert audio.find_tone(heard, 8000) == audio.near(1000)


def test_dial_busy(server: Server, sipp: RunSipp) -> None:
    """RefusedError is exit code 1; the code and the reason are on the standard error output."""
    callee = sipp("uas_busy")
    result = run("dial", f"sip:x@127.0.0.1:{callee.port}", environment=environment_of(server))
    callee.wait()
    assert result.code == 1
    assert "486" in result.err


def test_dial_not_answered(tmp_path: Path, sipp: RunSipp) -> None:
    """So is a callee that does not answer in time."""
    callee = sipp("uas_never_answers")
    result = run(
        "dial", f"sip:x@127.0.0.1:{callee.port}", "--ring", "2", environment=lone_environment(tmp_path)
    )
    callee.wait()
    assert result.code == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("12345",),
        ("12345", "--trunk", "nobody"),
        ("sip:a@127.0.0.1:9", "--target", "nonsense:x"),
        ("sip:a@127.0.0.1:9", "--play", "/nonexistent.wav"),
        ("sip:a@127.0.0.1:9", "--record", "/nonexistent/x.wav"),
        ("sip:a@127.0.0.1:9", "--dtmf", "12x"),
        ("sip:a@127.0.0.1:9", "--header", "nonsense"),
    ],
)
def test_dial_usage(arguments: tuple[str, ...], server: Server) -> None:
    """What cannot be dialled is exit code 2, with a word about what is wrong."""
    result = run("dial", *arguments, environment=environment_of(server))
    assert result.code == 2
    assert result.err.startswith("sipbridge: ")


@pytest.mark.parametrize("with_server", [True, False])
def test_ctrl_c_hangs_up(
    with_server: bool,
    request: pytest.FixtureRequest,
    sipp: RunSipp,
    rtp: MakePeer,
    tmp_path: Path,
) -> None:
    """Ctrl-C while it is answered sends a BYE, and leaves when that is done."""
    if with_server:
        environment = environment_of(request.getfixturevalue("server"))
    else:
        environment = lone_environment(tmp_path)
    peer = rtp()
    callee = sipp("uas_answer", rtp_port=peer.port)
    dial = start("dial", f"sip:x@127.0.0.1:{callee.port}", "--target", "tone:1000", environment=environment)
    peer.wait_packets(50, timeout_s=20.0)
    dial.send_signal(signal.SIGINT)
    result = finish(dial)
    callee.wait()
    assert "Traceback" not in result.err
    assert audio.find_tone(audio.steady_part(peer.heard(), 8000), 8000) == audio.near(1000)


def test_check(tmp_path: Path) -> None:
    """A valid configuration: what would listen, and the ports for the firewall."""
    port = free_port()
    path = tmp_path / "good.toml"
    path.write_text(
        toml.dump(
            {
                "sip": {"listen": f"0.0.0.0:{port}", "rtp_ports": [20000, 20999]},
                "http": {"listen": f"127.0.0.1:{free_port()}"},
                "trunk": [{"name": "pbx", "allowed_addresses": ["192.0.2.0/24"]}],
                "rule": [{"name": "all", "trunk": "pbx", "target": "local:{callee}"}],
            }
        )
    )
    environment = clean_environment(tmp_path / "state")
    result = run("check", "--config", path, environment=environment)
    assert result.code == 0, result.err
    assert str(port) in result.out
    assert "20000-20999" in result.out
    told = run("check", "--config", path, "--json", environment=environment).json()
    assert {"transport": "udp", "first": 20000, "last": 20999} in [
        {name: row[name] for name in ("transport", "first", "last")} for row in told["firewall"]
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[sip]\nlistn = 1\n", ["[sip]", "listn"]),
        ("[sip]\nmax_calls = 'many'\n", ["[sip]", "max_calls"]),
        ("[nonsense]\n", ["nonsense"]),
        ("[[trunk]]\nname = 'a'\nallowed_addresses = ['127.0.0.1']\n" * 2, ["trunk", "a"]),
        (
            "[[trunk]]\nname = 'a'\nallowed_addresses = ['127.0.0.1']\n"
            "[[rule]]\nname = 'r'\ntrunk = 'b'\ntarget = 'echo:'\n",
            ["rule", "trunk", '"b"'],
        ),
        ("not toml", ["TOML"]),
    ],
)
@pytest.mark.parametrize("command", ["check", "serve"])
def test_wrong_configuration(command: str, text: str, words: list[str], tmp_path: Path) -> None:
    """An error names file, table and key; exit code 2, and nothing starts."""
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    result = run(command, "--config", path, environment=lone_environment(tmp_path))
    assert result.code == 2
    for word in (str(path), *words):
        assert word in result.err


def test_missing_configuration(tmp_path: Path) -> None:
    """A file that is not there is named."""
    path = tmp_path / "none.toml"
    result = run("serve", "--config", path, environment=lone_environment(tmp_path))
    assert result.code == 2
    assert str(path) in result.err


def test_port_in_use(tmp_path: Path) -> None:
    """A taken port is an error that names the port and the program that has it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
        holder.bind(("127.0.0.1", 0))
        port = holder.getsockname()[1]
        path = tmp_path / "taken.toml"
        path.write_text(toml.dump({"sip": {"listen": f"127.0.0.1:{port}", "transports": ["udp"]}}))
        result = run("serve", "--config", path, environment=lone_environment(tmp_path))
    assert result.code == 2
    assert str(port) in result.err
    assert f"pid {os.getpid()}" in result.err


def test_serve_says_where_it_listens_and_how_to_call(tmp_path: Path) -> None:
    """What a newcomer reads first."""
    port = free_port()
    path = tmp_path / "serve.toml"
    path.write_text(toml.dump({"sip": {"listen": f"127.0.0.1:{port}"}}))
    process = start("serve", "--config", path, environment=lone_environment(tmp_path))
    assert process.stdout is not None
    lines: list[str] = []
    while not any("sip:" in line for line in lines):
        line = process.stdout.readline()
        assert line, finish(process)
        lines.append(line)
    process.terminate()
    result = finish(process)
    said = "".join(lines) + result.out
    assert result.code == 0
    assert f"127.0.0.1:{port}" in said
    assert "dial" in said
