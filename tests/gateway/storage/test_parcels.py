"""Files that hosts bring to the member that accepted a job."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gateway.core.errors import NotFound
from gateway.storage.parcels import Parcels


def test_what_begins_after_the_end_of_a_job_leaves_nothing(tmp_path: Path) -> None:
    """The first bytes may come later than the request, in which the job has ended."""
    (tmp_path / "store").mkdir()
    parcels = Parcels("http://127.0.0.1:9", tmp_path)
    early, late = (
        parcels.expected(parcels.expect("id", 1, name, 1000).rpartition("/")[2]) for name in ("output", "manifest")
    )
    draft, fd = early.draft()
    os.close(fd)
    parcels.withdraw("id")
    parcels.remove("id")
    with pytest.raises(NotFound):
        early.take(draft, 0)
    with pytest.raises(NotFound):
        late.draft()
    assert list((tmp_path / "parcels").iterdir()) == []
