"""`transform-gateway new`: write an example project."""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from gateway.cli import common
from gateway.scripts.template import write_project


def main(name: str, arguments: Sequence[str]) -> int:
    """Write the files and print the commands that use them."""
    parser = common.parser(
        name, "Write an example project: a transform, its contract, a module, a table, a test and a notebook."
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="directory of the project, without these files")
    options = parser.parse_args(arguments)
    return common.guarded(lambda: _new(options))


def _new(options: argparse.Namespace) -> int:
    try:
        written = write_project(options.directory)
    except FileExistsError as error:
        raise common.UsageError(f"{error.filename} already exists; nothing was written") from None
    has_pytest = importlib.util.find_spec("pytest") is not None
    names = ", ".join(str(path.relative_to(options.directory)) for path in written)
    sys.stdout.write(
        f"wrote {names}\n"
        f"cd {shlex.quote(str(options.directory))}\n"
        "transform-gateway run monthly_totals.py --table orders=tables/orders.csv --library months.py\n"
        f"pytest{'' if has_pytest else '   # after: pip install pytest'}\n"
    )
    return 0
