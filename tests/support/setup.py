# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration that most tests share. Loopback has many addresses, so each kind of peer gets its own."""

from pathlib import Path
from typing import Any

# Who calls from where.
LINE = "127.0.0.1"  # a trunk as most are
SECURE = "127.0.0.10"  # asks for a password as well
KEYS_BY_INFO = "127.0.0.11"
KEYS_IN_BAND = "127.0.0.12"
WIDE = "127.0.0.13"  # G.722 before PCMU
A_LAW = "127.0.0.14"  # PCMA alone
SMALL = "127.0.0.15"  # one call at a time
DESK = "127.0.0.30"  # telephones, which belong to no trunk's addresses

SECURE_USER = ("secure-user", "secure-password")
ALICE = ("alice", "alice-password")
BOB = ("bob", "bob-password")
FAR_USER = ("sipbridge-user", "far-secret")  # also in uas_challenge_*.xml

MEDIA_TIMEOUT_S = 2


def user(name: tuple[str, str]) -> dict[str, str]:
    return {"username": name[0], "password": name[1]}


def shared_config(sip_port: int, far_ports: list[int], play: Path) -> dict[str, Any]:
    """Trunks by address, rules by name; `far_ports` are those of a carrier's three servers.

    Of these the first two are in the trunk's list; `play` is a WAV file.
    """
    return {
        "sip": {
            "listen": [f"127.0.0.1:{sip_port}", f"[::1]:{sip_port}"],
            "media_timeout_s": MEDIA_TIMEOUT_S,
            "first_media_timeout_s": MEDIA_TIMEOUT_S + 1,
            "drain_s": 2,
        },
        "log": {"level": "debug"},
        "trunk": [
            {"name": "line", "allowed_addresses": [LINE, "::1"]},
            {"name": "secure", "allowed_addresses": [SECURE], "auth": user(SECURE_USER)},
            {"name": "keys-by-info", "allowed_addresses": [KEYS_BY_INFO], "dtmf": "info"},
            {"name": "keys-in-band", "allowed_addresses": [KEYS_IN_BAND], "dtmf": "inband"},
            {"name": "wide", "allowed_addresses": [WIDE], "codecs": ["G722", "PCMU"]},
            {"name": "a-law", "allowed_addresses": [A_LAW], "codecs": ["PCMA"]},
            {"name": "small", "allowed_addresses": [SMALL], "max_calls": 1},
            {"name": "alice", "kind": "phone", "auth": user(ALICE)},
            {"name": "bob", "kind": "phone", "auth": user(BOB)},
            {
                "name": "far",
                "outbound": {
                    "servers": [f"127.0.0.1:{port}" for port in far_ports[:2]],
                    "auth": user(FAR_USER),
                },
                "headers": {"X-Customer": "4711"},
            },
            {
                "name": "far-tcp",
                "outbound": {"servers": [f"127.0.0.1:{port}" for port in far_ports[:2]], "transport": "tcp"},
            },
        ],
        "rule": [
            {"name": "echo", "to": "echo", "target": "echo:"},
            {"name": "silence", "to": "silence", "target": "silence:"},
            {"name": "tone440", "to": "tone440", "target": "tone:440"},
            {"name": "tone1000", "to": "tone1000", "target": "tone:1000"},
            {"name": "play", "to": "play", "target": f"play:{play}"},
            {"name": "missing", "to": "missing", "target": "play:/nonexistent/file.wav"},
            {"name": "early", "to": "early", "target": "tone:440", "early_media": True, "ring_s": 1.0},
            {"name": "ring", "to": "ring", "target": "echo:", "ring_s": 1.0},
            {"name": "ringlong", "to": "ringlong", "target": "echo:", "ring_s": 30.0},
            {"name": "brief", "to": "brief", "target": "tone:440", "max_duration_s": 1},
            {"name": "room", "to": "room-*", "target": "local:{callee}"},
            {"name": "alone", "to": "alone-*", "target": "local:{callee}", "hangup_when_alone": True},
            {"name": "header", "to": "by-header", "target": "local:{header:X-Room}"},
        ],
    }
