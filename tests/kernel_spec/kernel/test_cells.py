"""The answers that a front end of Jupyter gets for a cell."""

from __future__ import annotations

import json
import re

import pytest
from jupyter_client.session import json_unpacker

from kernel_spec.kernel.message_json import pack
from tests.kernel_spec.kernel.conftest import FrontEnd, text_of


def types_of(messages: list[dict]) -> list[str]:
    return [message["msg_type"] for message in messages]


def test_cell_with_await_is_answered_and_its_output_precedes_idle(front_end: FrontEnd) -> None:
    reply, messages = front_end.run("import asyncio\nawait asyncio.sleep(0)\nprint('done')\n40 + 2")
    assert reply["status"] == "ok"
    assert types_of(messages) == ["status", "execute_input", "stream", "execute_result", "status"]


@pytest.mark.parametrize("what", ["await asyncio.sleep(1000)", "while True: pass"])
def test_interrupt_ends_a_cell_with_await(front_end: FrontEnd, what: str) -> None:
    code = f"import asyncio\nawait asyncio.sleep(0)\nprint('go', flush=True)\n{what}"
    request = front_end.client.execute(code)
    front_end.wait_for_output()
    front_end.manager.interrupt_kernel()
    reply, messages = front_end.answer(request)
    assert reply["ename"] in ("CancelledError", "KeyboardInterrupt")
    assert messages[-2]["msg_type"] == "error"
    assert front_end.printed("print(1)") == "1\n"


def test_interrupt_between_two_statements_ends_a_cell_with_await(front_end: FrontEnd) -> None:
    front_end.run(
        "import asyncio, signal\n"
        "armed, compiler = [], get_ipython().compile\n"
        "def extra_flags(flags, upstream=compiler.extra_flags):\n"
        "    if armed:\n"
        "        armed.clear()\n"
        "        signal.raise_signal(signal.SIGINT)\n"
        "    return upstream(flags)\n"
        "compiler.extra_flags = extra_flags"
    )
    reply, messages = front_end.run("await asyncio.sleep(0)\narmed.append(True)\nwhile True: pass")
    assert (reply["ename"], messages[-2]["msg_type"]) == ("KeyboardInterrupt", "error")
    assert front_end.printed("del compiler.extra_flags; print(1)") == "1\n"


@pytest.mark.parametrize(
    ("function", "code", "raised"),
    [("sleep_long", "sleep_long()", "KeyboardInterrupt"), ("select", "await asyncio.sleep(1000)", "CancelledError")],
    ids=["plain", "await"],
)
def test_interrupt_before_the_main_thread_waits_ends_the_cell(
    front_end: FrontEnd, function: str, code: str, raised: str
) -> None:
    """The signal comes to another thread, and so does not interrupt the system call in which the main thread waits."""
    front_end.run(
        "import asyncio, signal, sys, threading, time\n"
        "main = threading.main_thread().ident\n"
        "def sleep_long():\n"
        "    time.sleep(1000)\n"
        "def interrupt():\n"
        f"    while sys._current_frames()[main].f_code.co_name != {function!r}:\n"
        "        time.sleep(0.01)\n"
        "    signal.pthread_kill(threading.get_ident(), signal.SIGINT)"
    )
    reply, messages = front_end.run(f"threading.Thread(target=interrupt).start()\n{code}")
    assert (reply["ename"], messages[-2]["msg_type"]) == (raised, "error")
    assert front_end.printed("print(1)") == "1\n"


def test_error_after_await_aborts_the_cells_that_wait(front_end: FrontEnd) -> None:
    first = front_end.client.execute(
        "import asyncio\n"
        "turn = get_ipython().kernel._main_asyncio_lock\n"
        "while len(turn._waiters or ()) < 3:\n"
        "    await asyncio.sleep(0.01)\n"
        "1 / 0"
    )
    waiting = [front_end.client.execute("print('must not run')") for _ in range(3)]
    reply, messages = front_end.answer(first)
    assert (reply["ename"], types_of(messages)[-2:]) == ("ZeroDivisionError", ["error", "status"])
    for request in waiting:
        reply, messages = front_end.answer(request)
        assert (reply["status"], text_of(messages)) == ("aborted", "")
    assert front_end.printed("print('runs again')") == "runs again\n"


