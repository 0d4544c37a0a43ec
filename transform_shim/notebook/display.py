"""Results and tables as plain text and as HTML."""

# mypy: disable-error-code="no-untyped-call"
# IPython's display has no annotations

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from transform_shim.displays.pictures import profile_html, waterfall_html
from transform_shim.displays.values import Image

if TYPE_CHECKING:
    from transform_shim.displays.values import Display
    from transform_shim.displays.values import Table as DisplayedTable
    from transform_shim.notebook.run_outcome import TransformRun
    from transform_shim.notebook.tables import Table, Tables

__all__ = ["all_tables_html", "run_html", "run_text", "show_displays", "size", "tables_html"]

#: Stages in their order; those of the second line are inside ``execute``, whose time includes theirs.
_OUTER = ("queue", "fetch", "claim", "execute", "hold", "kill", "deliver")
_INNER = ("import", "read", "transform", "write", "profile")
_LEAST_SECONDS = 0.0005
#: A larger output is not read as a whole only to be shown.
_WHOLE_BYTES = 50_000_000


def size(size_bytes: float) -> str:
    """Return a size in a unit that is easy to read."""
    for unit in ("bytes", "kB", "MB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} {unit}" if unit == "bytes" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.2f} GB"


def summary(run: TransformRun, *, has_log: bool = False) -> str:
    """Return the outcome in one line; a failure without its message, where the log above ends with it."""
    if not run.ok:
        outcome = f"{run.code} (exit code {run.exit_code})"
        return outcome if has_log else f"{outcome}: {run.error}"
    columns = len(run.fields)
    text = f"{run.rows:,} row{'s' * (run.rows != 1)}, {columns} column{'s' * (columns != 1)}"
    return f"{text}, {size(run.output_bytes)}"


def cost(run: TransformRun, *, by_stage: bool = True) -> str:
    """Return time, by stage where nothing else shows that, and peak memory in one line."""
    text = f"{run.seconds:.3f} s"
    if by_stage and (stages := _times(run)):
        text += f": {stages}"
    if run.peak_memory_bytes:
        text += f"; peak memory {run.peak_memory_bytes / (1 << 20):,.0f} MiB"
    return f"{text}; in {run.where}"


def _times(run: TransformRun) -> str:
    stages = {name: seconds for name, seconds in run.stages.items() if seconds >= _LEAST_SECONDS}
    inner = [f"{name} {stages[name]:.3f}" for name in _INNER if name in stages]
    shown = [f"{name} {stages[name]:.3f}" for name in _OUTER if name in stages]
    shown += [f"{name} {seconds:.3f}" for name, seconds in stages.items() if name not in (*_INNER, *_OUTER)]
    if "execute" in stages and inner:
        place = next(i for i, text in enumerate(shown) if text.startswith("execute"))
        shown[place] += f" ({', '.join(inner)})"
    elif inner:
        shown += inner
    return ", ".join(shown)


def run_text(run: TransformRun, *, has_log: bool = False) -> str:
    """Return the whole of a run as plain text; `has_log` is whether its log is shown above."""
    lines = [summary(run, has_log=has_log)]
    if run.ok:
        if run.fields:
            lines.append(str(_shown_frame(run)))
        lines.append("schema: " + ", ".join(f"{name} {base_type}" for name, base_type in run.fields))
    lines.append(cost(run))
    lines += _extras(run, has_log=has_log)
    return "\n".join(lines)


def run_html(run: TransformRun, *, has_log: bool = False) -> str:
    """Return the whole of a run as HTML; `has_log` is whether its log is shown above."""
    if run.ok:
        head = f"<p><b>{_text(summary(run))}</b></p>"
        frame = _shown_frame(run)._repr_html_() if run.fields else ""
        types = _table(["column", "base type"], run.fields)
        columns = types if run.profile is None else profile_html(run.profile, run.rows)
        body = f"{frame}<details open><summary>what Metabase would create</summary>{columns}</details>"
    else:
        given = ", ".join(run.tables) or "none"
        head = f"<p><b>{_text(run.code)}</b> (exit code {run.exit_code}); tables given: {_text(given)}</p>"
        body = "" if has_log else f"<pre>{_text(run.error or '')}</pre>"
    lines = [cost(run, by_stage=not run.waterfall), *_extras(run, has_log=has_log)]
    notes = "".join(f"<p>{_text(line)}</p>" for line in lines)
    stages = (
        f"<details open><summary>stages</summary>{waterfall_html(run.waterfall)}</details>" if run.waterfall else ""
    )
    return f"<div style='margin-top: 0.5em'>{head}{body}{stages}<small>{notes}</small></div>"


