# SPDX-License-Identifier: GPL-3.0-or-later
"""Who meets whom: addresses, patterns, trunks, rules and dial plans, as pure functions.

Everything here works on text that strangers wrote. Control characters, and text beyond
`MAX_URI_CHARS`, are refused in every form, percent-escaped too.
"""

import fnmatch
import functools
import ipaddress
import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Self

from sipbridge.errors import CallError, EndKind, EndReason, Party

if TYPE_CHECKING:
    from sipbridge.config import Config, RuleConfig, TrunkConfig

MAX_URI_CHARS = 2048

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

# Lone surrogates stand for bytes of a message that are not UTF-8; they can be neither sent nor stored.
_SURROGATES = re.compile(r"[\ud800-\udfff]+")
_UNUSABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_TOKEN = re.compile(r"[A-Za-z0-9.!%*_+`'~-]+")  # RFC 3261 section 25.1
_HOST_NAME = re.compile(
    r"(?:[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.)*[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.?"
)


def check_text(text: str, what: str, max_chars: int = MAX_URI_CHARS) -> str:
    """`text` itself; ValueError when it has control characters (CR, LF, NUL), is no UTF-8 or too long."""
    if len(text) > max_chars:
        raise ValueError(f"{what} has {len(text)} characters, more than {max_chars}")
    if _UNUSABLE.search(text):
        raise ValueError(f"{what} contains a control character, or is not UTF-8")
    return text


# ---------------------------------------------------------------- hosts and ports


def split_host_port(text: str) -> tuple[str, int | None]:
    """Host and port of ``host``, ``host:port``, ``[v6]`` or ``[v6]:port``; IPv6 comes back bare.

    Host names come back in lower case. ValueError when it is none of these.
    """
    check_text(text, "address")
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"{text!r} is no address: expected [IPv6] or [IPv6]:port")
        if ":" not in host:
            raise ValueError(f"{host!r} is no IPv6 address")
        port_text = rest[1:] if rest else None
    else:
        host, colon, rest = text.partition(":")
        if ":" in rest:
            raise ValueError(f"{text!r}: an IPv6 address is written in brackets, [{text}]")
        port_text = rest if colon else None
    return _check_host(host), None if port_text is None else _check_port(port_text)


def join_host_port(host: str, port: int | None) -> str:
    """The inverse of `split_host_port`."""
    name = f"[{host}]" if ":" in host else host
    return name if port is None else f"{name}:{port}"


def _check_host(host: str) -> str:
    if ":" in host:
        if "%" in host:
            raise ValueError(f"{host!r}: an IPv6 zone is only valid on one machine")
        try:
            return str(ipaddress.IPv6Address(host))
        except ValueError:
            raise ValueError(f"{host!r} is no IPv6 address") from None
    if not host:
        raise ValueError("the host is missing")
    if len(host) > 253 or not _HOST_NAME.fullmatch(host):
        raise ValueError(f"{host!r} is no host name")
    # RFC 3261: the last label of a name starts with a letter, so all digits is meant as IPv4.
    if host.rstrip(".").rpartition(".")[2].isdigit():
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError:
            raise ValueError(f"{host!r} is no IPv4 address") from None
    return host.lower()


def _check_port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= 65535):
        raise ValueError(f"{text!r} is no port (0 to 65535)")
    return int(text)


# ---------------------------------------------------------------- SIP URIs

_UNRESERVED = "-_.!~*'()"  # beside letters and digits; RFC 3261 section 25.1
_USER_SAFE = _UNRESERVED + "&=+$,;?/"
_PARAM_SAFE = _UNRESERVED + "[]/:&+$"
_HEADER_SAFE = _UNRESERVED + "[]/?:+$"
_NUMBER = re.compile(r"\+?[0-9*#A-Da-d]+")
_VISUAL = re.compile(r"[-.() ]")  # RFC 3966 visual separators, and the space people write


