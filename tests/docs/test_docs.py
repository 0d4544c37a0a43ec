"""The documentation says what the source says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.cli import COMMANDS
from gateway.core.errors import FailureCode
from gateway.process.app import TransformGatewayApp
from tests.docs import generated as docs

ROOT = Path(__file__).parents[2]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [*(ROOT / name for name in ("README.md", "SECURITY.md", "CHANGELOG.md", "deploy/README.md")), *DOCS]
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]


def test_generated_tables_are_up_to_date() -> None:
    assert not docs.stale(), "run `make docs`"


def test_every_setting_and_every_failure_code_is_in_its_table() -> None:
    settings, failures = docs.settings_table(), docs.failures_table()
    variables = [t.metadata["env"] for t in TransformGatewayApp.class_own_traits(config=True).values()]
    assert all(f"| `{variable}` |" in settings for variable in variables)
    assert all(f"| `{code}` |" in failures for code in FailureCode)


def test_missing_marker_is_an_error() -> None:
    with pytest.raises(ValueError, match="settings"):
        docs.fill("no markers here", "settings", "x")


def test_each_shape_of_the_sandbox_names_code_and_tests_that_are_there() -> None:
    page = (ROOT / "docs/sandbox-shapes.md").read_text()
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ") and ".py" in line]
    assert len(rows) > 5
    for path, *_, lines, tests in rows:
        code = [file for name in re.findall(r"`([\w/*]+\.py)`", path) for file in (ROOT / "kernel_spec").glob(name)]
        assert code, path
        if re.match(r"\d+", lines) and ", `" not in path and " in `" not in path:  # the file as a whole
            assert sum(len(file.read_text().splitlines()) for file in code) == int(lines.partition(",")[0]), path
        for name in re.findall(r"`([\w/]+\.py)`", tests):
            text = (ROOT / "tests/kernel_spec" / name).read_text()
            assert all(f"{test}(" in text for test in re.findall(r"`\.\.\.(\w+)`", tests)), name


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page: Path) -> None:
    lost = []
    for target, anchor in re.findall(r"\]\((?!https?://)([^)#]*)#?([^)]*)\)", page.read_text()):
        file = page.parent / target if target else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            lost.append(f"{target}#{anchor}")
    assert lost == []


def test_the_index_lists_every_page() -> None:
    listed = set(re.findall(r"\]\(([^)#/]+\.md)", (ROOT / "docs" / "README.md").read_text()))
    assert {page.name for page in DOCS} - {"README.md"} - listed == set()


def test_every_folder_of_code_is_in_the_tree_of_the_page_for_contributors() -> None:
    tree = (ROOT / "docs" / "contributing.md").read_text().partition("## The source tree")[2].partition("```\n\n")[0]
    shown = {package: set() for package in ("gateway", "kernel_spec", "transform_shim", "tests")}
    package = ""
    for indent, name in re.findall(r"^( *)(\w+)/ ", tree, re.MULTILINE):
        if not indent:
            package = name
        else:
            shown[package].add(name)
    shown["tests"] |= {"gateway", "kernel_spec", "transform_shim"}
    shown["tests"].remove("page")  # no Python
    for package, folders in shown.items():
        assert folders == {path.parent.name for path in (ROOT / package).glob("*/__init__.py")}, package


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_target_of_make_that_is_mentioned_exists(page: Path) -> None:
    mentioned = set(re.findall(r"(?:`|^ *)make ([a-z][a-z0-9-]*)", page.read_text(), re.MULTILINE))
    assert mentioned - set(re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)) == set()


def test_every_subcommand_is_on_its_page_and_explains_itself() -> None:
    page = (ROOT / "docs" / "command-line.md").read_text()
    shown = set(re.findall(r"`(?:transform-gateway )?([a-z]+)(?: [A-Z]+)?`", page.partition("\n## ")[0]))
    assert set(COMMANDS) <= shown
    for name in COMMANDS:
        done = subprocess.run(
            [sys.executable, "-m", "gateway", name, "--help"],
            cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{name}: {done.stderr}"
        assert name in done.stdout
