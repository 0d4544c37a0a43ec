"""Tables, profiles, comparisons and waterfalls as text for a terminal."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import pyarrow as pa
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gateway.core.displays import DisplayedProfile
from gateway.results.comparison import Comparison
from gateway.results.result_file import type_name
from gateway.telemetry.waterfall import StageSpan

__all__ = ["comparison_text", "head_text", "profile_text", "waterfall_text"]

DEFAULT_WIDTH_COLUMNS = 120
CELL_CHARACTERS = 40
BARS = " ▁▂▃▄▅▆▇█"
WATERFALL_COLUMNS = 50
SEPARATOR_COLUMNS = 2


def head_text(table: pa.Table, rows: int, width: int | None = None) -> str:
    """Return the first rows, with the type and the number of nulls of each column above them.

    Parameters
    ----------
    table : pyarrow.Table
        The result.
    rows : int
        Number of rows to show.
    width : int, optional
        Width of the terminal in columns; default: 120.
    """
    shown = table.slice(0, rows).to_pydict() if table.num_columns else {}
    head = [
        f"{_cell(field.name)}\n[{type_name(field.type)}{_nulls(table.column(place))}]"
        for place, field in enumerate(table.schema)
    ]
    cells = zip(*([_cell(value) for value in column] for column in shown.values()), strict=True)
    right = [type_name(field.type) != "text" for field in table.schema]
    text = _rendered(head, cells, right, width)
    left = table.num_rows - rows
    return text + (f"... {left:,} more row{'s' * (left != 1)}\n" if left > 0 else "")


def profile_text(profile: DisplayedProfile, rows: int, width: int | None = None) -> str:
    """Return a table with one line for each column; `rows` is how many the whole result has."""
    head = ["column", "type", "nulls", "distinct", "min", "25 %", "50 %", "75 %", "max", "distribution"]
    lines = (
        [
            _cell(each.name),
            _cell(each.base_type),
            f"{each.nulls:,}" + (f" ({each.nulls / profile.rows:.0%})" if each.nulls else ""),
            "" if each.distinct is None else f"{each.distinct:,}",
            _cell(each.smallest, ""),
            *(_cell(value, "") for value in each.quartiles or (None, None, None)),
            _cell(each.largest, ""),
            _bars(each.histogram or ()),
        ]
        for each in profile.columns
    )
    part = f"the first {profile.rows:,} of {rows:,} rows:\n" if profile.rows < rows else ""
    return part + _rendered(head, lines, [False, False, *[True] * 7, False], width, has_names=True)


def waterfall_text(spans: Sequence[StageSpan]) -> str:
    """Return the stages of a job as bars on one axis of time."""
    begin, end = min((span.begin for span in spans), default=0.0), max((span.end for span in spans), default=0.0)
    scale = WATERFALL_COLUMNS / (end - begin) if end > begin else 0.0
    lines = []
    for span in spans:
        left = round((span.begin - begin) * scale)
        length = max(1, round((span.end - begin) * scale) - left)
        bar = f"{' ' * min(left, WATERFALL_COLUMNS - 1)}{'█' * length}"
        name = f"  {span.name}" if span.parent else span.name
        lines.append(f"{name:<12}{bar:<{WATERFALL_COLUMNS}}  {span.end - span.begin:.4f} s")
    return "".join(f"{line}\n" for line in lines)


def comparison_text(found: Comparison, before: str, tolerance: float) -> str:
    """Return the differences, one line for each kind; `before` names the earlier result."""
    if found.is_same and not found.types_changed:
        return f"same as {before}: columns, types and rows (tolerance {tolerance:g})\n"
    lines = [f"compared with {before}:"]
    for change, names in (("added", found.columns_added), ("removed", found.columns_removed)):
        lines += [f"  columns {change}: {', '.join(map(_printable, names))}"] if names else []
    lines += [f"  type of {_printable(name)}: {old} -> {new}" for name, (old, new) in found.types_changed.items()]
    rows = [f"{found.rows_added:,} added", f"{found.rows_removed:,} removed"]
    rows += [] if found.rows_changed is None else [f"{found.rows_changed:,} changed"]
    lines.append(f"  rows: {', '.join(rows)}")
    for name, count in found.cells_changed.items():
        lines.append(f"  {_printable(name)}: {count:,} cell{'s' * (count != 1)} changed")
    for each in found.examples:
        key = ", ".join(_cell(value) for value in each.key)
        shown = [_cell(each.before), _cell(each.after)]
        if shown[0] == shown[1] and isinstance(each.after, float):  # they differ in a later digit
            shown = [repr(each.before), repr(each.after)]
        lines.append(f"    {key}: {_printable(each.column)} {' -> '.join(shown)}")
    if found.rows_changed is None and found.rows_added and found.rows_removed:
        lines.append("  --key COLUMN shows which cells of a row changed")
    return "\n".join(lines) + "\n"


def _rendered(
    head: Sequence[str],
    lines: Iterable[Sequence[str]],
    right: Sequence[bool],
    width: int | None,
    *,
    has_names: bool = False,
) -> str:
    """Return a table, in blocks below each other if it is too wide; with `has_names` each one has the first column."""
    lines, width = list(lines), width or DEFAULT_WIDTH_COLUMNS
    target = io.StringIO()
    console = Console(file=target, width=width, color_system=None, force_terminal=False)
    for number, block in enumerate(_blocks([head, *lines], width, has_names=has_names)):
        table = Table(box=None, pad_edge=False, header_style="")
        for place in block:
            # Text, because rich would read brackets in names and cells as markup
            justify: Literal["right", "left"] = "right" if right[place] else "left"
            table.add_column(Text(head[place]), justify=justify, overflow="ellipsis", no_wrap=True)
        for line in lines:
            table.add_row(*(Text(line[place]) for place in block))
        console.print(*([""] if number else []), table, sep="\n")
    return "\n".join(line.rstrip() for line in target.getvalue().splitlines()) + "\n"


def _blocks(lines: Sequence[Sequence[str]], width: int, *, has_names: bool) -> list[list[int]]:
    """Return the places of the columns that fit beside each other: rich would cut all of them, down to nothing."""
    widths = [
        max(cell_len(part) for cell in column for part in cell.split("\n")) for column in zip(*lines, strict=True)
    ]
    blocks: list[list[int]] = [[]]
    for place in range(len(widths)):
        block = [*blocks[-1], place]
        is_full = sum(widths[each] for each in block) + SEPARATOR_COLUMNS * (len(block) - 1) > width
        if is_full and len(block) > 1 + has_names:
            blocks.append([0, place] if has_names else [place])
        else:
            blocks[-1] = block
    return blocks


def _nulls(column: pa.ChunkedArray) -> str:
    return f", {column.null_count:,} null" if column.null_count else ""


def _cell(value: Any, null: str = "null") -> str:
    if value is None:
        return null
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    text = _printable(text[:CELL_CHARACTERS])
    return text if len(text) <= CELL_CHARACTERS else text[: CELL_CHARACTERS - 1] + "…"


def _printable(text: str) -> str:
    """Escape control characters: those of a job's data and column names must not reach the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _bars(counts: Sequence[int]) -> str:
    most = max(counts, default=0)
    return "".join(BARS[-(-count * (len(BARS) - 1) // most)] for count in counts) if most else ""
