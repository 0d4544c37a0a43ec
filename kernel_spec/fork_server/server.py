"""The fork server: a process that has imported everything a job needs, and forks kernels from it.

Started by the launcher as ``python -P -m kernel_spec.fork_server <control descriptor>``. It has one thread, no ZeroMQ
context, no event loop, no connection but the control socket, and no secret, because every kernel is a copy of it; it
checks the first three before each fork and refuses otherwise. It never reads what a job sends: kernels are the
launcher's children, and it waits for no process but an intermediate one, where a fork needs that.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict

from kernel_spec.fork_server import clone_parent, deferred_import, preload
from kernel_spec.fork_server.huge_pages import collapse
from kernel_spec.fork_server.prefault import PageRanges, pages_dirtied_by
from kernel_spec.fork_server.self_test import REHEARSAL_PREFIX, has_kernel_modules, self_test, simulate_kernel
from kernel_spec.kernel.added_packages import append_to_path
from kernel_spec.kernel.child import double_fork, run_kernel
from kernel_spec.linux.descriptors import open_descriptors
from kernel_spec.protocol.channel import Channel, ChannelClosed, ChannelError, close_all
from kernel_spec.protocol.messages import (
    BARRIER_ORDERS,
    FORK_REQUESTS,
    Fork,
    Forked,
    ForkRefused,
    ForkServerNotForkable,
    ForkServerReady,
    StartFailed,
)
from kernel_spec.sandbox import SandboxError, children_in
from kernel_spec.sandbox.layers import dumpable, readable_paths
from kernel_spec.sandbox.policy.plan import MOUNT_NAMESPACE, PID_NAMESPACE

#: Links of the host, such as /etc/resolv.conf, may change while this process lives.
_LAYOUT_SECONDS = 30.0
#: From the eighth call on Python 3.11 replaces a function's instructions by faster ones (PEP 659). A rehearsal takes
#: 6 ms, once; eight of them save 0.14 ms of a small job, and 0.3 ms of one that uses more of pandas.
_REHEARSALS = 8


class _InKernel(TypedDict):
    prefault: Callable[[], None]
    after_fork: Callable[[], None]


class ForkServer:
    """Answers `Fork` requests on one channel until it is closed."""

    def __init__(self, channel: Channel, scratch_dir: str | None = None) -> None:
        self._channel = channel
        self._scratch_dir = scratch_dir
        self._expected_descriptors: frozenset[int] = frozenset()
        self._pages = PageRanges()
        self._laid_out_at = time.monotonic()
        self._launcher_pidfd = os.pidfd_open(os.getppid())

    @property
    def _in_kernel(self) -> _InKernel:
        return {"prefault": self._pages.prefault, "after_fork": preload.renew_after_fork}

    def run(self, modules: Sequence[str]) -> None:
        """Import, test, say `ForkServerReady` or `ForkServerNotForkable`, and serve."""
        started = time.monotonic()
        apart = deferred_import.installed(modules)
        # First: it runs on another processor while this process imports the other modules.
        trial = deferred_import.Trial(apart)
        try:
            missing = preload.import_all(modules, rehearsals=_REHEARSALS, scratch_dir=self._scratch_dir)
        except OSError as error:
            # The disk is full: a fork server without a rehearsal would make kernels slower for as long as it lives.
            self._channel.send(ForkServerNotForkable(f"modules were not imported, or no job was rehearsed: {error}"))
            return
        apart = apart if trial.passed() else ()
        for package in apart:
            deferred_import.defer(package)
        imported = time.monotonic()
        self._expected_descriptors = frozenset(open_descriptors())
        # Before the self-test, so that its child shares pages as a kernel will.
        preload.freeze()
        reason = self.not_forkable_reason() or self_test(os.fork)
        if reason is not None:
            self._channel.send(ForkServerNotForkable(reason))
            return
        collapse()
        self._pages = _find_dirtied_pages(self._scratch_dir)
        self._channel.send(
            ForkServerReady(
                import_seconds=imported - started,
                resident_bytes=_resident_bytes(),
                missing=missing,
                deferred=apart,
                prefault_pages=self._pages.count,
                can_clone_parent=_can_fork_directly(),
            )
        )
        with contextlib.suppress(ChannelClosed):
            while True:
                self._serve_one()

    def not_forkable_reason(self) -> str | None:
        """Return why this process must not fork, or None.

        The locks of another thread would be copied in their current state and never be released; an unexpected
        descriptor would be open in every kernel.
        """
        if len(os.listdir("/proc/self/task")) != 1:  # noqa: PTH208 - for each fork
            threads = _thread_names()
            return f"{len(threads)} threads: {', '.join(sorted(threads))}"
        surplus = set(open_descriptors()) - self._expected_descriptors
        if surplus:
            return f"unexpected descriptors: {', '.join(map(_describe_descriptor, sorted(surplus)))}"
        return None

    def _serve_one(self) -> None:
        reason = self.not_forkable_reason()
        try:
            message, descriptors = self._channel.receive()
        except ChannelError as error:
            print(f"fork server: refused a packet: {error}", file=sys.stderr, flush=True)  # noqa: T201
            return
        try:
            # barrier, liveness pipe or init, outputs
            expected = 5 if message.plan.has_log else 4
            if len(descriptors) != expected:
                reason = f"{len(descriptors)} descriptors came where {expected} are needed"
            if reason is None:
                self._fork(message, descriptors)
            else:
                self._channel.send(ForkRefused(message.number, reason))
        finally:
            close_all(descriptors)

    def _fork(self, message: Fork, descriptors: list[int]) -> None:
        try:
            if MOUNT_NAMESPACE in message.plan.layers:
                self._lay_out(message.plan.read_only_paths)
            fork = self._fork_directly if message.is_direct else self._fork_intermediate
            pid = fork(message, descriptors)
        except OSError as error:
            self._channel.send(ForkRefused(message.number, f"fork: {error}"))
            return
        self._channel.send(Forked(message.number, pid))

    def _lay_out(self, read_only_paths: tuple[str, ...]) -> None:
        """Put the layout of a private root into the cache, which each kernel inherits."""
        now = time.monotonic()
        if now - self._laid_out_at >= _LAYOUT_SECONDS:
            readable_paths.layout.cache_clear()
            self._laid_out_at = now
        readable_paths.layout(read_only_paths)

    def _fork_directly(self, message: Fork, descriptors: list[int]) -> int:
        barrier, init_pidfd, *outputs = descriptors
        has_init = PID_NAMESPACE in message.plan.layers
        try:
            with children_in(init_pidfd) if has_init else contextlib.nullcontext():
                kernel = clone_parent.fork()
                if kernel == 0:
                    run_kernel(message.plan, barrier, self._launcher_pidfd, outputs, **self._in_kernel)
        except SandboxError as error:
            # A failure of this kernel alone: its init has ended.
            _report_failure(barrier, error)
            return 0
        return kernel

    def _fork_intermediate(self, message: Fork, descriptors: list[int]) -> int:
        intermediate = os.fork()
        if intermediate == 0:
            barrier, liveness_pipe, *outputs = descriptors
            double_fork(message.plan, barrier, liveness_pipe, outputs, **self._in_kernel)
        os.waitpid(intermediate, 0)
        return 0


def _report_failure(barrier: int, error: SandboxError) -> None:
    # The other end is closed if the start was given up, which is also the most frequent end of an init.
    with (
        contextlib.closing(Channel(socket.socket(fileno=os.dup(barrier)), accepts=BARRIER_ORDERS)) as channel,
        contextlib.suppress(ChannelClosed),
    ):
        channel.send(StartFailed("namespaces", str(error)))


def _can_fork_directly() -> bool:
    """Return whether kernels can be forked as the launcher's children; otherwise log the reason."""
    if not clone_parent.is_possible():
        reason: str | None = "this system does not provide what that needs"
    else:
        reason = self_test(lambda: clone_parent.fork(as_sibling=False)) or _try_sibling()
    if reason is not None:
        print(f"fork server: an intermediate process will fork each kernel: {reason}", file=sys.stderr, flush=True)  # noqa: T201
    return reason is None


