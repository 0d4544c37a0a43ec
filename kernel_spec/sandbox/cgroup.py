"""Memory and processes of a whole seat by control groups: version 2 where it is delegated, version 1, or both mixed.

One tree of ours, ``transform-gateway.<stamp>``, lies beneath the group in which this process runs, so that
the limits of a container or service go on holding; each seat has a group in it. On a hybrid machine the controllers
are in version 1 hierarchies, while the unified one has none but still counts CPU time, stops and kills at once.

Everything is done by the launcher. Nothing here is needed in the kernel process.
"""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kernel_spec.limits import Limits
from kernel_spec.sandbox import procfs
from kernel_spec.sandbox.errors import SandboxError
from kernel_spec.sandbox.plan import CGROUP

PREFIX: Final = "transform-gateway."
_CONTROLLERS: Final = ("memory", "pids")
_REMOVE_SECONDS: Final = 2.0
_PAUSE_SECONDS: Final = 0.002


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """A mounted hierarchy and the directory in it beneath which groups may be made."""

    version: int
    controllers: frozenset[str]
    directory: Path


@dataclass(frozen=True, slots=True)
class GroupUsage:
    """What a group has used: peaks and counts since it was made, None where the kernel does not tell."""

    memory_bytes: int | None
    peak_memory_bytes: int | None
    oom_kills: int
    processes: int
    cpu_seconds: float | None


class Group:
    """The groups of one seat, one in each hierarchy in use."""

    def __init__(self, directories: dict[Path, Hierarchy]) -> None:
        self._directories = directories

    @property
    def entrances(self) -> tuple[str, ...]:
        """Paths that a process writes ``0`` to in order to move itself, and so its later children, into the group."""
        return tuple(str(directory / "cgroup.procs") for directory in self._directories)

    def attach(self, pid: int) -> None:
        """Move a process; its children follow, what it has allocated stays accounted where it was.

        Raises
        ------
        SandboxError
            The process is gone or the kernel refused.
        """
        for directory in self._directories:
            _write(directory / "cgroup.procs", pid)

    def pids(self) -> frozenset[int]:
        """Return the processes in the group, as the launcher sees them."""
        found: set[int] = set()
        for directory in self._directories:
            with suppress(OSError):
                found.update(map(int, (directory / "cgroup.procs").read_text().split()))
        return frozenset(found)

    def threads(self) -> frozenset[int]:
        """Return the threads in the group, those that are exiting among them until they are taken apart."""
        for directory, hierarchy in self._directories.items():
            with suppress(OSError):
                name = "cgroup.threads" if hierarchy.version == 2 else "tasks"
                return frozenset(map(int, (directory / name).read_text().split()))
        return frozenset()

    def is_halted(self) -> bool:
        """Return whether nothing in the group can run any more, though it may not have been taken apart yet.

        Two looks. Whatever runs at the second is either new, and then not in the first, or was there, and then not
        exiting: so not even a chain of processes that fork and end at once can hide between the two.
        """
        first = self.threads()
        if not all(map(procfs.is_exiting, first)):
            return False
        return self.threads() <= first

    def freeze(self) -> bool:
        """Ask every thread of the group to stop where it is, until it is killed; return whether a group here can.

        Version 2 only (cgroup.freeze): the kernel of version 1 may let a stopped thread be killed only once it is let
        go on.
        """
        for directory, hierarchy in self._directories.items():
            if hierarchy.version == 2:
                with suppress(SandboxError):
                    _write(directory / "cgroup.freeze", 1)
                    return True
        return False

    def is_frozen(self) -> bool:
        """Return whether every thread of the group has stopped, new ones included (cgroup.events)."""
        for directory, hierarchy in self._directories.items():
            if hierarchy.version == 2:
                with suppress(OSError):
                    return "frozen 1" in (directory / "cgroup.events").read_text()
        return False

    def usage(self) -> GroupUsage:
        """Read the counters."""
        memory = self._first("memory.current", "memory.usage_in_bytes")
        peak = self._first("memory.peak", "memory.max_usage_in_bytes")
        return GroupUsage(
            memory_bytes=memory,
            peak_memory_bytes=peak,
            oom_kills=self._oom_kills(),
            processes=len(self.pids()),
            cpu_seconds=self._cpu_seconds(),
        )

    def kill(self) -> None:
        """Send SIGKILL to every process of the group: at once in version 2, one by one in version 1."""
        for directory, hierarchy in self._directories.items():
            if hierarchy.version == 2:
                with suppress(SandboxError):
                    _write(directory / "cgroup.kill", 1)
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def remove(self, *, deadline_seconds: float = _REMOVE_SECONDS) -> None:
        """Kill what is left and remove the groups.

        Raises
        ------
        SandboxError
            A group still has processes at the deadline.
        """
        deadline = time.monotonic() + deadline_seconds
        for directory in self._directories:
            while not _removed(directory):
                if time.monotonic() > deadline:
                    raise SandboxError(CGROUP, f"{directory} is still busy after {deadline_seconds:g} s")
                self.kill()
                time.sleep(_PAUSE_SECONDS)

    def _first(self, *names: str) -> int | None:
        for directory in self._directories:
            for name in names:
                with suppress(OSError, ValueError):
                    return int((directory / name).read_text())
        return None

    def _oom_kills(self) -> int:
        for directory in self._directories:
            for name in ("memory.events", "memory.oom_control"):
                with suppress(OSError, ValueError):
                    lines = (directory / name).read_text().splitlines()
                    return int(dict(line.split() for line in lines)["oom_kill"])
        return 0

    def _cpu_seconds(self) -> float | None:
        for directory in self._directories:
            with suppress(OSError, ValueError, KeyError):
                lines = (directory / "cpu.stat").read_text().splitlines()
                return int(dict(line.split() for line in lines)["usage_usec"]) / 1e6
        return None


