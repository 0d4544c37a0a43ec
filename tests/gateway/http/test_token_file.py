"""The text of a token file, and which jobs a token may see."""

from __future__ import annotations

import pytest

from gateway.core.job import Scope
from gateway.http.access.tokens import Token, TokenKind, parse_tokens


def test_names_kinds_and_tokens() -> None:
    text = "# who\n\nmetabase run  0123456789abcdef\nmetabase\trun\tfedcba9876543210\r\n  ops admin aaaaaaaaaaaaaaaa\n"
    assert parse_tokens(text) == (
        Token("metabase", TokenKind.RUN, "0123456789abcdef"),
        Token("metabase", TokenKind.RUN, "fedcba9876543210"),
        Token("ops", TokenKind.ADMIN, "a" * 16),
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "there is no token in it"),
        ("# only a comment\n", "there is no token in it"),
        ("0123456789abcdef", "line 1: expected a name, a kind and a token"),
        ("a run 0123456789abcdef # mine", "line 1: expected a name, a kind and a token"),
        ("a b:c 0123456789abcdef", "line 1: the kind must be read, run, admin"),
        ("a: run 0123456789abcdef", "line 1: the name must be"),
        ("a run 1234567", "line 1: the token must have at least 8"),
        ("a run 0123456789abcdé", "line 1: the token must have at least 8"),
        ("a run 0123456789abcdef\nb read 0123456789abcdef", "line 2: the token is in the file twice"),
        ("a ran 0123456789abcdef\n\nb run x", "line 1: the kind must be read, run, admin; line 3: the token must"),
    ],
)
def test_every_wrong_line_is_named_and_no_token_is_quoted(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        parse_tokens(text)
    assert "0123456789" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_token_is_in_no_representation() -> None:
    assert "secret" not in repr(Token("a", TokenKind.RUN, "secret-secret"))


def test_only_run_tokens_are_limited_to_their_own_jobs() -> None:
    assert Token("a", TokenKind.RUN, "x").scope == Scope("a", sees_all=False)
    assert Token("a", TokenKind.READ, "x").scope.includes("b")
    assert Token("a", TokenKind.ADMIN, "x").scope.includes(None)
    assert [Scope("a", sees_all=False).includes(name) for name in ("a", "b", None)] == [True, False, False]
