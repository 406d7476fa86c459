# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of sipbridge.routing."""

import ipaddress
import re
import string
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import SecretStr

from sipbridge import routing
from sipbridge.config import AuthConfig, Config, OutboundConfig, RuleConfig, TrunkConfig
from sipbridge.errors import CallError, EndKind
from sipbridge.routing import SipUri, Target

# ---------------------------------------------------------------- strategies

_PRINTABLE = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)
_LABEL = st.from_regex(r"[a-z]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
_HOSTS = st.one_of(
    st.lists(_LABEL, min_size=1, max_size=3).map(".".join),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(lambda address: str(ipaddress.IPv6Address(int(address)))),
)
_PARAM_NAMES = st.text(string.ascii_lowercase + string.digits + "-%;=?@ é", min_size=1, max_size=8)
_PARAMS = st.lists(
    st.tuples(_PARAM_NAMES, st.none() | _PRINTABLE), max_size=3, unique_by=lambda item: item[0]
).map(tuple)
_SIP_URIS = st.builds(
    SipUri,
    scheme=st.sampled_from(["sip", "sips"]),
    user=_PRINTABLE,
    host=_HOSTS,
    port=st.none() | st.integers(1, 65535),
    params=_PARAMS,
    headers=st.lists(st.tuples(_PARAM_NAMES, _PRINTABLE), max_size=2).map(tuple),
    display=_PRINTABLE,
)
_TEL_URIS = st.builds(
    SipUri,
    scheme=st.just("tel"),
    user=st.from_regex(r"\+?[0-9*#]{1,10}(-[0-9]{1,4})?", fullmatch=True),
    params=_PARAMS,
    display=_PRINTABLE,
)

# ---------------------------------------------------------------- URIs


@given(_SIP_URIS | _TEL_URIS)
def test_a_uri_that_is_printed_reads_back_the_same(uri: SipUri) -> None:
    """Whatever the parts hold, escaping keeps them apart."""
    assert SipUri.parse(str(uri)) == uri
    assert SipUri.parse(f"<{uri.uri}>;tag=1") == SipUri.parse(uri.uri)


@given(_SIP_URIS | _TEL_URIS)
def test_a_printed_uri_is_one_line_of_ascii(uri: SipUri) -> None:
    """Nothing in it ends a header or leaves the URI."""
    assert re.fullmatch(r"[!-~]+", uri.uri)
    assert not set(uri.uri) & set('<>"{}\\^`|')


@given(st.text() | st.text('sip:@;?&=<>[]%"\\+19.ab \r\n\0', max_size=40).map(lambda text: f"sip:{text}"))
def test_any_text_is_a_uri_or_a_value_error(text: str) -> None:
    """No other exception, and what is accepted prints as what it was read as."""
    try:
        uri = SipUri.parse(text)
    except ValueError:
        return
    assert SipUri.parse(str(uri)) == uri


@pytest.mark.parametrize(
    ("text", "uri"),
    [
        ("sip:alice@example.com", SipUri(user="alice", host="example.com")),
        ("SIP:Alice@EXAMPLE.com", SipUri(user="Alice", host="example.com")),
        ("sips:example.com", SipUri("sips", host="example.com")),
        ("sip:192.0.2.1:5070", SipUri(host="192.0.2.1", port=5070)),
        ("sip:a@[2001:DB8:0::1]:5061", SipUri(user="a", host="2001:db8::1", port=5061)),
        ("sip:alice:secret@h", SipUri(user="alice", host="h")),
        ("sip:a%20b%23@h", SipUri(user="a b#", host="h")),
        ("sip:%C3%A9@h", SipUri(user="é", host="h")),
        ("sip:a;b?c@h", SipUri(user="a;b?c", host="h")),
        (
            "sip:a@h;Transport=TCP;lr?Subject=a%20b&X=",
            SipUri(
                user="a",
                host="h",
                params=(("transport", "TCP"), ("lr", None)),
                headers=(("Subject", "a b"), ("X", "")),
            ),
        ),
        ("<sip:a@h>", SipUri(user="a", host="h")),
        ("Bob Fisher <sip:a@h>;tag=77", SipUri(user="a", host="h", display="Bob Fisher")),
        (
            '"B \\"x\\" \\\\" <sip:a@h;lr>',
            SipUri(user="a", host="h", params=(("lr", None),), display='B "x" \\'),
        ),
        ('"<sip:b@h>" <sip:a@h>', SipUri(user="a", host="h", display="<sip:b@h>")),
        ('"B\udcff" <sip:a@h>', SipUri(user="a", host="h", display="B\ufffd")),
        ("tel:+1-201-555-0123", SipUri("tel", user="+1-201-555-0123")),
        (
            "tel:7042;phone-context=example.com",
            SipUri("tel", user="7042", params=(("phone-context", "example.com"),)),
        ),
    ],
)
def test_uris(text: str, uri: SipUri) -> None:
    """The forms of RFC 3261 19.1, 20.10 and RFC 3966."""
    assert SipUri.parse(text) == uri


@pytest.mark.parametrize(
    "text",
    [
        "",
        "alice",
        "http://h/",
        "sip:",
        "sip:@h",
        "sip:a@",
        "sip:a@b@c",
        "sip:a b@h",
        "sip:a@h:0",
        "sip:a@h:65536",
        "sip:a@h:",
        "sip:a@h:5060x",
        "sip:a@h:٥٠٦٠",
        "sip:a@1.2.3",
        "sip:a@256.1.1.1",
        "sip:a@::1",
        "sip:a@[::1",
        "sip:a@[1.2.3.4]",
        "sip:a@[fe80::1%25eth0]",
        "sip:a@-h",
        "sip:a@h;x=1;X=2",
        "sip:a@h;",
        "sip:a@h?=x",
        "sip:%0d%0a@h",
        "sip:a%00@h",
        "sip:%ff@h",
        "sip:\udcff@h",
        "sip:%4@h",
        "sip:a@h\r\nVia: x",
        "sip:a@h?Subject=%0D%0AVia:x",
        '"a <sip:a@h>',
        '"a" sip:a@h',
        "a@b <sip:a@h>",
        "<sip:a@h",
        "<sip:a@h> x",
        "tel:alice",
        "tel:",
        "sip:" + "a" * 3000 + "@h",
    ],
)
def test_what_is_no_uri(text: str) -> None:
    """Refused, with a reason that does not repeat an oversize text."""
    with pytest.raises(ValueError, match=r".+") as caught:
        SipUri.parse(text)
    assert len(str(caught.value)) < 300


def test_a_uri_cannot_be_built_to_break_a_message() -> None:
    """Building one in code is held to the same."""
    for parts in (
        {"user": "a\r\nVia: x"},
        {"display": "a\nb"},
        {"params": (("a", "\0"),)},
        {"headers": (("", "x"),)},
        {"host": "h h"},
        {"scheme": "http"},
        {"port": 0},
    ):
        with pytest.raises(ValueError, match=r".+"):
            SipUri(**{"host": "h", **parts})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "party"),
    [
        ("sip:alice@h", "alice"),
        ("sip:example.com", "example.com"),
        ("sip:a.b-c@h", "a.b-c"),
        ("tel:+1-201-555-0123", "+12015550123"),
        ("sip:+1-201-555@h;user=phone", "+1201555"),
        ("sip:+1201;npdi;rn=+1@h", "+1201"),
        ("sip:%2B49@h", "+49"),
    ],
)
def test_party(text: str, party: str) -> None:
    """Rules see a number as people write it down."""
    assert SipUri.parse(text).party == party


