"""The file of a job's displays, as the gateway finds it."""

from __future__ import annotations

import os
from pathlib import Path

from transform_shim.displays.recorder import Recorder


def test_displays_can_be_read_whatever_the_umask_of_the_script(tmp_path: Path) -> None:
    path = tmp_path / "displays.jsonl"
    recorder = Recorder(path)
    before = os.umask(0o777)
    try:
        kept = [recorder.table([["a"]], [["1"]], 0) for _ in range(2)]
    finally:
        os.umask(before)
    assert kept == [True, True]
    assert path.stat().st_mode & 0o777 == 0o660
    assert len(path.read_bytes().splitlines()) == 2
