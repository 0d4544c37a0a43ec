"""What the storage tests share: one S3 server, settings, and a sink for events."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gateway.jobs.events import Event
from gateway.settings import Settings
from tests.s3 import S3Server


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    with S3Server() as server:
        yield server


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state_dir=tmp_path / "state", storage_stall_seconds=5.0)


@dataclass
class Recorder:
    events: list[Event] = field(default_factory=list)

    def emit(self, event: Event) -> None:
        self.events.append(event)


@pytest.fixture
def sink() -> Recorder:
    return Recorder()


def open_descriptors() -> set[str]:
    """Return the numbers of this process's open files; a leak makes the set grow."""
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def files_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())
