"""Files, TCP ports, signals and abstract sockets by Landlock: everything without a rule is refused, also to root.

Works unprivileged since Linux 5.13 and in ordinary containers. The ABI number says which rights Linux supports; this is
the interface's own way of probing (landlock(7)). Other rights are left out.

The package landlock of PyPI is not used: it is a pre-release (1.0.0.dev5) with rights on files only, not on TCP ports,
signals and abstract sockets.

Landlock does not cover stat, chdir, and changes of metadata (chmod, chown, utime, xattr), nor connecting to a path
socket before ABI 9, nor UDP before ABI 10. The uid, the private root and the seccomp filter cover those.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kernel_spec.linux import syscalls
from kernel_spec.sandbox.policy.errors import SandboxError
from kernel_spec.sandbox.policy.plan import IDENTITY, LANDLOCK, MOUNT_NAMESPACE, SandboxPlan

EXECUTE: Final = 1 << 0
WRITE_FILE: Final = 1 << 1
READ_FILE: Final = 1 << 2
READ_DIR: Final = 1 << 3
REMOVE_DIR: Final = 1 << 4
REMOVE_FILE: Final = 1 << 5
MAKE_CHAR: Final = 1 << 6
MAKE_DIR: Final = 1 << 7
MAKE_REG: Final = 1 << 8
MAKE_SOCK: Final = 1 << 9
MAKE_FIFO: Final = 1 << 10
MAKE_BLOCK: Final = 1 << 11
MAKE_SYM: Final = 1 << 12
REFER: Final = 1 << 13
TRUNCATE: Final = 1 << 14
IOCTL_DEV: Final = 1 << 15
RESOLVE_UNIX: Final = 1 << 16

#: Number of file rights known to each ABI, from the header's log; a later ABI knows at least as many.
_FILE_RIGHTS_BY_ABI: Final = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16, 6: 16, 7: 16, 8: 16, 9: 17}
_NETWORK_RIGHTS: Final = 0b11  # bind and connect of TCP, ABI 4
_SCOPES: Final = 0b11  # abstract unix sockets and signals, ABI 6
ABI_NETWORK: Final = 4
ABI_SCOPES: Final = 6
ABI_PATH_SOCKETS: Final = 9

READ_ONLY: Final = EXECUTE | READ_FILE | READ_DIR
READ_INPUTS: Final = READ_FILE | READ_DIR
DEVICE: Final = READ_FILE | WRITE_FILE | TRUNCATE | IOCTL_DEV
WORKSPACE: Final = ((1 << 17) - 1) & ~(MAKE_CHAR | MAKE_BLOCK | IOCTL_DEV)
#: sem_open and shm_open of the C library: make, link, open and unlink by name, without seeing other names.
SHARED_MEMORY: Final = READ_FILE | WRITE_FILE | MAKE_REG | REMOVE_FILE | TRUNCATE
#: The rights that apply to a file that is not a directory; Linux refuses a rule with others.
_FOR_FILES: Final = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV | RESOLVE_UNIX


#: The control groups of a process.
_MEMBERSHIP: Final = "/proc/self/cgroup"
#: Limits of a control group, of version 2 and version 1, below the mount point of each.
_GROUP_LIMITS: Final = (
    *(("", "cpu.max"), ("", "memory.max"), ("/memory", "memory.limit_in_bytes")),
    *(("/cpu", "cpu.cfs_quota_us"), ("/cpu", "cpu.cfs_period_us")),
)


@dataclass(frozen=True, slots=True)
class PathRule:
    """A path and the rights on it and on everything beneath it.

    An `optional` path may be absent. A path that `stays_open` is open until the process ends: Linux makes the file of a
    process in /proc anew when it has dropped it from its cache, and the rule does not apply to the new one.
    """

    path: str
    access: int
    optional: bool = True
    stays_open: bool = False


def abi() -> int:
    """Return the ABI of the running Linux, 0 where Landlock is absent or switched off."""
    try:
        return syscalls.landlock_abi()
    except OSError:
        return 0


def rules_of(plan: SandboxPlan) -> tuple[PathRule, ...]:
    """Return the rules of a plan, with paths as the kernel process sees them."""
    if plan.has(MOUNT_NAMESPACE):
        # The job may read all of the private root.
        rules = [PathRule("/", READ_ONLY, optional=False)]
    else:
        rules = [PathRule(path, READ_ONLY) for path in plan.read_only_paths]
        rules += _own_group()
    rules += [PathRule(f"/dev/{name}", DEVICE) for name in ("null", "zero", "full", "random", "urandom")]
    for name in ("ipc", "work", "out"):
        rules.append(PathRule(f"{plan.workspace_dir}/{name}", WORKSPACE, optional=False))
    rules.append(PathRule(f"{plan.workspace_dir}/inputs", READ_INPUTS, optional=False))
    if plan.has(MOUNT_NAMESPACE):
        rules += [PathRule("/tmp", WORKSPACE), PathRule("/dev/shm", WORKSPACE)]  # noqa: S108 - private
    elif plan.has(IDENTITY) and plan.identity is not None:
        # Shared with the host, but files there belong to the workspace's uid and are removed with the workspace.
        rules.append(PathRule("/dev/shm", SHARED_MEMORY))  # noqa: S108
    return tuple(rules)


def _own_group() -> Iterator[PathRule]:
    """Yield rules for the files about the control groups of this process, without which DuckDB opens no database.

    A process that the job starts has another file in /proc, which stays closed.
    """
    try:
        lines = Path(_MEMBERSHIP).read_text().splitlines()
    except OSError:  # /proc is absent, or of another pid namespace
        return
    yield PathRule(_MEMBERSHIP, READ_FILE, stays_open=True)
    for group in {line.split(":", 2)[2].rstrip("/") for line in lines}:
        for controller, name in _GROUP_LIMITS:
            yield PathRule(f"/sys/fs/cgroup{controller}{group}/{name}", READ_FILE)


def apply(plan: SandboxPlan) -> None:
    """Open the paths, build the ruleset and enter it.

    Raises
    ------
    SandboxError
        See `prepare` and `enter`.
    """
    enter(prepare(rules_of(plan), allow_network=plan.opens_sockets))


def prepare(rules: tuple[PathRule, ...], *, allow_network: bool) -> int:
    """Return the descriptor of a new ruleset; call it before a change of user, while all paths can be opened.

    Raises
    ------
    SandboxError
        Landlock is absent, or a required path does not exist.
    """
    version = abi()
    if version == 0:
        raise SandboxError(LANDLOCK, "this version of Linux does not have it")
    handled = _file_rights(version)
    try:
        ruleset_fd = syscalls.landlock_ruleset(_attributes(version, handled, allow_network=allow_network))
    except OSError as error:
        raise SandboxError(LANDLOCK, str(error)) from error
    try:
        for rule in rules:
            _allow(ruleset_fd, rule, handled)
    except BaseException:
        os.close(ruleset_fd)
        raise
    return ruleset_fd


def enter(ruleset_fd: int) -> None:
    """Restrict the calling thread for good and close the ruleset; no other thread may exist yet.

    Raises
    ------
    SandboxError
        no_new_privs is not set, or 16 rulesets are stacked already.
    """
    try:
        syscalls.landlock_restrict_self(ruleset_fd)
    except OSError as error:
        raise SandboxError(LANDLOCK, str(error)) from error
    finally:
        os.close(ruleset_fd)


def _file_rights(version: int) -> int:
    known = max(number for number in _FILE_RIGHTS_BY_ABI if number <= version)
    return (1 << _FILE_RIGHTS_BY_ABI[known]) - 1


def _attributes(version: int, handled: int, *, allow_network: bool) -> bytes:
    """Return struct landlock_ruleset_attr, as long as this ABI knows it."""
    attributes = struct.pack("=Q", handled)
    if version >= ABI_NETWORK:
        attributes += struct.pack("=Q", 0 if allow_network else _NETWORK_RIGHTS)
    if version >= ABI_SCOPES:
        attributes += struct.pack("=Q", _SCOPES)
    return attributes


def _allow(ruleset_fd: int, rule: PathRule, handled: int) -> None:
    try:
        path_fd = os.open(rule.path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError as error:
        if rule.optional:
            return
        raise SandboxError(LANDLOCK, f"{rule.path} does not exist") from error
    except OSError as error:
        raise SandboxError(LANDLOCK, f"cannot open {rule.path}: {error.strerror}") from error
    try:
        access = rule.access & handled
        if not stat.S_ISDIR(os.fstat(path_fd).st_mode):
            access &= _FOR_FILES
        syscalls.landlock_allow_path(ruleset_fd, access, path_fd)
    except OSError as error:
        raise SandboxError(LANDLOCK, f"rule for {rule.path}: {error}") from error
    finally:
        if not rule.stays_open:
            os.close(path_fd)
