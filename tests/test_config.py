# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of sipbridge.config, and of the files in conf/."""

import json
import re
import tomllib
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr, ValidationError
from pydantic.fields import FieldInfo

from sipbridge.config import (
    AGENT_ENTRY_POINTS,
    AGENT_PROTOCOLS,
    AuthConfig,
    Config,
    HttpConfig,
    LogConfig,
    MediaConfig,
    OutboundConfig,
    RuleConfig,
    SipConfig,
    TlsConfig,
    TrunkConfig,
    config_warnings,
    load_config,
    required_open_files,
    required_ports,
)
from sipbridge.errors import ConfigError
from sipbridge.rtc.websocket.protocol import ENTRY_POINTS, PROTOCOLS
from tests.support.toml import dump

CONF = Path(__file__).parents[1] / "conf"

LOOPBACK = """
[[trunk]]
name = "loopback"
allowed_addresses = ["127.0.0.0/8"]
"""


PBX = """
[[pbx]]
name = "office"
protocol = "audiosocket"
listen = "127.0.0.1:9092"
allowed_addresses = ["127.0.0.1"]
"""


@pytest.fixture
def write(tmp_path: Path) -> typing.Callable[[str], Path]:
    """Writes the text of a configuration and gives its path."""

    def write_text(text: str) -> Path:
        path = tmp_path / "bridge.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write_text


Write = typing.Callable[[str], Path]


def _errors(path: Path | None, environ: Mapping[str, str] | None = None) -> list[str]:
    """The errors as text, without the file in front, which each of the file has."""
    with pytest.raises(ConfigError) as caught:
        load_config(path, environ or {})
    texts = []
    for error in caught.value.errors:
        assert error.file in (path, None)
        texts.append(str(error).removeprefix(f"{error.file}: "))
    assert str(caught.value) == "\n".join(str(error) for error in caught.value.errors)
    return texts


# ---------------------------------------------------------------- what is right


def test_without_a_file_callers_on_this_host_meet_in_rooms() -> None:
    """The default lets in nobody else."""
    config = load_config(None, {})
    (trunk,), (echo, rule) = config.trunk, config.rule
    assert (echo.to, echo.target) == ("echo", "echo:")
    assert [str(network) for network in trunk.allowed_addresses] == ["127.0.0.0/8", "::1/128"]
    assert (trunk.name, rule.target) == ("loopback", "local:{callee}")
    assert config == Config()
    assert config.sip.listen == ("0.0.0.0:5060",)


def test_the_stand_ins_stay_away_from_a_file_with_a_trunk(write: Write) -> None:
    """Nobody gets in who is not in the file."""
    config = load_config(write('[[trunk]]\nname = "a"\nallowed_addresses = "192.0.2.0/24"\n'), {})
    assert [trunk.name for trunk in config.trunk] == ["a"]
    assert config.rule == ()


def test_a_whole_file(write: Write, tmp_path: Path) -> None:
    """Values arrive in their types."""
    for name in ("cert.pem", "key.pem"):
        (tmp_path / name).write_text("PEM")
    (tmp_path / "password.txt").write_text("from-file\n")
    config = load_config(
        write("""
        [sip]
        listen = ["[::]:5060", "192.0.2.1:5070"]
        transports = "tls"
        tls = { certificate = "cert.pem", private_key = "key.pem" }
        public_address = "2001:DB8::1"
        rtp_ports = [10000, 10099]
        codecs = ["g722", "OPUS"]
        max_calls = 50
        media_timeout_s = 5
        [media]
        tick_ms = 20
        [[trunk]]
        name = "pbx"
        allowed_addresses = ["192.0.2.7", "2001:db8::/32"]
        auth = { username = "u", password = { file = "password.txt" } }
        numbers = ["7*", "/1../"]
        headers = { X-A = "b" }
        [trunk.outbound]
        servers = ["Example.com", "[::1]:5060"]
        transport = "tls"
        auth = { username = "o", password = { env = "OUT" } }
        [[rule]]
        name = "first"
        trunk = "pbx"
        from = "/[0-9]+/"
        target = "local:{header:X-Room}"
        ring_s = 2
        [http]
        tokens = ["one", { env = "OUT" }]
        [log]
        json = false
        """),
        {"OUT": "from-environment"},
    )
    assert config.sip.listen == ("[::]:5060", "192.0.2.1:5070")
    assert config.sip.transports == ("tls",)
    assert config.sip.tls is not None
    assert config.sip.tls.certificate == tmp_path / "cert.pem"
    assert config.sip.public_address == "2001:db8::1"
    assert config.sip.codecs == ("G722", "opus")
    assert config.sip.media_timeout_s == 5.0
    (trunk,), (rule,) = config.trunk, config.rule
    assert [str(network) for network in trunk.allowed_addresses] == ["192.0.2.7/32", "2001:db8::/32"]
    assert trunk.auth is not None
    assert trunk.auth.password.get_secret_value() == "from-file"
    assert trunk.outbound is not None
    assert trunk.outbound.servers == ("example.com", "[::1]:5060")
    assert trunk.outbound.auth is not None
    assert trunk.outbound.auth.password.get_secret_value() == "from-environment"
    assert (rule.from_, rule.to, rule.ring_s) == ("/[0-9]+/", None, 2.0)
    assert [token.get_secret_value() for token in config.http.tokens] == ["one", "from-environment"]
    assert config.log.json_ is False


