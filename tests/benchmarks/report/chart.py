"""Draws the comparison and the budget of a small job as one SVG; bars and texts need no plotting library."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from tests.benchmarks.report import floors
from tests.benchmarks.report.results import Comparison, Results

WIDTH, LEFT, RIGHT = 860, 270, 130
BAR, GAP = 13, 18
OURS, THEIRS, INK, FAINT = "#2f6fab", "#c9cdd2", "#24292f", "#6e7781"
DRAWN = (
    "one small job, warm",
    "small jobs back to back, one caller",
    "4 callers, SLOTS=2, against one slot",
    "flights, unchanged",
    "flights, grouped by carrier",
)
INNER_STAGE = "#2f9e8f"


def draw(results: Results, path: Path) -> None:
    """Write the chart."""
    parts: list[str] = []
    y = _heading(parts, results.about)
    for comparison in (each for each in results.comparisons if each.name in DRAWN):
        y = _pair(parts, comparison, y)
    if results.stages_ms:
        y = _budget(parts, results, y + 10)
    height = y + 10
    size = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    font = 'font-family="system-ui, sans-serif" font-size="12"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} {font}>'
    background = f'<rect width="{WIDTH}" height="{height}" fill="white"/>'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([head, background, *parts, "</svg>"]) + "\n")


def _text(x: float, y: float, text: str, *, colour: str = INK, anchor: str = "start", weight: str = "normal") -> str:
    look = f'fill="{colour}" text-anchor="{anchor}" font-weight="{weight}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {look}>{escape(text)}</text>'


def _bar(x: float, y: float, width: float, colour: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 1):.1f}" height="{BAR}" fill="{colour}"/>'


def _heading(parts: list[str], about: dict[str, Any]) -> int:
    where = f"{about['cores']} cores, {about['processor']}, Python {about['python']}, {about['when'][:10]}"
    parts.append(_text(20, 28, "Transform Gateway beside a new Python process for each job", weight="bold"))
    parts.append(_text(20, 46, f"medians of one run; {where}", colour=FAINT))
    parts += [_bar(20, 58, 13, OURS), _text(40, 69, "gateway")]
    parts += [
        _bar(110, 58, 13, THEIRS),
        _text(130, 69, "subprocess design"),
        _text(WIDTH - 20, 69, "ratio", anchor="end"),
    ]
    return 92


def _pair(parts: list[str], comparison: Comparison, y: int) -> int:
    """Draw two bars, each row on a scale of its own: a reader compares their lengths."""
    ours, theirs = comparison.gateway, comparison.baseline
    scale = (WIDTH - LEFT - RIGHT) / max(ours.median, theirs.median)
    parts.append(_text(LEFT - 12, y + BAR + 4, comparison.name, anchor="end"))
    for series, colour, offset in ((ours, OURS, 0), (theirs, THEIRS, BAR + 2)):
        length = series.median * scale
        parts.append(_bar(LEFT, y + offset, length, colour))
        inside = length > (WIDTH - LEFT - RIGHT) * 0.85
        label = f"{_short(series.median)} {comparison.unit}"
        ink = "white" if inside and colour == OURS else INK
        x = LEFT + length + (-6 if inside else 6)
        parts.append(_text(x, y + offset + 10.5, label, colour=ink, anchor="end" if inside else "start"))
    parts.append(_text(WIDTH - 20, y + BAR + 4, f"{comparison.ratio:.1f}×", anchor="end", weight="bold"))
    return y + 2 * BAR + GAP


def _budget(parts: list[str], results: Results, y: int) -> int:
    """Draw where the time of one small job goes, as a waterfall."""
    budget = list(floors.budget_us(results))
    whole = max(begin + length for _, begin, length, _ in budget)
    parts.append(_text(20, y + 10, f"One small job: {whole:,.0f} µs, medians by stage", weight="bold"))
    y += 24
    scale = (WIDTH - LEFT - RIGHT) / whole
    for name, begin, length, is_inner in budget:
        left = LEFT + begin * scale
        parts.append(_text(LEFT - 12, y + 10.5, name, anchor="end", colour=FAINT if is_inner else INK))
        parts.append(_bar(left, y, length * scale, INNER_STAGE if is_inner else OURS))
        parts.append(_text(left + length * scale + 6, y + 10.5, f"{length:,.0f} µs"))
        y += BAR + 4
    return y


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"
