"""Fork a child of the parent process: a kernel that the fork server makes is the launcher's child from the start.

fork(2) needs an intermediate process for that, which forks once more and ends, so that the kernel becomes an orphan.
Such a process copies the page tables of 80 MB twice and frees one copy again: 12 ms of a kernel's processor time
(measured; docs/sandbox-shapes.md). clone(2) with CLONE_PARENT makes the same kernel at once. The C library has no
function for it, so the call is made here, together with the work that `os.fork` and fork(3) do around it:

- CPython's locks, hooks (`os.register_at_fork`) and record of threads, by the functions of its C API;
- the thread id that the C library keeps in memory to identify the owner of a lock: the kernel writes it, to the address
  at which it would also clear it (PR_GET_TID_ADDRESS).

Two things are left out. The handlers of C libraries (pthread_atfork(3)) reset locks and thread pools; a process with
one thread has none, and a fork server with more threads does not fork. The list of robust mutexes of the first thread
(get_robust_list(2)) reports its death to processes that share such a lock with it.
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

from kernel_spec.linux import syscalls

_CLONE_PARENT: Final = 0x00008000
_CLONE_CHILD_CLEARTID: Final = 0x00200000
_CLONE_CHILD_SETTID: Final = 0x01000000
_PR_GET_TID_ADDRESS: Final = 40

#: Number of clone(2), and the position of the address among its arguments.
_CLONE: Final = {"x86_64": (56, 3), "aarch64": (220, 4)}
#: A PyDLL keeps the lock of the interpreter, as os.fork does.
_C: Final[Any] = ctypes.PyDLL(None, use_errno=True)


def is_possible() -> bool:
    """Return whether this system provides the address that `fork` needs."""
    return platform.machine() in _CLONE and _thread_id_address() is not None


def fork(*, as_sibling: bool = True) -> int:
    """Fork; return 0 in the new process and its pid here. The caller has one thread and cannot wait for a sibling.

    Parameters
    ----------
    as_sibling : bool
        False makes the new process a child; nothing else differs.

    Raises
    ------
    OSError
        No process could be made, or `is_possible` is false.
    """
    address = _thread_id_address()
    if address is None:
        raise OSError(errno.ENOSYS, "the address of the C library's thread id is unknown")
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


def has_correct_thread_id() -> bool:
    """Return whether the C library's thread id is the calling thread's, which must be the first of its process."""
    address = _thread_id_address()
    return address is not None and ctypes.c_int.from_address(address).value == threading.get_native_id()


@lru_cache(maxsize=1)
def _thread_id_address() -> int | None:
    """Return the address of the first thread's id in the C library; it is the same in every fork."""
    found = ctypes.create_string_buffer(8)
    try:
        syscalls.call("prctl", _PR_GET_TID_ADDRESS, found, 0, 0, 0)
    except OSError:  # a system without checkpoint and restore
        return None
    address = int.from_bytes(found.raw, "little")
    if not address or ctypes.c_int.from_address(address).value != threading.get_native_id():
        return None
    return address
