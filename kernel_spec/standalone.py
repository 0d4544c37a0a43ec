"""A sandboxed kernel for front ends that run ``kernel.json``'s command themselves, without a kernel provisioner.

The front end has chosen the socket paths or the TCP ports and waits for this process. So this process stays outside of
the sandbox, has a launcher start the kernel in a temporary seat, and puts links to the seat's sockets where the front
end looks for them (connect(2) follows links), or a relay (VS Code speaks tcp only). It forwards signals and ends as the
kernel ended.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from kernel_spec.companion import DEFAULT_COMMAND, Companion
from kernel_spec.launcher_process import LauncherError, LauncherProcess
from kernel_spec.limits import notebook_limits
from kernel_spec.messages import ExitReport, Kill, Reserve, SeatInfo, Signal, Start
from kernel_spec.options import LauncherOptions
from kernel_spec.relay import relayed

CHANNELS = {"shell": 1, "iopub": 2, "stdin": 3, "control": 4, "hb": 5}
START_SECONDS = 40.0
ANSWER_SECONDS = 12.0
_EXIT_REFUSED = 2
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StandaloneLauncher:
    """A launcher for one kernel of one front end, spoken to with blocking calls.

    It has one seat in a temporary directory, and no fork server: importing pandas ahead is no gain for one kernel.
    """

    def __init__(
        self, read_only_paths: tuple[str, ...] = (), *, allow_network: bool = False, allow_loopback: bool = False
    ) -> None:
        # Not in the front end's TMPDIR, which may be long: socket paths have 107 bytes.
        state_dir = tempfile.mkdtemp(prefix="transform-", dir="/tmp")
        Path(state_dir).chmod(0o711)
        options = LauncherOptions(
            state_dir=state_dir,
            seats=1,
            fork_server=False,
            read_only_paths=read_only_paths,
            temporary=True,
            allow_network=allow_network,
            allow_loopback=allow_loopback,
        )
        try:
            self._process = LauncherProcess(options)
        except LauncherError:
            # The launcher removes it when it gets as far.
            if Path(state_dir).exists():
                Path(state_dir).rmdir()
            raise
        self._number = 0
        self.pidfd = -1

    def reserve(self, kernel_id: str) -> SeatInfo:
        """Take the seat."""
        seat: SeatInfo = self._process.ask(Reserve(self.next_id(), kernel_id), ANSWER_SECONDS)[0].seat
        return seat

    def start(self, request: Start, outputs: tuple[int, ...]) -> int:
        """Start the kernel and return its pid; `pidfd` is readable when it has ended."""
        answer, (self.pidfd,) = self._process.ask(request, START_SECONDS, outputs)
        return int(answer.pid)

    def signal(self, kernel_id: str, number: int) -> None:
        """Send a signal to the kernel's process group."""
        self._process.ask(Signal(self.next_id(), kernel_id, number), ANSWER_SECONDS)

    def kill(self, kernel_id: str) -> ExitReport:
        """End everything of the kernel and return how it ended."""
        report: ExitReport = self._process.ask(Kill(self.next_id(), kernel_id), ANSWER_SECONDS)[0].report
        self._close_pidfd()
        return report

    def close(self) -> None:
        """End the launcher and all that is left of the kernel; its directory is gone then."""
        self._close_pidfd()
        self._process.close()

    def next_id(self) -> int:
        """Return a number for a request."""
        self._number += 1
        return self._number

    def _close_pidfd(self) -> None:
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


def write_connection_file(seat: SeatInfo, fields: dict[str, Any]) -> Path:
    """Write the seat's connection file, readable for the kernel and nobody else; the directory passes its group on."""
    path = Path(seat.ipc_dir) / "connection.json"
    own = {"transport": "ipc", "ip": f"{seat.ipc_dir}/k"}
    ports = {f"{name}_port": number for name, number in CHANNELS.items()}
    plain = {name: value.decode() if isinstance(value, bytes) else value for name, value in fields.items()}
    draft = path.with_suffix(".part")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, json.dumps({**plain, **own, **ports}).encode())
        os.fchmod(descriptor, 0o640)
    finally:
        os.close(descriptor)
    draft.replace(path)
    return path


def run_kernel(connection_file: str) -> int:
    """Run a kernel for the front end that wrote `connection_file`; when it has ended, return what to exit with."""
    try:
        fields = json.loads(Path(connection_file).read_text())
        _check(fields)
        return _run(fields)
    except (OSError, ValueError, LauncherError) as error:
        print(f"transform kernel: {error}", file=sys.stderr)  # noqa: T201
        return _EXIT_REFUSED


def _check(fields: dict[str, Any]) -> None:
    if fields.get("transport") not in ("ipc", "tcp"):
        raise ValueError(f"this kernel speaks ipc and, through a relay, tcp, not {fields.get('transport')!r}")
    if fields["transport"] == "ipc" and not Path(str(fields.get("ip", ""))).is_absolute():
        raise ValueError(f"with transport ipc, ip must be an absolute path prefix, not {fields.get('ip')!r}")
    if missing := [name for name in CHANNELS if not isinstance(fields.get(f"{name}_port"), int)]:
        raise ValueError(f"the connection file names no port for {', '.join(missing)}")


def _run(fields: dict[str, Any]) -> int:
    launcher = StandaloneLauncher()
    companion: Companion | None = None
    try:
        seat = launcher.reserve("standalone")
        write_connection_file(seat, fields)
        with _reachable(fields, seat) as kernel_is_there, _signals_as_descriptor() as signals:
            companion = Companion(DEFAULT_COMMAND, seat, None, os.environ)
            request = Start(launcher.next_id(), "standalone", notebook_limits(), style="notebook", has_log=True)
            launcher.start(request, (1, 2, companion.kernel_end))
            companion.hand_over()
            kernel_is_there()
            _forward_until_end(launcher, signals)
            report = launcher.kill("standalone")
    finally:
        launcher.close()
        if companion is not None:
            companion.close()
    return report.return_code if report.return_code >= 0 else 128 - report.return_code


def _forward_until_end(launcher: StandaloneLauncher, signals: int) -> None:
    while True:
        ready, _, _ = select.select([launcher.pidfd, signals], [], [])
        if launcher.pidfd in ready:
            return
        for number in os.read(signals, 64):
            if number in _FORWARDED:
                launcher.signal("standalone", number)


def _reachable(fields: dict[str, Any], seat: SeatInfo) -> AbstractContextManager[Callable[[], None]]:
    """Return what makes the kernel's sockets answer where the front end looks for them."""
    if fields["transport"] == "ipc":
        return _links(fields, seat)
    ports = {int(fields[f"{name}_port"]): f"{seat.ipc_dir}/k-{number}" for name, number in CHANNELS.items()}
    return relayed(str(fields["ip"]), ports)


@contextmanager
def _links(fields: dict[str, Any], seat: SeatInfo) -> Iterator[Callable[[], None]]:
    links = []
    try:
        for name, number in CHANNELS.items():
            link = Path(f"{fields['ip']}-{fields[f'{name}_port']}")
            link.unlink(missing_ok=True)
            link.symlink_to(f"{seat.ipc_dir}/k-{number}")
            links.append(link)
        yield lambda: None
    finally:
        for link in links:
            link.unlink(missing_ok=True)


@contextmanager
def _signals_as_descriptor() -> Iterator[int]:
    readable, writable = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    previous = {number: signal.signal(number, lambda _number, _frame: None) for number in _FORWARDED}
    signal.set_wakeup_fd(writable)
    try:
        yield readable
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in previous.items():
            signal.signal(number, handler)
        os.close(readable)
        os.close(writable)
