"""Every way a job can end badly is named: status, code, exit code, a sentence with the limit, and the line last in
the log.
"""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.gateway_process import GatewayProcess

CASES = {
    "user_error": ("def transform():\n    raise ValueError('no luck')", 1, "ValueError: no luck"),
    "syntax_error": ("def transform(:\n    pass", 1, "SyntaxError: invalid syntax"),
    "no_transform": ("x = 1", 1, "ERROR: User script must define a 'transform()' function"),
    "invalid_return": (
        "def transform():\n    return 'x'",
        1,
        "ERROR: Transform function must return a pandas DataFrame, got <class 'str'>",
    ),
    "missing_table": ("def transform(orders):\n    return orders", 1, "orders"),
    "exited": ("import os\ndef transform():\n    os._exit(7)", 7, "exit code 7"),
    "killed": ("import os\ndef transform():\n    os.kill(os.getpid(), 11)", 139, "SIGSEGV"),
    "output_invalid": (
        "import pandas as pd\ndef transform():\n    return pd.DataFrame([[1, 2]], columns=['a', 'a'])",
        1,
        "a",
    ),
}


@pytest.mark.parametrize("code", CASES)
def test_failure_has_its_code_and_is_the_last_log_line(running_gateway: GatewayProcess, code: str) -> None:
    script, exit_code, last = CASES[code]
    answer = running_gateway.execute(script, f"failure-{code}")
    assert answer.status == 500
    assert answer.body["code"] == code
    assert answer.body["exit_code"] == exit_code
    assert answer.body["timeout"] is False
    assert answer.body["error"]
    messages = [event["message"] for event in running_gateway.log(f"failure-{code}")]
    assert last in messages[-1]


def test_sys_exit_reports_the_scripts_own_code(running_gateway: GatewayProcess) -> None:
    answer = running_gateway.execute("import sys\ndef transform():\n    print('bye')\n    sys.exit(3)", "sys-exit")
    assert (answer.status, answer.body["code"], answer.body["exit_code"]) == (500, "exited", 3)
    messages = [event["message"] for event in running_gateway.log("sys-exit")]
    assert messages[0] == "bye"
    assert len([message for message in messages if "sys.exit(3)" in message]) == 1, "said once"


def test_a_result_that_the_script_keeps_from_being_written_is_not_put_down_to_talk(
    running_gateway: GatewayProcess,
) -> None:
    script = "import resource\ndef transform():\n    resource.setrlimit(resource.RLIMIT_FSIZE, (9, 9))\n    return 1"
    answer = running_gateway.execute(script, "own-limit")
    assert (answer.status, answer.body["code"]) == (500, "exited")
    assert "kept the result from being written" in answer.body["error"]


def test_a_file_that_is_too_large_names_the_limit_last(running_gateway: GatewayProcess) -> None:
    script = "def transform():\n    with open('big', 'wb') as file:\n        file.truncate(600_000_000)"
    answer = running_gateway.execute(script, "big-file")
    assert (answer.status, answer.body["code"]) == (500, "file_size_limit")
    assert answer.body["error"].startswith("File size limit of 500 MB reached "), "as the setting is documented"
    assert answer.body["error"] in running_gateway.log("big-file")[-1]["message"]


def test_prints_and_raw_writes_keep_their_order(running_gateway: GatewayProcess) -> None:
    script = (
        "import os\nimport pandas as pd\n"
        "def transform():\n"
        "    for i in range(500):\n"
        "        print('print', i)\n"
        "        os.write(1, f'raw {i}\\n'.encode())\n"
        "    return pd.DataFrame({'x': [1]})"
    )
    assert running_gateway.execute(script, "raw-order").status == 200
    messages = [event["message"] for event in running_gateway.log("raw-order")][:1000]
    assert messages == [f"{kind} {i}" for i in range(500) for kind in ("print", "raw")]


def test_memory_error_names_the_limit(running_gateway: GatewayProcess) -> None:
    script = "def transform():\n    blocks = []\n    while True:\n        blocks.append(bytearray(50_000_000))"
    answer = running_gateway.execute(script, "memory")
    assert (answer.status, answer.body["code"]) == (500, "memory_limit")
    assert "Memory limit of 1024 MiB reached" in answer.body["error"]
    assert "Memory limit of 1024 MiB reached" in running_gateway.log("memory")[-1]["message"]


