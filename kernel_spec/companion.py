"""A notebook's companion: a process of the front end's user, outside of the sandbox, that does what the kernel asks.

The kernel of a notebook is the kernel of production: no network, no token, no foreign files. What a person needs beyond
that (a table from a file, a URL or a live Metabase; a run through a real gateway) is done by a companion with the
rights of whoever started the notebook. What runs is a trait of the provisioner; this package knows nothing of it but
how it is started: ``COMMAND --socket DESCRIPTOR --inputs DIRECTORY``.

The two speak over a socket pair, whose one end the kernel is born with as descriptor 3. A path would not do: where unix
sockets outside cannot be hidden from jobs, the sandbox forbids connect(2). The companion goes when its socket is at its
end (the kernel is gone) or its standard input is (the front end is).
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence

from kernel_spec.messages import SeatInfo

DEFAULT_COMMAND = (sys.executable, "-P", "-m", "gateway.companion")
# A gateway that the companion started drains first; it takes half a second, and 20 s at most.
END_SECONDS = 25.0


class Companion:
    """One companion; `close` ends it.

    Attributes
    ----------
    kernel_end : int
        Descriptor for the kernel; to be given up with `hand_over` once the kernel has it.

    Raises
    ------
    OSError
        The command could not be started.
    """

    def __init__(
        self, command: Sequence[str], seat: SeatInfo, working_dir: str | None, environment: Mapping[str, str]
    ) -> None:
        ours, kernels = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.kernel_end = kernels.detach()
        directory = working_dir if working_dir and os.path.isdir(working_dir) else None  # noqa: PTH112
        try:
            self._process = subprocess.Popen(
                [*command, "--socket", str(ours.fileno()), "--inputs", seat.inputs_dir],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                pass_fds=(ours.fileno(),),
                cwd=directory,
                env=dict(environment),
                # Ctrl-C in a terminal is for the kernel, which forwards what it means.
                start_new_session=True,
            )
        except BaseException:
            self.hand_over()
            raise
        finally:
            ours.close()

    @property
    def pid(self) -> int:
        """Process id of the companion."""
        return self._process.pid

    def hand_over(self) -> None:
        """Close our copy of the kernel's end, so that the end of the kernel is the end of the socket."""
        if self.kernel_end >= 0:
            os.close(self.kernel_end)
            self.kernel_end = -1

    def close(self) -> None:
        """End the companion and what it started; safe to call twice."""
        self.hand_over()
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
