# SPDX-License-Identifier: GPL-3.0-or-later
"""Keys to press, and keys that were pressed."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipbridge.events import DtmfMethod
from sipbridge.keys import KEYS, SAME_KEY_S, DigitFilter, parse_digits

ALL = "0123456789*#ABCD"


def test_keys_and_pauses() -> None:
    """Every key is pressed for 160 ms with 100 ms after it; w waits for half a second; any case."""
    assert [(key.digit, key.duration_ms, key.total_s) for key in parse_digits("1w#d")] == [
        ("1", 160, 0.26),
        ("", 0, 0.5),
        ("#", 160, 0.26),
        ("D", 160, 0.26),
    ]
    assert "".join(key.digit for key in parse_digits(ALL + ALL.lower())) == ALL + ALL
    assert list(parse_digits("")) == []
    assert set(ALL) == KEYS


@pytest.mark.parametrize(
    ("digits", "wrong"), [("12E", "E"), ("1 2", " "), ("+49", "+"), ("1\n", "\n"), ("٣", "٣")]
)
def test_what_is_no_key(digits: str, wrong: str) -> None:
    """It is named before anything is pressed."""
    with pytest.raises(ValueError, match="is no key") as caught:
        next(parse_digits(digits))
    assert repr(wrong) in str(caught.value)


@given(st.text(max_size=20))
def test_any_text(text: str) -> None:
    """It is pressed key by key, or refused as a whole."""
    try:
        keys = list(parse_digits(text))
    except ValueError:
        assert set(text.upper()) - KEYS - {"W"}
    else:
        assert "".join(key.digit or "W" for key in keys) == text.upper()


def test_one_press_told_by_several_methods() -> None:
    """RFC 4733, INFO and the audio tell of the same key within 150 ms: it counts once."""
    all_methods: tuple[DtmfMethod, ...] = ("rfc4733", "info", "inband")
    for methods in itertools.permutations(all_methods):
        digits = DigitFilter()
        assert [digits.accept("5", method, 10.0 + 0.05 * i) for i, method in enumerate(methods)] == [
            True,
            False,
            False,
        ]


def test_one_method_is_believed() -> None:
    """Its repeated digits are presses of their own, however quick."""
    digits = DigitFilter()
    assert all(digits.accept("5", "rfc4733", 10.0 + 0.01 * i) for i in range(5))


def test_the_same_key_again() -> None:
    """After 150 ms another method's digit is another press."""
    digits = DigitFilter()
    assert digits.accept("5", "rfc4733", 10.0)
    assert not digits.accept("5", "info", 10.0 + SAME_KEY_S - 0.001)
    assert digits.accept("5", "info", 10.0 + SAME_KEY_S)
    assert not digits.accept("5", "rfc4733", 10.0 + SAME_KEY_S)


def test_other_keys_are_others() -> None:
    """Each digit is looked at on its own."""
    digits = DigitFilter()
    assert digits.accept("5", "rfc4733", 10.0)
    assert digits.accept("6", "info", 10.0)
    assert digits.accept("7", "inband", 10.0)
    assert not digits.accept("5", "inband", 10.1)
