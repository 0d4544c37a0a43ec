"""Printed text comes in order, at once and whole, from every thread and process of the job."""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.transform_shim.jobs import Outcome
from transform_shim.core import progress
from transform_shim.job import run, streams
from transform_shim.job.result import JobResult

Job = Callable[..., Outcome]


def script(*lines: str) -> str:
    body = "".join(f"    {line}\n" for line in lines)
    return f"import os, subprocess, sys, threading, time\nimport pandas as pd\ndef transform():\n{body}    return pd.DataFrame({{'x': [1]}})\n"


def joined(outcome: Outcome) -> str:
    return b"".join(data for name, data in outcome.seen if name != "progress").decode(errors="replace")


def test_streams_keep_their_order(job: Job) -> None:
    outcome = job(script("for i in range(50):", "    print('out', i)", "    print('err', i, file=sys.stderr)"))
    assert joined(outcome) == "".join(f"out {i}\nerr {i}\n" for i in range(50))
    assert outcome.stdout == "".join(f"out {i}\n" for i in range(50))


def test_successful_job_has_no_output_but_its_own(job: Job) -> None:
    outcome = job(script("pass"))
    assert outcome.frames == []
    assert outcome.raw == {}


@pytest.mark.parametrize("line", ["print('a line')", "raise ValueError('no')", "sys.exit(3)"])
def test_last_word_is_that_the_job_is_done_and_its_result_there(job: Job, line: str) -> None:
    assert job(script(line)).said_done


def test_killed_job_does_not_report_that_it_is_done(job: Job) -> None:
    assert not job(script("os.kill(os.getpid(), 9)")).said_done


def test_raw_output_and_children_keep_their_place(job: Job) -> None:
    outcome = job(
        script(
            "for i in range(20):",
            "    print('a', i)",
            "    os.write(1, b'b %d\\n' % i)",
            "    print('c', i, file=sys.stderr)",
            "    subprocess.run(['echo', 'd', str(i)], check=True) if i < 3 else None",
        )
    )
    expected = "".join(f"a {i}\nb {i}\nc {i}\n" + (f"d {i}\n" if i < 3 else "") for i in range(20))
    assert joined(outcome) == expected


def test_frame_waits_for_a_reader_that_is_slow(tmp_path: Path) -> None:
    """A gateway on a busy machine may not run for a while; the raw output before a print still comes first."""
    frames, log = os.pipe()
    code = f"import os; from transform_shim.job.streams import FramePipe; os.write(1, b'raw'); FramePipe({log}).send(b'o', b'print')"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, pass_fds=(log,)) as child:
        os.close(log)
        assert child.stdout is not None
        select.select([child.stdout], [], [], 60)
        assert select.select([frames], [], [], 0.3)[0] == []
        assert os.read(child.stdout.fileno(), 100) == b"raw"
        assert os.read(frames, 100).endswith(b"print")
    os.close(frames)


