"""Fixtures of the storage tests: one S3 server, settings, and a sink for events."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tornado.ioloop import IOLoop

from gateway.core.events import Event
from gateway.core.settings import Settings
from gateway.storage import ObjectClient
from tests.support.s3 import S3Server


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    with S3Server() as server:
        yield server


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state_dir=tmp_path / "state")


@pytest.fixture
def client(io_loop: IOLoop) -> Iterator[ObjectClient]:
    client = ObjectClient(stall_seconds=5.0)
    yield client
    io_loop.run_sync(client.aclose)


@pytest.fixture
def hasty_client(io_loop: IOLoop) -> Iterator[ObjectClient]:
    """A client with the least patience."""
    client = ObjectClient(stall_seconds=0.3)
    yield client
    io_loop.run_sync(client.aclose)


@dataclass
class Recorder:
    events: list[Event] = field(default_factory=list)

    def emit(self, event: Event) -> None:
        self.events.append(event)


@pytest.fixture
def sink() -> Recorder:
    return Recorder()


def open_descriptors() -> set[tuple[str, str]]:
    """Return number and target of each open file of this process; a leak makes the set grow.

    The number alone does not tell a leak from a file that was open before and has been closed since.
    """
    found = set()
    for path in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # that of this listing
            found.add((path.name, str(path.readlink())))
    return found


def files_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())
