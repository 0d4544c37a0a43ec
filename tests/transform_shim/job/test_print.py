"""print() in a job: one frame a call, and nothing else that a script could tell from Python's own."""

from __future__ import annotations

import builtins
import contextlib
import inspect
import io
import os
import sys
from collections.abc import Callable

import pytest

from tests.transform_shim.jobs import Outcome
from transform_shim.job.streams import log_streams

Job = Callable[..., Outcome]

#: Calls whose text and errors must be those of Python's own print(), in the names of `NAMES`.
CALLS = [
    "print()",
    "print('')",
    "print('a', 1, 2.5, True, None, 3j, b'b')",
    "print('a', 'b', sep='')",
    "print('a', 'b', sep=None, end=None)",
    "print('a', 'b', sep='\\n', end='!\\n')",
    "print('no end', end='')",
    "print('a', flush=True)",
    "print('a', flush=0)",
    "print('a', file=None)",
    "print(*range(5), sep=', ')",
    "print([1, 'x'], {'k': Loud('in a dict')})",
    "print('half \\ud800 pair', end='\\udfff\\n')",
    "print('a', sep=1)",
    "print('a', end=b'')",
    "print('a', 'b', sep=Text('-'), end=Text('.'))",
    "print(Text('text'), 'after')",
    "print('a', nonsense=1)",
    "print('a', flush=Broken())",
    "print('a', file=3)",
    "print('before', Broken(), 'never')",
    "print(Broken())",
    "print('before', NoText(), 'never')",
    "print('before', 10**5000, 'never')",
    "print('before', Loud('x'), 'after', Loud('y'))",
    "print('a', Deep([Loud('x')]), 'b')",
    "print('to', 'other', file=Pieces())",
    "print('x', 'y', file=Pieces(), flush=True)",
    "sys.stdout.writelines(['1', '2\\n'])",
]

#: Must run in a job and in a plain interpreter.
NAMES = """
import sys, contextlib, io
class Text(str):
    def __str__(self):
        return 'str of ' + self[:]
class Loud:
    def __init__(self, name): self.name = name
    def __str__(self):
        print('str', self.name)
        return self.name
    __repr__ = __str__
class Deep(list):
    pass
class Broken:
    def __str__(self): raise ValueError('no str')
    def __bool__(self): raise ValueError('no bool')
class NoText:
    def __str__(self): return 3
class Pieces:
    def write(self, text): print('wrote', repr(text))
    def flush(self): print('flushed')
"""

TRY = """
def attempt(call):
    try:
        exec(call, globals())
    except Exception as error:
        print(f'{type(error).__name__}: {error}')
"""


def script(*lines: str) -> str:
    body = "".join(f"    {line}\n" for line in lines)
    return (
        f"import builtins, os, subprocess, threading\nimport pandas as pd\n{NAMES}{TRY}"
        f"def transform():\n{body}    return pd.DataFrame({{'x': [1]}})\n"
    )


def frames(outcome: Outcome) -> list[str]:
    return [data.decode() for name, data in outcome.frames if name in ("stdout", "stderr")]


def of_plain_python(*calls: str) -> str:
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace", newline="\n", write_through=True)
    space: dict[str, object] = {}
    with contextlib.redirect_stdout(out):
        exec(NAMES + TRY, space)
        for call in calls:
            space["attempt"](call)  # type: ignore[operator]
    return out.buffer.getvalue().decode()  # type: ignore[attr-defined]


def test_prints_equal_those_of_plain_python(job: Job) -> None:
    marked = [line for call in CALLS for line in (call, f"print({call!r})")]
    outcome = job(script(*(f"attempt({call!r})" for call in marked)))
    assert outcome.result["code"] == "ok", outcome.stderr
    assert outcome.stdout == of_plain_python(*marked)


