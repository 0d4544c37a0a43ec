"""What a person reads of a result."""

from __future__ import annotations

from transform_shim.notebook.display import cost, size
from transform_shim.notebook.results import Result
from transform_shim.notebook.session import compared

FAILED = Result("user_error", "Transform function failed: <b>", 1, "this kernel", tables=("orders",))


def ok(**facts: object) -> Result:
    fields = {"fields": [{"name": "n", "base_type": "Integer"}]}
    values = {"manifest": fields, "rows": 2, "sha256": "a", "seconds": 1.0, **facts}
    return Result("ok", None, 0, "a gateway", **values)  # type: ignore[arg-type]


def test_failure_is_told_with_code_message_tables_and_how_to_attach() -> None:
    held = {"attach": "jupyter console --existing x.json", "expires_at": "2026-01-01T00:00:00Z"}
    result = Result("user_error", "no & luck", 1, "a gateway", tables=("orders",), held=held)
    assert repr(result).splitlines()[0] == "user_error (exit code 1): no & luck"
    assert "until 2026-01-01T00:00:00Z); attach to it: jupyter console --existing x.json" in repr(result)
    page = result._repr_html_()
    assert "<b>user_error</b> (exit code 1)" in page
    assert "no &amp; luck" in page
    assert "tables given: orders" in page
    assert "jupyter console --existing x.json" in page


def test_kernel_that_could_not_be_held_is_told() -> None:
    result = Result("exited", "gone", 7, "a gateway", not_held="its process is dead")
    assert "the failed kernel is not held: its process is dead" in repr(result)


def test_user_texts_are_no_markup() -> None:
    assert "&lt;b&gt;" in FAILED._repr_html_()
    assert "failed: <b>" not in FAILED._repr_html_()


def test_stages_come_in_their_order_with_the_inner_ones_inside() -> None:
    stages = {"queue": 0.0, "transform": 0.5, "read": 0.25, "kill": 0.01, "execute": 0.8, "fetch": 0.1, "new": 0.2}
    text = cost(Result("ok", None, 0, "a gateway", stages=stages, seconds=1.5, peak_memory_bytes=100 << 20))
    inside = "execute 0.800 (read 0.250, transform 0.500)"
    assert text == f"1.500 s: fetch 0.100, {inside}, kill 0.010, new 0.200; peak memory 100 MiB; in a gateway"


def test_comparison_names_what_differs() -> None:
    times = "1.000 s here, 1.000 s there"
    assert compared(ok(), ok()) == f"same as in the notebook: rows, columns, types, the same data; {times}"
    assert "not byte for byte the same data" in compared(ok(), ok(sha256="b"))
    assert compared(ok(), ok(rows=3)) == f"differs from the notebook: 2 rows there, 3 here; {times}"
    assert "other columns or types" in compared(ok(), ok(manifest={"fields": []}))
    assert compared(ok(), FAILED) == "differs from the notebook: ok there, user_error here"
    other = Result("user_error", "else", 1, "a gateway")
    assert "another message ('Transform function failed: <b>' there)" in compared(FAILED, other)


def test_sizes_are_said_as_people_say_them() -> None:
    assert [size(n) for n in (0, 999, 1500, 2_500_000, 3_210_000_000)] == [
        "0 bytes",
        "999 bytes",
        "1.5 kB",
        "2.5 MB",
        "3.21 GB",
    ]
