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
    rounds : int
        Number of rounds in which signals were sent.
    pids : frozenset of int
        The processes that were alive.
    exits : mapping of int to int
        Wait statuses, as of waitpid(2), of the children of the caller that were reaped.
    """

    rounds: int
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


def end_workspace(workspace_dir: str, identity: Identity | None, *, deadline_seconds: float = 5.0) -> Ended:
    """Kill the processes of a workspace until none lives, and reap those that are children of this process.

    The kernel is one of them and its status is in the result. It cannot be reaped later, because the init of a pid
    namespace ends only when every process of the namespace has been reaped.

    Parameters
    ----------
    workspace_dir : str
        As in the plan of the kernel.
    identity : Identity or None
        As in the plan of the kernel.
    deadline_seconds : float
        A process that lives longer, such as one in uninterruptible sleep, is an error.

    Raises
    ------
    SandboxError
        A process of the workspace survived the deadline.
    """
    kill_all = None if identity is None or os.geteuid() != 0 else _killer_of(identity)
    return end_all(lambda: of_workspace(workspace_dir, identity), kill_all=kill_all, deadline_seconds=deadline_seconds)


def end_all(
    find: Callable[[], Iterable[ProcessStatus]],
    *,
    kill_all: Callable[[], None] | None = None,
    deadline_seconds: float = 5.0,
) -> Ended:
    """Kill the processes that `find` returns until none of them lives.

    Without `kill_all`, which signals all at once, processes are first stopped until no new one appears: a stopped
    process does not fork while its siblings are killed.

    Raises
    ------
    SandboxError
        A process survived the deadline.
    """
    deadline = time.monotonic() + deadline_seconds
    seen: set[int] = set()
    exits: dict[int, int] = {}
    rounds = 0
    zombie_rounds_left = _ROUNDS_FOR_ZOMBIES
    while True:
        found = tuple(find())
        living = {status.pid for status in found if status.is_alive}
        zombies = {status.pid for status in found} - living
        _reap((status for status in found if not status.is_alive), exits)
        if not living:
            if zombies <= exits.keys() or not zombie_rounds_left:
                return Ended(rounds, frozenset(seen), exits)
            zombie_rounds_left -= 1
            time.sleep(_PAUSE_SECONDS)
            continue
        if time.monotonic() > deadline:
            pids = ", ".join(map(str, sorted(living)))
            raise SandboxError(PROCESSES, f"processes {pids} survived {deadline_seconds:g} s of SIGKILL")
        if rounds:
            time.sleep(_PAUSE_SECONDS)
        rounds += 1
        if kill_all is not None:
            kill_all()
        elif living - seen:
            _signal_all(living - seen, signal.SIGSTOP)
        else:
            _signal_all(living, signal.SIGKILL)
        seen |= living


def _reap(zombies: Iterable[ProcessStatus], exits: dict[int, int]) -> None:
    own = os.getpid()
    for zombie in zombies:
        if zombie.parent_pid == own:
            with suppress(ChildProcessError):
                pid, status = os.waitpid(zombie.pid, os.WNOHANG)
                if pid:
                    exits[pid] = status


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
        # A process of the workspace may kill the helper first; then it has ended as well.
        os.waitpid(pid, 0)

    return kill_all
