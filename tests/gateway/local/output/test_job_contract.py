"""Gateway and shim, which never import each other, agree on the job request and the job result."""

from __future__ import annotations

import ast
import dataclasses
import json
import tempfile
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given
from msgspec import structs

from gateway.core import displays
from gateway.core.formats import FORMATS
from gateway.core.job import LibraryModule
from gateway.local import job_request
from gateway.local.job_request import JobRequest, OutputRules
from gateway.local.output.job_result import RESULT_CAP_BYTES, parse_result
from gateway.storage import FetchedTable
from kernel_spec.protocol.limits import Limits
from transform_shim.core import formats as shim_formats
from transform_shim.core.table_file import TableFile
from transform_shim.displays import recorder
from transform_shim.job import result as shim_result
from transform_shim.job.post_mortem import namespace
from transform_shim.job.request import JobRequest as ShimRequest
from transform_shim.job.run import run_job

PATHS = st.text("abz09 -_é", min_size=1).map(lambda name: Path("/state", name))
FORMAT_NAMES = st.sampled_from(tuple(FORMATS))
TABLES = st.builds(
    FetchedTable,
    alias=st.text(),
    data_path=PATHS,
    manifest_path=st.none() | PATHS,
    data_format=FORMAT_NAMES,
    compression=st.sampled_from((None, "gzip", "zstd")),
    bytes=st.integers(0, 1 << 50),
)
REQUESTS = st.builds(
    JobRequest,
    code=st.text(),
    library=st.dictionaries(st.from_regex("[a-z_]{1,9}", fullmatch=True), st.text(), max_size=3).map(
        lambda modules: tuple(LibraryModule(name, source) for name, source in modules.items())
    ),
    tables=st.lists(TABLES, max_size=3).map(tuple),
    output_format=FORMAT_NAMES,
    out_dir=PATHS,
    work_dir=PATHS,
    limits=st.builds(Limits, memory_bytes=st.integers(64 << 20, 1 << 46)),
    hold=st.booleans(),
    rules=st.builds(
        OutputRules, mixed_columns=st.sampled_from(("text", "error")), official_compatibility=st.booleans()
    ),
    unfetched=st.lists(st.text(), max_size=3).map(tuple),
    output_schema=st.none() | st.text(),
    profile=st.booleans(),
    checksum=st.booleans(),
)


@given(REQUESTS)
def test_the_shim_reads_every_request_of_the_gateway(request: JobRequest) -> None:
    read = ShimRequest.from_json(request.to_json())
    assert read == ShimRequest(
        code=request.code,
        library={module.name: module.source for module in request.library},
        tables=tuple(
            TableFile(t.alias, t.data_path, t.manifest_path, t.data_format, t.compression) for t in request.tables
        ),
        output_format=request.output_format,
        output_path=request.out_dir / "output",
        manifest_path=request.out_dir / "output-manifest.json",
        result_path=request.out_dir / "result.json",
        displays_path=request.out_dir / "displays.jsonl",
        work_dir=request.work_dir,
        limits=structs.asdict(request.limits),
        hold=request.hold,
        mixed_columns=request.rules.mixed_columns,  # type: ignore[arg-type]
        official_compatibility=request.rules.official_compatibility,
        unfetched=request.unfetched,
        output_schema=request.output_schema,
        profile=request.profile,
        checksum=request.checksum,
    )


@given(REQUESTS)
def test_the_shim_reads_the_sources_from_their_file_as_from_the_request(request: JobRequest) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "sources.json"
        elsewhere = request.with_sources_file(path)
        read = ShimRequest.from_json(elsewhere.to_json())
        assert read == dataclasses.replace(
            ShimRequest.from_json(request.to_json()), code="", library={}, sources_path=path
        )
        assert read.sources() == ShimRequest.from_json(request.to_json()).sources()


@given(REQUESTS)
def test_the_call_carries_the_request_unchanged_to_a_function_that_exists(request: JobRequest) -> None:
    load, call = ast.parse(request.execute_code()).body
    assert ast.unparse(load) == f"import {run_job.__module__}"
    assert isinstance(call, ast.Expr)
    assert isinstance(call.value, ast.Call)
    assert ast.unparse(call.value.func) == f"{run_job.__module__}.{run_job.__name__}"
    assert [ast.literal_eval(argument) for argument in call.value.args] == [request.to_json()]


def test_the_other_calls_name_existing_functions() -> None:
    code = job_request.PRESENT_CODE.format(marker_path="it's here")
    assert f'{namespace.__module__}.{namespace.__name__}("it\'s here")' in code
    compile(code, "", "exec")