def test_secrets_are_never_shown(write: Write) -> None:
    """Neither by repr and str, nor in an error beside them."""
    text = LOOPBACK + 'auth = { username = "u", password = "hush-1" }\n[http]\ntokens = ["hush-2"]\n'
    config = load_config(write(text), {})
    assert "hush" not in repr(config) + str(config) + repr(config.model_dump()) + config.model_dump_json()
    broken = text.replace('"u"', '"u:v"').replace("hush-2", "hush-2\\n")
    assert len(_errors(write(broken))) == 2
    assert "hush" not in str(_errors(write(broken)))


def test_a_frozen_configuration() -> None:
    """Nobody changes it behind another's back."""
    with pytest.raises(ValidationError):
        Config().sip.max_calls = 1  # type: ignore[misc]


# ---------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("[spi]", '[spi]: unknown table; did you mean "sip"?'),
        ("[sip]\nlistne = 1", '[sip] listne: unknown key; did you mean "listen"?'),
        ("[sip]\nzzz = 1", "[sip] zzz: unknown key"),
        ("[sip]\nlevel = 'info'", "[sip] level: unknown key; it belongs into [log]"),
        ("sip = 3", "[sip]: expected a table"),
        ("sip = []", "[sip]: expected a table"),
        ("[trunk]\nname = 'x'", "[[trunk]]: expected a list of tables, each under [[trunk]]"),
        ("trunk = ['x']", "[[trunk]] #1: expected a table"),
        ("[sip]\nmax_calls = '4'", "[sip] max_calls: should be a valid integer"),
        ("[sip]\nmax_calls = true", "[sip] max_calls: should be a valid integer"),
        ("[sip]\nmax_calls = 0", "[sip] max_calls: should be greater than or equal to 1"),
        ("[sip]\nmax_calls = 5000", "[sip] max_calls: should be less than or equal to 1024"),
        ("[sip]\ndrain_s = nan", "[sip] drain_s: should be a finite number"),
        ("[sip]\nuser_agent = 3", "[sip] user_agent: should be a valid string"),
        ('[sip]\nuser_agent = "a\\r\\nb"', "control character"),
        ("[sip]\nlisten = '5060'", "'5060' is no"),
        ("[sip]\nlisten = '0.0.0.0'", "'0.0.0.0' has no port"),
        ("[sip]\nlisten = ':::5060'", "in brackets"),
        ("[sip]\nlisten = 'localhost:5060'", "[sip] listen (item 1): 'localhost' is no IP address"),
        ("[sip]\nlisten = ['0.0.0.0:5060', '0.0.0.0:99999']", "[sip] listen (item 2): '99999' is no port"),
        ("[sip]\nlisten = []", "[sip] listen: the list is empty"),
        ("[sip]\nlisten = ['[::]:5', '[0::]:5']", "[sip] listen: [::]:5 is listed twice"),
        ("[sip]\ntransports = 'sctp'", "[sip] transports (item 1): should be 'udp', 'tcp' or 'tls'"),
        (
            "[sip]\ntransports = 'tls'",
            '[sip] transports: "tls" needs certificate and private_key in [sip.tls]',
        ),
        ("[sip.tls]\ncertificate = 'no.pem'", "[sip.tls] certificate: cannot read"),
        ("[sip.tls]\ncertificate = 'no.pem'", "[sip.tls] private_key: is missing"),
        ("[sip]\npublic_address = 'me'", "[sip] public_address: 'me' is no IP address"),
        ("[sip]\nrtp_ports = [20001, 20100]", "[sip] rtp_ports: the first port is even"),
        ("[sip]\nrtp_ports = [20000, 20000]", "[sip] rtp_ports: the last port is greater"),
        ("[sip]\nrtp_ports = [20000]", "[sip] rtp_ports"),
        ("[sip]\nrtp_ports = [0, 70000]", "[sip] rtp_ports (item 2): should be less than"),
        ("[sip]\ncodecs = ['G729']", "unknown codec 'G729' (known: PCMU, PCMA, G722, opus)"),
        ("[sip]\ncodecs = ['PMCU']", 'did you mean "PCMU"?'),
        ("[sip]\ncodecs = ['pcmu', 'PCMU']", "[sip] codecs: PCMU is listed twice"),
        ("[media]\ntick_ms = 7", "[media] tick_ms: should be 5, 10 or 20"),
        ("[log]\njson = 1", "[log] json: should be a valid boolean"),
        ("[webrtc]\nports = [30010, 30000]", "[webrtc] ports: the last port is not less than the first"),
        ("[webrtc]\nbind_address = 'eth0'", "[webrtc] bind_address: 'eth0' is no IP address"),
        ("[webrtc]\ncodecs = ['VP8']", "[webrtc] codecs (item 1): unknown codec 'VP8'"),
        ("[webrtc.opus]\nbitrate = 64", "[webrtc] opus.bitrate: should be greater than or equal to 6000"),
        (
            "[[webrtc.ice_servers]]\nurl = 'stun://example.com'",
            "[webrtc] ice_servers (item 1).url: 'stun://example.com' is no ICE server",
        ),
        (
            "[[webrtc.ice_servers]]\nurl = 'turns:example.com'",
            "ice_servers (item 1).url: 'turns:example.com': a TURN server is spoken with over UDP alone",
        ),
        (
            "[[webrtc.ice_servers]]\nurl = 'turn:example.com'",
            "ice_servers (item 1).username: a TURN server needs username and credential",
        ),
        (
            "[[webrtc.ice_servers]]\nurl = 'stun:example.com'\nusername = 'me'",
            "ice_servers (item 1).username: a STUN server asks for no user",
        ),
        ("[http]\nlisten = 'x'", "[http] listen: 'x' has no port"),
        ("[http]\ntokens = ['']", "[http] tokens (item 1): the secret is empty"),
        (
            "[http]\ntokens = [{ env = 'NO' }]",
            "[http] tokens (item 1): the environment variable NO is not set",
        ),
        ("[http]\ntokens = [{ evn = 'NO' }]", "a secret is"),
        ("[http]\ntokens = [{ file = 'none' }]", "[http] tokens (item 1): cannot read"),
        ("[http]\ntokens = [3]", "a secret is"),
        ("[[trunk]]\nname = 'x'", '[[trunk]] "x": no call can use this trunk'),
        ("[[trunk]]\nallowed_addresses = '::1'", "[[trunk]] #1 name: is missing"),
        ("[[trunk]]\nname = 'a b'\nallowed_addresses = '::1'", "[[trunk]] #1 name: a name has"),
        (
            LOOPBACK + "numbers = '/(/'",
            '[[trunk]] "loopback" numbers (item 1): /(/ is no regular expression: missing )',
        ),
        ("[[trunk]]\nname = 'x'\nallowed_addresses = '1.2.3.4/8'", "(item 1): 1.2.3.4/8 has host bits set"),
        (
            "[[trunk]]\nname = 'x'\nallowed_addresses = 'pbx'",
            "'pbx' does not appear to be an IPv4 or IPv6 network",
        ),
        (
            "[[trunk]]\nname = 'x'\nallowed_addresses = 5",
            '[[trunk]] "x" allowed_addresses: should be a list',
        ),
        ("[[trunk]]\nname = 'x'\nkind = 'phone'", '[[trunk]] "x" auth: a phone registers'),
        (
            LOOPBACK + "kind = 'phone'\nauth = {username = 'u', password = 'p'}\noutbound = {servers = 'h'}",
            '[[trunk]] "loopback" outbound: a phone is called where it registered',
        ),
        (LOOPBACK + "auth = {username = 'u'}", '[[trunk]] "loopback" auth.password: is missing'),
        (LOOPBACK + "auth = {username = 'a:b', password = 'p'}", "auth.username: a user name"),
        (
            LOOPBACK + "auth = {username = 'a', pasword = 'p'}",
            'auth.pasword: unknown key; did you mean "password"?',
        ),
        (LOOPBACK + "outbound = {}", "outbound.servers: is missing"),
        (
            LOOPBACK + "outbound = {servers = 'sip:h'}",
            "outbound.servers (item 1): 'sip:h': a server is written",
        ),
        (
            LOOPBACK + "outbound = {servers = 'h', transport = 'tls'}",
            '"tls" is not among the transports of [sip]',
        ),
        (LOOPBACK + 'headers = { X = "a\\r\\nVia: b" }', "headers: header X contains a control character"),
        (LOOPBACK + "headers = { Via = 'x' }", "headers: Via is written by the bridge itself"),
        (LOOPBACK + LOOPBACK, '[[trunk]] "loopback" name: there is already a trunk "loopback"'),
        (LOOPBACK + LOOPBACK.replace("loopback", "b"), '127.0.0.0/8 is already in trunk "loopback"'),
        (LOOPBACK + "[[rule]]\nname = 'r'", '[[rule]] "r" target: is missing'),
        (LOOPBACK + "[[rule]]\ntarget = 'echo:'", "[[rule]] #1 name: is missing"),
        (LOOPBACK + "[[rule]]\nname = 'r'\ntarget = 'demo'", "[[rule]] \"r\" target: 'demo' is no target"),
        (LOOPBACK + "[[rule]]\nname = 'r'\ntarget = 'local:{calle}'", "{calle} is not one of {caller}"),
        (
            LOOPBACK + "[[rule]]\nname = 'r'\ntarget = 'echo:'\nto = '/*/'",
            '[[rule]] "r" to: /*/ is no regular',
        ),
        (
            LOOPBACK + "[[rule]]\nname = 'r'\ntarget = 'echo:'\nfrom = ''",
            '[[rule]] "r" from: an empty pattern',
        ),
        (
            LOOPBACK + "[[rule]]\nname = 'r'\ntarget = 'echo:'\nfrom_ = 'x'",
            'from_: unknown key; did you mean "from"?',
        ),
        (
            LOOPBACK + "[[rule]]\nname = 'r'\ntarget = 'echo:'\ntrunk = 'lopback'",
            '[[rule]] "r" trunk: there is no trunk "lopback"; did you mean "loopback"?',
        ),
        (LOOPBACK + "[[rule]]\nname = 'r'\ntarget = 'echo:'\n" * 2, 'there is already a rule "r"'),
        ("[[rule]]\nname = 'r'\ntarget = 'echo:'\n", "[[rule]]: there are rules but no [[trunk]]"),
        (PBX.replace("allowed_addresses", "#"), '[[pbx]] "office" allowed_addresses: nobody is let in'),
        (PBX + "auth = {username = 'a', password = 'b'}", '[[pbx]] "office" auth: audiosocket has no user'),
        (PBX.replace(":9092", ""), '[[pbx]] "office" listen: '),
        (PBX.replace("audiosocket", "sip"), '[[pbx]] "office" protocol: '),
        (PBX + PBX, 'there is already a pbx "office"'),
        (PBX + LOOPBACK.replace("loopback", "office"), 'there is already a trunk "office"'),
    ],
)
def test_what_is_wrong_is_told_with_its_place(write: Write, text: str, error: str) -> None:
    """File, table and key, and the near miss."""
    assert any(error in line for line in _errors(write(text)))


