"""Close the process to its equals: another process of the same uid may not trace it, read its memory or its files.

Without it one uid means one trust: ``/proc/<pid>/environ``, ``mem``, ``fd`` and ptrace are open to every process of the
same user. An exec sets the flag back, so this holds for forked kernels, the launcher and the gateway, and not for a
program that a job starts. Root with CAP_SYS_PTRACE is not kept out.
"""

from __future__ import annotations

from kernel_spec.sandbox import syscalls
from kernel_spec.sandbox.errors import SandboxError
from kernel_spec.sandbox.plan import DUMPABLE


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
