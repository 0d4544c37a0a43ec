"""One Python source, parsed: where it stands, what it imports, which names it leaves undefined."""

from __future__ import annotations

import ast
import builtins
import symtable
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning"]

_GIVEN_NAMES = frozenset(
    {"__name__", "__file__", "__doc__", "__builtins__", "__spec__", "__loader__", "__package__", "__annotations__"}
)
_IMPORT_FAILURES = frozenset({"ImportError", "ModuleNotFoundError", "Exception", "BaseException"})


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong, or that the author may not have meant; ``code`` is that of the failure it would be."""

    where: str
    line: int
    severity: Severity
    code: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}:{self.line}: {self.severity}: {self.message} [{self.code}]"


@dataclass(frozen=True, slots=True)
class Module:
    """A source that could be parsed; ``where`` is how findings name it."""

    where: str
    source: str
    tree: ast.Module


@dataclass(frozen=True, slots=True)
class Import:
    """One import of a top-level module; ``tolerated`` if the code goes on without it."""

    name: str
    line: int
    tolerated: bool


def parse(where: str, source: str) -> Module | Finding:
    """Return the parsed source, or why Python would not take it."""
    source = source.removeprefix("\ufeff")  # in a file, as the kernel gets it, that is a mark of its encoding
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(source, where)
            # finds what the grammar allows and the compiler does not, such as a return outside of a function
            compile(tree, where, "exec", dont_inherit=True)
    except SyntaxError as error:
        return Finding(where, error.lineno or 1, "error", "syntax_error", error.msg)
    except (ValueError, RecursionError) as error:
        return Finding(where, 1, "error", "syntax_error", str(error))
    return Module(where, source, tree)


def imports(module: Module) -> Iterator[Import]:
    """Yield every import that is carried out when the code is run, in functions too; not those for type checkers."""
    yield from _imports(module.tree, tolerated=False)


def relative_imports(module: Module) -> Iterator[int]:
    """Yield the lines of imports that begin with a dot."""
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
    """Whether a condition is ``TYPE_CHECKING`` or ``__name__ == "__main__"``: the script is imported as `script`."""
    text = ast.unparse(test)
    return text in ("TYPE_CHECKING", "typing.TYPE_CHECKING", "t.TYPE_CHECKING", "__name__ == '__main__'")


def _catches_import(handler: ast.ExceptHandler) -> bool:
    if handler.type is None:
        return True
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(isinstance(kind, ast.Name) and kind.id in _IMPORT_FAILURES for kind in kinds)


def executed(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of a module in order, those inside of if, try, with and loops too."""
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


def undefined_names(module: Module) -> dict[str, int]:
    """Return the names that are used and neither bound in the module nor built in, with the line of the first use.

    Nothing is returned for code that may bind names where nobody can see it: ``import *``, ``exec``, ``globals()``.
    """
    if any(_binds_unseen(node) for node in ast.walk(module.tree)):
        return {}
    bound: set[str] = set(dir(builtins)) | _GIVEN_NAMES
    used: set[str] = set()
    tables = [symtable.symtable(module.source, module.where, "exec")]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        is_top = table.get_type() == "module"
        for symbol in table.get_symbols():
            binds = symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace()
            if binds and (is_top or symbol.is_declared_global()):
                bound.add(symbol.get_name())
            if symbol.is_referenced() and (is_top or symbol.is_global()):
                used.add(symbol.get_name())
    names = [node for node in ast.walk(module.tree) if isinstance(node, ast.Name) and node.id in used - bound]
    return {node.id: node.lineno for node in sorted(names, key=lambda node: -node.lineno)}


def _binds_unseen(node: ast.AST) -> bool:
    if isinstance(node, ast.ImportFrom):
        return any(alias.name == "*" for alias in node.names)
    return isinstance(node, ast.Name) and node.id in ("exec", "globals", "eval")
