"""Failures as a user sees them: the texts that Metabase's tests compare, the codes, and the user's own line."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.transform_shim.jobs import Outcome, allow_data, columns, request_for, table
from transform_shim.job import run as shim
from transform_shim.job.failure_text import describe

Job = Callable[..., Outcome]
PANDAS = "import pandas as pd\n"
STUDENTS = {"students": table(columns(id="Integer"), '{"id":1}\n{"id":2}\n')}


def fails(outcome: Outcome, code: str, stderr: str | re.Pattern[str]) -> None:
    assert outcome.result["code"] == code, outcome.stderr
    assert outcome.result["outcome"] == "error"
    assert outcome.result["exit_code"] != 0
    if isinstance(stderr, str):
        assert outcome.stderr == stderr
    else:
        assert stderr.fullmatch(outcome.stderr), outcome.stderr
    assert outcome.stdout == ""
    assert not (outcome.folder / "output").exists()


@pytest.mark.parametrize(
    ("code", "failure", "stderr"),
    [
        ("import pandas as pd\n", "no_transform", "ERROR: User script must define a 'transform()' function\n"),
        ("", "no_transform", "ERROR: User script must define a 'transform()' function\n"),
        ("def transfrom(): pass\ndef main(): pass", "no_transform",
         "ERROR: User script must define a 'transform()' function. Is 'transfrom()' a misspelling?\n"),
        ("transform = 5", "no_transform",
         "ERROR: User script must define a 'transform()' function, but 'transform' is an int\n"),
        ("def transform(students, /): pass", "no_transform",
         "ERROR: User script must define a 'transform()' function that takes tables by name: "
         "parameter 'students' is positional-only; remove the '/' after it\n"),
        ("def transform():\n    return 'x'", "invalid_return",
         "ERROR: Transform function must return a pandas DataFrame, got <class 'str'>\n"),
        ("def transform():\n    pass", "invalid_return",
         "ERROR: Transform function must return a pandas DataFrame, got <class 'NoneType'>\n"
         "HINT: transform() returned None: is its 'return' missing?\n"),
        ("def transform(student): pass", "missing_table",
         "ERROR: transform() missing 1 required positional argument: 'student'. Available tables: 'students'. "
         "Did you mean 'students'?\n"),
        ("def transform(a, b, c, students): pass", "missing_table",
         "ERROR: transform() missing 3 required positional arguments: 'a', 'b', and 'c'. Available tables: 'students'\n"),
        ("def transform(*, a): pass", "missing_table",
         "ERROR: transform() missing 1 required keyword-only argument: 'a'. Available tables: 'students'\n"),
        ("import sys\nsys.exit(4)", "exited",
         "ERROR: The script called sys.exit(4) (script.py, line 2)\n"),
        ("def transform():\n    raise SystemExit('no more')", "exited",
         "no more\nERROR: The script called sys.exit('no more') in transform() (script.py, line 2)\n"),
        ("import pandas as pd\ndef transform():\n    return pd.DataFrame([[1, 2]], columns=['a', 'a'])", "output_invalid",
         "ERROR: Output column 'a': the frame has two columns of this name\n"),
    ],
)  # fmt: skip
def test_failure_says_one_sentence(job: Job, code: str, failure: str, stderr: str) -> None:
    fails(job(code, STUDENTS), failure, stderr)


@pytest.mark.parametrize(
    ("table", "parameter", "why"),
    [
        ("my table", "my_table", ""),
        ("class", "klass", ""),
        ("\ufb01le", "\ufb01le", " (Python reads it as 'file')"),
        ("cafe\u0301", "cafe\u0301", " (Python reads it as 'café')"),
    ],
)
def test_table_whose_name_no_parameter_can_have_says_how_to_take_it(
    job: Job, table: str, parameter: str, why: str
) -> None:
    tables = {table: STUDENTS["students"]}
    missing = job(f"def transform({parameter}): pass", tables)
    way = f"rename the table, or take transform(**tables) and tables[{table!r}]"
    assert missing.result["code"] == "missing_table"
    assert missing.stderr.endswith(f"Available tables: {table!r}. No parameter can be named {table!r}{why}: {way}\n")
    assert job(f"def transform(**tables):\n    return tables[{table!r}]", tables).rows


def test_message_of_an_import_error_has_no_path_of_the_host(job: Job) -> None:
    outcome = job("from common import g", library={"common": "def f(): pass\n"})
    said = "cannot import name 'g' from 'common' (common.py)"
    assert outcome.result["message"] == f"ImportError: {said} (script.py, line 1)"
    assert outcome.stderr.endswith(f"\nImportError: {said}\n")
    assert str(outcome.folder) not in outcome.stderr


def test_traceback_shows_the_line_that_failed_behind_other_line_ends(job: Job) -> None:
    code = "# form feed \f and \u2028\r\nx = 'next line \x85'\ndef transform():\r\n    raise ValueError('here')\n"
    assert "line 4, in transform\n    raise ValueError('here')\nValueError: here\n" in job(code).stderr


def test_traceback_that_the_script_prints_names_its_files_as_that_of_a_failure_does(job: Job) -> None:
    code = (
        "import sys, traceback\nimport common\nimport pandas as pd\ndef transform():\n    try:\n        common.f()\n"
        "    except ZeroDivisionError:\n        traceback.print_exc()\n        sys.stderr.write(traceback.format_exc())\n"
        "    return pd.DataFrame({'a': [1]})\n"
    )
    outcome = job(code, library={"common": "def f():\n    return 1 / 0\n"})
    assert outcome.stderr.count('File "script.py", line 6, in transform\n    common.f()\n') == 2
    assert outcome.stderr.count('File "common.py", line 2, in f\n    return 1 / 0\n') == 2
    assert str(outcome.folder) not in outcome.stderr


@pytest.mark.parametrize("end", ["", "\n"])
def test_carets_are_below_the_expression_that_failed(job: Job, end: str) -> None:
    assert "\n    x = 1 / 0\n        ~~^~~\nZeroDivisionError" in job(f"def transform():\n    x = 1 / 0{end}").stderr


@pytest.mark.parametrize("pool", ["multiprocessing.Pool", "concurrent.futures.ProcessPoolExecutor"])
def test_error_in_a_process_of_a_pool_shows_the_line_there(job: Job, pool: str) -> None:
    code = (
        "import multiprocessing, concurrent.futures\ndef divide(x):\n    return 1 / x\n"
        f"def transform():\n    with {pool}(1) as pool:\n        list(pool.map(divide, [0]))\n"
    )
    assert 'File "script.py", line 3, in divide\n    return 1 / x\n' in job(code).stderr


def test_script_is_text_whatever_encoding_it_names(job: Job) -> None:
    code = "# coding: latin-1\nimport pandas as pd\ndef transform():\n    return pd.DataFrame({'c': ['é']})"
    assert job(code).cells("c") == ["é"]


def test_exit_is_named_where_it_is_called(job: Job) -> None:
    library = {"common": "import sys\ndef stop():\n    sys.exit(4)\n"}
    outcome = job("import common\ndef transform():\n    common.stop()", library=library)
    assert outcome.result["message"] == "The script called sys.exit(4) in stop() (common.py, line 3)"


def test_traceback_begins_at_the_users_line(job: Job) -> None:
    outcome = job("def transform():\n    raise ValueError('Something went wrong')")
    fails(
        outcome,
        "user_error",
        re.compile(
            r"ERROR: Transform function failed: Something went wrong\n"
            r"Traceback \(most recent call last\):\n"
            r'  File "script\.py", line 2, in transform\n'
            r"    raise ValueError\('Something went wrong'\)\n"
            r"ValueError: Something went wrong\n"
        ),
    )
    assert outcome.result["exit_code"] == 1
    assert outcome.result["message"] == "ValueError: Something went wrong in transform() (script.py, line 2)"


def test_causes_and_library_frames_are_shown_and_shim_frames_are_not(job: Job) -> None:
    code = (
        "import common\ndef transform():\n    try:\n        common.f()\n    except ZeroDivisionError as e:\n"
        "        raise ValueError('wrapped') from e\n"
    )
    stderr = job(code, library={"common": "def f():\n    return 1 / 0\n"}).stderr
    assert "return 1 / 0" in stderr
    assert 'common.py", line 2, in f' in stderr
    assert "The above exception was the direct cause of the following exception" in stderr
    assert "transform_shim" not in stderr.replace("tests/transform_shim", "")


def test_frames_are_dropped_from_exception_groups_too(job: Job) -> None:
    code = "def g():\n    1 / 0\ndef transform():\n    try:\n        g()\n    except Exception as e:\n        raise ExceptionGroup('many', [e])\n"
    stderr = job(code).stderr
    assert "ZeroDivisionError" in stderr
    assert "job.py" not in stderr


@pytest.mark.parametrize(
    "code", ["def transform():\n  this is not valid code", "!echo hi", "%matplotlib inline", "def transform(:\n"]
)
def test_syntax_error_is_a_line_of_its_own(job: Job, code: str) -> None:
    outcome = job(code)
    assert outcome.result["code"] == "syntax_error"
    assert "SyntaxError: invalid syntax" in outcome.stderr.split("\n")
    assert outcome.stdout == ""


def test_broken_library_and_missing_module_are_import_failures(job: Job) -> None:
    broken = job("import common\n", library={"common.py": "def f(:\n"})
    assert "common.py" in broken.stderr
    assert broken.stderr.startswith("ERROR: Failed to import user script: ")
    missing = job("from common import x\n", library={"utils": "x = 1\n"})
    assert "No module named 'common'" in missing.stderr
    assert missing.result["code"] == "user_error"


@pytest.mark.parametrize(("status", "exit_code"), [("3", 3), ("0", 1), ("", 1), ("256", 1), ("'text'", 1)])
def test_exit_of_the_script_is_never_success(job: Job, status: str, exit_code: int) -> None:
    outcome = job(f"import sys\ndef transform():\n    sys.exit({status})")
    assert outcome.result["code"] == "exited"
    assert outcome.result["exit_code"] == exit_code


def test_input_is_at_its_end_and_blames_the_script(job: Job) -> None:
    outcome = job("import sys\ndef transform():\n    assert sys.stdin.read() == ''\n    input('name? ')")
    assert outcome.stdout == "name? "
    # Python 3.13 underlines the call
    assert re.search(r"    input\('name\? '\)\n( +~+\^+\n)?EOFError: EOF when reading a line\n$", outcome.stderr)


def test_keyboard_of_a_notebook_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    monkeypatch.setattr(builtins, "input", lambda _: "an answer")  # as ipykernel does while it executes
    request = request_for(tmp_path / "j", "def transform():\n    input('name? ')", {})
    shim.run_job(json.dumps(request))
    assert json.loads(Path(request["result_path"]).read_text())["message"].startswith("EOFError: ")


def test_notebook_names_are_hidden_and_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    for name in ("get_ipython", "__IPYTHON__"):
        monkeypatch.setattr(builtins, name, object(), raising=False)
    code = (
        "import builtins, pandas as pd\ndef transform():\n"
        "    names = ('get_ipython', '__IPYTHON__', 'In', 'Out', '_')\n"
        "    return pd.DataFrame({'seen': [n in globals() or hasattr(builtins, n) for n in names]})\n"
    )
    before = (sys.path.copy(), Path.cwd(), sys.stdin, builtins.input)
    request = request_for(tmp_path / "j", code, {})
    shim.run_job(json.dumps(request))
    rows = [json.loads(line)["seen"] for line in Path(request["output_path"]).read_text().splitlines()]
    assert rows == [False] * 5
    assert hasattr(builtins, "get_ipython")
    assert before == (sys.path.copy(), Path.cwd(), sys.stdin, builtins.input)


def test_interrupt_shows_where_the_code_hung(job: Job) -> None:
    code = "import time\ndef transform():\n    print('asleep', flush=True)\n    time.sleep(60)  # here\n"
    outcome = job(code, interrupt_when=b"asleep")
    assert outcome.result["outcome"] == "error"
    assert re.search(r'script\.py", line [34], in transform', outcome.stderr)  # in print() still, or asleep
    assert outcome.stderr.endswith("KeyboardInterrupt\n")


def test_interrupt_at_import_shows_the_line_too(job: Job) -> None:
    outcome = job("import time\nprint('asleep')\ntime.sleep(60)\n", interrupt_when=b"asleep")
    assert re.search(r'script\.py", line [23], in <module>', outcome.stderr)


@pytest.mark.parametrize("grab", ["bytearray(1 << 62)", "grow()"])
def test_memory_error_is_the_memory_limit(job: Job, grab: str) -> None:
    """Under the kernel's own limit: small pieces until nothing is left."""
    code = f"def grow():\n    kept = []\n    while True:\n        kept.append(bytearray(1 << 20))\ndef transform():\n    {grab}\n"
    outcome = job(code, before=allow_data(100 << 20))
    assert outcome.result["code"] == "memory_limit"
    said = r"Memory limit of 1024 MiB reached: a request for more was refused \(at most \d+ MiB were in use before it\)"
    assert re.fullmatch(said + r" in (transform|grow)\(\) \(script\.py, line \d\)", outcome.result["message"])
    assert "MemoryError" in outcome.stderr


