"""Read from the signature of transform() the tables that it takes, and their frame kinds."""

from __future__ import annotations

import difflib
import inspect
import keyword
import types
import typing
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from transform_shim.core.errors import InvalidReturn, MissingTable, NoTransform, shorten
from transform_shim.reading.frame_kinds import FrameKind

__all__ = ["bind_tables", "find_transform", "refuse_unfetched"]

_NO_TRANSFORM = "User script must define a 'transform()' function"
#: Package and class name of an annotation -> the frame kind it asks for. Names, so that nothing is imported to compare.
_FRAME_KINDS: Mapping[tuple[str, str], FrameKind] = {
    ("pandas", "DataFrame"): "pandas",
    ("polars", "DataFrame"): "polars",
    ("polars", "LazyFrame"): "polars_lazy",
    ("pyarrow", "Table"): "arrow",
    ("pyarrow", "RecordBatchReader"): "arrow_reader",
    ("duckdb", "DuckDBPyRelation"): "duckdb",
}
#: Names that are resolved one after the other before an annotation is taken to be circular.
_MOST_NAMES = 8
_UNIONS = (typing.Union, types.UnionType)


def find_transform(module: types.ModuleType) -> Callable[..., Any]:
    """Return the script's transform().

    Raises
    ------
    NoTransform
        If there is none, or it is no function.
    InvalidReturn
        If it returns a coroutine or a generator.
    """
    if not hasattr(module, "transform"):
        functions = {name.lower(): name for name, value in vars(module).items() if inspect.isfunction(value)}
        similar = difflib.get_close_matches("transform", functions, n=1)
        meant = f". Is '{functions[similar[0]]}()' a misspelling?" if similar else ""
        raise NoTransform(f"{_NO_TRANSFORM}{meant}")
    function = module.transform
    if not callable(function):
        raise NoTransform(f"{_NO_TRANSFORM}, but 'transform' is {_article(type(function).__name__)}")
    _refuse_deferred(inspect.unwrap(function))
    return typing.cast("Callable[..., Any]", function)


def _refuse_deferred(function: Callable[..., Any]) -> None:
    """Refuse a function whose call runs nothing of it, in the words for a wrong return type.

    Raises
    ------
    InvalidReturn
        If a call returns a coroutine or a generator.
    """
    if inspect.iscoroutinefunction(function):
        kind, way = "coroutine", "remove 'async' before 'def transform'; asyncio.run() works inside it"
    elif inspect.isasyncgenfunction(function):
        kind, way = (
            "async_generator",
            "remove 'async' before 'def transform', and return a data frame instead of 'yield'",
        )
    elif inspect.isgeneratorfunction(function):
        kind, way = "generator", "return a data frame instead of 'yield'"
    else:
        return
    raise InvalidReturn(f"Transform function must return a pandas DataFrame, got <class '{kind}'>", hint=way)


def bind_tables(function: Callable[..., Any], aliases: Iterable[str]) -> dict[str, FrameKind]:
    """Return the tables to be passed as keyword arguments, each with the frame kind that its annotation names.

    A table that no parameter names is not passed, unless there is ``**kwargs``, which takes all. A parameter without
    table keeps its default.

    Raises
    ------
    MissingTable
        If a parameter has neither table nor default.
    NoTransform
        If a parameter cannot be given by name.
    """
    aliases = list(aliases)
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError) as error:  # some callables of C have no signature
        raise NoTransform(f"{_NO_TRANSFORM} whose parameters can be inspected ({error})") from None
    bound: dict[str, FrameKind] = {}
    missing: list[inspect.Parameter] = []
    for parameter in parameters:
        if parameter.kind is parameter.VAR_POSITIONAL:
            continue
        if parameter.kind is parameter.VAR_KEYWORD:
            frame_kind = _frame_kind(parameter.annotation, function)
            bound |= {alias: frame_kind for alias in aliases if alias not in bound}
        elif parameter.kind is parameter.POSITIONAL_ONLY:
            if parameter.default is parameter.empty:
                problem = f"parameter '{parameter.name}' is positional-only; remove the '/' after it"
                raise NoTransform(f"{_NO_TRANSFORM} that takes tables by name: {problem}")
        elif parameter.name in aliases:
            bound[parameter.name] = _frame_kind(parameter.annotation, function)
        elif parameter.default is parameter.empty:
            missing.append(parameter)
    if missing:
        raise MissingTable(_missing_text(function, missing, aliases))
    return bound


