"""Find every process of a seat and kill until none lives.

Process groups and walks down the tree miss what has called setsid and forked twice. Here a seat is known by what its
processes cannot change: the uid, or, where seats share one, the mark in their limits (`rlimits.seat_mark`).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from kernel_spec.sandbox import procfs, rlimits, syscalls
from kernel_spec.sandbox.errors import SandboxError
from kernel_spec.sandbox.plan import PROCESSES, Identity
from kernel_spec.sandbox.procfs import Status

_MARK_TITLE: Final = "Max realtime timeout"
# Between two looks, when everything found has been killed but is still there.
_PAUSE_SECONDS: Final = 0.002
# A zombie seen before its parent was reaped is handed to us a moment later, and would count against the limit of
# processes of the seat's next kernel. One whose parent lives elsewhere is not ours to wait for.
_LOOKS_FOR_ZOMBIES: Final = 10


@dataclass(frozen=True, slots=True)
class Ended:
    """How it went; none of the seat lives any more.

    Attributes
    ----------
    rounds
        How often signals were sent.
    pids
        The processes that were found alive.
    exits
        Wait statuses, as of waitpid(2), of those that were children of the caller and have been reaped here.
    """

    rounds: int
    pids: frozenset[int]
    exits: Mapping[int, int]


def become_subreaper() -> None:
    """Make this process the parent of every orphan among its descendants, so that it can see and reap them."""
    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)


def of_seat(seat_dir: str, identity: Identity | None) -> tuple[Status, ...]:
    """Return the processes of a seat, zombies included: by uid, or by the seat's mark without an own uid."""
    if identity is not None:
        return tuple(procfs.statuses_of_user(identity.uid))
    mark = rlimits.seat_mark(seat_dir)
    uid = os.getuid()
    return tuple(
        status
        for status in procfs.all_statuses()
        if status.uid == uid and procfs.read_limit(status.pid, _MARK_TITLE) == mark
    )


def end_seat(seat_dir: str, identity: Identity | None, *, deadline_seconds: float = 5.0) -> Ended:
    """Kill the processes of a seat until none lives, and reap those that are our children.

    The kernel itself is one of them: its status is in the result. It cannot be left for later, because the init of a
    pid namespace ends only when every process of the namespace has been reaped, the kernel included.

    Parameters
    ----------
    seat_dir, identity
        As in the plan of the kernel.
    deadline_seconds
        Time after which something that still lives is an error: a process in uninterruptible sleep.

    Raises
    ------
    SandboxError
        A process of the seat survived the deadline.
    """
    kill_all = None if identity is None or os.geteuid() != 0 else _killer_of(identity)
    return end_all(lambda: of_seat(seat_dir, identity), kill_all=kill_all, deadline_seconds=deadline_seconds)


def end_all(
    find: Callable[[], Iterable[Status]],
    *,
    kill_all: Callable[[], None] | None = None,
    deadline_seconds: float = 5.0,
) -> Ended:
    """Kill what `find` returns until it returns nothing that lives.

    Without `kill_all`, which signals all at once, processes are first stopped until no new one turns up: a stopped
    process does not fork while its siblings are being killed.

    Raises
    ------
    SandboxError
        Something survived the deadline.
    """
    deadline = time.monotonic() + deadline_seconds
    seen: set[int] = set()
    exits: dict[int, int] = {}
    rounds = 0
    looks_left = _LOOKS_FOR_ZOMBIES
    while True:
        found = tuple(find())
        living = {status.pid for status in found if status.lives}
        zombies = {status.pid for status in found} - living
        _reap((status for status in found if not status.lives), exits)
        if not living:
            if zombies <= exits.keys() or not looks_left:
                return Ended(rounds, frozenset(seen), exits)
            looks_left -= 1
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


def _reap(zombies: Iterable[Status], exits: dict[int, int]) -> None:
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
    """Return a call that kills all processes of the user in one system call, which no fork bomb outruns."""

    def kill_all() -> None:
        pid = os.fork()
        if pid == 0:
            try:
                os.setgroups([])
                os.setresgid(identity.gid, identity.gid, identity.gid)
                os.setresuid(identity.uid, identity.uid, identity.uid)
                os.kill(-1, signal.SIGKILL)
            except OSError:
                # ESRCH: nobody left. Anything else shows as survivors in the next round.
                os._exit(1)
            finally:
                os._exit(0)
        # The helper makes four calls; should a process of the seat kill it first, it ends as well.
        os.waitpid(pid, 0)

    return kill_all
