"""Install the kernelspec ``transform`` where the wheel has not done it: ``python -m kernel_spec.install``.

With ``--debugger`` it installs a second one, ``transform-debugger``. JupyterLab enables its debugger by the kernelspec.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from jupyter_client.kernelspec import KernelSpecManager

RESOURCE_DIR = Path(__file__).parent / "resources" / "transform"
DEBUGGER = "transform-debugger"


def install(*, user: bool = False, prefix: str | None = None, name: str | None = None, debugger: bool = False) -> str:
    """Copy the kernelspec to a directory of Jupyter, replacing an older one.

    Parameters
    ----------
    user : bool
        Into the caller's own data directory instead of the system's.
    prefix : str or None
        Into the environment with this prefix.
    name : str or None
        The name of the kernel in front ends; None for the usual one.
    debugger : bool
        Whether its kernels serve the debugger protocol.

    Returns
    -------
    str
        The directory.
    """
    manager = KernelSpecManager()
    name = name or (DEBUGGER if debugger else "transform")
    with tempfile.TemporaryDirectory() as directory:
        source = shutil.copytree(RESOURCE_DIR, Path(directory) / name)
        if debugger:
            _enable_debugger(source / "kernel.json")
        return str(manager.install_kernel_spec(str(source), kernel_name=name, user=user, prefix=prefix))


def _enable_debugger(path: Path) -> None:
    spec = json.loads(path.read_text())
    spec["display_name"] = "Transform (sandboxed, with debugger)"
    spec["metadata"]["debugger"] = True
    spec["metadata"]["kernel_provisioner"]["config"] = {"debugger": True}
    # for front ends that run the command themselves
    spec["env"] = {"TRANSFORM_KERNEL_DEBUGGER": "1"}
    path.write_text(json.dumps(spec, indent=2) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Install as the command line says; the default is the running environment."""
    parser = argparse.ArgumentParser(prog="python -m kernel_spec.install", description=__doc__)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--user", action="store_true", help="for this user only")
    where.add_argument("--prefix", help="into the environment with this prefix")
    where.add_argument("--sys-prefix", action="store_true", help="into this Python's environment (default)")
    parser.add_argument("--name", help=f"name of the kernelspec (default: transform, or {DEBUGGER})")
    parser.add_argument("--debugger", action="store_true", help="its kernels serve the debugger of JupyterLab")
    options = parser.parse_args(arguments)
    prefix = options.prefix if options.user or options.prefix else sys.prefix
    print(install(user=options.user, prefix=prefix, name=options.name, debugger=options.debugger))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
