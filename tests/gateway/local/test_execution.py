"""The output of a job in its log, and the time until the log is closed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway.core.cancellation import StopSignal
from gateway.core.errors import FailureCode, JobFailed
from gateway.core.events import EventLog
from gateway.core.job import Job, UrlDelivery
from gateway.local.execution import Execution
from gateway.local.held_kernels import HeldKernels
from gateway.local.job_request import OutputRules
from gateway.local.kernel import JobKernel
from gateway.local.output.pipes import OutputPipes
from gateway.storage import FetchedTable, Outbox
from kernel_spec.protocol.limits import Limits


def made_execution(directory: Path, pipes: OutputPipes, execute: Any, **kernel: Any) -> tuple[Execution, EventLog]:
    """Return an execution in a kernel that is not there, and its log."""
    parts = SimpleNamespace(limits=Limits(), rules=OutputRules())
    workspace = SimpleNamespace(inputs_dir=directory, out_dir=directory, work_dir=directory, uid=os.getuid())
    exited, client = asyncio.get_running_loop().create_future(), SimpleNamespace(execute=execute)
    found = SimpleNamespace(parts=parts, workspace=workspace, pipes=pipes, client=client, exited=exited, **kernel)
    job, log = Job(1, "", 30, UrlDelivery("http://localhost/o")), EventLog()
    no_kernels, no_outbox = cast("HeldKernels", None), cast("Outbox", None)
    return Execution(cast("JobKernel", found), job, log, StopSignal(), no_kernels, no_outbox, "x", 30), log


async def test_nothing_follows_the_end_of_an_execution_that_failed(tmp_path: Path) -> None:
    """The gateway ends the log with a line of its own; a line of the job after it would be in some readers' log only."""
    pipes = OutputPipes(1000)
    log_pipe = pipes.write_fds[2]

    def say(text: bytes) -> None:
        os.write(log_pipe, struct.pack("<cI", b"o", len(text)) + text)

    async def execute(*_: Any, **__: Any) -> None:
        """The kernel answers at once."""

    async def set_cpu_limit(_: int) -> None: ...

    async def stop() -> None:
        say(b"before the end\n")
        raise JobFailed(FailureCode.INTERNAL, "not confirmed")

    execution, log = made_execution(tmp_path, pipes, execute=execute, set_cpu_limit=set_cpu_limit, stop=stop)
    try:
        with pytest.raises(JobFailed):
            await execution.run(())
        log.line("stderr", "ERROR: not confirmed")
        say(b"after the end\n")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await pipes.flush()
    finally:
        pipes.close()
    assert [line.message for line in log.lines()] == ["before the end", "ERROR: not confirmed"]


async def test_no_code_runs_if_the_cpu_limit_cannot_be_set_while_the_tables_are_moved(tmp_path: Path) -> None:
    (tmp_path / "inputs").mkdir()
    source = tmp_path / "x.0.data"
    source.write_bytes(b"{}")
    calls: list[str] = []

    async def execute(*_: Any, **__: Any) -> None:
        calls.append("execute")

    async def set_cpu_limit(_: int) -> None:
        await asyncio.sleep(0)
        assert not source.exists()
        calls.append("limit")
        raise JobFailed(FailureCode.SANDBOX_FAILED, "not set")

    with contextlib.closing(OutputPipes(1000)) as pipes:
        execution, _ = made_execution(tmp_path / "inputs", pipes, execute, set_cpu_limit=set_cpu_limit)
        with pytest.raises(JobFailed, match="not set"):
            await execution.run((FetchedTable("t", source, None, "jsonl", None, 2),))
    assert calls == ["limit"]


async def test_a_workspace_that_takes_no_tables_is_not_the_fault_of_the_job(tmp_path: Path) -> None:
    """It may have been removed with its launcher, or from outside; the job can run again in another one."""
    source = tmp_path / "x.0.data"
    source.write_bytes(b"{}")

    async def execute(*_: Any, **__: Any) -> None: ...

    async def set_cpu_limit(_: int) -> None: ...

    with contextlib.closing(OutputPipes(1000)) as pipes:
        execution, _ = made_execution(tmp_path / "removed", pipes, execute, set_cpu_limit=set_cpu_limit)
        with pytest.raises(JobFailed) as caught:
            await execution.run((FetchedTable("t", source, None, "jsonl", None, 2),))
    assert caught.value.code is FailureCode.GATEWAY_DISK_FAILED