def test_all_errors_are_reported(write: Write) -> None:
    """Also those between tables of which one is wrong itself."""
    errors = _errors(
        write("""
        [sip]
        lisen = "0.0.0.0:5060"
        max_calls = "many"
        [[trunk]]
        name = "a"
        nat = "perhaps"
        allowed_addresses = "::1"
        [[trunk]]
        name = "a"
        allowed_addresses = "::1"
        [[rule]]
        name = "r"
        target = "{x}"
        trunk = "b"
        [loging]
        """),
        {"SIPBRIDGE_HTTP__LISTEN": "nowhere"},
    )
    assert len(errors) == 8
    places = [
        "[loging]:",
        "[sip] lisen:",
        "[sip] max_calls:",
        '[[trunk]] "a" nat:',
        '[[trunk]] "a" name: there is already',
        '[[rule]] "r" target:',
        '[[rule]] "r" trunk:',
        "SIPBRIDGE_HTTP__LISTEN:",
    ]
    assert [place for place in places if not any(line.startswith(place) for line in errors)] == []


def test_toml_that_is_none(write: Write) -> None:
    """Line and column are told."""
    (error,) = _errors(write("[sip]\nlisten = \n"))
    assert re.search(r"not valid TOML: .*line 2, column 10", error)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """None, a folder, and one that is no text."""
    assert _errors(tmp_path / "none.toml") == ["cannot read it: No such file or directory"]
    assert _errors(tmp_path) == ["cannot read it: Is a directory"]
    (tmp_path / "latin.toml").write_bytes(b'[sip]\nuser_agent = "\xff"')
    assert _errors(tmp_path / "latin.toml") == ["not UTF-8 text (byte 20)"]


