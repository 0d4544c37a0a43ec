"""The lifetime of the S3 server: it ends with the gateway, and not before.

A stop of a systemd service sends SIGTERM to all of its processes, while the gateway still delivers results. rclone ends
at SIGTERM and has no option against it; Go's runtime installs its handler also where the signal was ignored before. So
the system call for that handler succeeds without an effect (seccomp(2)), and SIGTERM stays ignored. SIGINT ends rclone.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import struct

# prctl(2), seccomp(2), linux/filter.h, linux/audit.h
_PR_SET_PDEATHSIG = 1
_PR_SET_SECCOMP = 22
_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_MODE_FILTER = 2
_LOAD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _SUCCEED = 0x7FFF0000, 0x00050000  # SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO with errno 0
# offsets in struct seccomp_data: number, architecture, low half of the first argument
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16

#: By machine: AUDIT_ARCH_* and the number of rt_sigaction(2). On others the server ends at SIGTERM and is restarted.
_SIGNAL_HANDLERS = {"x86_64": (0xC000003E, 13), "aarch64": (0xC00000B7, 134)}


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


class OutliveTheDrain:
    """Call in the child before exec: die with the gateway, and ignore SIGTERM for good.

    Everything is prepared before the fork, because a lock that another thread holds stays locked in the child.
    """

    def __init__(self) -> None:
        self._prctl = ctypes.CDLL(None, use_errno=True).prctl
        self._parent = os.getpid()
        self._filter: _Program | None = None
        if platform.machine() in _SIGNAL_HANDLERS:
            instructions = _keep_sigterm(*_SIGNAL_HANDLERS[platform.machine()])
            self._filter = _Program(len(instructions) // 8, instructions)

    def __call__(self) -> None:
        self._prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != self._parent:  # it died before the call
            os._exit(1)
        if self._filter is not None:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            self._prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            self._prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(self._filter), 0, 0)


def _keep_sigterm(architecture: int, number: int) -> bytes:
    """Return the program of the filter: each instruction is an operation, two jumps and a value."""
    return b"".join(
        struct.pack("=HBBI", *instruction)
        for instruction in (
            (_LOAD, 0, 0, _ARCHITECTURE),
            (_JUMP_EQUAL, 0, 5, architecture),
            (_LOAD, 0, 0, _NUMBER),
            (_JUMP_EQUAL, 0, 3, number),
            (_LOAD, 0, 0, _FIRST_ARGUMENT),
            (_JUMP_EQUAL, 0, 1, signal.SIGTERM),
            (_RETURN, 0, 0, _SUCCEED),
            (_RETURN, 0, 0, _ALLOW),
        )
    )
