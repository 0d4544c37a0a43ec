"""Read the transform of a notebook: the last cell that defines ``transform``, with ``%%library`` cells as its modules.

Only that cell is the script, without the imports and values of other cells. Lines of IPython (magics, shell commands,
help) become empty lines, so that the line number of an error is the line of the cell.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: Cell magics with Python cells; cells of other magics (``%%bash``, ``%%html``) are ignored.
PYTHON_MAGICS = frozenset({"transform", "time", "timeit", "prun", "capture"})

_CELL_MAGIC = re.compile(r"\s*%%(\w+)[ \t]*([^\n]*)(?:\n|$)")
_DEFINES_TRANSFORM = re.compile(r"^(?:async\s+)?def\s+transform\b|^transform\s*=[^=]", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Cell:
    """A Python cell; cells of the notebook are numbered from 1."""

    number: int
    code: str


@dataclass(frozen=True, slots=True)
class NotebookTransform:
    """The cells of a notebook's transform.

    Attributes
    ----------
    script : Cell or None
        None if no cell defines ``transform``.
    library : dict
        Module name to its last cell.
    others : tuple of Cell
        All other Python cells.
    """

    script: Cell | None
    library: dict[str, Cell] = field(default_factory=dict)
    others: tuple[Cell, ...] = ()


def read_notebook(path: Path) -> NotebookTransform:
    """Return the transform of a notebook file.

    Raises
    ------
    ValueError
        The file is not a notebook of format 4.
    OSError
        The file cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        cells = list(enumerate(content["cells"], 1))
        sources = [(number, _text(cell["source"])) for number, cell in cells if cell["cell_type"] == "code"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path}: not a notebook (format 4)") from None
    library: dict[str, Cell] = {}
    python: list[Cell] = []
    for number, source in sources:
        magic = _CELL_MAGIC.match(source)
        # an empty line replaces the magic, so that lines keep their numbers
        body = source if magic is None else "\n" * source[: magic.end()].count("\n") + source[magic.end() :]
        if magic is not None and magic[1] == "library":
            name = magic[2].strip().partition(" ")[0].removesuffix(".py")
            library[name] = Cell(number, plain_python(body))
        elif magic is None or magic[1] in PYTHON_MAGICS:
            python.append(Cell(number, plain_python(body)))
    script = next((cell for cell in reversed(python) if _defines_transform(cell.code)), None)
    return NotebookTransform(script, library, tuple(cell for cell in python if cell is not script))


def plain_python(source: str) -> str:
    """Return a cell without the lines of IPython; syntax errors of other lines stay.

    A line is removed only if it is a syntax error: ``% b`` may be the second line of an expression.
    """
    lines = source.split("\n")
    for _ in range(len(lines)):
        try:
            ast.parse("\n".join(lines))
            break
        except SyntaxError as error:
            at = (error.lineno or 0) - 1
            if not 0 <= at < len(lines) or not _is_ipython(lines[at]):
                break
            indent = lines[at][: len(lines[at]) - len(lines[at].lstrip())]
            lines[at] = f"{indent}pass" if indent else ""
        except ValueError:  # a null byte
            break
    return "\n".join(lines)


def _is_ipython(line: str) -> bool:
    text = line.strip()
    return text.startswith(("%", "!", "?")) or text.endswith("?")


def _defines_transform(code: str) -> bool:
    try:
        return "transform" in set(_bound(ast.parse(code)))
    except (SyntaxError, ValueError):
        return _DEFINES_TRANSFORM.search(code) is not None


def _bound(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))


def _text(source: Any) -> str:
    text = source if isinstance(source, str) else "".join(source)
    return text.replace("\r\n", "\n")
