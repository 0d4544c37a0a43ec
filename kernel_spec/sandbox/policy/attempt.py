"""Run a function in a process of its own and return its outcome, whatever it does to that process."""

from __future__ import annotations

import json
import os
import select
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from kernel_spec.sandbox.policy.errors import SandboxError


@dataclass(frozen=True, slots=True)
class Attempt:
    """The outcome of a function.

    Attributes
    ----------
    succeeded : bool
        Whether the function returned.
    why : str
        Reason of a failure.
    layer : str
        The layer that failed, if the function raised a `SandboxError`.
    facts : dict of str to str
        The function's result.
    """

    succeeded: bool
    why: str = ""
    layer: str = ""
    facts: dict[str, str] = field(default_factory=dict)


def attempt(function: Callable[[], dict[str, str]], *, deadline_seconds: float = 5.0) -> Attempt:
    """Run `function` in a forked child and return its outcome; the child is gone afterwards.

    A process that the function forks may answer after the child has ended: the answer is awaited, not the exit.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _answer(writer, function)
    os.close(writer)
    try:
        return _listen(reader, deadline_seconds)
    finally:
        os.close(reader)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)


def _answer(writer: int, function: Callable[[], dict[str, str]]) -> None:
    """Send the function's result or error, and end the process."""
    try:
        said: dict[str, object] = {"facts": function()}
    except SandboxError as error:
        said = {"why": error.reason, "layer": error.layer}
    except BaseException as error:
        said = {"why": f"{type(error).__name__}: {error}"}
    try:
        os.write(writer, json.dumps(said).encode())
    finally:
        os._exit(0)


def _listen(reader: int, deadline_seconds: float) -> Attempt:
    poller = select.poll()
    poller.register(reader, select.POLLIN)
    raw = b""
    while True:
        if not poller.poll(deadline_seconds * 1000):
            return Attempt(False, f"no answer within {deadline_seconds:g} s")
        piece = os.read(reader, 1 << 16)
        if not piece:
            break
        raw += piece
    if not raw:
        return Attempt(False, "the process ended without an answer")
    said = json.loads(raw)
    if "facts" in said:
        return Attempt(True, facts=said["facts"])
    return Attempt(False, said["why"], said.get("layer", ""))