def test_tls_files_must_be_readable(write: Write, tmp_path: Path) -> None:
    """A folder in place of the key is found before anything starts."""
    (tmp_path / "cert.pem").write_text("PEM")
    (error,) = _errors(write(f'[sip.tls]\ncertificate = "cert.pem"\nprivate_key = "{tmp_path}"\n'))
    assert error == f"[sip.tls] private_key: cannot read {tmp_path}: Is a directory"


def test_tls_needs_a_port_of_its_own(write: Write, tmp_path: Path) -> None:
    """TLS and TCP cannot share one."""
    (tmp_path / "p.pem").write_text("PEM")
    tls = {"certificate": "p.pem", "private_key": "p.pem", "port": 5060}
    text = dump({"sip": {"transports": ["tcp", "tls"], "tls": tls}})
    assert _errors(write(text)) == ["[sip.tls] port: 5060 is already taken by TCP in listen"]


def test_two_trunks_of_one_network_are_told_apart_by_users(write: Write) -> None:
    """Two phones of one network are right; two that share a user are not."""
    text = dump(
        {
            "trunk": [
                {
                    "name": name,
                    "kind": "phone",
                    "allowed_addresses": ["10.0.0.0/8"],
                    "auth": {"username": name, "password": "p"},
                }
                for name in ("alice", "bob")
            ]
        }
    )
    assert len(load_config(write(text), {}).trunk) == 2
    same = text.replace('"username" = "bob"', '"username" = "alice"')
    assert _errors(write(same)) == [
        '[[trunk]] "bob" auth.username: "alice" is already the user of trunk "alice"'
    ]


def test_models_built_in_code_are_held_to_the_same() -> None:
    """The whole and its parts."""
    trunk = TrunkConfig(name="a", auth=AuthConfig(username="u", password=SecretStr("p")))
    rule = RuleConfig(name="r", target="echo:", from_="1*", trunk="b")
    with pytest.raises(ValidationError, match='there is no trunk "b"'):
        Config(trunk=(trunk,), rule=(rule,))
    with pytest.raises(ValidationError, match="no call can use"):
        TrunkConfig(name="a")
    with pytest.raises(ValidationError, match="brackets"):
        OutboundConfig(servers=("::1",))
    with pytest.raises(ValidationError, match="cannot read"):
        TlsConfig(certificate=Path("/nowhere"), private_key=Path("/nowhere"))


# ---------------------------------------------------------------- the environment


