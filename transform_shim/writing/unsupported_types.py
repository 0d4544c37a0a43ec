"""Types that an engine passes to Arrow as other values, without an error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from transform_shim.core.errors import OutputInvalid

__all__ = ["refuse_duckdb_types", "refuse_polars_types"]

#: The form in which Arrow gets each: addresses in memory; a format it does not know.
_POLARS: Mapping[str, str] = {
    "Object": "text or numbers",
    "Int128": "Decimal(38, 0) or Int64",
    "UInt128": "Decimal(38, 0) or UInt64",
}
#: Negative numbers from 2^127 on; its bytes as they lie in memory; the same, padded; the clock without its offset.
_DUCKDB: Mapping[str, str] = {
    "UHUGEINT": "DECIMAL(38, 0) or VARCHAR",
    "BIGNUM": "DECIMAL(38, 0) or VARCHAR",
    "BIT": "VARCHAR",
    "TIME WITH TIME ZONE": "TIME or VARCHAR",
}


def refuse_polars_types(columns: Iterable[tuple[str, object]]) -> None:
    """Check a Polars schema.

    Raises
    ------
    OutputInvalid
        If a column has a type that Polars and Arrow do not share.
    """
    _refuse(columns, _POLARS, "Polars")


def refuse_duckdb_types(columns: Iterable[tuple[str, object]]) -> None:
    """Check the columns of a DuckDB relation.

    Raises
    ------
    OutputInvalid
        If a column has a type that DuckDB passes to Arrow as other values.
    """
    _refuse(columns, _DUCKDB, "DuckDB")


def _refuse(columns: Iterable[tuple[str, object]], refused: Mapping[str, str], engine: str) -> None:
    for name, kind in columns:
        better = refused.get(str(kind))
        if better is not None:
            raise OutputInvalid(f"the {engine} type {kind} cannot be written; cast it to {better}", column=name)