@pytest.mark.parametrize(
    "call",
    [
        "print('row', 1, 2.5, None, True, sep='|')",
        "print('x' * 4000)",
        "print('a', end='')",
        "print(pd.DataFrame({'a': [1, 2]}))",
        "print('err', 1, file=sys.stderr)",
        "print('a', 'b', flush=True)",
    ],
)
def test_a_print_is_one_write(job: Job, call: str) -> None:
    assert len(frames(job(script(call)))) == 1


def test_each_print_has_left_the_process_when_it_returns(job: Job) -> None:
    assert job(script("print('a', 1)", "print('b', 2, end='')", "os._exit(1)")).stdout == "a 1\nb 2"
    assert (
        job(script("print('line', 1)", "print('rest', 2, end='')", "os.kill(os.getpid(), 9)")).stdout
        == "line 1\nrest 2"
    )


def test_output_of_a_conversion_to_text_keeps_its_order(job: Job) -> None:
    outcome = job(
        script(
            "class Child:",
            "    def __str__(self):",
            "        subprocess.run(['echo', 'of the child'], check=True)",
            "        return 'child'",
            "print('begin', Child(), 'end')",
        )
    )
    seen = b"".join(data for name, data in outcome.seen if name != "progress").decode()
    assert seen == "begin of the child\nchild end\n"


def test_a_failing_value_shows_the_users_lines_alone(job: Job) -> None:
    outcome = job(script("print('before', Broken())"))
    assert outcome.stdout == "before "
    assert "no str" in outcome.stderr
    assert "streams.py" not in outcome.stderr
    assert outcome.stderr.count('File "') == 2


def test_other_streams_get_the_pieces_they_always_got(job: Job) -> None:
    outcome = job(
        script(
            "with contextlib.redirect_stdout(io.StringIO()) as text:",
            "    print('swallowed', 1)",
            "assert text.getvalue() == 'swallowed 1\\n'",
            "with contextlib.redirect_stdout(sys.stderr):",
            "    print('to', 'stderr')",
            "pieces = []",
            "sys.stdout.write = pieces.append",
            "print('a', 'b')",
            "del sys.stdout.write",
            "assert pieces == ['a', ' ', 'b', '\\n'], pieces",
            "out, sys.stdout = sys.stdout, None",
            "print('nowhere')",
            "del sys.stdout",
            "try:",
            "    print('lost')",
            "except RuntimeError as error:",
            "    sys.stdout = out",
            "    print(error)",
        )
    )
    assert outcome.result["code"] == "ok", outcome.stderr
    assert (outcome.stdout, outcome.stderr) == ("lost sys.stdout\n", "to stderr\n")


def test_streams_that_the_script_removed_do_not_fail_the_job(job: Job) -> None:
    outcome = job(script("del sys.stdout, sys.stderr"))
    assert outcome.result["code"] == "ok", outcome.stderr


def test_users_own_print_is_theirs(job: Job) -> None:
    outcome = job(
        script(
            "plain = builtins.print",
            "builtins.print = lambda *values: plain('mine:', *values)",
            "print('a', 1)",
        )
    )
    assert outcome.stdout == "mine: a 1\n"


def test_it_looks_like_the_builtin(job: Job) -> None:
    outcome = job(
        script(
            "import inspect, pickle",
            "facts = (print.__name__, print.__qualname__, print.__module__, pickle.loads(pickle.dumps(print)) is print)",
            "assert facts == ('print', 'print', 'builtins', True), facts",
            "print(inspect.signature(print))",
            "print(list(map(print, 'ab')))",
        )
    )
    assert outcome.result["code"] == "ok", outcome.stderr
    assert outcome.stdout.splitlines() == [str(inspect.signature(print)), "a", "b", "[None, None]"]


def test_it_is_undone_after_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = builtins.print
    reading, writing = os.pipe()
    monkeypatch.setenv("TRANSFORM_LOG_FD", str(writing))
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    try:
        with log_streams():
            assert builtins.print is not plain
            ours = builtins.print
        assert builtins.print is plain
        with log_streams():
            builtins.print = mine = lambda *values: ours(*values)
        assert builtins.print is mine
    finally:
        builtins.print = plain
        os.close(reading)
        os.close(writing)