class CountedTime:
    """Takes the place of `time`: sleeping only moves the clock."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


@pytest.mark.parametrize("own", ["os.pipe()[1]", "os.open('own', os.O_RDWR | os.O_CREAT)"])
def test_descriptor_of_the_job_in_place_of_a_raw_pipe_delays_nothing(job: Job, own: str) -> None:
    outcome = job(
        script(
            f"os.dup2({own}, 1)",
            "os.write(1, b'raw')",
            "os.lseek(1, 0, 0) if 'open' in " + repr(own) + " else 0",
            "print('print')",
        ),
        before=lambda: setattr(streams, "_DRAIN_SECONDS", 3600),
    )
    assert outcome.stdout == "print\n"


def test_interrupted_job_does_not_wait_for_a_pipe_that_is_full_again_and_again() -> None:
    frames, log = os.pipe()
    code = (
        "import os; from transform_shim.job import streams; streams._DRAIN_SECONDS = 3600; os.write(1, b'raw')\n"
        f"pipe = streams.FramePipe({log})\n"
        "try:\n    raise KeyboardInterrupt\nexcept KeyboardInterrupt:\n    pipe.send(b'e', b'last words')"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, pass_fds=(log,)) as child:
        os.close(log)
        assert child.wait(60) == 0
    assert os.read(frames, 100).endswith(b"last words")
    os.close(frames)


def test_printed_text_survives_a_hard_death(job: Job) -> None:
    outcome = job(script("print('line')", "print('rest', end='')", "os.kill(os.getpid(), 9)"))
    assert outcome.stdout == "line\nrest"


@pytest.mark.parametrize("size", [1, 4091, 4092, 100_000, 3_000_000])
def test_long_text_is_cut_into_frames_and_comes_whole(job: Job, size: int) -> None:
    outcome = job(script(f"print('ü' * {size}, end='')"))
    assert outcome.stdout == "ü" * size
    assert all(len(data) <= 4091 for _, data in outcome.frames)


def test_many_prints_are_fast(job: Job) -> None:
    start = time.monotonic()
    outcome = job(script("for i in range(50_000):", "    print(i)"))
    assert outcome.stdout == "".join(f"{i}\n" for i in range(50_000))
    assert time.monotonic() - start < 8  # 0.5 s alone


def test_lines_of_threads_stay_whole(job: Job) -> None:
    outcome = job(
        script(
            "def work(n):",
            "    for i in range(300):",
            "        print('thread', n, 'line', i)",
            "threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]",
            "[t.start() for t in threads]",
            "print('unfinished', end='')",
            "[t.join() for t in threads]",
        )
    )
    found = sorted(line for line in outcome.stdout.replace("unfinished", "").split("\n") if line)
    assert found == sorted(f"thread {n} line {i}" for n in range(4) for i in range(300))
    assert "unfinished" in outcome.stdout


def test_children_by_fork_print_into_the_same_log(job: Job) -> None:
    outcome = job(
        script(
            "import multiprocessing",
            "context = multiprocessing.get_context('fork')",
            "workers = [context.Process(target=print, args=('child', n)) for n in range(3)]",
            "[w.start() for w in workers]",
            "[w.join() for w in workers]",
            "print('parent')",
        )
    )
    assert sorted(outcome.stdout.split("\n")) == ["", "child 0", "child 1", "child 2", "parent"]
    assert outcome.result["code"] == "ok"


def test_fork_while_another_thread_prints_does_not_hang(job: Job) -> None:
    outcome = job(
        script(
            "stop = threading.Event()",
            "def noise():",
            "    while not stop.is_set():",
            "        print('n' * 50)",
            "thread = threading.Thread(target=noise)",
            "thread.start()",
            "for i in range(20):",
            "    child = os.fork()",
            "    if not child:",
            "        print('child', i, flush=True)",
            "        os._exit(0)",
            "    os.waitpid(child, 0)",
            "stop.set()",
            "thread.join()",
        )
    )
    assert [i for i in range(20) if f"child {i}\n" not in outcome.stdout] == []
    assert set(outcome.stdout.split("\n")) == {"", "n" * 50, *(f"child {i}" for i in range(20))}


def test_stream_has_the_attributes_of_a_text_file(job: Job) -> None:
    outcome = job(
        script(
            "out = sys.stdout",
            "facts = (out.encoding, out.errors, out.isatty(), out.writable(), out.readable(), out.fileno(), sys.stderr.fileno())",
            "assert facts == ('utf-8', 'backslashreplace', False, True, False, 1, 2), facts",
            "assert out.name == '<stdout>' and sys.__stdout__ is out and not out.closed",
            "out.reconfigure(line_buffering=True, encoding='utf-8')",
            "assert out.write('abc\\n') == 4",
            "out.writelines(['d\\n', 'e\\n'])",
            "out.buffer.write(b'bytes\\n')",
            "out.buffer.flush()",
            "print('half \\ud800 pair')",
            "try:",
            "    out.write(b'x')",
            "except TypeError as e:",
            "    print(e)",
            "out.close()",
            "print('still here')",
            "with open(out.fileno(), 'w', closefd=False) as raw:",
            "    raw.write('raw\\n')",
            "import contextlib, io, logging",
            "with contextlib.redirect_stdout(io.StringIO()):",
            "    print('swallowed')",
            "logging.lastResort.handle(logging.makeLogRecord({'msg': 'logged'}))",
        )
    )
    assert outcome.result["code"] == "ok", outcome.stderr
    assert (
        outcome.stdout == "abc\nd\ne\nbytes\nhalf \\ud800 pair\nwrite() argument must be str, not bytes\nstill here\n"
    )
    assert outcome.raw["raw_stdout"] == b"raw\n"
    assert outcome.stderr == "logged\n"


def test_any_bytes_can_be_written(job: Job) -> None:
    outcome = job(script("sys.stdout.buffer.write(bytes(range(256)))", "print('after')"))
    assert b"".join(data for _, data in outcome.frames) == bytes(range(256)) + b"after\n"


def test_buffered_output_of_c_code_is_flushed(job: Job) -> None:
    outcome = job(script("import ctypes", "ctypes.CDLL(None).printf(b'from C\\n')"))
    assert outcome.raw["raw_stdout"] == b"from C\n"


def test_script_that_replaces_or_closes_its_streams_still_gets_a_result(job: Job) -> None:
    assert job(script("sys.stdout = sys.stderr = None")).result["code"] == "ok"
    assert job(script("os.close(1)", "os.close(2)", "print('x')")).stdout == "x\n"
    broken = job(script("class S:\n        write = flush = lambda *a: 1 / 0", "sys.stdout = sys.stderr = S()"))
    assert broken.result["code"] == "ok"
    failing = job(script("sys.stderr = None", "raise ValueError('seen')"))
    assert "ValueError: seen" in failing.stderr


def test_closed_log_pipe_does_not_fail_the_job(job: Job) -> None:
    code = script("os.close(3)", "r, w = os.pipe()", "os.close(r)", "os.dup2(w, 3)", "print('to nobody')")
    assert job(code).result["code"] == "ok"


def test_without_log_pipe_the_streams_are_left_alone(tmp_path: Path) -> None:
    """As in a notebook, and as a plain command line does it."""
    (tmp_path / "work").mkdir()
    program = (
        "import json, sys, transform_shim.job.run\nbefore = sys.stdout\n"
        f"folder = {str(tmp_path)!r}\ncode = 'import pandas as pd\\ndef transform():\\n    print(\"hello\")\\n    return pd.DataFrame()'\n"
        "paths = {k + '_path': folder + '/' + k for k in ('output', 'manifest', 'result')}\n"
        "transform_shim.job.run.run_job(json.dumps({'version': 1, 'code': code, 'work_dir': folder + '/work', **paths}))\n"
        "assert sys.stdout is before\nprint(open(folder + '/result').read().count('\"ok\"'))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "hello\n2\n"
    assert done.stderr == ""


LONG_WRITE = """
import pyarrow as pa, time
def transform():
    schema = pa.schema([("x", pa.int64())])
    def batches():
        for i in range(8):
            time.sleep(0.2)
            yield pa.record_batch([pa.array([i] * 100)], schema=schema)
    return pa.RecordBatchReader.from_batches(schema, batches())
