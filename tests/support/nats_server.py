"""A real NATS server for tests, with the configuration of ``deploy/nats`` and its data in a directory of its own."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType

from gateway.process.privileges import gateway_user
from tests.support.machines import HERE, Machine
from tests.support.ports import free_port

READY_SECONDS = 60.0
CONFIGURATION = Path(__file__).parents[2] / "deploy/nats"
ROLES = ("member", "acceptor", "host")

#: Another server than the installed one; the newer ones know `sync_interval`.
PROGRAM = os.environ.get("NATS_SERVER", "nats-server")

#: Exit status of a Go program that panics.
PANIC_STATUS = 2


class NatsServer:
    """A ``nats-server`` process with JetStream; use as a context manager. It can be killed and started again.

    After a panic it is started again at once, as a service is: Debian's 2.9.10 panics now and then when one member
    reads a stream while another one makes it (a nil pointer in ``jsMsgGetRequest``, seen in one of some 80 losses of
    all data).

    Clients have the rights of their role. Without TLS, the name of a role is its user and password; with TLS, clients
    need the certificates that ``certificates.sh`` makes.
    """

    def __init__(self, *, tls: bool = False, machine: Machine = HERE) -> None:
        self.tls = tls
        self.machine = machine
        self._lock = threading.RLock()
        self._is_wanted = False

    def __enter__(self) -> NatsServer:
        self.port = free_port()
        self.directory = Path(tempfile.mkdtemp(prefix="tg-nats-", dir="/tmp"))
        self.directory.chmod(0o755)
        try:
            self._configure()
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if hasattr(self, "process"):
            self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def url(self) -> str:
        """Address for a member."""
        return self.url_of("member")

    def url_of(self, role: str) -> str:
        """Return the address for a role, with its user and password unless a certificate names it."""
        return f"tls://{self.machine.host}:{self.port}" if self.tls else f"nats://{role}:{role}@127.0.0.1:{self.port}"

    def settings(self, role: str = "member") -> dict[str, str]:
        """Return the settings of a gateway that has a role."""
        settings = {"CLUSTER_URL": self.url_of(role)}
        if self.tls:
            files = {"CA": "ca.crt", "CERT": "tls.crt", "KEY": "tls.key"}
            settings |= {f"CLUSTER_TLS_{name}_FILE": str(self.directory / role / file) for name, file in files.items()}
        return settings

    def start(self) -> None:
        """Start it on the data that it had before."""
        with self._lock:
            self._is_wanted = True
            self._start()

    def _start(self) -> None:
        argv = [*self.machine.prefix, PROGRAM, "-a", self.machine.address, "-p", str(self.port)]
        argv += ["-c", str(self.directory / "nats.conf")]
        with open(self.directory / "log", "ab") as log:
            self.process = subprocess.Popen(argv, stdout=log, stderr=log)
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError((self.directory / "log").read_text())
            try:
                self.machine.connect(self.machine.address, self.port).close()
            except OSError:
                time.sleep(0.02)
            else:
                threading.Thread(target=self._start_after_panic, args=(self.process,), daemon=True).start()
                return
        raise RuntimeError("nats-server was not ready in time")

    def _start_after_panic(self, process: subprocess.Popen[bytes]) -> None:
        if process.wait() == PANIC_STATUS:
            with self._lock:
                if self._is_wanted and process is self.process:
                    self._start()

    def kill(self) -> None:
        """End it at once; one that has ended by itself says why."""
        with self._lock:
            self._is_wanted = False
            if self.process.poll() is not None and self.process.returncode != -signal.SIGKILL:
                print((self.directory / "log").read_text()[-8000:])
            self.process.kill()
            self.process.wait(60)

    def renew_certificates(self) -> None:
        """Make all certificates anew, of another authority; the gateway's user may read those of the roles."""
        for role in ("broker", *ROLES):
            shutil.rmtree(self.directory / role, ignore_errors=True)
        subprocess.run([CONFIGURATION / "certificates.sh", self.directory, self.machine.host], check=True)
        for role in ROLES:
            for path in (self.directory / role, *(self.directory / role).iterdir()):
                os.chown(path, gateway_user().uid if os.geteuid() == 0 else -1, -1)

    def _configure(self) -> None:
        """Adapt the configuration to this directory and, where it is older than 2.11, to the installed server."""
        shutil.copy(CONFIGURATION / "rights.conf", self.directory)
        text = (CONFIGURATION / "nats.conf").read_text()
        text = text.replace("/etc/nats/tls", f"{self.directory}/broker").replace(
            "/var/lib/nats", f"{self.directory}/data"
        )
        text = re.sub(r"^http: .*\n", "", text, flags=re.MULTILINE)
        if PROGRAM == "nats-server":
            text = re.sub(r"^ *sync_interval: .*\n", "", text, flags=re.MULTILINE)
        if self.tls:
            self.renew_certificates()
        else:
            text = re.sub(r"^tls \{.*?^\}\n", "", text, flags=re.MULTILINE | re.DOTALL)
            text = re.sub(r'user: "CN=(\w+),O=transform-gateway"', r"user: \1, password: \1", text)
        (self.directory / "nats.conf").write_text(text)
