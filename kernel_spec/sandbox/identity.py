"""Become the seat's user for good: no supplementary groups, no capability, no way back."""

from __future__ import annotations

import os

from kernel_spec.sandbox import syscalls
from kernel_spec.sandbox.errors import SandboxError
from kernel_spec.sandbox.plan import IDENTITY, Identity

# Group members may reach what a kernel creates (the gateway is in the seat's group), others nothing.
UMASK = 0o007

_HIGHEST_CAPABILITY = 63


def become(identity: Identity) -> None:
    """Make the process run as `identity` alone and prove that it cannot go back to root.

    The kernel clears the parent-death signal and the dumpable flag here, so both are set after this layer.

    Raises
    ------
    SandboxError
        The process may not change its user, or could still become root.
    """
    if identity.uid == 0 or identity.gid == 0:
        raise SandboxError(IDENTITY, f"a seat must not be uid {identity.uid}, gid {identity.gid}")
    if os.getresuid() == (identity.uid,) * 3 and os.getresgid() == (identity.gid,) * 3 and not os.getgroups():
        return
    try:
        # Groups first: after the uid is gone the right to change them is gone too.
        os.setgroups([])
        os.setresgid(identity.gid, identity.gid, identity.gid)
        os.setresuid(identity.uid, identity.uid, identity.uid)
    except OSError as error:
        raise SandboxError(IDENTITY, f"cannot become uid {identity.uid}: {error}") from error
    _prove_no_way_back()


def _prove_no_way_back() -> None:
    for change in (os.setresuid, os.setresgid):
        try:
            change(0, 0, 0)
        except PermissionError:
            continue
        raise SandboxError(IDENTITY, "the process could become root again")


def drop_capabilities() -> None:
    """Give up all capabilities, also those that a later exec could bring.

    Leaving uid 0 empties the sets by itself; a user namespace fills them again, and a process that never was root may
    have been started with some.

    Raises
    ------
    SandboxError
        The sets could not be emptied.
    """
    try:
        syscalls.prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_CLEAR_ALL)
        for capability in range(_HIGHEST_CAPABILITY + 1):
            try:
                syscalls.prctl(syscalls.PR_CAPBSET_DROP, capability)
            except OSError:
                # EPERM: without CAP_SETPCAP the bounding set stays, and no_new_privs makes it idle.
                # EINVAL: past the last capability of this kernel.
                break
        syscalls.drop_all_capabilities()
    except OSError as error:
        raise SandboxError(IDENTITY, f"cannot drop capabilities: {error}") from error
