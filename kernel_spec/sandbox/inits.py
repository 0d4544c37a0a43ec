"""The init of a kernel's pid namespace: starting it, and having children born beside it.

The pid namespace has an init of its own. A kernel that is pid 1 would be immune to its own signals
(``os.kill(os.getpid(), 9)``, abort) and would collect the zombies of every orphan until its process limit is full. As
the second process it is an ordinary one. Both are children of the launcher, which sees their true exits; where a middle
process forked them, as soon as that has ended. The end of the init ends everything in the namespace at once.

The init is cat(1), reading the launcher's lifeline: a pipe that nothing is ever written to and that ends with the
launcher, however that ends. A process that ignores SIGCHLD, as exec lets it go on doing, has its orphans reaped by the
kernel (wait(2)). A middle process ignores it for that while. The launcher may not: a kernel that ended meanwhile would
be gone without a word. It needs an env(1) that does it, of GNU coreutils 8.31, or leaves the namespace to a middle
process (`can_start_init`). A fork of our own did the same with a copy of our page tables and of 800 pages: 3 ms to
start and 2 to end, where this takes 0.4 and 0.2 (measured).

Where the launcher starts it and the fork server forks into it, the process that does so moves its next children into
that namespace and then back (setns(2)). A process that does not get back must not go on (`StrandedError`).
"""

from __future__ import annotations

import errno
import os
import select
import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from kernel_spec.sandbox import descriptors, identity, syscalls
from kernel_spec.sandbox.attempt import Attempt, attempt
from kernel_spec.sandbox.errors import SandboxError
from kernel_spec.sandbox.plan import PID_NAMESPACE, Identity, SandboxPlan

_INIT: Final = "cat"
_IGNORING_SIGCHLD: Final = ("env", "--ignore-signal=CHLD")
_END_SECONDS: Final = 0.2


class StrandedError(Exception):
    """Whatever this process forks from now on would be born in a foreign pid namespace; it must end."""


def can_start_init(user: Identity | None) -> Attempt:
    """Try in a process of its own whether `start_init` and `children_in` work on this system.

    Parameters
    ----------
    user
        Whom the init shall run as; None is our own user.
    """
    return attempt(lambda: _try_init(user))


def _try_init(user: Identity | None) -> dict[str, str]:
    lifeline, end = os.pipe()
    here = _own_namespace()
    init_pid = _start_init_elsewhere(user, lifeline)
    with children_in(os.pidfd_open(init_pid)):
        inside = _fork_and_look(here)
    # Both that the program ran and that the namespace ends as it shall.
    os.close(end)
    status = os.waitstatus_to_exitcode(os.waitpid(init_pid, 0)[1])
    if status:
        raise SandboxError(PID_NAMESPACE, f"its init ended with status {status}")
    if inside or not _fork_and_look(here):
        raise SandboxError(PID_NAMESPACE, "a child was born in another one than it should have been")
    return {}


def _fork_and_look(namespace: str) -> bool:
    """Return whether a child of ours is born in this pid namespace."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(_own_namespace() == namespace)
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


def _own_namespace() -> str:
    return str(Path("/proc/self/ns/pid").readlink())


def start_init(plan: SandboxPlan, lifeline: int) -> int:
    """Start the init of a new pid namespace as our child and return its pid; we stay where we are.

    Parameters
    ----------
    plan
        Whose user the init runs as.
    lifeline
        Read end of a pipe that ends with us.

    Raises
    ------
    SandboxError
        There is no namespace or no init to be had.
    StrandedError
        There was one, and no way back from it.
    """
    return _start_init_elsewhere(plan.identity, lifeline)


def _start_init_elsewhere(user: Identity | None, lifeline: int) -> int:
    with _children_elsewhere():
        try:
            syscalls.unshare(syscalls.CLONE_NEWPID)
            return _start_init(user, lifeline, _IGNORING_SIGCHLD)
        except OSError as error:
            raise SandboxError(PID_NAMESPACE, str(error)) from error


def start_while_ignoring(user: Identity | None, lifeline: int | None) -> int:
    """Start the init of the pid namespace that this process has unshared, in the middle process; return its pid."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        return _start_init(user, lifeline)
    finally:
        signal.signal(signal.SIGCHLD, before)


@contextmanager
def children_in(init_pidfd: int) -> Iterator[None]:
    """Have what is forked in the block be born in the pid namespace of another process; the child must not leave it.

    Raises
    ------
    SandboxError
        It cannot be entered, or nothing be born there: most often its init has ended.
    StrandedError
        There is no way back.
    """
    with _children_elsewhere():
        try:
            syscalls.setns(init_pidfd, syscalls.CLONE_NEWPID)
        except OSError as error:
            raise SandboxError(PID_NAMESPACE, str(error)) from error
        try:
            yield
        except OSError as error:
            # fork(2): ENOMEM as soon as the init is ending, which it then does in a moment.
            if error.errno == errno.ENOMEM and _ends(init_pidfd):
                raise SandboxError(PID_NAMESPACE, "its init has ended") from error
            raise


def _ends(pidfd: int) -> bool:
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(_END_SECONDS * 1000))


@contextmanager
def _children_elsewhere() -> Iterator[None]:
    try:
        own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise SandboxError(PID_NAMESPACE, str(error)) from error
    try:
        yield
    finally:
        try:
            syscalls.setns(own, syscalls.CLONE_NEWPID)
        except OSError as error:
            # No OSError, which is what callers go on after: whatever is forked from now on would be born there.
            raise StrandedError(f"no way back to the own pid namespace: {error}") from error
        finally:
            os.close(own)


def _to_close() -> list[int]:
    """Return what the init would inherit beside its standard descriptors: exec closes only what is not inheritable."""
    return [number for number in descriptors.open_descriptors() if number > 2 and os.get_inheritable(number)]


def _start_init(user: Identity | None, lifeline: int | None, by: Sequence[str] = ()) -> int:
    """Start the init, as the seat's user with no right and no other descriptor; return its pid as seen from here."""
    command = [*by, _INIT]
    program, init = (shutil.which(name, path=os.defpath) for name in (command[0], _INIT))
    if program is None or init is None or lifeline is None:
        missing = "no lifeline" if lifeline is None else f"no {_INIT}(1) in {os.defpath}"
        raise SandboxError(PID_NAMESPACE, f"there is nothing to be its init: {missing}")
    # env would look for it in its environment, which is empty.
    command[-1] = init
    actions = [
        (os.POSIX_SPAWN_DUP2, lifeline, 0),
        (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
        (os.POSIX_SPAWN_DUP2, 1, 2),
        *((os.POSIX_SPAWN_CLOSE, number) for number in _to_close()),
    ]
    with identity.borrowed(user):
        return os.posix_spawn(program, command, {}, file_actions=actions, setsid=True)
