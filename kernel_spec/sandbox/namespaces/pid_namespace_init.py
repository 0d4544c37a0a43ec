"""The init of a kernel's pid namespace: start it, and fork children into its namespace.

The pid namespace has an init of its own. A kernel that is pid 1 would be immune to its own signals
(``os.kill(os.getpid(), 9)``, abort) and would collect the zombies of every orphan until its process limit is full. As
the second process it is an ordinary one. Both are children of the launcher, which sees their true exits; where an
intermediate process forked them, as soon as that has ended. The end of the init ends everything in the
namespace at once.

The init is cat(1), reading the launcher's liveness pipe: nothing is ever written to this pipe, and it closes when the
launcher ends, however that ends. Linux reaps the orphans of a process that ignores SIGCHLD, and exec keeps that
disposition (wait(2)). An intermediate process ignores SIGCHLD while it starts the init. The launcher must not, because
it would lose the status of a kernel that ends meanwhile. It uses an env(1) that can (GNU coreutils 8.31), or leaves the
namespace to an intermediate process (`can_start_init`). An init forked without exec had a copy of our page tables and
of 800 pages: it took 3 ms to start and 2 to end, where cat takes 0.4 and 0.2 (measured).

Where the launcher starts it and the fork server forks into it, the process that does so moves its next children into
that namespace and then back (setns(2)). A process that cannot return must end (`StrandedError`).
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

from kernel_spec.linux import descriptors, syscalls
from kernel_spec.sandbox.layers import identity
from kernel_spec.sandbox.policy.attempt import Attempt, attempt
from kernel_spec.sandbox.policy.errors import SandboxError
from kernel_spec.sandbox.policy.plan import PID_NAMESPACE, Identity, SandboxPlan

_INIT: Final = "cat"
_IGNORING_SIGCHLD: Final = ("env", "--ignore-signal=CHLD")
_END_SECONDS: Final = 0.2


class StrandedError(Exception):
    """The next children of this process would start in a foreign pid namespace; it must end."""


def can_start_init(user: Identity | None) -> Attempt:
    """Try in a process of its own whether `start_init` and `children_in` work on this system.

    Parameters
    ----------
    user : Identity or None
        User of the init; None is the user of this process.
    """
    return attempt(lambda: _try_init(user))


def _try_init(user: Identity | None) -> dict[str, str]:
    liveness_pipe, end = os.pipe()
    here = _own_namespace()
    init_pid = _start_init_elsewhere(user, liveness_pipe)
    with children_in(os.pidfd_open(init_pid)):
        inside = _fork_and_look(here)
    # Proves that the program ran and that the namespace ends with the pipe.
    os.close(end)
    status = os.waitstatus_to_exitcode(os.waitpid(init_pid, 0)[1])
    if status:
        raise SandboxError(PID_NAMESPACE, f"its init ended with status {status}")
    if inside or not _fork_and_look(here):
        raise SandboxError(PID_NAMESPACE, "a child started in the wrong pid namespace")
    return {}


def _fork_and_look(namespace: str) -> bool:
    """Return whether a child of this process starts in this pid namespace."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(_own_namespace() == namespace)
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


def _own_namespace() -> str:
    return str(Path("/proc/self/ns/pid").readlink())


def start_init(plan: SandboxPlan, liveness_pipe: int) -> int:
    """Start the init of a new pid namespace as a child and return its pid; this process stays in its own namespace.

    Parameters
    ----------
    plan : SandboxPlan
        Its identity is the user of the init.
    liveness_pipe : int
        Read end of a pipe whose other end closes with this process.

    Raises
    ------
    SandboxError
        The namespace or its init could not be made.
    StrandedError
        This process could not return to its own namespace.
    """
    return _start_init_elsewhere(plan.identity, liveness_pipe)


def _start_init_elsewhere(user: Identity | None, liveness_pipe: int) -> int:
    with _children_elsewhere():
        try:
            syscalls.unshare(syscalls.CLONE_NEWPID)
            return _start_init(user, liveness_pipe, _IGNORING_SIGCHLD)
        except OSError as error:
            raise SandboxError(PID_NAMESPACE, str(error)) from error


def start_while_ignoring(user: Identity | None, liveness_pipe: int | None) -> int:
    """Start the init of the pid namespace that this process has unshared, in the intermediate process; return its
    pid.
    """
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        return _start_init(user, liveness_pipe)
    finally:
        signal.signal(signal.SIGCHLD, before)


@contextmanager
def children_in(init_pidfd: int) -> Iterator[None]:
    """Fork children of the block into the pid namespace of another process; the child must not leave the block.

    Raises
    ------
    SandboxError
        The namespace cannot be entered, or takes no process: most often its init has ended.
    StrandedError
        This process could not return to its own namespace.
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
            # Not an OSError, which callers handle: the next children would start in that namespace.
            raise StrandedError(f"no way back to the own pid namespace: {error}") from error
        finally:
            os.close(own)


def _to_close() -> list[int]:
    """Return the inheritable descriptors but the standard ones: exec would leave these open in the init."""
    return [number for number in descriptors.open_descriptors() if number > 2 and os.get_inheritable(number)]


def _start_init(user: Identity | None, liveness_pipe: int | None, by: Sequence[str] = ()) -> int:
    """Start the init as the workspace's user, without rights and other descriptors; return its pid as seen here."""
    command = [*by, _INIT]
    program, init = (shutil.which(name, path=os.defpath) for name in (command[0], _INIT))
    if program is None or init is None or liveness_pipe is None:
        missing = "no liveness pipe" if liveness_pipe is None else f"no {_INIT}(1) in {os.defpath}"
        raise SandboxError(PID_NAMESPACE, f"its init cannot be started: {missing}")
    # env(1) would search for it by its own environment, which is empty.
    command[-1] = init
    actions = [
        (os.POSIX_SPAWN_DUP2, liveness_pipe, 0),
        (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
        (os.POSIX_SPAWN_DUP2, 1, 2),
        *((os.POSIX_SPAWN_CLOSE, number) for number in _to_close()),
    ]
    with identity.borrowed(user):
        return os.posix_spawn(program, command, {}, file_actions=actions, setsid=True)