@pytest.mark.parametrize("change", [{"version": 2}, {"version": None}, {"timeout": 3}])
def test_the_shim_refuses_unknown_members(change: dict[str, object]) -> None:
    request = JobRequest("", (), (), "jsonl", Path("/o"), Path("/w"), Limits())
    with pytest.raises(ValueError, match="unknown"):
        ShimRequest.from_json(json.dumps(json.loads(request.to_json()) | change))


def test_both_sides_know_the_same_formats() -> None:
    assert set(FORMATS) == set(shim_formats.FORMATS)


def test_both_sides_know_the_same_bounds_of_displays() -> None:
    names = [name for name in vars(recorder) if name.startswith("MOST_")]
    assert len(names) == 7
    assert [getattr(displays, name) for name in names] == [getattr(recorder, name) for name in names]


# user code can raise an exception of any class with any text, halves of surrogate pairs included
ANY_TEXT = st.text(st.characters(), max_size=5000)
NUMBERS = st.integers(0, 1 << 60)
RESULTS = st.builds(
    shim_result.JobResult,
    outcome=st.sampled_from(("ok", "error")),
    code=st.text("abc_", max_size=40),
    message=ANY_TEXT,
    exit_code=st.integers(-(1 << 70), 1 << 70),
    rows=NUMBERS,
    fields=NUMBERS,
    output_bytes=NUMBERS,
    sha256=st.none() | st.from_regex("[0-9a-f]{64}", fullmatch=True),
    stages=st.dictionaries(st.sampled_from(("import", "read", "transform", "write")), st.floats(0, 1e6)),
    tables=st.lists(st.builds(shim_result.TableRead, ANY_TEXT, NUMBERS, NUMBERS, st.floats(0, 1e6)), max_size=3).map(
        tuple
    ),
)


@given(RESULTS)
def test_the_gateway_reads_every_result_of_the_shim(result: shim_result.JobResult) -> None:
    read = parse_result(result.to_json())
    assert read is not None
    for name in ("outcome", "code", "rows", "fields", "output_bytes", "sha256"):
        assert getattr(read, name) == getattr(result, name)
    assert read.message == result.message[:4000].encode("utf-8", "replace").decode()
    assert read.exit_code % 256 == result.exit_code % 256
    assert read.stages == pytest.approx(dict(result.stages), abs=1e-6)
    assert [table.rows for table in read.tables] == [table.rows for table in result.tables]
    assert read.peak_memory_bytes
    written = {entry.name for entry in dataclasses.fields(result)} | {"version", "peak_memory_bytes"}
    assert set(read.__struct_fields__) == written, "the gateway reads all that the shim writes"


def test_the_largest_result_is_read_whole() -> None:
    columns = (("\U0001f600" * 1000, "\U0001f600" * 1000),) * 2
    table = shim_result.TableRead("\U0001f600" * 1000, 1 << 60, 1 << 60, 1e6 / 3, columns)
    result = shim_result.JobResult("ok", "ok", "\U0001f600" * 5000, tables=(table,) * 2000, columns=columns * 50)
    data = result.to_json()
    assert len(data) <= RESULT_CAP_BYTES
    read = parse_result(data)
    assert read is not None
    assert (len(read.columns), sum(len(table.columns) for table in read.tables)) == (100, 400)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b"[" * 100_000,
        b'{"outcome": "ok", "code": "ok"}',
        b'{"version": 2, "outcome": "ok", "code": "ok"}',
        b'{"version": 1, "outcome": "ok"}',
        b'{"version": 1, "outcome": "maybe", "code": "ok"}',
        b'{"version": 1, "outcome": "ok", "code": "ok", "rows": -1}',
        b'{"version": 1, "outcome": "ok", "code": "ok", "rows": true}',
        b'{"version": 1, "outcome": "ok", "code": "ok", "rows": 1.5}',
        b'{"version": 1, "outcome": "ok", "code": "ok", "something_new": 1}',
        b'{"version": 1, "outcome": "ok", "code": "ok", "message": "\xff"}',
        b'{"version": 1, "outcome": "ok", "code": "ok", "stages": {"read": NaN}}',
        b'{"version": 1, "outcome": "ok", "code": "ok", "stages": {"read": 1e999}}',
    ],
)
def test_a_forged_result_that_breaks_the_contract_counts_as_none(data: bytes) -> None:
    assert parse_result(data) is None
