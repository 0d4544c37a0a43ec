"""Results as a person reads them."""

from __future__ import annotations

from transform_shim.displays.values import StageSpan
from transform_shim.notebook.display import cost, run_html, run_text, size
from transform_shim.notebook.run_outcome import TransformRun
from transform_shim.notebook.session import compared

FAILED = TransformRun("user_error", "Transform function failed: <b>", 1, "this kernel", tables=("orders",))


def ok(**facts: object) -> TransformRun:
    fields = {"fields": [{"name": "n", "base_type": "Integer"}]}
    values = {"manifest": fields, "rows": 2, "sha256": "a", "seconds": 1.0, **facts}
    return TransformRun("ok", None, 0, "a gateway", **values)  # type: ignore[arg-type]


def test_failure_is_shown_with_code_message_tables_and_attach_command() -> None:
    held = {"attach": "jupyter console --existing x.json", "expires_at": "2026-01-01T00:00:00Z"}
    result = TransformRun("user_error", "no & luck", 1, "a gateway", tables=("orders",), held=held)
    assert run_text(result).splitlines()[0] == "user_error (exit code 1): no & luck"
    assert "until 2026-01-01T00:00:00Z); attach to it: jupyter console --existing x.json" in run_text(result)
    page = run_html(result)
    assert "<b>user_error</b> (exit code 1)" in page
    assert "no &amp; luck" in page
    assert "tables given: orders" in page
    assert "jupyter console --existing x.json" in page


def test_failure_shows_why_the_kernel_is_not_held() -> None:
    result = TransformRun("exited", "gone", 7, "a gateway", not_held="its process is dead")
    assert "the failed kernel is not held: its process is dead" in run_text(result)


def test_user_texts_are_no_markup() -> None:
    assert "&lt;b&gt;" in run_html(FAILED)
    assert "failed: <b>" not in run_html(FAILED)


def test_stages_come_in_their_order_with_the_inner_ones_inside() -> None:
    stages = {
        "queue": 0.0,
        "transform": 0.5,
        "read": 0.25,
        "profile": 0.01,
        "kill": 0.01,
        "execute": 0.8,
        "fetch": 0.1,
        "new": 0.2,
    }
    text = cost(TransformRun("ok", None, 0, "a gateway", stages=stages, seconds=1.5, peak_memory_bytes=100 << 20))
    inside = "execute 0.800 (read 0.250, transform 0.500, profile 0.010)"
    assert text == f"1.500 s: fetch 0.100, {inside}, kill 0.010, new 0.200; peak memory 100 MiB; in a gateway"


def test_times_stand_once_where_the_waterfall_shows_them() -> None:
    facts = {"stages": {"execute": 0.25}, "seconds": 1.5, "peak_memory_bytes": 100 << 20}
    run = TransformRun("exited", "gone", 7, "a gateway", **facts)  # type: ignore[arg-type]
    assert "1.500 s: execute 0.250; peak memory 100 MiB; in a gateway" in run_html(run)
    run.waterfall = (StageSpan("execute", 0.0, 0.25),)
    assert "0.25 s" in run_html(run)
    assert "1.500 s; peak memory 100 MiB; in a gateway" in run_html(run)


def test_comparison_names_the_differences() -> None:
    times = "1.000 s here, 1.000 s there"
    assert compared(ok(), ok()) == f"same as in the notebook: rows, columns, types, the same data; {times}"
    assert "not byte for byte the same data" in compared(ok(), ok(sha256="b"))
    assert compared(ok(), ok(rows=3)) == f"differs from the notebook: 2 rows there, 3 here; {times}"
    assert "other columns or types" in compared(ok(), ok(manifest={"fields": []}))
    assert compared(ok(), FAILED) == "differs from the notebook: ok there, user_error here"
    other = TransformRun("user_error", "else", 1, "a gateway")
    assert "another message ('Transform function failed: <b>' there)" in compared(FAILED, other)


def test_sizes_are_said_as_people_say_them() -> None:
    assert [size(n) for n in (0, 999, 1500, 2_500_000, 3_210_000_000)] == [
        "0 bytes",
        "999 bytes",
        "1.5 kB",
        "2.5 MB",
        "3.21 GB",
    ]
