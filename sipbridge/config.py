# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration: read once from TOML and the environment, checked as a whole, then frozen.

`load_config` reports every error it finds, each with its file, table and key. The models can be
built in code as well; their validation is the same.
"""

import base64
import difflib
import importlib.metadata
import ipaddress
import itertools
import json
import os
import re
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import PydanticCustomError

from sipbridge import routing
from sipbridge.errors import ConfigError, ConfigFileError

CODECS = ("PCMU", "PCMA", "G722", "opus")
# Those of the package; more may come by entry points.
AGENT_PROTOCOLS = ("asterisk", "audiosocket", "jambonz", "openai", "proxy", "telnyx", "twilio", "vonage")
AGENT_ENTRY_POINTS = "sipbridge.agent_protocols"
MAX_CALLS = 1024  # what pjsua2 is built for
ENVIRONMENT_PREFIX = "SIPBRIDGE_"

IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

_HTTP_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # RFC 9110 section 5.6.2
_OWN_HTTP_HEADERS = frozenset({"host", "connection", "upgrade", "content-length", "transfer-encoding"})
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def _error(message: str, key: str = "") -> PydanticCustomError:
    """A validation error; `key` names the place where a whole table is judged."""
    return PydanticCustomError("sipbridge", "{message}", {"message": message, "key": key})


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word.lower(), [name.lower() for name in known], 1, 0.6)
    return next((f'; did you mean "{name}"?' for name in known if near and name.lower() == near[0]), "")


# ---------------------------------------------------------------- the types of values


def _listed(value: Any) -> Any:
    """One string where a list is expected is a list of one; TOML's lists become tuples."""
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


def _directory(info: ValidationInfo) -> Path:
    return cast(Path, (info.context or {}).get("directory", Path()))


