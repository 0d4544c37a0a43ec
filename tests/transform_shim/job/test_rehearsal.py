"""The rehearsal of a job leaves nothing that a job could see."""

from __future__ import annotations

import linecache
import os
import sys
import warnings
from pathlib import Path

import pytest

from transform_shim.job import rehearsal


def traces() -> dict[str, object]:
    return {
        "modules": set(sys.modules),
        "path": list(sys.path),
        "importers": set(sys.path_importer_cache),
        "lines": {name for name in linecache.cache if not Path(name).exists()},
        "filters": list(warnings.filters),
        "environment": dict(os.environ),
        "directory": Path.cwd(),
        "descriptors": sorted(os.listdir("/proc/self/fd")),
    }


def test_rehearsal_leaves_no_file_no_module_and_no_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rehearsal.rehearse()  # what is imported on the way is not what this is about
    before = traces()
    rehearsal.rehearse()
    assert traces() == before
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_rehearsal_that_fails_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rehearsal, "_CODE", "def transform(left):\n    return left.no_such_column\n")
    with pytest.raises(RuntimeError, match="no_such_column"):
        rehearsal.rehearse()
