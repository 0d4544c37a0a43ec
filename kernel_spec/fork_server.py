"""The fork server: a process that has imported everything a job needs, and forks kernels from it.

Started by the launcher as ``python -P -m kernel_spec.fork_server <control descriptor>``. It has one thread, no ZeroMQ
context, no event loop, no connection but the control socket, and no secret, because every kernel is a copy of it; it
checks the first three before each fork and refuses otherwise. It never reads what a job sends: kernels are the
launcher's children, and the only thing that it waits for is a middle process, where a fork needs one.
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

from kernel_spec import set_aside, siblings, warmth
from kernel_spec.becoming import become_kernel, become_middle
from kernel_spec.channel import Channel, ChannelClosed, ChannelError, close_all
from kernel_spec.messages import (
    FORK_REQUESTS,
    GATE_ORDERS,
    Fork,
    Forked,
    ForkRefused,
    ForkServerReady,
    ForkServerUnfit,
    StartFailed,
)
from kernel_spec.pages import Pages, written_by
from kernel_spec.sandbox import SandboxError, children_in, dumpable
from kernel_spec.sandbox.plan import PID_NAMESPACE
from kernel_spec.self_test import is_whole, live_as_a_kernel, self_test


class _InKernel(TypedDict):
    early: Callable[[], None]
    warm: Callable[[], None]


class ForkServer:
    """Answers `Fork` requests on one channel until it is closed."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._expected_descriptors: frozenset[int] = frozenset()
        self._pages = Pages()
        self._launcher_pidfd = os.pidfd_open(os.getppid())

    @property
    def _in_kernel(self) -> _InKernel:
        return {"early": self._pages.copy, "warm": warmth.renew_after_fork}

    def run(self, modules: Sequence[str]) -> None:
        """Import, test, say `ForkServerReady` or `ForkServerUnfit`, and serve."""
        started = time.monotonic()
        apart = set_aside.installed(modules)
        # At once: it has the other processor while all else is imported here.
        trial = set_aside.Trial(apart)
        missing = warmth.import_all(modules)
        apart = apart if trial.passed() else ()
        for package in apart:
            set_aside.set_aside(package)
        imported = time.monotonic()
        self._expected_descriptors = frozenset(_open_descriptors())
        # Freezing first: the self-test's child then shares pages as a kernel will.
        warmth.freeze()
        reason = self.unfit() or self_test(os.fork)
        if reason is not None:
            self._channel.send(ForkServerUnfit(reason))
            return
        self._pages = _find_pages()
        self._channel.send(
            ForkServerReady(
                import_seconds=imported - started,
                self_test_seconds=time.monotonic() - imported,
                modules=len(sys.modules),
                resident_bytes=_resident_bytes(),
                missing=missing,
                set_aside=apart,
                copied_pages=self._pages.count,
                forks_directly=_can_fork_directly(),
            )
        )
        with contextlib.suppress(ChannelClosed):
            while True:
                self._serve_one()

    def unfit(self) -> str | None:
        """Return why this process must not fork, or None.

        A thread's locks would be copied in whatever state they are, with nobody to release them; a descriptor that
        nobody accounts for would be open in every kernel.
        """
        threads = _thread_names()
        if len(threads) != 1:
            return f"{len(threads)} threads: {', '.join(sorted(threads))}"
        surplus = set(_open_descriptors()) - self._expected_descriptors
        if surplus:
            return f"unexpected descriptors: {', '.join(map(_describe_descriptor, sorted(surplus)))}"
        return None

    def _serve_one(self) -> None:
        reason = self.unfit()
        try:
            message, descriptors = self._channel.receive()
        except ChannelError as error:
            print(f"fork server: refused a packet: {error}", file=sys.stderr, flush=True)  # noqa: T201
            return
        try:
            # gate, lifeline or init, outputs
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
            fork = self._fork_directly if message.is_direct else self._fork_middle
            pid = fork(message, descriptors)
        except OSError as error:
            self._channel.send(ForkRefused(message.number, f"fork: {error}"))
            return
        self._channel.send(Forked(message.number, pid))

    def _fork_directly(self, message: Fork, descriptors: list[int]) -> int:
        gate, init_pidfd, *outputs = descriptors
        has_init = PID_NAMESPACE in message.plan.layers
        try:
            with children_in(init_pidfd) if has_init else contextlib.nullcontext():
                kernel = siblings.fork()
                if kernel == 0:
                    become_kernel(message.plan, gate, self._launcher_pidfd, outputs, **self._in_kernel)
        except SandboxError as error:
            # Of this kernel alone: its init has ended.
            _tell_failure(gate, error)
            return 0
        return kernel

    def _fork_middle(self, message: Fork, descriptors: list[int]) -> int:
        middle = os.fork()
        if middle == 0:
            gate, lifeline, *outputs = descriptors
            become_middle(message.plan, gate, lifeline, outputs, **self._in_kernel)
        os.waitpid(middle, 0)
        return 0


def _tell_failure(gate: int, error: SandboxError) -> None:
    # Nobody listens when the start was given up, which is also what most often ends an init.
    with (
        contextlib.closing(Channel(socket.socket(fileno=os.dup(gate)), accepts=GATE_ORDERS)) as channel,
        contextlib.suppress(ChannelClosed),
    ):
        channel.send(StartFailed("namespaces", str(error)))


def _can_fork_directly() -> bool:
    """Return whether kernels can be forked as the launcher's children; why not, or what went wrong, is in the log."""
    if not siblings.is_possible():
        reason: str | None = "this system does not tell what that takes"
    else:
        reason = self_test(lambda: siblings.fork(as_sibling=False)) or _try_sibling()
    if reason is not None:
        print(f"fork server: a middle process will fork each kernel: {reason}", file=sys.stderr, flush=True)  # noqa: T201
    return reason is None


def _try_sibling() -> str | None:
    """Fork a child of the launcher, which reaps it; return why that is refused, or None."""
    try:
        if siblings.fork() == 0:
            os._exit(0)
    except OSError as error:
        return str(error)
    return None


def _find_pages() -> Pages:
    """Return what each kernel writes to, as a child shows that lives as one; none for a list without a kernel."""
    if not is_whole():
        return Pages()
    try:
        with tempfile.TemporaryDirectory(prefix="tg-") as directory:
            return written_by(lambda: live_as_a_kernel(directory))
    except OSError as error:
        # Without a place for a moment's files each kernel rehearses a job instead.
        print(f"fork server: no pages are copied ahead: {error}", file=sys.stderr, flush=True)  # noqa: T201
        return Pages()


def _thread_names() -> list[str]:
    names = []
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):
            names.append((thread / "comm").read_text().strip())
    return names


def _open_descriptors() -> list[int]:
    with os.scandir("/proc/self/fd") as entries:
        numbers = [int(entry.name) for entry in entries]
    # The descriptor of the listing itself is in the list and closed by now.
    return [number for number in numbers if _is_open(number)]


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


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
    options = parser.parse_args(arguments)
    os.set_inheritable(options.control, False)
    channel = Channel(socket.socket(fileno=options.control), accepts=FORK_REQUESTS)
    dumpable.apply()
    ForkServer(channel).run(options.modules or warmth.DEFAULT_MODULES)
    return 0


if __name__ == "__main__":
    sys.exit(main())
