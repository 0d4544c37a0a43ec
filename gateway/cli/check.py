"""`transform-gateway check`: find errors in a transform without running it."""

from __future__ import annotations

import argparse
import ast
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from gateway.cli import common
from gateway.cli.job_options import add_sources, named_files
from gateway.scripts.check import Transform, check, importable_names
from gateway.scripts.notebook import Cell, read_notebook


def main(name: str, arguments: Sequence[str]) -> int:
    """Check and print; the exit code is 1 when the transform would fail."""
    parser = common.parser(name, "Find errors in a transform, in a script or a notebook, without running it.")
    add_sources(parser)
    options = parser.parse_args(arguments)
    return common.guarded(lambda: _check(options))


def _check(options: argparse.Namespace) -> int:
    tables = named_files(options.table, "--table")
    transform = _transform(options.script, options.library)
    if isinstance(transform, str):
        sys.stdout.write(f"{options.script}:1: error: {transform} [no_transform]\n")
        return common.EXIT_FAILED
    report = check(transform, list(tables) if tables else None)
    for finding in report.findings:
        sys.stdout.write(f"{finding}\n")
    if report.lacks_imports:
        width = min(shutil.get_terminal_size((100, 24)).columns, 120)
        text = "installed for jobs: Python's standard library and " + ", ".join(importable_names())
        sys.stdout.write(textwrap.fill(text, width, subsequent_indent="  ") + "\n")
    if not report.findings:
        needs = f"; it needs the tables {', '.join(report.needs)}" if report.needs and not tables else ""
        sys.stdout.write(f"{transform.where}: no problems found{needs}\n")
    return common.EXIT_FAILED if report.has_errors else 0


def _transform(path: Path, library: Sequence[Path]) -> Transform | str:
    """Return the transform to check, or the reason why none was found."""
    modules = {file.stem: (str(file), common.script_text(file)) for file in library}
    if path.suffix != ".ipynb":
        return Transform(str(path), common.script_text(path), modules, path.absolute().parent)
    try:
        notebook = read_notebook(path)
    except ValueError as error:
        raise common.UsageError(str(error)) from None
    if notebook.script is None:
        return "no cell defines transform()"
    cells = {name: (_where(path, cell), cell.code) for name, cell in notebook.library.items()}
    elsewhere = {name: f"cell {cell.number}" for cell in notebook.others for name in _bound_names(cell)}
    where = _where(path, notebook.script)
    return Transform(where, notebook.script.code, cells | modules, path.absolute().parent, elsewhere)


def _where(path: Path, cell: Cell) -> str:
    return f"{path}:cell {cell.number}"


def _bound_names(cell: Cell) -> set[str]:
    try:
        tree = ast.parse(cell.code)
    except (SyntaxError, ValueError):
        return set()
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
    return names
