# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of sipbridge.errors."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipbridge.errors import (
    CallError,
    ConfigError,
    ConfigFileError,
    EndKind,
    EndReason,
    Party,
    RtcError,
    SipbridgeError,
)


@pytest.mark.parametrize("kind", EndKind)
def test_every_kind_refuses_with_a_final_code(kind: EndKind) -> None:
    """A kind without a code would leave a caller waiting."""
    assert 400 <= EndReason(kind, "").code <= 699


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (EndKind.BUSY, 486),
        (EndKind.CANCELLED, 487),
        (EndKind.NOT_FOUND, 404),
        (EndKind.NOT_ACCEPTABLE, 488),
        (EndKind.SHUTDOWN, 503),
        (EndKind.OVERLOAD, 503),
    ],
)
def test_codes_that_callers_rely_on(kind: EndKind, code: int) -> None:
    """Codes that other software acts upon."""
    assert EndReason(kind, "").code == code


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (200, EndKind.HANGUP),
        (302, EndKind.UNAVAILABLE),
        (401, EndKind.FORBIDDEN),
        (404, EndKind.NOT_FOUND),
        (408, EndKind.NO_ANSWER),
        (480, EndKind.UNAVAILABLE),
        (486, EndKind.BUSY),
        (487, EndKind.CANCELLED),
        (488, EndKind.NOT_ACCEPTABLE),
        (499, EndKind.ERROR),
        (503, EndKind.UNAVAILABLE),
        (600, EndKind.BUSY),
        (603, EndKind.DECLINED),
    ],
)
def test_from_sip_knows_what_a_code_means(code: int, kind: EndKind) -> None:
    """A code that came is told by its kind."""
    reason = EndReason.from_sip(code, "Phrase", Party.CALLEE)
    assert (reason.kind, reason.detail, reason.by) == (kind, "Phrase", Party.CALLEE)


@given(st.integers(100, 999))
def test_any_code_that_came_gives_a_code_to_answer_with(code: int) -> None:
    """What came is passed on when it is a refusal, and always gives one."""
    reason = EndReason.from_sip(code, "", Party.CALLEE)
    assert 400 <= reason.code <= 699
    if reason.code != code:
        assert not 400 <= code <= 699 or code in (401, 407, 422, 423, 494)


def test_a_code_that_came_is_kept() -> None:
    """486, 480, 603 and 408 reach the other side as they came."""
    for code in (408, 480, 486, 603):
        assert EndReason.from_sip(code, "", Party.CALLEE).code == code


def test_a_challenge_is_not_passed_on() -> None:
    """401 asks for our password, not for that of who called us."""
    assert EndReason.from_sip(401, "Unauthorized", Party.CALLEE).code == 403


def test_reason_as_text() -> None:
    """The text has all there is."""
    assert str(EndReason(EndKind.ALONE, "")) == "alone by bridge"
    assert str(EndReason.from_sip(486, "Busy Here", Party.CALLEE)) == "busy by callee: 486 Busy Here"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ConfigError("wrong"), "wrong"),
        (ConfigError("wrong", file=Path("a.toml")), "a.toml: wrong"),
        (ConfigError("wrong", file="a.toml", table="sip", key="listen"), "a.toml: [sip] listen: wrong"),
        (
            ConfigError("wrong", file="a.toml", table='[[trunk]] "x"', key="auth.username"),
            'a.toml: [[trunk]] "x" auth.username: wrong',
        ),
        (ConfigError("wrong", key="SIPBRIDGE_SIP__LISTEN"), "SIPBRIDGE_SIP__LISTEN: wrong"),
    ],
)
def test_config_error_names_the_place(error: ConfigError, text: str) -> None:
    """File, table and key stand in front, as far as they are known."""
    assert str(error) == text
    assert error.errors == (error,)


def test_several_config_errors_are_lines_of_one() -> None:
    """One except clause gets them all."""
    errors = [ConfigError("one", file="a.toml"), ConfigError("two", file="a.toml", table="sip")]
    error: ConfigError = ConfigFileError(errors)
    assert str(error) == "a.toml: one\na.toml: [sip]: two"
    assert error.errors == tuple(errors)


def test_errors_with_a_reason() -> None:
    """They carry it, and say it."""
    reason = EndReason.from_sip(486, "Busy Here", Party.CALLEE)
    assert str(CallError(reason)) == "486 Busy Here"
    assert CallError(reason).reason is reason
    assert str(RtcError(EndReason(EndKind.CHANNEL_FAILED, "refused"))) == "refused"
    assert str(RtcError(EndReason(EndKind.CHANNEL_FAILED, ""))) == "channel_failed"
    assert isinstance(RtcError(reason), SipbridgeError)
