"""Keep the bundle of a job that failed."""

from __future__ import annotations

import asyncio
import logging
import platform
from pathlib import Path
from typing import Any

import msgspec
from msgspec import structs

from gateway.core.errors import FailureCode
from gateway.core.job import Job, Verdict
from gateway.core.settings import Settings
from gateway.core.version import VERSION
from gateway.jobs.bundles import Bundle, BundleStore
from gateway.jobs.bundles.table_data import keep_tables
from gateway.jobs.runner import JobRun, JobRunner
from gateway.jobs.store import JobRecord
from gateway.jobs.table_use import used_tables
from gateway.storage.state_directory import DiskSpace

log = logging.getLogger(__name__)

#: The inputs of one job have at most this part of KEEP_FAILED_BYTES, so that one job does not push out all others.
INPUTS_PART = 10


#: Ended by a person or by the gateway: there is no failure to look into.
_NO_FAULTS = frozenset({FailureCode.CANCELLED, FailureCode.SHUTTING_DOWN, FailureCode.QUEUE_TIMEOUT})


def may_run_again(verdict: Verdict) -> bool:
    """Return whether another run of a failed job may show its cause."""
    return not verdict.ok and verdict.code not in _NO_FAULTS


async def keep_bundle(
    bundles: BundleStore, record: JobRecord, verdict: Verdict, run: JobRun, runner: JobRunner, settings: Settings
) -> None:
    """Keep the bundle of a job; a failure to keep it is only logged, because the job has its verdict already.

    Parameters
    ----------
    bundles : BundleStore
        Keeps it.
    record : JobRecord
        With its ``job``.
    verdict : Verdict
        A failure.
    run : JobRun
        Has the job's tables.
    runner : JobRunner
        Lists the packages of jobs.
    settings : Settings
        Of this gateway.
    """
    job = record.job
    if job is None:
        return
    try:
        packages = {package.name: package.version for package in await runner.packages()}
        lines = [msgspec.Raw(line) for line in record.log.json_lines()[0]]

        def fill(directory: Path) -> Bundle:
            free_bytes = DiskSpace.of(settings.state_dir).free_bytes - settings.min_free_disk_bytes
            room_bytes = max(0, min(settings.keep_failed_bytes // INPUTS_PART, free_bytes))
            used = {table.alias for table in used_tables(job)}
            tables = keep_tables(job.tables, used, run.inputs, verdict.tables, directory, room_bytes)
            return _bundle(record.execution_id, job, verdict, settings, tables=tables, packages=packages, log=lines)

        await asyncio.to_thread(bundles.keep, record.execution_id, fill)
    except (Exception, asyncio.CancelledError) as error:  # of any kind: the verdict must be stored all the same
        log.warning("the bundle of job %s could not be kept: %s", record.execution_id, error)


def _bundle(job_id: str, job: Job, verdict: Verdict, settings: Settings, **found: Any) -> Bundle:
    return Bundle(
        job_id=job_id,
        request_id=job.request_id,
        label=job.label,
        failure_code=str(verdict.code),
        # it may quote the job, which may have printed a lone surrogate, which UTF-8 cannot encode
        message=verdict.message.encode("utf-8", "backslashreplace").decode(),
        exit_code=verdict.exit_code,
        code=job.code,
        library=job.library,
        output_format=job.output_format,
        output_schema=job.output_schema,
        timeout_seconds=job.timeout_seconds,
        limits=structs.asdict(settings.limits),
        mixed_columns=settings.mixed_columns,
        official_compatibility=settings.official_compatibility,
        allow_network=settings.allow_network,
        gateway_version=VERSION,
        python_version=platform.python_version(),
        **found,
    )
