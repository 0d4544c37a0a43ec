"""Names of streams, buckets and subjects at the broker; the major version is part of each."""

from __future__ import annotations

from typing import Final

JOBS_STREAM: Final = "TG1_JOBS"
JOBS_CONSUMER: Final = "hosts"
LEASES_BUCKET: Final = "TG1_LEASES"
CLAIMS_BUCKET: Final = "TG1_CLAIMS"
OWNERS_BUCKET: Final = "TG1_OWNERS"
MEMBERS_BUCKET: Final = "TG1_MEMBERS"

ALL_JOBS: Final = "tg.v1.jobs.*"
ALL_BEATS: Final = "tg.v1.beat.*"


def job(execution_id: str) -> str:
    """Return the subject of a job's assignments."""
    return f"tg.v1.jobs.{execution_id}"


def events(owner: str) -> str:
    """Return the subject on which a member gets the events of the jobs that it accepted."""
    return f"tg.v1.ev.{owner}"


def cancel(host: str) -> str:
    """Return the subject on which a host is asked to end a job."""
    return f"tg.v1.cancel.{host}"


def log(host: str) -> str:
    """Return the subject on which a host is asked for events."""
    return f"tg.v1.log.{host}"


def beat(member: str) -> str:
    """Return the subject of a member's beats."""
    return f"tg.v1.beat.{member}"


def ask(member: str) -> str:
    """Return the subject on which a member is asked about jobs that it accepted."""
    return f"tg.v1.ask.{member}"


def part(member: str) -> str:
    """Return the subject on which a member is asked for the next part of an answer."""
    return f"tg.v1.part.{member}"
