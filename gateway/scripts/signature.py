"""Check the ``transform`` function in a source: its definition, its parameters and its return value."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator, Sequence

from gateway.scripts.imports import Finding, Module, executed

#: Annotations that choose the frame kind of a table; with any other, or none, it is a pandas DataFrame.
TABLE_TYPES = (
    "pandas.DataFrame",
    "polars.DataFrame",
    "polars.LazyFrame",
    "pyarrow.Table",
    "pyarrow.RecordBatchReader",
    "duckdb.DuckDBPyRelation",
)

_NO_FUNCTIONS = (ast.Constant, ast.List, ast.Dict, ast.Set, ast.Tuple, ast.JoinedStr, ast.BinOp, ast.Compare)
_Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)


def check_transform(module: Module, tables: Sequence[str] | None) -> Iterator[Finding]:
    """Yield the findings about the script's ``transform``.

    Parameters
    ----------
    module : Module
        The script.
    tables : sequence of str or None
        Names of its tables; None when they are unknown.
    """
    bound = _binding(module)
    if bound is None:
        text = "there is no transform() function"
        names = [node.name for node in executed(module.tree.body) if isinstance(node, ast.FunctionDef)]
        close = difflib.get_close_matches("transform", names, n=1)
        hint = f"; is {close[0]}() a misspelling?" if close else ""
        yield Finding(module.where, 1, "error", "no_transform", text + hint)
        return
    if isinstance(bound, _NO_FUNCTIONS):
        yield Finding(module.where, bound.lineno, "error", "no_transform", "transform is not a function")
    if not isinstance(bound, _Function):
        return  # a class, a call, an import: its parameters are unknown before it runs
    yield from _check_kind(module, bound)
    if not getattr(bound, "decorator_list", []):  # a decorator may change the parameters
        yield from _check_parameters(module, bound, tables)


def parameters(module: Module) -> list[str]:
    """Return the names of the tables that ``transform`` requires."""
    bound = _binding(module)
    return [p.arg for p, required in _by_name(bound.args) if required] if isinstance(bound, _Function) else []


def _binding(module: Module) -> ast.AST | None:
    """Return the last binding of ``transform``: a definition, an expression, or the import."""
    found: ast.AST | None = None
    functions: dict[str, ast.AST] = {}
    for node in executed(module.tree.body):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            functions[node.name] = node
            found = node if node.name == "transform" else found
        elif isinstance(node, ast.Import | ast.ImportFrom):
            if any((alias.asname or alias.name) in ("transform", "*") for alias in node.names):
                found = node
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Name) and target.id == "transform" for target in targets):
                name = node.value.id if isinstance(node.value, ast.Name) else ""
                found = functions.get(name, node.value)
            elif any(_store(target) is not None for target in targets):  # `transform, x = ...`
                found = node
    return found or next((bound for node in executed(module.tree.body) if (bound := _store(node))), None)


def _store(node: ast.AST) -> ast.AST | None:
    """Return the part of a statement that binds ``transform`` and tells nothing of its value, such as a loop's name."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        found = (each for each in ast.walk(node) if isinstance(each, ast.Global))
        return next((each for each in found if "transform" in each.names), None)
    names = (each for each in ast.walk(node) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store))
    return next((name for name in names if name.id == "transform"), None)


def _check_kind(module: Module, function: _Function) -> Iterator[Finding]:
    inside = list(_own_nodes(function))
    where, line = module.where, function.lineno
    if isinstance(function, ast.AsyncFunctionDef):
        yield Finding(where, line, "error", "no_transform", "transform() must not be async: its result is not awaited")
        return
    yields = [node.lineno for node in inside if isinstance(node, ast.Yield | ast.YieldFrom)]
    if yields:
        text = "transform() is a generator because of this yield; return a data frame"
        yield Finding(where, yields[0], "error", "no_transform", text)
        return
    if isinstance(function, ast.Lambda):
        return
    returns = [node for node in inside if isinstance(node, ast.Return)]
    for node in returns:
        if node.value is None or isinstance(node.value, ast.Constant):
            shown = "nothing" if node.value is None else ast.unparse(node.value)
            yield Finding(
                where, node.lineno, "error", "invalid_return", f"transform() returns {shown}, not a data frame"
            )
    if not returns and not isinstance(function.body[-1], ast.Raise):
        yield Finding(where, line, "error", "invalid_return", "transform() returns nothing; return a data frame")


