"""Functions that the subcommands share: options for the gateway, exit codes, and error messages."""

from __future__ import annotations

import argparse
import difflib
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from gateway.client.client import TransformClient
from gateway.client.errors import GatewayRefused, GatewayUnreachable
from gateway.client.job_stream import LOST_SECONDS
from gateway.core.errors import ConfigurationError
from gateway.core.job import RequestId
from gateway.core.standard_output import OUTPUT_ERRORS
from gateway.http.access.tokens import parse_tokens
from gateway.process.pidfile import DaemonError, find_running, url_by_environment
from gateway.process.tls import local_trust
from kernel_spec.protocol.quantities import parse_seconds

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3
EXIT_DIFFERS = 4
EXIT_INTERRUPTED = 130

AUTH_HELP = (
    "default: AUTH_TOKEN, else the token in AUTH_TOKEN_FILE that permits most. Other users can see the command line, "
    "so set one of these variables instead"
)

EXIT_CODES = (
    "exit codes: 0 success; 1 failure, or nothing is known under the id; {of_job}2 wrong usage; 3 the gateway cannot "
    "be reached or refused the request; 130 interrupted"
)
EXIT_CODES_OF_JOB = "1 to 255 the exit code of a failed job; "
#: Commands that wait for a job and have its exit code; the others succeed when they have shown what they should.
RUN_JOBS = ("run", "replay", "smoke")


class UsageError(Exception):
    """Wrong usage of a command; the text says what to correct."""


def lost_text(error: GatewayUnreachable) -> str:
    """Return a line for a command that follows jobs, when the gateway no longer answers."""
    return f"transform-gateway: {error.message}; waiting {LOST_SECONDS:.0f} s for the gateway to come back"


def unknown_id(text: str) -> GatewayRefused:
    """Return the error for an id under which nothing is known, as the gateway would answer."""
    return GatewayRefused.of(404, {"code": "not_found", "error": text})


class _Parser(argparse.ArgumentParser):
    """A parser that suggests the option that was probably meant, and answers a shell that asks for completions."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        if "_ARGCOMPLETE" in os.environ:  # set by the script of `transform-gateway completion`
            import argcomplete

            argcomplete.autocomplete(self)
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ").split()[0].partition("=")[0]
        if message.startswith("unrecognized arguments: ") and unknown.startswith("-"):
            message = f"unknown option {unknown}"
            known = [option for action in self._actions for option in action.option_strings]
            if close := difflib.get_close_matches(unknown, known, 1):
                message += f"; did you mean {close[0]}?"
        super().error(message)


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """Return a parser for the options of one subcommand, which must be written in full."""
    codes = EXIT_CODES.format(of_job=EXIT_CODES_OF_JOB if name in RUN_JOBS else "")
    return _Parser(f"transform-gateway {name}", description=description, epilog=codes, allow_abbrev=False)


def seconds(text: str) -> float:
    """Return the seconds of an option's duration; without a unit, the text is a number of seconds."""
    found = _duration(text, "seconds")
    if found == 0:
        raise argparse.ArgumentTypeError("expected a duration above 0")
    return found


def minutes(text: str) -> float:
    """Return the minutes of an option's duration; without a unit, the text is a number of minutes."""
    return _duration(text, "minutes") / 60


def _duration(text: str, plain_unit: str) -> float:
    try:
        found = parse_seconds(text, plain_unit)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not 0 <= found < math.inf:
        raise argparse.ArgumentTypeError(f"expected a duration of at least 0, not {text}")
    return found


def add_gateway(options: argparse.ArgumentParser, *, otherwise: str = "") -> None:
    """Add --url and --token; `otherwise` names the default of --url, if it is not the usual gateway."""
    default = os.environ.get("TRANSFORM_GATEWAY_URL")
    if otherwise:
        text = f"a running gateway; default: {otherwise} (environment: TRANSFORM_GATEWAY_URL)"
    else:
        default = default or url_by_environment()
        text = f"the gateway (environment: TRANSFORM_GATEWAY_URL; default: by HOST and PORT, {url_by_environment()})"
    options.add_argument("--url", default=default, help=text)
    options.add_argument("--token", help=f"its token; {AUTH_HELP}")


def add_local_gateway(options: argparse.ArgumentParser) -> None:
    """Add --state-dir, --url and --token: a user who can read the state directory needs only the first."""
    place = os.environ.get("STATE_DIR") or ".state"
    text = f"state directory of the running gateway (environment: STATE_DIR; default: {place})"
    options.add_argument("--state-dir", type=Path, help=text)
    options.add_argument("--url", help="a gateway to use instead (environment: TRANSFORM_GATEWAY_URL)")
    options.add_argument("--token", help=f"the token of the gateway of --url; {AUTH_HELP}")


def local_client_of(options: argparse.Namespace) -> TransformClient:
    """Return a client for --url and --token, else for the gateway of --state-dir by its pid file.

    An option counts before the environment, so that the gateway that is named is the one that is paused.

    Raises
    ------
    UsageError
        An option is wrong, or the pid file cannot be read.
    GatewayUnreachable
        No gateway runs.
    """
    if options.state_dir is None and options.url is None:
        options.url = os.environ.get("TRANSFORM_GATEWAY_URL")
    if options.url:
        return client_of(options)
    state_dir = options.state_dir or Path(os.environ.get("STATE_DIR") or ".state")
    try:
        running = find_running(state_dir.expanduser(), of_any_user=True)
    except PermissionError as error:
        raise UsageError(f"{error.filename} cannot be read: run this as the user who started the gateway") from None
    except DaemonError as error:
        raise UsageError(str(error)) from None
    if running is None:
        raise GatewayUnreachable(f"no running gateway uses the state directory {state_dir} (STATE_DIR, --state-dir)")
    return TransformClient(running.url, running.token, trust=local_trust(running.cert))