def test_the_environment_wins(write: Write, tmp_path: Path) -> None:
    """Every kind of value, over a file."""
    (tmp_path / "p.pem").write_text("PEM")
    environ = {
        "SIPBRIDGE_SIP__LISTEN": "127.0.0.1:0, [::1]:0",
        "SIPBRIDGE_SIP__RTP_PORTS": "[30000, 30999]",
        "SIPBRIDGE_SIP__MAX_CALLS": "12",
        "SIPBRIDGE_SIP__MEDIA_TIMEOUT_S": "2.5",
        "SIPBRIDGE_SIP__CODECS": "opus,PCMA",
        "SIPBRIDGE_SIP__PUBLIC_ADDRESS": "",
        "SIPBRIDGE_SIP__TLS__CERTIFICATE": "p.pem",
        "SIPBRIDGE_SIP__TLS__PRIVATE_KEY": str(tmp_path / "p.pem"),
        "SIPBRIDGE_SIP__TLS__VERIFY": "true",
        "SIPBRIDGE_MEDIA__TICK_MS": "10",
        "SIPBRIDGE_HTTP__TOKENS": '["a", {"env": "SIPBRIDGE_TOKEN"}]',
        "SIPBRIDGE_LOG__LEVEL": "debug",
        "SIPBRIDGE_LOG__JSON": "false",
        "SIPBRIDGE_TOKEN": "no key of a section",
        "HOME": "/root",
    }
    config = load_config(write('[sip]\nmax_calls = 7\npublic_address = "192.0.2.1"\n'), environ)
    assert config.sip.listen == ("127.0.0.1:0", "[::1]:0")
    assert config.sip.rtp_ports == (30000, 30999)
    assert (config.sip.max_calls, config.sip.media_timeout_s) == (12, 2.5)
    assert config.sip.codecs == ("opus", "PCMA")
    assert config.sip.public_address == "192.0.2.1"  # an empty variable is none
    assert config.sip.tls == TlsConfig(
        certificate=tmp_path / "p.pem", private_key=tmp_path / "p.pem", verify=True
    )
    assert config.media.tick_ms == 10
    assert [token.get_secret_value() for token in config.http.tokens] == ["a", "no key of a section"]
    assert (config.log.level, config.log.json_) == ("debug", False)


@pytest.mark.parametrize(
    ("variable", "value", "error"),
    [
        ("SIPBRIDGE_SIP__LISTNE", "x", 'sets no known key; did you mean "SIPBRIDGE_SIP__LISTEN"?'),
        ("SIPBRIDGE_NO__SUCH_THING", "x", "sets no known key"),
        ("SIPBRIDGE_SIP__", "x", "sets no known key"),
        ("SIPBRIDGE_SIP__TLS", "x", "sets no known key"),
        ("SIPBRIDGE_TRUNK__NAME", "x", "sets no known key"),
        ("SIPBRIDGE_SIP__MAX_CALLS", "many", "should be a valid integer"),
        ("SIPBRIDGE_SIP__MAX_CALLS", "0", "should be greater than or equal to 1"),
        ("SIPBRIDGE_SIP__DRAIN_S", "nan", "should be a finite number"),
        ("SIPBRIDGE_SIP__LISTEN", "[1", "'[1' is no address"),
        ("SIPBRIDGE_SIP__RTP_PORTS", "a,b", "should be a valid integer"),
        ("SIPBRIDGE_LOG__JSON", "perhaps", "should be a valid boolean"),
        ("SIPBRIDGE_LOG__LEVEL", "loud", "should be 'debug'"),
        ("SIPBRIDGE_MEDIA__TICK_MS", "7", "should be 5, 10 or 20"),
    ],
)
def test_what_is_wrong_in_the_environment(variable: str, value: str, error: str) -> None:
    """The variable is named, not the file."""
    lines = _errors(None, {variable: value})
    assert all(line.startswith(f"{variable}: ") for line in lines)
    assert any(error in line for line in lines)


@given(
    calls=st.integers(1, 1024),
    timeout=st.floats(1, 86400),
    codecs=st.permutations(["PCMU", "PCMA", "G722", "opus"]),
    as_json=st.booleans(),
)
def test_any_value_comes_through_the_environment(
    calls: int, timeout: float, codecs: list[str], as_json: bool
) -> None:
    """What is written as text is read as what it was."""
    config = load_config(
        None,
        {
            "SIPBRIDGE_SIP__MAX_CALLS": str(calls),
            "SIPBRIDGE_SIP__MEDIA_TIMEOUT_S": str(timeout),
            "SIPBRIDGE_SIP__CODECS": json.dumps(codecs) if as_json else ",".join(codecs),
            "SIPBRIDGE_LOG__JSON": json.dumps(as_json),
        },
    )
    assert (config.sip.max_calls, config.sip.media_timeout_s) == (calls, timeout)
    assert (config.sip.codecs, config.log.json_) == (tuple(codecs), as_json)


# ---------------------------------------------------------------- properties

_WORDS = st.text("abcxyz019./:*[]{}-_ ", max_size=12)
_SCALARS = st.one_of(
    _WORDS,
    st.integers(-(2**40), 2**40),
    st.floats(allow_nan=False),
    st.booleans(),
    st.sampled_from(["udp", "tls", "127.0.0.1:5060", "10.0.0.0/8", "PCMU", "echo:", "phone", "a"]),
)
_KEYS = st.sampled_from(
    [
        *(
            key
            for model in (SipConfig, TrunkConfig, RuleConfig, AuthConfig, OutboundConfig)
            for key in model.model_fields
        ),
        *("from", "json", "level", "tick_ms", "tokens", "env", "file", "zzz"),
    ]
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3),
    max_leaves=8,
)
_TABLES = st.dictionaries(_KEYS, _VALUES, max_size=5)
_FILES = st.fixed_dictionaries(
    {},
    optional={
        "sip": _TABLES,
        "media": _TABLES,
        "trunk": _TABLES | st.lists(_TABLES, min_size=1, max_size=3),
        "rule": _TABLES | st.lists(_TABLES, min_size=1, max_size=3),
        "http": _TABLES,
        "log": _TABLES,
        "zzz": _TABLES,
    },
)


