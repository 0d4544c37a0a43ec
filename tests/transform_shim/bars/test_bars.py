"""Progress that a transform reports: `progress()` and tqdm in real jobs."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.transform_shim.jobs import Outcome, columns, table

Job = Callable[..., Outcome]

#: The clock of the shim jumps at each look, so that each report is due and, after some looks, a line.
JUMPING = """
import itertools
from types import SimpleNamespace
import transform_shim.bars.job_bars as bars
seconds = itertools.count(0, 0.6)
bars.time = SimpleNamespace(monotonic=lambda: next(seconds))
"""
END = "    return pd.DataFrame({'a': [1]})\n"


def reports(outcome: Outcome) -> list[tuple[Any, ...]]:
    found = [json.loads(data) for name, data in outcome.frames if name == "progress"]
    return [(each["bar"], each["description"], each["done"], each["total"]) for each in found if "bar" in each]


def test_rows_and_the_end_of_a_bar_are_reported(job: Job) -> None:
    code = JUMPING + (
        "import pandas as pd\nfrom transform_shim import progress\n"
        "def transform(t):\n"
        "    seen = [row.a for row in progress(t.itertuples(), total=len(t), description='rows')]\n"
        "    return pd.DataFrame({'a': seen})\n"
    )
    outcome = job(code, {"t": table(columns(a="type/Integer"), '{"a":5}\n{"a":6}\n')})
    assert outcome.cells("a") == [5, 6]
    assert reports(outcome) == [(0, "rows", done, 2) for done in (0, 1, 2, 2)]


def test_a_bar_is_also_counted_by_hand_and_loops_inside_another_keep_their_number(job: Job) -> None:
    code = JUMPING + (
        "import pandas as pd\nfrom transform_shim import progress\n"
        "def transform():\n"
        "    with progress(total=0.5, description='outer') as outer:\n"
        "        for _ in range(2):\n"
        "            for _ in progress('x', description='inner'):\n"
        "                pass\n"
        "            outer.update(0.25)\n" + END
    )
    inner = [(1, "inner", done, 1) for done in (0, 1, 1)]
    outer = [(0, "outer", done, 0.5) for done in (0, 0.25, 0.5, 0.5)]
    assert reports(job(code)) == [outer[0], *inner, outer[1], *inner, *outer[2:]]


def test_short_loops_report_twice_a_second_at_most_and_leave_no_line(job: Job) -> None:
    code = (
        "import pandas as pd\nfrom transform_shim import progress\n"
        "import transform_shim.bars.job_bars as bars\n"
        "from types import SimpleNamespace\n"
        "bars.time = SimpleNamespace(monotonic=lambda: 5.0)\n"
        "def transform():\n"
        "    for _ in range(1000):\n"
        "        for _ in progress(range(10)):\n"
        "            break\n" + END
    )
    outcome = job(code)
    assert reports(outcome) == [(0, "", 0, 10)] * 2, (
        "the first bar's beginning and end; a `break` gives its number back"
    )
    assert outcome.stderr == ""


def test_a_long_loop_leaves_a_line_every_ten_seconds(job: Job) -> None:
    code = JUMPING + (
        "import pandas as pd\nfrom transform_shim import progress\n"
        "def transform():\n"
        "    for _ in progress(range(5000), description='fit'):\n"
        "        pass\n" + END
    )
    lines = job(code).stderr.splitlines()
    assert lines[0].startswith("fit: ")
    assert lines[0].endswith("so far")
    assert lines[-1].startswith("fit: 5,000 of 5,000 (100 %) in ")


@pytest.mark.parametrize(
    "strange",
    [
        "progress(total='many').update()",
        "progress(total=float('nan')).update(float('inf'))",
        "[progress() for _ in range(50)][-1].update()",
        "list(progress(iter([1, 2]), description=None))",
        "pd.Series(list(progress(pd.Series([1, 2]), total=np.int64(2), description='\\x1b[31m' * 5000)))",
    ],
)
def test_strange_arguments_do_not_fail_the_job(job: Job, strange: str) -> None:
    code = (
        "import numpy as np, pandas as pd\nfrom transform_shim import progress\n"
        f"def transform():\n    {strange}\n" + END
    )
    outcome = job(code)
    assert outcome.result["code"] == "ok"
    assert all(len(data) < 4000 for _, data in outcome.frames)


def test_an_iterable_is_asked_for(job: Job) -> None:
    code = "from transform_shim import progress\ndef transform():\n    for _ in progress(total=3): pass\n"
    assert "counts by update()" in job(code).result["message"]


def test_a_forked_child_does_not_draw_over_the_bars_of_its_job(job: Job) -> None:
    code = JUMPING + (
        "import os\nimport pandas as pd\nfrom transform_shim import progress\n"
        "def transform():\n"
        "    bar = progress(total=9, description='parent')\n"
        "    if not (child := os.fork()):\n"
        "        list(progress(range(3), description='child'))\n"
        "        bar.update()\n"
        "        os._exit(0)\n"
        "    os.waitpid(child, 0)\n" + END
    )
    assert {description for _, description, _, _ in reports(job(code))} == {"parent"}


@pytest.mark.parametrize("name", ["tqdm", "tqdm.auto", "tqdm.std"])
def test_tqdm_becomes_progress_and_leaves_nothing_in_the_log(job: Job, name: str) -> None:
    code = JUMPING + (
        f"import sys\nimport pandas as pd\nfrom {name} import tqdm, trange\n"
        "def transform():\n"
        "    for _ in tqdm(range(2), desc='outer', mininterval=0, miniters=1):\n"
        "        for _ in trange(3, file=sys.stdout, leave=False, mininterval=0, miniters=1):\n"
        "            pass\n"
        "    bar = tqdm(total=4)\n"
        "    bar.set_description('by hand')\n"
        "    bar.update(4)\n"
        "    bar.close()\n"
        "    list(tqdm('ab', disable=True))\n"
        "    tqdm.write('a line')\n" + END
    )
    outcome = job(code)
    assert (outcome.stdout, outcome.stderr) == ("a line\n", "")
    assert outcome.raw == {}
    found = reports(outcome)
    assert [each for each in found if each[1] == "outer"] == [(0, "outer", done, 2) for done in (0, 1, 2, 2)]
    assert (1, "", 3, 3) in found
    assert found[-1] == (0, "by hand", 4, 4)


def test_tqdm_with_a_file_of_its_own_writes_there(job: Job) -> None:
    code = (
        "import io\nimport pandas as pd\nfrom tqdm import tqdm\n"
        "def transform():\n"
        "    file = io.StringIO()\n"
        "    list(tqdm('abc', file=file))\n"
        "    return pd.DataFrame({'a': ['3/3' in file.getvalue()]})\n"
    )
    outcome = job(code)
    assert outcome.cells("a") == [True]
    assert reports(outcome) == []


def test_tqdm_of_pandas_works(job: Job) -> None:
    code = (
        "import pandas as pd\nfrom tqdm import tqdm\ntqdm.pandas(desc='apply')\n"
        "def transform():\n    return pd.DataFrame({'a': pd.Series([1, 2]).progress_apply(lambda value: value + 1)})\n"
    )
    outcome = job(code)
    assert outcome.cells("a") == [2, 3]
    assert outcome.stderr == ""
    assert reports(outcome)[0] == (0, "apply", 0, 2)
