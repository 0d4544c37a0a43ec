"""The assignment of a job in the queue of the broker, published again while no host takes it."""

from __future__ import annotations

import time

from msgspec import Raw

from gateway.cluster.runner.parcels import JobParcels
from gateway.cluster.runner.shared import Cluster
from gateway.cluster.wire import Assignment, encode
from gateway.core.events import JobLog
from gateway.core.job import Job
from gateway.core.version import VERSION
from gateway.core.wire import encode_job

#: First and longest time after which an assignment that no host takes is published again: the broker may have lost it.
#: If it has not, the earlier message stays in the queue, so the time doubles with each message.
REPUBLISH_SECONDS, MOST_REPUBLISH_SECONDS = 30.0, 1920.0

#: Size of the lines of earlier attempts that the next host gets for the log that it uploads.
LINES_BYTES = 200_000


class Publication:
    """Publishes the assignments of one job.

    Parameters
    ----------
    cluster : Cluster
    execution_id : str
    job : Job
    job_log : JobLog
        Its lines go to the next host.
    parcels : JobParcels or None
        Replace the files of the job in each assignment.

    Attributes
    ----------
    count : int
        Assignments so far.
    """

    def __init__(
        self, cluster: Cluster, execution_id: str, job: Job, job_log: JobLog, parcels: JobParcels | None
    ) -> None:
        self._cluster = cluster
        self._id = execution_id
        self._job = job
        self._log = job_log
        self._parcels = parcels
        self.count = 0
        self._due_at, self._pause_seconds = 0.0, REPUBLISH_SECONDS

    def reset(self) -> None:
        """Publish with the next call of `publish`, because the record is a new one."""
        self._due_at, self._pause_seconds = 0.0, REPUBLISH_SECONDS

    async def publish(self, attempt: int, revision: int) -> None:
        """Publish the assignment of an attempt with the revision of its queued record, unless it is too early for it.

        Raises
        ------
        NoReply
        """
        if time.monotonic() < self._due_at:
            return
        parcels, me = self._parcels, self._cluster.me
        job, url = (Raw(encode_job(self._job)), "") if parcels is None else parcels.assigned(attempt)
        assignment = Assignment(self._id, attempt, me.name, VERSION, job, self._last_lines(), url, revision)
        # a new number: the broker drops a repeated one for two minutes, even if it has lost the message
        number = f"{me.boot}.{self.count}"
        await self._cluster.broker.publish_job(self._id, number, encode(assignment))
        self._cluster.republished += self.count > 0
        self.count += 1
        self._due_at = time.monotonic() + self._pause_seconds
        self._pause_seconds = min(2 * self._pause_seconds, MOST_REPUBLISH_SECONDS)

    def _last_lines(self) -> tuple[Raw, ...]:
        lines: list[Raw] = []
        lines_bytes = 0
        for line in reversed(self._log.json_lines()[0]):
            lines_bytes += len(line) + 1
            if lines_bytes > LINES_BYTES:
                break
            lines.append(Raw(line))
        return tuple(reversed(lines))
