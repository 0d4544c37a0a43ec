"""Trials of the layers that end, find, kill and measure processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from kernel_spec.linux import procfs
from kernel_spec.sandbox.accounting import disk, memory_use, processes
from kernel_spec.sandbox.layers import dumpable, identity, parent_death, rlimits
from kernel_spec.sandbox.policy import plan as names
from kernel_spec.sandbox.policy.errors import SandboxError
from kernel_spec.sandbox.policy.plan import SandboxPlan
from kernel_spec.sandbox.probe.trials import Facts

_DEATH_SECONDS = 2.0


def try_parent_death(_plan: SandboxPlan) -> Facts:
    """End a launcher and wait for the end of its kernel, which has a pipe open as long as it lives."""
    reader, writer = os.pipe()
    launcher = os.fork()
    if launcher == 0:
        os.close(reader)
        _launch_and_die(writer)
    os.close(writer)
    os.waitpid(launcher, 0)
    deadline = time.monotonic() + _DEATH_SECONDS
    os.set_blocking(reader, False)
    said = b""
    while time.monotonic() < deadline:
        with suppress(BlockingIOError):
            piece = os.read(reader, 100)
            if not piece:
                if said == b"follows":
                    return {}
                raise SandboxError(names.PARENT_DEATH, said.decode() or "the kernel did not answer")
            said += piece
        time.sleep(0.001)
    raise SandboxError(names.PARENT_DEATH, f"a kernel outlived its launcher by {_DEATH_SECONDS:g} s")


def _launch_and_die(writer: int) -> None:
    ready, tell = os.pipe()
    launcher_pid = os.getpid()
    if os.fork() == 0:
        try:
            parent_death.follow_launcher(launcher_pid, None)
            os.write(writer, b"follows")
            os.close(tell)
            time.sleep(_DEATH_SECONDS * 2)
        except BaseException as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(tell)
    os.read(ready, 1)
    os._exit(0)


def try_processes(plan: SandboxPlan) -> Facts:
    """Find and kill a process of the workspace that has left its session and its parent."""
    processes.become_subreaper()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _become_orphan(plan, writer)
    os.close(writer)
    os.read(reader, 1)
    os.waitpid(child, 0)
    ended = processes.end_workspace(plan.workspace_dir, plan.identity)
    if not ended.pids:
        raise SandboxError(names.PROCESSES, "a process that left its session was not found")
    return {}


def _become_orphan(plan: SandboxPlan, writer: int) -> None:
    try:
        rlimits.apply(plan)
        if plan.identity is not None:
            identity.become(plan.identity)
        dumpable.apply()
        os.setsid()
        if os.fork() == 0:
            os.write(writer, b"x")
            time.sleep(_DEATH_SECONDS)
    finally:
        os._exit(0)


def try_memory_watch(plan: SandboxPlan) -> Facts:
    """Measure a process of the workspace by its proportional share."""
    with _process_of(plan) as child:
        status = procfs.read_status(child)
        found = () if status is None else (status,)
        usage = memory_use.measure(found, limit_bytes=0)
    if usage.memory_bytes == 0:
        raise SandboxError(names.MEMORY_WATCH, "the memory of a process cannot be read")
    if not usage.exact:
        return {"degraded": "memory shared by processes is estimated: their page tables may not be read"}
    return {}


def try_disk_quota(plan: SandboxPlan) -> Facts:
    """Measure the empty workspace, and look for open files of a process of it."""
    disk.measure(plan.workspace_dir)
    with _process_of(plan) as child:
        directory = f"/proc/{child}/fd"
        try:
            os.readlink(f"{directory}/{os.listdir(directory)[0]}")  # noqa: PTH115, PTH208
        except PermissionError:
            return {"degraded": "removed files that a job keeps open do not count: its descriptors may not be read"}
    return {}


@contextmanager
def _process_of(plan: SandboxPlan) -> Iterator[int]:
    """Run a process that waits, with the user of the workspace, and yield its pid."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if plan.identity is not None:
                identity.become(plan.identity)
            dumpable.apply()
            os.write(writer, b"x")
            time.sleep(_DEATH_SECONDS)
        finally:
            os._exit(0)
    try:
        os.read(reader, 1)
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
