"""How a job ended is decided from what cannot be forged, in an order that no result file can overrule."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from gateway.core.errors import FailureCode
from gateway.local.output.job_result import parse_result
from gateway.local.verdict import ExecutionFacts, decide
from kernel_spec.protocol.limits import Limits
from kernel_spec.protocol.values import ExitReport


def report(cause: str = "killed_by_us", **more: Any) -> ExitReport:
    members: dict[str, Any] = {
        "wait_status": 9, "signal": 9, "exit_code": None, "peak_memory_bytes": 0, "cpu_seconds": 0.0, "detail": "",
    }  # fmt: skip
    return ExitReport(cause=cause, **{**members, **more})  # type: ignore[arg-type]


def facts(result: dict[str, Any] | None = None, stopped: FailureCode | None = None, **more: Any) -> ExecutionFacts:
    parsed = parse_result(None if result is None else json.dumps(result).encode())
    return ExecutionFacts(stopped, report(**more), parsed, Limits(), 30, 1.0)


OK = {"version": 1, "outcome": "ok", "code": "ok", "rows": 3, "fields": 2, "output_bytes": 30, "exit_code": 0}


def test_a_result_file_makes_a_success() -> None:
    verdict = decide(facts(OK), "jsonl")
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
def test_a_claimed_success_does_not_overrule_the_cause_of_the_end(
    stopped: FailureCode | None, cause: str, expected: str
) -> None:
    verdict = decide(facts(OK, stopped, cause=cause), "jsonl")
    assert verdict.code == expected
    assert verdict.output is None


def test_no_result_after_an_answer_is_a_failure() -> None:
    assert decide(facts(None), "jsonl").code is FailureCode.EXITED


def test_a_signal_is_named() -> None:
    verdict = decide(facts(None, cause="signal", signal=11), "jsonl")
    assert verdict.code is FailureCode.KILLED
    assert "SIGSEGV" in verdict.message
    assert verdict.exit_code == 139


def test_memory_limit_names_limit_and_peak() -> None:
    verdict = decide(facts(None, cause="memory_limit", peak_memory_bytes=1023 << 20), "jsonl")
    assert verdict.message == "Memory limit of 1024 MiB reached: the job was ended, peak 1023 MiB"


def test_disk_limit_is_named_in_the_unit_of_its_setting() -> None:
    verdict = decide(facts(None, cause="disk_limit"), "jsonl")
    assert verdict.message == "The job's directory grew beyond its quota of 1500 MB and the job was ended"


@pytest.mark.parametrize("code", ["all_is_well", "launcher_lost", "kernel_start_failed", "cancelled", "timeout"])
def test_a_code_that_is_not_the_jobs_to_report_is_not_believed(code: str) -> None:
    """The job would run again for some of them, and a cancelled one is no failure."""
    verdict = decide(facts({"version": 1, "outcome": "error", "code": code, "message": "x", "exit_code": 0}), "jsonl")
    assert verdict.code is FailureCode.INTERNAL
    assert verdict.exit_code != 0


@pytest.mark.parametrize(
    ("last_lines", "signal", "code"),
    [
        (("memory allocation of 3200000000 bytes failed",), 6, "memory_limit"),
        (("terminate called after throwing an instance of 'std::bad_alloc'", "  what():  std::bad_alloc"), 6, "memory_limit"),
        (("memory allocation of 3200000000 bytes failed",), 11, "killed"),
        (("assertion failed",), 6, "killed"),
        ((), 6, "killed"),
    ],
)  # fmt: skip
def test_abort_for_lack_of_memory_is_the_memory_limit(last_lines: tuple[str, ...], signal: int, code: str) -> None:
    known = dataclasses.replace(facts(None, cause="signal", signal=signal), last_lines=last_lines)
    verdict = decide(known, "jsonl")
    assert verdict.code == code
    if code == "memory_limit":
        assert verdict.message.startswith("Memory limit of 1024 MiB reached: ")
        assert verdict.exit_code == 137