def refuse_unfetched(bound: Iterable[str], unfetched: Iterable[str]) -> None:
    """Refuse a transform() that takes a table which was not fetched.

    The text of the script did not name it, so the script has put another function in the place of the one in its text.

    Raises
    ------
    MissingTable
        If a bound table was not fetched.
    """
    for alias in sorted({*bound} & {*unfetched}):
        text = f"Table {shorten(alias)} was not fetched: the line 'def transform(...)' of the script does not name it"
        raise MissingTable(text)


def _frame_kind(annotation: Any, function: Callable[..., Any]) -> FrameKind:
    """Return the frame kind that an annotation names; pandas for none, an unknown one, or one without a value."""
    annotation = _named(annotation, getattr(inspect.unwrap(function), "__globals__", {}))
    if annotation is inspect.Parameter.empty:
        return "pandas"
    if typing.get_origin(annotation) is typing.Annotated:
        return _frame_kind(typing.get_args(annotation)[0], function)
    if typing.get_origin(annotation) in _UNIONS:
        kinds = [_frame_kind(part, function) for part in typing.get_args(annotation) if part is not type(None)]
        return kinds[0] if kinds else "pandas"
    package = getattr(annotation, "__module__", "").split(".")[0].removeprefix("_")
    return _FRAME_KINDS.get((package, getattr(annotation, "__name__", "")), "pandas")


def _named(annotation: Any, scope: dict[str, Any]) -> Any:
    """Resolve an annotation through texts, aliases and new types; return ``empty`` for one that cannot be evaluated."""
    for _ in range(_MOST_NAMES):
        if isinstance(annotation, typing.ForwardRef):  # a text within Optional[...]
            annotation = annotation.__forward_arg__
        try:
            if isinstance(annotation, str):
                annotation = eval(annotation, scope)  # noqa: S307 - the user's own annotation in the user's own process
            elif isinstance(annotation, typing.NewType):
                annotation = annotation.__supertype__
            elif type(annotation).__name__ == "TypeAliasType":  # of Python 3.12, or of typing_extensions
                annotation = annotation.__value__
            else:
                return annotation
        except Exception:  # an annotation is a note to readers: a wrong one must not stop the job
            break
    return inspect.Parameter.empty


def _missing_text(function: Callable[..., Any], missing: list[inspect.Parameter], aliases: list[str]) -> str:
    """Return the words of Python's own TypeError, and the tables that there are."""
    positional = [p.name for p in missing if p.kind is not p.KEYWORD_ONLY]
    names = positional or [p.name for p in missing]
    kind = "positional" if positional else "keyword-only"
    plural = "s" if len(names) > 1 else ""
    name = getattr(function, "__qualname__", "transform").rpartition(".")[2].strip("<>")
    text = f"{name}() missing {len(names)} required {kind} argument{plural}: {_enumerate(names)}"
    text += f". Available tables: {', '.join(map(repr, aliases))}" if aliases else ". The job has no tables"
    close = [alias for alias in aliases if _as_identifier(alias) == names[0]]
    close = close or difflib.get_close_matches(names[0], aliases, n=1)
    return f"{text}. {_suggestion(close[0])}" if close else text


def _suggestion(alias: str) -> str:
    """Return a sentence about the table that was probably meant, which may have a name that no parameter can have."""
    read_as = _as_identifier(alias)
    if alias.isidentifier() and not keyword.iskeyword(alias) and read_as == alias:
        return f"Did you mean '{alias}'?"
    why = f" (Python reads it as '{read_as}')" if read_as != alias and read_as.isidentifier() else ""
    return (
        f"No parameter can be named {alias!r}{why}: rename the table, or take transform(**tables) and tables[{alias!r}]"
    )


def _as_identifier(name: str) -> str:
    """Return a name as Python reads it in source text."""
    return unicodedata.normalize("NFKC", name)


def _enumerate(names: list[str]) -> str:
    quoted = [f"'{name}'" for name in names]
    if len(quoted) < 3:
        return " and ".join(quoted)
    return f"{', '.join(quoted[:-1])}, and {quoted[-1]}"


def _article(noun: str) -> str:
    return f"{'an' if noun[:1] in 'aeiou' else 'a'} {noun}"
