"""Keeping the kernel of a failed job for inspection, in place of killing it.

Everything else about a job is decided when nothing of it lives. Here the verdict comes from a kernel that goes on
living, and still nothing is believed that must not be: only a *failure* is taken, which delivers no file and says no
more than the job may say of itself anyway. It comes from ``result.json`` read once, through one descriptor that follows
no link and of which type, owner and size were checked, into bytes that are validated whole: what the job writes there
afterwards is never looked at, so nothing can be exchanged between check and use. A result that claims success is not
taken from a living kernel: that kernel is killed, and the file read again, as for every job.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from gateway.errors import Conflict, FailureCode, JobFailed, ShuttingDown
from gateway.jobs.model import HeldKernel, Job
from gateway.jobs.verdict import ShimResult, parse_result
from gateway.kernels.held import HeldKernels
from gateway.kernels.kernel import JobKernel
from gateway.storage import open_output
from kernel_spec.launcher_client import LauncherError
from kernel_spec.messages import ExitReport

HOLD_GRACE_SECONDS = 2.0
"""What a job that is to be held gets to end by itself after its time-out, beyond the usual grace: native code looks for
the interrupt late, and a kernel that has to be killed cannot be held.
"""

PRESENT_SECONDS = 5.0
"""Deadline for giving the console its names; milliseconds, unless the job has left something that keeps Python busy."""

RESULT_CAP_BYTES = 1 << 20
MARKER = "held.json"
MARKER_CAP_BYTES = 1 << 20


class NotHeld(Exception):
    """The kernel is not kept and still the caller's; the text says why. Empty: it needs no explanation."""


@dataclass(frozen=True, slots=True)
class Held:
    """A kernel that is kept, what it said of its job, and what would have been its exit report."""

    kernel: HeldKernel
    result: ShimResult
    report: ExitReport


async def hold(
    kernels: HeldKernels, kernel: JobKernel, job: Job, stopped: FailureCode | None, *, answered: bool
) -> Held:
    """Have the kernel of a failed job show what failed, and keep it.

    Parameters
    ----------
    kernels : HeldKernels
        Owns the kernel afterwards.
    kernel : JobKernel
        Still runs, as far as is known.
    job : Job
        Says for how long.
    stopped : FailureCode or None
        The gateway's own reason to end the job.
    answered : bool
        Whether the kernel has answered, so that it can be asked for more.

    Raises
    ------
    NotHeld
    """
    result = _living_failure(kernel, stopped, answered=answered)
    code = stopped or result.code
    try:
        kernels.promise()
    except (Conflict, ShuttingDown) as refusal:
        raise NotHeld(refusal.message) from None
    try:
        await _present(kernel)
        report = await _living_report(kernel)
        kernel.pipes.settle()
        return Held(await kernels.hold(kernel, job.hold_seconds, job.request_id, code), result, report)
    except BaseException as error:
        kernels.renounce()
        if isinstance(error, JobFailed | OSError):
            raise NotHeld(str(error)) from None
        raise


def _living_failure(kernel: JobKernel, stopped: FailureCode | None, *, answered: bool) -> ShimResult:
    if stopped not in (None, FailureCode.TIMEOUT):
        raise NotHeld
    if not kernel.alive:
        raise NotHeld("its process has ended")
    if not answered:
        raise NotHeld("it did not stop when it was interrupted, and had to be killed")
    result = parse_result(read_small(kernel, "result.json", RESULT_CAP_BYTES))
    if result is None:
        raise NotHeld("it left nothing that says what failed")
    if result.outcome != "error":
        raise NotHeld
    return result


async def _present(kernel: JobKernel) -> None:
    """Give the console its names."""
    marker = f"{kernel.seat.out_dir}/{MARKER}"
    shim = '__import__("transform_shim.holding", fromlist=["present"])'
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(PRESENT_SECONDS):
            await kernel.conversation.execute(f"globals().update({shim}.present({json.dumps(marker)}))")
    if read_small(kernel, MARKER, MARKER_CAP_BYTES) is None:
        raise NotHeld("its Python does not answer any more, perhaps for want of memory")


def told(facts: HeldKernel) -> str:
    """Return the line of the log that says how to attach."""
    until = datetime.fromtimestamp(facts.expires_at, UTC).strftime("%H:%M:%S UTC")
    return f"The kernel of this job is held until {until}; attach with: {facts.attach}"


def read_small(kernel: JobKernel, name: str, cap_bytes: int) -> bytes | None:
    """Return a small file of the job's, or None where it is missing or not what it should be."""
    try:
        with open_output(Path(kernel.seat.out_dir) / name, owner_uid=kernel.seat.uid, max_bytes=cap_bytes) as opened:
            return opened.read(cap_bytes)
    except (JobFailed, OSError):  # an OSError, when a living kernel shortens it while it is read
        return None


async def _living_report(kernel: JobKernel) -> ExitReport:
    try:
        usage = await kernel.parts.launcher.usage(kernel.kernel_id)
    except LauncherError as error:
        raise NotHeld(f"its process has ended ({error})") from None
    return ExitReport(
        wait_status=None,
        signal=None,
        exit_code=None,
        cause="exit",
        peak_memory_bytes=usage.peak_memory_bytes,
        cpu_seconds=usage.cpu_seconds,
        detail="goes on living",
    )
