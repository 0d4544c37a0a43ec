"""The parcels of one job: each file on this member's disk, or for it, gets a URL for the host that runs the job."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial

from msgspec import Raw
from msgspec.structs import replace

from gateway.cluster.broker import MESSAGE_CAP_BYTES
from gateway.core.cancellation import StopSignal
from gateway.core.directories import open_below
from gateway.core.errors import FailureCode, JobFailed
from gateway.core.events import JobLog
from gateway.core.job import (
    FileSource,
    InputTable,
    Job,
    MetabaseSource,
    ParcelDelivery,
    ParcelSource,
    Source,
    UploadSource,
    UrlDelivery,
    UrlSource,
    Verdict,
)
from gateway.core.settings import Settings
from gateway.core.uploads import Uploads
from gateway.core.wire import encode_job
from gateway.jobs.delivery import Deliverer, JobOutputs
from gateway.jobs.table_use import used_tables
from gateway.storage import OpenOutput
from gateway.storage.inputs.fetched_table import shown_alias
from gateway.storage.outputs.job_files import MANIFEST_CAP_BYTES
from gateway.storage.parcels import Parcels

#: Largest job that is sent through the broker; the rest of a message is for the lines of an earlier attempt.
JOB_CAP_BYTES = MESSAGE_CAP_BYTES - 250_000


def travels(job: Job) -> bool:
    """Return whether a job can run on any host without parcels: all its files have URLs, and it fits into a message."""
    sources = [source for table in job.tables for source in (table.data, table.manifest) if source is not None]
    return (
        isinstance(job.delivery, UrlDelivery)
        and all(isinstance(source, UrlSource | MetabaseSource) for source in sources)
        and len(encode_job(job)) <= JOB_CAP_BYTES
    )


class JobParcels:
    """The parcels of a job that does not travel without them.

    Parameters
    ----------
    parcels : Parcels
    settings : Settings
    job : Job
        As it was accepted.
    execution_id : str
    uploads : Uploads or None
        Files that came with the request.
    """

    def __init__(
        self, parcels: Parcels, settings: Settings, job: Job, execution_id: str, uploads: Uploads | None
    ) -> None:
        self._parcels = parcels
        self._settings = settings
        self._job = job
        self._execution_id = execution_id
        self._uploads = uploads
        self._attempt = 0

    @property
    def expects_results(self) -> bool:
        """Whether the host uploads the results here, and this member delivers them."""
        return not isinstance(self._job.delivery, UrlDelivery)

    def check_files(self) -> None:
        """Fail like a job of this machine if a file that the request names cannot be read.

        Raises
        ------
        JobFailed
            ``input_unavailable``
        """
        for table in used_tables(self._job):
            for source in (table.data, table.manifest):
                if isinstance(source, FileSource):
                    try:
                        self._open(source).close()
                    except OSError as error:
                        reason = error.strerror or str(error)
                        text = f"Table {shown_alias(table.alias)} could not be fetched: {reason}"
                        raise JobFailed(FailureCode.INPUT_UNAVAILABLE, text, retryable=True) from None

    def assigned(self, attempt: int) -> tuple[Raw, str]:
        """Return the job of an attempt in the form of its assignment: as JSON, or null and the URL of the JSON.

        From now on the parcels of earlier attempts are withdrawn.
        """
        if attempt != self._attempt:
            self._parcels.withdraw(self._execution_id)
            self._attempt = attempt
        tables = tuple(self._offered(number, table) for number, table in enumerate(self._job.tables))
        job = replace(self._job, tables=tables)
        if self.expects_results:
            job = replace(job, delivery=self._expected())
        data = encode_job(job)
        if len(data) <= JOB_CAP_BYTES:
            return Raw(data), ""
        return Raw(b"null"), self._offer("job", partial(_in_memory, data))

    def are_fetched(self) -> None:
        """Withdraw the parcels that the host has fetched."""
        self._parcels.withdraw_offers(self._execution_id)

    async def deliver(self, deliverer: Deliverer, verdict: Verdict, log: JobLog, stop: StopSignal) -> Verdict:
        """Deliver the results that the host of the last attempt has uploaded to the places that the request names.

        Parameters
        ----------
        deliverer : Deliverer
            Delivers the files.
        verdict : Verdict
            The host's verdict.
        log : JobLog
            Gets the last lines.
        stop : StopSignal
            Ends the delivery before its time.

        Returns
        -------
        Verdict
            The final verdict.
        """
        began = time.monotonic()
        self.withdraw()
        verdict, outputs = self._with_results(verdict)
        try:
            verdict = await deliverer.deliver(self._job, verdict, outputs, log, stop, self._execution_id)
        finally:
            if outputs is not None:
                outputs.close()
        stages = verdict.stages_seconds
        seconds = stages.get("deliver", 0.0) + time.monotonic() - began
        return replace(verdict, stages_seconds={**stages, "deliver": seconds})

    def _with_results(self, verdict: Verdict) -> tuple[Verdict, JobOutputs | None]:
        """Return a verdict with the files of a success, or the failure to find them."""
        if not verdict.ok:
            return verdict, None
        try:
            return verdict, self._outputs()
        except JobFailed as failure:
            failed = Verdict.of(failure)
            stages = verdict.stages_seconds
            return replace(failed, stages_seconds=stages, execution_seconds=verdict.execution_seconds), None

    def _outputs(self) -> JobOutputs:
        """Return the files, or fail with ``gateway_disk_failed``: they are not there."""
        output = self._open_uploaded("output", self._settings.limits.file_size_bytes)
        try:
            with self._open_uploaded("manifest", MANIFEST_CAP_BYTES) as manifest:
                return JobOutputs(output, manifest.read(MANIFEST_CAP_BYTES))
        except BaseException:
            output.close()
            raise

    def withdraw(self) -> None:
        """Withdraw all parcels: hosts can neither fetch nor upload anything any more."""
        self._parcels.withdraw(self._execution_id)

    def remove(self) -> None:
        """Remove the files that hosts have uploaded; blocks."""
        self._parcels.remove(self._execution_id)

    def _offered(self, number: int, table: InputTable) -> InputTable:
        manifest = table.manifest and self._parcel_of(table.manifest, f"{number}.manifest")
        return replace(table, data=self._parcel_of(table.data, f"{number}.data"), manifest=manifest)

    def _parcel_of(self, source: Source, name: str) -> Source:
        if isinstance(source, FileSource | UploadSource):
            return ParcelSource(self._offer(name, partial(self._open, source)))
        return source

    def _offer(self, name: str, open_file: Callable[[], OpenOutput]) -> str:
        return self._parcels.offer(self._execution_id, self._attempt, name, open_file)

    def _expected(self) -> ParcelDelivery:
        expect = partial(self._parcels.expect, self._execution_id, self._attempt)
        output_bytes = self._settings.limits.file_size_bytes
        return ParcelDelivery(expect("output", output_bytes), expect("manifest", MANIFEST_CAP_BYTES))

    def _open(self, source: FileSource | UploadSource) -> OpenOutput:
        if isinstance(source, FileSource):
            return OpenOutput(*open_below(source.path, self._settings.working_dir_roots))
        if self._uploads is None:
            raise FileNotFoundError("its file did not come with the request")
        path = self._uploads.path(source.name)
        return OpenOutput(*open_below(path, (path.parent,)))

    def _open_uploaded(self, name: str, max_bytes: int) -> OpenOutput:
        found = self._parcels.open_uploaded(self._execution_id, self._attempt, name, max_bytes)
        if found is None:
            text = f"The {name} of the job is not on the disk of the member that accepted it"
            raise JobFailed(FailureCode.GATEWAY_DISK_FAILED, text)
        return found


def _in_memory(data: bytes) -> OpenOutput:
    fd = os.memfd_create("job", os.MFD_CLOEXEC)
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(data)
    return OpenOutput(fd, len(data))