@settings(max_examples=300)
@given(
    tables=_FILES,
    environ=st.dictionaries(_KEYS.map(lambda key: f"SIPBRIDGE_SIP__{key.upper()}"), _WORDS, max_size=2),
)
def test_any_file_is_a_configuration_or_a_config_error(
    tmp_path_factory: pytest.TempPathFactory, tables: dict[str, Any], environ: dict[str, str]
) -> None:
    """No other exception, whatever stands where; and each error names its table or variable."""
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text(dump(tables), encoding="utf-8")
    errors: tuple[ConfigError, ...] = ()
    try:
        load_config(path, environ)
    except ConfigError as error:
        errors = error.errors
    assert all(item.table or item.key for item in errors)


@given(st.binary(max_size=60) | st.text("[]sip\n=\"'#{},.1", max_size=40).map(str.encode))
def test_any_bytes_are_a_configuration_or_a_config_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    """A file that was cut off, or is none at all, is told."""
    path = tmp_path_factory.getbasetemp() / "bytes.toml"
    path.write_bytes(content)
    told = str(path)
    try:
        load_config(path, {})
    except ConfigError as error:
        told = str(error)
    assert str(path) in told


# ---------------------------------------------------------------- what it asks of the machine


def test_required_ports(tmp_path: Path) -> None:
    """All that others reach, once; nothing of the loopback, nor a port the system chooses."""
    (tmp_path / "p.pem").write_text("PEM")
    tls = TlsConfig(certificate=tmp_path / "p.pem", private_key=tmp_path / "p.pem")
    sip = SipConfig(
        listen=("192.0.2.1:5060", "[2001:db8::1]:5060", "127.0.0.1:5090", "0.0.0.0:0"),
        transports=("udp", "tcp", "tls"),
        tls=tls,
        rtp_ports=(10000, 10999),
    )
    assert required_ports(Config(sip=sip, http=HttpConfig(listen="[::]:8080"))) == [
        ("udp", 5060, 5060, "SIP"),
        ("tcp", 5060, 5060, "SIP"),
        ("tcp", 5061, 5061, "SIP over TLS"),
        ("udp", 10000, 10999, "RTP and RTCP"),
        ("tcp", 8080, 8080, "HTTP API"),
        ("udp", 30000, 39999, "WebRTC"),
    ]
    local = Config(
        sip=SipConfig(listen=("127.0.0.1:5060", "[::1]:5060")), http=HttpConfig(listen="localhost:80")
    )
    assert required_ports(local) == []


def test_a_pbx_of_a_rule(write: Write) -> None:
    """Rules name it as they name a trunk; a firewall has to let it in."""
    rule = "[[rule]]\nname = 'r'\ntarget = 'echo:'\ntrunk = 'office'\n"
    config = load_config(write(PBX + rule), {})
    assert config_warnings(config) == []
    assert ("tcp", 9092, 9092, "calls of PBX office") not in required_ports(config)
    config = load_config(write(PBX.replace("127.0.0.1:", "192.0.2.7:") + rule), {})
    assert ("tcp", 9092, 9092, "calls of PBX office") in required_ports(config)
    without = load_config(write(PBX + LOOPBACK + rule.replace("office", "loopback")), {})
    assert config_warnings(without) == ['[[pbx]] "office" lets callers in, but no [[rule]] takes their calls']


def test_required_open_files() -> None:
    """Two sockets a call."""
    assert required_open_files(Config(sip=SipConfig(max_calls=100))) == 456


def test_warnings() -> None:
    """What is allowed and probably not meant; the default has nothing of it."""
    assert config_warnings(Config()) == []
    config = Config(
        sip=SipConfig(listen=("0.0.0.0:5060",), rtp_ports=(5000, 5099), max_calls=51),
        trunk=(
            TrunkConfig(name="a", auth=AuthConfig(username="u", password=SecretStr("p"))),
            TrunkConfig(name="out", outbound=OutboundConfig(servers=("h",))),
        ),
    )
    ports, overlap, no_rule = config_warnings(config)
    assert "room for 50 calls" in ports
    assert "contains the port of listen, 5060" in overlap
    assert '"a"' in no_rule


# ---------------------------------------------------------------- agents