def test_memory_used_up_by_a_global_still_ends_in_a_result(job: Job) -> None:
    """Objects of the module are not freed with the frames; the result is written with the reserve."""
    code = "kept = []\ndef transform():\n    size = 1 << 24\n    while True:\n        try:\n            kept.append(bytearray(size))\n        except MemoryError:\n            if size == 64:\n                raise\n            size //= 2\n"
    assert job(code, before=allow_data(100 << 20)).result["code"] == "memory_limit"


def test_file_size_limit_is_named_for_the_output_and_for_the_script(job: Job) -> None:
    code = PANDAS + "def transform():\n    return pd.DataFrame({'s': ['x' * 1000] * 5000})"
    outcome = job(code, limits={resource.RLIMIT_FSIZE: 1 << 20})
    fails(outcome, "file_size_limit", re.compile(r"ERROR: Failed to write the output: .*\n(.|\n)*"))
    code = "def transform():\n    open('big', 'wb').write(b'x' * (2 << 20))"
    assert job(code, limits={resource.RLIMIT_FSIZE: 1 << 20}).result["code"] == "file_size_limit"


def test_descriptor_limit_is_named(job: Job) -> None:
    outcome = job(
        "import os\ndef transform():\n    while True:\n        os.open('.', 0)", limits={resource.RLIMIT_NOFILE: 260}
    )
    assert outcome.result["code"] == "descriptor_limit"
    assert outcome.result["message"] == "Limit of 256 open files reached in transform() (script.py, line 4)"


