"""Starting one of our own modules from the launcher, with exactly the given descriptors."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
from collections.abc import Mapping, Sequence

from kernel_spec.linux import syscalls

_FIRST_LIFTED = 64
_EXIT_NOT_EXECUTED = 127


def spawn(command: Sequence[str], environment: Mapping[str, str], descriptors: Mapping[int, int]) -> int:
    """Start a command in ``/`` and in a session of its own; the caller reaps it.

    The child dies with the caller. The caller must have a single thread, because this forks.

    Parameters
    ----------
    command : sequence of str
        Absolute path of a program and its arguments.
    environment : mapping of str to str
        The whole environment of the child.
    descriptors : mapping of int to int
        The child's descriptor numbers, each with the caller's; 0 is /dev/null unless it is named. All others are
        closed.

    Returns
    -------
    int
        The pid of the child.
    """
    pid = os.fork()
    if pid == 0:
        _exec(command, environment, descriptors)
    return pid


def _exec(command: Sequence[str], environment: Mapping[str, str], descriptors: Mapping[int, int]) -> None:
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        for ending_signal in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(ending_signal, signal.SIG_DFL)
        # Kept by exec (prctl(2)); the launcher has one thread, so its death is its thread's death.
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        lifted = {
            target: fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, _FIRST_LIFTED) for target, source in descriptors.items()
        }
        os.dup2(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC), 0)
        for target, source in lifted.items():
            os.dup2(source, target)
        highest = max(descriptors, default=0)
        for number in range(1, highest):
            if number not in descriptors:
                os.closerange(number, number + 1)
        syscalls.close_range(max(highest, 2) + 1, 0xFFFF_FFFF)
        os.chdir("/")
        os.execve(command[0], list(command), environment)  # noqa: S606 - no shell, that is the point
    except BaseException as error:
        print(f"cannot start {command[0]}: {error}", file=sys.stderr, flush=True)  # noqa: T201
    finally:
        os._exit(_EXIT_NOT_EXECUTED)