class Tree:
    """Our tree: makes the groups of seats, sweeps what a predecessor left, goes away with the launcher."""

    def __init__(self, stamp: str, hierarchies: tuple[Hierarchy, ...]) -> None:
        self.hierarchies = hierarchies
        self._roots = {h.directory / f"{PREFIX}{stamp}": h for h in hierarchies}
        self._locks = [_lock(root) for root in self._roots]

    @property
    def bounds_memory(self) -> bool:
        """Whether groups of this tree have a memory limit."""
        return any("memory" in hierarchy.controllers for hierarchy in self.hierarchies)

    def create(self, name: str, limits: Limits, *, extra_processes: int = 1) -> Group:
        """Make the group of a seat with its limits.

        Parameters
        ----------
        name
            A directory name, the seat's.
        limits
            Memory and processes are taken from here.
        extra_processes
            Processes in the group that are ours, such as the init of its pid namespace.

        Raises
        ------
        SandboxError
            The group could not be made or a limit not set; nothing of it is left then.
        """
        directories: dict[Path, Hierarchy] = {}
        group = Group(directories)
        try:
            for root, hierarchy in self._roots.items():
                directory = root / name
                directory.mkdir(parents=True, exist_ok=True)
                directories[directory] = hierarchy
                _limit(directory, hierarchy, limits, extra_processes)
        except (OSError, SandboxError) as error:
            group.remove()
            if isinstance(error, SandboxError):
                raise
            raise SandboxError(CGROUP, f"cannot make group {name}: {error}") from error
        return group

    def sweep(self) -> int:
        """Kill and remove every group in the tree, as after a launcher that was killed; return how many."""
        names = {entry.name for root in self._roots for entry in _subdirectories(root)}
        for name in names:
            Group({root / name: h for root, h in self._roots.items() if (root / name).is_dir()}).remove()
        return len(names)

    def close(self) -> None:
        """Sweep and remove the tree itself.

        Raises
        ------
        SandboxError
            Something of it still lives.
        """
        self.sweep()
        while self._locks:
            if (lock := self._locks.pop()) is not None:
                os.close(lock)
        for root in self._roots:
            if not _removed(root):
                raise SandboxError(CGROUP, f"cannot remove {root}")


def open_tree(stamp: str) -> Tree | None:
    """Return a tree that can bound memory and processes, made and tried; None where no hierarchy lets us.

    `stamp` names the installation (one state directory), so that a successor finds the leftovers and two gateways
    on one machine do not meet.
    """
    usable: list[Hierarchy] = []
    for hierarchy in find_hierarchies():
        root = hierarchy.directory / f"{PREFIX}{stamp}"
        try:
            root.mkdir(exist_ok=True)
            if hierarchy.version == 2 and hierarchy.controllers:
                _write(root / "cgroup.subtree_control", " ".join(f"+{c}" for c in hierarchy.controllers))
        except (OSError, SandboxError):
            _removed(root)
            continue
        usable.append(hierarchy)
    tree = Tree(stamp, tuple(usable))
    if not tree.bounds_memory:
        for hierarchy in usable:
            _removed(hierarchy.directory / f"{PREFIX}{stamp}")
        return None
    return tree


def sweep_abandoned() -> int:
    """Remove the empty trees of launchers that were killed and whose state directory no gateway came back to.

    A launcher holds a lock on its tree as long as it lives, so one that can be locked is nobody's; one in which
    something still runs stays for its successor to end.
    """
    count = 0
    for hierarchy in find_hierarchies():
        for root in _subdirectories(hierarchy.directory):
            lock = _lock(root) if root.name.startswith(PREFIX) else None
            if lock is None:
                continue
            for group in _subdirectories(root):
                _removed(group)
            count += _removed(root)
            os.close(lock)
    return count


