"""Results and tables for a person to look at, as plain text and as HTML."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transform_shim.notebook.results import Result
    from transform_shim.notebook.tables import Table

__all__ = ["result_html", "result_text", "size", "tables_html"]

#: Stages in their order; those of the second line are inside ``execute``, whose time includes theirs.
_OUTER = ("queue", "fetch", "claim", "execute", "hold", "kill", "deliver")
_INNER = ("import", "read", "transform", "write")
_LEAST_SECONDS = 0.0005
#: A larger output is not read as a whole only to be shown.
_WHOLE_BYTES = 50_000_000


def size(size_bytes: float) -> str:
    """Bytes as a person says them."""
    for unit in ("bytes", "kB", "MB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} {unit}" if unit == "bytes" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.2f} GB"


def summary(result: Result) -> str:
    """The outcome in one line."""
    if not result.ok:
        return f"{result.code} (exit code {result.exit_code}): {result.error}"
    columns = len(result.fields)
    text = f"{result.rows:,} row{'s' * (result.rows != 1)}, {columns} column{'s' * (columns != 1)}"
    return f"{text}, {size(result.output_bytes)}"


def cost(result: Result) -> str:
    """Time by stage and peak memory in one line."""
    stages = {name: seconds for name, seconds in result.stages.items() if seconds >= _LEAST_SECONDS}
    inner = [f"{name} {stages[name]:.3f}" for name in _INNER if name in stages]
    shown = [f"{name} {stages[name]:.3f}" for name in _OUTER if name in stages]
    shown += [f"{name} {seconds:.3f}" for name, seconds in stages.items() if name not in (*_INNER, *_OUTER)]
    if "execute" in stages and inner:
        place = next(i for i, text in enumerate(shown) if text.startswith("execute"))
        shown[place] += f" ({', '.join(inner)})"
    elif inner:
        shown += inner
    text = f"{result.seconds:.3f} s: {', '.join(shown)}" if shown else f"{result.seconds:.3f} s"
    if result.peak_memory_bytes:
        text += f"; peak memory {result.peak_memory_bytes / (1 << 20):,.0f} MiB"
    return f"{text}; in {result.where}"


def result_text(result: Result) -> str:
    """The whole of a result as plain text."""
    lines = [summary(result)]
    if result.ok:
        if result.fields:
            lines.append(str(_shown_frame(result)))
        lines.append("schema: " + ", ".join(f"{name} {base_type}" for name, base_type in result.fields))
    lines.append(cost(result))
    lines += _extras(result)
    return "\n".join(lines)


def result_html(result: Result) -> str:
    """The whole of a result as HTML."""
    if result.ok:
        head = f"<p><b>{_text(summary(result))}</b></p>"
        frame = _shown_frame(result)._repr_html_() if result.fields else ""
        types = _table(["column", "base type"], result.fields)
        body = f"{frame}<details open><summary>what Metabase would create</summary>{types}</details>"
    else:
        head = (
            f"<p><b>{_text(result.code)}</b> (exit code {result.exit_code})</p><pre>{_text(result.error or '')}</pre>"
        )
        given = ", ".join(result.tables) or "none"
        body = f"<p>tables given: {_text(given)}</p>"
    notes = "".join(f"<p>{_text(line)}</p>" for line in [cost(result), *_extras(result)])
    return f"<div>{head}{body}<small>{notes}</small></div>"


def tables_html(tables: Sequence[Table]) -> str:
    """The loaded tables as HTML."""
    rows = [
        (
            table.name,
            f"{table.rows:,}",
            ", ".join(f"{name} {base_type}" for name, base_type in table.fields),
            size(table.size_bytes),
            table.origin,
        )
        for table in tables
    ]
    return _table(["name", "rows", "columns", "size", "where from"], rows)


def tables_text(tables: Sequence[Table]) -> str:
    """The loaded tables as plain text."""
    lines = []
    for table in tables:
        lines.append(f"{table.name}: {table.rows:,} rows, {size(table.size_bytes)}, from {table.origin}")
        lines += [f"    {name}  {base_type}" for name, base_type in table.fields]
    return "\n".join(lines)


def _shown_frame(result: Result) -> Any:
    """The data, or its head: what a job may return can be more than this kernel has memory for."""
    return result.frame if result.output_bytes <= _WHOLE_BYTES else result.head()


def _extras(result: Result) -> list[str]:
    extras = []
    if result.held:
        until = f" (until {result.held['expires_at']})" if result.held.get("expires_at") else ""
        extras.append(f"the failed kernel is held{until}; attach to it: {result.held.get('attach')}")
    if result.not_held:
        extras.append(f"the failed kernel is not held: {result.not_held}")
    if result.comparison:
        extras.append(result.comparison)
    return extras


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = "".join(f"<th style='text-align: left'>{_text(name)}</th>" for name in head)
    body = "".join(
        "<tr>" + "".join(f"<td style='text-align: left'>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"


def _text(value: str) -> str:
    return html.escape(value)
