# SPDX-License-Identifier: GPL-3.0-or-later
"""Headers as they come over the wire."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipbridge.sip.message import Headers, read_message

INVITE = (
    "INVITE sip:200@192.0.2.1 SIP/2.0\r\n"
    "Via: SIP/2.0/UDP 192.0.2.2:5060;branch=z9hG4bK1\r\n"
    'f: "A, B: C" <sip:100@192.0.2.2>;tag=1\r\n'
    "T: <sip:200@192.0.2.1>\r\n"
    "i:  call@host \r\n"
    "Subject: one\r\n"
    "  two\r\n"
    "\t three\r\n"
    "Route: <sip:a;lr>\r\n"
    "X-Empty:\r\n"
    "Route: <sip:b;lr>\r\n"
    "Content-Length: 6\r\n"
    "\r\n"
    "x: y\r\n"
)


def test_message() -> None:
    """Start line and headers, without the body."""
    start, headers = read_message(INVITE)
    assert start == "INVITE sip:200@192.0.2.1 SIP/2.0"
    assert headers["From"] == headers["f"] == headers["FROM"] == '"A, B: C" <sip:100@192.0.2.2>;tag=1'
    assert headers["to"] == "<sip:200@192.0.2.1>"
    assert headers["Call-ID"] == "call@host"
    assert "x" not in headers
    assert "x-missing" not in headers
    assert headers.get("x-missing", "none") == "none"


def test_names_are_kept_as_they_came() -> None:
    """What goes on to a channel is spelled as the telephone wrote it; each once."""
    _, headers = read_message(INVITE)
    assert list(headers) == ["Via", "f", "T", "i", "Subject", "Route", "X-Empty", "Content-Length"]
    assert len(headers) == 8
    assert dict(headers)["X-Empty"] == ""


def test_folded_header_is_one_line() -> None:
    """RFC 3261 section 7.3.1: a line that begins with blanks goes on with the one before, by one space."""
    assert read_message(INVITE)[1]["subject"] == "one two three"


def test_repeated_header_is_one_list() -> None:
    """RFC 3261 section 7.3.1, in order, by whichever form of its name."""
    assert read_message(INVITE)[1]["route"] == "<sip:a;lr>, <sip:b;lr>"
    _, headers = read_message("X\r\nm: <sip:a>\r\nContact: <sip:b>\r\nM: <sip:c>\r\n\r\n")
    assert headers["contact"] == "<sip:a>, <sip:b>, <sip:c>"
    assert list(headers) == ["m"]


@pytest.mark.parametrize("end", ["\r\n", "\n", "\r"])
def test_line_ends(end: str) -> None:
    """pjsip takes any of these, so what it has let in is read in the same way."""
    start, headers = read_message(f"{end}A b C{end}From: x{end} y{end}To: z{end}{end}Subject: s{end}")
    assert start == "A b C"
    assert dict(headers) == {"From": "x y", "To": "z"}


@pytest.mark.parametrize(
    "text", ["", "\r\n", "\r\n\r\n", "INVITE", " ", "INVITE\r\n\r\n", "\x00", "a\r\nb\r\n\r\n"]
)
def test_hardly_a_message(text: str) -> None:
    """There are no headers in it, and that is all."""
    start, headers = read_message(text)
    assert dict(headers) == {}
    assert "\n" not in start


@given(st.text(alphabet=st.sampled_from('aFfrom: \t\r\n<>,"\x00é\udc80'), max_size=60))
def test_garbage(text: str) -> None:
    """It raises nothing, and no value has a line end in it."""
    start, headers = read_message(text)
    for line in (start, *headers.keys(), *headers.values()):
        assert not set(line) & {"\r", "\n"}
    assert all(headers[name] == value for name, value in headers.items())


names = st.text(st.sampled_from("abcXYZ-"), min_size=2, max_size=8)
values = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), max_size=20)


@given(st.lists(st.tuples(names, values), max_size=8), st.sampled_from([": ", ":", " :\t", " :\r\n  "]))
def test_what_was_written_is_read(pairs: list[tuple[str, str]], colon: str) -> None:
    """Every header of a well-formed message, joined where its name is there twice."""
    lines = [f"{name}{colon}{value}" for name, value in pairs]
    _, headers = read_message("\r\n".join(["INVITE sip:a@b SIP/2.0", *lines, "", "body"]))
    expected: dict[str, str] = {}
    for name, value in pairs:
        key = name.lower()
        expected[key] = f"{expected[key]}, {value}" if key in expected else value
    assert {name.lower(): value for name, value in headers.items()} == expected


def test_headers_are_a_mapping() -> None:
    """As a dictionary that knows its keys by all their names."""
    headers = Headers([("s", "hello"), ("X-Room", "7")])
    assert ("Subject" in headers, "x-room" in headers, "room" in headers) == (True, True, False)
    with pytest.raises(KeyError):
        headers["room"]
