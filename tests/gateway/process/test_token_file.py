"""A token file is read only if nobody but the gateway's user can read it."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from gateway.core.errors import ConfigurationError
from gateway.core.settings import Settings
from gateway.http.access.tokens import Token, TokenKind
from gateway.process.token_file import read_tokens, warnings_of_tokens

LINE = "metabase run 0123456789abcdef\n"
UID = os.geteuid()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text(LINE)
    path.chmod(0o600)
    return path


def read(path: Path, uid: int = UID) -> tuple[Token, ...]:
    return read_tokens(dataclasses.replace(Settings(), auth_token_file=path), uid)


def refused(path: Path, uid: int = UID) -> str:
    with pytest.raises(ConfigurationError) as caught:
        read(path, uid)
    assert str(path) in str(caught.value)
    assert "0123456789" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_private_file_is_read(file: Path, mode: int) -> None:
    file.chmod(mode)
    assert read(file) == (Token("metabase", TokenKind.RUN, "0123456789abcdef"),)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o644])
def test_a_file_of_the_gateways_user_that_others_may_read_is_refused(file: Path, mode: int) -> None:
    file.chmod(mode)
    assert f"(mode {mode:04o}): chmod 600 {file}" in refused(file)


@pytest.mark.skipif(UID != 0, reason="only root may give a file away")
def test_a_file_of_root_may_have_a_group_and_one_of_another_user_is_refused(file: Path) -> None:
    file.chmod(0o440)
    assert read(file, 4711)
    file.chmod(0o444)
    assert "chmod 600" in refused(file, 4711)
    file.chmod(0o400)
    os.chown(file, 4711, -1)
    assert read(file, 4711)
    assert "it belongs to uid 4711, but the gateway runs as uid 4712: chown 4712" in refused(file, 4712)


def test_invalid_token_files_are_refused(file: Path, tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "nosuch")
    assert "Is a directory" in refused(tmp_path)
    os.mkfifo(tmp_path / "fifo", 0o600)
    assert "not a regular file" in refused(tmp_path / "fifo")
    file.write_text(LINE + "metabase run short\nwrong\n")
    assert "line 2: the token must have at least 8" in refused(file)
    assert "line 3: expected a name" in refused(file)
    file.write_bytes(b"\xff")
    assert "not ASCII" in refused(file)


def test_short_tokens_are_warned_of_beyond_loopback() -> None:
    tokens = (Token("short", TokenKind.RUN, "x" * 15), Token("long", TokenKind.RUN, "x" * 16))
    settings = Settings(auth_token_file=Path("/f"), host="0.0.0.0")
    assert [text.partition(" in ")[0] for text in warnings_of_tokens(settings, tokens)] == ["the token 'short'"]
    assert warnings_of_tokens(dataclasses.replace(settings, host="127.0.0.1"), tokens) == []
