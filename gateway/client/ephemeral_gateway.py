"""A gateway for one call: it listens on a free loopback port and ends with the call, also if the process is killed."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

from gateway.client.errors import GatewayUnreachable
from gateway.process.health import wait_until_up
from kernel_spec.kernel.added_packages import PACKAGES_DIR

START_SECONDS = 60.0
STOP_SECONDS = 20.0

#: Settings of a shared gateway; all other settings of the environment, such as limits, apply here too.
PLACE_SETTINGS = (
    *("HOST", "PORT", "STATE_DIR", "AUTH_TOKEN", "AUTH_TOKEN_FILE", "TLS_CERT_FILE", "TLS_KEY_FILE"),
    *("TRANSFORM_GATEWAY_URL", "ENABLE_INTERNAL_S3"),
    # a member would take jobs of others, which end with this call
    *("CLUSTER_URL", "CLUSTER_ADVERTISE_URL", "CLUSTER_CREDENTIALS_FILE"),
    *("CLUSTER_TLS_CA_FILE", "CLUSTER_TLS_CERT_FILE", "CLUSTER_TLS_KEY_FILE", "SLOTS"),
)

#: Ends the gateway when this process is killed. PR_SET_PDEATHSIG cannot: Linux clears it when the gateway drops root
#: (prctl(2)). The pipe closes when this process ends, however it ends, and the pidfd identifies the gateway.
_WATCHDOG = """
import os, select, shutil, signal, sys
pipe, pidfd, directory = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
if os.read(pipe, 1):
    sys.exit()
end = select.poll()  # not select(2): the number of the inherited pidfd may be above those that it takes
end.register(pidfd, select.POLLIN)
for number, patience in ((signal.SIGTERM, 20), (signal.SIGKILL, 5)):
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        break
    if end.poll(1000 * patience):
        break
shutil.rmtree(directory, ignore_errors=True)
"""


class EphemeralGateway:
    """A child gateway; use it in a ``with`` statement.

    Parameters
    ----------
    settings : mapping of str to str, optional
        Environment variables that replace those of this process.

    Attributes
    ----------
    url : str
        Where it listens.
    token : str
        Random, so that no other user of this machine can use the gateway.

    Raises
    ------
    GatewayUnreachable
        The gateway did not start.
    """

    url = ""

    def __init__(self, settings: Mapping[str, str] = MappingProxyType({})) -> None:
        self._settings = settings
        self.token = secrets.token_urlsafe(24)

    def __enter__(self) -> Self:
        # a short path, because of the sockets below it, and accessible, because kernels may run as other users
        self._directory = Path(tempfile.mkdtemp(prefix="tg-", dir="/tmp"))
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._pipe = -1
        try:
            self._directory.chmod(0o755)
            self._link_packages()
            self._wait(self._start())
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

    @property
    def is_running(self) -> bool:
        """Whether its process has not ended; only within the ``with`` statement."""
        return self._process is not None and self._process.poll() is None

    def _link_packages(self) -> None:
        """Give its jobs the packages that were added here, which `check` and `packages` tell of too."""
        packages = Path(os.environ.get("STATE_DIR") or ".state").absolute() / PACKAGES_DIR
        if os.path.isdir(packages):  # noqa: PTH112 - False also where a directory above it is closed to this user
            self._state_dir.mkdir()
            self._state_dir.chmod(0o755)
            (self._state_dir / PACKAGES_DIR).symlink_to(packages)

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {name: value for name, value in os.environ.items() if name not in PLACE_SETTINGS}
        environment |= self._settings
        environment |= {"HOST": "127.0.0.1", "PORT": "0", "STATE_DIR": str(self._state_dir), "AUTH_TOKEN": self.token}
        with self._log_path.open("wb") as log:
            # its own session: Ctrl-C must cancel the job, not kill the gateway
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
        return self._process

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        running = wait_until_up(self._state_dir, lambda: process.poll() is None, lambda status: True, START_SECONDS)
        if running is not None:
            self.url = running.url
            return
        problem = f"did not start within {START_SECONDS:.0f} s" if process.poll() is None else "ended at once"
        tail = "\n".join(self._log_path.read_text(errors="replace").splitlines()[-15:])
        raise GatewayUnreachable(f"the gateway started for this call {problem}; its log says:\n{tail}")

    @property
    def _state_dir(self) -> Path:
        return self._directory / "s"

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
