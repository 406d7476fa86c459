# SPDX-License-Identifier: GPL-3.0-or-later
"""The user's own token: where it is, who can read it, and that it is made once."""

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sipbridge.errors import ConfigError
from sipbridge.http.token import is_token, read_or_make_token, read_token, token_path


def test_path_follows_the_state_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert token_path() == tmp_path / "sipbridge" / "api-token"


def test_token_is_made_once_and_for_the_user_alone(tmp_path: Path) -> None:
    path = tmp_path / "state" / "sipbridge" / "api-token"
    assert read_token(path) is None
    token = read_or_make_token(path)
    assert len(token) >= 43  # 256 bits
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert read_or_make_token(path) == read_token(path) == token
    assert [file.name for file in path.parent.iterdir()] == ["api-token"]


def test_tokens_differ(tmp_path: Path) -> None:
    assert read_or_make_token(tmp_path / "a") != read_or_make_token(tmp_path / "b")


def test_all_who_make_it_at_once_get_the_same(tmp_path: Path) -> None:
    path = tmp_path / "sipbridge" / "api-token"
    with ThreadPoolExecutor(8) as pool:
        tokens = set(pool.map(lambda _: read_or_make_token(path), range(32)))
    assert len(tokens) == 1


def test_token_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "api-token"
    token = read_or_make_token(path)
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="others on this host may have read it") as error:
        read_or_make_token(path)
    assert str(path) in str(error.value)
    assert token not in str(error.value)


@pytest.mark.parametrize("text", ["", "short", "two words " * 5, "ä" * 40])
def test_file_that_holds_no_token_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "api-token"
    path.write_text(text, encoding="utf-8")
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="holds no API token"):
        read_token(path)


def test_directory_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="API token"):
        read_or_make_token(tmp_path / "file" / "sipbridge" / "api-token")


def test_comparison() -> None:
    assert is_token(b"two", ["one", "two"])
    assert not is_token(b"tw", ["one", "two"])
    assert not is_token(b"", ["one", "two"])
    assert not is_token(b"\xff", ["one"])
    assert not is_token(b"", [])