@pytest.mark.parametrize(
    ("magic", "text"),
    [
        ("%matplotlib inline", ""),
        ("%matplotlib", "Using matplotlib backend: "),
        ("%gui asyncio", ""),
        ("%connect_info", '"transport": "ipc"'),
        ("%subshell", "does not support subshells"),
    ],
)
def test_magic_that_asks_for_the_running_application_works(front_end: FrontEnd, magic: str, text: str) -> None:
    reply, messages = front_end.run(magic)
    assert reply["status"] == "ok", reply
    assert text in text_of(messages)
    assert "RuntimeError" not in text_of(messages)
    assert "no IPython Application" not in text_of(messages)


def test_figure_is_shown_after_matplotlib_inline(front_end: FrontEnd) -> None:
    reply, messages = front_end.run("%matplotlib inline\nimport matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()")
    assert reply["status"] == "ok", reply
    (shown,) = [message["content"]["data"] for message in messages if message["msg_type"] == "display_data"]
    assert "image/png" in shown


def test_large_output_beside_a_large_frame_does_not_end_the_kernel(front_end: FrontEnd) -> None:
    front_end.run("held = bytearray(500_000_000)")
    assert len(front_end.printed("print('x' * 50_000_000)")) == 50_000_001
    assert front_end.printed("print(len(held)); del held") == "500000000\n"


def test_message_that_utf8_or_json_cannot_hold_is_packed() -> None:
    packed = pack({"nan": float("nan"), "infinity": [float("inf")], "surrogate": "\udcff", "text": "é"})
    assert json.loads(packed) == {"nan": None, "infinity": [None], "surrogate": "\udcff", "text": "é"}
    assert json_unpacker(pack({"text": "é"})) == {"text": "é"}


def test_attribute_is_completed_without_its_dot(front_end: FrontEnd) -> None:
    front_end.printed("class Order:\n    amount = 1\norder = Order()")
    code = "x = order.am"
    reply, _ = front_end.answer(front_end.client.complete(code))
    (kind,) = reply["metadata"]["_jupyter_types_experimental"]
    assert (reply["matches"], kind["text"]) == (["amount"], "amount")
    assert code[: reply["cursor_start"]] == code[: kind["start"]] == "x = order."


def test_variable_is_stored_and_restored(front_end: FrontEnd) -> None:
    front_end.printed("kept = 5\n%store kept\ndel kept")
    assert front_end.printed("%store -r kept\nprint(kept)") == "5\n"


def test_history_has_no_file(front_end: FrontEnd) -> None:
    """nbclient asks for it by an argument of the kernel, which is ignored."""
    assert front_end.printed("print(get_ipython().history_manager.hist_file)") == ":memory:\n"


def test_traceback_for_a_person_is_coloured(front_end: FrontEnd) -> None:
    reply, _ = front_end.run("1 / 0")
    assert "\x1b[" in "".join(reply["traceback"])


def test_traceback_names_the_line_of_an_error_that_caused_another(front_end: FrontEnd) -> None:
    reply, _ = front_end.run("try:\n    1 / 0\nexcept Exception as e:\n    raise ValueError from e")
    assert "----> 2     1 / 0" in re.sub(r"\x1b\[[0-9;]*m", "", "".join(reply["traceback"]))


def test_wide_frame_is_shown_as_pandas_shows_it_in_a_notebook(front_end: FrontEnd) -> None:
    """pandas chooses at its import, and a fork server has imported it before there was a notebook."""
    _, messages = front_end.run("import pandas as pd\npd.DataFrame([range(50)])")
    (shown,) = [message["content"]["data"] for message in messages if message["msg_type"] == "execute_result"]
    assert "<th>...</th>" in shown["text/html"]