def test_an_abort_of_polars_for_lack_of_memory_is_the_memory_limit(running_gateway: GatewayProcess) -> None:
    script = (
        "import polars as pl\ndef transform():\n    large = pl.select(pl.int_range(0, 400_000_000)).lazy()\n"
        "    return large.select(pl.all().sort(descending=True))"
    )
    answer = running_gateway.execute(script, "polars-memory")
    assert (answer.status, answer.body["code"], answer.body["retryable"]) == (500, "memory_limit", False)
    assert "Memory limit of 1024 MiB reached" in running_gateway.log("polars-memory")[-1]["message"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("__import__('urllib.request').request.urlopen('http://192.0.2.1')", "jobs have no network"),
        ("open('/home/me/orders.csv')", "a job sees only its own directory"),
        ("import no_such_package", "'no_such_package' is neither installed here"),
    ],
)
def test_hint_about_the_sandbox_is_the_last_line(running_gateway: GatewayProcess, line: str, reason: str) -> None:
    answer = running_gateway.execute(f"def transform():\n    {line}", "hint")
    assert answer.body["code"] == "user_error"
    last = running_gateway.log("hint")[-1]["message"]
    assert last.startswith(f"HINT: {reason}")
    assert answer.body["error"].endswith(last.removeprefix("HINT: "))


def test_memory_of_children_counts_too(running_gateway: GatewayProcess) -> None:
    script = (
        "import os, time\n"
        "def transform():\n"
        "    for _ in range(4):\n"
        "        if os.fork() == 0:\n"
        "            block = b'x' * 400_000_000\n"
        "            time.sleep(20)\n"
        "            os._exit(0)\n"
        "    time.sleep(20)\n"
    )
    answer = running_gateway.execute(script, "children")
    assert (answer.status, answer.body["code"]) == (500, "memory_limit")


def test_timeout_says_so_and_keeps_the_output(running_gateway: GatewayProcess) -> None:
    script = "import time\ndef transform():\n    print('got this far')\n    time.sleep(60)"
    answer = running_gateway.execute(script, "sleepy", timeout=3)
    assert (answer.status, answer.body["timeout"], answer.body["code"]) == (500, True, "timeout")
    assert "timeout" in answer.body["error"]
    assert "3 s" in answer.body["error"]
    events = running_gateway.log("sleepy")
    assert events[0]["message"] == "got this far"
    assert any("time.sleep(60)" in event["message"] for event in events), "the traceback shows where it hung"
    assert "timeout" in events[-1]["message"]


@pytest.mark.parametrize(
    "stubborn",
    [
        "sum(range(10 ** 12))",
        "[__import__('signal').signal(2, __import__('signal').SIG_IGN), __import__('time').sleep(60)]",
    ],
)
def test_timeout_ends_a_job_that_ignores_interrupts(running_gateway: GatewayProcess, stubborn: str) -> None:
    answer = running_gateway.execute(f"def transform():\n    {stubborn}", "stubborn", timeout=1)
    assert (answer.status, answer.body["code"]) == (500, "timeout")
    assert answer.body["execution_time"] < 30, "answered far sooner than the job would have ended"


def test_a_job_that_forges_its_reply_is_not_a_success(running_gateway: GatewayProcess) -> None:
    script = (
        "import gc\n"
        "def transform():\n"
        "    from ipykernel.kernelbase import Kernel\n"
        "    kernel = next(o for o in gc.get_objects() if isinstance(o, Kernel))\n"
        "    parent = kernel.get_parent('shell')\n"
        "    kernel.session.send(kernel.iopub_socket, 'status', {'execution_state': 'idle'}, parent=parent, ident=b'status')\n"
        "    import time; time.sleep(25)\n"
        "    raise RuntimeError('really failed')\n"
    )
    answer = running_gateway.execute(script, "forger")
    assert (answer.status, answer.body["code"]) == (500, "exited"), "the reply was sent, and looked into"
    assert answer.body["exit_code"] != 0


FORGES_RESULT = """
import json, os, struct, sys, time
def transform():
    frame = sys._getframe()
    while 'request' not in frame.f_locals:
        frame = frame.f_back
    request = frame.f_locals['request']
    request.output_path.write_text('{}\\n')
    request.manifest_path.write_text(MANIFEST)
    request.result_path.write_text(json.dumps({'version': 1, 'outcome': 'ok', 'code': 'ok', 'rows': 1}))
    os.write(int(os.environ['TRANSFORM_LOG_FD']), struct.pack('<cI', b'd', 4) + b'done')
    time.sleep(20)
"""


