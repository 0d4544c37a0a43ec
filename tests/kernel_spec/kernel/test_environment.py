"""A new interpreter finds our modules, however they are installed, and the modules of others as well."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest

import kernel_spec

PROGRAM = """
import subprocess, sys
from kernel_spec.kernel.environment import interpreter_environment
code = "import kernel_spec, six; print(kernel_spec.__file__); six.moves"
subprocess.run([sys.executable, "-P", "-c", code], env=interpreter_environment(), cwd="/", check=True)
"""


@pytest.mark.parametrize("installed", ["as a package", "editable", "not"])
def test_a_new_interpreter_finds_our_modules_and_no_file_beside_them(installed: str, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    (packages,) = (tmp_path / "venv" / "lib").glob("*/site-packages")
    places, environment = [sysconfig.get_path("purelib")], {"PATH": os.environ["PATH"]}
    checkout = packages if installed == "as a package" else tmp_path / "checkout"
    shutil.copytree(Path(kernel_spec.__file__).parent, checkout / "kernel_spec")
    match installed:
        case "editable":
            (checkout / "six.py").write_text("raise ImportError('a file of the checkout')")
            places.append(str(checkout))
        case "not":
            environment["PYTHONPATH"] = str(checkout)
    (packages / "places.pth").write_text("\n".join(places))
    command = [python, "-P", "-c", PROGRAM]
    done = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == (f"{checkout}/kernel_spec/__init__.py\n", "")
