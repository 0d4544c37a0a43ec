"""The packages that jobs can import, and ``!command``, which cannot install any."""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
from importlib import metadata
from typing import IO, Any, cast

from IPython.core.error import UsageError

__all__ = ["NO_INSTALLATION", "installed", "run_command"]

_INSTALLS = re.compile(r"(^|[\s/\"'])(pip[\d.]*|uv|conda|mamba)[\"']?\s.*?\b(install|download|add)\b")

#: The answer to `%pip install` and `!pip install`.
NO_INSTALLATION = (
    "a kernel has no network and cannot install packages; jobs have the packages that %packages lists. The operator"
    " adds one with `transform-gateway packages add NAME`; then restart this kernel"
)

#: Pause between two looks whether a command that prints nothing has ended.
LOOK_SECONDS = 0.1

#: Time for a command to end after an interrupt.
INTERRUPT_SECONDS = 1.0


def installs(command: str) -> bool:
    """Return whether a shell command would install packages over a network that this process does not have."""
    return _INSTALLS.search(command) is not None and not _has_network()


def _has_network() -> bool:
    try:
        socket.socket().close()
    except OSError:
        return False
    return True


def installed(part: str = "") -> list[tuple[str, str]]:
    """Return names and versions of the packages whose name contains `part`, by name.

    Parameters
    ----------
    part : str, optional
        Part of the name, in any case.
    """
    found: dict[str, str] = {}
    for each in metadata.distributions():  # the first of a name is the one that is imported
        found.setdefault(each.metadata["Name"], each.version)
    return sorted(((name, version) for name, version in found.items() if part.lower() in name.lower()), key=_by_name)


def _by_name(package: tuple[str, str]) -> str:
    return package[0].lower()


def run_command(shell: Any, command: str) -> None:
    """Run a command, and print its output before the cell ends.

    IPython runs it in a terminal, which the sandbox does not have, or lets it write to the kernel's own descriptors,
    whose content may come after the cell (5 of 100 outputs on a busy machine). A command in the background may go on.

    Parameters
    ----------
    shell : IPython.core.interactiveshell.InteractiveShell
        Its ``_exit_code`` is set.
    command : str
        With IPython's ``{variables}``.

    Raises
    ------
    UsageError
        It would install packages.
    """
    if installs(command):
        raise UsageError(NO_INSTALLATION)
    text = shell.var_expand(command, depth=2)
    process = subprocess.Popen(  # noqa: S602 - the user's own line, in the sandbox
        text,
        shell=True,
        executable=os.environ.get("SHELL"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        process_group=0,  # an interrupt must reach the commands that the shell waits for
    )
    output = cast("IO[bytes]", process.stdout)
    try:
        _print_output(process, output)
    except KeyboardInterrupt:
        with contextlib.suppress(ProcessLookupError):  # it has ended at this moment
            os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(INTERRUPT_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
        sys.stderr.write("\nKeyboardInterrupt\n")
    finally:
        output.close()
    shell.user_ns["_exit_code"] = process.wait()


def _print_output(process: subprocess.Popen[bytes], output: IO[bytes]) -> None:
    """Return when the command has ended and all that it printed is shown."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    with selectors.DefaultSelector() as selector:
        selector.register(output, selectors.EVENT_READ)
        while True:
            has_ended = process.poll() is not None  # asked first: all that it printed can be read then
            if selector.select(0 if has_ended else LOOK_SECONDS):
                data = os.read(output.fileno(), 1 << 16)
                sys.stdout.write(decoder.decode(data, final=not data))
                sys.stdout.flush()
                if not data:
                    return
            elif has_ended:
                return
