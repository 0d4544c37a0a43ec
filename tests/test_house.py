"""The rules of the house, looked up in the source: imports, sizes, dependencies, documentation."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

from gateway.core.errors import FAILURES, FailureCode
from gateway.core.formats import FORMATS
from kernel_spec.protocol.limits import LIMITS

ROOT = Path(__file__).parents[1]
PACKAGES = ("gateway", "kernel_spec", "transform_shim")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

FOLDERS = (
    # the kernel's side of the trust line: it imports nothing of the other two packages
    "transform_shim/core",
    "transform_shim/writing/lines",
    "transform_shim/writing",
    "transform_shim/reading/values",
    "transform_shim/reading/jsonl",
    "transform_shim/reading/columnar",
    "transform_shim/reading",
    "transform_shim/displays",
    "transform_shim/bars",
    "transform_shim/job",
    "transform_shim/notebook",
    "transform_shim",
    # launcher, fork server and kernel
    "kernel_spec/linux",
    "kernel_spec/protocol",
    "kernel_spec/sandbox/policy",
    "kernel_spec/sandbox/layers",
    "kernel_spec/sandbox/egress",
    "kernel_spec/sandbox/namespaces",
    "kernel_spec/sandbox/accounting",
    "kernel_spec/sandbox",
    "kernel_spec/sandbox/probe",
    "kernel_spec/kernel",
    "kernel_spec/fork_server",
    "kernel_spec/launcher",
    "kernel_spec/client",
    "kernel_spec",
    # the process that faces the network, its clients and its commands
    "gateway/core/errors",
    "gateway/core",
    "gateway/storage/objects",
    "gateway/storage/outputs",
    "gateway/storage/inputs",
    "gateway/storage/embedded_s3",
    "gateway/storage",
    "gateway/jobs/delivery",
    "gateway/jobs/bundles",
    "gateway/jobs/store",
    "gateway/jobs",
    "gateway/local/output",
    "gateway/local",
    "gateway/cluster/broker",
    "gateway/cluster",
    "gateway/cluster/host",
    "gateway/cluster/runner",
    "gateway/telemetry",
    "gateway/page",
    "gateway/http/schemas",
    "gateway/http/bodies",
    "gateway/http/access",
    "gateway/http/streams",
    "gateway/http/base_handler",
    "gateway/http/handlers",
    "gateway/http",
    "gateway/scripts",
    "gateway/process",
    "gateway/table_files",
    "gateway/results",
    "gateway/client",
    "gateway/testing",
    "gateway/companion",
    "gateway/cli",
    "gateway/cli/install",
    "gateway/cli/replay",
    "gateway",
)
"""Every folder of code, the lowest first: a module imports from its own folder and from those above it in this list."""

NEVER = {
    "gateway": {"transform_shim"},
    "gateway/storage": {"gateway/jobs", "kernel_spec"},
    "gateway/storage/inputs": {"gateway/storage/outputs"},
    "gateway/jobs": {"gateway/local", "gateway/http", "kernel_spec", "tornado"},
    "gateway/local": {"gateway/http", "tornado"},
    # a cluster runs jobs through the seam, whatever is behind it; without one nothing of it is imported
    "gateway/cluster": {"gateway/local", "gateway/http", "kernel_spec", "tornado"},
    "gateway/http": {"gateway/local", "kernel_spec"},
    # a result may be kept on another machine: handlers get a reader, never the path of a file
    "gateway/http/handlers": {"gateway/storage/outputs/kept_results", "pathlib"},
    "kernel_spec": {"tornado", "gateway", "transform_shim", "pandas"},
    "transform_shim": {"tornado", "zmq", "jupyter_client", "gateway", "kernel_spec"},
}
"""Imports that the order would allow and that a seam or the trust line forbids."""

MODULES_IN_A_FOLDER = 15
LINES_IN_A_MODULE = 500


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def imported(path: Path) -> tuple[tuple[str, int], ...]:
    """Return the dotted name and the line of every import, also of those inside functions."""
    found = []
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found += [(f"{node.module}.{alias.name}", node.lineno) for alias in node.names]
    return tuple(found)


def module_of(path: Path) -> str:
    """Return the dotted name of a file's module."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PLACES = {module_of(path): path for path in MODULES}


def imports_of(path: Path) -> Iterator[tuple[Path, int]]:
    """Yield the files of our own that a file imports, each with the line."""
    for name, line in imported(path):
        target = PLACES.get(name) or PLACES.get(name.rpartition(".")[0])
        if target is not None and target != path:
            yield target, line


def folder_of(path: Path) -> str:
    """Return a file's folder, from the root of the project."""
    return path.parent.relative_to(ROOT).as_posix()


def test_the_rules_look_at_something() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in MODULES} == set(PACKAGES)


def test_the_order_names_every_folder_once() -> None:
    assert sorted(FOLDERS) == sorted({folder_of(path) for path in MODULES})


def test_imports_point_down() -> None:
    upward = [
        f"{path.relative_to(ROOT)}:{line} {target.relative_to(ROOT)}"
        for path in MODULES
        for target, line in imports_of(path)
        if FOLDERS.index(folder_of(target)) > FOLDERS.index(folder_of(path))
    ]
    assert not upward


