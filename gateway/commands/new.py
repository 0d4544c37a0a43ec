"""`transform-gateway new`: a transform to begin with, and a test that runs it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from gateway.commands import common
from gateway.sources.starter import write_starter


def main(name: str, arguments: Sequence[str]) -> int:
    """Write the files and say what to do with them."""
    parser = common.parser(name, "Write a transform to begin with: NAME.py, a table to try it on, and test_NAME.py.")
    parser.add_argument("name", metavar="NAME", help="of the transform; a Python identifier")
    parser.add_argument("--dir", type=Path, default=Path(), help="where; default: here")
    options = parser.parse_args(arguments)
    return common.guarded(lambda: _new(options))


def _new(options: argparse.Namespace) -> int:
    try:
        written = write_starter(options.dir, options.name)
    except ValueError as error:
        raise common.UsageError(str(error)) from None
    except FileExistsError as error:
        raise common.UsageError(f"{error.filename} is there already; nothing was written") from None
    script, table, test = written
    sys.stdout.write(
        f"wrote {script}, {table} and {test}\ntransform-gateway run {script} --table orders={table}\npytest {test}\n"
    )
    return 0
