"""``python -m tests.benchmarks``: the gateway beside the subprocess design, as table, JSON and chart."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from tests.benchmarks.parts import (
    cluster,
    codecs,
    durability,
    floor,
    large,
    logs,
    notebook,
    sandbox,
    shapes,
    small,
    tables,
)
from tests.benchmarks.report import chart, floors, report
from tests.benchmarks.report.results import Results
from tests.benchmarks.workload import Jobs, small_orders
from tests.support.s3 import S3Server

PARTS = (
    "small",
    "floor",
    "durability",
    "cluster",
    "callers",
    "logs",
    "cold",
    "plain",
    "notebook",
    "sandbox",
    "shapes",
    "flights",
    "codecs",
    "formats",
    "growth",
    "soak",
)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few repetitions: about two minutes instead of ten")
    parser.add_argument("--jobs", type=int, help="jobs in the long run that looks for leaks (default 1000; quick: 150)")
    parser.add_argument(
        "--json", type=Path, default=Path("bench-results/results.json"), help="where results go as JSON"
    )
    parser.add_argument("--chart", type=Path, help="write the chart here, for example docs/benchmark.svg")
    parser.add_argument("--page", type=Path, help="write the table here, for example docs/benchmarks.md")
    parser.add_argument("--redraw", type=Path, metavar="JSON", help="measure nothing: take the results of this file")
    parser.add_argument("--only", choices=PARTS, action="append", help="measure only this part; repeatable")
    parser.add_argument(
        "--large",
        type=float,
        nargs="?",
        const=5.0,
        metavar="GB",
        help="measure a table larger than memory (default 5 GB; takes minutes and thrice the disk), else only what --only names",
    )
    return parser.parse_args()


def main() -> int:
    """Run the benchmark; the exit code is 1 when a goal was missed."""
    options = parse()
    rounds = 5 if options.quick else 20
    count = options.jobs or (150 if options.quick else 1000)
    # a pipe has no width: rich would take 80 columns and cut the names
    console, results = Console(width=None if sys.stdout.isatty() else 170), Results()
    if options.redraw:
        _write(Results.read(options.redraw), options)
        return 0
    with S3Server() as store:
        jobs = Jobs(store)
        orders = jobs.table("orders", small_orders())
        parts: dict[str, Callable[[], None]] = {
            "small": lambda: small.one_job(jobs, orders, results, rounds),
            "floor": lambda: floor.floor(jobs, orders, results, rounds),
            "durability": lambda: durability.price(jobs, orders, results, rounds),
            "cluster": lambda: cluster.beside_one_gateway(jobs, orders, results, rounds),
            "callers": lambda: small.callers(jobs, orders, results, rounds),
            "logs": lambda: logs.printed_lines(jobs, orders, results, rounds),
            "cold": lambda: small.cold_start(jobs, orders, results, 3 if options.quick else 7),
            "plain": lambda: small.plain_start(jobs, orders, results, rounds),
            "notebook": lambda: notebook.kernel_starts(results, 5 if options.quick else 15),
            "sandbox": lambda: sandbox.costs(results, 3 if options.quick else 10),
            "shapes": lambda: shapes.shapes(jobs, orders, results, 3 if options.quick else 8),
            "flights": lambda: tables.flights_jobs(jobs, results, 1 if options.quick else 3),
            "codecs": lambda: codecs.codecs(results, 3 if options.quick else 9),
            "formats": lambda: tables.formats(jobs, results, 1 if options.quick else 3),
            "growth": lambda: tables.growth(
                jobs, results, 1 if options.quick else 3, 1_000_000 if options.quick else 10_000_000
            ),
            "soak": lambda: small.soak(jobs, orders, results, count),
        }
        for name in options.only or ([] if options.large else PARTS):
            console.print(f"measuring: {name}", style="dim")
            parts[name]()
        if options.large:
            console.print("measuring: larger than memory", style="dim")
            large.larger_than_memory(results, options.large)
    report.show(results, console)
    results.write(options.json)
    _write(results, options)
    missed = [c.is_missed for c in results.comparisons] + [f.is_missed for f in results.figures]
    return 1 if any(missed + [row.is_missed for row in floors.rows(results)]) else 0


def _write(results: Results, options: argparse.Namespace) -> None:
    if options.chart:
        chart.draw(results, options.chart)
    if options.page:
        floors.write_page(results, options.page)


if __name__ == "__main__":
    sys.exit(main())
