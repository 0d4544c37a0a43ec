"""A gateway of one's own for one call: started on a free loopback port, gone with the call whatever ends it."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from gateway.client_http import GatewayUnreachable

START_SECONDS = 60.0
STOP_SECONDS = 20.0

PLACE_SETTINGS = ("HOST", "PORT", "STATE_DIR", "AUTH_TOKEN", "TRANSFORM_GATEWAY_URL")
"""What belongs to a gateway that others use; every other setting of the environment (limits, say) holds here too."""

_WATCHDOG = """
import os, select, shutil, signal, sys
pipe, pidfd, directory = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
if os.read(pipe, 1):
    sys.exit()
for number, patience in ((signal.SIGTERM, 20), (signal.SIGKILL, 5)):
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        break
    if select.select([pidfd], [], [], patience)[0]:
        break
shutil.rmtree(directory, ignore_errors=True)
"""
"""Ends the gateway when this process is killed. PR_SET_PDEATHSIG cannot: the kernel clears it when the gateway gives
its root away (prctl(2)). A pipe tells the end of its last writer whatever the cause, and a pidfd names the gateway."""


class OwnGateway:
    """A child gateway; use as ``with``.

    Attributes
    ----------
    url : str
    token : str
        Made up, so that nobody else on this machine can use it.
    """

    url = ""

    def __init__(self) -> None:
        self.token = secrets.token_urlsafe(24)

    def __enter__(self) -> Self:
        # short, because sockets live below it, and open to traversal, because kernels may run as other users
        self._directory = Path(tempfile.mkdtemp(prefix="tg-", dir="/tmp"))
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._pipe = -1
        try:
            self._directory.chmod(0o755)
            self._start()
            self._wait()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            _end(self._process)
        if self._watchdog is not None:
            with contextlib.suppress(BrokenPipeError):
                os.write(self._pipe, b"x")
            self._watchdog.wait(STOP_SECONDS)
        if self._pipe >= 0:
            os.close(self._pipe)
        shutil.rmtree(self._directory, ignore_errors=True)

    def _start(self) -> None:
        environment = {name: value for name, value in os.environ.items() if name not in PLACE_SETTINGS}
        state_dir = self._directory / "s"
        environment |= {"HOST": "127.0.0.1", "PORT": "0", "STATE_DIR": str(state_dir), "AUTH_TOKEN": self.token}
        with self._log_path.open("wb") as log:
            # a session of its own: Ctrl-C must reach the job by way of a cancel, not kill the gateway under it
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "gateway"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        pidfd = os.pidfd_open(self._process.pid)
        reader, self._pipe = os.pipe()
        try:
            self._watchdog = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _WATCHDOG, str(reader), str(pidfd), str(self._directory)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(reader, pidfd),
                start_new_session=True,
            )
        finally:
            os.close(reader)
            os.close(pidfd)

    def _wait(self) -> None:
        """Wait for the file in which a gateway says where it listens; it is written when it takes jobs."""
        process = self._process
        deadline = time.monotonic() + START_SECONDS
        while process is not None and process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(FileNotFoundError):
                facts = json.loads((self._directory / "s" / "run" / "gateway.json").read_text())
                self.url = f"http://127.0.0.1:{facts['port']}"
                return
            time.sleep(0.02)
        ended = process is not None and process.poll() is not None
        what = "ended at once" if ended else f"was not up within {START_SECONDS:.0f} s"
        tail = "\n".join(self._log_path.read_text(errors="replace").splitlines()[-15:])
        raise GatewayUnreachable(f"the gateway started for this call {what}; it said:\n{tail}")

    @property
    def _log_path(self) -> Path:
        return self._directory / "gateway.log"


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
