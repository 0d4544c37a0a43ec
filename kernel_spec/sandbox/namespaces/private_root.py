"""A root directory of the job's own: its readable paths, its workspace, an empty /tmp and /dev/shm, nothing else.

Every path keeps its name, so paths that were computed outside are right inside. The directories on the way are new and
empty; an interpreter beneath a directory that only root may enter (``/root/.pyenv``) is therefore reachable for the
workspace's user here, while its neighbours are not.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Final

from kernel_spec.linux import syscalls
from kernel_spec.sandbox.layers import readable_paths
from kernel_spec.sandbox.policy.errors import SandboxError
from kernel_spec.sandbox.policy.plan import MOUNT_NAMESPACE, PID_NAMESPACE, SandboxPlan

_DEVICES: Final = ("null", "zero", "full", "random", "urandom")
_LINKS: Final = (
    # relative, because a workspace below it is attached while the old root is still in use
    ("/var/tmp", "../tmp"),  # noqa: S108
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
)
_EMPTY_DIRECTORIES: Final = ("/proc", "/tmp", "/var", "/dev/shm", "/run")  # noqa: S108 - inside the private root
_SCRATCH: Final = ("/tmp", "/dev/shm")  # noqa: S108
_READ_ONLY: Final = syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV
_WORKSPACE: Final = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV


def scratch_bytes(plan: SandboxPlan) -> int:
    """Return the size of each private tmpfs (/tmp, /dev/shm); their pages count as the job's memory."""
    return min(plan.limits.disk_bytes, plan.limits.memory_bytes // 4)


def build(plan: SandboxPlan) -> str:
    """Build the root in the current, private mount namespace and return its path; the old root is still in use.

    Raises
    ------
    SandboxError
        A mount was refused or a required path does not exist.
    """
    try:
        return _build(plan)
    except OSError as error:
        raise SandboxError(MOUNT_NAMESPACE, f"private root: {error}") from error


def _build(plan: SandboxPlan) -> str:
    syscalls.mount("none", "/", "none", syscalls.MS_REC | syscalls.MS_PRIVATE)
    # Copied before anything is mounted in it: the new root is built in its work directory.
    workspace_tree = syscalls.clone_mount(plan.workspace_dir, recursive=True)
    base = f"{plan.workspace_dir}/work"
    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV
    syscalls.mount("tmpfs", base, "tmpfs", flags, "size=1m,nr_inodes=4096,mode=755")
    previous = os.umask(0o022)
    try:
        _make_skeleton(base, plan)
        links, binds = readable_paths.layout(plan.read_only_paths)
        for path in binds:
            _bind(path, base + path, _READ_ONLY)
        for place, target in links:
            os.makedirs(_parent(base + place), exist_ok=True)  # noqa: PTH103
            os.symlink(target, base + place)  # noqa: PTH211
        for name in _DEVICES:
            # Without NODEV: jobs open these.
            _bind(f"/dev/{name}", f"{base}/dev/{name}", syscalls.MOUNT_ATTR_NOSUID)
        os.makedirs(base + plan.workspace_dir, exist_ok=True)  # noqa: PTH103
    finally:
        os.umask(previous)
    _attach(workspace_tree, base + plan.workspace_dir, _WORKSPACE)
    return base


def _make_skeleton(base: str, plan: SandboxPlan) -> None:
    for directory in _EMPTY_DIRECTORIES:
        os.makedirs(base + directory, exist_ok=True)  # noqa: PTH103
    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV
    options = f"size={scratch_bytes(plan)},nr_inodes=20000,mode=1777"
    for directory in _SCRATCH:
        syscalls.mount("tmpfs", base + directory, "tmpfs", flags, options)
    for place, target in _LINKS:
        os.symlink(target, base + place)  # noqa: PTH211


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _bind(path: str, target: str, attributes: int) -> None:
    """Show `path` at `target`, making an empty directory or file to mount on."""
    if not os.path.exists(path):  # noqa: PTH110 - os.path throughout: thirty times for each kernel
        return
    if os.path.isdir(path):  # noqa: PTH112
        os.makedirs(target, exist_ok=True)  # noqa: PTH103
    else:
        os.makedirs(_parent(target), exist_ok=True)  # noqa: PTH103
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
    _attach(syscalls.clone_mount(path, recursive=True), target, attributes)


def _attach(tree_fd: int, target: str, attributes: int) -> None:
    try:
        syscalls.restrict_mount(tree_fd, attributes, recursive=True)
        syscalls.attach_mount(tree_fd, target)
    finally:
        os.close(tree_fd)


def mount_proc(base: str) -> None:
    """Mount a read-only /proc of the caller's pid namespace in the root at `base`, without its first process.

    The first process is the init, whose other namespaces are the host's: its ``net`` lists the host's sockets and
    connections, and ``mountinfo`` the host's mounts, and reading these needs no right over the process. A security
    module may refuse to hide it: SELinux requires a right of its own for a mount on the directory of a process. This is
    no error here; the probe tests whether the init is visible.

    Only a process in the pid namespace can do this, and in a user namespace only while the old /proc is still visible
    in the mount namespace: Linux checks that the new one uncovers nothing. So call it before `turn_into_root`.

    Raises
    ------
    SandboxError
        Linux refused, as it does in a user namespace of a container whose own /proc is masked.
    """
    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC | syscalls.MS_RDONLY
    try:
        syscalls.mount("proc", f"{base}/proc", "proc", flags)
    except OSError as error:
        raise SandboxError(PID_NAMESPACE, f"private /proc: {error}") from error
    with suppress(OSError):
        syscalls.mount("tmpfs", f"{base}/proc/1", "tmpfs", flags, "size=4k,nr_inodes=1,mode=555")


def turn_into_root(base: str) -> None:
    """Make the root at `base` the root of all processes of the mount namespace and detach the old one.

    Raises
    ------
    SandboxError
        Linux refused.
    """
    try:
        os.chdir(base)
        # pivot_root(2), notes: with both arguments "." the old root lies on top of the new one, to be detached.
        syscalls.pivot_root(".", ".")
        syscalls.unmount(".", syscalls.MNT_DETACH)
        os.chdir("/")
        root_fd = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            syscalls.restrict_mount(root_fd, syscalls.MOUNT_ATTR_RDONLY, recursive=False)
        finally:
            os.close(root_fd)
    except OSError as error:
        raise SandboxError(MOUNT_NAMESPACE, f"private root: {error}") from error
