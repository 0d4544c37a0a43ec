"""A state directory that cannot be used any more refuses jobs, and its status says why."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.storage.state_directory import KEPT_OPEN, OF_THE_LAUNCHER, WRITTEN

#: A user without privileges, for whom modes count.
USER = 65_534

PROGRAM = """
import sys
from pathlib import Path
from gateway.storage.state_directory import StateDirectory
print(StateDirectory(Path(sys.argv[1]), 0).status()["problem"])
"""


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda path: None, "None"),
        (lambda path: (path / "store" / "jobs.db").unlink(), "store/jobs.db was removed from STATE_DIR"),
        (lambda path: (path / "store").chmod(0), "store/jobs.db in STATE_DIR cannot be reached: Permission denied"),
    ],
    ids=["usable", "removed", "closed"],
)
def test_its_problem_is_told(change: Callable[[Path], None], problem: str) -> None:
    with tempfile.TemporaryDirectory(prefix="tg-", dir="/tmp") as name:
        path = Path(name)
        for each in ("store", *OF_THE_LAUNCHER, *WRITTEN):
            (path / each).mkdir()
        for each in KEPT_OPEN:
            (path / each).touch()
        user = None
        if os.geteuid() == 0:
            user = USER
            for each in (path, *path.rglob("*")):
                os.chown(each, user, -1)
        change(path)
        command = [sys.executable, "-c", PROGRAM, name]
        done = subprocess.run(command, user=user, capture_output=True, text=True, timeout=60)
        (path / "store").chmod(0o700)
    assert done.stdout.startswith(problem), done.stderr