@pytest.mark.parametrize(
    ("full", "code"), [("/dev/shm", "disk_limit"), (".", "gateway_disk_failed"), ("/", "user_error")]
)
def test_full_place_is_named(monkeypatch: pytest.MonkeyPatch, full: str, code: str) -> None:
    def statvfs(place: str) -> os.statvfs_result:
        free = 0 if place == full else 700
        return os.statvfs_result((4096, 4096, 65536, free, free, 900, 900, 900, 0, 255))

    monkeypatch.setattr("transform_shim.job.failure_text.os.statvfs", statvfs)
    failure = describe(OSError(errno.ENOSPC, "No space left on device"), "transform", {})
    assert failure.code == code
    if code == "disk_limit":
        assert "/dev/shm is full, it holds 256 MiB" in failure.message


def test_disk_with_a_few_inodes_counts_as_full(monkeypatch: pytest.MonkeyPatch) -> None:
    found = os.statvfs_result((4096, 4096, 65536, 700, 700, 900, 9, 9, 0, 255))
    monkeypatch.setattr("transform_shim.job.failure_text.os.statvfs", lambda _place: found)
    assert describe(OSError(errno.ENOSPC, "No space left on device"), "transform", {}).code == "gateway_disk_failed"


def test_output_that_does_not_fit_is_the_fault_of_the_disk() -> None:
    failure = describe(OSError(errno.ENOSPC, "No space left on device"), "write", {})
    assert failure.code == "gateway_disk_failed"


