"""Every way a job can end badly is named: status, code, exit code, a sentence with the limit, and the line last in
the log.
"""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.gateway_process import GatewayProcess

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
def test_failure_has_its_code_and_stands_last_in_the_log(running_gateway: GatewayProcess, code: str) -> None:
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


def test_a_file_that_is_too_large_names_the_limit_last(running_gateway: GatewayProcess) -> None:
    script = "def transform():\n    with open('big', 'wb') as file:\n        file.truncate(600_000_000)"
    answer = running_gateway.execute(script, "big-file")
    assert (answer.status, answer.body["code"]) == (500, "file_size_limit")
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
    assert "1024 MiB" in answer.body["error"]
    assert "1024 MiB" in running_gateway.log("memory")[-1]["message"]


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
    answer = running_gateway.execute(script, "sleepy", timeout=1)
    assert (answer.status, answer.body["timeout"], answer.body["code"]) == (500, True, "timeout")
    assert "timeout" in answer.body["error"]
    assert "1 s" in answer.body["error"]
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
def test_timeout_ends_what_does_not_listen(running_gateway: GatewayProcess, stubborn: str) -> None:
    answer = running_gateway.execute(f"def transform():\n    {stubborn}", "stubborn", timeout=1)
    assert (answer.status, answer.body["code"]) == (500, "timeout")
    assert answer.body["execution_time"] < 5, "answered far sooner than the job would have ended"


def test_a_job_that_forges_its_reply_is_not_a_success(running_gateway: GatewayProcess) -> None:
    script = (
        "import gc\n"
        "def transform():\n"
        "    from ipykernel.kernelbase import Kernel\n"
        "    kernel = next(o for o in gc.get_objects() if isinstance(o, Kernel))\n"
        "    parent = kernel.get_parent('shell')\n"
        "    kernel.session.send(kernel.iopub_socket, 'status', {'execution_state': 'idle'}, parent=parent, ident=b'status')\n"
        "    import time; time.sleep(2)\n"
        "    raise RuntimeError('really failed')\n"
    )
    answer = running_gateway.execute(script, "forger")
    assert (answer.status, answer.body["code"]) == (500, "exited"), "the reply was sent, and looked into"
    assert answer.body["exit_code"] != 0


def test_a_job_that_forges_its_result_does_not_fail_the_gateway(running_gateway: GatewayProcess) -> None:
    script = (
        "import json, os, struct, sys, time\n"
        "def transform():\n"
        "    frame = sys._getframe()\n"
        "    while 'request' not in frame.f_locals:\n"
        "        frame = frame.f_back\n"
        "    request = frame.f_locals['request']\n"
        "    request.output_path.write_text('{}\\n')\n"
        "    request.manifest_path.write_text('[][]')\n"
        "    request.result_path.write_text(json.dumps({'outcome': 'ok', 'code': 'ok', 'rows': 1}))\n"
        "    os.write(int(os.environ['TRANSFORM_LOG_FD']), struct.pack('<cI', b'd', 4) + b'done')\n"
        "    time.sleep(20)\n"
    )
    answer = running_gateway.execute(script, "own-result", inline=True)
    assert (answer.status, answer.body.get("manifest")) == (200, None), answer.body


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


def test_a_job_that_is_cancelled_while_it_fetches_says_how_long_it_did(running_gateway: GatewayProcess) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, ThreadPoolExecutor(1) as pool:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/orders.jsonl"
        script = "def transform(orders):\n    return orders"
        going = pool.submit(running_gateway.execute, script, "silent", table_mapping={"orders": url})
        with silent.accept()[0]:
            running_gateway.request("POST", "/v1/cancel", {"request_id": "silent"})
            answer = going.result(timeout=60)
    assert answer.body["code"] == "cancelled"
    assert answer.body["stages"]["fetch"] > 0
