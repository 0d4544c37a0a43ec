"""Which tables a script leaves out, by its text alone; every doubt is a use."""

from __future__ import annotations

import types
from itertools import product

import pytest

from gateway.core.job import InputTable, Job, KeptDelivery, UrlSource
from gateway.jobs.table_use import CODE_CHARACTERS, MENTIONS, SIGNATURE_CHARACTERS, used_tables
from transform_shim.job.signature import bind_tables, find_transform

ALIASES = ("a", "b", "file", "a b")
TABLES = tuple(InputTable(alias, UrlSource("http://localhost/t")) for alias in ALIASES)


def used(code: str) -> tuple[str, ...]:
    return tuple(table.alias for table in used_tables(Job("1", code, 30, KeptDelivery(), tables=TABLES)))


PLAIN = {
    "def transform(): return 1": (),
    "def transform(a): return a": ("a",),
    "def transform(a, c=None, *, b=(')', {':': 1})): return a": ("a", "b"),
    "import x\n\nasync def transform(\n    a: 'pd.DataFrame',  # a ) comment:\n) -> {'b': 1}[':']:\n    pass": ("a",),
    "def transform(a=lambda b, c: 1): pass": ("a",),
    "def transform(a, *b): pass": ("a",),
    "def transform(b, /, a): pass": ("a",),
    "def transform(\ufb01le): pass": ("file",),
    "@wraps(f)\ndef g(b): pass\n\ndef transform(a): pass": ("a",),
    "# transform b\n'''We transform orders into totals'''\ndef transform(a): return a.groupby('k').transform('sum')": (
        "a",
    ),
    "def transform(a): pass\n\nif __name__ == '__main__':\n    transform(read('b'))": ("a",),
}


@pytest.mark.parametrize("code", PLAIN)
def test_tables_that_the_signature_does_not_name_are_left_out(code: str) -> None:
    assert used(code) == PLAIN[code]


@pytest.mark.parametrize(
    "code",
    [
        "",
        "def main(a): pass",
        "def transform(a, **tables): pass",
        "def transform(a: pass",
        "def transform(a=',a'",
        "@cached\ndef transform(a): pass",
        "@cached(\n    1,\n)\n# why\ndef transform(a): pass",
        "def transform(a): pass\n\ndef transform(b): pass",
        "if True:\n    def transform(a): pass",
        "def transform(a): pass\n\nif True:\n    def transform(b): pass",
        "def transform(a): pass\n\nclass transform(Base): pass",
        "def transform(a): pass\ntransform = other",
        "def transform(a): pass\ntransform, x = other, 1",
        "def transform(a): pass\n(transform := other)",
        "def transform(a): pass\nfor transform in others: pass",
        "def transform(a): pass\nfrom common import other as transform",
        "def transform(a): pass\nfrom common import transform",
        "def transform(a): pass\nfrom common import *",
        "def transform(a): pass\nfrom common import \\\n    *",
        "def transform(a): pass\ntransform.__signature__ = other",
        "def transform(a): pass\nglobals()['transform'] = other",
        "def transform(a): pass\ntransform if True else other",
        f"def transform(a={'x' * SIGNATURE_CHARACTERS}): pass",
        f"def transform(a={'~' * (SIGNATURE_CHARACTERS - 50)}x): pass",
        f"def transform(a={'[' * 1000}): pass",
        "def transform(a): pass\n" + "transform(1)\n" * MENTIONS,
        "def transform(a): pass\n" + "#" * CODE_CHARACTERS,
    ],
)
def test_every_doubt_uses_all_tables(code: str) -> None:
    assert used(code) == ALIASES


def test_nothing_is_left_out_that_the_kernel_passes() -> None:
    """Every short signature, as the kernel binds it."""
    kinds = ["{}", "{}=1", "*, {}", "*, {}=1", "*{}", "**{}", "{}=1, /", "{}: 'x' = (1, ',')"]
    checked = 0
    for (first, one), (second, other) in product(
        product(kinds, ALIASES[:3]), product(["", *kinds], [*ALIASES[:3], "c"])
    ):
        code = f"def transform({first.format(one)}, {second.format(other)}): pass"
        module = types.ModuleType("script")
        try:
            exec(compile(code, "script", "exec"), module.__dict__)
        except SyntaxError:
            continue
        try:
            bound = bind_tables(find_transform(module), ALIASES)
        except Exception:
            continue
        assert set(bound) <= set(used(code)), code
        checked += 1
    assert checked > 100
