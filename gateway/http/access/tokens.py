"""Named tokens: their kinds, and the text of a token file."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import IntEnum

from gateway.core.job import Scope
from gateway.core.settings import MIN_TOKEN_CHARACTERS

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")
_SECRET = re.compile(r"[\x21-\x7e]+")


class TokenKind(IntEnum):
    """The permissions of a token; each kind includes those of the kinds below it.

    ``READ`` reads states, logs and the history, of the jobs of all tokens. ``RUN`` runs jobs, and reads and ends its
    own. ``ADMIN`` reads and ends the jobs of all tokens, holds kernels, and pauses the gateway.
    """

    READ = 1
    RUN = 2
    ADMIN = 3

    @property
    def label(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Token:
    """One token that is accepted.

    Attributes
    ----------
    name : str or None
        For logs, the history and the scope; two tokens of one name are the old and the new one of a caller.
    kind : TokenKind
        The requests that it permits.
    secret : str
        The token itself.
    """

    name: str | None
    kind: TokenKind
    secret: str = field(repr=False)

    @property
    def scope(self) -> Scope:
        return Scope(self.name, sees_all=self.kind is not TokenKind.RUN)


def parse_tokens(text: str) -> tuple[Token, ...]:
    """Return the tokens of a token file: lines of name, kind and token; ``#`` begins a comment line.

    Parameters
    ----------
    text : str
        Content of the file.

    Returns
    -------
    tuple of Token
        At least one.

    Raises
    ------
    ValueError
        The text names all lines that are wrong, and quotes no token.
    """
    tokens: dict[str, Token] = {}
    problems = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            token = _parse_line(line)
            if token.secret in tokens:
                raise ValueError("the token is in the file twice")
            tokens[token.secret] = token
        except ValueError as error:
            problems.append(f"line {number}: {error}")
    if problems:
        raise ValueError("; ".join(problems))
    if not tokens:
        raise ValueError("there is no token in it")
    return tuple(tokens.values())


def _parse_line(line: str) -> Token:
    parts = line.split()
    if len(parts) != 3:
        raise ValueError("expected a name, a kind and a token, separated by spaces")
    name, kind, secret = parts
    kinds = {kind.label: kind for kind in TokenKind}
    # the three parts may be in the wrong order, so neither is quoted
    if not _NAME.fullmatch(name):
        raise ValueError("the name must be 1 to 40 letters, digits, '.', '_' or '-'")
    if kind not in kinds:
        raise ValueError(f"the kind must be {', '.join(kinds)}")
    if not _SECRET.fullmatch(secret) or len(secret) < MIN_TOKEN_CHARACTERS:
        raise ValueError(
            f"the token must have at least {MIN_TOKEN_CHARACTERS} visible ASCII characters and no others; make one "
            "with `openssl rand -hex 32`"
        )
    return Token(name, kinds[kind], secret)
