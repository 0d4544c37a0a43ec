"""What the subcommands share: which gateway is meant, exit codes, and errors as text for a person."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from gateway.client import TransformClient
from gateway.client_http import GatewayRefused, GatewayUnreachable
from gateway.jobs.model import RequestId
from gateway.local_access import local_gateway

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3
EXIT_INTERRUPTED = 130

EXIT_CODES = (
    "exit codes: 0 success; the job's own (1 to 255) when it failed; 2 a wrong call; "
    "3 no gateway could be reached, or it did not take the job; 130 interrupted"
)


class UsageError(Exception):
    """The call is wrong; the text says how."""


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """Return a parser for one subcommand."""
    return argparse.ArgumentParser(f"transform-gateway {name}", description=description, epilog=EXIT_CODES)


def add_gateway(options: argparse.ArgumentParser, *, own: bool = False) -> None:
    """Add --url and --token; with `own`, no URL means a gateway started for the call."""
    default = os.environ.get("TRANSFORM_GATEWAY_URL")
    if own:
        text = "a running gateway; without it, one is started for this call (environment: TRANSFORM_GATEWAY_URL)"
    else:
        default = default or local_url()
        text = f"the gateway (environment: TRANSFORM_GATEWAY_URL; default: by HOST and PORT, {local_url()})"
    options.add_argument("--url", default=default, help=text)
    token = os.environ.get("AUTH_TOKEN", "")
    options.add_argument("--token", default=token, help="its AUTH_TOKEN (environment: AUTH_TOKEN)")


def add_local_gateway(options: argparse.ArgumentParser) -> None:
    """Add --state-dir, beside --url and --token: who may read that directory needs neither of those."""
    place = os.environ.get("STATE_DIR") or ".state"
    text = f"of the running gateway, which is found by it (environment: STATE_DIR; default: {place})"
    options.add_argument("--state-dir", type=Path, default=Path(place), help=text)
    options.add_argument("--url", default=os.environ.get("TRANSFORM_GATEWAY_URL"), help="another gateway than that one")
    token = os.environ.get("AUTH_TOKEN", "")
    options.add_argument("--token", default=token, help="AUTH_TOKEN of the gateway of --url (environment: AUTH_TOKEN)")


def local_client_of(options: argparse.Namespace) -> TransformClient:
    """Return a client for --url and --token, else for the gateway of --state-dir by what stands there.

    Raises
    ------
    UsageError, GatewayUnreachable
    """
    if options.url:
        return client_of(options)
    try:
        found = local_gateway(options.state_dir.expanduser())
    except PermissionError as error:
        raise UsageError(f"{error.filename} cannot be read: it takes the user who started the gateway") from None
    if found is None:
        raise GatewayUnreachable(f"no gateway is up over {options.state_dir} (STATE_DIR, --state-dir)")
    return TransformClient(found.url, found.token)


def local_url() -> str:
    """Return where a gateway with this environment's settings listens."""
    host = os.environ.get("HOST") or "127.0.0.1"
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - to talk to, not to listen on
    port = os.environ.get("PORT") or "5001"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def client_of(options: argparse.Namespace) -> TransformClient:
    """Return a client for --url and --token.

    Raises
    ------
    UsageError
    """
    try:
        return TransformClient(options.url, options.token)
    except ValueError as error:
        raise UsageError(str(error)) from None


def request_ids(text: str) -> tuple[RequestId, ...]:
    """Return what a text on the command line may mean as an id, the likelier first: Metabase's are integers."""
    return (int(text), text) if text.isascii() and text.isdigit() else (text,)


def script_text(path: Path) -> str:
    """Return a Python file's text.

    Raises
    ------
    UsageError
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not valid UTF-8 at byte {error.start}") from None


def guarded(action: Callable[[], int]) -> int:
    """Return the action's exit code, or that of the error it ended with, told on stderr."""
    try:
        return action()
    except UsageError as error:
        return _told(str(error), EXIT_USAGE)
    except GatewayRefused as error:
        field = f" (field {error.body['field']})" if error.body.get("field") else ""
        return _told(f"{error.code}: {error.message}{field}", EXIT_FAILED if error.status == 404 else EXIT_UNREACHABLE)
    except GatewayUnreachable as error:
        return _told(f"{error.code}: {error.message}", EXIT_UNREACHABLE)
    except BrokenPipeError:
        # whoever read our output has seen enough (`| head`); Python would complain again when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except OSError as error:
        name = f"{error.filename}: " if error.filename is not None else ""
        return _told(f"{name}{error.strerror or error}", EXIT_USAGE)
    except KeyboardInterrupt:
        return _told("interrupted", EXIT_INTERRUPTED)


def exit_code_of(job_exit_code: int) -> int:
    """Return a job's exit code as one that a process can have; never 0, because the job failed."""
    return job_exit_code if 1 <= job_exit_code <= 255 else EXIT_FAILED


def _told(text: str, code: int) -> int:
    sys.stderr.write(f"transform-gateway: {text}\n")
    return code