def _lock(root: Path) -> int | None:
    """Lock a tree and return the descriptor that holds it; None where another launcher does, or there is no tree."""
    try:
        descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def find_hierarchies(mounts: str | None = None, membership: str | None = None) -> tuple[Hierarchy, ...]:
    """Return the hierarchies that are mounted and of use, memory first.

    Parameters
    ----------
    mounts, membership
        Texts of ``/proc/self/mountinfo`` and ``/proc/self/cgroup``; read when absent.
    """
    if mounts is None:
        mounts = Path("/proc/self/mountinfo").read_text()
    if membership is None:
        membership = Path("/proc/self/cgroup").read_text()
    own = _own_groups(membership)
    found = [h for line in mounts.splitlines() if (h := _hierarchy(line, own)) is not None]
    return tuple(sorted(found, key=lambda h: ("memory" not in h.controllers, h.version)))


def _own_groups(membership: str) -> dict[str, str]:
    """Map each controller (version 2: the empty name) to the path of our group."""
    own: dict[str, str] = {}
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        own.update(dict.fromkeys(controllers.split(","), path))
    return own


def _hierarchy(mount: str, own: dict[str, str]) -> Hierarchy | None:
    # mountinfo: id parent major:minor root mountpoint options ... - type source superoptions
    before, _, after = mount.partition(" - ")
    kind, _, options = after.partition(" ")
    fields = before.split()
    if len(fields) < 5 or kind not in ("cgroup", "cgroup2"):
        return None
    root, mountpoint = fields[3], fields[4]
    if kind == "cgroup2":
        directory = _visible(root, mountpoint, own.get("", "/"))
        return Hierarchy(2, _delegated(directory), directory)
    controllers = frozenset(options.rpartition(" ")[2].split(",")) & set(_CONTROLLERS)
    if not controllers:
        return None
    return Hierarchy(1, controllers, _visible(root, mountpoint, own.get(min(controllers), "/")))


def _visible(root: str, mountpoint: str, path: str) -> Path:
    """Return where our group is in the mount: a container may see a part of the hierarchy only."""
    relative = path[len(root) :] if root != "/" and path.startswith(root) else path
    directory = Path(mountpoint + "/" + relative.strip("/"))
    return directory if directory.is_dir() else Path(mountpoint)


def _delegated(directory: Path) -> frozenset[str]:
    """Return the controllers that a child of this version 2 group gets, enabling them if that is possible.

    A group with processes of its own cannot hand out controllers (the "no internal processes" rule). A service started
    with ``Delegate=yes`` or a container with its own tree has to put itself into a leaf first, see the manual.
    """
    try:
        available = set((directory / "cgroup.controllers").read_text().split()) & set(_CONTROLLERS)
        enabled = set((directory / "cgroup.subtree_control").read_text().split())
        for controller in available - enabled:
            with suppress(SandboxError):
                _write(directory / "cgroup.subtree_control", f"+{controller}")
        return frozenset(available & set((directory / "cgroup.subtree_control").read_text().split()))
    except OSError:
        return frozenset()


def move_into_leaf(hierarchy: Hierarchy, name: str = f"{PREFIX}self") -> frozenset[str]:
    """Move all processes of our version 2 group into a leaf so that it may hand out controllers; return those.

    For a container or service whose group is ours alone; the caller decides that it is.

    Raises
    ------
    SandboxError
        A process could not be moved.
    """
    leaf = hierarchy.directory / name
    try:
        leaf.mkdir(exist_ok=True)
        for pid in (hierarchy.directory / "cgroup.procs").read_text().split():
            _write(leaf / "cgroup.procs", pid)
    except OSError as error:
        raise SandboxError(CGROUP, f"cannot move into {leaf}: {error}") from error
    return _delegated(hierarchy.directory)


def _limit(directory: Path, hierarchy: Hierarchy, limits: Limits, extra_processes: int) -> None:
    if "memory" in hierarchy.controllers and hierarchy.version == 2:
        _write(directory / "memory.max", limits.memory_bytes)
        # Swap is memory that the limit would not see; the file is absent where there is no swap accounting.
        with suppress(SandboxError):
            _write(directory / "memory.swap.max", 0)
        with suppress(SandboxError):
            _write(directory / "memory.oom.group", 1)
    elif "memory" in hierarchy.controllers:
        _write(directory / "memory.limit_in_bytes", limits.memory_bytes)
        with suppress(SandboxError):
            _write(directory / "memory.memsw.limit_in_bytes", limits.memory_bytes)
    if "pids" in hierarchy.controllers:
        _write(directory / "pids.max", limits.processes + extra_processes)


def _subdirectories(directory: Path) -> Iterator[Path]:
    with suppress(OSError):
        yield from [entry for entry in directory.iterdir() if entry.is_dir()]


def _removed(directory: Path) -> bool:
    try:
        directory.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _write(path: Path, value: int | str) -> None:
    # O_WRONLY without O_CREAT: a controller that is not there must not become a file of ours.
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, str(value).encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise SandboxError(CGROUP, f"cannot write {value} to {path}: {error.strerror}") from error
