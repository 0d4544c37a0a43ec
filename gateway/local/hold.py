"""Keep the kernel of a failed job for inspection instead of killing it.

For every other job the verdict is decided when none of its processes is left. Here it comes from a kernel that still
runs. That is safe because only a *failure* is accepted: it delivers no file and has no more than a job may report
about itself anyway. ``result.json`` is read once, through one descriptor that follows no link and whose type, owner and
size were checked, and the bytes are validated as a whole. The gateway never reads later writes of the job, so
nothing can be exchanged between check and use. A result that claims success is not accepted from a living kernel: that
kernel is killed and the file is read again, as for every other job.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from gateway.core.errors import Conflict, FailureCode, JobFailed, ShuttingDown
from gateway.core.job import HeldKernel, RequestId
from gateway.local.held_kernels import HeldKernels
from gateway.local.job_request import PRESENT_CODE, RESULT_FILE
from gateway.local.kernel import JobKernel
from gateway.local.output.job_result import RESULT_CAP_BYTES, JobResult, parse_result
from gateway.local.verdict import reported_code
from gateway.storage import open_output
from kernel_spec.client.async_client import LauncherError
from kernel_spec.protocol.values import ExitReport

#: Time beyond the usual grace for a job that is to be held, after its timeout: native code notices the interrupt late,
#: and a kernel that must be killed cannot be held.
HOLD_GRACE_SECONDS = 2.0

#: Deadline for giving the console its names; it takes milliseconds, unless the job left work that keeps Python busy.
PRESENT_SECONDS = 5.0

#: File by which the kernel confirms that the console has its names.
MARKER = "held.json"
MARKER_CAP_BYTES = 1 << 20


class NotHeld(Exception):
    """The kernel is not kept and is still the caller's; the text says why. An empty text needs no explanation."""


@dataclass(frozen=True, slots=True)
class Held:
    """A kernel that is kept.

    Attributes
    ----------
    kernel : HeldKernel
        How to attach to it.
    result : JobResult
        The job result that it wrote.
    report : ExitReport
        Takes the place of the exit report of a kernel that has ended.
    """

    kernel: HeldKernel
    result: JobResult
    report: ExitReport


async def hold(
    kernels: HeldKernels,
    kernel: JobKernel,
    request_id: RequestId,
    seconds: float,
    stopped: FailureCode | None,
    *,
    answered: bool,
) -> Held:
    """Prepare the kernel of a failed job for inspection, and keep it.

    Parameters
    ----------
    kernels : HeldKernels
        Owns the kernel afterwards.
    kernel : JobKernel
        Still running, as far as is known.
    request_id : int or str
        Of its job.
    seconds : float
        How long it is kept.
    stopped : FailureCode or None
        The gateway's own reason to end the job.
    answered : bool
        Whether the kernel has answered, so that it can take another request.

    Returns
    -------
    Held
        The kernel and its job result.

    Raises
    ------
    NotHeld
        The kernel is still the caller's.
    """
    result = _living_failure(kernel, answered=answered)
    code = stopped or reported_code(result)
    try:
        kernels.reserve_place()
    except (Conflict, ShuttingDown) as refusal:
        raise NotHeld(refusal.message) from None
    try:
        await _present(kernel)
        report = await _living_report(kernel)
        await kernel.pipes.flush()
        return Held(await kernels.hold(kernel, seconds, request_id, code), result, report)
    except BaseException as error:
        kernels.free_place()
        if isinstance(error, JobFailed | OSError):
            raise NotHeld(str(error)) from None
        raise


def _living_failure(kernel: JobKernel, *, answered: bool) -> JobResult:
    if not kernel.alive:
        raise NotHeld("its process has ended")
    if not answered:
        raise NotHeld("it did not stop when it was interrupted, and had to be killed")
    result = parse_result(read_small(kernel, RESULT_FILE, RESULT_CAP_BYTES))
    if result is None:
        raise NotHeld("it left no result that says what failed")
    if result.outcome != "error":
        raise NotHeld
    return result


async def _present(kernel: JobKernel) -> None:
    """Give the console its names."""
    marker = f"{kernel.workspace.out_dir}/{MARKER}"
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(PRESENT_SECONDS):
            await kernel.client.execute(PRESENT_CODE.format(marker_path=marker))
    if read_small(kernel, MARKER, MARKER_CAP_BYTES) is None:
        raise NotHeld("its Python no longer answers, perhaps because it lacks memory")


def hold_message(facts: HeldKernel) -> str:
    """Return the log line that says how to attach.

    Parameters
    ----------
    facts : HeldKernel
        A kernel that is kept.

    Returns
    -------
    str
        One line.
    """
    until = datetime.fromtimestamp(facts.expires_at, UTC).strftime("%H:%M:%S UTC")
    return f"The kernel of this job is held until {until}; attach with: {facts.access['attach']}"


def read_small(kernel: JobKernel, name: str, cap_bytes: int) -> bytes | None:
    """Return a small file of a job.

    Parameters
    ----------
    kernel : JobKernel
        In which the job ran.
    name : str
        Name of a file in its output directory.
    cap_bytes : int
        Largest size.

    Returns
    -------
    bytes or None
        None if the file is missing, too large, or not a regular file of the job's own.
    """
    try:
        with open_output(
            Path(kernel.workspace.out_dir) / name, owner_uid=kernel.workspace.uid, max_bytes=cap_bytes
        ) as opened:
            return opened.read(cap_bytes)
    except (JobFailed, OSError):  # an OSError if a living kernel shortens it while it is read
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
        detail="still running",
    )
