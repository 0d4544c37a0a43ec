"""The results of a run as the page of the benchmark shows them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.report import chart, floors
from tests.benchmarks.report.results import Comparison, Results, Series


@pytest.fixture
def results() -> Results:
    ours, theirs = Series((16.0, 20.0, 18.0)), Series((300.0,))
    stages = {"execute": Series((7.0,)), "read": Series((2.0,)), "queue": Series((1.5,)), "deliver": Series((3.0,))}
    found = Results([Comparison("one small job, warm", "ms", ours, theirs)], stages_ms=stages)
    found.figure("alone: kernel round trip, the same kernel again", "ms", [7.0])
    found.figure("alone: two fetches and three uploads", "ms", [1.5])
    found.figure("alone: one fsync", "ms", [0.5])
    return found


def test_page_and_chart_are_drawn_again_from_the_file(results: Results, tmp_path: Path) -> None:
    page, file = tmp_path / "page.md", tmp_path / "results.json"
    page.write_text(f"before\n\n{floors.BEGIN}| old |\n{floors.END}\nafter\n")
    results.write(file)
    read = Results.read(file)
    assert read.as_json() == results.as_json()
    floors.write_page(read, page)
    floor = "kernel's round trip, two fetches, three uploads, one fsync"
    row = f"| a small job through S3 | 18 ms | {floor} | 9 ms | 2.00× | ≤ 1.25×, missed |\n"
    assert row in page.read_text()
    assert page.read_text().startswith("before\n")
    assert page.read_text().endswith("after\n")
    assert "old" not in page.read_text()
    chart.draw(read, tmp_path / "chart.svg")
    assert "One small job: 18,000 µs" in (tmp_path / "chart.svg").read_text()


def test_budget_of_a_small_job_adds_up_to_its_duration(results: Results) -> None:
    budget = list(floors.budget_us(results))
    assert budget == [
        ("queue", 0.0, 1500.0, False),
        ("execute", 1500.0, 7000.0, False),
        ("read", 6500.0, 2000.0, True),
        ("deliver", 8500.0, 3000.0, False),
        ("outside these stages", 11500.0, 6500.0, False),
    ]
