"""The output of a job in its log, and the time until the log is closed."""

from __future__ import annotations

import asyncio
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
from gateway.local.output_pipes import OutputPipes
from gateway.storage import Outbox
from kernel_spec.protocol.limits import Limits


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

    kernel = SimpleNamespace(
        parts=SimpleNamespace(limits=Limits(), rules=OutputRules()),
        workspace=SimpleNamespace(inputs_dir=tmp_path, out_dir=tmp_path, work_dir=tmp_path, uid=os.getuid()),
        pipes=pipes,
        client=SimpleNamespace(execute=execute),
        exited=asyncio.get_running_loop().create_future(),
        set_cpu_limit=set_cpu_limit,
        stop=stop,
    )
    log = EventLog()
    job = Job(1, "", 30, UrlDelivery("http://localhost/o"))
    no_kernels, no_outbox = cast("HeldKernels", None), cast("Outbox", None)
    execution = Execution(cast("JobKernel", kernel), job, log, StopSignal(), no_kernels, no_outbox, "x", 30)
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
