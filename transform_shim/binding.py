"""Which tables transform() takes, and in which form: read from its signature."""

from __future__ import annotations

import difflib
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from transform_shim.errors import MissingTable, NoTransform
from transform_shim.reading.tables import Form

__all__ = ["bind_tables", "find_transform"]

_NO_TRANSFORM = "User script must define a 'transform()' function"
#: Package and class name of an annotation -> the form it asks for. Names, so that nothing is imported to compare.
_FORMS: Mapping[tuple[str, str], Form] = {
    ("pandas", "DataFrame"): "pandas",
    ("polars", "DataFrame"): "polars",
    ("polars", "LazyFrame"): "polars_lazy",
    ("pyarrow", "Table"): "arrow",
    ("pyarrow", "RecordBatchReader"): "arrow_reader",
    ("duckdb", "DuckDBPyRelation"): "duckdb",
}
#: Names that may stand for names, before an annotation is taken to go in a circle.
_MOST_NAMES = 8
_UNIONS = (typing.Union, types.UnionType)


def find_transform(module: types.ModuleType) -> Callable[..., Any]:
    """The script's transform().

    Raises
    ------
    NoTransform
        If there is none, or none that can be called for a frame.
    """
    if not hasattr(module, "transform"):
        raise NoTransform(_NO_TRANSFORM)
    function = module.transform
    if not callable(function):
        raise NoTransform(f"{_NO_TRANSFORM}, but 'transform' is {_article(type(function).__name__)}")
    plain = inspect.unwrap(function)
    if inspect.iscoroutinefunction(plain) or inspect.isasyncgenfunction(plain):
        raise NoTransform(f"{_NO_TRANSFORM} without 'async': nobody awaits the result")
    if inspect.isgeneratorfunction(plain):
        raise NoTransform(f"{_NO_TRANSFORM} that returns a DataFrame; with 'yield' in it, it is a generator")
    return typing.cast("Callable[..., Any]", function)


def bind_tables(function: Callable[..., Any], aliases: Iterable[str]) -> dict[str, Form]:
    """The tables to be passed as keyword arguments, each with the form its annotation asks for.

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
        raise NoTransform(f"{_NO_TRANSFORM} whose parameters can be looked at ({error})") from None
    bound: dict[str, Form] = {}
    missing: list[inspect.Parameter] = []
    for parameter in parameters:
        if parameter.kind is parameter.VAR_POSITIONAL:
            continue
        if parameter.kind is parameter.VAR_KEYWORD:
            form = _form(parameter.annotation, function)
            bound |= {alias: form for alias in aliases if alias not in bound}
        elif parameter.kind is parameter.POSITIONAL_ONLY:
            if parameter.default is parameter.empty:
                problem = f"parameter '{parameter.name}' is positional-only; remove the '/' after it"
                raise NoTransform(f"{_NO_TRANSFORM} that takes tables by name: {problem}")
        elif parameter.name in aliases:
            bound[parameter.name] = _form(parameter.annotation, function)
        elif parameter.default is parameter.empty:
            missing.append(parameter)
    if missing:
        raise MissingTable(_missing_text(function, missing, aliases))
    return bound


def _form(annotation: Any, function: Callable[..., Any]) -> Form:
    """The form an annotation names; pandas for none, an unknown one, or one that cannot be evaluated."""
    annotation = _named(annotation, getattr(inspect.unwrap(function), "__globals__", {}))
    if annotation is inspect.Parameter.empty:
        return "pandas"
    if typing.get_origin(annotation) is typing.Annotated:
        return _form(typing.get_args(annotation)[0], function)
    if typing.get_origin(annotation) in _UNIONS:
        forms = [_form(part, function) for part in typing.get_args(annotation) if part is not type(None)]
        return forms[0] if forms else "pandas"
    package = getattr(annotation, "__module__", "").split(".")[0].removeprefix("_")
    return _FORMS.get((package, getattr(annotation, "__name__", "")), "pandas")


def _named(annotation: Any, scope: dict[str, Any]) -> Any:
    """What an annotation names, by way of texts, aliases and new types; ``empty`` for one that cannot be evaluated."""
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
    """The words of Python's own TypeError, and what there is instead."""
    positional = [p.name for p in missing if p.kind is not p.KEYWORD_ONLY]
    names = positional or [p.name for p in missing]
    kind = "positional" if positional else "keyword-only"
    plural = "s" if len(names) > 1 else ""
    name = getattr(function, "__qualname__", "transform").rpartition(".")[2].strip("<>")
    text = f"{name}() missing {len(names)} required {kind} argument{plural}: {_enumerate(names)}"
    text += f". Available tables: {', '.join(map(repr, aliases))}" if aliases else ". The job has no tables"
    close = difflib.get_close_matches(names[0], aliases, n=1)
    return f"{text}. Did you mean '{close[0]}'?" if close else text


def _enumerate(names: list[str]) -> str:
    quoted = [f"'{name}'" for name in names]
    if len(quoted) < 3:
        return " and ".join(quoted)
    return f"{', '.join(quoted[:-1])}, and {quoted[-1]}"


def _article(noun: str) -> str:
    return f"{'an' if noun[:1] in 'aeiou' else 'a'} {noun}"