def client_of(options: argparse.Namespace) -> TransformClient:
    """Return a client for --url and --token.

    Raises
    ------
    UsageError
        The URL is not that of a gateway.
    """
    try:
        # the gateway of this environment need not have the address in its certificate
        certificate = os.environ.get("TLS_CERT_FILE", "") if options.url == url_by_environment() else ""
        return TransformClient(options.url, options.token or token_by_environment(), trust=local_trust(certificate))
    except ValueError as error:
        raise UsageError(str(error)) from None


def token_by_environment() -> str:
    """Return AUTH_TOKEN or, without it, the token in AUTH_TOKEN_FILE that permits most.

    Raises
    ------
    UsageError
        The file cannot be read, or has an error.
    """
    token, file = os.environ.get("AUTH_TOKEN", ""), os.environ.get("AUTH_TOKEN_FILE", "")
    if token or not file:
        return token
    try:
        tokens = parse_tokens(Path(file).expanduser().read_text())
    except OSError as error:
        raise UsageError(f"{file} (AUTH_TOKEN_FILE): {error.strerror}; or set AUTH_TOKEN to your token") from None
    except ValueError as error:
        raise UsageError(f"{file} (AUTH_TOKEN_FILE): {error}") from None
    return max(tokens, key=lambda each: each.kind).secret


def check_output(option: str, path: Path) -> None:
    """Refuse a file that cannot be written, before a job runs for it.

    Raises
    ------
    UsageError
        Its directory is missing or not writable, or the path is not a regular file.
    """
    directory = path.absolute().parent
    if not directory.is_dir():
        raise UsageError(f"{option} {path}: there is no such directory")
    if path.exists() and not path.is_file():
        raise UsageError(f"{option} {path}: is not a regular file")
    if not os.access(directory, os.W_OK | os.X_OK):
        raise UsageError(f"{option} {path}: the directory cannot be written to")


def check_input(path: Path, note: str = "", option: str = "") -> None:
    """Refuse a file that cannot be read as a table.

    Raises
    ------
    UsageError
        It is missing, or not a regular file.
    """
    if not path.is_file():
        problem = "is not a regular file" if path.exists() else "no such file"
        raise UsageError(f"{option} {path}{note}: {problem}".lstrip())


def request_ids(text: str) -> tuple[RequestId, ...]:
    """Return the ids that a command-line argument may mean, integers first, because Metabase's ids are integers."""
    return (int(text), text) if text.isascii() and text.isdigit() else (text,)


def script_text(path: Path) -> str:
    """Return a Python file's text.

    Raises
    ------
    UsageError
        The file cannot be read or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not valid UTF-8 at byte {error.start}") from None


def guarded(action: Callable[[], int]) -> int:
    """Return the action's exit code, or that of its error, whose message is written to stderr."""
    try:
        return action()
    except UsageError as error:
        return _fail(str(error), EXIT_USAGE)
    except ConfigurationError as error:
        return _fail(error.message, EXIT_USAGE)
    except GatewayRefused as error:
        advice = "; set AUTH_TOKEN to a token of this gateway" if error.code == "unauthorized" else ""
        text = f"{error.code}: {error.message}{advice}"
        return _fail(text, EXIT_FAILED if error.status == 404 else EXIT_UNREACHABLE)
    except GatewayUnreachable as error:
        return _fail(f"{error.code}: {error.message}{_elsewhere(error)}", EXIT_UNREACHABLE)
    except UnicodeEncodeError as error:  # Python has a lone surrogate for each byte of an argument that is not UTF-8
        return _fail(f"an argument has {error.object[error.start : error.end]!a}, which is not UTF-8", EXIT_USAGE)
    except OSError as error:
        if error.filename is None and error.errno in OUTPUT_ERRORS:
            raise  # of standard output, see `with_output`
        is_nowhere = isinstance(error, FileNotFoundError)  # only getcwd(2) misses a file without a name
        name = error.filename or ("the current directory" if is_nowhere else None)
        return _fail(f"{name}: {error.strerror}" if name else str(error.strerror or error), EXIT_USAGE)
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_INTERRUPTED)


def _elsewhere(error: GatewayUnreachable) -> str:
    """Return where the gateway of STATE_DIR is, if nothing answers at the address of HOST and PORT."""
    if url_by_environment() not in error.message:
        return ""
    place = Path(os.environ.get("STATE_DIR") or ".state")
    try:
        running = find_running(place.expanduser(), of_any_user=True)
    except (DaemonError, OSError):
        return ""
    return f"; the gateway of {place} is at {running.url} (TRANSFORM_GATEWAY_URL, --url)" if running else ""


def counted(number: int, noun: str) -> str:
    """Return a number with its noun in the singular or plural."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def exit_code_of(job_exit_code: int) -> int:
    """Return a failed job's exit code as one that a process can have, which is never 0."""
    return job_exit_code if 1 <= job_exit_code <= 255 else EXIT_FAILED


def _fail(text: str, code: int) -> int:
    sys.stderr.write(f"transform-gateway: {text}\n")
    return code
