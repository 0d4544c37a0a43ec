"""The requests of VS Code's Jupyter extension to a kernel, in our own words: start, variables, data and completion."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.kernel_spec.kernel.conftest import ANSWER_SECONDS, FrontEnd, text_of
from tests.support.gateway_process import GatewayProcess

#: A result that arrives after the cell has ended, from a thread: first an empty output with an id, then its content.
IN_BACKGROUND = """
def later(work):
    import threading
    from IPython.display import display
    shown = display({{"application/x-asked": ""}}, raw=True, display_id=True)
    go = threading.Event()
    threading.Thread(target=lambda: (go.wait(), shown.update({{"application/x-answer": work()}}, raw=True))).start()
    return go
asked = later(lambda: {work})
"""


@pytest.fixture(scope="module")
def gateway(running_gateway: GatewayProcess) -> str:
    """Start the kernel in the way that takes less time."""
    return str(running_gateway.state_dir / "s")


def hidden(front_end: FrontEnd, code: str) -> list[dict[str, Any]]:
    """Execute code as the extension does for itself: outside of the history, and without an effect on queued cells."""
    reply, messages = front_end.run(code, store_history=False, stop_on_error=False)
    assert reply["status"] == "ok", reply
    return messages


def answer_from_thread(front_end: FrontEnd, work: str) -> Any:
    """Return what a thread computes, as JSON, when its cell has ended."""
    (empty,) = [m for m in hidden(front_end, IN_BACKGROUND.format(work=work)) if m["msg_type"] == "display_data"]
    front_end.client.execute("asked.set()", store_history=False)
    while (message := front_end.client.get_iopub_msg(timeout=ANSWER_SECONDS))["msg_type"] != "update_display_data":
        pass
    assert message["content"]["transient"] == empty["content"]["transient"]
    return message["content"]["data"]["application/x-answer"]


def test_start_of_a_notebook_leaves_no_trace(front_end: FrontEnd) -> None:
    before = front_end.run("1")[0]["execution_count"]
    # the directory of the notebook, which the kernel does not see
    assert "/somewhere/else" in text_of(hidden(front_end, "%cd '/somewhere/else'"))
    hidden(front_end, "import os, sys\nsys.path.insert(0, os.getcwd())\nnotebook_file = '/somewhere/else/1.ipynb'")
    hidden(front_end, "%config Completer.use_jedi = False")
    hidden(front_end, "import matplotlib\n%matplotlib inline\nmatplotlib.style.use('dark_background')")
    hidden(front_end, "%config InlineBackend.figure_formats = {'svg', 'png'}")
    (figure,) = [
        message["content"]["data"]
        for message in hidden(front_end, "import matplotlib.pyplot as plt\nplt.plot([1, 2]); plt.show()")
        if message["msg_type"] == "display_data"
    ]
    assert {"image/png", "image/svg+xml"} <= figure.keys()
    assert front_end.run("1")[0]["execution_count"] == before + 1


def test_variables_are_listed_while_cells_run(front_end: FrontEnd) -> None:
    front_end.run(
        "import pandas as pd\nsold = pd.DataFrame({'id': [1, 2], 'amount': [0.5, float('nan')]})\nnames = ['a']"
    )
    hidden(front_end, "listed = get_ipython().run_line_magic('who_ls', '')")
    described = "[[name, type(globals()[name]).__name__] for name in listed]"
    assert ["sold", "DataFrame"] in answer_from_thread(front_end, described)
    assert ["names", "list"] in answer_from_thread(front_end, described)


def test_rows_of_a_frame_are_sent_in_pages(front_end: FrontEnd) -> None:
    hidden(front_end, "import pandas as pd\nwide = pd.DataFrame({'n': range(1000), 'day': pd.Timestamp('2026-01-02')})")
    printed = text_of(hidden(front_end, "print(wide.iloc[500:502].to_json(orient='table', date_format='iso'))"))
    rows = json.loads(printed)["data"]
    assert [row["n"] for row in rows] == [500, 501]
    assert rows[0]["day"].startswith("2026-01-02T")


@pytest.mark.parametrize(("code", "match"), [("sold_out = 1\nsold_o", "sold_out"), ("'x'.upp", "upper")])
def test_completion_works_in_a_thread_too(front_end: FrontEnd, code: str, match: str) -> None:
    hidden(front_end, "sold_out = 0")
    work = f"get_ipython().kernel.do_complete({code!r}, {len(code)})"
    assert any(found.endswith(match) for found in answer_from_thread(front_end, work)["matches"])
