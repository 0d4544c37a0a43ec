"""A gateway that keeps jobs and computed outputs in memory: its difference from the real one is the price of the disk."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from gateway.cli import main
from gateway.core.settings import Settings
from gateway.jobs.store import JobStore
from gateway.local import runner
from gateway.process import serve
from gateway.storage import Outbox, OutboxNote
from gateway.storage.outputs.job_files import OpenOutput
from gateway.storage.outputs.outbox import OutboxEntry


class MemoryStore(JobStore):
    """A job store without a file."""

    def __init__(self, settings: Settings, directory: Path, on_commit: Callable[[float], None]) -> None:
        (directory / "jobs.db").touch()  # jobs are refused where it is missing
        super().__init__(settings, None, on_commit)


class MemoryOutbox(Outbox):
    """An outbox that leaves an output where it is; it stays open until it is delivered."""

    def put(self, execution_id: str, path: Path, output: OpenOutput, note: OutboxNote) -> OutboxEntry:
        return OutboxEntry(path.parent, output.size_bytes, time.monotonic())


if __name__ == "__main__":
    # by name, because each module has its own reference
    setattr(serve, "JobStore", MemoryStore)  # noqa: B010
    setattr(runner, "Outbox", MemoryOutbox)  # noqa: B010
    sys.exit(main())
