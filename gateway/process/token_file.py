"""The tokens that the gateway accepts, from AUTH_TOKEN or from the file that AUTH_TOKEN_FILE names."""

from __future__ import annotations

from gateway.core.addresses import is_loopback
from gateway.core.errors import ConfigurationError
from gateway.core.settings import Settings
from gateway.http.access.tokens import Token, TokenKind, parse_tokens
from gateway.process.checks import GOOD_TOKEN_CHARACTERS
from gateway.process.private_file import read_private


def read_tokens(settings: Settings, uid: int) -> tuple[Token, ...]:
    """Return the tokens that the settings name, none if no token is needed; `uid` as in `read_private`.

    Raises
    ------
    ConfigurationError
        The token file cannot be read, has an error, or other users can read it.
    """
    path = settings.auth_token_file
    if path is None:
        return (Token(None, TokenKind.ADMIN, settings.auth_token),) if settings.auth_token else ()
    try:
        text = read_private(path, uid).decode("ascii")
        return parse_tokens(text)
    except OSError as error:
        reason = error.strerror or str(error)
    except UnicodeDecodeError:
        reason = "it has characters that are not ASCII"
    except ValueError as error:
        reason = str(error)
    raise ConfigurationError(f"the token file {path} (AUTH_TOKEN_FILE): {reason}")


def warnings_of_tokens(settings: Settings, tokens: tuple[Token, ...]) -> list[str]:
    """Return a warning of each token in the file that is short, if others can reach the gateway."""
    if settings.auth_token_file is None or is_loopback(settings.host):
        return []
    return [
        f"the token {token.name!r} in {settings.auth_token_file} has less than {GOOD_TOKEN_CHARACTERS} characters; "
        "make one with `openssl rand -hex 32`"
        for token in tokens
        if len(token.secret) < GOOD_TOKEN_CHARACTERS
    ]
