"""pip and uv: each finds the missing packages, and installs them into a directory."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from gateway.cli import common

#: Settings of uv's own that name a package index.
_UV_INDEX = ("UV_DEFAULT_INDEX", "UV_INDEX", "UV_INDEX_URL", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS", "UV_CONFIG_FILE")
#: A download of hundreds of megabytes over a slow line.
INSTALL_SECONDS = 3600


class Installer(Protocol):
    """Installs packages, as wheels only, for this Python."""

    name: str

    def resolve(self, names: Sequence[str]) -> list[str]:
        """Return requirements for the packages that are not installed yet, with exact versions."""

    def install(self, requirements: Sequence[str], place: Path) -> None:
        """Install these without their dependencies."""


def found(scratch: Path, pins: str) -> Installer:
    """Return the installer to use: uv if its settings name an index, else pip, else uv.

    Raises
    ------
    UsageError
        Neither is installed.
    """
    pins_path = scratch / "pins.txt"
    pins_path.write_text(pins)
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.exists() else shutil.which("uv")
    if uv is not None and (find_spec("pip") is None or any(os.environ.get(name) for name in _UV_INDEX)):
        return _Uv(uv, pins_path)
    if find_spec("pip") is None:
        raise common.UsageError("neither pip nor uv is installed: install one of them")
    return _Pip(scratch, pins_path)


class _Pip:
    name = "pip"

    def __init__(self, scratch: Path, pins_path: Path) -> None:
        self._report_path, self._pins_path = scratch / "report.json", pins_path
        self._command = [
            *(sys.executable, "-P", "-m", "pip", "--disable-pip-version-check", "--no-input"),
            *("install", "--quiet", "--only-binary=:all:"),
        ]

    def resolve(self, names: Sequence[str]) -> list[str]:
        # nothing is installed into this Python, but Debian's pip refuses even to resolve without this
        variables = {"PIP_BREAK_SYSTEM_PACKAGES": "1"}
        options = ["--dry-run", f"--report={self._report_path}", f"--constraint={self._pins_path}"]
        _run([*self._command, *options, "--", *names], variables)
        return [
            each["download_info"]["url"]
            if each["is_direct"]
            else f"{each['metadata']['name']}=={each['metadata']['version']}"
            for each in json.loads(self._report_path.read_text())["install"]
        ]

    def install(self, requirements: Sequence[str], place: Path) -> None:
        _run([*self._command, "--no-deps", f"--target={place}", "--", *requirements])


class _Uv:
    name = "uv"

    def __init__(self, uv: str, pins_path: Path) -> None:
        self._uv, self._pins_path = uv, pins_path

    def resolve(self, names: Sequence[str]) -> list[str]:
        asked = self._pins_path.with_name("asked.txt")
        asked.write_text("".join(f"{name}\n" for name in names))
        options = ["--quiet", "--no-header", "--no-annotate", "--only-binary=:all:", f"--python={sys.executable}"]
        output = _run([self._uv, "pip", "compile", *options, f"--constraint={self._pins_path}", str(asked)])
        installed = {_normalised(line.partition("==")[0]) for line in self._pins_path.read_text().splitlines()}
        lines = [line for line in output.splitlines() if line and not line.startswith("#")]
        return [line for line in lines if _normalised(re.split(r"[ =@\[]", line, maxsplit=1)[0]) not in installed]

    def install(self, requirements: Sequence[str], place: Path) -> None:
        options = ["--quiet", "--no-deps", "--only-binary=:all:", "--link-mode=copy", "--compile-bytecode"]
        _run([self._uv, "pip", "install", *options, f"--python={sys.executable}", f"--target={place}", *requirements])


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _run(command: Sequence[str], variables: dict[str, str] | None = None) -> str:
    """Run a command whose errors go to our standard error, and return its output."""
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **(variables or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            timeout=INSTALL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise common.UsageError(f"nothing has changed: the installation took more than {INSTALL_SECONDS} s") from None
    if done.returncode:
        sys.stderr.write(done.stdout)
        raise common.UsageError("nothing has changed: the packages could not be installed; the reason is above")
    return done.stdout
