"""Sets of packages for jobs, as `kernel_spec.kernel.added_packages` uses them: resolved, installed, tried, used."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from gateway.cli import common
from gateway.cli.install import installers
from kernel_spec.fork_server.preload import modules_with
from kernel_spec.kernel.added_packages import (
    CURRENT_LINK,
    PACKAGES_DIR,
    MissingPackages,
    UntrustedPackages,
    current_set,
)
from kernel_spec.kernel.environment import interpreter_command, interpreter_environment
from kernel_spec.protocol.channel import Channel, ChannelError, pair
from kernel_spec.protocol.messages import FORK_ANSWERS, ForkServerReady

_REQUESTED_FILE = "requested.json"
#: Imports of large packages from a cold disk.
TRY_SECONDS = 120


@dataclass(frozen=True, slots=True)
class PackageSets:
    """The sets in one state directory.

    Attributes
    ----------
    directory : Path
        Where the sets are.
    say : callable
        Called with a line about each step.
    """

    directory: Path
    say: Callable[[str], None]

    @classmethod
    @contextlib.contextmanager
    def opened(cls, state_dir: Path, say: Callable[[str], None]) -> Iterator[PackageSets]:
        """Yield the sets, locked against changes by others."""
        os.umask(0o022)  # kernels run as other users
        directory = state_dir.resolve() / PACKAGES_DIR
        directory.mkdir(parents=True, exist_ok=True)
        # another user, whose gateway it is, may own the directory: root must not follow a link there
        lock_fd = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(lock_fd, "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise common.UsageError(f"packages are being changed in {directory}; try again later") from None
            for leftover in directory.glob(".new-*"):
                shutil.rmtree(leftover)
            yield cls(directory, say)

    def current(self) -> Path | None:
        """Return the current set; None if nothing is added."""
        try:
            return current_set(self.directory.parent)
        except MissingPackages as error:
            self.say(f"the packages that were added before are lost: {error}")
            self.activate(None)
            return None
        except UntrustedPackages as error:
            raise common.UsageError(f"the added packages are not used: {error}") from None

    def requested(self) -> list[str]:
        """Return the requested names."""
        current = self.current()
        return [] if current is None else list(json.loads((current / _REQUESTED_FILE).read_text()))

    def make(self, names: Sequence[str]) -> Path | None:
        """Return a set with these packages and their dependencies; None for no packages.

        Raises
        ------
        UsageError
            They cannot be installed, or kernels do not start with them. Nothing has changed.
        """
        if not names:
            return None
        place = Path(tempfile.mkdtemp(prefix=".new-", dir=self.directory))
        try:
            place.chmod(0o755)
            with tempfile.TemporaryDirectory(prefix="transform-packages-") as scratch:
                installer = installers.found(Path(scratch), _pins())
                self.say(f"resolving {', '.join(names)} with {installer.name}")
                missing = installer.resolve(names)
                if missing:
                    self.say(f"installing {common.counted(len(missing), 'package')}: {', '.join(missing)}")
                    installer.install(missing, place)
                    _let_kernels_read(place)
            (place / _REQUESTED_FILE).write_text(json.dumps(sorted(names)))
            made = self.directory / _digest(place)
            if made.exists():
                return made
            self.say("testing whether kernels start with them")
            try_kernels(place)
            place.rename(made)
        finally:
            shutil.rmtree(place, ignore_errors=True)
        return made

    def activate(self, made: Path | None) -> None:
        """Make a set the current one, for the next fork server."""
        link = self.directory / CURRENT_LINK
        if made is None:
            link.unlink(missing_ok=True)
            return
        fresh = self.directory / ".new-link"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(made.name)
        fresh.rename(link)

    def remove_others(self, former: Path | None) -> None:
        """Remove all sets but the current and the former one, which a gateway that starts at this moment may use."""
        # by name: `current_set` resolves the directory, which may be a link
        kept = [made.name for made in (self.current(), former) if made is not None]
        for each in self.directory.iterdir():
            if each.is_dir() and not each.is_symlink() and each.name not in kept:
                shutil.rmtree(each)


def without(names: Sequence[str], others: Sequence[str]) -> list[str]:
    """Return the names but those of the same packages as others."""
    gone = {_package(name) for name in others}
    return [name for name in names if _package(name) not in gone]


def _package(name: str) -> str:
    """Return the normalised name of a package in a requirement or in the name of a wheel."""
    text = Path(name).name.split("-")[0] if name.endswith(".whl") else re.split(r"[^A-Za-z0-9._-]", name, maxsplit=1)[0]
    return re.sub(r"[-_.]+", "-", text).lower()


def _pins() -> str:
    """Return the installed packages as constraints: added ones must fit them, and no package is installed twice."""
    found = {each.metadata["Name"]: each.version for each in reversed(list(metadata.distributions()))}
    return "".join(f"{name}=={version}\n" for name, version in sorted(found.items()))


def _digest(place: Path) -> str:
    """Return a name for a set: a digest of its files."""
    digest = hashlib.sha256((place / _REQUESTED_FILE).read_bytes())
    for record in sorted(place.glob("*.dist-info/RECORD")):
        digest.update(record.read_bytes())
    return digest.hexdigest()[:16]


def _let_kernels_read(place: Path) -> None:
    """Give all users the right to read, and nobody else the right to write.

    A wheel says which mode a file has, and uv copies the mode of its cache, which may have been filled under another
    umask.
    """
    for each in [place, *place.rglob("*")]:
        if not each.is_symlink():
            mode = each.stat().st_mode
            each.chmod((mode | (0o055 if each.is_dir() or mode & 0o100 else 0o044)) & ~0o022)


def try_kernels(place: Path) -> None:
    """Start a fork server with a set; it forks a kernel and runs a job in it before it reports that it is ready.

    Raises
    ------
    UsageError
        It does not become ready.
    """
    ours, theirs = pair()
    modules = [f"--module={name}" for name in modules_with(_preload())]
    command = interpreter_command(
        "kernel_spec.fork_server", str(theirs.fileno()), f"--packages={place.resolve()}", *modules
    )
    with (
        ours,
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            command,
            env=interpreter_environment(),
            pass_fds=[theirs.fileno()],
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
        ) as process,
    ):
        theirs.close()
        try:
            ours.settimeout(TRY_SECONDS)
            message: object = Channel(ours, accepts=FORK_ANSWERS).receive()[0]
            reason = "" if isinstance(message, ForkServerReady) else str(getattr(message, "reason", message))
        except (ChannelError, OSError) as error:
            reason = str(error)
        finally:
            process.kill()
        if reason:
            errors.seek(0)
            sys.stderr.write(errors.read().decode(errors="replace"))
            raise common.UsageError(f"nothing has changed: kernels do not start with these packages: {reason}")


def _preload() -> tuple[str, ...]:
    from gateway.process.app import TransformGatewayApp

    app = TransformGatewayApp()
    app.initialize([])
    return app.settings().preload