def _unescape(text: str, safe: str, what: str) -> str:
    """Percent-decoded `text`, which may have only letters, digits, `safe` and escapes."""
    for match in re.finditer(r"%(?![0-9A-Fa-f]{2})|[^%]", text):
        char = match[0]
        if not (char.isascii() and char.isalnum()) and char not in safe:
            raise ValueError(f"{char!r} is not allowed in the {what} of a URI")
    try:
        decoded = urllib.parse.unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise ValueError(f"the {what} of the URI is not UTF-8") from None
    return check_text(decoded, f"the {what} of the URI")


def _escape(text: str, safe: str) -> str:
    # quote() never escapes "_.-~", all of which are unreserved in SIP as well.
    return urllib.parse.quote(text, safe=safe)


def clean_number(text: str) -> str:
    """A telephone number without its visual separators; any other text as it is."""
    digits = _VISUAL.sub("", text)
    return digits if _NUMBER.fullmatch(digits) else text


@dataclass(frozen=True, slots=True)
class SipUri:
    """A SIP, SIPS (RFC 3261 section 19.1) or tel (RFC 3966) URI, with all parts unescaped.

    `params` and `headers` keep their order; a parameter without a value has None. A password in the
    user part is dropped when parsed: it has no use here, and is not to be logged.
    """

    scheme: str = "sip"
    user: str = ""  # of a tel URI: the number
    host: str = ""  # IPv6 without brackets; empty only in a tel URI
    port: int | None = None
    params: tuple[tuple[str, str | None], ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    display: str = ""

    def __post_init__(self) -> None:
        if self.scheme not in ("sip", "sips", "tel"):
            raise ValueError(f"{self.scheme!r} is not one of sip, sips, tel")
        if self.scheme == "tel":
            if self.host or self.port is not None or self.headers:
                raise ValueError("a tel URI has neither host nor headers")
            if not _NUMBER.fullmatch(_VISUAL.sub("", self.user)) or " " in self.user:
                raise ValueError(f"{self.user!r} is no telephone number")
        elif _check_host(self.host) != self.host:
            raise ValueError(f"{self.host!r} is not in its canonical form")
        if self.port is not None and not 0 < self.port <= 65535:
            raise ValueError(f"{self.port} is no port")
        check_text(self.user, "the user")
        check_text(self.display, "the display name")
        names = [name for name, _ in self.params]
        if len(set(names)) != len(names):
            raise ValueError("a URI parameter is given twice")
        for name, value in (*self.params, *self.headers):
            if not name:
                raise ValueError("a URI parameter or header has no name")
            check_text(name, "a name in the URI")
            check_text(value or "", f"{name} in the URI")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads a URI, alone or as ``"Name" <uri>``; parameters behind ``>`` (a tag) are left out.

        A display name that is not UTF-8 is repaired; else ValueError says what is wrong.
        """
        text = check_text(_SURROGATES.sub("\ufffd", text), "the URI").strip(" ")
        display, spec = _split_name_addr(text)
        scheme, colon, rest = spec.partition(":")
        if not colon:
            raise ValueError("a URI starts with sip:, sips: or tel:")
        scheme = scheme.lower()
        if scheme == "tel":
            number, *params = rest.split(";")
            return cls(
                scheme,
                _unescape(number, _USER_SAFE + "#", "number"),
                params=_read_params(params),
                display=display,
            )
        # "?" and ";" may stand in the user part too, "@" nowhere else: so that is cut off first.
        user_info, at, host_part = rest.rpartition("@")
        if "@" in user_info or (at and not user_info):
            raise ValueError("the user part of the URI is not valid")
        host_part, _, header_text = host_part.partition("?")
        host_port, *params = host_part.split(";")
        user = user_info.partition(":")[0]
        host, port = split_host_port(host_port)
        headers = []
        for item in header_text.split("&") if header_text else ():
            name, _, value = item.partition("=")
            headers.append(
                (_unescape(name, _HEADER_SAFE, "header"), _unescape(value, _HEADER_SAFE, "header"))
            )
        return cls(
            scheme,
            _unescape(user, _USER_SAFE, "user part"),
            host,
            port,
            _read_params(params),
            tuple(headers),
            display,
        )

    @property
    def uri(self) -> str:
        """The URI alone, escaped, without a display name."""
        params = "".join(
            f";{_escape(name, _PARAM_SAFE)}" + ("" if value is None else f"={_escape(value, _PARAM_SAFE)}")
            for name, value in self.params
        )
        if self.scheme == "tel":
            return f"tel:{_escape(self.user, _USER_SAFE)}{params}"
        user = f"{_escape(self.user, _USER_SAFE)}@" if self.user else ""
        headers = "&".join(
            f"{_escape(name, _HEADER_SAFE)}={_escape(value, _HEADER_SAFE)}" for name, value in self.headers
        )
        return f"{self.scheme}:{user}{join_host_port(self.host, self.port)}{params}" + (
            headers and f"?{headers}"
        )

    def __str__(self) -> str:
        if not self.display:
            return self.uri
        quoted = self.display.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{quoted}" <{self.uri}>'

    def param(self, name: str) -> str | None:
        """The value of a parameter ("" when it has none), or None when it is not there."""
        for key, value in self.params:
            if key == name:
                return value or ""
        return None

    @property
    def transport(self) -> str:
        """``udp``, ``tcp``, ``tls`` …, or "" when the URI does not say."""
        return (self.param("transport") or "").lower()

    @property
    def party(self) -> str:
        """What rules match and ``{caller}`` shows: the number, else the user, else the host.

        Where the user part is a telephone number, its parameters (RFC 3261 section 19.1.6) and
        visual separators are left out.
        """
        user = self.user
        number = user.partition(";")[0]
        if self.scheme == "tel" or self.param("user") == "phone" or number != user:
            user = clean_number(number)
        return user or self.host


def _split_name_addr(text: str) -> tuple[str, str]:
    """Display name and URI of ``"Name" <uri>;tag=…``, ``Name <uri>`` or a bare URI."""
    if text.startswith('"'):
        match = re.match(r'"((?:[^"\\]|\\.)*)"\s*', text)
        if match is None:
            raise ValueError("the display name has no closing quote")
        display, rest = re.sub(r"\\(.)", r"\1", match[1]), text[match.end() :]
    else:
        display, bracket, rest = text.partition("<")
        if not bracket:
            return "", text
        display, rest = display.strip(" "), "<" + rest
        if display and not all(_TOKEN.fullmatch(word) for word in display.split()):
            raise ValueError("the display name needs quotes")
    if not rest.startswith("<"):
        raise ValueError("a URI in <> is expected after the display name")
    spec, bracket, behind = rest[1:].partition(">")
    if not bracket or (behind.strip(" ") and not behind.lstrip(" ").startswith(";")):
        raise ValueError("the URI has no closing >")
    return display, spec


def _read_params(items: list[str]) -> tuple[tuple[str, str | None], ...]:
    params: list[tuple[str, str | None]] = []
    for item in items:
        name, equals, value = item.partition("=")
        params.append(
            (
                _unescape(name, _PARAM_SAFE, "parameters").lower(),
                _unescape(value, _PARAM_SAFE, "parameters") if equals else None,
            )
        )
    return tuple(params)


# ---------------------------------------------------------------- SIP headers

# What the SIP stack itself writes; given twice, or wrongly, the request is broken.
_OWN_HEADERS = frozenset(
    {
        *("via", "v", "from", "f", "to", "t", "call-id", "i", "cseq", "contact", "m", "max-forwards"),
        *("content-type", "c", "content-length", "l", "content-encoding", "e", "route", "record-route"),
        *("authorization", "proxy-authorization", "require", "supported", "k", "allow", "user-agent"),
    }
)


def check_header(name: str, value: str) -> None:
    """ValueError unless this header may be added to an INVITE of ours."""
    check_text(name, "the header's name", 128)
    if not _TOKEN.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a header")
    if name.lower() in _OWN_HEADERS:
        raise ValueError(f"{name} is written by the bridge itself")
    check_text(value, f"header {name}", 1024)


# ---------------------------------------------------------------- patterns, trunks and rules


@functools.lru_cache(maxsize=4096)
def compile_pattern(pattern: str) -> re.Pattern[str]:
    """A glob (``*``, ``?``, ``[0-9]``), or a regular expression when it stands ``/between slashes/``.

    Both have to match the whole text. ValueError when the expression is not valid.
    """
    if not pattern:
        raise ValueError('an empty pattern matches nothing; "*" matches everything')
    if len(pattern) >= 2 and pattern.startswith("/") and pattern.endswith("/"):
        try:
            return re.compile(pattern[1:-1])
        except re.error as error:
            raise ValueError(f"{pattern} is no regular expression: {error}") from None
    return re.compile(fnmatch.translate(pattern))


def matches(pattern: str | None, text: str) -> bool:
    """True when `pattern` (None: anything) matches the whole of `text`."""
    return pattern is None or compile_pattern(pattern).fullmatch(text) is not None


def match_trunk(config: "Config", source: IpAddress, username: str | None = None) -> "TrunkConfig | None":
    """The trunk that a request from `source` belongs to, or None: a stranger, or digest is missing.

    `username` is the name that digest has proved. Among the trunks that list the source the narrowest
    network decides; a trunk with a user and no addresses takes its user from anywhere.
    """
    if isinstance(source, ipaddress.IPv6Address) and source.ipv4_mapped is not None:
        source = source.ipv4_mapped
    listed = [
        (network.prefixlen, trunk)
        for trunk in config.trunk
        for network in trunk.allowed_addresses
        if source in network
    ]
    longest = max((length for length, _ in listed), default=0)
    nearest = [trunk for length, trunk in listed if length == longest]
    if username is not None:
        anywhere = [trunk for trunk in config.trunk if not trunk.allowed_addresses]
        for trunk in (*nearest, *anywhere):
            if trunk.auth is not None and trunk.auth.username == username:
                return trunk
    return next((trunk for trunk in nearest if trunk.auth is None), None)


def accepts_number(trunk: "TrunkConfig", callee: str) -> bool:
    """True when calls of this trunk may ask for `callee`."""
    return not trunk.numbers or any(matches(pattern, callee) for pattern in trunk.numbers)


def match_rule(config: "Config", trunk_name: str, caller: str, callee: str) -> "RuleConfig | None":
    """The first rule that fits a call of this trunk, or None."""
    for rule in config.rule:
        if rule.trunk in (None, trunk_name) and matches(rule.from_, caller) and matches(rule.to, callee):
            return rule
    return None


# ---------------------------------------------------------------- targets

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_FIELDS = ("caller", "callee", "call_id")


@dataclass(frozen=True, slots=True)
class Target:
    """Where a call's audio goes: ``local:demo``, ``echo:``, ``wss://host/path``."""

    scheme: str
    address: str  # all behind the colon, so with the slashes of a URL

    @classmethod
    def parse(cls, text: str) -> Self:
        """Splits a target that has been filled in, or a template; ValueError when it is none."""
        check_text(text, "the target")
        scheme, colon, address = text.partition(":")
        if not colon or not _SCHEME.fullmatch(scheme):
            raise ValueError(f"{text!r} is no target: expected SCHEME:ADDRESS, as in local:demo")
        return cls(scheme, address)

    def __str__(self) -> str:
        return f"{self.scheme}:{self.address}"


def check_target_template(template: str) -> None:
    """ValueError unless the template can be filled.

    Callers choose what is filled in, so they may not choose the backend or the host of a URL.
    """
    target = Target.parse(template)
    for name in _PLACEHOLDER.findall(template):
        header = name.removeprefix("header:")
        if name not in _FIELDS and (header == name or not _TOKEN.fullmatch(header)):
            known = ", ".join(f"{{{field_name}}}" for field_name in _FIELDS)
            raise ValueError(f"{{{name}}} is not one of {known}, {{header:X-Name}}")
    if set("{}") & set(_PLACEHOLDER.sub("", template)):
        raise ValueError(f"{template!r} has a brace without its other half")
    if target.address.startswith("//") and "{" in re.split("[/?#]", target.address[2:], maxsplit=1)[0]:
        raise ValueError("the host of a URL cannot be filled in")


def fill(target_template: str, fields: Mapping[str, str], headers: Mapping[str, str]) -> str:
    """The template with ``{caller}``, ``{callee}``, ``{call_id}`` and ``{header:X-Name}`` filled in.

    A header that the call has not is empty. In a URL the values are percent-escaped; in ``play:`` and
    in a URL they cannot leave their folder. CallError (404) when a value cannot be used there, or
    nothing is left of the address.
    """
    target = Target.parse(target_template)
    is_url = target.address.startswith("//")
    by_name = {name.lower(): value for name, value in headers.items()}

    def value_of(match: re.Match[str]) -> str:
        name = match[1]
        header = name.removeprefix("header:")
        value = fields[name] if header == name else by_name.get(header.lower(), "")
        if _UNUSABLE.search(value):
            raise _unusable(f"{name} contains a control character, or is not UTF-8")
        if is_url or target.scheme == "play":
            if value.strip(".") == "" and value:
                raise _unusable(f"{name} is only dots")
            if is_url:
                return urllib.parse.quote(value, safe="")
            if "/" in value or "\\" in value:
                raise _unusable(f"{name} contains a slash")
        return value

    address = _PLACEHOLDER.sub(value_of, target.address)
    if target.address and not address:
        raise _unusable(f"nothing is left of {target_template}")
    if len(address) > MAX_URI_CHARS:
        raise _unusable("it is too long")
    return f"{target.scheme}:{address}"


def _unusable(detail: str) -> CallError:
    return CallError(EndReason(EndKind.NOT_FOUND, f"no target for this call: {detail}", Party.CALLER))


# ---------------------------------------------------------------- dialling out


@dataclass(frozen=True, slots=True)
class DialPlan:
    """How to reach a callee: URIs to try in order, or the contact that a phone registered."""

    callee: str  # for the log and for {callee}
    request_uris: tuple[SipUri, ...] = ()
    phone: str = ""  # the user name of a phone; its registered contact is the only URI then
    trunk: "TrunkConfig | None" = field(default=None, repr=False)


def parse_dial_target(to: str, trunk: "TrunkConfig | None") -> DialPlan:
    """What to dial for `to`: a ``sip:`` URI as it is, or a number (or user) with a trunk.

    A server given without a port is left to RFC 3263 (SRV, then address records). ValueError when
    there is no way to dial it.
    """
    to = check_text(to, "the number", 256 if ":" not in to else MAX_URI_CHARS).strip(" ")
    if not to:
        raise ValueError("there is nothing to dial")
    if re.match(r"(?i)(sips?|tel):|.*<", to):
        uri = SipUri.parse(to)
        if uri.headers:
            raise ValueError("a URI with headers (?…) is not dialled")
        if uri.scheme != "tel":
            return DialPlan(uri.party, (replace(uri, display=""),), trunk=trunk)
        to = uri.party
    if "@" in to or ":" in to:
        raise ValueError(f"{to!r} is neither a number nor a URI; did you mean sip:{to} ?")
    if trunk is None:
        raise ValueError(f"{to!r} needs a trunk to go out by, or a sip: URI")
    if trunk.kind == "phone":
        user = trunk.auth.username if trunk.auth is not None else ""
        if to not in (user, trunk.name):
            raise ValueError(f"trunk {trunk.name!r} is the phone {user!r}; {to!r} cannot be reached by it")
        return DialPlan(user, phone=user, trunk=trunk)
    if trunk.outbound is None:
        raise ValueError(f"trunk {trunk.name!r} has no outbound servers")
    number = clean_number(to)
    # UDP is what a URI without a transport means; naming it would only lengthen each message.
    params = () if trunk.outbound.transport == "udp" else (("transport", trunk.outbound.transport),)
    uris = []
    for server in trunk.outbound.servers:
        host, port = split_host_port(server)
        uris.append(SipUri("sip", number, host, port, params))
    return DialPlan(number, tuple(uris), trunk=trunk)


def plan_dial(config: "Config", to: str, trunk_name: str | None) -> DialPlan:
    """`parse_dial_target` with the trunk looked up; without one, a phone is found by its user name."""
    if trunk_name is not None:
        for trunk in config.trunk:
            if trunk.name == trunk_name:
                return parse_dial_target(to, trunk)
        raise ValueError(f"there is no trunk {trunk_name!r}")
    for trunk in config.trunk:
        if trunk.kind == "phone" and trunk.auth is not None and trunk.auth.username == to.strip(" "):
            return parse_dial_target(to, trunk)
    return parse_dial_target(to, None)