def test_transport() -> None:
    """The parameter, in lower case."""
    assert SipUri.parse("sip:h;transport=TLS").transport == "tls"
    assert SipUri.parse("sip:h").transport == ""
    assert SipUri.parse("sip:h;lr").param("lr") == ""
    assert SipUri.parse("sip:h").param("lr") is None


@given(_HOSTS, st.none() | st.integers(0, 65535))
def test_host_and_port(host: str, port: int | None) -> None:
    """Join and split are inverse."""
    assert routing.split_host_port(routing.join_host_port(host, port)) == (host, port)


@pytest.mark.parametrize(
    ("text", "cleaned"), [("+49 (30) 12-34", "+49301234"), ("bob-x", "bob-x"), ("*21#", "*21#")]
)
def test_clean_number(text: str, cleaned: str) -> None:
    """Only what is a number is touched."""
    assert routing.clean_number(text) == cleaned


# ---------------------------------------------------------------- headers


def test_headers_that_may_be_added() -> None:
    """Those of others, on one line."""
    routing.check_header("X-Customer", "4711 ü")
    routing.check_header("P-Asserted-Identity", "<sip:+49@h>")
    for name, value in (
        ("X: a\r\nVia", "x"),
        ("X", "a\r\nVia: x"),
        ("X", "a\0"),
        ("Via", "x"),
        ("call-id", "x"),
        ("", "x"),
        ("X", "a" * 8192),
        ("X" * 200, "a"),
    ):
        with pytest.raises(ValueError, match=r".+"):
            routing.check_header(name, value)


