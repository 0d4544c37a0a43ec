"""A container engine for the image's test, with everything it makes in one directory that goes away afterwards.

Where Docker answers it is used as it is. Podman, run by root, gets a storage of its own, and works on machines that have
neither a registry, nor systemd, nor a bridge: built with chroot isolation, run by runc in the host's network.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUILD_SECONDS = 900
CALL_SECONDS = 120

CA_SECRET = "/run/secrets/ca_bundle"
"""Where the Dockerfile mounts the certificates of a place that has its own."""

PIP_OPTIONS = ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "retries")


class EngineError(RuntimeError):
    """No engine, or it could not do what was asked; the text says which and ends with its own words."""


@dataclass(frozen=True)
class Engine:
    """A command line to which docker's subcommands are added, and what goes to each build and run here."""

    command: tuple[str, ...]
    scratch: Path
    is_podman: bool

    def call(self, *arguments: str, seconds: float = CALL_SECONDS, check: bool = True) -> str:
        """Return stdout of a subcommand.

        Raises
        ------
        EngineError
        """
        try:
            done = subprocess.run(
                [*self.command, *arguments], capture_output=True, text=True, timeout=seconds, check=False, cwd=ROOT
            )
        except subprocess.TimeoutExpired:
            raise EngineError(f"{' '.join(arguments[:2])} did not end within {seconds:.0f} s") from None
        if check and done.returncode != 0:
            raise EngineError(f"{' '.join(arguments[:2])}: exit status {done.returncode}: {done.stderr[-2000:]}")
        return done.stdout

    def make(self, target: str, seconds: float = CALL_SECONDS, **settings: str) -> subprocess.CompletedProcess[str]:
        """Run one of the Makefile's docker-targets with this engine."""
        command = ["make", target, f"ENGINE={shlex.join(self.command)}"]
        command += [f"{name}={value}" for name, value in settings.items()]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
        return subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds, check=False
        )

    @property
    def build_options(self) -> str:
        """Options with which a build reaches the package index of this machine and works without namespaces."""
        options = ["--network", "host", *_pip_secrets(self.scratch)]
        if self.is_podman and os.geteuid() == 0:
            options += ["--isolation", "chroot"]
        return shlex.join(options)

    @property
    def run_options(self) -> str:
        """Options of every container: the host's network, and limits that need not be raised."""
        return "--network host --ulimit nofile=4096:4096 --ulimit nproc=4096:4096"


@contextmanager
def engine(scratch: Path) -> Iterator[Engine]:
    """Yield the engine of this machine; afterwards nothing of its storage is left.

    Raises
    ------
    EngineError
        There is none.
    """
    named = shlex.split(os.environ.get("ENGINE", ""))
    if named or _answers(["docker"]):
        command = named or ["docker"]
        yield Engine(tuple(command), scratch, is_podman="podman" in " ".join(command))
        return
    if shutil.which("podman") is None:
        raise EngineError(
            "no container engine: Docker does not answer and podman is not installed (Debian: apt install podman runc); "
            "nothing was tested"
        )
    if os.geteuid() != 0:
        yield Engine(("podman",), scratch, is_podman=True)
        return
    own = Engine(tuple(_own_podman(scratch)), scratch, is_podman=True)
    try:
        yield own
    finally:
        own.call("rm", "--all", "--force", "--time", "5", check=False)
        own.call("rmi", "--all", "--force", check=False)
        _unmount_below(scratch)
        shutil.rmtree(scratch / "storage", ignore_errors=True)


def _own_podman(scratch: Path) -> list[str]:
    """Return podman with a storage below `scratch`, on the first driver that works here."""
    storage = scratch / "storage"
    command = ["podman", "--root", f"{storage}/root", "--runroot", f"{storage}/run", "--cgroup-manager", "cgroupfs"]
    # crun refuses a host that has both versions of control groups
    command += ["--runtime", "runc"] if shutil.which("runc") else []
    for driver in ("overlay", "vfs"):
        if _answers([*command, "--storage-driver", driver]):
            return [*command, "--storage-driver", driver]
        shutil.rmtree(storage, ignore_errors=True)
    raise EngineError("podman is installed and has no storage driver that works here; nothing was tested")


def _answers(command: list[str]) -> bool:
    try:
        return subprocess.run([*command, "info"], capture_output=True, timeout=30, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _unmount_below(directory: Path) -> None:
    places = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for place in sorted((place for place in places if place.startswith(f"{directory}/")), reverse=True):
        subprocess.run(["umount", "--lazy", place], check=False)


def _pip_secrets(scratch: Path) -> list[str]:
    """Return --secret options that hand pip's settings of this machine to the build, as far as they hold there too."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, timeout=60, check=True
    )
    found = {}
    for line in listed.stdout.splitlines():
        name, _, value = line.partition("=")
        found[name.rpartition(".")[2]] = value.strip("'\"")
    lines = [f"{name} = {found[name]}" for name in PIP_OPTIONS if name in found and "file:" not in found[name]]
    secrets = []
    if Path(found.get("cert", "")).is_file():
        lines.append(f"cert = {CA_SECRET}")
        secrets += ["--secret", f"id=ca_bundle,src={found['cert']}"]
    if lines:
        settings = scratch / "pip.conf"
        settings.write_text("\n".join(["[global]", *lines, ""]))
        secrets += ["--secret", f"id=pip_conf,src={settings}"]
    return secrets