def show_displays(run: TransformRun) -> None:
    """Show the images and tables that the transform displayed."""
    from IPython.display import display as show

    for display in run.displays:
        show(display_data(display), raw=True)


def display_data(display: Display) -> dict[str, Any]:
    """Return an image or a table in the forms that a front end shows."""
    if not isinstance(display, Image):
        return {"text/plain": _cells_text(display), "text/html": _cells_html(display)}
    data = base64.b64encode(display.data).decode()
    if display.media_type == "image/png":
        return {"text/plain": display.text, "image/png": data}
    # not as image/svg+xml, which a front end may put into its page, where scripts of the SVG run
    image = f'<img src="data:{display.media_type};base64,{data}" alt="{_text(display.text)}">'
    return {"text/plain": display.text, "text/html": image}


def tables_html(tables: Sequence[Table]) -> str:
    """Return the loaded tables as HTML."""
    rows = [
        (
            table.name,
            f"{table.rows:,}",
            ", ".join(f"{name} {base_type}" for name, base_type in table.fields),
            size(table.size_bytes).replace(" ", "\N{NO-BREAK SPACE}"),
            table.origin,
        )
        for table in tables
    ]
    return _table(["name", "rows", "columns", "size", "source"], rows)


def tables_text(tables: Sequence[Table]) -> str:
    """Return the loaded tables as plain text."""
    lines = []
    for table in tables:
        lines.append(f"{table.name}: {table.rows:,} rows, {size(table.size_bytes)}, from {table.origin}")
        lines += [f"    {name}  {base_type}" for name, base_type in table.fields]
    return "\n".join(lines)


def _shown_frame(run: TransformRun) -> Any:
    """Return the data, or its head: a job's output can be larger than this kernel's memory."""
    return run.frame if run.output_bytes <= _WHOLE_BYTES else run.head()


def _extras(run: TransformRun, *, has_log: bool) -> list[str]:
    extras = []
    if run.ok and run.variable:
        extras.append(f"as a data frame: {run.variable}")
    if run.held and not has_log:
        until = f" (until {run.held['expires_at']})" if run.held.get("expires_at") else ""
        extras.append(f"the failed kernel is held{until}; attach to it: {run.held.get('attach')}")
    if run.not_held and not has_log:
        extras.append(f"the failed kernel is not held: {run.not_held}")
    if run.comparison:
        extras.append(run.comparison)
    return extras


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = "".join(f"<th style='text-align: left'>{_text(name)}</th>" for name in head)
    body = "".join(
        "<tr>" + "".join(f"<td style='text-align: left'>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"


def _cells_text(table: DisplayedTable) -> str:
    rows = [*table.header, *table.rows]
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(max(map(len, rows), default=0))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=False)) for row in rows)


def _cells_html(table: DisplayedTable) -> str:
    head = "".join("<tr>" + "".join(f"<th>{_text(cell)}</th>" for cell in row) + "</tr>" for row in table.header)
    body = "".join(
        "<tr>"
        + "".join(f"<th>{_text(cell)}</th>" for cell in row[: table.index_columns])
        + "".join(f"<td>{_text(cell)}</td>" for cell in row[table.index_columns :])
        + "</tr>"
        for row in table.rows
    )
    return f"<table><thead>{head}</thead><tbody>{body}</tbody></table>"


def _text(value: str) -> str:
    return html.escape(value)


def all_tables_html(tables: Tables) -> str | None:
    """Return the HTML of all loaded tables, or None without tables."""
    loaded = [tables.info(name) for name in tables]
    return tables_html(loaded) if loaded else None