# ---------------------------------------------------------------- patterns


@pytest.mark.parametrize(
    ("pattern", "text", "fits"),
    [
        (None, "", True),
        ("*", "", True),
        ("7*", "7000", True),
        ("7*", "17000", False),
        ("7???", "7000", True),
        ("7???", "70000", False),
        ("[1-3]0", "20", True),
        ("[1-3]0", "40", False),
        ("+49*", "+4930", True),
        ("a.c", "abc", False),
        ("Alice", "alice", False),
        (r"/7\d{3}/", "7000", True),
        (r"/7\d{3}/", "70001", False),
        ("/a|b/", "b", True),
        ("/a|b/", "ab", False),
        ("1*", "1\n2", True),
    ],
)
def test_patterns(pattern: str | None, text: str, fits: bool) -> None:
    """Globs and expressions fit the whole text."""
    assert routing.matches(pattern, text) is fits


@pytest.mark.parametrize("pattern", ["", "/(/", "/[/"])
def test_patterns_that_are_wrong(pattern: str) -> None:
    """They are told when the configuration is read."""
    with pytest.raises(ValueError, match=r"pattern|expression"):
        routing.compile_pattern(pattern)


@given(st.text(max_size=30))
def test_a_text_without_wildcards_fits_itself_alone(text: str) -> None:
    """A plain number is a pattern."""
    assume(text and not set(text) & set("*?[/"))
    assert routing.matches(text, text)
    assert not routing.matches(text, text + "x")


# ---------------------------------------------------------------- trunks and rules


def _trunk(name: str, *networks: str, user: str = "", **more: Any) -> TrunkConfig:
    auth = AuthConfig(username=user, password=SecretStr("secret")) if user else None
    return TrunkConfig(
        name=name, allowed_addresses=tuple(ipaddress.ip_network(n) for n in networks), auth=auth, **more
    )


TRUNKS = Config(
    trunk=(
        _trunk("wide", "10.0.0.0/8", "2001:db8::/32"),
        _trunk("narrow", "10.1.0.0/16"),
        _trunk("both", "10.1.2.0/24", user="bob"),
        _trunk("anywhere", user="alice"),
        _trunk("outward", outbound=OutboundConfig(servers=("h",))),
    ),
    rule=(
        RuleConfig(name="one", trunk="narrow", to="1*", target="echo:"),
        RuleConfig(name="two", from_="+49*", target="echo:"),
        RuleConfig(name="three", to="/2../", target="echo:"),
    ),
)


@pytest.mark.parametrize(
    ("source", "user", "name"),
    [
        ("10.9.9.9", None, "wide"),
        ("2001:db8::7", None, "wide"),
        ("::ffff:10.9.9.9", None, "wide"),
        ("10.1.9.9", None, "narrow"),
        ("10.1.2.3", None, None),  # the narrowest network wants a user: the wider ones do not open it
        ("10.1.2.3", "bob", "both"),
        ("10.1.9.9", "bob", "narrow"),  # bob's own trunk is not for this address
        ("192.0.2.1", "bob", None),
        ("192.0.2.1", "alice", "anywhere"),
        ("10.1.2.3", "alice", "anywhere"),
        ("192.0.2.1", None, None),
        ("192.0.2.1", "mallory", None),
    ],
)
def test_match_trunk(source: str, user: str | None, name: str | None) -> None:
    """The narrowest network decides, and a user opens no more than his own trunk."""
    trunk = routing.match_trunk(TRUNKS, ipaddress.ip_address(source), user)
    assert (trunk and trunk.name) == name