AGENT = """
[[trunk]]
name = "line"
allowed_addresses = ["127.0.0.1"]
[[rule]]
name = "all"
target = "agent:{target}"
[[agent]]
name = "desk"
url = "ws://127.0.0.1:8765"
"""


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('protocol = "twillio"', '[[agent]] "desk" protocol: unknown protocol'),
        ('protocol = "audiosocket"', "is spoken over audiosocket://"),
        ('headers = { Host = "x" }', "Host is written by the bridge itself"),
        ('headers = { "a b" = "x" }', "'a b' is no name of a header"),
        ("parameters = { at = 2026-11-21 }", "cannot be said in JSON"),
        ('token = { env = "NOBODY" }', "the environment variable NOBODY is not set"),
        ('reconnect_prompt = "nothing.wav"', "there is no file"),
        ('allow = ["dance"]', '[[agent]] "desk" allow'),
        ("frame_ms = 25", '[[agent]] "desk" frame_ms'),
        ("[agent.vad]\nstart_ms = -1", '[[agent]] "desk" vad.start_ms'),
        ('[[agent]]\nname = "desk"\nurl = "ws://x"', 'there is already an agent "desk"'),
        ('[[agent]]\nname = "b"\nurl = "http://x"', "is no URL of an agent"),
        ('[[agent]]\nname = "b"\nurl = "ws://{callee}/"', "the host of a URL cannot be filled in"),
    ],
)
def test_agents_that_make_no_sense(line: str, complaint: str, write: Write) -> None:
    """Each is told with its place."""
    with pytest.raises(ConfigError) as caught:
        load_config(write(AGENT.replace("{target}", "desk") + line + "\n"), {})
    assert complaint in str(caught.value)


def test_a_rule_for_an_agent_that_is_not_there(write: Write) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(AGENT.replace("{target}", "dsk")), {})
    assert '[[rule]] "all" target: there is no [[agent]] "dsk"; did you mean "desk"?' in str(caught.value)


def test_the_protocols_are_those_of_the_package() -> None:
    """The configuration must not import them to know their names."""
    assert sorted(PROTOCOLS) == list(AGENT_PROTOCOLS)
    assert ENTRY_POINTS == AGENT_ENTRY_POINTS


# ---------------------------------------------------------------- LiveKit

ROOMS = """
[[trunk]]
name = "line"
allowed_addresses = ["127.0.0.1"]
[[rule]]
name = "all"
target = "livekit:{callee}"
"""
SERVER = """
[livekit]
url = "ws://127.0.0.1:7880/"
api_key = "key"
api_secret = "secret"
"""


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("", '[[rule]] "all" target: there is no [livekit] that says where the server is'),
        ('[livekit]\nurl = "livekit.example.com"', "is no URL of a LiveKit server"),
        ('[livekit]\nurl = "wss://x"\napi_secret = "s"', "[livekit] api_key: is missing"),
        ('[livekit]\nurl = "wss://x"\napi_key = "k"', "[livekit] api_secret: is missing"),
        ('[livekit]\nurl = "wss://x"\ntoken_url = "x"', "[livekit] token_url"),
        (SERVER + 'start = "later"', "[livekit] start"),
        (
            SERVER + 'room = { agents = [{ name = "x" }] }',
            "[livekit] room: no RoomConfiguration of LiveKit's",
        ),
        (SERVER + 'headers_to_attributes = { "a b" = "c" }', "'a b' is no name of a header"),
        (SERVER + 'attributes_to_headers = { a = "Via" }', "Via is written by the bridge itself"),
        (SERVER + 'headers_to_attributes = { X-A = "" }', "X-A: the attribute's name is empty"),
        (SERVER + 'sounds = "nowhere"', "there is no folder"),
        ('[rule.livekit]\ncodec = "g722"' + SERVER, '[[rule]] "all" livekit.codec'),
        ('[rule.livekit]\nurl = "ws://x"' + SERVER, '[[rule]] "all" livekit.url: unknown key'),
    ],
)
def test_livekit_that_makes_no_sense(line: str, complaint: str, write: Write) -> None:
    """Each is told with its place."""
    with pytest.raises(ConfigError) as caught:
        load_config(write(ROOMS + line + "\n"), {})
    assert complaint in str(caught.value)


def test_what_a_rule_says_of_livekit(write: Write) -> None:
    """Wins over what is said for all; what it does not say stays."""
    config = load_config(
        write(ROOMS + '[rule.livekit]\ncodec = "opus"' + SERVER + 'start = "now"\ncodec = "pcmu"\n'), {}
    )
    assert config.livekit is not None
    assert config.livekit.url == "ws://127.0.0.1:7880"
    options = config.livekit.options_of(config.rule[0])
    assert (options.codec, options.start) == ("opus", "now")
    options = config.livekit.options_of(None)
    assert (options.codec, options.start) == ("pcmu", "now")


def test_livekit_comes_from_the_environment_alone() -> None:
    """The secret is not shown."""
    environ = {
        "SIPBRIDGE_LIVEKIT__URL": "wss://example.com",
        "SIPBRIDGE_LIVEKIT__API_KEY": "key",
        "SIPBRIDGE_LIVEKIT__API_SECRET": "not-to-be-seen",
    }
    config = load_config(None, environ)
    assert config.livekit is not None
    assert config.livekit.api_secret == SecretStr("not-to-be-seen")
    assert "not-to-be-seen" not in repr(config)


# ---------------------------------------------------------------- the files in conf/


SECRETS = ("ALICE_PASSWORD", "LIVEKIT_API_SECRET", "AGORA_APP_CERTIFICATE")


@pytest.mark.parametrize("path", [CONF / "sipbridge.toml", *sorted((CONF / "examples").glob("*.toml"))])
def test_the_files_of_conf_can_be_used(path: Path) -> None:
    """They load, and give no warning."""
    config = load_config(path, dict.fromkeys(SECRETS, 32 * "0"))
    assert config_warnings(config) == []


def test_the_documented_file_is_the_default() -> None:
    """What stands there active changes nothing."""
    assert load_config(CONF / "sipbridge.toml", {}) == Config()


