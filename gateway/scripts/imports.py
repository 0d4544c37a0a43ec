"""One parsed Python source: its syntax errors, imports and undefined names."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from pyflakes import checker, messages  # type: ignore[import-untyped]

Severity = Literal["error", "warning"]

#: Names of every module that pyflakes does not count as given, and IPython's `display`, which jobs have.
_GIVEN_NAMES = frozenset({"__spec__", "__loader__", "__package__", "display"})
_IMPORT_FAILURES = frozenset({"ImportError", "ModuleNotFoundError", "Exception", "BaseException"})


@dataclass(frozen=True, slots=True)
class Finding:
    """An error or a likely mistake; ``code`` is the code of the failure that it would cause."""

    where: str
    line: int
    severity: Severity
    code: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}:{self.line}: {self.severity}: {self.message} [{self.code}]"


@dataclass(frozen=True, slots=True)
class Module:
    """A source without syntax errors; ``where`` is its name in findings."""

    where: str
    source: str
    tree: ast.Module


@dataclass(frozen=True, slots=True)
class Import:
    """One import of a top-level module; ``tolerated`` if the code handles its absence."""

    name: str
    line: int
    tolerated: bool


def parse(where: str, source: str) -> Module | Finding:
    """Return the parsed source, or its syntax error."""
    source = source.removeprefix("\ufeff")  # the kernel gets a file, in which this is the byte order mark
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(source, where)
            # finds errors that the grammar allows, such as a return outside of a function
            compile(tree, where, "exec", dont_inherit=True)
    except SyntaxError as error:
        return Finding(where, error.lineno or 1, "error", "syntax_error", error.msg)
    except (ValueError, RecursionError) as error:
        return Finding(where, 1, "error", "syntax_error", str(error))
    return Module(where, source, tree)


def imports(module: Module) -> Iterator[Import]:
    """Yield every import that runs with the code, also in functions, but not those for type checkers."""
    yield from _imports(module.tree, tolerated=False)


def relative_imports(module: Module) -> Iterator[int]:
    """Yield the lines of relative imports."""
    yield from (node.lineno for node in ast.walk(module.tree) if isinstance(node, ast.ImportFrom) and node.level)


def _imports(node: ast.AST, *, tolerated: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        yield from (Import(alias.name.partition(".")[0], node.lineno, tolerated) for alias in node.names)
        return
    if isinstance(node, ast.ImportFrom):
        if node.module and not node.level:
            yield Import(node.module.partition(".")[0], node.lineno, tolerated)
        return
    if isinstance(node, ast.If) and _is_never_true(node.test):
        for child in node.orelse:
            yield from _imports(child, tolerated=tolerated)
        return
    guarded = isinstance(node, ast.Try) and any(_catches_import(handler) for handler in node.handlers)
    body: list[ast.stmt] = node.body if isinstance(node, ast.Try) else []
    for part in ast.iter_child_nodes(node):
        yield from _imports(part, tolerated=tolerated or (guarded and part in body))


def _is_never_true(test: ast.expr) -> bool:
    """Return whether a condition is ``TYPE_CHECKING`` or ``__name__ == "__main__"``: the module's name is `script`."""
    text = ast.unparse(test)
    return text in ("TYPE_CHECKING", "typing.TYPE_CHECKING", "t.TYPE_CHECKING", "__name__ == '__main__'")


def _catches_import(handler: ast.ExceptHandler) -> bool:
    if handler.type is None:
        return True
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(isinstance(kind, ast.Name) and kind.id in _IMPORT_FAILURES for kind in kinds)


def executed(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of a module in order, also those inside of if, try, with and loops."""
    for node in body:
        if isinstance(node, ast.If) and _is_never_true(node.test):
            yield from executed(node.orelse)
            continue
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        for part in ("body", "orelse", "handlers", "finalbody"):
            for child in getattr(node, part, []):
                yield from executed(child.body if isinstance(child, ast.ExceptHandler) else [child])


class _Names(checker.Checker):  # type: ignore[misc]
    """pyflakes without the names in annotations that Python does not evaluate: they cannot fail."""

    def handleStringAnnotation(self, *arguments: Any) -> None:
        pass

    def handleAnnotation(self, annotation: ast.expr, node: ast.AST) -> None:
        if not self.annotationsFutureEnabled:
            super().handleAnnotation(annotation, node)


def undefined_names(module: Module) -> dict[str, int]:
    """Return the names that are used and neither bound in the module nor built in, with the line of the first use.

    Nothing is returned for code that may bind names invisibly: ``import *``, ``exec``, ``eval``, ``globals()``.
    """
    if any(_binds_unseen(node) for node in ast.walk(module.tree)):
        return {}
    try:
        found = _Names(module.tree, module.where, builtins=_GIVEN_NAMES).messages
    except RecursionError:  # pyflakes takes several frames for each level, so a sum of 300 terms is too deep
        return {}
    names = [message for message in found if isinstance(message, messages.UndefinedName)]
    return {message.message_args[0]: message.lineno for message in sorted(names, key=lambda found: -found.lineno)}


def _binds_unseen(node: ast.AST) -> bool:
    if isinstance(node, ast.ImportFrom):
        return any(alias.name == "*" for alias in node.names)
    return isinstance(node, ast.Name) and node.id in ("exec", "globals", "eval")