def test_accepts_number() -> None:
    """A trunk without numbers takes all."""
    assert routing.accepts_number(_trunk("a", "10.0.0.0/8"), "123")
    trunk = _trunk("a", "10.0.0.0/8", numbers=("7*", "/1../"))
    assert [routing.accepts_number(trunk, number) for number in ("7", "100", "8", "1000")] == [
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("trunk", "caller", "callee", "name"),
    [
        ("narrow", "+49", "100", "one"),
        ("wide", "+49", "100", "two"),
        ("wide", "x", "200", "three"),
        ("wide", "x", "2000", None),
        ("narrow", "x", "200", "three"),
    ],
)
def test_match_rule(trunk: str, caller: str, callee: str, name: str | None) -> None:
    """The first rule of which all parts fit."""
    rule = routing.match_rule(TRUNKS, trunk, caller, callee)
    assert (rule and rule.name) == name


# ---------------------------------------------------------------- targets


@pytest.mark.parametrize(
    ("text", "scheme", "address"),
    [
        ("local:demo", "local", "demo"),
        ("echo:", "echo", ""),
        ("tone:440", "tone", "440"),
        ("wss://h/p?a=b:c", "wss", "//h/p?a=b:c"),
        ("play:/a/b c.wav", "play", "/a/b c.wav"),
    ],
)
def test_targets(text: str, scheme: str, address: str) -> None:
    """The first colon divides."""
    target = Target.parse(text)
    assert (target.scheme, target.address) == (scheme, address)
    assert str(target) == text


@pytest.mark.parametrize(
    "text", ["", "demo", ":demo", "Local:demo", "{callee}:x", "local:a\nb", "local:" + "a" * 3000]
)
def test_what_is_no_target(text: str) -> None:
    """A target names its backend."""
    with pytest.raises(ValueError, match="target"):
        Target.parse(text)


@pytest.mark.parametrize(
    "template",
    [
        "local:{calee}",
        "local:{}",
        "local:{callee",
        "local:callee}",
        "local:{{callee}}",
        "local:{header:}",
        "local:{header:a b}",
        "wss://{header:X-Host}/x",
        "wss://h.{callee}:80/x",
        "{header:X-Target}",
    ],
)
def test_templates_that_are_wrong(template: str) -> None:
    """They are told when the configuration is read; callers choose neither backend nor host."""
    with pytest.raises(ValueError, match=r".+"):
        routing.check_target_template(template)


FIELDS = {"caller": "+49 30", "callee": "demo", "call_id": "c1"}


@pytest.mark.parametrize(
    ("template", "filled"),
    [
        ("local:demo", "local:demo"),
        ("echo:", "echo:"),
        ("local:{callee}", "local:demo"),
        ("local:{caller}-{call_id}", "local:+49 30-c1"),
        ("local:x{header:x-ROOM}", "local:xr/1"),
        ("local:x{header:X-None}", "local:x"),
        ("wss://h/{callee}?from={caller}&room={header:X-Room}", "wss://h/demo?from=%2B49%2030&room=r%2F1"),
        ("play:/var/{callee}.wav", "play:/var/demo.wav"),
    ],
)
def test_fill(template: str, filled: str) -> None:
    """Values go in, escaped where a URL needs it."""
    routing.check_target_template(template)
    assert routing.fill(template, FIELDS, {"X-Room": "r/1"}) == filled


@pytest.mark.parametrize(
    ("template", "fields"),
    [
        ("local:{header:X-Room}", {}),
        ("local:{callee}", {"callee": "a\r\nb"}),
        ("local:{callee}", {"callee": "\udcff"}),
        ("local:{callee}", {"callee": "a" * 3000}),
        ("play:/var/{callee}.wav", {"callee": "../../etc/x"}),
        ("play:/var/{callee}/x.wav", {"callee": ".."}),
        ("play:/var/{callee}", {"callee": "a\\b"}),
        ("wss://h/{callee}/x", {"callee": ".."}),
    ],
)
def test_what_cannot_be_filled_in_is_not_found(template: str, fields: Mapping[str, str]) -> None:
    """The caller gets a 404; no file and no path beside the one meant is reached."""
    with pytest.raises(CallError) as caught:
        routing.fill(template, {**FIELDS, **fields}, {})
    assert caught.value.reason.kind is EndKind.NOT_FOUND
    assert caught.value.reason.code == 404


