"""Find every process of a workspace and kill until none lives.

Process groups and walks down the tree miss processes that called setsid and forked twice. Here the processes of a
workspace are found by an attribute that they cannot change: the uid or, where workspaces share one, the mark in their
limits (`rlimits.workspace_mark`).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from kernel_spec.linux import procfs, syscalls
from kernel_spec.linux.procfs import ProcessStatus
from kernel_spec.sandbox.layers import rlimits
from kernel_spec.sandbox.policy.errors import SandboxError
from kernel_spec.sandbox.policy.plan import PROCESSES, Identity

_MARK_TITLE: Final = "Max realtime timeout"
#: Between two rounds, while killed processes have not ended yet.
_PAUSE_SECONDS: Final = 0.002
#: A zombie that is found before its parent was reaped becomes a child of this process a moment later, and would count
#: against the process limit of the workspace's next kernel. A zombie with a living parent elsewhere stays one.
_ROUNDS_FOR_ZOMBIES: Final = 10


@dataclass(frozen=True, slots=True)
class Ended:
    """Result of killing all processes of a workspace.

    Attributes
    ----------
    pids : frozenset of int
        The processes that were alive.
    exits : mapping of int to int
        Wait statuses, as of waitpid(2), of the children of the caller that were reaped.
    """

    pids: frozenset[int]
    exits: Mapping[int, int]


def become_subreaper() -> None:
    """Make this process the parent of every orphan among its descendants, so that it can see and reap them."""
    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)


def of_workspace(workspace_dir: str, identity: Identity | None) -> tuple[ProcessStatus, ...]:
    """Return the processes of a workspace, zombies included, by its uid or, where it has none, by its mark."""
    if identity is not None:
        return tuple(procfs.statuses_of_user(identity.uid))
    mark = rlimits.workspace_mark(workspace_dir)
    uid = os.getuid()
    return tuple(
        status
        for status in procfs.all_statuses()
        if status.uid == uid and procfs.read_limit(status.pid, _MARK_TITLE) == mark
    )


def end_workspace(
    workspace_dir: str, identity: Identity | None, *, deadline_seconds: float = 5.0, reaps: bool = True
) -> Ended:
    """Kill the processes of a workspace until none lives.

    Parameters
    ----------
    workspace_dir : str
        As in the plan of the kernel.
    identity : Identity or None
        As in the plan of the kernel.
    deadline_seconds, reaps
        As for `end_all`.

    Raises
    ------
    SandboxError
        A process of the workspace survived the deadline.
    """
    kill_all = None if identity is None or os.geteuid() != 0 else _killer_of(identity)
    return end_all(
        lambda: of_workspace(workspace_dir, identity),
        kill_all=kill_all,
        deadline_seconds=deadline_seconds,
        reaps=reaps,
    )


def end_all(
    find: Callable[[], Iterable[ProcessStatus]],
    *,
    kill_all: Callable[[], None] | None = None,
    deadline_seconds: float = 5.0,
    reaps: bool = True,
) -> Ended:
    """Kill the processes that `find` returns until none of them lives.

    Without `kill_all`, which signals all at once, each process is stopped when it is first seen and killed when it is
    seen again: a stopped process does not fork while its siblings are killed.

    A process may fork and end between the listing of /proc and the reading of its status, and its child the same. Then
    all that are found are dead. So the end counts only if nothing new was found. And zombies are reaped last: they fill
    the process limit of such a chain, which then stands still.

    Parameters
    ----------
    find : callable
        Returns the processes, zombies included.
    kill_all : callable or None
        Kills them all in one system call.
    deadline_seconds : float
        A process that lives longer, such as one in uninterruptible sleep, is an error.
    reaps : bool
        Whether to reap those that are children of this process. The init of a pid namespace ends only when every
        process of the namespace has been reaped.

    Raises
    ------
    SandboxError
        A process survived the deadline.
    """
    deadline = time.monotonic() + deadline_seconds
    known: set[int] = set()
    seen: set[int] = set()
    exits: dict[int, int] = {}
    zombie_rounds_left = _ROUNDS_FOR_ZOMBIES if reaps else 0
    while True:
        found = tuple(find())
        pids = {status.pid for status in found}
        living = {status.pid for status in found if status.is_alive}
        new = pids - known
        if not (living or new):
            if pids <= exits.keys() or not zombie_rounds_left:
                return Ended(frozenset(seen), exits)
            zombie_rounds_left -= 1
        elif time.monotonic() > deadline:
            names = ", ".join(map(str, sorted(living or new)))
            raise SandboxError(PROCESSES, f"processes {names} survived {deadline_seconds:g} s of SIGKILL")
        if known:
            time.sleep(_PAUSE_SECONDS)
        if kill_all is not None and (living or new):
            kill_all()
        else:
            _signal_all(living - seen, signal.SIGSTOP)
            _signal_all(living & seen, signal.SIGKILL)
        if reaps and not new:
            _reap(found, exits)
        known |= new
        seen |= living


def _reap(found: Iterable[ProcessStatus], exits: dict[int, int]) -> None:
    own = os.getpid()
    for status in found:
        if status.parent_pid == own:
            with suppress(ChildProcessError):
                pid, wait_status = os.waitpid(status.pid, os.WNOHANG)
                if pid:
                    exits[pid] = wait_status


def _signal_all(pids: set[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _killer_of(identity: Identity) -> Callable[[], None]:
    """Return a function that kills all processes of the user in one system call, which no fork bomb outruns."""

    def kill_all() -> None:
        pid = os.fork()
        if pid == 0:
            try:
                os.setgroups([])
                os.setresgid(identity.gid, identity.gid, identity.gid)
                os.setresuid(identity.uid, identity.uid, identity.uid)
                os.kill(-1, signal.SIGKILL)
            except OSError:
                # ESRCH: no process is left. After any other error the next round finds survivors.
                os._exit(1)
            finally:
                os._exit(0)
        # A process of the workspace may kill or stop the helper first, where nothing forbids it to signal its own user.
        if os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1]):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    return kill_all
