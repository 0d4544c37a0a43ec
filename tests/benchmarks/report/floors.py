"""Each figure of a run beside its floor: what the parts that nobody can leave out take alone, measured in the same run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gateway.telemetry.waterfall import lay_out
from tests.benchmarks.report.results import Results

BEGIN, END = "<!-- run:first -->\n", "<!-- run:last -->\n"


@dataclass(frozen=True, slots=True)
class Row:
    """One figure beside its floor.

    Attributes
    ----------
    name, floor_name : str
    unit : str
        Of both.
    measured, floor : float
    goal : float or None
        The largest ratio that is asked for.
    """

    name: str
    measured: float
    unit: str
    floor_name: str
    floor: float
    goal: float | None = None

    @property
    def ratio(self) -> float:
        return self.measured / self.floor

    @property
    def verdict(self) -> str:
        """Return the goal and whether it is met; empty without one."""
        if self.goal is None:
            return ""
        return f"≤ {self.goal:g}×, {'missed' if self.is_missed else 'met'}"

    @property
    def is_missed(self) -> bool:
        """Whether the ratio is more than what is asked for."""
        return self.goal is not None and self.ratio > self.goal


@dataclass(frozen=True, slots=True)
class _Kind:
    """A row by the names of figures; the floor is the sum of its figures, in the unit of the first."""

    name: str
    measured: str
    floor_name: str
    floor: tuple[str, ...]
    goal: float | None = None


_KINDS = (
    _Kind(
        "a small job through S3",
        "one small job, warm",
        "kernel's round trip, two fetches, three uploads, one fsync",
        (
            "alone: kernel round trip, the same kernel again",
            "alone: two fetches and three uploads",
            "alone: one fsync",
        ),
        1.25,
    ),
    _Kind(
        "a small job inline",
        "one small job, table and result inline",
        "kernel's round trip, one fsync",
        ("alone: kernel round trip, the same kernel again", "alone: one fsync"),
        1.25,
    ),
    _Kind(
        "the small job through S3 again",
        "one small job, warm",
        "the same parts without the pause of 0.3 s that is before each job",
        (
            "alone: kernel round trip, the same kernel again, without a pause",
            "alone: two fetches and three uploads, without a pause",
            "alone: one fsync, without a pause",
        ),
    ),
    _Kind(
        "the small job inline again",
        "one small job, table and result inline",
        "the same parts without that pause",
        ("alone: kernel round trip, the same kernel again, without a pause", "alone: one fsync, without a pause"),
    ),
    _Kind(
        "95th percentile of small jobs, back to back",
        "small job, back to back: p95",
        "their median",
        ("small job, back to back: p50",),
        1.5,
    ),
    _Kind(
        "95th percentile of small jobs, 0.1 s apart",
        "small job, 0.1 s after the one before: p95",
        "their median",
        ("small job, 0.1 s after the one before: p50",),
        1.5,
    ),
    _Kind(
        "100,000 printed lines",
        "100,000 printed lines in a job",
        "`python -u` into `cat`",
        ("100,000 printed lines of python -u | cat",),
        1.5,
    ),
    _Kind(
        "reading 101 MB of JSON lines",
        "read 101 MB of JSON lines, ours",
        "Polars",
        ("read 101 MB of JSON lines, Polars",),
        1.5,
    ),
    _Kind(
        "writing 101 MB of JSON lines",
        "write 101 MB of JSON lines, ours",
        "Polars",
        ("write 101 MB of JSON lines, Polars",),
        1.5,
    ),
    _Kind(
        "101 MB of flights, unchanged",
        "flights, unchanged",
        "Polars' reading and writing, the store alone",
        (
            "read 101 MB of JSON lines, Polars",
            "write 101 MB of JSON lines, Polars",
            "flights, unchanged: the store alone",
        ),
        1.15,
    ),
    _Kind(
        "101 MB of flights, grouped",
        "flights, grouped by carrier",
        "Polars' reading, the store alone",
        ("read 101 MB of JSON lines, Polars", "flights, grouped by carrier: the store alone"),
        1.15,
    ),
    _Kind(
        "start of a notebook's kernel",
        "notebook: start through a gateway",
        "ipykernel's own start",
        ("notebook: start of ipykernel's python3",),
        0.2,
    ),
)


def rows(results: Results) -> list[Row]:
    """Return the rows whose figures were measured."""
    found: dict[str, tuple[float, str]] = {c.name: (c.gateway.median, c.unit) for c in results.comparisons}
    found |= {figure.name: (figure.series.median, figure.unit) for figure in results.figures}
    return [
        Row(kind.name, *found[kind.measured], kind.floor_name, sum(found[name][0] for name in kind.floor), kind.goal)
        for kind in _KINDS
        if all(name in found for name in (kind.measured, *kind.floor))
    ]


def write_page(results: Results, path: Path) -> None:
    """Replace the table of a page by that of this run."""
    before, _, rest = path.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    lines = ["| measured | gateway | its floor | alone | ratio | goal |", "|---|---|---|---|---|---|"]
    for row in rows(results):
        gateway, alone = quantity(row.measured, row.unit), quantity(row.floor, row.unit)
        lines.append(f"| {row.name} | {gateway} | {row.floor_name} | {alone} | {row.ratio:.2f}× | {row.verdict} |")
    table = "".join(f"{line}\n" for line in lines)
    path.write_text(f"{before}{BEGIN}{table}{END}{after}")


def quantity(value: float, unit: str) -> str:
    """Return a value with three digits and its unit."""
    return f"{value:.3g} {unit}" if value < 100 else f"{value:.0f} {unit}"


def budget_us(results: Results) -> Iterator[tuple[str, float, float, bool]]:
    """Yield name, begin and length in µs of each stage of a small job, and whether it lies inside another one.

    Medians of each stage, laid out as the page shows them; what the caller's clock has beyond them, before and
    after, is the last one.
    """
    spans = lay_out({name: 1000 * series.median for name, series in results.stages_ms.items()})
    for span in spans:
        yield span.name, span.begin, span.end - span.begin, span.parent is not None
    end = max((span.end for span in spans), default=0.0)
    whole = next((1000 * c.gateway.median for c in results.comparisons if c.unit == "ms"), end)
    if whole > end:
        yield "outside these stages", end, whole - end, False