@given(st.text(max_size=30), st.text(max_size=30), st.text(max_size=30))
def test_whatever_is_filled_in_stays_in_its_place(caller: str, callee: str, header: str) -> None:
    """Braces, slashes and colons of a caller are text."""
    fields = {"caller": caller, "callee": callee, "call_id": "c"}
    try:
        url = routing.fill("wss://h/a/{callee}?b={header:X}", fields, {"X": header})
        room = routing.fill("local:{caller}", fields, {})
    except CallError:
        return
    assert re.fullmatch(r"wss://h/a/[^/?#]*\?b=[^&#?]*", url)
    assert Target.parse(room) == Target("local", caller)


# ---------------------------------------------------------------- dialling out

PBX = _trunk("pbx", outbound=OutboundConfig(servers=("sip.example.com", "192.0.2.1:5070", "[::1]:5060")))
TCP = _trunk("tcp", outbound=OutboundConfig(servers=("h",), transport="tcp"))
INWARD = _trunk("inward", "10.0.0.0/8")
PHONE = _trunk("desk", kind="phone", user="alice")
DIALS = Config(trunk=(PBX, TCP, INWARD, PHONE), rule=(RuleConfig(name="r", target="echo:"),))


def _uris(to: str, trunk: TrunkConfig | None) -> list[str]:
    return [str(uri) for uri in routing.parse_dial_target(to, trunk).request_uris]


def test_a_number_goes_to_each_server_of_its_trunk() -> None:
    """In their order; without a port DNS is asked."""
    assert _uris("+49 (30) 12-34", PBX) == [
        "sip:+49301234@sip.example.com",
        "sip:+49301234@192.0.2.1:5070",
        "sip:+49301234@[::1]:5060",
    ]
    assert _uris("100", TCP) == ["sip:100@h;transport=tcp"]
    assert _uris("tel:+49-30", TCP) == ["sip:+4930@h;transport=tcp"]
    assert _uris("*21#", TCP) == ["sip:*21%23@h;transport=tcp"]
    assert routing.parse_dial_target("+49 30", PBX).callee == "+4930"


def test_a_uri_is_dialled_as_it_is() -> None:
    """With a trunk for its user and codecs, or without."""
    assert _uris("sip:100@h:5080;transport=tcp", None) == ["sip:100@h:5080;transport=tcp"]
    assert _uris('"Bob" <sip:bob@h>', PBX) == ["sip:bob@h"]
    assert routing.parse_dial_target("sip:bob@h", PBX).trunk is PBX


@pytest.mark.parametrize(
    ("to", "trunk", "message"),
    [
        ("", PBX, "nothing"),
        ("100", None, "needs a trunk"),
        ("100", INWARD, "no outbound"),
        ("bob@h", PBX, "did you mean sip:bob@h"),
        ("http://h", PBX, "neither"),
        ("1\r\n2", PBX, "control"),
        ("1" * 9000, PBX, "characters"),
        ("sip:a@h?X=y", PBX, "headers"),
        ("100", PHONE, "is the phone"),
    ],
)
def test_what_cannot_be_dialled(to: str, trunk: TrunkConfig | None, message: str) -> None:
    """Told before anything is sent."""
    with pytest.raises(ValueError, match=message):
        routing.parse_dial_target(to, trunk)


def test_plan_dial() -> None:
    """A trunk by its name, a phone by its user."""
    assert routing.plan_dial(DIALS, "100", "tcp").trunk == TCP
    for trunk_name in (None, "desk"):
        plan = routing.plan_dial(DIALS, "alice", trunk_name)
        assert (plan.phone, plan.callee, plan.request_uris, plan.trunk) == ("alice", "alice", (), PHONE)
    assert routing.plan_dial(DIALS, "sip:alice@h", None).phone == ""
    with pytest.raises(ValueError, match="no trunk 'tpc'"):
        routing.plan_dial(DIALS, "100", "tpc")


@given(st.text(max_size=40))
def test_any_number_is_dialled_on_one_line_or_refused(to: str) -> None:
    """No text an API client sends gets out of the request URI."""
    try:
        plan = routing.parse_dial_target(to, TCP)
    except ValueError:
        return
    for uri in plan.request_uris:
        assert re.fullmatch(r"sips?:[!-~]+", str(uri))
