"""Transforms in a notebook: through a gateway of its own, in its own kernel, and through the running one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.gateway_process import GatewayProcess
from tests.support.notebook_kernel import NotebookKernel

TOTALS = """print('imported')
RATE = 2
def transform(orders):
    print('called')
    return orders.groupby('status', as_index=False)['amount'].sum()
"""
UTF8 = "import sys\nsys.stdout.reconfigure(encoding='utf-8')\n"  # a line that many scripts have
FAILS = """def transform(orders):
    where = 'users frame'
    return orders.nothing
"""


@pytest.fixture(autouse=True)
def _orders(notebook: NotebookKernel) -> None:
    notebook.run("%tables --clear")
    notebook.run("%table orders orders.csv")


def test_transform_shows_output_schema_and_memory(notebook: NotebookKernel) -> None:
    cell = notebook.run(f"%%transform\n{TOTALS}")
    assert (cell.status, cell.stderr) == ("ok", "")
    assert cell.stdout.splitlines()[:3] == ["imported", "called", "Successfully saved 2 rows"]
    (shown,) = cell.shown
    assert "2 rows, 2 columns" in shown["text/plain"]
    assert "schema: status Text, amount Float" in shown["text/plain"]
    assert "peak memory" in shown["text/plain"]
    assert "<td style='text-align: left'>Float</td>" in shown["text/html"]
    result = notebook.value(
        "last_run.ok, last_run.code, last_run.error, last_run.exit_code, last_run.rows, last_run.tables"
    )
    assert result == "(True, 'ok', None, 0, 2, ('orders',))"
    assert notebook.value("last_run.frame.to_dict('list')") == "{'status': ['open', 'paid'], 'amount': [3.0, 15.0]}"
    assert notebook.value("last_run.schema['base_type'].tolist()") == "['Text', 'Float']"
    assert notebook.value("{'claim', 'read', 'transform', 'write'} <= set(last_run.stages)") == "True"
    assert (
        notebook.value("last_run.peak_memory_bytes > 10_000_000, [line.message for line in last_run.log][:2]")
        == "(True, ['imported', 'called'])"
    )


@pytest.mark.parametrize("option", ["", "--here"])
def test_profile_and_stages_are_shown_as_on_the_page(notebook: NotebookKernel, option: str) -> None:
    (shown,) = notebook.run(f"%%transform {option}\n{TOTALS}").shown
    page = shown["text/html"]
    figures = "".join(f"<td style='text-align: right'>{text}</td>" for text in ("0", "2", "3", "6", "9", "12", "15"))
    assert f"<td style='text-align: left'>Float</td>{figures}" in page
    assert "12 bins: 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1" in page
    assert "<summary>stages</summary>" in page
    names = "['import', 'read', 'transform', 'write', 'profile']"
    assert notebook.value(f"[span.name for span in last_run.waterfall if span.name in {names}]") == names
    assert notebook.value("last_run.displays, last_run.profile.rows") == "((), 2)"
    notebook.run(f"import transform_shim\nplain = transform_shim.run_transform({TOTALS!r}, here={bool(option)})")
    assert notebook.value("plain.rows, plain.profile") == "(2, None)"


def test_figures_and_tables_of_a_transform_are_shown(notebook: NotebookKernel) -> None:
    makes = (
        "from IPython.display import HTML, SVG\nimport pandas as pd\nimport matplotlib.pyplot as plt\n"
        "display(pd.DataFrame({'at import': ['<script>']}))\n"
        "def transform(orders):\n"
        "    display(HTML('<script>alert(1)</script>'), SVG('<svg xmlns=\"http://www.w3.org/2000/svg\"><script>1</script></svg>'))\n"
        "    plt.plot([1, 2])\n"
        "    return orders\n"
    )
    for option in ("", "--here"):
        cell = notebook.run(f"%%transform {option}\n{makes}")
        assert (cell.status, cell.stderr) == ("ok", "")
        # the log has the text of the displays, but not where they are shown
        log = notebook.value("'\\n'.join(line.message for line in last_run.log)")
        assert "<IPython.core.display.SVG object>" in log
        assert "<Figure size 640x480 with 1 Axes>" in log
        assert "0  <script>" in log
        assert "at import" not in cell.stdout
        assert "<script>" not in cell.stdout
        assert "<IPython.core.display.HTML object>" in cell.stdout
        assert "SVG object" not in cell.stdout
        assert "<Figure size" not in cell.stdout
        table, svg, figure, result = cell.shown
        assert "<th>at import</th>" in table["text/html"]
        assert svg["text/html"].startswith('<img src="data:image/svg+xml;base64,')
        assert (figure["text/plain"], set(figure)) == (
            "<Figure size 640x480 with 1 Axes>", {"text/plain", "image/png"}
        )  # fmt: skip
        assert "3 rows" in result["text/plain"]
        assert not any("<script" in data.get("text/html", "") or "image/svg+xml" in data for data in cell.shown)
        assert notebook.value("[type(each).__name__ for each in last_run.displays]") == "['Table', 'Image', 'Image']"


def test_image_that_is_not_shown_is_named(notebook: NotebookKernel) -> None:
    makes = (
        "import matplotlib.pyplot as plt\n"
        "def transform(orders):\n"
        "    for _ in range(21):\n"
        "        display(plt.figure(figsize=(1, 1)))\n"
        "        plt.close()\n"
        "    return orders\n"
    )
    for option in ("", "--here"):
        cell = notebook.run(f"%%transform {option}\n{makes}")
        assert cell.stdout.count("<Figure size 100x100 with 0 Axes>") == 1
        assert len(cell.shown) == 21  # with the result
    unseen = notebook.run(f"from transform_shim import run_transform\nquiet = run_transform({makes!r}, here=True)")
    assert unseen.stdout.count("<Figure size 100x100 with 0 Axes>") == 21


def test_failure_shows_its_message_once(notebook: NotebookKernel) -> None:
    for option in ("", "--here"):
        cell = notebook.run(f"%%transform {option}\ndef transform(nothing):\n    return nothing")
        (shown,) = cell.shown
        assert cell.stderr.count("missing 1 required positional argument") == 1
        assert shown["text/plain"].startswith("missing_table (exit code 1)\n")
        assert "<b>missing_table</b> (exit code 1)" in shown["text/html"]
        assert not any("positional argument" in text for text in shown.values())
    assert "missing_table (exit code 1): transform() missing 1 required" in notebook.run("last_run").text


def test_result_gets_a_name(notebook: NotebookKernel) -> None:
    cell = notebook.run(f"%%transform -o totals\n{TOTALS}")
    assert "as a data frame: totals" in cell.text
    assert "as a data frame: totals" in cell.shown[0]["text/html"]
    assert notebook.value("totals['amount'].tolist()") == "[3.0, 15.0]"
    assert "as a data frame: last_run.frame" in notebook.run(f"%%transform\n{TOTALS}").text
    for name in ("1x", "class"):
        refused = notebook.run(f"%%transform --out {name}\n{TOTALS}")
        assert f"-o {name}: expected a name of Python" in refused.stderr + refused.error


def test_option_is_not_taken_for_the_beginning_of_another(notebook: NotebookKernel) -> None:
    cell = notebook.run(f"%%transform --output csv\n{TOTALS}")
    assert "unrecognized arguments" in cell.stderr + cell.error


def test_large_result_is_shown_by_its_head(notebook: NotebookKernel) -> None:
    makes = "import pandas as pd\ndef transform():\n    return pd.DataFrame({'n': range(3_000_000), 'text': 'twenty characters  .'})\n"
    cell = notebook.run(f"%%transform --output-format csv\n{makes}")
    assert "3,000,000 rows, 2 columns, 8" in cell.text
    assert (
        notebook.value("'frame' in vars(last_run), len(last_run.head()), last_run.frame.n.iloc[-1]")
        == "(False, 10, np.int64(2999999))"
    )
    notebook.run("del last_run")


def test_empty_result_has_an_empty_head(notebook: NotebookKernel) -> None:
    notebook.run("%%transform\ndef transform(orders):\n    return orders[:0]\n")
    assert notebook.value("len(last_run.head()), list(last_run.head())") == "(0, ['status', 'amount'])"


def test_names_of_the_cell_can_be_used_by_hand(notebook: NotebookKernel) -> None:
    assert notebook.run(f"%%transform\n{TOTALS}").stdout.count("imported") == 1
    cell = notebook.run("len(transform(tables.orders)), RATE")
    assert (cell.stdout, cell.text) == ("called\n", "(2, 2)")


def test_failure_is_shown_and_stops_nothing(notebook: NotebookKernel) -> None:
    cell = notebook.run(f"%%transform\n{FAILS}")
    assert cell.status == "ok"
    assert 'script.py", line 3, in transform' in cell.stderr
    assert cell.text.startswith("user_error (exit code 1)\n")
    assert "exit code" not in cell.stderr
    assert "<b>user_error</b>" in cell.shown[0]["text/html"]
    assert notebook.value("last_run.ok, last_run.frame, last_run.log[-1].stream") == "(False, None, 'stderr')"


def test_each_run_has_a_fresh_kernel(notebook: NotebookKernel) -> None:
    script = "import os\nimport pandas as pd\ndef transform():\n    return pd.DataFrame({'pid': [os.getpid()], 'files': [str(os.listdir())]})\n"
    notebook.run("left_behind = 1; open('left.txt', 'w').close()")
    notebook.run(f"%%transform\n{script}")
    assert notebook.value("'left.txt' in last_run.frame.files[0]") == "False"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("    return orders.assign(rate=left_behind)", "'left_behind' is a variable of the notebook"),
        ("    return left_module.sqrt(2)", "'left_module' is imported in the notebook"),
        ("    return orders.assign(rate=nowhere)", None),
    ],
)
@pytest.mark.parametrize("option", ["", "--here"])
def test_a_name_of_another_cell_is_explained(
    notebook: NotebookKernel, option: str, code: str, said: str | None
) -> None:
    notebook.run("left_behind = 1; import math as left_module")
    cell = notebook.run(f"%%transform {option}\ndef transform(orders):\n{code}\n")
    assert "NameError: name" in cell.stderr
    assert (f"HINT: {said}" in cell.stderr) if said else ("HINT" not in cell.stderr)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import pandas as pd\npd.read_csv('orders.csv')", "files come in as tables (%table in a notebook)"),
        ("import module_of_mine", "packages add); %%library makes a cell a module\n"),
        ("open('/tmp/nowhere')", None),
        ("1 / 0", None),
    ],
)
def test_what_lies_next_to_the_notebook_is_explained(notebook: NotebookKernel, code: str, said: str | None) -> None:
    cell = notebook.run(code)
    assert cell.status == "error"
    assert (said in cell.stderr) if said else ("HINT" not in cell.stderr)


def test_kernel_of_a_failed_run_is_held_on_request(notebook: NotebookKernel, running_gateway: GatewayProcess) -> None:
    cell = notebook.run(f"%%transform --hold 5\n{FAILS}")
    attach = eval(notebook.value("last_run.held['attach']"))
    assert f"attach with: {attach}" in cell.stderr
    assert f"attach to it: {attach}" in notebook.run("last_run").text
    command, _, connection_file = attach.rpartition(" ")
    assert command.endswith("jupyter console --existing")
    assert Path(connection_file).is_file()
    running_gateway.release_all()
    gone = notebook.run("%%transform --hold 5\nimport os\nos._exit(3)")
    assert "The kernel of this job is not held: " in gone.stderr


def test_here_leaves_the_failed_frame_to_the_debugger(notebook: NotebookKernel) -> None:
    notebook.run("1 / 0")
    cell = notebook.run(f"%%transform --here\n{FAILS}")
    assert "user_error (exit code 1)" in cell.text
    assert "in this kernel" in cell.text
    # the exception was raised in pandas
    debugged = notebook.run("%debug", answers=("p where", "p sorted(locals())", "up", "quit"))
    assert "script.py(3)transform()" in debugged.stdout
    assert "'users frame'" in debugged.stdout
    assert "['orders', 'where']" in debugged.stdout
    assert "Oldest frame" in debugged.stdout


LOOPS = """import asyncio
import pandas as pd
async def later():
    await asyncio.sleep(0)
    return 7
