"""Installs the kernelspec ``transform``, where the wheel has not done it already: ``python -m kernel_spec.install``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from jupyter_client.kernelspec import KernelSpecManager

RESOURCE_DIR = Path(__file__).parent / "resources" / "transform"


def install(*, user: bool = False, prefix: str | None = None, name: str = "transform") -> str:
    """Copy the kernelspec to where Jupyter looks for it, replacing an older one, and return the directory.

    Parameters
    ----------
    user
        Into the caller's own data directory instead of the system's.
    prefix
        Into the environment with this prefix.
    name
        What front ends call the kernel.
    """
    manager = KernelSpecManager()
    return str(manager.install_kernel_spec(str(RESOURCE_DIR), kernel_name=name, user=user, prefix=prefix))


def main(arguments: Sequence[str] | None = None) -> int:
    """Install as the command line says; the default is the running environment."""
    parser = argparse.ArgumentParser(prog="python -m kernel_spec.install", description=__doc__)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--user", action="store_true", help="for this user only")
    where.add_argument("--prefix", help="into the environment with this prefix")
    where.add_argument("--sys-prefix", action="store_true", help="into this Python's environment (default)")
    parser.add_argument("--name", default="transform", help="name of the kernelspec (default: transform)")
    options = parser.parse_args(arguments)
    prefix = options.prefix if options.user or options.prefix else sys.prefix
    print(install(user=options.user, prefix=prefix, name=options.name))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
