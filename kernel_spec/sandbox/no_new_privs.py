"""No program that a job runs gains a right by being setuid, setgid or by file capabilities; not even after exec."""

from __future__ import annotations

from kernel_spec.sandbox import syscalls
from kernel_spec.sandbox.errors import SandboxError
from kernel_spec.sandbox.plan import NO_NEW_PRIVS


def apply() -> None:
    """Set the flag, which children inherit and nobody can clear.

    Raises
    ------
    SandboxError
        The flag is not set afterwards.
    """
    try:
        syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
        is_set = syscalls.prctl(syscalls.PR_GET_NO_NEW_PRIVS)
    except OSError as error:
        raise SandboxError(NO_NEW_PRIVS, str(error)) from error
    if is_set != 1:
        raise SandboxError(NO_NEW_PRIVS, "the flag did not stay set")
