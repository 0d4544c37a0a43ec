"""Writes the parts of the documentation that are made from the source: ``python -m tests.docs.generated [--write]``.

A block lies between ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->``. Without ``--write`` nothing is changed and the
exit code says whether every block is as it would be written.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

from gateway.core.errors import FAILURES, refusal_kinds
from gateway.process.app import TransformGatewayApp
from gateway.telemetry.metric_names import CATALOGUE
from kernel_spec.quantity_traits import Quantity
from tests.docs.type_table import render_markdown

ROOT = Path(__file__).parents[2]


def settings_table() -> str:
    """Return the table of settings, from the traits."""
    rows = ["| environment | flag | default | what it does |", "|---|---|---|---|"]
    for name, trait in TransformGatewayApp.class_own_traits(config=True).items():
        variable, flag = trait.metadata["env"], f"--{name.replace('_', '-')}"
        plain = trait.default_value_repr()
        default = trait.text_of(trait.default_value) if isinstance(trait, Quantity) else plain
        rows.append(f"| `{variable}` | `{flag}` | `{default}` | {_cell(trait.help)} |")
    return "\n".join(rows)


def failures_table() -> str:
    """Return the table of failure codes, from the one vocabulary."""
    rows = ["| code | status | send again? | what happened | what to do |", "|---|---|---|---|---|"]
    for code, kind in FAILURES.items():
        again = "may help" if kind.retryable else "no"
        rows.append(f"| `{code}` | {kind.status} | {again} | {_cell(kind.meaning)} | {_cell(kind.advice)} |")
    return "\n".join(rows)


def refusals_table() -> str:
    """Return the table of refusals, from the same vocabulary."""
    rows = ["| code | status | send again? | what happened | what to do |", "|---|---|---|---|---|"]
    for kind in refusal_kinds():
        again = "may help" if kind.retryable else "no"
        meaning = "The gateway itself failed." if kind.code == "internal" else (kind.__doc__ or "").partition("\n")[0]
        rows.append(f"| `{kind.code}` | {kind.status} | {again} | {_cell(meaning)} | {_cell(kind.advice)} |")
    return "\n".join(rows)


def metrics_table() -> str:
    """Return the table of metrics, from the catalogue."""
    rows = ["| metric | type | labels | what it says |", "|---|---|---|---|"]
    for name in CATALOGUE:
        labels = ", ".join(f"`{label}`" for label in name.labels)
        rows.append(f"| `{name.name}` | {name.kind} | {labels} | {_cell(name.text)} |")
    return "\n".join(rows)


def types_tables() -> str:
    """Return the tables of types, from what reading and writing do."""
    return f"\n{render_markdown()}".replace("\n### ", "\n## ")


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


BLOCKS: dict[str, tuple[str, Callable[[], str]]] = {
    "settings": ("docs/settings.md", settings_table),
    "failures": ("docs/failures.md", failures_table),
    "refusals": ("docs/failures.md", refusals_table),
    "metrics": ("docs/monitoring.md", metrics_table),
    "types": ("docs/types.md", types_tables),
}


def fill(text: str, name: str, block: str) -> str:
    """Return `text` with the block called `name` replaced.

    Raises
    ------
    ValueError
        The markers are not there exactly once.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    filled, count = pattern.subn(lambda _: f"{begin}\n{block}\n{end}", text)
    if count != 1:
        raise ValueError(f"expected the markers of {name} once, found them {count} times")
    return filled


def stale() -> dict[Path, str]:
    """Return what is not as it would be written: path and new text."""
    texts: dict[Path, str] = {}
    for name, (file, make) in BLOCKS.items():
        path = ROOT / file
        texts[path] = fill(texts.get(path, path.read_text()), name, make())
    return {path: text for path, text in texts.items() if path.read_text() != text}


def main() -> int:
    """Check the blocks, or write them."""
    found = stale()
    for path, text in found.items():
        print(f"{path.relative_to(ROOT)} {'written' if '--write' in sys.argv else 'is stale: make docs'}")
        if "--write" in sys.argv:
            path.write_text(text)
    return 1 if found and "--write" not in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