def _resolve_secret(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, dict):
        if set(value) == {"env"} and isinstance(value["env"], str):
            environ = cast(Mapping[str, str], (info.context or {}).get("environ", os.environ))
            name = value["env"]
            if name not in environ:
                raise _error(f"the environment variable {name} is not set")
            value = environ[name]
        elif set(value) == {"file"} and isinstance(value["file"], str):
            value = _read_text(_directory(info) / value["file"]).rstrip("\r\n")
        else:
            raise _error('a secret is "text", {env = "NAME"} or {file = "PATH"}')
    if isinstance(value, str):
        if not value:
            raise _error("the secret is empty")
        if not value.isprintable():
            raise _error("the secret contains a control character")
        return SecretStr(value)
    if isinstance(value, SecretStr):
        return value
    raise _error('a secret is "text", {env = "NAME"} or {file = "PATH"}')


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise _error(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise _error(f"{path} is not UTF-8 text") from None


def _resolve_path(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, str):
        value = _directory(info) / value
    if isinstance(value, Path):
        _read_text(value)  # PEM is text
    return value


def _resolve_sound(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, str):
        value = _directory(info) / value
    if isinstance(value, Path) and not value.is_file():
        raise _error(f"there is no file {value}")
    return value


def _parse_network(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return ipaddress.ip_network(value)
    except ValueError as error:
        # Host bits set: 192.0.2.7/24 is either a typing error or meant as /32; do not guess.
        raise _error(f"{error}; expected an address or a network, as in 192.0.2.0/24") from None


def _check_listen(value: str) -> str:
    host, port = routing.split_host_port(value)
    if port is None:
        raise ValueError(f"{value!r} has no port; expected host:port, as in 0.0.0.0:5060 or [::]:5060")
    return routing.join_host_port(host, port)


def _check_sip_listen(value: str) -> str:
    value = _check_listen(value)
    _check_ip_address(routing.split_host_port(value)[0])
    return value


def _check_ip_address(value: str) -> str:
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        raise ValueError(f"{value!r} is no IP address") from None


def _check_server(value: str) -> str:
    if re.match(r"(?i)sips?:", value):
        raise ValueError(f"{value!r}: a server is written as host or host:port, without sip:")
    host, port = routing.split_host_port(value)
    if port == 0:
        raise ValueError("0 is no port of a server")
    return routing.join_host_port(host, port)


def _check_codec(value: str) -> str:
    for codec in CODECS:
        if codec.lower() == value.lower():
            return codec
    raise ValueError(f"unknown codec {value!r} (known: {', '.join(CODECS)}){_did_you_mean(value, CODECS)}")


def _check_name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError("a name has 1 to 64 letters, digits, dots, hyphens or underscores")
    return value


def _check_pattern(value: str) -> str:
    routing.compile_pattern(value)
    return value


def _check_template(value: str) -> str:
    routing.check_target_template(value)
    return value


def _check_agent_url(value: str) -> str:
    scheme, colon, rest = value.partition("://")
    if not colon or scheme not in ("ws", "wss", "audiosocket") or not rest:
        raise ValueError(f"{value!r} is no URL of an agent: expected ws://, wss:// or audiosocket://")
    routing.check_target_template(value)
    return value


def _check_agent_protocol(value: str) -> str:
    others = importlib.metadata.entry_points(group=AGENT_ENTRY_POINTS)
    known = sorted({*AGENT_PROTOCOLS, *(entry.name for entry in others)})
    if value not in known:
        raise ValueError(
            f"unknown protocol {value!r} (known: {', '.join(known)}){_did_you_mean(value, known)}"
        )
    return value


def _check_livekit_url(value: str) -> str:
    scheme, colon, rest = value.partition("://")
    if not colon or scheme not in ("ws", "wss", "http", "https") or not rest or rest.startswith("/"):
        raise ValueError(f"{value!r} is no URL of a LiveKit server: expected wss://HOST or ws://HOST:PORT")
    routing.check_text(value, "the URL")
    return value.rstrip("/")


def _check_token_url(value: str) -> str:
    if not re.match(r"https?://[^/]", value):
        raise ValueError(f"{value!r}: expected http:// or https://")
    return routing.check_text(value, "the URL")


def _check_app_id(value: str) -> str:
    if not re.fullmatch("[0-9A-Fa-f]{32}", value):
        raise ValueError("an app id has 32 hexadecimal digits")
    return value


def _check_certificate(value: SecretStr) -> SecretStr:
    if not re.fullmatch("[0-9A-Fa-f]{32}", value.get_secret_value()):
        raise ValueError("an app certificate has 32 hexadecimal digits")
    return value


def _check_pin(value: SecretStr) -> SecretStr:
    if not re.fullmatch("[0-9]{1,32}", value.get_secret_value()):
        raise ValueError("a PIN has 1 to 32 digits")
    return value


def _check_salt(value: str) -> str:
    try:
        salt = base64.b64decode(value, validate=True)
    except ValueError:
        salt = b""
    if len(salt) != 32:
        raise ValueError("a salt is 32 bytes in base64")
    return value


def _check_room_configuration(value: dict[str, Any]) -> dict[str, Any]:
    if value:
        from google.protobuf.json_format import ParseDict, ParseError
        from livekit.protocol.room import RoomConfiguration

        try:
            ParseDict(value, RoomConfiguration())
        except ParseError as error:
            raise ValueError(f"no RoomConfiguration of LiveKit's: {error}") from None
    return value


def _check_attribute_names(value: dict[str, str]) -> dict[str, str]:
    for header, attribute in value.items():
        if not _HTTP_TOKEN.fullmatch(header):
            raise ValueError(f"{header!r} is no name of a header")
        routing.check_text(attribute, "the attribute's name", 128)
        if not attribute:
            raise ValueError(f"{header}: the attribute's name is empty")
    return value


def _check_folder(value: Path) -> Path:
    if not value.is_dir():
        raise ValueError(f"there is no folder {value}")
    return value


def _resolve_folder(value: Any, info: ValidationInfo) -> Any:
    return _directory(info) / value if isinstance(value, str) else value


def _check_parameters(value: dict[str, Any]) -> dict[str, Any]:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        raise ValueError("a date, nan or inf cannot be said in JSON; write it as text") from None
    return value


def _check_http_headers(value: dict[str, SecretStr]) -> dict[str, SecretStr]:
    for name in value:
        if not _HTTP_TOKEN.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a header")
        if name.lower() in _OWN_HTTP_HEADERS or name.lower().startswith("sec-websocket-"):
            raise ValueError(f"{name} is written by the bridge itself")
    return value


def _check_username(value: str) -> str:
    routing.check_text(value, "the user name", 128)
    if not value or ":" in value or '"' in value or value.strip() != value:
        raise ValueError("a user name is not empty and has no colon, quote or outer space (RFC 7616)")
    return value


def _check_header_names(value: dict[str, str]) -> dict[str, str]:
    for name in value.values():
        routing.check_header(name, "")
    return value


def _check_headers(value: dict[str, str]) -> dict[str, str]:
    for name, text in value.items():
        routing.check_header(name, text)
    return value


def _check_user_agent(value: str) -> str:
    return routing.check_text(value, "the user agent", 128)


def _check_ice_url(value: str) -> str:
    scheme, colon, rest = value.partition(":")
    address, question, query = rest.partition("?")
    if not colon or scheme not in ("stun", "turn", "turns") or rest.startswith("//"):
        raise ValueError(f"{value!r} is no ICE server: expected stun:HOST:PORT or turn:HOST:PORT")
    if scheme == "turns" or (question and query != "transport=udp"):
        raise ValueError(f"{value!r}: a TURN server is spoken with over UDP alone, as turn:HOST:PORT")
    routing.split_host_port(address)
    return value


def _check_ports(value: tuple[int, int]) -> tuple[int, int]:
    if value[1] < value[0]:
        raise ValueError("the last port is not less than the first")
    return value


def _check_rtp_ports(value: tuple[int, int]) -> tuple[int, int]:
    first, last = value
    if first % 2:
        raise ValueError("the first port is even: RTP takes even ports, RTCP the odd ones behind")
    if last - first < 1:
        raise ValueError("the last port is greater than the first")
    return value


def _unique[T](value: tuple[T, ...]) -> tuple[T, ...]:
    for item, again in itertools.groupby(sorted(value, key=str)):
        if len(list(again)) > 1:
            raise ValueError(f"{item} is listed twice")
    return value


def _not_empty[T](value: tuple[T, ...]) -> tuple[T, ...]:
    if not value:
        raise ValueError("the list is empty")
    return value


Secret = Annotated[SecretStr, BeforeValidator(_resolve_secret)]
FilePath = Annotated[Path, BeforeValidator(_resolve_path)]
SoundPath = Annotated[Path, BeforeValidator(_resolve_sound)]
FolderPath = Annotated[Path, BeforeValidator(_resolve_folder), AfterValidator(_check_folder)]
Network = Annotated[IpNetwork, BeforeValidator(_parse_network)]
Name = Annotated[str, AfterValidator(_check_name)]
Pattern = Annotated[str, AfterValidator(_check_pattern)]
Codec = Annotated[str, AfterValidator(_check_codec)]
Seconds = Annotated[float, Field(ge=0, le=86400, allow_inf_nan=False)]
Port = Annotated[int, Field(ge=1, le=65535)]
Transport = Literal["udp", "tcp", "tls"]
CallLimit = Annotated[int, Field(ge=1, le=MAX_CALLS)]

_LIST = BeforeValidator(_listed)
_UNIQUE = AfterValidator(_unique)
_NOT_EMPTY = AfterValidator(_not_empty)


# ---------------------------------------------------------------- the tables


class _Table(BaseModel):
    """A table of the file. Its tables within tables are models too."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        validate_default=False,
        validate_by_name=True,
        validate_by_alias=True,
        hide_input_in_errors=True,
    )


class TlsConfig(_Table):
    """``[sip.tls]``: what SIP over TLS needs."""

    certificate: FilePath  # PEM, with the chain
    private_key: FilePath  # PEM
    ca: FilePath | None = None  # PEM; None: the system's
    port: Port = 5061  # on each host of `listen`
    verify: bool = False  # ask callers for a certificate, and check that of servers we call


class SipConfig(_Table):
    """``[sip]``: the SIP side."""

    listen: Annotated[
        tuple[Annotated[str, AfterValidator(_check_sip_listen)], ...], _LIST, _UNIQUE, _NOT_EMPTY
    ] = ("0.0.0.0:5060",)
    transports: Annotated[tuple[Transport, ...], _LIST, _UNIQUE, _NOT_EMPTY] = ("udp", "tcp")
    tls: TlsConfig | None = None
    public_address: Annotated[str, AfterValidator(_check_ip_address)] | None = None  # said in SDP and Contact
    rtp_ports: Annotated[
        tuple[Annotated[int, Field(ge=1024, le=65535)], Annotated[int, Field(ge=1024, le=65535)]],
        _LIST,
        AfterValidator(_check_rtp_ports),
    ] = (20000, 29999)  # first and last, both included
    codecs: Annotated[tuple[Codec, ...], _LIST, _UNIQUE, _NOT_EMPTY] = CODECS  # best first
    user_agent: Annotated[str, AfterValidator(_check_user_agent)] = "sipbridge"
    max_calls: CallLimit = 400
    unknown: Literal["drop", "403"] = "drop"  # the answer to a source in no trunk
    digest: Annotated[tuple[Literal["MD5", "SHA-256"], ...], _LIST, _UNIQUE, _NOT_EMPTY] = ("MD5",)  # offered
    media_timeout_s: Annotated[Seconds, Field(ge=1)] = 15.0  # without RTP, once it has come
    first_media_timeout_s: Annotated[Seconds, Field(ge=1)] = 30.0  # without the first RTP packet
    drain_s: Seconds = 60.0  # time that calls have to end after SIGTERM

    @model_validator(mode="after")
    def _check_tls(self) -> "SipConfig":
        if "tls" in self.transports and self.tls is None:
            raise _error('"tls" needs certificate and private_key in [sip.tls]', "transports")
        return self


class MediaConfig(_Table):
    """``[media]``: the audio path."""

    tick_ms: Literal[5, 10, 20] = 5
    jitter_max_ms: Annotated[int, Field(ge=20, le=1000)] = 200  # the most a jitter queue may hold
    live_resampler: Literal["polyphase", "soxr"] = "polyphase"


class AuthConfig(_Table):
    """A user of digest authentication (RFC 7616, RFC 8760)."""

    username: Annotated[str, AfterValidator(_check_username)]
    password: Secret


class OutboundConfig(_Table):
    """``outbound`` of a trunk: where its calls are dialled."""

    servers: Annotated[tuple[Annotated[str, AfterValidator(_check_server)], ...], _LIST, _UNIQUE, _NOT_EMPTY]
    transport: Transport = "udp"
    auth: AuthConfig | None = None  # what we answer a challenge with


class TrunkConfig(_Table):
    """``[[trunk]]``: a PBX or carrier, or one telephone that registers here."""

    name: Name
    kind: Literal["trunk", "phone"] = "trunk"
    allowed_addresses: Annotated[tuple[Network, ...], _LIST, _UNIQUE] = ()
    auth: AuthConfig | None = None  # what a caller has to prove
    outbound: OutboundConfig | None = None
    numbers: Annotated[tuple[Pattern, ...], _LIST] = ()  # that may be called; empty: any
    codecs: Annotated[tuple[Codec, ...], _LIST, _UNIQUE, _NOT_EMPTY] | None = None  # None: those of [sip]
    nat: Literal["auto", "off", "on"] = "auto"
    srtp: Literal["off", "allow", "require"] = "off"
    headers: Annotated[dict[str, str], AfterValidator(_check_headers)] = {}  # added to INVITEs we send
    max_calls: CallLimit | None = None  # None: only the limit of [sip]
    dtmf: Literal["auto", "rfc4733", "info", "inband"] = "auto"

    @model_validator(mode="after")
    def _check_use(self) -> "TrunkConfig":
        if self.kind == "phone":
            if self.auth is None:
                raise _error("a phone registers with a user name and a password", "auth")
            if self.outbound is not None:
                raise _error("a phone is called where it registered; it has no outbound servers", "outbound")
        elif not self.allowed_addresses and self.auth is None and self.outbound is None:
            raise _error(
                "no call can use this trunk: it needs allowed_addresses or auth (inbound), or outbound"
            )
        return self


class PbxConfig(_Table):
    """``[[pbx]]``: a PBX that hands its calls over by a stream of its own, without SIP. We listen for it."""

    name: Name
    protocol: Literal["audiosocket", "asterisk"]
    listen: Annotated[str, AfterValidator(_check_listen)]
    allowed_addresses: Annotated[tuple[Network, ...], _LIST, _UNIQUE] = ()
    auth: AuthConfig | None = None  # what it has to say as HTTP Basic
    max_calls: CallLimit | None = None  # None: only the limit of [sip]

    @model_validator(mode="after")
    def _check_use(self) -> "PbxConfig":
        if self.protocol == "audiosocket" and self.auth is not None:
            raise _error("audiosocket has no user and no password; its callers are known by address", "auth")
        if not self.allowed_addresses and self.auth is None:
            raise _error("nobody is let in: it needs allowed_addresses", "allowed_addresses")
        return self


class LiveKitOptions(_Table):
    """What a call is in a LiveKit room: ``[livekit]`` for all, ``[rule.livekit]`` for those of a rule."""

    start: Literal["joined", "now", "track"] = "joined"  # when a call that comes is answered
    start_limit_s: Annotated[Seconds, Field(ge=1)] = 60.0  # it rings no longer for a track
    codec: Literal["auto", "opus", "pcmu"] = "auto"  # of the track we publish
    identity: str = ""  # a template; "": sip_ with the number and the call's id
    name: str = ""  # a template; "": Phone with the number
    metadata: str = ""  # a template
    attributes: dict[str, str] = {}  # beside our own; templates
    hide_phone_number: bool = False
    include_headers: Literal["none", "x", "all"] = "none"  # of the INVITE, as sip.h.*
    headers_to_attributes: Annotated[dict[str, str], AfterValidator(_check_attribute_names)] = {}
    attributes_to_headers: Annotated[dict[str, str], AfterValidator(_check_header_names)] = {}
    room: Annotated[
        dict[str, Any], AfterValidator(_check_parameters), AfterValidator(_check_room_configuration)
    ] = {}  # LiveKit's RoomConfiguration, for a room that this call opens
    allow: Annotated[tuple[Literal["hangup", "dtmf", "hold", "transfer", "play"], ...], _LIST, _UNIQUE] = (
        "hangup",
        "dtmf",
        "hold",
    )


class PinConfig(_Table):
    """``[rule.pin]``: what a caller has to press before it meets its channel."""

    code: Annotated[Secret, AfterValidator(_check_pin)]
    prompt: SoundPath | None = None  # None: a short tone
    wrong: SoundPath | None = None  # after a wrong one; None: the prompt again
    tries: Annotated[int, Field(ge=1, le=10)] = 3
    timeout_s: Annotated[Seconds, Field(gt=0)] = 10.0  # for each key


class RuleConfig(_Table):
    """``[[rule]]``: which calls meet which channel. The first rule that fits is taken."""

    name: Name
    trunk: str | None = None  # None: any
    from_: Pattern | None = Field(default=None, validation_alias="from", serialization_alias="from")
    to: Pattern | None = None
    target: Annotated[str, AfterValidator(_check_template)]
    ring_s: Annotated[float, Field(ge=0, le=300, allow_inf_nan=False)] = 0.0
    early_media: bool = False
    max_duration_s: Annotated[int, Field(ge=1, le=7 * 86400)] = 86400
    hangup_when_alone: bool = False
    alone_grace_s: Seconds = 0.0  # before that
    pin: PinConfig | None = None  # None: nobody is asked
    livekit: LiveKitOptions | None = None  # None: as in [livekit]

    @model_validator(mode="after")
    def _check_pin_comes_first(self) -> "RuleConfig":
        if self.pin is not None and self.early_media:
            raise _error("a caller who is asked for a PIN is answered before", "early_media")
        return self


class VadConfig(_Table):
    """``[agent.vad]``: voice activity detection of our own."""

    threshold: Annotated[float, Field(ge=0.01, le=0.99)] = 0.5  # less hears more, and more that is no speech
    start_ms: Annotated[int, Field(ge=0, le=2000)] = 60  # speech this long begins it
    stop_ms: Annotated[int, Field(ge=32, le=10_000)] = 500  # silence this long ends it
    pre_speech_ms: Annotated[int, Field(ge=0, le=2000)] = 300  # sent with it, of what came before
    barge_in: bool = False  # the agent falls silent when the caller speaks
    only_speech: bool = False  # nothing else is sent to the agent


class AgentConfig(_Table):
    """``[[agent]]``: a voice agent, the target ``agent:NAME``."""

    name: Name
    url: Annotated[
        tuple[Annotated[str, AfterValidator(_check_agent_url)], ...], _LIST, _UNIQUE, _NOT_EMPTY
    ]  # tried in order
    protocol: Annotated[str, AfterValidator(_check_agent_protocol)] = "proxy"
    sample_rate_hz: Annotated[int, Field(ge=8000, le=48000)] | None = None  # None: as the protocol prefers
    frame_ms: Literal[10, 20, 40, 60, 80, 100] = 20  # of audio in each message to it
    headers: Annotated[dict[str, Secret], AfterValidator(_check_http_headers)] = {}
    token: Secret | None = None  # sent as Authorization: Bearer
    ca: FilePath | None = None  # PEM; None: the system's
    parameters: Annotated[
        dict[str, Any], AfterValidator(_check_parameters)
    ] = {}  # what the protocol tells it of the call
    answer: Literal["ready", "now"] = "ready"  # when the telephone is answered
    connect_timeout_s: Annotated[Seconds, Field(gt=0)] = 5.0  # of each URL
    reconnect_s: Seconds = 10.0  # for how long a lost connection is tried again
    reconnect_prompt: SoundPath | None = None  # a sound file, heard meanwhile; None: silence
    max_buffer_s: Annotated[Seconds, Field(ge=1)] = 120.0  # of its speech; then it is not read from
    allow: Annotated[tuple[Literal["hangup", "dtmf", "hold", "transfer"], ...], _LIST, _UNIQUE] = (
        "hangup",
        "dtmf",
        "hold",
    )
    vad: VadConfig | None = None  # None: the agent finds out by itself who speaks

    @model_validator(mode="after")
    def _check_protocol(self) -> "AgentConfig":
        is_stream = self.protocol == "audiosocket"
        for url in self.url:
            if url.startswith("audiosocket:") != is_stream:
                wanted = "audiosocket://" if is_stream else "ws:// or wss://"
                raise _error(f"{url}: the protocol {self.protocol} is spoken over {wanted}", "url")
        return self


class LiveKitConfig(LiveKitOptions):
    """``[livekit]``: the server behind targets livekit:ROOM."""

    url: Annotated[str, AfterValidator(_check_livekit_url)]
    api_key: str = ""
    api_secret: Secret | None = None
    token_url: Annotated[str, AfterValidator(_check_token_url)] | None = None  # who makes tokens instead
    token_headers: Annotated[dict[str, Secret], AfterValidator(_check_http_headers)] = {}
    token_ttl_s: Annotated[int, Field(ge=60, le=7 * 86400)] = 3600
    connect_timeout_s: Annotated[Seconds, Field(gt=0)] = 8.0  # until the room is joined and audio flows
    reconnect_s: Seconds = 30.0  # for how long a lost room is tried again
    sounds: FolderPath | None = None  # what agents may have played

    @model_validator(mode="after")
    def _check_token(self) -> "LiveKitConfig":
        if self.token_url is None:
            for key in ("api_key", "api_secret"):
                if not getattr(self, key):
                    raise _error(
                        "is missing: tokens are made with api_key and api_secret, or by token_url", key
                    )
        return self

    def options_of(self, rule: RuleConfig | None) -> LiveKitOptions:
        """What holds for the calls of a rule; None: for calls without one."""
        if rule is None or rule.livekit is None:
            return self
        return self.model_copy(update=rule.livekit.model_dump(exclude_unset=True))


class AgoraEncryptionConfig(_Table):
    """``[agora.encryption]``: what all in the channels have to have alike."""

    mode: Literal[
        "aes-128-xts",
        "aes-128-ecb",
        "aes-256-xts",
        "sm4-128-ecb",
        "aes-128-gcm",
        "aes-256-gcm",
        "aes-128-gcm2",
        "aes-256-gcm2",
    ] = "aes-256-gcm2"
    key: Secret
    salt: Annotated[str, AfterValidator(_check_salt)] | None = None  # base64 of 32 bytes
    messages: bool = False  # stream messages too

    @model_validator(mode="after")
    def _check_needs_salt(self) -> "AgoraEncryptionConfig":
        if self.mode.endswith("gcm2") and self.salt is None:
            raise _error(f"is missing: {self.mode} needs one", "salt")
        return self

    @property
    def salt_bytes(self) -> bytes:
        """32 of them, zero where no salt is asked for."""
        return base64.b64decode(self.salt) if self.salt is not None else bytes(32)


class AgoraConfig(_Table):
    """``[agora]``: the project behind targets agora:CHANNEL."""

    app_id: Annotated[str, AfterValidator(_check_app_id)]
    app_certificate: Annotated[Secret, AfterValidator(_check_certificate)] | None = None
    token_url: Annotated[str, AfterValidator(_check_token_url)] | None = None  # who makes tokens instead
    token_headers: Annotated[dict[str, Secret], AfterValidator(_check_http_headers)] = {}
    token_ttl_s: Annotated[int, Field(ge=60, le=86400)] = 3600
    lookup_url: Annotated[str, AfterValidator(_check_token_url)] | None = None  # who says where a call goes
    lookup_headers: Annotated[dict[str, Secret], AfterValidator(_check_http_headers)] = {}
    lookup_timeout_s: Annotated[Seconds, Field(gt=0)] = 3.0
    user_id: str = "0"  # a template; "0": Agora chooses one
    string_user_ids: bool = False
    sample_rate_hz: Literal[8000, 16000, 48000] = 16000  # of the audio given to the SDK and had from it
    receive: Literal["mix", "users"] = "mix"  # of all others, or each of them
    scenario: Literal["default", "chorus", "meeting", "chatroom", "game-streaming", "ai-server"] = "chorus"
    audio_profile: Literal["default", "speech", "music", "music-high-quality"] = "default"
    channel_profile: Literal["live-broadcasting", "communication"] = "live-broadcasting"
    area: Annotated[
        tuple[Literal["global", "cn", "na", "eu", "as", "jp", "in"], ...], _LIST, _UNIQUE, _NOT_EMPTY
    ] = ("global",)
    encryption: AgoraEncryptionConfig | None = None
    local_access_points: Annotated[tuple[str, ...], _LIST, _UNIQUE] = ()  # of a private deployment or proxy
    local_edges: Annotated[tuple[str, ...], _LIST, _UNIQUE] = ()  # behind them
    local_domain: str = ""  # of a private deployment
    proxy: bool = False  # the access points are proxies
    parameters: Annotated[dict[str, Any], AfterValidator(_check_parameters)] = {}  # others
    pool_size: Annotated[int, Field(ge=0, le=MAX_CALLS)] = 10  # connections that are kept for the next calls
    connect_timeout_s: Annotated[Seconds, Field(gt=0)] = 8.0
    reconnect_s: Seconds = 30.0  # for how long a lost channel is waited for
    volume_interval_ms: Annotated[int, Field(ge=0, le=60_000)] = 0  # how loud all are is told; 0: never
    allow: Annotated[tuple[Literal["hangup", "dtmf", "hold", "transfer", "play"], ...], _LIST, _UNIQUE] = (
        "hangup",
        "dtmf",
        "hold",
    )
    sounds: FolderPath | None = None  # what the channel may have played
    vad: VadConfig | None = None  # of what the telephone says, and each user where we have them one by one

    @model_validator(mode="after")
    def _check_access_points(self) -> "AgoraConfig":
        if (self.local_domain or self.proxy or self.local_edges) and not self.local_access_points:
            raise _error("is empty: local_edges, local_domain and proxy need it", "local_access_points")
        if self.proxy and self.local_domain:
            raise _error("a proxy has no local_domain", "local_domain")
        return self


class HttpConfig(_Table):
    """``[http]``: the API."""

    listen: Annotated[str, AfterValidator(_check_listen)] = "127.0.0.1:8080"
    tokens: Annotated[tuple[Secret, ...], _LIST] = ()


class IceServerConfig(_Table):
    """One of ``ice_servers``: who tells us our address, or relays."""

    url: Annotated[str, AfterValidator(_check_ice_url)]
    username: str | None = None
    credential: Secret | None = None

    @model_validator(mode="after")
    def _check_credential(self) -> "IceServerConfig":
        if self.url.startswith("stun:") and (self.username or self.credential):
            raise _error("a STUN server asks for no user", "username")
        if not self.url.startswith("stun:") and not (self.username and self.credential):
            raise _error("a TURN server needs username and credential", "username")
        return self


class OpusConfig(_Table):
    """``[webrtc.opus]``: how Opus is encoded for browsers."""

    bitrate: Annotated[int, Field(ge=6000, le=128_000)] = 32_000
    complexity: Annotated[int, Field(ge=0, le=10)] = 5
    fec: bool = True  # packets carry what is needed to make up the one before
    dtx: bool = False  # silence is not sent


class WebRtcConfig(_Table):
    """``[webrtc]``: browsers, and whatever else speaks WebRTC."""

    ports: Annotated[tuple[Port, Port], _LIST, AfterValidator(_check_ports)] = (30000, 39999)  # UDP
    bind_address: Annotated[str, AfterValidator(_check_ip_address)] | None = None  # None: all of this host
    public_address: Annotated[str, AfterValidator(_check_ip_address)] | None = None  # said beside our own
    ice_servers: Annotated[tuple[IceServerConfig, ...], _LIST] = ()
    codecs: Annotated[tuple[Codec, ...], _LIST, _UNIQUE, _NOT_EMPTY] = ("opus", "G722", "PCMU", "PCMA")
    opus: OpusConfig = OpusConfig()


class LogConfig(_Table):
    """``[log]``: what is written to the standard error output."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    # None: JSON unless a terminal reads it. (BaseModel has a method json, hence the name.)
    json_: bool | None = Field(default=None, validation_alias="json", serialization_alias="json")


class Config(_Table):
    """The whole file. Without any trunk and rule, callers on this host are let in and meet in rooms."""

    sip: SipConfig = SipConfig()
    media: MediaConfig = MediaConfig()
    trunk: Annotated[tuple[TrunkConfig, ...], _LIST] = ()
    pbx: Annotated[tuple[PbxConfig, ...], _LIST] = ()
    rule: Annotated[tuple[RuleConfig, ...], _LIST] = ()
    agent: Annotated[tuple[AgentConfig, ...], _LIST] = ()
    webrtc: WebRtcConfig = WebRtcConfig()
    livekit: LiveKitConfig | None = None
    agora: AgoraConfig | None = None
    http: HttpConfig = HttpConfig()
    log: LogConfig = LogConfig()

    @model_validator(mode="before")
    @classmethod
    def _add_stand_ins(cls, data: Any) -> Any:
        if isinstance(data, dict) and not data.get("trunk") and not data.get("rule"):
            trunk = TrunkConfig(
                name="loopback",
                allowed_addresses=(ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128")),
            )
            echo = RuleConfig(name="echo", to="echo", target="echo:")
            rooms = RuleConfig(name="rooms", target="local:{callee}")
            return {**data, "trunk": (trunk,), "rule": (echo, rooms)}
        return data

    @model_validator(mode="after")
    def _check_whole(self) -> "Config":
        problems = [
            *_name_problems(self.trunk, self.pbx, self.rule, self.agent),
            *_server_problems(self.rule, self.livekit, self.agora),
            *_cross_problems(self.sip, list(enumerate(self.trunk))),
        ]
        if problems:
            raise _error("; ".join(f"{_place(loc, self)}: {message}" for loc, message in problems))
        return self


_Loc = tuple[str | int, ...]


def _get(item: Any, key: str) -> Any:
    return item.get(key) if isinstance(item, dict) else getattr(item, key, None)


def _name_problems(
    trunks: Sequence[Any], pbxs: Sequence[Any], rules: Sequence[Any], agents: Sequence[Any]
) -> Iterator[tuple[_Loc, str]]:
    """Names given twice, and rules that name no trunk or no agent; items are models or what the file says."""
    for table, items in (("trunk", trunks), ("pbx", pbxs), ("rule", rules), ("agent", agents)):
        seen: list[Any] = []
        for index, item in enumerate(items):
            name = _get(item, "name")
            if name is not None and name in seen:
                yield (
                    (table, index, "name"),
                    f'there is already {"an" if table == "agent" else "a"} {table} "{name}"',
                )
            seen.append(name)
    agent_names = [name for name in (_get(agent, "name") for agent in agents) if isinstance(name, str)]
    for index, rule in enumerate(rules):
        target = _get(rule, "target")
        if isinstance(target, str) and target.startswith("agent:") and "{" not in target:
            agent = target.removeprefix("agent:")
            if agent not in agent_names:
                hint = _did_you_mean(agent, agent_names)
                yield ("rule", index, "target"), f'there is no [[agent]] "{agent}"{hint}'
    if rules and not (trunks or pbxs):
        yield ("rule",), "there are rules but no [[trunk]], so no call could come in"
        return
    names = [name for name in (_get(trunk, "name") for trunk in trunks) if isinstance(name, str)]
    for index, pbx in enumerate(pbxs):
        if _get(pbx, "name") in names:
            yield ("pbx", index, "name"), f'there is already a trunk "{_get(pbx, "name")}"'
    names += [name for name in (_get(pbx, "name") for pbx in pbxs) if isinstance(name, str)]
    for index, rule in enumerate(rules):
        trunk = _get(rule, "trunk")
        if isinstance(trunk, str) and trunk not in names:
            yield ("rule", index, "trunk"), f'there is no trunk "{trunk}"{_did_you_mean(trunk, names)}'


def _server_problems(rules: Sequence[Any], livekit: Any, agora: Any) -> Iterator[tuple[_Loc, str]]:
    """Rules that need a server or a project which is not named."""
    for index, rule in enumerate(rules):
        target = str(_get(rule, "target"))
        if livekit is None and target.startswith("livekit:"):
            yield ("rule", index, "target"), "there is no [livekit] that says where the server is"
        if agora is None and target.startswith("agora:"):
            yield ("rule", index, "target"), "there is no [agora] that says which project it is"


def _cross_problems(
    sip: SipConfig | None, trunks: Sequence[tuple[int, TrunkConfig]]
) -> Iterator[tuple[_Loc, str]]:
    """What is wrong between tables that are each right (sip is None when it is not)."""
    if sip is not None and sip.tls is not None and {"tcp", "tls"} <= set(sip.transports):
        port = sip.tls.port
        if port in {routing.split_host_port(listen)[1] for listen in sip.listen}:
            yield ("sip", "tls", "port"), f"{port} is already taken by TCP in listen"
    users: dict[str, str] = {}
    networks: dict[IpNetwork, str] = {}
    for index, trunk in trunks:
        if trunk.auth is not None:
            other = users.setdefault(trunk.auth.username, trunk.name)
            if other != trunk.name:
                yield (
                    ("trunk", index, "auth", "username"),
                    f'"{trunk.auth.username}" is already the user of trunk "{other}"',
                )
        else:
            for network in trunk.allowed_addresses:
                other = networks.setdefault(network, trunk.name)
                if other != trunk.name:
                    yield ("trunk", index, "allowed_addresses"), f'{network} is already in trunk "{other}"'
        if sip is not None and trunk.outbound is not None and trunk.outbound.transport not in sip.transports:
            yield (
                ("trunk", index, "outbound", "transport"),
                f'"{trunk.outbound.transport}" is not among the transports of [sip]',
            )


# ---------------------------------------------------------------- reading


def load_config(path: Path | None, environ: Mapping[str, str]) -> Config:
    """Reads `path` (None: defaults alone) and lays ``SIPBRIDGE_SECTION__KEY`` of `environ` over it.

    Raises ConfigError, or ConfigFileError with all of several errors.
    """
    data: dict[str, Any] = {} if path is None else _read_toml(path)
    reader = _Reader(path, data, environ)
    config = reader.read()
    if config is None:
        raise reader.errors[0] if len(reader.errors) == 1 else ConfigFileError(reader.errors)
    return config


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise ConfigError(f"cannot read it: {error.strerror}", file=path) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"not UTF-8 text (byte {error.start})", file=path) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"not valid TOML: {error}", file=path) from None  # says line and column


class _Reader:
    """One reading: gathers the errors of all tables."""

    def __init__(self, path: Path | None, data: dict[str, Any], environ: Mapping[str, str]) -> None:
        self.path = path
        self.data = data
        self.environ = environ
        self.errors: list[ConfigError] = []
        self.from_environment: dict[_Loc, str] = {}  # place → variable
        self.context = {"environ": environ, "directory": path.parent if path is not None else Path()}

    def read(self) -> Config | None:
        """The configuration, or None when there are errors."""
        for name in self.data:
            if name not in Config.model_fields:
                known = list(Config.model_fields)
                self._add((name,), f"unknown table{_did_you_mean(name, known)}")
        self._lay_environment_over()
        parts: dict[str, Any] = {}
        for name, field in Config.model_fields.items():
            if name not in self.data:
                continue
            model, is_list = _model_of(field.annotation)
            value = self.data[name]
            if not is_list:
                parts[name] = self._validate(model, value, (name,))
            elif isinstance(value, list):
                parts[name] = [self._validate(model, item, (name, index)) for index, item in enumerate(value)]
            else:
                self._add((name,), f"expected a list of tables, each under [[{name}]]")
        trunks = [(i, trunk) for i, trunk in enumerate(parts.get("trunk", ())) if trunk is not None]
        for loc, message in (
            *_name_problems(*(self._items(table) for table in ("trunk", "pbx", "rule", "agent"))),
            *_server_problems(self._items("rule"), self.data.get("livekit"), self.data.get("agora")),
            *_cross_problems(parts.get("sip", SipConfig()), trunks),
        ):
            self._add(loc, message)
        return None if self.errors else Config(**parts)

    def _items(self, name: str) -> list[Any]:
        value = self.data.get(name)
        return value if isinstance(value, list) else []

    def _validate(self, model: type[_Table], value: Any, loc: _Loc) -> _Table | None:
        if not isinstance(value, dict):
            self._add(loc, "expected a table")
            return None
        try:
            return model.model_validate(value, context=self.context, by_alias=True, by_name=False)
        except ValidationError as error:
            for item in error.errors(include_url=False, include_input=False):
                place = (*loc, *item["loc"])
                ctx = item.get("ctx", {})
                if item["type"] == "sipbridge" and ctx.get("key"):
                    place = (*place, ctx["key"])
                self._add(place, _message_of(item["type"], item["msg"], place))
            return None

    def _add(self, loc: _Loc, message: str) -> None:
        for depth in range(len(loc), 0, -1):
            variable = self.from_environment.get(loc[:depth])
            if variable is not None:
                self.errors.append(ConfigError(message, key=variable))
                return
        table, key = _table_and_key(loc, self.data)
        self.errors.append(ConfigError(message, file=self.path, table=table, key=key))

    def _lay_environment_over(self) -> None:
        for variable, text in sorted(self.environ.items()):
            name = variable.removeprefix(ENVIRONMENT_PREFIX)
            if name == variable or "__" not in name or not text:
                continue
            loc = tuple(name.lower().split("__"))
            annotation = _annotation_at(loc)
            if annotation is None:
                known = [ENVIRONMENT_PREFIX + "__".join(known_loc).upper() for known_loc in _settable()]
                self.errors.append(
                    ConfigError(f"sets no known key{_did_you_mean(variable, known)}", key=variable)
                )
                continue
            table: Any = self.data
            for part in loc[:-1]:
                table = table.setdefault(part, {}) if isinstance(table, dict) else table
            if isinstance(table, dict):
                table[loc[-1]] = _from_text(annotation, text)
                self.from_environment[loc] = variable


def _message_of(kind: str, message: str, loc: _Loc) -> str:
    if kind == "extra_forbidden":
        model = _model_at(loc[:-1])
        known = _keys(model) if model is not None else []
        name = str(loc[-1])
        hint = _did_you_mean(name, known)
        if not hint:
            elsewhere = [other for other in _settable() if other[-1] == name]
            hint = f"; it belongs into [{'.'.join(elsewhere[0][:-1])}]" if elsewhere else ""
        return f"unknown key{hint}"
    if kind == "missing":
        return "is missing"
    if kind == "tuple_type":
        return "should be a list"
    if kind == "value_error":
        return message.removeprefix("Value error, ")
    return message.removeprefix("Input ")


def _place(loc: _Loc, data: Any) -> str:
    return " ".join(part for part in _table_and_key(loc, data) if part)


def _table_and_key(loc: _Loc, data: Any) -> tuple[str | None, str | None]:
    """``("trunk", 0, "auth", "password")`` as ``'[[trunk]] "carrier"'`` and ``"auth.password"``."""
    if len(loc) >= 2 and isinstance(loc[1], int):
        name = _get(_get(data, str(loc[0]))[loc[1]], "name")
        usable = isinstance(name, str) and _NAME.fullmatch(name)
        table = f'[[{loc[0]}]] "{name}"' if usable else f"[[{loc[0]}]] #{loc[1] + 1}"
        rest = loc[2:]
    elif len(loc) > 2 and loc[:2] == ("sip", "tls"):
        table, rest = "[sip.tls]", loc[2:]
    else:
        table, rest = (
            (f"[[{loc[0]}]]" if loc[0] in ("trunk", "pbx", "rule", "agent") else f"[{loc[0]}]"),
            loc[1:],
        )
    key = ""
    for part in rest:
        # The n-th item of a list is said as people count.
        key += f" (item {part + 1})" if isinstance(part, int) else f".{part}" if key else part
    return table, key or None


# ---------------------------------------------------------------- the models as data


def _plain(annotation: Any) -> Any:
    """The type without Annotated and without ``| None``."""
    while True:
        if typing.get_origin(annotation) is Annotated:
            annotation = typing.get_args(annotation)[0]
        elif isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
            first = [arg for arg in typing.get_args(annotation) if arg is not type(None)]
            if len(first) != 1:
                return annotation
            annotation = first[0]
        else:
            return annotation


def _model_of(annotation: Any) -> tuple[type[_Table], bool]:
    plain = _plain(annotation)
    if typing.get_origin(plain) is tuple:
        return cast(type[_Table], _plain(typing.get_args(plain)[0])), True
    return cast(type[_Table], plain), False


def _keys(model: type[_Table]) -> list[str]:
    return [str(field.validation_alias or name) for name, field in model.model_fields.items()]


def _fields(model: type[_Table]) -> dict[str, Any]:
    """TOML key → type of its value."""
    return {
        str(field.validation_alias or name): field.annotation for name, field in model.model_fields.items()
    }


def _model_at(loc: _Loc) -> type[_Table] | None:
    model: type[_Table] = Config
    for part in loc:
        if isinstance(part, int):
            continue
        annotation = _fields(model).get(part)
        candidate = None if annotation is None else _model_of(annotation)[0]
        if not (isinstance(candidate, type) and issubclass(candidate, _Table)):
            return None
        model = candidate
    return model


def _settable() -> Iterator[tuple[str, ...]]:
    """The places that a variable of the environment can set: all but what stands in lists of tables."""

    def walk(model: type[_Table], loc: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        for key, annotation in _fields(model).items():
            plain = _plain(annotation)
            if isinstance(plain, type) and issubclass(plain, _Table):
                yield from walk(plain, (*loc, key))
            elif loc:
                yield (*loc, key)

    return walk(Config, ())


def _annotation_at(loc: tuple[str, ...]) -> Any:
    if loc not in set(_settable()):
        return None
    model = _model_at(loc[:-1])
    return None if model is None else _fields(model)[loc[-1]]


def _from_text(annotation: Any, text: str) -> Any:
    """What a variable's text means for a key of this type; left as text where it cannot be read."""
    plain = _plain(annotation)
    if typing.get_origin(plain) is tuple:
        if text.lstrip().startswith("["):
            try:
                return json.loads(text)
            except ValueError:
                return text
        item = typing.get_args(plain)[0]
        return [_from_text(item, part.strip()) for part in text.split(",") if part.strip()]
    if typing.get_origin(plain) is Literal:
        plain = type(typing.get_args(plain)[0])
    if plain is bool:
        return {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
    if plain in (int, float):
        try:
            return plain(text)
        except ValueError:
            return text
    return text


# ---------------------------------------------------------------- what it asks of the machine


def required_ports(config: Config) -> list[tuple[str, int, int, str]]:
    """The ports a firewall has to open: ("udp" or "tcp", first, last, for what).

    What listens on the loopback alone, or on a port that the system chooses, is left out.
    """
    ports: list[tuple[str, int, int, str]] = []
    listens = [cast(tuple[str, int], routing.split_host_port(listen)) for listen in config.sip.listen]
    open_listens = [(host, port) for host, port in listens if not _is_loopback(host)]
    for _, port in open_listens:
        for transport in config.sip.transports:
            if transport == "tls" and config.sip.tls is not None:
                ports.append(("tcp", config.sip.tls.port, config.sip.tls.port, "SIP over TLS"))
            elif transport != "tls":
                ports.append((transport, port, port, "SIP"))
    if open_listens:
        first, last = config.sip.rtp_ports
        ports.append(("udp", first, last, "RTP and RTCP"))
    for pbx in config.pbx:
        host, port = cast(tuple[str, int], routing.split_host_port(pbx.listen))
        if not _is_loopback(host):
            ports.append(("tcp", port, port, f"calls of PBX {pbx.name}"))
    host, http_port = cast(tuple[str, int], routing.split_host_port(config.http.listen))
    if not _is_loopback(host):
        ports.append(("tcp", http_port, http_port, "HTTP API"))
        ports.append(("udp", *config.webrtc.ports, "WebRTC"))
    return [line for line in dict.fromkeys(ports) if line[1] != 0]


def config_warnings(config: Config) -> list[str]:
    """What is allowed, and probably not meant: one sentence each, for ``sipbridge check`` and the log."""
    warnings = []
    first, last = config.sip.rtp_ports
    pairs = (last - first + 1) // 2
    if pairs < config.sip.max_calls:
        warnings.append(
            f"[sip] rtp_ports has room for {pairs} calls, two ports each, but max_calls is"
            f" {config.sip.max_calls}"
        )
    for listen in config.sip.listen:
        port = routing.split_host_port(listen)[1]
        if port is not None and first <= port <= last:
            warnings.append(f"[sip] rtp_ports {first} to {last} contains the port of listen, {port}")
    for trunk in config.trunk:
        takes_calls = trunk.allowed_addresses or trunk.auth is not None
        if takes_calls and not any(rule.trunk in (None, trunk.name) for rule in config.rule):
            warnings.append(f'[[trunk]] "{trunk.name}" lets callers in, but no [[rule]] takes their calls')
    for pbx in config.pbx:
        if not any(rule.trunk in (None, pbx.name) for rule in config.rule):
            warnings.append(f'[[pbx]] "{pbx.name}" lets callers in, but no [[rule]] takes their calls')
    return warnings


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def required_open_files(config: Config) -> int:
    """The limit of open files (``ulimit -n``) that `max_calls` needs: two UDP sockets a call and a base."""
    return 2 * config.sip.max_calls + 256