def test_a_job_that_forges_its_result_does_not_fail_the_gateway(running_gateway: GatewayProcess) -> None:
    script = FORGES_RESULT.replace("MANIFEST", "'[][]'")
    answer = running_gateway.execute(script, "own-result", inline=True)
    assert (answer.status, answer.body.get("manifest")) == (200, None), answer.body


def test_a_job_cannot_make_the_gateway_store_a_manifest_of_any_size(running_gateway: GatewayProcess) -> None:
    answer = running_gateway.execute(FORGES_RESULT.replace("MANIFEST", "'[' * (17 << 20)"), "large-manifest")
    assert (answer.status, answer.body["code"]) == (500, "output_missing")
    assert "larger than 16777216 bytes" in answer.body["error"]


def test_an_unreachable_table_names_the_table_and_not_the_signature(running_gateway: GatewayProcess) -> None:
    answer = running_gateway.execute(
        "def transform(orders):\n    return orders",
        "no-table",
        table_mapping={"orders": "http://127.0.0.1:1/orders.jsonl?X-Amz-Signature=secret"},
    )
    assert (answer.status, answer.body["code"]) == (500, "input_unavailable")
    assert "orders" in answer.body["error"]
    log = running_gateway.log("no-table")
    assert "orders" in log[-1]["message"]
    assert "secret" not in str(log) + answer.raw.decode()
    assert answer.body["stages"]["fetch"] > 0


def test_a_table_that_transform_does_not_name_cannot_fail_the_job(running_gateway: GatewayProcess) -> None:
    """Neither refused nor silent storage matters, and the log has no word of it, as with the official runner."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        tables = {"a": "http://127.0.0.1:1/a.jsonl", "b": f"http://127.0.0.1:{silent.getsockname()[1]}/b.jsonl"}
        script = "import pandas as pd\n\ndef transform(c=5):\n    return pd.DataFrame({'c': [c]})"
        answer = running_gateway.execute(script, "unused", table_mapping=tables)
    assert (answer.status, answer.body["code"]) == (200, "ok"), answer.raw
    assert running_gateway.request("GET", "/v1/results/unused/output").raw == b'{"c":5}\n'
    assert all(event["message"].startswith("Successfully saved ") for event in running_gateway.log("unused"))


def test_a_misspelt_parameter_suggests_the_unfetched_table(running_gateway: GatewayProcess) -> None:
    script = "def transform(order):\n    return order"
    answer = running_gateway.execute(script, "misspelt", table_mapping={"orders": "http://127.0.0.1:1/orders.jsonl"})
    assert (answer.status, answer.body["code"]) == (500, "missing_table")
    assert answer.body["error"].endswith("Available tables: 'orders'. Did you mean 'orders'?")


def test_a_table_that_only_the_running_script_takes_fails_the_job(running_gateway: GatewayProcess) -> None:
    """No text shows that the script replaces its function; what it returns without the table would be wrong."""
    script = (
        "import pandas as pd, sys\n\ndef transform():\n    pass\n\n"
        "setattr(sys.modules[__name__], 'trans' + 'form', lambda orders=None: pd.DataFrame({'n': [orders is None]}))"
    )
    answer = running_gateway.execute(script, "replaced", table_mapping={"orders": "http://127.0.0.1:1/orders.jsonl"})
    assert (answer.status, answer.body["code"]) == (500, "missing_table")
    assert "Table 'orders' was not fetched: the line 'def transform(...)'" in answer.body["error"]


def test_a_job_that_is_cancelled_while_it_fetches_says_how_long_it_did(running_gateway: GatewayProcess) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, ThreadPoolExecutor(1) as pool:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/orders.jsonl"
        script = "def transform(orders):\n    return orders"
        going = pool.submit(running_gateway.execute, script, "silent", table_mapping={"orders": url})
        with silent.accept()[0]:
            running_gateway.wait_for_stage("silent", "fetch")  # the table is fetched while the job waits, too
            running_gateway.request("POST", "/v1/cancel", {"request_id": "silent"})
            answer = going.result(timeout=60)
    assert answer.body["code"] == "cancelled"
    assert answer.body["stages"]["fetch"] > 0
