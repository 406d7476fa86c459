# SPDX-License-Identifier: GPL-3.0-or-later
"""What is read of a SIP message beyond what pjsua2 hands over: its headers, by name."""

import re
from collections.abc import Iterator, Mapping

_LINE_END = re.compile(r"\r\n|\r|\n")  # pjsip takes each of these

# RFC 3261 section 7.3.3, and the ones registered since
_COMPACT = {
    "a": "accept-contact",
    "b": "referred-by",
    "c": "content-type",
    "d": "request-disposition",
    "e": "content-encoding",
    "f": "from",
    "i": "call-id",
    "k": "supported",
    "l": "content-length",
    "m": "contact",
    "o": "event",
    "r": "refer-to",
    "s": "subject",
    "t": "to",
    "u": "allow-events",
    "v": "via",
    "x": "session-expires",
}


class Headers(Mapping[str, str]):
    """Headers by name, any case, long or compact; a repeated one is joined by commas (RFC 3261 7.3.1)."""

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        self._values: dict[str, str] = {}
        self._names: dict[str, str] = {}
        for name, value in pairs:
            key = _key(name)
            self._names.setdefault(key, name)
            self._values[key] = f"{self._values[key]}, {value}" if key in self._values else value

    def __getitem__(self, name: str) -> str:
        return self._values[_key(name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names.values())

    def __len__(self) -> int:
        return len(self._values)


def _key(name: str) -> str:
    lower = name.lower()
    return _COMPACT.get(lower, lower)


def read_message(text: str) -> tuple[str, Headers]:
    """The start line and the headers of a whole message; the body is left out."""
    lines: list[str] = []
    for line in _LINE_END.split(text.lstrip("\r\n")):
        if not line:
            break
        if lines and line[0] in " \t":
            lines[-1] += " " + line.strip(" \t")
        else:
            lines.append(line)
    pairs = []
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if colon:
            pairs.append((name.strip(), value.strip()))
    return lines[0] if lines else "", Headers(pairs)
