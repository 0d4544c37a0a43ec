"""Types that an engine passes to Arrow as other values, without an error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from transform_shim.core.errors import OutputInvalid

__all__ = ["refuse_duckdb_types", "refuse_polars_types"]

#: The form in which Arrow gets each: addresses in memory; a format it does not know.
_POLARS: Mapping[str, str] = {
    "Object": "text or numbers",
    "Int128": "Decimal(38, 0) or Int64",
    "UInt128": "Decimal(38, 0) or UInt64",
}
#: Negative numbers from 2^127 on; its bytes as they lie in memory; the same, padded; the clock without its offset; its
#: bytes again.
_DUCKDB: Mapping[str, str] = {
    "UHUGEINT": "DECIMAL(38, 0) or VARCHAR",
    "BIGNUM": "DECIMAL(38, 0) or VARCHAR",
    "BIT": "VARCHAR",
    "TIME WITH TIME ZONE": "TIME or VARCHAR",
    "VARIANT": "JSON or VARCHAR",
}


_DUCKDB_NESTED = frozenset({"list", "array", "struct", "map", "union"})


def refuse_polars_types(columns: Iterable[tuple[str, Any]]) -> None:
    """Check a Polars schema.

    Raises
    ------
    OutputInvalid
        If a column has a type, or values with one, that Polars and Arrow do not share.
    """
    _refuse(columns, _polars_parts, _POLARS, "Polars")


def refuse_duckdb_types(columns: Iterable[tuple[str, Any]]) -> None:
    """Check the columns of a DuckDB relation.

    Raises
    ------
    OutputInvalid
        If a column has a type, or values with one, that DuckDB passes to Arrow as other values.
    """
    _refuse(columns, _duckdb_parts, _DUCKDB, "DuckDB")


def _refuse(
    columns: Iterable[tuple[str, Any]],
    parts: Callable[[Any], Iterable[Any]],
    refused: Mapping[str, str],
    engine: str,
) -> None:
    for name, kind in columns:
        for part in map(str, _each(kind, parts)):
            if (better := refused.get(part)) is not None:
                whole = "" if part == str(kind) else f" in {kind}"
                problem = f"the {engine} type {part}{whole} cannot be written; cast it to {better}"
                raise OutputInvalid(problem, column=name)


def _each(kind: Any, parts: Callable[[Any], Iterable[Any]]) -> Iterator[Any]:
    """Yield a type and the types of the values that it holds."""
    yield kind
    for part in parts(kind):
        yield from _each(part, parts)


def _polars_parts(kind: Any) -> Iterable[Any]:
    inner = getattr(kind, "inner", None)  # of a list or an array
    return [field.dtype for field in getattr(kind, "fields", ())] if inner is None else [inner]


def _duckdb_parts(kind: Any) -> Iterable[Any]:
    if kind.id not in _DUCKDB_NESTED:
        return []
    return [part for _, part in kind.children if not isinstance(part, int)]  # an array has its size too
