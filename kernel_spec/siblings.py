"""Forking a child of one's own parent: a kernel that the fork server makes is the launcher's child from the start.

fork(2) needs a process in between for that, which forks once more and ends, so that the kernel becomes an orphan. Such
a process copies the page tables of 80 MB twice and takes one copy apart again: 12 ms of a kernel's processor time
(measured). clone(2) with CLONE_PARENT makes the same kernel at once. The C library has no function for it, so the call
is made here, with what `os.fork` and fork(3) do around it:

- CPython's locks, hooks (`os.register_at_fork`) and record of threads, by the functions of its C API;
- the thread id that the C library keeps in memory and by which it knows the owner of a lock: the system writes it, to
  the address at which it would also clear it (PR_GET_TID_ADDRESS).

What is left out are the handlers of C libraries (pthread_atfork(3)), which bring locks and thread pools into order, of
which a process with one thread has none (a fork server with more does not fork); and the list of robust mutexes of the
first thread (get_robust_list(2)), which tells its death to processes that share such a lock with it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import signal
import threading
from functools import lru_cache
from typing import Any, Final

from kernel_spec.sandbox import syscalls

_CLONE_PARENT: Final = 0x00008000
_CLONE_CHILD_CLEARTID: Final = 0x00200000
_CLONE_CHILD_SETTID: Final = 0x01000000
_PR_GET_TID_ADDRESS: Final = 40

# Number of clone(2), and the place of the address among its arguments.
_CLONE: Final = {"x86_64": (56, 3), "aarch64": (220, 4)}
# As a PyDLL: the lock of the interpreter is kept, as in os.fork.
_C: Final[Any] = ctypes.PyDLL(None, use_errno=True)


def is_possible() -> bool:
    """Return whether this system tells what `fork` needs to know."""
    return platform.machine() in _CLONE and _thread_id_address() is not None


def fork(*, as_sibling: bool = True) -> int:
    """Fork; return 0 in the new process and its pid here. The caller has one thread and cannot wait for a sibling.

    Parameters
    ----------
    as_sibling
        Otherwise the new process is a child, in nothing else different.

    Raises
    ------
    OSError
        No process could be had, or `is_possible` is false.
    """
    address = _thread_id_address()
    if address is None:
        raise OSError(errno.ENOSYS, "the C library does not tell where it keeps its thread id")
    number, place = _CLONE[platform.machine()]
    flags = signal.SIGCHLD | _CLONE_CHILD_SETTID | _CLONE_CHILD_CLEARTID | (_CLONE_PARENT if as_sibling else 0)
    words = [flags, 0, 0, 0, 0]
    words[place] = address
    arguments = [ctypes.c_long(word) for word in (number, *words)]
    ctypes.pythonapi.PyOS_BeforeFork()
    pid: int = _C.syscall(*arguments)
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
        return 0
    error = ctypes.get_errno()
    ctypes.pythonapi.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(error, f"clone: {os.strerror(error)}")
    return pid


def knows_its_thread() -> bool:
    """Return whether the C library's thread id is the calling thread's, which must be the first of its process."""
    address = _thread_id_address()
    return address is not None and ctypes.c_int.from_address(address).value == threading.get_native_id()


@lru_cache(maxsize=1)
def _thread_id_address() -> int | None:
    """Return where the C library keeps the id of the first thread; the same in every fork."""
    found = ctypes.create_string_buffer(8)
    try:
        syscalls.call("prctl", _PR_GET_TID_ADDRESS, found, 0, 0, 0)
    except OSError:  # a system without checkpoint and restore
        return None
    address = int.from_bytes(found.raw, "little")
    if not address or ctypes.c_int.from_address(address).value != threading.get_native_id():
        return None
    return address