def _check_parameters(module: Module, function: _Function, tables: Sequence[str] | None) -> Iterator[Finding]:
    arguments = function.args
    where, line = module.where, function.lineno
    required_positional = len(arguments.posonlyargs) - max(0, len(arguments.defaults) - len(arguments.args))
    for parameter in arguments.posonlyargs[: max(0, required_positional)]:
        text = f"parameter '{parameter.arg}' is positional-only, but tables are passed by name: remove the '/' after it"
        yield Finding(where, parameter.lineno, "error", "no_transform", text)
    aliases = _aliases(module)
    for parameter, required in _by_name(arguments):
        is_table = parameter.arg in tables if tables is not None else required
        if required and tables is not None and not is_table:
            yield Finding(where, parameter.lineno, "error", "missing_table", _missing(parameter.arg, tables))
        problem = _annotation_problem(parameter, aliases) if is_table else ""
        if problem:
            yield Finding(where, parameter.lineno, "warning", "user_error", problem)
    names = [parameter.arg for parameter, _ in _by_name(arguments)]
    if arguments.kwarg is None:
        for table in tables or ():
            if table not in names:
                close = difflib.get_close_matches(table, names, n=1)
                hint = f"; did you mean '{close[0]}'?" if close else ""
                text = f"no parameter of transform() takes the table '{table}'{hint}"
                yield Finding(where, line, "warning", "missing_table", text)


def _missing(name: str, tables: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, tables, n=1)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    there = f"there are: {', '.join(tables)}." if tables else "there are none."
    return f"parameter '{name}' has no table; {there}{hint}"


def _by_name(arguments: ast.arguments) -> list[tuple[ast.arg, bool]]:
    """Return the parameters that can be passed by name, each with whether it is required."""
    without_default = len(arguments.args) - min(len(arguments.args), len(arguments.defaults))
    found = [(parameter, place < without_default) for place, parameter in enumerate(arguments.args)]
    return found + [(p, d is None) for p, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]


def _own_nodes(function: _Function) -> Iterator[ast.AST]:
    """Yield all nodes of a function except those of functions and classes within it."""
    todo: list[ast.AST] = list(function.body) if isinstance(function.body, list) else [function.body]
    while todo:
        node = todo.pop(0)
        yield node
        if not isinstance(node, _SCOPES):
            todo += ast.iter_child_nodes(node)


def _aliases(module: Module) -> dict[str, str]:
    """Return the full names of imported names, such as ``pandas`` for ``pd``."""
    found: dict[str, str] = {}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _annotation_problem(parameter: ast.arg, aliases: dict[str, str]) -> str:
    if parameter.annotation is None:
        return ""
    shown = ast.unparse(parameter.annotation)
    if any(name in TABLE_TYPES for name in _annotated(parameter.annotation, aliases)):
        return ""
    known = ", ".join(TABLE_TYPES)
    return f"'{parameter.arg}' is annotated {shown}, not one of {known}; the table will be a pandas DataFrame"


def _annotated(node: ast.expr, aliases: dict[str, str]) -> Iterator[str]:
    """Yield the full names of the types of an annotation, also within unions, Optional and Annotated."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        try:
            node = ast.parse(node.value, mode="eval").body
        except SyntaxError:
            return
    if isinstance(node, ast.BinOp):
        yield from _annotated(node.left, aliases)
        yield from _annotated(node.right, aliases)
    elif isinstance(node, ast.Subscript):
        inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        for part in inner:
            yield from _annotated(part, aliases)
    elif isinstance(node, ast.Name | ast.Attribute):
        first, _, rest = ast.unparse(node).partition(".")
        full = f"{aliases.get(first, first)}.{rest}".rstrip(".")
        package, _, name = full.partition(".")
        yield f"{package}.{name.rpartition('.')[2]}"  # as duckdb.duckdb.DuckDBPyRelation
