"""How a job ended is decided from what cannot be forged, in an order that no result file can overrule."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.errors import FailureCode
from gateway.jobs.verdict import Ending, ShimResult, decide, parse_result
from kernel_spec.limits import Limits
from kernel_spec.messages import ExitReport


def report(cause: str = "killed_by_us", **more: Any) -> ExitReport:
    facts: dict[str, Any] = {
        "wait_status": 9, "signal": 9, "exit_code": None, "peak_memory_bytes": 0, "cpu_seconds": 0.0, "detail": "",
    }  # fmt: skip
    return ExitReport(cause=cause, **{**facts, **more})  # type: ignore[arg-type]


def ending(result: dict[str, Any] | None = None, stopped: FailureCode | None = None, **more: Any) -> Ending:
    parsed = parse_result(None if result is None else json.dumps(result).encode())
    return Ending(stopped, report(**more), parsed, Limits(), 30, 1.0)


OK = {"outcome": "ok", "code": "ok", "rows": 3, "fields": 2, "output_bytes": 30, "exit_code": 0}


def test_a_result_file_makes_a_success() -> None:
    verdict = decide(ending(OK), "jsonl")
    assert verdict.ok
    assert verdict.output is not None
    assert (verdict.output.rows, verdict.output.fields) == (3, 2)


@pytest.mark.parametrize(
    ("stopped", "cause", "expected"),
    [
        (FailureCode.CANCELLED, "killed_by_us", "cancelled"),
        (FailureCode.SHUTTING_DOWN, "killed_by_us", "shutting_down"),
        (FailureCode.TIMEOUT, "killed_by_us", "timeout"),
        (None, "memory_limit", "memory_limit"),
        (None, "cpu_limit", "cpu_limit"),
        (None, "disk_limit", "disk_limit"),
        (FailureCode.TIMEOUT, "memory_limit", "memory_limit"),
    ],
)
def test_a_claimed_success_does_not_overrule_what_ended_the_job(
    stopped: FailureCode | None, cause: str, expected: str
) -> None:
    verdict = decide(ending(OK, stopped, cause=cause), "jsonl")
    assert verdict.code == expected
    assert verdict.output is None


def test_no_result_after_an_answer_is_a_failure() -> None:
    assert decide(ending(None), "jsonl").code is FailureCode.EXITED


def test_a_signal_is_named() -> None:
    verdict = decide(ending(None, cause="signal", signal=11), "jsonl")
    assert verdict.code is FailureCode.KILLED
    assert "SIGSEGV" in verdict.message
    assert verdict.exit_code == 139


def test_memory_limit_names_limit_and_peak() -> None:
    verdict = decide(ending(None, cause="memory_limit", peak_memory_bytes=1023 << 20), "jsonl")
    assert "1024 MiB" in verdict.message
    assert "peak 1023 MiB" in verdict.message


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b'{"outcome": "ok"}',
        b'{"outcome": "maybe", "code": "ok"}',
        b'{"outcome": "ok", "code": "ok", "rows": -1}',
    ],
)
def test_a_malformed_result_file_counts_as_none(data: bytes) -> None:
    assert parse_result(data) is None


def test_an_unknown_code_of_the_job_is_not_believed() -> None:
    verdict = decide(ending({"outcome": "error", "code": "all_is_well", "message": "x", "exit_code": 0}), "jsonl")
    assert verdict.code is FailureCode.INTERNAL
    assert verdict.exit_code != 0


def test_result_ignores_what_later_versions_add() -> None:
    assert ShimResult.model_validate({**OK, "something_new": [1]}).rows == 3
