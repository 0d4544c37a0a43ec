"""Become the workspace's user for good: no supplementary groups, no capability, no way back."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from kernel_spec.linux import syscalls
from kernel_spec.sandbox.policy.errors import SandboxError
from kernel_spec.sandbox.policy.plan import IDENTITY, Identity

#: Gives access to files that a kernel creates to its group, of which the gateway is a member, and to no other user.
UMASK = 0o007

_HIGHEST_CAPABILITY = 63
_CAPABILITY_VERSION = 0x20080522  # _LINUX_CAPABILITY_VERSION_3


def become(identity: Identity) -> None:
    """Make the process run as `identity` alone and prove that it cannot go back to root.

    Linux clears the parent-death signal and the dumpable flag here, so both are set after this layer.

    Raises
    ------
    SandboxError
        The process may not change its user, or could still become root.
    """
    if identity.uid == 0 or identity.gid == 0:
        raise SandboxError(IDENTITY, f"a workspace must not be uid {identity.uid}, gid {identity.gid}")
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


@contextmanager
def borrowed(identity: Identity | None) -> Iterator[None]:
    """Act as `identity` in the block: a program that is started there runs as that user, with no capability.

    This process returns by its saved user id, which exec overwrites (credentials(7), execve(2)), so the program cannot.
    Nothing happens without an identity, or for a process that is not root.

    Raises
    ------
    SandboxError
        The process may not change its user.
    """
    if identity is None or os.geteuid() != 0:
        yield
        return
    uids, gids, groups = os.getresuid(), os.getresgid(), os.getgroups()
    try:
        try:
            os.setgroups([])
            os.setresgid(identity.gid, identity.gid, gids[1])
            os.setresuid(identity.uid, identity.uid, uids[1])
        except OSError as error:
            raise SandboxError(IDENTITY, f"cannot become uid {identity.uid} for a while: {error}") from error
        yield
    finally:
        os.setresuid(*uids)
        os.setresgid(*gids)
        os.setgroups(groups)


def _prove_no_way_back() -> None:
    for change in (os.setresuid, os.setresgid):
        try:
            change(0, 0, 0)
        except PermissionError:
            continue
        raise SandboxError(IDENTITY, "the process could become root again")


@contextmanager
def keeping(capability: int) -> Iterator[None]:
    """Keep one capability, if the process has it, across a change of user in the block; drop all others.

    Raises
    ------
    SandboxError
        The sets could not be set.
    """
    try:
        syscalls.prctl(syscalls.PR_SET_KEEPCAPS, 1)
        yield
        _, permitted, _ = struct.unpack_from("=3I", _capabilities())
        mask = permitted & 1 << capability
        header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION, 0), 8)
        syscalls.call("capset", header, ctypes.create_string_buffer(struct.pack("=6I", mask, mask, 0, 0, 0, 0), 24))
        syscalls.prctl(syscalls.PR_SET_KEEPCAPS, 0)
    except OSError as error:
        raise SandboxError(IDENTITY, f"cannot reduce capabilities: {error}") from error


def _capabilities() -> bytes:
    """Return the effective, permitted and inheritable sets, capget(2): their low words, then their high ones."""
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION, 0), 8)
    sets = ctypes.create_string_buffer(24)
    syscalls.call("capget", header, sets)
    return sets.raw


def drop_capabilities() -> None:
    """Drop all capabilities, also those that a later exec could bring.

    Leaving uid 0 empties the sets; a user namespace fills them again, and a process that never was root may have been
    started with some.

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
                # EINVAL: past the last capability of this version of Linux.
                break
        syscalls.drop_all_capabilities()
    except OSError as error:
        raise SandboxError(IDENTITY, f"cannot drop capabilities: {error}") from error
