"""The rules of the house, looked up in the source: imports, sizes, dependencies, documentation."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.errors import FAILURES, FailureCode

ROOT = Path(__file__).parents[1]
PACKAGES = ("gateway", "kernel_spec", "transform_shim")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

NEVER = {
    "gateway": {"transform_shim"},
    "kernel_spec": {"tornado", "gateway", "transform_shim", "pandas"},
    "transform_shim": {"tornado", "zmq", "jupyter_client", "gateway", "kernel_spec"},
}
"""What a package never imports; the arrows are gateway → kernel_spec, and transform_shim stands alone."""


def imported(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield the top-level name and the line of every import, also of those inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.partition(".")[0], node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0], node.lineno


def named(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def test_the_rules_look_at_something() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in MODULES} == set(PACKAGES)


@pytest.mark.parametrize("path", MODULES, ids=named(MODULES))
def test_imports_point_one_way(path: Path) -> None:
    forbidden = NEVER[path.relative_to(ROOT).parts[0]]
    found = [f"line {line}: {name}" for name, line in imported(ast.parse(path.read_text())) if name in forbidden]
    assert not found


@pytest.mark.parametrize("path", MODULES + TESTS, ids=named(MODULES + TESTS))
def test_module_has_at_most_500_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 500


def test_every_third_party_import_is_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [name for extra in ("frames", "otel", "console") for name in project["optional-dependencies"][extra]]
    declared = {
        re.split(r"[<>=\[;! ]", entry)[0].lower().replace("-", "_") for entry in project["dependencies"] + extras
    }
    # brought by a distribution of another name, or by one whose interface they are
    brought = {"zmq", "IPython", "jupyter_core", "numpy", "pydantic_core", "opentelemetry"}
    ours = {*PACKAGES, "__future__", *sys.stdlib_module_names}
    found = {
        f"{path.relative_to(ROOT)}:{line} {name}"
        for path in MODULES
        for name, line in imported(ast.parse(path.read_text()))
        if name not in ours | brought and name.lower() not in declared
    }
    assert not found


def test_lock_holds_every_dependency_and_names_no_index() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = dict(project["optional-dependencies"])
    # JupyterLab is installed for `make notebook` only
    for name, wanted in (
        ("requirements-notebooks.lock", project["dependencies"] + extras.pop("notebooks")),
        ("requirements.lock", project["dependencies"] + [name for extra in extras.values() for name in extra]),
    ):
        lock = (ROOT / name).read_text()
        locked = set(re.findall(r"^([a-z0-9.-]+)==", lock, re.MULTILINE))
        assert {re.split(r"[<>=\[;! ]", entry)[0].lower().replace("_", "-") for entry in wanted} <= locked
        assert "://" not in lock
        assert "--index" not in lock
        assert "--find-links" not in lock


def test_locks_agree_on_what_both_hold() -> None:
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
