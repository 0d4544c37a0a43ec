"""One job in one kernel: run it, watch it, stop or hold its kernel, and decide how it ended."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import time
from pathlib import Path

from msgspec.structs import replace

from gateway.core.cancellation import StopSignal
from gateway.core.errors import FailureCode, JobFailed
from gateway.core.events import Displayed, JobLog, Progress
from gateway.core.job import Job, UrlDelivery, Verdict
from gateway.core.log_json import decode_line
from gateway.core.tasks import first_of, gather_two, started
from gateway.core.uploads import UploadPermit
from gateway.jobs.delivery import JobOutputs
from gateway.local.held_kernels import HeldKernels
from gateway.local.hold import HOLD_GRACE_SECONDS, Held, NotHeld, hold, hold_message, read_small
from gateway.local.job_request import (
    DISPLAYS_FILE,
    MANIFEST_FILE,
    OUTPUT_FILE,
    RESULT_FILE,
    SOURCES_FILE,
    SOURCES_IN_REQUEST_CHARACTERS,
    JobRequest,
)
from gateway.local.kernel import JobKernel
from gateway.local.output.job_displays import DISPLAYS_CAP_BYTES, parse_displays
from gateway.local.output.job_result import RESULT_CAP_BYTES, parse_result
from gateway.local.verdict import ExecutionFacts, decide
from gateway.storage import FetchedTable, Outbox, OutboxNote, open_output
from gateway.storage.inputs.fetched_table import table_paths
from gateway.storage.outputs.job_files import MANIFEST_CAP_BYTES
from gateway.storage.state_directory import DiskSpace
from kernel_spec.protocol.limits import Limits

#: Time for a job between SIGINT and SIGKILL: pure Python, sleep and numpy need 0.1 to 0.26 s for their traceback
#: (measured).
INTERRUPT_GRACE_SECONDS = 0.25

#: Time for the answer of a job whose time is over: a gateway that was paused (SIGSTOP, a frozen container or machine)
#: finds the time over before it has read what came meanwhile.
SETTLE_SECONDS = 0.1

#: Number of lines at the end of a log that may have the last message of a process.
LAST_LINES = 20

#: With less than this on the disk, a job without a result is taken for one that could not write it.
FULL_BYTES, FULL_INODES = 1 << 20, 16


class Execution:
    """Runs a job in a kernel that is ready.

    Parameters
    ----------
    kernel : JobKernel
        Stays the caller's, unless `is_held` says otherwise afterwards.
    job : Job
    log : JobLog
        Receives the output of the job.
    stop : StopSignal
    held : HeldKernels
        Gets the kernel of a failed job that is to be kept.
    outbox : Outbox
        Gets the output of a success.
    execution_id : str
        Name of the output in the outbox.
    timeout_seconds : float
        Time that is left of the job's timeout.
    permit : UploadPermit, optional
        Prepared when the job says that it is done.

    Attributes
    ----------
    stages_seconds : dict
        Seconds by stage, once it ran.
    outputs : JobOutputs or None
        The files of a successful job; the caller closes them.
    is_held : bool
        Whether the kernel belongs to `held` now.
    """

    def __init__(
        self,
        kernel: JobKernel,
        job: Job,
        log: JobLog,
        stop: StopSignal,
        held: HeldKernels,
        outbox: Outbox,
        execution_id: str,
        timeout_seconds: float,
        permit: UploadPermit | None = None,
    ) -> None:
        self._kernel = kernel
        self._job = job
        self._log = log
        self._stop = stop
        self._held_kernels = held
        self._outbox = outbox
        self._execution_id = execution_id
        self._timeout_seconds = timeout_seconds
        self._permit = permit
        self._not_held = ""
        self.stages_seconds: dict[str, float] = {}
        self.outputs: JobOutputs | None = None
        self.is_held = False

    async def run(self, tables: tuple[FetchedTable, ...]) -> Verdict:
        """Run the job until nothing of it can run any more, but for a kernel that is held.

        Parameters
        ----------
        tables : tuple of FetchedTable
            Input tables; moved into the workspace.

        Returns
        -------
        Verdict
            How the job ended.

        Raises
        ------
        JobFailed
            The job could not be run, or its output could not be opened.
        """
        kernel, limits = self._kernel, self._kernel.parts.limits
        limits = replace(limits, cpu_seconds=max(limits.cpu_seconds, math.ceil(self._job.timeout_seconds)))
        _, request = await gather_two(kernel.set_cpu_limit(limits.cpu_seconds), self._request(tables))
        code = request.execute_code()
        kernel.pipes.start(self._log)
        try:
            return await self._run_started(code, limits)
        finally:
            # The log ends with lines of the gateway, so all output of the job must come before. Only after a failure
            # is there anything to read here.
            try:
                await kernel.pipes.flush()
            finally:
                kernel.pipes.discard()

    async def _run_started(self, code: str, limits: Limits) -> Verdict:
        kernel = self._kernel
        began = time.monotonic()
        try:
            stopped, answered = await self._watch(code)
            if self._permit is not None:
                self._permit.prepare()
            ended = time.monotonic()
            held = await self._hold(stopped, answered=answered) if self._hold_seconds(stopped) else None
        except BaseException:
            await kernel.kill()
            raise
        self.stages_seconds["execute"] = ended - began
        if held is None:
            # The job's files cannot change from here on; `terminate` waits until its processes are gone as well.
            report = await kernel.stop()
            self.stages_seconds["kill"] = time.monotonic() - ended
            await kernel.pipes.read_to_eof()
            result = parse_result(read_small(kernel, RESULT_FILE, RESULT_CAP_BYTES))
        else:
            report, result = held.report, held.result
            self.stages_seconds["hold"] = time.monotonic() - ended
        self._emit_displays()
        last_lines = () if result is not None else self._last_lines()
        timeout_seconds = self._job.timeout_seconds
        shortage = "" if result is not None else _disk_shortage(Path(kernel.workspace.out_dir))
        facts = ExecutionFacts(stopped, report, result, limits, timeout_seconds, ended - began, last_lines, shortage)
        return self._conclude(decide(facts, self._job.output_format), held)

    def _emit_displays(self) -> None:
        for display in parse_displays(read_small(self._kernel, DISPLAYS_FILE, DISPLAYS_CAP_BYTES)):
            self._log.emit(Displayed(display))

    async def _request(self, tables: tuple[FetchedTable, ...]) -> JobRequest:
        """Move the inputs into the workspace and return the request for the kernel."""
        job, workspace = self._job, self._kernel.workspace
        fetched = {table.alias for table in tables}
        try:
            request = JobRequest(
                code=job.code,
                library=job.library,
                tables=tuple(_moved(table, Path(workspace.inputs_dir, str(n))) for n, table in enumerate(tables)),
                unfetched=tuple(table.alias for table in job.tables if table.alias not in fetched),
                output_format=job.output_format,
                out_dir=Path(workspace.out_dir),
                work_dir=Path(workspace.work_dir),
                limits=self._kernel.parts.limits,
                hold=job.hold_seconds > 0,
                rules=self._kernel.parts.rules,
                output_schema=job.output_schema,
                profile=job.profile,
                # it takes a quarter of the processor time of writing, and nobody compares an uploaded output with it
                checksum=not isinstance(job.delivery, UrlDelivery),
            )
            if request.sources_characters <= SOURCES_IN_REQUEST_CHARACTERS:
                return request
            return await asyncio.to_thread(request.with_sources_file, Path(workspace.inputs_dir) / SOURCES_FILE)
        except OSError as error:
            text = f"The gateway could not write tables or script for the kernel: {error.strerror or error}"
            raise JobFailed(FailureCode.GATEWAY_DISK_FAILED, text) from None

    def _last_lines(self) -> tuple[str, ...]:
        lines = map(decode_line, self._log.json_lines()[0][-LAST_LINES:])
        return tuple(message for _, stream, message, _ in lines if stream == "stderr")

    async def _watch(self, code: str) -> tuple[FailureCode | None, bool]:
        """Return when the job may be over: the gateway's reason to end it, if any, and whether it reported to be
        done.
        """
        exited = self._kernel.exited
        async with started(self._answer(code), self._stop.wait()) as (answered, stop):
            await first_of(answered, stop, exited, timeout_seconds=self._timeout_seconds)
            await first_of(answered, stop, exited, timeout_seconds=SETTLE_SECONDS)
            if answered.done() or exited.done():
                return None, answered.done()
            stopped = self._stop.cause or FailureCode.TIMEOUT
            await self._kernel.interrupt()
            grace_seconds = INTERRUPT_GRACE_SECONDS + (HOLD_GRACE_SECONDS if self._hold_seconds(stopped) else 0)
            await first_of(answered, exited, timeout_seconds=grace_seconds)
            return stopped, answered.done()

    async def _answer(self, code: str) -> None:
        """Execute the code; return at the shim's done frame or the kernel's answer, whichever comes first."""
        pipes, client = self._kernel.pipes, self._kernel.client
        async with started(pipes.done(), client.execute(code, pipes.feed_text, is_job=True)) as (done, replied):
            await first_of(done, replied)

    def _hold_seconds(self, stopped: FailureCode | None) -> float:
        """Return how long to hold the kernel if the job has failed; decided again when a job ends."""
        return self._job.hold_seconds if stopped in (None, FailureCode.TIMEOUT) else self._stop.hold_seconds

    async def _hold(self, stopped: FailureCode | None, *, answered: bool) -> Held | None:
        """Hand over a failed job's kernel to be held, or record the reason why not."""
        try:
            seconds, request_id = self._hold_seconds(stopped), self._job.request_id
            held = await hold(self._held_kernels, self._kernel, request_id, seconds, stopped, answered=answered)
        except NotHeld as reason:
            self._not_held = str(reason)
            return None
        self.is_held = True
        self._log.line("stderr", hold_message(held.kernel))
        return held

    def _conclude(self, verdict: Verdict, held: Held | None) -> Verdict:
        if held is not None:
            return replace(verdict, held=held.kernel)
        if verdict.ok:
            self.outputs = self._open_outputs(verdict)
            return verdict
        if self._not_held:
            self._log.line("stderr", f"The kernel of this job is not held: {self._not_held}")
        return replace(verdict, not_held=self._not_held)

    def _open_outputs(self, verdict: Verdict) -> JobOutputs:
        """Open the files that the job wrote; only now, when nothing lives that could change them."""
        kernel = self._kernel
        path, limits = Path(kernel.workspace.out_dir) / OUTPUT_FILE, kernel.parts.limits
        output = open_output(path, owner_uid=kernel.workspace.uid, max_bytes=limits.file_size_bytes)
        try:
            manifest = read_small(kernel, MANIFEST_FILE, MANIFEST_CAP_BYTES)
            if manifest is None:
                text = f"is missing, larger than {MANIFEST_CAP_BYTES} bytes, or not a regular file of its own"
                raise JobFailed(FailureCode.OUTPUT_MISSING, f"The job's manifest {text}")
            # from here on neither the kernel nor its workspace is needed
            note = OutboxNote(verdict, manifest, self._log.snapshot())
            self._outbox.put(self._execution_id, path, output, note)
        except BaseException:
            output.close()
            raise
        self._log.emit(Progress("write", None, None, output.size_bytes))
        return JobOutputs(output, manifest)


def _disk_shortage(directory: Path) -> str:
    """Return the shortage of a disk that has no room even for a small file; else an empty text."""
    try:
        return DiskSpace.of(directory).shortage(FULL_BYTES, FULL_INODES)
    except OSError as error:  # in tier C without Landlock, the job itself may have removed it
        return f"does not have the job's directory any more ({error.strerror})"


def _moved(table: FetchedTable, stem: Path) -> FetchedTable:
    data, manifest = table_paths(stem)
    manifest_path = table.manifest_path and table.manifest_path.rename(manifest)
    return dataclasses.replace(table, data_path=table.data_path.rename(data), manifest_path=manifest_path)
