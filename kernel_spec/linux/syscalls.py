"""System calls that Python does not offer, by ctypes; every failure is an OSError with the call's name.

Nothing here is a policy. `ctypes.CDLL(None)` finds the C library that is already loaded; ``find_library`` would start
ldconfig or a compiler.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from typing import Final

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

MACHINE: Final = platform.machine()

#: Numbers of the calls made here: (x86_64, aarch64). From 424 on all architectures share one table.
_NUMBERS: Final[dict[str, tuple[int, int]]] = {
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "prctl": (157, 167),
    "capget": (125, 90),
    "capset": (126, 91),
    "unshare": (272, 97),
    "setns": (308, 268),
    "sethostname": (170, 161),
    "seccomp": (317, 277),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "close_range": (436, 436),
    "mincore": (27, 232),
    "madvise": (28, 233),
    "process_madvise": (440, 440),
    "mount_setattr": (442, 442),
    "landlock_create_ruleset": (444, 444),
    "landlock_add_rule": (445, 445),
    "landlock_restrict_self": (446, 446),
}
_COLUMN: Final = {"x86_64": 0, "aarch64": 1}.get(MACHINE)

# prctl(2)
PR_SET_PDEATHSIG: Final = 1
PR_GET_DUMPABLE: Final = 3
PR_SET_DUMPABLE: Final = 4
PR_SET_KEEPCAPS: Final = 8
PR_CAPBSET_DROP: Final = 24
PR_SET_CHILD_SUBREAPER: Final = 36
PR_SET_NO_NEW_PRIVS: Final = 38
PR_GET_NO_NEW_PRIVS: Final = 39
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_CLEAR_ALL: Final = 4

# unshare(2), clone(2)
CLONE_NEWNS: Final = 0x00020000
CLONE_NEWCGROUP: Final = 0x02000000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000

# mount(2), umount2(2)
MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_REC: Final = 16384
MS_PRIVATE: Final = 1 << 18
MNT_DETACH: Final = 2

# open_tree(2), move_mount(2), mount_setattr(2)
AT_FDCWD: Final = -100
AT_EMPTY_PATH: Final = 0x1000
AT_RECURSIVE: Final = 0x8000
OPEN_TREE_CLONE: Final = 1
OPEN_TREE_CLOEXEC: Final = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH: Final = 4
MOUNT_ATTR_RDONLY: Final = 1
MOUNT_ATTR_NOSUID: Final = 2
MOUNT_ATTR_NODEV: Final = 4

# seccomp(2)
SECCOMP_SET_MODE_FILTER: Final = 1
SECCOMP_FILTER_FLAG_TSYNC: Final = 1
SECCOMP_FILTER_FLAG_NEW_LISTENER: Final = 8
SECCOMP_FILTER_FLAG_TSYNC_ESRCH: Final = 16

# landlock(7)
LANDLOCK_CREATE_RULESET_VERSION: Final = 1
LANDLOCK_RULE_PATH_BENEATH: Final = 1


def number(name: str) -> int:
    """Return the number of the call `name` on this machine.

    Raises
    ------
    OSError
        ENOSYS: this processor architecture is not x86_64 or aarch64.
    """
    if _COLUMN is None:
        raise OSError(38, f"{name}: system call numbers of {MACHINE} are not known here")
    return _NUMBERS[name][_COLUMN]


def call(name: str, *arguments: int | ctypes.Array[ctypes.c_char] | bytes | None) -> int:
    """Make one system call and return its result.

    Raises
    ------
    OSError
        The call failed; the message begins with its name.
    """
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result: int = _libc.syscall(ctypes.c_long(number(name)), *words)
    if result < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, f"{name}: {os.strerror(errno)}")
    return result


def prctl(option: int, argument2: int = 0, argument3: int = 0) -> int:
    """Set or read one attribute of the calling process or thread; see prctl in section 2 of the manual."""
    return call("prctl", option, argument2, argument3, 0, 0)


def unshare(flags: int) -> None:
    """Move the caller (for pid: its next children) into new namespaces; see unshare in section 2 of the manual."""
    call("unshare", flags)


def setns(descriptor: int, flags: int) -> None:
    """Move the caller (for pid: its next children) into one namespace, or with a pidfd into those of a process."""
    call("setns", descriptor, flags)


def mount(source: str, target: str, filesystem: str, flags: int, data: str = "") -> None:
    """Mount a filesystem; see mount in section 2 of the manual."""
    options = data.encode() if data else None
    call("mount", os.fsencode(source), os.fsencode(target), filesystem.encode(), flags, options)


def unmount(target: str, flags: int) -> None:
    """Detach a mount, umount2(2)."""
    call("umount2", os.fsencode(target), flags)


def pivot_root(new_root: str, put_old: str) -> None:
    """Exchange the root mount of the mount namespace; see pivot_root in section 2 of the manual."""
    call("pivot_root", os.fsencode(new_root), os.fsencode(put_old))


def clone_mount(path: str, *, recursive: bool) -> int:
    """Return a descriptor of a detached copy of the mount at `path` (a bind mount not yet attached), open_tree(2)."""
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | (AT_RECURSIVE if recursive else 0)
    return call("open_tree", AT_FDCWD, os.fsencode(path), flags)


def attach_mount(tree_fd: int, target: str) -> None:
    """Attach a detached mount at `target`, move_mount(2)."""
    call("move_mount", tree_fd, b"", AT_FDCWD, os.fsencode(target), MOVE_MOUNT_F_EMPTY_PATH)


def restrict_mount(tree_fd: int, attributes: int, *, recursive: bool) -> None:
    """Add attributes such as MOUNT_ATTR_RDONLY to a mount, mount_setattr(2).

    Unlike a remount it names only what is added, so flags that a user namespace may not remove stay as they are.
    """
    words = ctypes.create_string_buffer(struct.pack("=QQQQ", attributes, 0, 0, 0), 32)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    call("mount_setattr", tree_fd, b"", flags, words, 32)


def sethostname(name: str) -> None:
    """Set the host name of the UTS namespace."""
    raw = name.encode()
    call("sethostname", raw, len(raw))


def close_range(first: int, last: int) -> None:
    """Close all open descriptors from `first` to `last`, both included."""
    call("close_range", first, last, 0)


def drop_all_capabilities() -> None:
    """Empty the effective, permitted and inheritable sets of the calling thread, capset(2)."""
    header = ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0), 8)
    call("capset", header, ctypes.create_string_buffer(24))


def seccomp_filter(program: bytes, *, with_listener: bool = False) -> int | None:
    """Install a filter for all threads of the process, seccomp(2).

    Parameters
    ----------
    program : bytes
        Instructions of 8 bytes, struct sock_filter.
    with_listener : bool
        Whether a supervisor answers the calls that the filter passes to it, seccomp_unotify(2).

    Returns
    -------
    int or None
        The supervisor's descriptor, if there is one.

    Raises
    ------
    OSError
        Linux refused the filter, or (EAGAIN) a thread could not take it.
    """
    instructions = ctypes.create_string_buffer(program, len(program))
    length = len(program) // 8
    header = ctypes.create_string_buffer(struct.pack("@HP", length, ctypes.addressof(instructions)), 16)
    if with_listener:
        # A positive result is the descriptor then; a thread that could not take the filter gives an errno, Linux 5.7.
        flags = SECCOMP_FILTER_FLAG_TSYNC | SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_TSYNC_ESRCH
        return call("seccomp", SECCOMP_SET_MODE_FILTER, flags, header)
    # With TSYNC a positive result is the id of a thread that could not take the filter.
    if call("seccomp", SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, header):
        raise OSError(11, "seccomp: a thread of the process could not take the filter")
    return None


def landlock_abi() -> int:
    """Return the Landlock ABI of the running Linux, or raise OSError (ENOSYS, EOPNOTSUPP) where it is off."""
    return call("landlock_create_ruleset", None, 0, LANDLOCK_CREATE_RULESET_VERSION)


def landlock_ruleset(attributes: bytes) -> int:
    """Return the descriptor of a new ruleset; `attributes` is struct landlock_ruleset_attr as the ABI knows it."""
    return call("landlock_create_ruleset", attributes, len(attributes), 0)


def landlock_allow_path(ruleset_fd: int, access: int, path_fd: int) -> None:
    """Allow `access` on the file at `path_fd`, or on everything beneath it when it is a directory."""
    # struct landlock_path_beneath_attr is packed: a 64-bit mask, then a 32-bit descriptor.
    rule = struct.pack("=Qi", access, path_fd)
    call("landlock_add_rule", ruleset_fd, LANDLOCK_RULE_PATH_BENEATH, rule, 0)


def landlock_restrict_self(ruleset_fd: int) -> None:
    """Put the calling thread into the domain of the ruleset; other threads that exist already stay outside."""
    call("landlock_restrict_self", ruleset_fd, 0)
