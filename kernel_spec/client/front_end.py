"""The launcher of one kernel for one front end of Jupyter, and the connection file of the kernel.

Its calls block, because front ends call from event loops that last for one call. A launcher ends with its front end,
however that ends: it then reads end of file from the front end's socket.
"""

from __future__ import annotations

import json
import os
import select
import tempfile
from pathlib import Path
from typing import Any

from kernel_spec.client.companion import CompanionProcess
from kernel_spec.client.process import LauncherError, LauncherProcess, ask
from kernel_spec.protocol.channel import Channel
from kernel_spec.protocol.limits import Limits
from kernel_spec.protocol.messages import Kill, Request, Reserve, Signal, Start
from kernel_spec.protocol.options import LauncherOptions
from kernel_spec.protocol.values import ExitReport, WorkspaceInfo

CHANNELS = {"shell": 1, "iopub": 2, "stdin": 3, "control": 4, "hb": 5}
START_SECONDS = 40.0
ANSWER_SECONDS = 12.0


class FrontEndLauncher:
    """Starts one kernel after the other in one workspace, with blocking calls.

    Parameters
    ----------
    channel : Channel
        To a launcher, or to a gateway that forwards the requests; this object owns it.

    Attributes
    ----------
    forks : bool
        Whether the kernel is forked.
    pidfd : int
        Readable when the kernel has ended; -1 without a kernel.
    """

    forks = False

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._number = 0
        self._kernel_id = ""
        self.pidfd = -1

    @property
    def is_lost(self) -> bool:
        """Whether the launcher is gone, and its kernel with it."""
        return _has_event(self._channel.fileno(), 0)

    @property
    def is_over(self) -> bool:
        """Whether no kernel runs, as far as `pidfd` shows."""
        return self.pidfd < 0 or _has_event(self.pidfd, select.POLLIN)

    def reserve(self, kernel_id: str) -> WorkspaceInfo:
        """Reserve the workspace.

        Raises
        ------
        LauncherError
            There is none.
        """
        raise NotImplementedError

    def start(
        self,
        limits: Limits,
        outputs: tuple[int, int],
        companion: CompanionProcess | None = None,
        *,
        allow_network: bool = False,
        debugger: bool = False,
        has_clients: bool = False,
    ) -> int:
        """Start the kernel, set `pidfd`, and start the companion.

        Parameters
        ----------
        limits : Limits
            Limits of the kernel and of all processes that it starts.
        outputs : tuple of int
            Descriptors for standard output and standard error; the caller's copies stay open.
        companion : CompanionProcess or None
            The companion to start; the caller closes it.
        allow_network : bool
            Allow the network.
        debugger : bool
            Serve the debugger protocol.
        has_clients : bool
            Clients may have begun to connect.

        Returns
        -------
        int
            The kernel's pid.

        Raises
        ------
        LauncherError
            The kernel could not be started.
        OSError
            The companion could not be started; there is no kernel.
        """
        descriptors = outputs if companion is None else (*outputs, companion.kernel_end)
        if companion is not None and not self.forks:
            companion.start()
        request = Start(
            id=self._next_id(),
            kernel_id=self._kernel_id,
            limits=limits,
            style="notebook",
            allow_network=allow_network,
            has_log=companion is not None,
            debugger=debugger,
            has_clients=has_clients,
        )
        answer, (self.pidfd,) = self._ask(request, START_SECONDS, descriptors)
        if companion is not None:
            companion.hand_over()
            if self.forks:
                self._start_late(companion)
        return int(answer.pid)

    def _start_late(self, companion: CompanionProcess) -> None:
        """Start the companion after the kernel; if that fails, end the kernel.

        The companion's imports take longer than the start of a forked kernel and would slow it down: on two busy cores
        from 170 to 230 ms (measured).
        """
        try:
            companion.start()
        except OSError:
            self.kill()
            raise

    def signal(self, number: int) -> None:
        """Send a signal to the kernel's process group."""
        self._ask(Signal(self._next_id(), self._kernel_id, number), ANSWER_SECONDS)

    def kill(self) -> ExitReport:
        """Kill all processes of the kernel and return how it ended."""
        report: ExitReport = self._ask(Kill(self._next_id(), self._kernel_id), ANSWER_SECONDS)[0].report
        self._close_pidfd()
        return report

    def close(self) -> None:
        """Close the socket, so that the launcher kills the kernel and removes the workspace; safe to call twice."""
        self._close_pidfd()
        self._channel.close()

    def _ask(self, request: Request, seconds: float, descriptors: tuple[int, ...] = ()) -> tuple[Any, list[int]]:
        return ask(self._channel, request, seconds, descriptors)

    def _next_id(self) -> int:
        self._number += 1
        return self._number

    def _close_pidfd(self) -> None:
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


class StandaloneLauncher(FrontEndLauncher):
    """A launcher that the front end starts.

    It has one workspace in a temporary directory. It has no fork server, which takes longer to start than a kernel.

    Parameters
    ----------
    read_only_paths : tuple of str
        Absolute paths that the kernel may read besides its own directory.
    allow_network, allow_loopback : bool
        See `LauncherOptions`.
    """

    def __init__(
        self, read_only_paths: tuple[str, ...] = (), *, allow_network: bool = False, allow_loopback: bool = False
    ) -> None:
        # Not in the front end's TMPDIR, which may be long: socket paths have at most 107 bytes.
        state_dir = tempfile.mkdtemp(prefix="transform-", dir="/tmp")
        Path(state_dir).chmod(0o711)
        options = LauncherOptions(
            state_dir=state_dir,
            workspaces=1,
            fork_server=False,
            read_only_paths=read_only_paths,
            temporary=True,
            allow_network=allow_network,
            allow_loopback=allow_loopback,
        )
        try:
            self._process = LauncherProcess(options)
        except LauncherError:
            # A launcher that has read its options removes it.
            if Path(state_dir).exists():
                Path(state_dir).rmdir()
            raise
        super().__init__(self._process.channel)

    def reserve(self, kernel_id: str) -> WorkspaceInfo:
        self._kernel_id = kernel_id
        answer, _ = self._ask(Reserve(self._next_id(), kernel_id, "notebook"), ANSWER_SECONDS)
        workspace: WorkspaceInfo = answer.workspace
        return workspace

    def close(self) -> None:
        self._close_pidfd()
        self._process.close()


def _has_event(descriptor: int, events: int) -> bool:
    # not select(2): a front end may have more than the 1024 descriptors that it takes
    poll = select.poll()
    poll.register(descriptor, events)
    return bool(poll.poll(0))


def debugger_wanted() -> bool:
    """Return whether TRANSFORM_KERNEL_DEBUGGER asks for the debugger."""
    return os.environ.get("TRANSFORM_KERNEL_DEBUGGER", "") == "1"


def write_connection_file(workspace: WorkspaceInfo, fields: dict[str, Any]) -> Path:
    """Write the workspace's connection file; only its owner and the workspace's group can read it.

    Parameters
    ----------
    workspace : WorkspaceInfo
        The kernel's workspace; its directory passes its group on.
    fields : dict
        Fields of a connection file; transport, ip and ports are replaced.

    Returns
    -------
    Path
        The connection file.
    """
    path = Path(workspace.ipc_dir) / "connection.json"
    own = {"transport": "ipc", "ip": f"{workspace.ipc_dir}/k"}
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
