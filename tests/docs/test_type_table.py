"""The table of types in the documentation says what the code does."""

from __future__ import annotations

from tests.docs.type_table import READ_EXAMPLES, WRITE_EXAMPLES, read_row, render_markdown, write_row
from transform_shim.core.base_types import PARENTS, Kind, kind_of


def test_every_example_has_its_row() -> None:
    lines = render_markdown().splitlines()
    assert sum(line.startswith("|") for line in lines) == len(READ_EXAMPLES) + len(WRITE_EXAMPLES) + 4
    assert "| Integer | `1` | `int64` | `int64`; with nulls `Int64` |" in lines
    assert "| `float64` | `double` | Float | `0.30000000000000004`, `null`, `null` |" in lines


def test_every_kind_of_value_has_an_example() -> None:
    assert {kind_of(base_type) for base_type, _ in READ_EXAMPLES} == set(Kind)


def test_rendering_is_the_same_every_time() -> None:
    assert render_markdown() == render_markdown()


def test_rows_show_real_behaviour() -> None:
    assert read_row("Decimal", "1234.56") == ("Decimal", "`1234.56`", "`decimal128(18, 2)`", "`float64`")
    written = {label: write_row(label, make()) for label, make in WRITE_EXAMPLES}
    assert written["objects: all null"][2:] == ("Text", "`null`, `null`")
    assert written["`complex`"][3].startswith("error: ")


def test_kinds_follow_metabases_hierarchy() -> None:
    assert kind_of("type/Integer") is Kind.INTEGER
    assert kind_of("Instant") is Kind.INSTANT
    assert kind_of("DateTime") is Kind.DATETIME
    assert kind_of("Time") is Kind.JSON_TEXT
    assert kind_of("TimeWithTZ", "Text") is Kind.JSON_TEXT
    assert kind_of("OracleThing", "Number") is Kind.NUMBER
    assert kind_of("*") is kind_of(None) is kind_of("", "") is Kind.JSON_TEXT
    assert all(kind_of(name) for name in PARENTS)