def _try_sibling() -> str | None:
    """Fork a child of the launcher, which reaps it; return why that is refused, or None."""
    try:
        if clone_parent.fork() == 0:
            os._exit(0)
    except OSError as error:
        return str(error)
    return None


def _find_dirtied_pages(scratch_dir: str | None) -> PageRanges:
    """Return the pages that a child writes to while it boots and runs a job; none if no kernel is preloaded.

    A fork server that is killed meanwhile leaves a directory, which the next launcher removes.
    """
    if not has_kernel_modules():
        return PageRanges()
    try:
        with tempfile.TemporaryDirectory(prefix=REHEARSAL_PREFIX, dir=scratch_dir) as directory:
            return pages_dirtied_by(lambda: simulate_kernel(directory))
    except OSError as error:
        # There is no room for the directory; each kernel rehearses a job instead.
        print(f"fork server: pages are not copied ahead: {error}", file=sys.stderr, flush=True)  # noqa: T201
        return PageRanges()


def _thread_names() -> list[str]:
    names = []
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):
            names.append((thread / "comm").read_text().strip())
    return names


def _describe_descriptor(number: int) -> str:
    try:
        return f"{number} ({Path(f'/proc/self/fd/{number}').readlink()})"
    except OSError:
        return str(number)


def _resident_bytes() -> int:
    with open("/proc/self/statm") as statm:  # noqa: PTH123
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the fork server on the control socket whose descriptor is named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m kernel_spec.fork_server", description=__doc__)
    parser.add_argument("control", type=int, help="descriptor of the control socket")
    parser.add_argument("--module", action="append", dest="modules", help="import this instead of the default list")
    parser.add_argument("--scratch-dir", help="where the files of a rehearsal are made; default: the system's place")
    parser.add_argument("--packages", default="", help="directory of packages that the operator has added")
    options = parser.parse_args(arguments)
    append_to_path(options.packages)
    os.set_inheritable(options.control, False)
    channel = Channel(socket.socket(fileno=options.control), accepts=FORK_REQUESTS)
    dumpable.apply()
    ForkServer(channel, options.scratch_dir).run(options.modules or preload.DEFAULT_MODULES)
    return 0