def transform(orders):
    return pd.DataFrame({'n': [asyncio.run(later()), asyncio.get_event_loop_policy().new_event_loop().run_until_complete(later())]})
"""


@pytest.mark.parametrize("options", ["", " --here"])
def test_transform_may_run_an_event_loop_of_its_own(notebook: NotebookKernel, options: str) -> None:
    cell = notebook.run(f"%%transform{options}\n{LOOPS}")
    assert (cell.status, cell.stderr) == ("ok", "")
    assert notebook.value("last_run.frame.n.tolist()") == "[7, 7]"
    assert notebook.value("__import__('asyncio').get_running_loop().is_running()") == "True"


@pytest.mark.parametrize("options", ["", " --here"])
def test_dropped_index_gives_a_warning(notebook: NotebookKernel, options: str) -> None:
    cell = notebook.run(f"%%transform{options}\ndef transform(orders):\n    return orders.groupby('status').sum()\n")
    assert cell.stderr == "WARNING: the index (status) is not written; reset_index() keeps it\n"


def test_here_succeeds_as_elsewhere(notebook: NotebookKernel) -> None:
    notebook.run(f"%%transform\n{UTF8}{TOTALS}")
    notebook.run("there = last_run")
    assert notebook.run(f"%%transform --here\n{UTF8}{TOTALS}").stdout == "imported\ncalled\n"
    same = "last_run.sha256 == there.sha256, last_run.manifest == there.manifest, last_run.frame.equals(there.frame)"
    assert notebook.value(same) == "(True, True, True)"
    assert notebook.value("[tuple(line) for line in last_run.log]") == "[('stdout', 'imported'), ('stdout', 'called')]"


def test_here_keeps_the_frames_of_the_last_failure_only(notebook: NotebookKernel) -> None:
    script = "class Kept: pass\ndef transform():\n    kept = Kept()\n    raise ValueError(kept)\n"
    for _ in range(3):
        assert notebook.run(f"%%transform --here\n{script}").status == "ok"
    notebook.run("import gc; gc.collect()")
    assert notebook.value("sum(type(each).__name__ == 'Kept' for each in gc.get_objects())") == "1"


def test_library_is_for_the_notebook_and_for_transforms(notebook: NotebookKernel) -> None:
    uses = "%%transform\nimport common\ndef transform(orders):\n    return orders.assign(rate=common.RATE)\n"
    assert notebook.run("%%library common\nRATE = 2").status == "ok"
    assert notebook.value("__import__('common').RATE") == "2"
    notebook.run("import common")
    notebook.run(uses)
    assert notebook.value("last_run.frame.rate.tolist(), common.RATE") == "([2, 2, 2], 2)"
    notebook.run("%%library common\nRATE = 3")
    notebook.run(uses)
    assert notebook.value("last_run.frame.rate.tolist(), common.RATE") == "([3, 3, 3], 3)"
    assert notebook.run("%%library common\nRATE = (").stderr.startswith("UsageError: common.py, line 1: ")
    assert "is the name of a module that is imported already" in notebook.run("%%library json\nx = 1").stderr


def test_library_that_cannot_be_imported_leaves_the_one_before(notebook: NotebookKernel) -> None:
    notebook.run("%%library rates\nRATE = 1")
    failed = notebook.run("%%library rates\nRATE = 2\n1 / 0")
    assert failed.stderr == "UsageError: rates.py, line 2: ZeroDivisionError: division by zero\n"
    assert notebook.value("__import__('rates').RATE") == "1"
    notebook.run("%%transform\nimport rates\ndef transform(orders):\n    return orders.assign(rate=rates.RATE)\n")
    assert notebook.value("last_run.frame.rate.unique().tolist()") == "[1]"
    notebook.run("%%library never\n1 / 0")
    assert "No module named 'never'" in notebook.run("import never").error


@pytest.mark.parametrize("options", ["", "--here"])
def test_progress_of_a_transform_is_shown_meanwhile(notebook: NotebookKernel, options: str) -> None:
    cell = notebook.run(
        f"%%transform {options}\nimport time\nfrom tqdm import tqdm\n"
        "def transform(orders):\n"
        "    for number in tqdm(range(20), desc='fit'):\n"
        "        time.sleep(0.05 if number < 19 else 3)\n"  # the gateway is asked now and then
        "    return orders\n"
    )
    assert cell.status == "ok"
    assert cell.stderr == ""
    assert re.search(r"fit 1?\d of 20 \(\d+ %\)", cell.text), cell.text


def test_submit_goes_to_the_running_gateway_and_compares(notebook: NotebookKernel) -> None:
    notebook.run(f"%%transform\n{TOTALS}")
    cell = notebook.run("%submit")
    assert cell.stdout.startswith("imported\ncalled\n")
    assert f"in {notebook.environment['TRANSFORM_GATEWAY_URL']}" in cell.text
    assert "same as in the notebook: rows, columns, types, the same data; " in cell.text
    other = notebook.run("%%submit\ndef transform(orders):\n    return 1\n")
    assert "invalid_return (exit code 1)" in other.text
    assert "notebook:" not in other.text, "another script is not compared"
    notebook.run(f"%%transform\n{FAILS}")
    assert "same outcome as in the notebook, the same message" in notebook.run("%submit").text


def test_submit_runs_with_the_time_out_and_format_of_the_run_it_is_compared_with(notebook: NotebookKernel) -> None:
    slow = "import time\ndef transform(orders):\n    time.sleep(3.5)\n    return orders\n"
    notebook.run(f"%%transform --output-format parquet --timeout 2\n{slow}")
    assert "same outcome as in the notebook" in notebook.run("%submit").text
    notebook.run(f"%%transform --output-format parquet\n{TOTALS}")
    assert "same as in the notebook: rows, columns, types, the same data; " in notebook.run("%submit").text
    assert "but parquet there and csv here" in notebook.run("%submit --output-format csv").text


def test_submit_to_an_unreachable_gateway_is_reported(
    notebook: NotebookKernel, tmp_path_factory: pytest.TempPathFactory
) -> None:
    url = {"TRANSFORM_GATEWAY_URL": "http://127.0.0.1:1"}
    with NotebookKernel(tmp_path_factory.mktemp("alone"), url) as alone:
        assert alone.run("%submit").stderr == "UsageError: there is nothing to submit: no %%transform has been run\n"
        cell = alone.run("%%submit\nx = 1")
        assert (cell.status, "no answer from http://127.0.0.1:1" in cell.stderr) == ("error", True)
        assert "METABASE_URL and METABASE_API_KEY must be set" in alone.run("%table x metabase:1").stderr


def test_interrupt_cancels_the_job(notebook: NotebookKernel) -> None:
    sleeps = "%%transform\nimport time\ndef transform(orders):\n    print('asleep')\n    time.sleep(50)\n"
    client = notebook.client
    asked = client.execute(sleeps)
    # not `execute_input`, which repeats the cell before anything of it runs
    while (said := client.get_iopub_msg(timeout=60))["msg_type"] != "stream" or "asleep" not in said["content"]["text"]:
        pass
    notebook.manager.interrupt_kernel()
    while (reply := client.get_shell_msg(timeout=60))["parent_header"]["msg_id"] != asked:
        pass
    assert reply["content"]["status"] == "ok"
    assert notebook.value("last_run.code, last_run.seconds < 40") == "('cancelled', True)"
    assert notebook.run(f"%%transform\n{TOTALS}").status == "ok"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("%%transform --timeout 0", "the timeout must be seconds above 0, not 0.0"),
        ("%%transform --timeout 1e9", "the gateway refused the job: bad_request: "),
        ("%%transform --timeout 5x", "argument --timeout: invalid seconds value: '5x'"),
        ("%%transform --timeout 400d", "the gateway refused the job: bad_request: "),
        ("%%transform --hold -1", "held for minutes from 0 up"),
        ("%%transform --output-format xlsx", "invalid choice: 'xlsx'"),
        ("%%transform --here --timeout 5", "in this kernel there is no timeout"),
        ("%%transform --here --hold 5", "nothing to hold"),
        ("%%transform --nonsense", "unrecognized arguments: --nonsense"),
        ("%%library 2x", "'2x' cannot be the name of a library module"),
        ("%%library class", "'class' cannot be the name of a library module"),
        ("%%library torn\nx = '\0'", "cannot contain null bytes"),
    ],
)
def test_usage_errors_are_one_line(notebook: NotebookKernel, line: str, said: str) -> None:
    cell = notebook.run(f"{line}\nx = 1")
    assert cell.status == "error"
    assert cell.stderr.startswith("UsageError: ")
    assert said in cell.stderr
    assert "Traceback" not in cell.stderr + cell.error


def test_functions_have_the_effect_of_the_magics(notebook: NotebookKernel) -> None:
    notebook.run(
        "from transform_shim import drop_table, library, run_transform, submit, table, tables\nimport pandas as pd"
    )
    assert notebook.value("table('more', pd.DataFrame({'x': [1]}))") == "more: 1 row, 1 column (a frame)"
    assert (
        notebook.value("table('days', 'days.jsonl', manifest='days.manifest.json').rows, list(tables)")
        == "(2, ['orders', 'more', 'days'])"
    )
    notebook.run("drop_table('more'); library('common', 'RATE = 4')")
    notebook.run(
        "code = 'import common\\ndef transform(orders):\\n    print(1)\\n    return orders.assign(r=common.RATE)'"
    )
    quiet = notebook.run("r = run_transform(code); s = submit(code)")
    assert quiet.stdout == ""
    assert notebook.value(
        "r.ok, r.frame.r.tolist(), r.log[0].message, s.where.startswith('http'), s.comparison[:23]"
    ) == ("(True, [4, 4, 4], '1', True, 'same as in the notebook')")
    assert notebook.run("run_transform(code, here=True, show=True)").stdout == "1\n"
    assert "NotebookError: 'xlsx' is not a format" in notebook.run("run_transform(code, output_format='xlsx')").error
    assert notebook.value("run_transform(code, output_format='parquet').frame.r.tolist()") == "[4, 4, 4]"


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("table('orders', 'orders.csv', format='xml')", "'xml' is not a format; these are: jsonl, csv, parquet, arrow"),
        ("table('orders', 'orders.csv', manifest=5)", "invalid request: manifest: "),
        ("run_transform(None)", "the script must be text, not 'NoneType'"),
        ("run_transform('x = 1', timeout='9')", "the timeout must be seconds above 0, not '9'"),
        ("run_transform('x = 1', timeout=float('inf'))", "the timeout must be seconds above 0, not inf"),
        ("run_transform('x = 1', hold_minutes=float('inf'))", "a kernel is held for minutes from 0 up, not for inf"),
    ],
)
def test_mistakes_in_calls_are_answered(notebook: NotebookKernel, call: str, said: str) -> None:
    cell = notebook.run(f"from transform_shim import run_transform, table\n{call}")
    assert f"NotebookError: {said}" in cell.error


def test_shell_commands_work_without_a_terminal(notebook: NotebookKernel) -> None:
    # both streams in their order, as ipykernel shows them
    assert notebook.run("!echo out; echo err >&2; echo again").stdout == "out\nerr\nagain\n"
    assert notebook.value("get_ipython().user_ns['_exit_code']") == "0"


def test_tab_completes_tables_files_variables_and_options(notebook: NotebookKernel) -> None:
    notebook.run("import pandas as pd; import polars as pl; deeds = pd.DataFrame({'x': [1]})")
    notebook.run("lazy_deeds = pl.LazyFrame({'x': [1]}); lazy_column = deeds['x']")
    assert notebook.complete("%table ord") == ["orders"]
    assert notebook.complete("%table x orders.c") == ["orders.csv"]
    assert notebook.complete("%table x @dee") == ["deeds"]
    assert notebook.complete("%table x @lazy") == ["lazy_deeds"]
    assert notebook.complete("%table --drop o") == ["orders"]
    assert "--manifest" in notebook.complete("%table x y --m")
    assert notebook.complete("%%transform --h") == ["--here", "--hold"]
    assert notebook.complete("tables.or") == ["orders"]
    assert any("orders" in match for match in notebook.complete('tables["or'))


@pytest.mark.parametrize(
    ("magic", "said"),
    [
        ("%table", "Load a table under a name."),
        ("%tables", "Show the loaded tables"),
        ("%%transform", "Run the cell as a transform"),
        ("%submit", "to the running gateway"),
        ("%%library", "Make the cell a module"),
    ],
)
def test_every_magic_explains_itself(notebook: NotebookKernel, magic: str, said: str) -> None:
    assert said in notebook.help(f"{magic}?")


def test_plots_are_drawn_inline_without_a_warning(notebook: NotebookKernel) -> None:
    cell = notebook.run("import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()")
    assert (cell.status, cell.stderr) == ("ok", "")
    assert "image/png" in cell.shown[-1]


def test_kernel_info_describes_the_sandbox(notebook: NotebookKernel) -> None:
    info = notebook.client.kernel_info(reply=True, timeout=60)["content"]
    assert "sandbox that runs Metabase's Python transforms in production" in info["banner"]
    assert "state persists between cells" in info["banner"]
    assert "1,024 MiB of memory" in info["banner"]
    assert info["language_info"]["name"] == "python"
    assert info.get("debugger", False) is False
