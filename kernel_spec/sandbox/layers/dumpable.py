"""Hide the process from others of the same uid: they may not trace it, read its memory or its files.

Without this layer ``/proc/<pid>/environ``, ``mem``, ``fd`` and ptrace are open to every process of the same user. An
exec resets the flag, so it protects forked kernels, the launcher and the gateway, and not a program that a job starts.
Root with CAP_SYS_PTRACE is not kept out.
"""

from __future__ import annotations

from kernel_spec.linux import syscalls
from kernel_spec.sandbox.policy.errors import SandboxError
from kernel_spec.sandbox.policy.plan import DUMPABLE


def apply() -> None:
    """Make the process not dumpable; call it after every change of user, which resets the flag.

    Raises
    ------
    SandboxError
        The flag is not 0 afterwards.
    """
    try:
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
        dumpable = syscalls.prctl(syscalls.PR_GET_DUMPABLE)
    except OSError as error:
        raise SandboxError(DUMPABLE, str(error)) from error
    if dumpable != 0:
        raise SandboxError(DUMPABLE, f"the flag stayed {dumpable}")
