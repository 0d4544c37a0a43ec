"""Deciding how a job ended, from what cannot be forged by another job: its result file, and its process's own end.

A job may lie about itself. So the order matters: what the gateway itself did (cancel, time-out) and what the
operating system did (a limit) stand above whatever the result file says.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, Field, ValidationError

from gateway.errors import FAILURES, FailureCode
from gateway.jobs.model import DataFormat, OutputFacts, Verdict
from kernel_spec.limits import Limits
from kernel_spec.messages import ExitReport

MESSAGE_CAP_CHARACTERS = 4_000

Seconds = Annotated[float, Field(ge=0, le=1e9)]
Count = Annotated[int, Field(ge=0, le=1 << 62)]


class ShimResult(BaseModel):
    """What the shim's result file says; validated, because user code can write it too."""

    outcome: Annotated[str, Field(pattern="^(ok|error)$")]
    code: Annotated[str, Field(max_length=40)]
    message: str = ""
    exit_code: Annotated[int, Field(ge=-255, le=255)] = 1
    rows: Count = 0
    fields: Count = 0
    output_bytes: Count = 0
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    stages: Annotated[dict[str, Seconds], Field(max_length=20)] = {}
    peak_memory_bytes: Count | None = None


@dataclass(frozen=True, slots=True)
class Ending:
    """Everything that is known when nothing of the job lives any more.

    Attributes
    ----------
    stopped : FailureCode or None
        The gateway's own reason to end the job: ``timeout``, ``cancelled`` or ``shutting_down``.
    result : ShimResult or None
        None when the file is missing or is not what the shim writes.
    """

    stopped: FailureCode | None
    report: ExitReport
    result: ShimResult | None
    limits: Limits
    timeout_seconds: float
    execution_seconds: float


def parse_result(data: bytes | None) -> ShimResult | None:
    """Return the shim's result, or None where the file is missing or malformed."""
    if data is None:
        return None
    try:
        return ShimResult.model_validate_json(data)
    except ValidationError:
        return None


def decide(ending: Ending, data_format: DataFormat) -> Verdict:
    """Return the verdict on a job that ran in a kernel."""
    report, result = ending.report, ending.result
    peaks = [report.peak_memory_bytes, result.peak_memory_bytes if result else 0]
    peak = max((p for p in peaks if p), default=None)
    code, message, exit_code = _cause(ending, peak)
    stages = (
        {}
        if result is None
        else {k: v for k, v in result.stages.items() if k in ("read", "import", "transform", "write")}
    )
    output = None
    if code is None and result is not None:
        output = OutputFacts(result.rows, result.fields, result.output_bytes, result.sha256, data_format)
    return Verdict(
        code=code,
        message=message[:MESSAGE_CAP_CHARACTERS],
        exit_code=exit_code,
        execution_seconds=ending.execution_seconds,
        stages_seconds=stages,
        output=output,
        peak_memory_bytes=peak,
    )


def _cause(ending: Ending, peak_bytes: int | None) -> tuple[FailureCode | None, str, int]:
    limit = _limit_hit(ending, peak_bytes)
    if ending.stopped in (FailureCode.CANCELLED, FailureCode.SHUTTING_DOWN):
        text = (
            "The job was cancelled"
            if ending.stopped is FailureCode.CANCELLED
            else "The gateway was stopped while the job ran"
        )
        return _failure(ending.stopped, f"{text} after {ending.execution_seconds:.1f} s")
    if limit is not None:
        return limit
    if ending.stopped is FailureCode.TIMEOUT:
        return _failure(
            FailureCode.TIMEOUT,
            f"Python execution timeout: the job ran longer than its limit of {ending.timeout_seconds:g} s",
        )
    if ending.result is not None:
        return _from_result(ending.result, ending.limits, peak_bytes)
    return _without_result(ending.report)


def _limit_hit(ending: Ending, peak_bytes: int | None) -> tuple[FailureCode, str, int] | None:
    limits, report = ending.limits, ending.report
    match report.cause:
        case "memory_limit":
            limit = _mib(limits.memory_bytes)
            text = f"The job needed more memory than its limit of {limit} and was ended{_peak(peak_bytes)}"
            return _failure(FailureCode.MEMORY_LIMIT, text)
        case "cpu_limit":
            used = f" (used {report.cpu_seconds:.0f} s)" if report.cpu_seconds else ""
            text = f"The job used more processor time than its limit of {limits.cpu_seconds} s and was ended{used}"
            return _failure(FailureCode.CPU_LIMIT, text)
        case "disk_limit":
            text = f"The job's directory grew beyond its quota of {_mib(limits.disk_bytes)} and the job was ended"
            return _failure(FailureCode.DISK_LIMIT, f"{text}: {report.detail}" if report.detail else text)
        case _:
            return None


def _from_result(result: ShimResult, limits: Limits, peak_bytes: int | None) -> tuple[FailureCode | None, str, int]:
    if result.outcome == "ok":
        return None, "", 0
    try:
        code = FailureCode(result.code)
    except ValueError:
        code = FailureCode.INTERNAL
    message = result.message or FAILURES[code].meaning
    if code is FailureCode.MEMORY_LIMIT and "limit" not in message:
        message = f"{message} (memory limit {_mib(limits.memory_bytes)}{_peak(peak_bytes)})"
    return code, message, result.exit_code or 1


def _without_result(report: ExitReport) -> tuple[FailureCode, str, int]:
    if report.cause == "exit":
        code = report.exit_code or 0
        text = f"The script ended its own process (exit code {code}) before transform() had returned"
        return FailureCode.EXITED, text, code or 1
    if report.cause == "signal" and report.signal is not None:
        name = _signal_name(report.signal)
        return FailureCode.KILLED, f"The kernel process was ended by {name}", 128 + report.signal
    if report.cause == "launcher_lost":
        return _failure(FailureCode.INTERNAL, "The process that watches over kernels was lost while the job ran")
    return _failure(
        FailureCode.EXITED,
        "The kernel answered before transform() had returned; the script must not talk to its own kernel",
    )


def _failure(code: FailureCode, message: str) -> tuple[FailureCode, str, int]:
    return code, message, FAILURES[code].exit_code


def _peak(peak_bytes: int | None) -> str:
    return f", peak {_mib(peak_bytes)}" if peak_bytes else ""


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):.0f} MiB"


def _signal_name(number: int) -> str:
    try:
        return f"{signal.Signals(number).name} (signal {number})"
    except ValueError:
        return f"signal {number}"