def test_process_limit_is_named_for_forks_and_threads() -> None:
    def raised(action: Callable[[], Any]) -> BaseException:
        try:
            action()
        except BaseException as error:
            return error
        raise AssertionError

    def fork() -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    def other() -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    def thread() -> None:
        raise RuntimeError("can't start new thread")

    limits = {"processes": 50}
    assert describe(raised(fork), "transform", limits).code == "process_limit"
    assert describe(raised(thread), "transform", limits).message.startswith("Limit of 50 processes and threads reached")
    assert describe(raised(other), "transform", limits).code == "user_error"


def test_input_error_names_the_place_and_nothing_else(job: Job) -> None:
    outcome = job(
        "def transform(students):\n    return students", {"students": table(columns(id="Integer"), '{"id":1}\n{"id":')}
    )
    fails(
        outcome,
        "input_invalid",
        "ERROR: Table 'students', line 2, column 'id': the line is cut short (the file ends within it) at character 7\n",
    )


def test_missing_file_is_an_input_error(job: Job, tmp_path: Path) -> None:
    request = request_for(tmp_path / "j", "def transform(students):\n    return students", STUDENTS)
    Path(request["tables"][0]["data_path"]).unlink()
    shim.run_job(json.dumps(request))
    assert json.loads(Path(request["result_path"]).read_text())["code"] == "input_invalid"


