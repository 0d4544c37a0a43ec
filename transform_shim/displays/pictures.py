"""Pictures in a notebook's HTML: the profile of a result, and the waterfall of a job's stages.

Words, figures and lengths are those of the page (`gateway/page/src/parts/profile.tsx` and
`gateway/page/src/job/waterfall.tsx`): `tests/page/playground.test.ts` compares both. The text has the colours of the
front end's theme, light or dark.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence

from transform_shim.displays.values import ColumnProfile, Profile, StageSpan

__all__ = ["profile_html", "waterfall_html"]

_LEFT_NAMES = {"Column", "Type", "Distribution"}
_LEFT, _RIGHT = "text-align: left", "text-align: right"
#: JupyterLab breaks lines in cells, and so broke histograms in two beside long dates (seen at 900 pixels)
_ONE_LINE = "white-space: nowrap"
_OUTER_COLOUR, _INNER_COLOUR = "#3b6fd4", "#2f9e8f"
#: A shorter bar would be invisible.
_LEAST_PERCENT = 0.3


def profile_html(profile: Profile, rows: int) -> str:
    """Return a table with one row for each column of a result; `rows` is how many rows the whole result has."""
    names = ["Column", "Type", "Nulls", "Distinct", "Min", "25 %", "50 %", "75 %", "Max", "Distribution"]
    head = "".join(f"<th style='{_LEFT if name in _LEFT_NAMES else _RIGHT}; {_ONE_LINE}'>{name}</th>" for name in names)
    body = "".join(f"<tr>{_row(column, profile.rows)}</tr>" for column in profile.columns)
    part = f"<p>Of the first {profile.rows:,} of {rows:,} rows.</p>" if profile.rows < rows else ""
    return f"{part}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _row(column: ColumnProfile, rows: int) -> str:
    nulls = f"{column.nulls:,}"
    if column.nulls:
        # a half is rounded up, as the page does
        nulls += f"\N{NO-BREAK SPACE}({math.floor(100 * column.nulls / rows + 0.5)}\N{NO-BREAK SPACE}%)"
    figures = [
        nulls,
        "\N{EN DASH}" if column.distinct is None else f"{column.distinct:,}",
        column.smallest or "",
        *(column.quartiles or ("", "", "")),
        column.largest or "",
    ]
    cells = [_cell(column.name, _LEFT), _cell(column.base_type, _LEFT), *(_cell(text, _RIGHT) for text in figures)]
    return f"{''.join(cells)}<td style='{_LEFT}; {_ONE_LINE}'>{_histogram(column.histogram or ())}</td>"


def _cell(text: str, style: str) -> str:
    return f"<td style='{style}'>{html.escape(text)}</td>"


def _histogram(counts: Sequence[int]) -> str:
    most = max(counts, default=0)
    if not most:
        return ""
    # elements that JupyterLab keeps in a notebook that it does not trust, which SVG is not
    bars = "".join(
        f"<span style='display: inline-block; width: 7px; margin-right: 1px; height: {20 * count / most:.1f}px; "
        f"background: {_OUTER_COLOUR}'></span>"
        for count in counts
    )
    return f"<span title='{len(counts)} bins: {', '.join(map(str, counts))}'>{bars}</span>"


def waterfall_html(spans: Sequence[StageSpan]) -> str:
    """Return the stages of a job as bars on one axis of time; the first begins at its left end."""
    begin, end = min((span.begin for span in spans), default=0.0), max((span.end for span in spans), default=0.0)
    rows = "".join(_bar(span, begin, max(end - begin, 1e-6)) for span in spans)
    return f"<table style='width: 100%; max-width: 50em'><tbody>{rows}</tbody></table>"


def _bar(span: StageSpan, begin: float, length: float) -> str:
    left, width = 100 * (span.begin - begin) / length, 100 * (span.end - span.begin) / length
    colour = _INNER_COLOUR if span.parent else _OUTER_COLOUR
    indent = "; padding-left: 1.5em" if span.parent else ""
    bar = f"<div style='margin-left: {min(left, 100 - _LEAST_PERCENT):.2f}%; width: {max(width, _LEAST_PERCENT):.2f}%; "
    bar += f"height: 0.7em; background: {colour}'></div>"
    return (
        f"<tr><td style='{_LEFT}{indent}; width: 7em'>{html.escape(span.name)}</td><td>{bar}</td>"
        f"<td style='{_RIGHT}; width: 6em'>{_seconds(span.end - span.begin)}</td></tr>"
    )


def _seconds(seconds: float) -> str:
    """Return a time as the page's `seconds` does."""
    if seconds == 0:
        return "0 s"
    if seconds < 0.0000995:
        return f"{math.floor(1e6 * seconds + 0.5)} µs"
    if seconds < 0.0995:
        digits = f"{1000 * seconds:#.{2 if seconds < 0.00995 else 3}g}"
        return re.sub(r"\.0*$", "", digits) + " ms"
    if seconds < 59.95:
        return f"{seconds:.{2 if seconds < 9.995 else 1}f} s"
    minutes, rest = divmod(math.floor(seconds + 0.5), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
