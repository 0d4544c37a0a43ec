"""Keep programs that a job runs from gaining rights by setuid, setgid or file capabilities."""

from __future__ import annotations

from kernel_spec.linux import syscalls
from kernel_spec.sandbox.policy.errors import SandboxError
from kernel_spec.sandbox.policy.plan import NO_NEW_PRIVS


def apply() -> None:
    """Set the flag; children inherit it and no process can clear it.

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
