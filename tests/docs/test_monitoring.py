"""Dashboard and alerts ask for metrics and labels that the gateway exports; the queries are parsed as Prometheus does."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest

from gateway.core.errors import FailureCode, refusal_kinds
from gateway.telemetry.metric_names import CATALOGUE
from gateway.telemetry.metrics import Metrics

ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "docs" / "grafana-dashboard.json").read_text())
ALERTS = (ROOT / "docs" / "prometheus-alerts.yml").read_text()
TARGET_LABELS = {"instance", "job"}
"""What Prometheus itself adds to each series it scrapes."""


def series() -> dict[str, set[str]]:
    """Return each exported series with its labels."""
    found: dict[str, set[str]] = {"up": set()}
    for name in CATALOGUE:
        suffixes = ("_bucket", "_sum", "_count") if name.kind == "histogram" else ("",)
        for suffix in suffixes:
            found[name.name + suffix] = set(name.labels) | ({"le"} if suffix == "_bucket" else set())
    for family in Metrics().registry.collect():
        if family.name.startswith("process_"):
            found |= {sample.name: set(sample.labels) for sample in family.samples}
    return found


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def queries() -> list[tuple[str, str]]:
    shown = [(panel["title"], target["expr"]) for panel in panels() for target in panel["targets"]]
    alerts = re.findall(r"alert: (\w+)\n +expr: (.+)\n", ALERTS)
    assert len(alerts) == ALERTS.count("alert:")
    return shown + alerts


def walk(node: Any) -> Iterator[Any]:
    """Yield a parsed expression and everything inside it."""
    yield node
    for name in ("expr", "lhs", "rhs", "vector_selector", "param"):
        child = getattr(node, name, None)
        if child is not None:
            yield from walk(child)
    for argument in getattr(node, "args", None) or ():
        yield from walk(argument)


def parsed(query: str) -> list[Any]:
    # Grafana puts a duration into each of its variables before it asks
    return list(walk(promql_parser.parse(re.sub(r"\$__(rate_interval|range|interval)", "5m", query))))


def selectors(query: str) -> list[Any]:
    return [node for node in parsed(query) if isinstance(node, promql_parser.VectorSelector)]


@pytest.mark.parametrize(("title", "query"), queries(), ids=[title for title, _ in queries()])
def test_query_asks_for_series_and_labels_that_exist(title: str, query: str) -> None:
    known = series()
    found = selectors(query)
    assert found
    for selector in found:
        assert selector.name in known, selector.name
        asked = {matcher.name for matcher in selector.matchers.matchers}
        assert asked <= known[selector.name] | TARGET_LABELS, selector.name
    available = set().union(*(known[selector.name] for selector in found)) | TARGET_LABELS
    for node in parsed(query):
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            assert set(node.modifier.labels) <= available


@pytest.mark.parametrize(("title", "query"), queries(), ids=[title for title, _ in queries()])
def test_counters_are_asked_for_their_rate_and_codes_exist(title: str, query: str) -> None:
    codes = {"ok", *map(str, FailureCode), *(kind.code for kind in refusal_kinds())}
    for selector in selectors(query):
        for matcher in selector.matchers.matchers:
            if matcher.name == "code":
                assert set(matcher.value.split("|")) <= codes
    ranged = {node.vector_selector.name for node in parsed(query) if isinstance(node, promql_parser.MatrixSelector)}
    plain = {selector.name for selector in selectors(query)} - ranged
    assert not {name for name in plain if name.endswith(("_bucket", "_sum", "_count"))}
    # recovered jobs are counted before the first scrape of their process, so `increase` never sees them
    raw = {"kernel_currently_running_total", "transform_gateway_jobs_recovered_total"}
    assert not {name for name in plain if name.endswith("_total")} - raw


@pytest.mark.parametrize(("title", "query"), queries(), ids=[title for title, _ in queries()])
def test_no_query_takes_the_increase_of_a_counter_that_moves_before_the_first_scrape(title: str, query: str) -> None:
    ranged = [node.vector_selector for node in parsed(query) if isinstance(node, promql_parser.MatrixSelector)]
    assert "transform_gateway_jobs_recovered_total" not in {selector.name for selector in ranged}
    for selector in ranged:
        assert "gateway_restarted" not in {matcher.value for matcher in selector.matchers.matchers}


def test_labels_in_legends_and_alerts_come_out_of_their_queries() -> None:
    shown = [(t.get("legendFormat", ""), t["expr"]) for panel in panels() for t in panel["targets"]]
    told = re.findall(r"expr: (.+)\n(?: +(?:for|labels): .+\n)+ +annotations:\n +summary: (.+)\n", ALERTS)
    assert len(told) == ALERTS.count("alert:")
    for text, query in shown + [(summary, expr) for expr, summary in told]:
        kept = {
            label
            for node in parsed(query)
            if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None
            for label in node.modifier.labels
        }
        is_aggregated = any(isinstance(node, promql_parser.AggregateExpr) for node in parsed(query))
        available = kept if is_aggregated else set().union(*(series()[s.name] for s in selectors(query)), TARGET_LABELS)
        assert set(re.findall(r"{{ *(?:\$labels\.)?(\w+) *}}", text)) <= available, text


def test_every_metric_of_ours_that_can_go_wrong_is_on_the_dashboard() -> None:
    asked = {selector.name for _, query in queries() for selector in selectors(query)}
    stems = {re.sub("_(bucket|sum|count)$", "", name) for name in asked}
    left_out = {name.name for name in CATALOGUE} - stems
    # their facts are in others there: all requests are those that ended and those refused
    assert left_out == {"transform_gateway_job_requests_total", "transform_gateway_jobs_live"}


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        own = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not own & cells, panel["title"]
        assert max(x for x, _ in own) < 24
        cells |= own
    assert all(panel["description"] for panel in panels())
