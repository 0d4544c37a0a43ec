"""Output contracts: the columns that a result must have, from the request or from the script's `OUTPUT_SCHEMA`."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any

from transform_shim.core.errors import ContractInvalid, shorten

__all__ = ["COLUMN_TYPES", "Bound", "ColumnRule", "Contract", "parse_contract"]

Bound = int | float | Decimal | datetime

#: The types that a rule may name, with the classes of their bounds.
COLUMN_TYPES: Mapping[str, tuple[type[Any], ...]] = {
    "integer": (int, float, Decimal),
    "number": (int, float, Decimal),
    "text": (),
    "boolean": (),
    "date": (date,),
    "datetime": (date,),
    "time": (),
}


@dataclass(frozen=True, slots=True)
class ColumnRule:
    """The rule for one column.

    Attributes
    ----------
    type : str or None
        One of `COLUMN_TYPES`; None allows each.
    nullable : bool
        Whether it may have nulls.
    min, max : number, datetime or None
        Smallest and largest value; moments are naive and in UTC.
    unique : bool
        Whether no two rows have the same value; nulls do not count.
    """

    type: str | None = None
    nullable: bool = True
    min: Bound | None = None
    max: Bound | None = None
    unique: bool = False


@dataclass(frozen=True, slots=True)
class Contract:
    """The rules by column. A result may have more columns, in any order."""

    columns: Mapping[str, ColumnRule]


def parse_contract(value: object, where: str) -> Contract:
    """Return the contract that a JSON object or a dict of the script describes.

    Parameters
    ----------
    value : object
        ``{"columns": {NAME: {"type", "nullable", "min", "max", "unique"}}}``.
    where : str
        Its name in messages.

    Returns
    -------
    Contract

    Raises
    ------
    ContractInvalid
        The text names the member that is wrong, and its valid values.
    """
    if not isinstance(value, Mapping) or set(value) != {"columns"} or not isinstance(value["columns"], Mapping):
        raise ContractInvalid(where, f'expected {{"columns": {{NAME: RULES}}}}, not {shorten(value)}')
    rules = {}
    for name, entry in value["columns"].items():
        if not isinstance(name, str):
            raise ContractInvalid(f"{where}: columns", f"expected the name of a column, not {shorten(name)}")
        rules[name] = _rule(entry, f"{where}: columns[{name!r}]")
    return Contract(rules)


def _rule(value: object, where: str) -> ColumnRule:
    known = [entry.name for entry in fields(ColumnRule)]
    if not isinstance(value, Mapping):
        raise ContractInvalid(where, f"expected an object with {', '.join(known)}, not {shorten(value)}")
    if unknown := [name for name in value if name not in known]:
        raise ContractInvalid(where, f"unknown rule {shorten(unknown[0])}; the rules are {', '.join(known)}")
    for name in ("nullable", "unique"):
        if not isinstance(value.get(name, True), bool):
            raise ContractInvalid(f"{where}.{name}", f"expected true or false, not {shorten(value[name])}")
    kind = value.get("type")
    if kind is not None and kind not in list(COLUMN_TYPES):  # a list: the value may be one that has no hash
        raise ContractInvalid(f"{where}.type", f"expected {', '.join(COLUMN_TYPES)}, not {shorten(kind)}")
    low, high = (_bound(value.get(name), kind, f"{where}.{name}") for name in ("min", "max"))
    if low is not None and high is not None and low > high:
        raise ContractInvalid(where, f"min {low} is above max {high}")
    return ColumnRule(kind, value.get("nullable", True), low, high, value.get("unique", False))


def _bound(value: Any, kind: str | None, where: str) -> Any:
    """Return a bound; a date as a naive moment in UTC."""
    if value is None:
        return None
    allowed: tuple[type[Any], ...] = () if kind is None else COLUMN_TYPES[kind]
    if not allowed:
        names = ", ".join(name for name, classes in COLUMN_TYPES.items() if classes)
        raise ContractInvalid(where, f"needs a column of type {names}")
    is_date = date in allowed
    if is_date and isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = datetime.fromisoformat(value)
    if not isinstance(value, allowed) or isinstance(value, bool) or value != value:
        words = "a date such as 2025-01-31" if is_date else "a number"
        raise ContractInvalid(where, f"expected {words}, not {shorten(value)}")
    if not is_date:
        return value
    moment: datetime = value if isinstance(value, datetime) else datetime.combine(value, time())
    return moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment
