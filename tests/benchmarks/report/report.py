"""Prints the results as tables."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from tests.benchmarks.report import floors
from tests.benchmarks.report.results import INNER, Figure, Results, Series


def show(results: Results, console: Console) -> None:
    """Print everything that was measured, with goals where there are some."""
    about = results.about
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    console.print(f"{about['processor']}, {about['cores']} cores, {about['memory_gib']} GiB, {about['system']}")
    console.print(f"Python {about['python']}, {versions}\n")
    if floors.rows(results):
        console.print(_beside_floors(results))
    if results.comparisons:
        console.print(_comparisons(results))
    if results.stages_ms:
        console.print(_stages(results))
    if results.figures:
        console.print(_figures(results))
    if results.soak:
        console.print(_soak(results))
    for note in results.notes:
        console.print(f"note: {note}")


def _spread(series: Series) -> str:
    return f"{_short(series.low)} – {_short(series.high)}"


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    return table


def _beside_floors(results: Results) -> Table:
    table = _table("Beside its floor", "", "gateway", "floor", "alone", "ratio", "goal")
    for row in floors.rows(results):
        alone, measured = floors.quantity(row.floor, row.unit), floors.quantity(row.measured, row.unit)
        table.add_row(row.name, measured, row.floor_name, alone, f"{row.ratio:.2f}×", row.verdict)
    return table


def _comparisons(results: Results) -> Table:
    table = _table(
        "Beside the subprocess design",
        "",
        "unit",
        "gateway",
        "spread",
        "subprocess",
        "spread",
        "ratio",
        "goal",
    )
    for c in results.comparisons:
        verdict = "" if c.goal is None else f"≥ {c.goal:g} {'MISSED' if c.is_missed else 'met'}"
        cells = (_short(c.gateway.median), _spread(c.gateway), _short(c.baseline.median), _spread(c.baseline))
        table.add_row(c.name, c.unit, *cells, f"{c.ratio:.1f}×", verdict)
    return table


def _stages(results: Results) -> Table:
    table = _table("One small job by stage", "", "ms", "spread")
    for name, series in results.stages_ms.items():
        label = f"{name} (in execute)" if name in INNER else name
        table.add_row(label, _short(series.median), _spread(series))
    return table


def _figures(results: Results) -> Table:
    table = _table("The gateway alone", "", "unit", "median", "spread", "limit")
    for figure in results.figures:
        spread = _spread(figure.series) if len(figure.series.values) > 1 else ""
        table.add_row(figure.name, figure.unit, _short(figure.series.median), spread, _verdict(figure))
    return table


def _verdict(figure: Figure) -> str:
    bounds = [f"≤ {figure.limit:g}"] if figure.limit is not None else []
    bounds += [f"≥ {figure.floor:g}"] if figure.floor is not None else []
    return f"{bounds[0]} {'MISSED' if figure.is_missed else 'met'}" if bounds else ""


def _soak(results: Results) -> Table:
    table = _table("Many small jobs in a row", "jobs", "process", "PSS MiB", "descriptors", "threads")
    for look in results.soak:
        for process in look["processes"]:
            if process["role"] in ("gateway", "launcher", "fork server"):
                cells = (process["pss_mib"], process["descriptors"], process["threads"])
                table.add_row(str(look["jobs"]), process["role"], *(str(cell) for cell in cells))
    return table
