"""A notebook's companion: a process of the front end's user, outside of the sandbox, that serves the kernel.

The kernel of a notebook has the restrictions of a job's kernel: no network, no token, no files of others. Its user
needs more: a table from a file, a URL or a live Metabase, or a run through a real gateway. The companion does that with
the rights of the user who started the notebook. Its command is a trait of the provisioner; this package only starts it:
``COMMAND --socket DESCRIPTOR --inputs DIRECTORY``.

The two talk over a socket pair, and the kernel starts with one end of it as descriptor 3. A socket path would not work:
where the sandbox cannot hide the unix sockets outside, it forbids connect(2). The companion ends at the end of file of
its socket (the kernel is gone) or of its standard input (the front end is gone).
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from kernel_spec.protocol.values import WorkspaceInfo

DEFAULT_COMMAND = (sys.executable, "-P", "-m", "gateway.companion")
#: An ephemeral gateway of the companion drains first; that takes half a second, and 20 s at most.
END_SECONDS = 25.0


class CompanionProcess:
    """One companion; `close` ends it.

    Parameters
    ----------
    command : sequence of str
        The command, without the options.
    workspace : WorkspaceInfo
        The kernel's workspace.
    working_dir : str or None
        The companion's working directory, if it exists.
    environment : mapping of str to str
        The companion's environment.
    gateway : str or None
        State directory of the gateway from which kernels are taken, if one is named; else that of `environment` counts.

    Attributes
    ----------
    kernel_end : int
        Descriptor for the kernel; call `hand_over` when the kernel has it.
    """

    def __init__(
        self,
        command: Sequence[str],
        workspace: WorkspaceInfo,
        working_dir: str | None,
        environment: Mapping[str, str],
        gateway: str | None = None,
    ) -> None:
        self._command = [*command, "--inputs", workspace.inputs_dir]
        self._working_dir = working_dir if working_dir and os.path.isdir(working_dir) else None  # noqa: PTH112
        # in it are the packages of the notebook's jobs and the address for %submit; absolute, for another working_dir
        state_dir = Path(gateway or environment.get("STATE_DIR") or ".state").absolute()
        self._environment = {**environment, "STATE_DIR": str(state_dir)}
        self._process: subprocess.Popen[bytes] | None = None
        self._ours, kernels = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.kernel_end = kernels.detach()

    @property
    def pid(self) -> int | None:
        """Process id of the companion, once it was started."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the companion.

        Raises
        ------
        OSError
            The command could not be started.
        """
        try:
            self._process = subprocess.Popen(
                [*self._command, "--socket", str(self._ours.fileno())],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                pass_fds=(self._ours.fileno(),),
                cwd=self._working_dir,
                env=self._environment,
                # Ctrl-C in a terminal is meant for the kernel.
                start_new_session=True,
            )
        finally:
            self._ours.close()

    def hand_over(self) -> None:
        """Close this copy of the kernel's end, so that the socket ends with the kernel."""
        if self.kernel_end >= 0:
            os.close(self.kernel_end)
            self.kernel_end = -1

    def close(self) -> None:
        """End the companion and its own processes; safe to call twice, and for one that was not started."""
        self.hand_over()
        self._ours.close()
        if self._process is None:
            return
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
