"""Measurements as values: series with their spread, ratios, and the machine they were measured on."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

PACKAGES = (
    "transform-gateway",
    "ipykernel",
    "jupyter_client",
    "tornado",
    "pandas",
    "pyarrow",
    "numpy",
    "orjson",
)


INNER = frozenset({"read", "import", "transform", "write"})
"""Stages that lie inside ``execute`` and are not added to it."""


@dataclass(frozen=True, slots=True)
class Series:
    """Repeated measurements of one thing."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)

    def percentile(self, percent: int) -> float:
        """Return the smallest value that `percent` of 100 values do not exceed."""
        ordered = sorted(self.values)
        return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]

    def as_json(self) -> dict[str, Any]:
        """Return median, extremes and every value."""
        rounded = [round(value, 6) for value in self.values]
        return {
            "median": round(self.median, 6),
            "low": round(self.low, 6),
            "high": round(self.high, 6),
            "values": rounded,
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """One measure of the gateway beside the subprocess design.

    Attributes
    ----------
    unit : str
        ``ms`` and ``s`` are better when smaller, ``jobs/s`` when larger.
    goal : float or None
        The ratio that is asked for.
    """

    name: str
    unit: Literal["ms", "s", "jobs/s"]
    gateway: Series
    baseline: Series
    goal: float | None = None

    @property
    def ratio(self) -> float:
        """How many times better the gateway is, by medians."""
        ours, theirs = self.gateway.median, self.baseline.median
        return ours / theirs if self.unit == "jobs/s" else theirs / ours

    @property
    def is_missed(self) -> bool:
        """Whether the ratio is less than what is asked for."""
        return self.goal is not None and self.ratio < self.goal


@dataclass(frozen=True, slots=True)
class Figure:
    """One measure of the gateway alone; ``limit`` is the largest value that is asked for, ``floor`` the smallest."""

    name: str
    unit: str
    series: Series
    limit: float | None = None
    floor: float | None = None

    @property
    def is_missed(self) -> bool:
        """Whether the median is not what is asked for."""
        median = self.series.median
        return (self.limit is not None and median > self.limit) or (self.floor is not None and median < self.floor)


@dataclass(slots=True)
class Results:
    """Everything of one run."""

    comparisons: list[Comparison] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    stages_ms: dict[str, Series] = field(default_factory=dict)
    growth: list[tuple[int, Series]] = field(default_factory=list)
    soak: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=lambda: machine())

    @classmethod
    def read(cls, path: Path) -> Results:
        """Return the results of an earlier run."""
        value = json.loads(path.read_text())
        return cls(
            [
                Comparison(c["name"], c["unit"], _series(c["gateway"]), _series(c["subprocess_design"]), c["goal"])
                for c in value["comparisons"]
            ],
            [Figure(f["name"], f["unit"], _series(f), f["limit"], f["floor"]) for f in value["figures"]],
            {name: _series(series) for name, series in value["stages_ms"].items()},
            [(series["rows"], _series(series)) for series in value["growth"]],
            value["soak"],
            value["notes"],
            value["machine"],
        )

    def figure(
        self, name: str, unit: str, values: list[float], limit: float | None = None, floor: float | None = None
    ) -> None:
        """Add a figure, unless nothing could be measured."""
        if values:
            self.figures.append(Figure(name, unit, Series(tuple(values)), limit, floor))
        else:
            self.notes.append(f"{name}: could not be measured")

    def percentiles(self, name: str, unit: str, values: list[float]) -> None:
        """Add the 50th, 95th and 99th percentile, and the 95th against the median."""
        series = Series(tuple(values))
        for percent in (50, 95, 99):
            self.figure(f"{name}: p{percent}", unit, [series.percentile(percent)])
        self.figure(f"{name}: p95 / p50", "×", [series.percentile(95) / series.percentile(50)])

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return {
            "machine": self.about,
            "comparisons": [
                {
                    "name": c.name,
                    "unit": c.unit,
                    "gateway": c.gateway.as_json(),
                    "subprocess_design": c.baseline.as_json(),
                    "ratio": round(c.ratio, 2),
                    "goal": c.goal,
                }
                for c in self.comparisons
            ],
            "figures": [
                {"name": f.name, "unit": f.unit, "limit": f.limit, "floor": f.floor, **f.series.as_json()}
                for f in self.figures
            ],
            "growth": [{"rows": rows, **series.as_json()} for rows, series in self.growth],
            "stages_ms": {name: series.as_json() for name, series in self.stages_ms.items()},
            "soak": self.soak,
            "notes": self.notes,
        }

    def write(self, path: Path) -> None:
        """Write the results as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.as_json(), indent=1) + "\n")


def _series(value: dict[str, Any]) -> Series:
    return Series(tuple(value["values"]))


@dataclass(frozen=True, slots=True)
class Machine:
    """Where and when; without this a figure means nothing."""

    when: str
    python: str
    system: str
    processor: str
    cores: int
    memory_gib: float
    as_root: bool
    versions: dict[str, str]


def machine() -> dict[str, Any]:
    """Describe this machine and the versions in play."""
    processor = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.machine(),
    )
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    found = Machine(
        when=datetime.now(UTC).isoformat(timespec="seconds"),
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()}",
        processor=processor,
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(pages / 2**30, 1),
        as_root=os.getuid() == 0,
        versions={name: version(name) for name in PACKAGES},
    )
    return asdict(found)


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()