def test_table_that_is_not_asked_for_is_not_read(job: Job) -> None:
    tables = {**STUDENTS, "broken": table(columns(a="Integer"), "{{{")}
    outcome = job("def transform(students):\n    return students", tables)
    assert outcome.result["code"] == "ok"
    assert [entry["alias"] for entry in outcome.result["tables"]] == ["students"]


def test_each_kind_of_parameter_takes_its_tables(job: Job) -> None:
    tables = {**STUDENTS, "any text!": table(columns(a="Integer"), '{"a":1}\n')}
    count = "    return pd.DataFrame({'n': [%s]})"
    for head, expression, expected in (
        ("students, factor=3", "len(students) * factor", 6),
        ("students=None", "len(students)", 2),
        ("*, students", "len(students)", 2),
        ("**tables", "sorted(tables)", '["any text!","students"]'),
        ("students, *args, **more", "sorted(more)", '["any text!"]'),
    ):
        outcome = job(PANDAS + f"def transform({head}):\n" + count % expression, tables)
        assert outcome.cells("n") == [expected]
    assert job(PANDAS + "transform = lambda: pd.DataFrame({'n': [1]})", tables).cells("n") == [1]
    code = "class T:\n    def __call__(self, students):\n        return students\ntransform = T()"
    assert len(job(PANDAS + code, tables).rows) == 2
    code = "import functools\ndef log(f):\n    @functools.wraps(f)\n    def g(*a, **k):\n        return f(*a, **k)\n    return g\n@log\ndef transform(students):\n    return students"
    assert len(job(PANDAS + code, tables).rows) == 2


def test_script_that_changes_its_own_file_is_shown_as_it_was(job: Job) -> None:
    outcome = job("def transform():\n    open(__file__, 'w').write('# gone\\n' * 9)\n    raise ValueError('x')")
    assert "raise ValueError('x')" in outcome.stderr


def test_script_is_a_module_in_a_file_of_its_own(job: Job) -> None:
    code = (
        PANDAS + "import sys, inspect, os, pickle\ndef transform():\n    me = sys.modules['script']\n"
        "    return pd.DataFrame({'v': [__name__, os.path.basename(__file__), os.path.dirname(__file__) == os.getcwd(),\n"
        "        inspect.getsource(transform).startswith('def transform'), pickle.loads(pickle.dumps(transform)) is me.transform,\n"
        "        sorted(os.listdir())]}, dtype=object).astype(str)\n"
    )
    assert job(code, library={"utils": "x = 1\n"}).cells("v") == [
        "script", "script.py", "True", "True", "True", "['script.py', 'utils.py']",
    ]  # fmt: skip


