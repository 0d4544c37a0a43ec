"""Draws the comparison and the stages as one SVG; bars and texts need no plotting library."""

from __future__ import annotations

import math
from html import escape
from pathlib import Path

from tests.benchmarks.results import INNER, Comparison, Results, Series, machine

WIDTH, LEFT, RIGHT = 860, 270, 130
BAR, GAP = 13, 18
GROWTH_HEIGHT = 150
OURS, THEIRS, INK, FAINT = "#2f6fab", "#c9cdd2", "#24292f", "#6e7781"
STAGE_COLOURS = ("#2f6fab", "#7aa6cf", "#e39f4d", "#8bb174", "#b07aa1", "#d4706b", "#5b9aa0", "#9c755f")


def draw(results: Results, path: Path) -> None:
    """Write the chart."""
    parts: list[str] = []
    y = _heading(parts)
    for comparison in results.comparisons:
        y = _pair(parts, comparison, y)
    if results.stages_ms:
        y = _stages(parts, results.stages_ms, y + 10)
    if len(results.growth) > 1:
        y = _growth(parts, results.growth, y + 30)
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


def _heading(parts: list[str]) -> int:
    about = machine()
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
    """Draw two bars, each row on a scale of its own: what is compared is their length."""
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


def _stages(parts: list[str], stages: dict[str, Series], y: int) -> int:
    """Draw where the time of one small job goes, as one bar."""
    outer = {name: series.median for name, series in stages.items() if name not in INNER}
    total = sum(outer.values()) or 1.0
    parts.append(_text(20, y + 10, f"One small job, {_short(total)} ms by stage", weight="bold"))
    x, y = 20.0, y + 20
    width = WIDTH - 40
    for (_, value), colour in zip(outer.items(), _colours(len(outer)), strict=True):
        parts.append(_bar(x, y, width * value / total, colour))
        x += width * value / total
    x = 20.0
    for (name, value), colour in zip(outer.items(), _colours(len(outer)), strict=True):
        label = f"{name} {_short(value)} ms"
        parts += [_bar(x, y + 22, 11, colour), _text(x + 17, y + 32, label)]
        x += 34 + 6.6 * len(label)
    return y + 50


def _growth(parts: list[str], growth: list[tuple[int, Series]], y: int) -> int:
    """Draw time over rows, both on logarithmic scales: a straight slope is a cost that grows with the rows."""
    parts.append(_text(20, y, "A table grouped with Polars, by rows", weight="bold"))
    top, left, right = y + 20, 70.0, WIDTH - RIGHT
    bottom = top + GROWTH_HEIGHT
    exponents = [math.log10(rows) for rows, _ in growth]
    times = [math.log10(series.median) for _, series in growth]
    low, high = math.floor(min(times)), math.ceil(max(times))
    points = []
    for exponent, seconds, (rows, series) in zip(exponents, times, growth, strict=True):
        x = left + (right - left) * (exponent - exponents[0]) / (exponents[-1] - exponents[0])
        at = bottom - (bottom - top) * (seconds - low) / max(high - low, 1)
        points.append(f"{x:.1f},{at:.1f}")
        parts.append(f'<circle cx="{x:.1f}" cy="{at:.1f}" r="3.5" fill="{OURS}"/>')
        parts.append(_text(x + 8, at + 16, f"{_short(series.median)} s"))
        parts.append(_text(x, bottom + 18, f"{rows:,}", colour=FAINT, anchor="middle"))
    for exponent in range(low, high + 1):
        at = bottom - (bottom - top) * (exponent - low) / max(high - low, 1)
        parts.append(f'<path d="M{left} {at:.1f}H{right}" stroke="{THEIRS}" stroke-width="0.5"/>')
        parts.append(_text(left - 10, at + 4, f"{10.0**exponent:g} s", colour=FAINT, anchor="end"))
    parts.append(f'<polyline points="{" ".join(points)}" fill="none" stroke="{OURS}" stroke-width="2"/>')
    return bottom + 30


def _colours(count: int) -> list[str]:
    return [STAGE_COLOURS[i % len(STAGE_COLOURS)] for i in range(count)]


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"
