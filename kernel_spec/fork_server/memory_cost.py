"""``python -P -m kernel_spec.fork_server.memory_cost NAME ...``: the cost of importing more modules before the fork.

Prints a JSON list with an object for each module: memory of the process in bytes, which all kernels share, seconds, and
the reason why a fork server with it could not be used, or null.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from pathlib import Path

from kernel_spec.fork_server.preload import import_all
from kernel_spec.kernel.added_packages import append_to_path
from kernel_spec.linux import procfs


def measure(names: list[str]) -> list[dict[str, object]]:
    """Import the default modules, then each of these, and return the cost of each."""
    import_all()
    return [_cost(name) for name in names]


def _cost(name: str) -> dict[str, object]:
    before, began = _memory_bytes(), time.monotonic()
    problem = None
    try:
        importlib.import_module(name)
    except BaseException as error:
        problem = f"its import fails: {type(error).__name__}: {error}"
    if problem is None and sum(1 for _ in Path("/proc/self/task").iterdir()) > 1:
        problem = "its import starts a thread, and a process with threads must not fork"
    cost = {"memory_bytes": max(0, _memory_bytes() - before), "seconds": round(time.monotonic() - began, 3)}
    return {"module": name, **cost, "problem": problem}


def _memory_bytes() -> int:
    status = procfs.read_status(os.getpid())
    return status.anonymous_bytes if status is not None else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m kernel_spec.fork_server.memory_cost")
    parser.add_argument("--packages", default="", help="directory of packages that the operator has added")
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    append_to_path(options.packages)
    sys.stdout.write(json.dumps(measure(options.names)) + "\n")