def test_imports_keep_to_the_seams() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line} {name}"
        for path in MODULES
        for name, line in imported(path)
        if any(f"{name}.".startswith(f"{each.replace('/', '.')}.") for each in forbidden_in(folder_of(path)))
    ]
    assert not found


def test_nothing_is_pickled() -> None:
    """What a member or a kernel sends is data; a pickle would be code."""
    forbidden = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
    found = [
        f"{path.relative_to(ROOT)}:{line} {name}"
        for path in MODULES
        for name, line in imported(path)
        if path.relative_to(ROOT).parts[0] == "gateway" and name.partition(".")[0] in forbidden
    ]
    assert not found


def test_one_folder_knows_the_broker() -> None:
    users = {folder_of(path) for path in MODULES for name, _ in imported(path) if name.split(".")[0] == "nats"}
    assert users == {"gateway/cluster/broker"}


def forbidden_in(folder: str) -> set[str]:
    """Return the packages and modules that the modules of a folder never import."""
    return {name for place, names in NEVER.items() if f"{folder}/".startswith(f"{place}/") for name in names}


def test_no_modules_import_each_other_in_a_circle() -> None:
    arrows = {path: {target for target, _ in imports_of(path)} for path in MODULES}
    with_a_way_back = {path for path, targets in arrows.items() if path in _reached(arrows, targets)}
    assert not {str(path.relative_to(ROOT)) for path in with_a_way_back}


def _reached(arrows: Mapping[Path, set[Path]], start: set[Path]) -> set[Path]:
    reached: set[Path] = set()
    todo = list(start)
    while todo:
        path = todo.pop()
        if path not in reached:
            reached.add(path)
            todo += arrows[path]
    return reached


def test_folder_has_at_most_15_modules() -> None:
    modules = Counter(folder_of(path) for path in MODULES + TESTS if path.name != "__init__.py")
    assert {folder: count for folder, count in modules.items() if count > MODULES_IN_A_FOLDER} == {}


def test_module_has_at_most_500_lines() -> None:
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in MODULES + TESTS}
    assert {path: count for path, count in lines.items() if count > LINES_IN_A_MODULE} == {}


@pytest.mark.parametrize(
    ("names", "lists"),
    [
        (FORMATS, {"gateway/core/formats.py", "transform_shim/core/formats.py"}),
        (LIMITS, {"kernel_spec/protocol/limits.py"}),
    ],
    ids=["data formats", "limits"],
)
def test_one_list_on_each_side_of_the_trust_line(names: Mapping[str, object], lists: set[str]) -> None:
    """Other modules go through a list: a new format takes these two, a reader and an encoder; a limit one and its use."""
    texts = {path: {node.value for node in ast.walk(_tree(path)) if isinstance(node, ast.Constant)} for path in MODULES}
    assert {str(path.relative_to(ROOT)) for path in MODULES if texts[path].issuperset(names)} == lists


def test_every_third_party_import_is_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [
        name
        for extra in ("frames", "otel", "console", "excel", "cluster", "pytest")
        for name in project["optional-dependencies"][extra]
    ]
    declared = {
        re.split(r"[<>=\[;! ]", entry)[0].lower().replace("-", "_") for entry in project["dependencies"] + extras
    }
    # brought by a distribution of another name, or by one whose interface they are
    brought = {"nats", "zmq", "IPython", "jupyter_core", "numpy", "pydantic_core", "opentelemetry", "yarl", "yaml"}
    ours = {*PACKAGES, "__future__", *sys.stdlib_module_names}
    found = {
        f"{path.relative_to(ROOT)}:{line} {name}"
        for path in MODULES
        for dotted, line in imported(path)
        if (name := dotted.partition(".")[0]) not in ours | brought and name.lower() not in declared
    }
    assert not found


def test_lock_holds_every_dependency_and_names_no_index() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = dict(project["optional-dependencies"])
    others = ("all-pandas3", "all")  # they name the other extras, and a version of what the project needs anyway
    extras = {name: extra for name, extra in extras.items() if name not in others}
    # JupyterLab is installed for `make notebook` only
    for name, wanted in (
        ("requirements-notebooks.lock", project["dependencies"] + extras.pop("notebooks")),
        ("requirements.lock", project["dependencies"] + [name for extra in extras.values() for name in extra]),
    ):
        lock = (ROOT / name).read_text()
        locked = set(re.findall(r"^([a-z0-9.-]+)==", lock, re.MULTILINE))
        names = {re.split(r"[<>=\[;! ]", entry)[0].lower().replace("_", "-") for entry in wanted}
        assert names - {project["name"]} <= locked  # an extra that is made of others names the project itself
        assert "://" not in lock
        assert "--index" not in lock
        assert "--find-links" not in lock


def test_locks_agree_on_shared_packages() -> None:
    both = [
        dict(re.findall(r"^([a-z0-9.-]+)==(\S+)", (ROOT / name).read_text(), re.MULTILINE))
        for name in ("requirements.lock", "requirements-notebooks.lock")
    ]
    assert {
        name: (both[0][name], both[1][name])
        for name in both[0].keys() & both[1].keys()
        if both[0][name] != both[1][name]
    } == {}


def test_every_failure_code_has_a_meaning_and_an_advice() -> None:
    assert set(FAILURES) == set(FailureCode)
    for code, kind in FAILURES.items():
        assert kind.meaning.endswith("."), code
        assert kind.advice.endswith("."), code
