"""The documentation says what the source says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gateway.app import TransformGatewayApp
from gateway.errors import FailureCode
from tests import docs

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


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


@pytest.mark.parametrize("page", PAGES, ids=[path.name for path in PAGES])
def test_links_to_files_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []
