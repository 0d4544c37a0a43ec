"""The verdict on a job, from evidence that no other job can forge: its result file and the end of its process.

A job may lie about itself. So the order matters: actions of the gateway itself (cancel, timeout) and of the operating
system (a limit) overrule the result file.
"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass

from gateway.core.errors import FAILURES, FailureCode
from gateway.core.formats import DataFormat
from gateway.core.job import OutputFacts, TableFacts, Verdict
from gateway.local.output.job_result import JobResult
from kernel_spec.protocol.limits import Limits
from kernel_spec.protocol.values import ExitReport

MESSAGE_CAP_CHARACTERS = 4_000
#: The codes that a job reports itself. Every other code is about this machine or the caller, and may let the job run
#: again.
_OF_JOBS = frozenset(
    {
        *(FailureCode.USER_ERROR, FailureCode.SYNTAX_ERROR, FailureCode.INVALID_RETURN, FailureCode.NO_TRANSFORM),
        *(FailureCode.MISSING_TABLE, FailureCode.EXITED, FailureCode.MEMORY_LIMIT, FailureCode.PROCESS_LIMIT),
        *(FailureCode.DESCRIPTOR_LIMIT, FailureCode.FILE_SIZE_LIMIT, FailureCode.DISK_LIMIT),
        *(FailureCode.INPUT_INVALID, FailureCode.OUTPUT_INVALID, FailureCode.OUTPUT_SCHEMA_VIOLATED),
        FailureCode.GATEWAY_DISK_FAILED,  # a full disk, which the job meets first
    }
)
#: Messages that Rust (Polars) and C++ (Arrow, DuckDB) print before they abort because memory was refused.
_ALLOCATION_FAILED = re.compile(r"memory allocation of \d+ bytes failed|std::bad_alloc")


@dataclass(frozen=True, slots=True)
class ExecutionFacts:
    """Everything that is known about a job when nothing of it can run any more.

    Attributes
    ----------
    stopped : FailureCode or None
        The gateway's own reason to end the job: ``timeout``, ``cancelled`` or ``shutting_down``.
    report : ExitReport
        How its process ended.
    result : JobResult or None
        None if the file is missing or malformed.
    limits : Limits
        With the processor time of this job.
    timeout_seconds, execution_seconds : float
        How long it was allowed to run, and how long it ran.
    last_lines : tuple of str
        The end of its log.
    disk_shortage : str
        The shortage of the disk of its files, as the predicate of a sentence; only looked for without a result.
    """

    stopped: FailureCode | None
    report: ExitReport
    result: JobResult | None
    limits: Limits
    timeout_seconds: float
    execution_seconds: float
    last_lines: tuple[str, ...] = ()
    disk_shortage: str = ""


def decide(facts: ExecutionFacts, data_format: DataFormat) -> Verdict:
    """Return the verdict on a job that ran in a kernel.

    Parameters
    ----------
    facts : ExecutionFacts
        Everything that is known about it.
    data_format : DataFormat
        Format of its output.

    Returns
    -------
    Verdict
        Success, or the failure with its cause.
    """
    report, result = facts.report, facts.result
    peaks = [report.peak_memory_bytes, result.peak_memory_bytes if result else 0]
    peak = max((p for p in peaks if p), default=None)
    code, message, exit_code = _cause(facts, peak)
    stages = (
        {}
        if result is None
        else {k: v for k, v in result.stages.items() if k in ("read", "import", "transform", "write", "profile")}
    )
    output = None
    if code is None and result is not None:
        output = OutputFacts(
            result.rows, result.fields, result.output_bytes, result.sha256, data_format, result.columns
        )
    return Verdict(
        code=code,
        message=message[:MESSAGE_CAP_CHARACTERS],
        exit_code=exit_code,
        execution_seconds=facts.execution_seconds,
        stages_seconds=stages,
        output=output,
        peak_memory_bytes=peak,
        tables=tuple(TableFacts(t.alias, t.rows, t.bytes, t.columns) for t in result.tables) if result else (),
    )


def _cause(facts: ExecutionFacts, peak_bytes: int | None) -> tuple[FailureCode | None, str, int]:
    limit = _limit_hit(facts, peak_bytes)
    if facts.stopped in (FailureCode.CANCELLED, FailureCode.SHUTTING_DOWN):
        text = (
            "The job was cancelled"
            if facts.stopped is FailureCode.CANCELLED
            else "The gateway was stopped while the job ran"
        )
        return _failure(facts.stopped, f"{text} after {facts.execution_seconds:.1f} s")
    if limit is not None:
        return limit
    if facts.stopped is FailureCode.TIMEOUT:
        running = _stage_at_the_end(facts.result)
        return _failure(FailureCode.TIMEOUT, timeout_message(facts.timeout_seconds, running))
    if facts.result is not None:
        return _from_result(facts.result, facts.limits, peak_bytes)
    if facts.report.signal == signal.SIGABRT:
        for line in reversed(facts.last_lines):
            if found := _ALLOCATION_FAILED.search(line):
                text = f"{_memory_limit(facts.limits)}: the process ended itself ({found[0]}{_peak(peak_bytes)})"
                return _failure(FailureCode.MEMORY_LIMIT, text)
    if facts.disk_shortage:
        text = f"The job could not write its result: the disk of the gateway {facts.disk_shortage}"
        return _failure(FailureCode.GATEWAY_DISK_FAILED, text)
    return _without_result(facts.report)


def timeout_message(timeout_seconds: float, running: str) -> str:
    """Return the message of a timeout.

    Parameters
    ----------
    timeout_seconds : float
        The limit.
    running : str
        The code that was running when the time was over, as a clause; empty if that is not known.

    Returns
    -------
    str
    """
    text = f"Python execution timeout: the job ran longer than its limit of {timeout_seconds:g} s"
    return f"{text}; {running}" if running else text


def _stage_at_the_end(result: JobResult | None) -> str:
    """Return the activity of the interrupted job; it is unknown for a killed job, which has no result."""
    texts = {
        "import": "the script was being imported",
        "read": "the tables were being read",
        "transform": "transform() was running",
        "write": "the output was being written",
        "profile": "the columns of the output were being profiled",
    }
    stages = [] if result is None or result.outcome == "ok" else [stage for stage in result.stages if stage in texts]
    return texts[stages[-1]] if stages else ""


def _limit_hit(facts: ExecutionFacts, peak_bytes: int | None) -> tuple[FailureCode, str, int] | None:
    limits, report = facts.limits, facts.report
    match report.cause:
        case "memory_limit":
            text = f"{_memory_limit(limits)}: the job was ended{_peak(peak_bytes)}"
            return _failure(FailureCode.MEMORY_LIMIT, text)
        case "cpu_limit":
            used = f" (used {report.cpu_seconds:.0f} s)" if report.cpu_seconds else ""
            text = f"The job used more CPU time than its limit of {limits.cpu_seconds} s and was ended{used}"
            return _failure(FailureCode.CPU_LIMIT, text)
        case "disk_limit":
            text = f"The job's directory grew beyond its quota of {_size(limits.disk_bytes)} and the job was ended"
            return _failure(FailureCode.DISK_LIMIT, f"{text}: {report.detail}" if report.detail else text)
        case _:
            return None


def _from_result(result: JobResult, limits: Limits, peak_bytes: int | None) -> tuple[FailureCode | None, str, int]:
    if result.outcome == "ok":
        return None, "", 0
    code = reported_code(result)
    message = result.message or FAILURES[code].meaning
    if code is FailureCode.MEMORY_LIMIT and "limit" not in message:
        message = f"{message} (memory limit {_size(limits.memory_bytes)}{_peak(peak_bytes)})"
    return code, message, result.exit_code or 1


def reported_code(result: JobResult) -> FailureCode:
    """Return the failure code that a job reports, or ``internal`` if the code is not one of a job."""
    return FailureCode(result.code) if result.code in _OF_JOBS else FailureCode.INTERNAL


def _without_result(report: ExitReport) -> tuple[FailureCode, str, int]:
    if report.cause == "exit":
        code = report.exit_code or 0
        text = f"The script ended its own process (exit code {code}) before transform() had returned"
        return FailureCode.EXITED, text, code or 1
    if report.cause == "signal" and report.signal is not None:
        name = _signal_name(report.signal)
        return FailureCode.KILLED, f"The kernel process was ended by {name}", 128 + report.signal
    if report.cause == "launcher_lost":
        return _failure(FailureCode.LAUNCHER_LOST, "The launcher of kernels ended, and the job's kernel with it")
    return _failure(
        FailureCode.EXITED,
        "The job left no result: the script talked to its own kernel, or kept the result from being written (as a "
        "limit of resource.setrlimit does)",
    )


def _failure(code: FailureCode, message: str) -> tuple[FailureCode, str, int]:
    return code, message, FAILURES[code].exit_code


def _memory_limit(limits: Limits) -> str:
    """Return the beginning of the message, which is the same for a kill, an abort and, in the shim, a MemoryError."""
    return f"Memory limit of {_size(limits.memory_bytes)} reached"


def _peak(peak_bytes: int | None) -> str:
    return f", peak {_size(peak_bytes)}" if peak_bytes else ""


def _size(size_bytes: int) -> str:
    # a limit in the unit in which it was set
    return f"{size_bytes // 10**6} MB" if not size_bytes % 10**6 else f"{size_bytes / (1 << 20):.0f} MiB"


def _signal_name(number: int) -> str:
    try:
        return f"{signal.Signals(number).name} (signal {number})"
    except ValueError:
        return f"signal {number}"