def test_modules_of_a_job_before_are_forgotten_in_one_process(tmp_path: Path) -> None:
    for number in (1, 2):
        code = PANDAS + "import common\ndef transform():\n    return pd.DataFrame({'v': [common.N]})"
        request = request_for(tmp_path / str(number), code, {}, library={"common.py": f"N = {number}\n"})
        shim.run_job(json.dumps(request))
        assert json.loads(Path(request["output_path"]).read_text()) == {"v": number}
    request = request_for(tmp_path / "3", PANDAS, {})
    shim.run_job(json.dumps(request))
    assert json.loads(Path(request["result_path"]).read_text())["code"] == "no_transform"


@pytest.mark.parametrize("name", ["../x", "/tmp/x.py", "a/b", "", ".", "..", "script", "script.py", "x\0"])
def test_library_name_that_is_more_than_a_name_is_refused(job: Job, name: str) -> None:
    assert (
        job(PANDAS + "def transform():\n    return pd.DataFrame()", library={name: "x = 1"}).result["code"]
        == "shim_error"
    )


def test_forked_child_that_comes_back_writes_no_result(job: Job) -> None:
    code = PANDAS + (
        "import os\ndef transform():\n    child = os.fork()\n    if child:\n        os.waitpid(child, 0)\n"
        "    return pd.DataFrame({'is_child': [not child]})"
    )
    assert job(code).cells("is_child") == [False]
    raising = code.replace("    return", "    if not child:\n        raise ValueError\n    return")
    assert job(raising).cells("is_child") == [False]
    orphan = raising.replace("        os.waitpid(child, 0)\n", "        os.waitpid(child, 0)\n        os._exit(5)\n")
    assert not job(orphan).has_result


def test_hard_death_leaves_no_result(job: Job) -> None:
    for code, status in (("os._exit(7)", 7), ("os.kill(os.getpid(), 9)", -signal.SIGKILL)):
        outcome = job(f"import os\ndef transform():\n    print('said', end='')\n    {code}")
        assert not outcome.has_result
        assert outcome.status == status
        assert outcome.stdout == "said"


def test_exception_whose_str_fails_is_still_described(job: Job) -> None:
    outcome = job(
        "class E(Exception):\n    def __str__(self):\n        raise RuntimeError\ndef transform():\n    raise E"
    )
    assert outcome.result["code"] == "user_error"
    assert "whose str() raises RuntimeError" in outcome.stderr


def test_code_that_spoils_builtins_still_gets_an_answer(job: Job) -> None:
    spoil = "import builtins, pandas as pd\ndef transform():\n    r = pd.DataFrame({'a': [1]})\n    builtins.open = builtins.print = None\n    pd.DataFrame.to_json = None\n    return r\n"
    assert job(spoil).cells("a") == [1]


def test_request_that_is_no_request_is_said_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("{", "{}", '{"version": 2}', '{"version": 1}', "[]"):
        shim.run_job(text)
        assert "ERROR: The job request is not valid" in capsys.readouterr().err


def test_result_has_stages_tables_and_memory(job: Job) -> None:
    result = job("def transform(students):\n    return students", STUDENTS).result
    assert list(result["stages"]) == ["import", "read", "transform", "write"]
    (table,) = result["tables"]
    assert {name: table[name] for name in ("alias", "rows", "bytes")} == {"alias": "students", "rows": 2, "bytes": 18}
    assert table["columns"] == [["id", "Integer"]]
    assert result["peak_memory_bytes"] > 10 << 20
    assert (result["rows"], result["fields"], result["output_bytes"]) == (2, 1, 18)


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    def held() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    before = held()
    for number in range(5):
        request = request_for(tmp_path / str(number), "def transform(students):\n    return students", STUDENTS)
        shim.run_job(json.dumps(request))
        assert sorted(os.listdir(tmp_path / str(number))) == [
            "manifest.json",
            "output",
            "result.json",
            "table-0",
            "table-0.manifest",
            "work",
        ]
    assert held() == before
