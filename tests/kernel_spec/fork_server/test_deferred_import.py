"""Deferred imports are quick, whole, and not there until a job asks for them."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from kernel_spec.fork_server.deferred_import import DeferredImporter
from kernel_spec.kernel.environment import interpreter_environment
from tests.kernel_spec.conftest import Desk

SECONDS = 60
USES_IT = """
import sys, os, json
before = sorted(name for name in sys.modules if name.lstrip("_").startswith("polars"))
threads = len(os.listdir("/proc/self/task"))
import importlib.util, pkgutil
found = importlib.util.find_spec("polars")
data = pkgutil.get_data("polars", "py.typed")
import polars.selectors as selectors, polars
own = polars.__spec__
frame = polars.DataFrame({"n": range(1000), "s": ["a"] * 1000})
print(json.dumps({
    "before": before, "started": len(os.listdir("/proc/self/task")) - threads,
    "spec": own.loader is polars.__loader__ and importlib.util.find_spec("polars") is own,
    "found": [found.origin == own.origin, found.cached == own.cached, found.has_location, data == b""],
    "same": sys.modules["polars"] is polars and sys.modules["polars.dataframe"].DataFrame is polars.DataFrame,
    "columns": frame.select(selectors.numeric()).columns, "sum": frame.lazy().select("n").sum().collect().item(),
    "drawn": frame["n"].sample(5).to_list(),
}))
"""


def run_as_fork_server(program: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program in the fork server's environment, with `path` before all other places of modules."""
    environment = interpreter_environment()
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    command = [sys.executable, "-P", "-c", textwrap.dedent(program)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=SECONDS)


def test_a_kernel_has_them_when_it_imports_them_and_not_before(desk: Desk) -> None:
    assert desk.status()["fork_server"]["deferred"] == ["polars"]
    with desk.kernel() as kernel, desk.kernel() as other:
        assert kernel.process.started_by == "fork"
        first, second = json.loads(kernel.run(USES_IT)), json.loads(other.run(USES_IT))
    drawn = first.pop("drawn"), second.pop("drawn")
    assert first == second
    assert first == {
        "before": [],
        "started": 1,  # what the last step of Polars' import starts
        "spec": True,
        "found": [True, True, True, True],
        "same": True,
        "columns": ["n"],
        "sum": 499500,
    }
    assert drawn[0] != drawn[1]


def test_tables_are_read_with_polars_from_a_smaller_size_on_where_that_needs_no_import(desk: Desk) -> None:
    code = (
        "from transform_shim.reading.jsonl import polars_engine as e; print(e.worthwhile_bytes() == e.WORTHWHILE_BYTES)"
    )
    with desk.kernel() as forked, desk.kernel(plain=True) as plain:
        assert (forked.run(code), plain.run(code)) == ("True\n", "False\n")


def test_the_fork_server_stays_as_it_was(tmp_path: Path) -> None:
    done = run_as_fork_server("""
        import os, sys
        from kernel_spec.fork_server import deferred_import
        environment = dict(os.environ)
        deferred_import.defer("polars")
        print(len(os.listdir("/proc/self/task")), os.environ == environment, "polars" in sys.modules)
    """)
    assert (done.stdout, done.stderr) == ("1 True False\n", "")


def test_only_wanted_and_installed_packages_are_deferred(tmp_path: Path) -> None:
    done = run_as_fork_server("""
        import importlib.util
        from kernel_spec.fork_server import deferred_import
        print(deferred_import.installed(["pandas", "polars"]), deferred_import.installed(["pandas"]))
        importlib.util.find_spec = lambda name: None
        print(deferred_import.installed(["pandas", "polars"]))
    """)
    assert done.stdout == "('polars',) ()\n()\n"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()", "starts a thread"),
        ("import os\nkept = os.pipe()", "opens a descriptor"),
        ("raise RuntimeError('half installed')", "half installed"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGILL)", ""),
    ],
    ids=["thread", "descriptor", "error", "crash"],
)
def test_a_package_that_does_not_bear_it_is_left_to_the_jobs(tmp_path: Path, source: str, reason: str) -> None:
    (tmp_path / "package.py").write_text(source)
    done = run_as_fork_server(
        """
        from kernel_spec.fork_server.deferred_import import Trial
        print(Trial(["package"]).passed(), Trial([]).passed())
        """,
        tmp_path,
    )
    assert done.stdout == "False True\n"
    assert reason in done.stderr
    assert "package: imported by each job that uses it" in done.stderr


def test_an_unknown_release_of_polars_is_left_to_the_jobs(tmp_path: Path) -> None:
    runtime = tmp_path / "_polars_runtime_32"
    runtime.mkdir()
    (runtime / "__init__.py").touch()
    (runtime / "_polars_runtime.py").touch()
    done = run_as_fork_server(
        "from kernel_spec.fork_server.deferred_import import Trial\nprint(Trial(['polars']).passed())",
        tmp_path,
    )
    assert done.stdout == "False\n"
    assert "this release of Polars is not known" in done.stderr


def test_a_fork_server_without_them_says_so_and_forks(new_desk: Callable[..., Desk]) -> None:
    desk = new_desk(workspaces=2, modules=("numpy", "kernel_spec.kernel.app"))
    desk.wait_for_fork_server("ready")
    assert desk.status()["fork_server"]["deferred"] == []
    with desk.kernel() as kernel:
        assert kernel.process.started_by == "fork"
        assert kernel.run("import polars; print(polars.Series([1, 2]).sum())") == "3\n"


def test_a_last_step_that_fails_is_tried_again_by_the_next_import(monkeypatch: pytest.MonkeyPatch) -> None:
    package = ModuleType("laid_by")
    package.__spec__ = spec = importlib.util.spec_from_loader("laid_by", loader=None, is_package=True)
    submodule = ModuleType("laid_by.part")
    left = [RuntimeError("no thread to be had")]

    def step() -> None:
        if left:
            raise left.pop()

    finder = DeferredImporter("laid_by", {"laid_by": package, "laid_by.part": submodule}, [step])
    monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
    with pytest.raises(RuntimeError, match="no thread"):
        importlib.import_module("laid_by")
    assert "laid_by.part" not in sys.modules
    try:
        assert importlib.import_module("laid_by.part") is submodule
        assert importlib.import_module("laid_by") is package
        assert package.__spec__ is spec
        assert finder.find_spec("laid_by") is None
        # Another thread on its way through the list would skip one if it went.
        assert finder in sys.meta_path
    finally:
        for name in ("laid_by", "laid_by.part"):
            sys.modules.pop(name, None)
