"""Reaching the gateway of a state directory by the right to read that directory.

The gateway writes a random token there when it starts (``run/token``, mode 0600, its own user's). It serves only for
the held kernels and consoles: who may read it may also read their connection files, so it gives nothing away that was
not there. Nobody then has to have AUTH_TOKEN in the shell in which they debug.
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

RUNTIME_FILE = "run/gateway.json"
"""In the state directory: pid, port and start time of the gateway that is up; other tools find it there."""

TOKEN_FILE = "run/token"  # noqa: S105 - a path


@dataclass(frozen=True, slots=True)
class LocalGateway:
    """Where the gateway of a state directory listens, and its token for held kernels."""

    url: str
    token: str


def write_token(state_dir: Path) -> str:
    """Make a new token, write it for those who may read the state directory, and return it."""
    token = secrets.token_urlsafe(32)
    path = state_dir / TOKEN_FILE
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(token)
    return token


def local_gateway(state_dir: Path) -> LocalGateway | None:
    """Return the gateway that is up over `state_dir`, or None.

    Raises
    ------
    PermissionError
        It belongs to another user.
    """
    try:
        facts = json.loads((state_dir / RUNTIME_FILE).read_text())
        host, port = str(facts["host"]), int(facts["port"])
        token = (state_dir / TOKEN_FILE).read_text()
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None
    host = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - to talk to
    return LocalGateway(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}", token)