"""


def test_progress_of_a_long_write_is_reported(job: Job) -> None:
    outcome = job(LONG_WRITE)
    told = [json.loads(data) for name, data in outcome.frames if name == "progress"]
    assert 2 <= len(told) <= 1 + outcome.result["stages"]["write"] / progress.INTERVAL_SECONDS
    assert told[-1] == {"stage": "write", "table": "output", "rows": 800, "bytes": outcome.result["output_bytes"]}
    assert [entry["rows"] for entry in told] == sorted(entry["rows"] for entry in told)
    assert outcome.stderr == ""  # the log is for what takes much longer


def test_long_write_is_logged(job: Job) -> None:
    def hurry() -> None:
        progress.LOG_INTERVAL_SECONDS = 0.5

    lines = job(LONG_WRITE, before=hurry).stderr.splitlines()
    assert len(lines) >= 2
    assert re.fullmatch(r"write output: [1-7]00 rows, 0 MB so far", lines[0])
    assert re.fullmatch(r"write output: 800 rows, 0 MB in \d+ s", lines[-1])


@pytest.mark.parametrize(("end", "raw"), [("raise ValueError", b"raw\n"), ("return pd.DataFrame()", b"raw\nlate\n")])
def test_what_a_failed_job_writes_after_its_traceback_is_not_in_the_log(
    job: Job, monkeypatch: pytest.MonkeyPatch, end: str, raw: bytes
) -> None:
    # a thread of the job that writes on; here when the result is written
    write_result = run.write_result

    def late(path: Path, result: JobResult) -> None:
        os.write(1, b"late\n")
        write_result(path, result)

    monkeypatch.setattr(run, "write_result", late)
    code = f"import os\nimport pandas as pd\ndef transform():\n    os.write(1, b'raw\\n')\n    {end}\n"
    outcome = job(code)
    assert outcome.has_result
    assert outcome.raw["raw_stdout"] == raw