class Documented(typing.NamedTuple):
    """A key as conf/sipbridge.toml shows it."""

    value: Any
    comment: str  # the lines above it


def _documented() -> tuple[dict[str, Documented], list[str]]:
    """Keys by their place ("trunk.auth.username"), and the tables."""
    keys: dict[str, Documented] = {}
    tables: list[str] = []
    comment: list[str] = []
    for line in (CONF / "sipbridge.toml").read_text(encoding="utf-8").splitlines():
        if not line:
            comment = []
        elif line.startswith("# ") or line == "#":
            comment.append(line[2:])
        elif table := re.fullmatch(r"#?\[+([a-z_.]+)\]+", line):
            tables.append(table[1])
        else:
            key = re.fullmatch(r"#?([a-z_]+) = .*", line)
            assert key, f"neither comment, table nor key: {line}"
            value = tomllib.loads(line.removeprefix("#"))[key[1]]
            keys[f"{tables[-1]}.{key[1]}"] = Documented(value, " ".join(comment))
    return keys, tables


def _model_keys(model: type[BaseModel], place: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """All keys of the models, by the same places; a table comes before its keys."""
    for name, field in model.model_fields.items():
        key = place + str(field.validation_alias or name)
        inner = [item for item in _types(field.annotation) if issubclass(item, BaseModel)]
        yield key, field
        for item in inner:
            yield from _model_keys(item, f"{key}.")


def _types(annotation: Any) -> Iterator[type]:
    if isinstance(annotation, type) and not typing.get_args(annotation):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _types(argument)


def test_every_key_is_documented_and_every_documented_key_exists() -> None:
    """In both directions, tables too."""
    keys, tables = _documented()
    assert sorted({*keys, *tables}) == sorted(key for key, _ in _model_keys(Config))


def test_the_documented_defaults_are_those_of_the_models() -> None:
    """A key has its default, or its comment says that there is none, or that it is required."""
    keys, _ = _documented()
    for place, field in _model_keys(Config):
        if place not in keys:
            continue
        shown, comment = keys[place]
        default = field.default
        if field.is_required():
            assert "equired" in comment, place
        elif default is None:
            assert "Default: none" in comment, place
        elif default in ((), {}):
            assert "Default: empty" in comment, place
        else:
            assert shown == (list(default) if isinstance(default, tuple) else default), place
            assert type(shown) is type(list(default) if isinstance(default, tuple) else default), place


def test_the_documented_examples_are_right(write: Write, tmp_path: Path) -> None:
    """With every "#" taken away the file can still be used."""
    text = (CONF / "sipbridge.toml").read_text(encoding="utf-8")
    (tmp_path / "tls").mkdir()
    for name in ("fullchain.pem", "privkey.pem", "ca.pem"):
        (tmp_path / "tls" / name).write_text("PEM")
    (tmp_path / "sounds").mkdir()
    (tmp_path / "sounds" / "wait.wav").write_bytes(b"RIFF")
    environ = {name: 32 * "0" for name in re.findall(r'\{ env = "(\w+)" \}', text) if name != "NAME"}
    config = load_config(write(re.sub(r"(?m)^#(?=[a-z\[])", "", text)), environ)
    (trunk,) = config.trunk
    assert trunk.outbound is not None
    assert trunk.outbound.auth is not None
    assert config.sip.tls is not None
    assert config.livekit is not None
    assert config.livekit.options_of(config.rule[-1]).room["agents"][0]["metadata"] == "sales"
    assert config.log == LogConfig(json_=True)
    assert config.media == MediaConfig()


# ---------------------------------------------------------------- Agora

PROJECT = '[agora]\napp_id = "0123456789abcdef0123456789abcdef"\n'


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (ROOMS.replace("livekit:", "agora:"), "target: there is no [agora] that says which project it is"),
        ("[agora]\n", "[agora] app_id: is missing"),
        ('[agora]\napp_id = "x"', "[agora] app_id: an app id has 32 hexadecimal digits"),
        (
            PROJECT + 'app_certificate = "secret"',
            "app_certificate: an app certificate has 32 hexadecimal digits",
        ),
        (PROJECT + "sample_rate_hz = 22050", "[agora] sample_rate_hz"),
        (PROJECT + 'area = ["mars"]', "[agora] area"),
        (PROJECT + 'token_url = "x"', "[agora] token_url"),
        (PROJECT + 'allow = ["everything"]', "[agora] allow"),
        (PROJECT + 'sounds = "nowhere"', "there is no folder"),
        (PROJECT + 'local_domain = "x"', "local_access_points: is empty"),
        (
            PROJECT + 'proxy = true\nlocal_domain = "x"\nlocal_access_points = ["x"]',
            "a proxy has no local_domain",
        ),
        (PROJECT + '[agora.encryption]\nkey = "k"', "encryption.salt: is missing: aes-256-gcm2 needs one"),
        (PROJECT + '[agora.encryption]\nkey = "k"\nsalt = "AAAA"', "a salt is 32 bytes in base64"),
    ],
)
def test_agora_that_makes_no_sense(text: str, complaint: str, write: Write) -> None:
    """Each is told with its place, and no secret with it."""
    with pytest.raises(ConfigError) as caught:
        load_config(write(text + "\n"), {})
    assert complaint in str(caught.value)
    assert '"secret"' not in str(caught.value)
