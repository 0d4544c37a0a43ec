"""A failed job's kernel is held for a person: it shows what failed, costs no slot, and ends."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pexpect
import pytest
from jupyter_client.blocking.client import BlockingKernelClient

from gateway.process.pidfile import find_running
from tests.support.gateway_process import Answer, GatewayProcess, alive, descendants

ROOT = Path(__file__).parents[3]
SECONDS = 60
FAILS = """
def share(part, whole):
    return part / whole

def transform(orders):
    total = int(orders["amount"].sum())
    return share(total, 0 * len(orders))
"""
MULTIPART = {"Content-Type": "multipart/form-data; boundary=xx"}


@pytest.fixture(scope="module")
def gateway(gateway_type: type[GatewayProcess]) -> Iterator[GatewayProcess]:
    with gateway_type({"SLOTS": "1", "HELD_KERNELS": "2", "MEMORY_LIMIT_BYTES": str(512 << 20)}) as process:
        yield process


@pytest.fixture(autouse=True)
def _nothing_stays_held(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "gateway" in request.fixturenames:
        process: GatewayProcess = request.getfixturevalue("gateway")
        process.release_all()


def held(gateway: GatewayProcess) -> list[dict[str, Any]]:
    return gateway.request("GET", "/v1/held").body["held"]


def with_orders(gateway: GatewayProcess, code: str, **fields: Any) -> Answer:
    """Run a script with a table of two rows."""
    request = json.dumps({"code": code, "request_id": "orders", "timeout": 30, **fields})
    parts = [("request", "", request), ("table:orders", '; filename="orders.csv"', "status,amount\npaid,10\nopen,3\n")]
    body = "".join(f'--xx\r\nContent-Disposition: form-data; name="{n}"{f}\r\n\r\n{d}\r\n' for n, f, d in parts)
    return gateway.request("POST", "/v1/execute", f"{body}--xx--\r\n".encode(), headers=MULTIPART)


def evaluate(connection_file: str, **expressions: str) -> dict[str, str]:
    """Return what expressions are in a held kernel, as their repr."""
    client = BlockingKernelClient(connection_file=connection_file)
    client.load_connection_file()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=SECONDS)
        reply = client.execute_interactive("", user_expressions=expressions, timeout=SECONDS)["content"]
        assert reply["status"] == "ok", reply
        return {
            n: e["data"]["text/plain"] if e["status"] == "ok" else e["ename"]
            for n, e in reply["user_expressions"].items()
        }
    finally:
        client.stop_channels()


def printed(connection_file: str, code: str, *parts: str) -> str:
    """Return what a cell of a held kernel prints, once it has all parts; they may come after the reply."""
    client = BlockingKernelClient(connection_file=connection_file)
    client.load_connection_file()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=SECONDS)
        client.execute(code)
        text = ""
        while not all(part in text for part in parts):
            message = client.get_iopub_msg(timeout=SECONDS)
            text += message["content"]["text"] if message["msg_type"] == "stream" else ""
        return text
    finally:
        client.stop_channels()


def until(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + SECONDS
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def command(gateway: GatewayProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a subcommand by the right to read the state directory alone: no token, no URL."""
    return subprocess.run(
        [sys.executable, "-m", "gateway", *arguments], cwd=ROOT, env=environment(gateway), capture_output=True, text=True,
        timeout=SECONDS, check=False,
    )  # fmt: skip


def environment(gateway: GatewayProcess) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "PYTHONPATH") if name in os.environ}
    return {**kept, "STATE_DIR": str(gateway.state_dir / "s"), "TERM": "dumb"}


def test_console_attached_by_the_answers_command_stands_where_the_job_failed(gateway: GatewayProcess) -> None:
    answer = with_orders(gateway, FAILS, hold_minutes=5)
    assert (answer.status, answer.body["code"]) == (500, "user_error")
    told = answer.body["held"]
    assert any(told["attach"] in event["message"] for event in gateway.log("orders"))
    console = pexpect.spawn(
        "/bin/sh",
        ["-c", told["attach"]],
        encoding="utf-8",
        timeout=SECONDS,
        dimensions=(60, 200),
        env=environment(gateway),
    )
    try:
        console.expect("division by zero|ZeroDivisionError|a job that failed")
        console.expect(r"In \[1\]")
        console.sendline("list(tables), orders.shape, script.share.__name__")
        console.expect(r"\['orders'\], \(2, 2\), 'share'")
        console.expect(r"In \[")
        console.sendline("'last', _[1]")
        console.expect(r"\('last', \(2, 2\)\)")
        console.expect(r"In \[")
        console.sendline("!echo a command of {len(orders)} 'wor'ds")
        console.expect("a command of 2 words")
        console.expect(r"In \[")
        console.sendline("%debug")
        console.expect(r"return\S* part / whole")
        console.expect("ipdb>")
        console.sendline("p 'part is', part")
        console.expect(r"\('part is', 13\)")
        console.expect("ipdb>")
        console.sendline("up")
        console.expect(r"return\S* share")
        console.expect("ipdb>")
        console.sendline("p 'mean is', orders['amount'].mean()")
        console.expect(r"'mean is', (np\.float64\()?6\.5")
        console.sendline("q")
        console.expect(r"In \[")
        console.sendline("exit")
        console.expect(pexpect.EOF)
    finally:
        console.close(force=True)
    assert [kernel["id"] for kernel in held(gateway)] == [told["id"]], "leaving the console does not end the kernel"


def test_held_kernel_costs_no_slot_and_is_counted_listed_and_released(gateway: GatewayProcess) -> None:
    before = descendants(gateway.pid)
    first = gateway.execute("def transform():\n    return 5", "held", hold_minutes=5).body
    assert first["code"] == "invalid_return"
    following = gateway.execute("import pandas as pd\ndef transform():\n    return pd.DataFrame({'x': [1]})", "next")
    assert following.status == 200, "the one slot is free"
    assert gateway.request("GET", "/v1/status").body["kernels"]["held"] == 1
    assert b"transform_gateway_held_kernels 1.0" in gateway.request("GET", "/metrics").raw
    listed = command(gateway, "held")
    assert listed.returncode == 0, listed.stderr
    for text in (first["held"]["id"], "job held: invalid_return", first["held"]["attach"]):
        assert text in listed.stdout
    file = Path(first["held"]["connection_file"])
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert evaluate(str(file), returned="returned") == {"returned": "5"}

    assert command(gateway, "release", first["held"]["id"]).returncode == 0
    assert not file.exists()
    assert held(gateway) == []
    again = command(gateway, "release", first["held"]["id"])
    assert (again.returncode, "no kernel" in again.stderr) == (1, True)
    assert until(lambda: len(descendants(gateway.pid)) <= len(before)), "its processes are gone"


@pytest.mark.parametrize("path", ["/v1/execute", "/v1/console"])
def test_held_kernel_shows_what_child_processes_print(gateway: GatewayProcess, path: str) -> None:
    failing = {"code": "def transform():\n    return 5", "request_id": "held", "hold_minutes": 5}
    body = gateway.request("POST", path, failing if path == "/v1/execute" else {}).body
    file = body.get("held", body)["connection_file"]
    code = "import os, subprocess\nsubprocess.run(['echo', 'by a child'])\nos.write(2, b'by the descriptor')"
    assert len(printed(file, code, "by a child\n", "by the descriptor")) == 28, "once"


WORKS = """
import time
def transform(orders):
    total = int(orders["amount"].sum())
    print("working", flush=True)
    while True:
        time.sleep(0.05)
"""


def test_a_running_job_is_ended_and_held_by_a_later_wish_with_its_variables(gateway: GatewayProcess) -> None:
    with ThreadPoolExecutor(1) as pool:
        ending = pool.submit(with_orders, gateway, WORKS)
        assert until(lambda: any(event["message"] == "working" for event in gateway.log("orders")))
        (job,) = gateway.request("GET", "/v1/jobs?state=running").body["jobs"]
        path = f"/v1/jobs/{job['job_id']}/hold"
        assert gateway.request("POST", path, {"minutes": 0}).status == 400
        answer = gateway.request("POST", path, {"minutes": 5})
        assert (answer.status, answer.body["execution_id"]) == (200, job["job_id"])
        ended = ending.result(SECONDS).body
    assert (ended["code"], ended["cancelled"]) == ("cancelled", True)
    told = gateway.request("GET", f"/v1/jobs/{job['job_id']}").body["result"]["held"]
    assert told == ended["held"]
    assert evaluate(told["connection_file"], rows="len(orders)", failure="type(failure).__name__") == {
        "rows": "2",
        "failure": "'KeyboardInterrupt'",
    }
    assert gateway.request("POST", path, {"minutes": 5}).status == 404


def test_full_house_refuses_to_hold_and_says_so_without_ending_anything(gateway: GatewayProcess) -> None:
    bad = "def transform():\n    raise KeyError('x')"
    kept = [gateway.execute(bad, n, hold_minutes=5).body["held"]["id"] for n in range(2)]
    third = gateway.execute(bad, 3, hold_minutes=5).body
    assert "held" not in third
    assert "HELD_KERNELS" in third["not_held"]
    assert any(third["not_held"] in event["message"] for event in gateway.log(3))
    assert [kernel["id"] for kernel in held(gateway)] == kept
    assert gateway.request("POST", "/v1/console", {}).status == 409
    assert command(gateway, "release", "--all").returncode == 0
    assert "held" in gateway.execute(bad, 4, hold_minutes=5).body


def without_figures(text: str) -> str:
    """Mask sizes in a text: the memory in use before an allocation differs by a few pages from kernel to kernel."""
    return re.sub(r"[\d.]+ [KMG]iB", "N", text)


FAILURES = {
    "user_error": "def transform():\n    return {}['x']",
    "at import": "import nothing_of_this_name",
    "syntax_error": "def transform(:\n    pass",
    "no_transform": "x = 1",
    "missing_table": "def transform(orders, customers):\n    return orders",
    "invalid_return": "def transform():\n    return 'text'",
    "exited": "import sys\ndef transform():\n    sys.exit(7)",
    "output_invalid": "import pandas as pd\ndef transform():\n    return pd.DataFrame({'x': [object()]})",
    "memory": "import numpy as np\ndef transform():\n    return np.ones(10**10)",
}


@pytest.mark.parametrize("name", FAILURES)
def test_holding_the_kernel_does_not_change_the_failure(gateway: GatewayProcess, name: str) -> None:
    plain = gateway.execute(FAILURES[name], "plain").body
    kept = gateway.execute(FAILURES[name], "kept", hold_minutes=5).body
    assert kept["held"]["code"] == plain["code"]
    for member in ("code", "exit_code", "timeout"):
        assert kept[member] == plain[member]
    assert without_figures(kept["error"]) == without_figures(plain["error"])
    assert evaluate(kept["held"]["connection_file"], last="__import__('sys').last_value is failure") == {"last": "True"}


def test_timed_out_job_is_held_where_it_was_interrupted(gateway: GatewayProcess) -> None:
    code = "import time\ndef transform(orders):\n    step = 17\n    while True:\n        time.sleep(0.01)"
    answer = with_orders(gateway, code, timeout=3, hold_minutes=5).body
    assert (answer["code"], answer["timeout"]) == ("timeout", True)
    innermost = "[f.f_locals['step'] for f, _ in __import__('traceback').walk_tb(failure.__traceback__) if 'step' in f.f_locals]"
    outermost = "__import__('sys').last_traceback.tb_frame.f_code.co_name"
    found = evaluate(answer["held"]["connection_file"], steps=innermost, first=outermost)
    assert found == {"steps": "[17]", "first": "'transform'"}, "no frame of ours stands above the user's"


def test_job_that_ran_out_of_memory_is_held_with_its_variables(gateway: GatewayProcess) -> None:
    """Its frames are kept, though a job that is not held lets go of them to describe its failure."""
    code = "def transform(orders):\n    rows = []\n    while True:\n        rows.append(bytearray(100_000))"
    answer = with_orders(gateway, code, hold_minutes=5).body
    assert answer["code"] == "memory_limit"
    held_bytes = "sum(len(b) for f, _ in __import__('traceback').walk_tb(failure.__traceback__) for b in f.f_locals.get('rows', ()))"
    found = evaluate(answer["held"]["connection_file"], held_bytes=held_bytes, shape="orders.shape")
    assert int(found["held_bytes"]) > 100 << 20
    assert found["shape"] == "(2, 2)"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import os\ndef transform():\n    os._exit(3)", "its process has ended"),
        ("import os, signal\ndef transform():\n    os.kill(os.getpid(), signal.SIGKILL)", "its process has ended"),
    ],
)
def test_dead_kernel_is_not_held_and_the_answer_says_why(gateway: GatewayProcess, code: str, reason: str) -> None:
    answer = gateway.execute(code, "dead", hold_minutes=5).body
    assert answer["not_held"] == reason
    assert held(gateway) == []


def test_neither_success_nor_a_cancelled_job_is_held(gateway: GatewayProcess) -> None:
    good = gateway.execute(
        "import pandas as pd\ndef transform():\n    return pd.DataFrame({'x': [1]})", 1, hold_minutes=5
    )
    assert good.status == 200
    assert not {"held", "not_held"} & set(good.body)
    with ThreadPoolExecutor(1) as pool:
        going = pool.submit(
            gateway.execute, "import time\ndef transform():\n    print('begun')\n    time.sleep(60)", 2, hold_minutes=5
        )
        gateway.wait_for_line(2, "begun")
        gateway.request("POST", "/v1/cancel", {"request_id": 2})
        assert not {"held", "not_held"} & set(going.result(timeout=SECONDS).body)
    assert held(gateway) == []


def test_success_claimed_by_a_job_that_lives_on_is_not_taken(gateway: GatewayProcess) -> None:
    """The verdict on anything but a failure comes when nothing of the job lives."""
    code = (
        "import json\n"
        "import transform_shim.job.run as job\n"
        "def transform():\n"
        "    job.write_result = lambda path, result: path.write_text(json.dumps({'version': 1, 'outcome': 'ok', 'code': 'ok'}))\n"
        "    raise ValueError('a failure that claims success')\n"
    )
    answer = gateway.execute(code, "liar", hold_minutes=5)
    assert answer.status == 500
    assert answer.body["code"] == "output_missing"
    assert held(gateway) == []


def test_list_of_held_kernels_sends_nothing_of_a_job_to_the_terminal(gateway: GatewayProcess) -> None:
    """The list is read as root, and a job and its caller choose what it might show."""
    code = (
        "import json\n"
        "from transform_shim.job import run as job\n"
        "forged = json.dumps({'version': 1, 'outcome': 'error', 'code': '\\x1b[2J'})\n"
        "job.write_result = lambda path, result: path.write_text(forged)\n"
        "x = 1"
    )
    answer = gateway.execute(code, "to clear\x1b[2J", hold_minutes=5)
    assert (answer.body["code"], answer.body["held"]["code"]) == ("internal", "internal")
    listed = command(gateway, "held")
    assert "job to clear" in listed.stdout
    assert "\x1b" not in listed.stdout


def test_endless_output_does_not_delay_the_answer(gateway: GatewayProcess) -> None:
    code = (
        "import subprocess\n"
        "def transform():\n"
        "    for _ in range(3):\n"
        "        subprocess.Popen(['yes', 'x' * 1000])\n"
        "    raise ValueError('failed')\n"
    )
    answer = gateway.execute(code, "flood", hold_minutes=5)
    assert answer.body["code"] == "user_error"
    assert "held" in answer.body

    def lines() -> int:
        return int(gateway.request("GET", "/v1/logs?request_id=flood").body["next_offset"])

    before = lines()
    # the gateway goes on reading, or printing would block; later output is not part of the job's log
    assert gateway.execute("def transform():\n    return 1", "after").body["code"] == "invalid_return"
    assert lines() == before
    assert gateway.request("POST", "/v1/release", {"id": answer.body["held"]["id"]}).status == 200


def test_expiry_ends_it(gateway: GatewayProcess) -> None:
    file = Path(gateway.execute("x = 1", 1, hold_minutes=0.02).body["held"]["connection_file"])
    assert until(lambda: not held(gateway))
    assert not file.exists()


def test_kernel_that_dies_while_it_is_held_is_forgotten(gateway: GatewayProcess) -> None:
    answer = gateway.execute("def transform():\n    return 1", 1, hold_minutes=5).body
    client = BlockingKernelClient(connection_file=answer["held"]["connection_file"])
    client.load_connection_file()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=SECONDS)
        client.execute("import os; os._exit(0)")
        assert until(lambda: not held(gateway))
    finally:
        client.stop_channels()


@pytest.mark.parametrize("minutes", [-1, "5", 10**9])
def test_minutes_that_make_no_sense_are_refused(gateway: GatewayProcess, minutes: Any) -> None:
    answer = gateway.execute("x = 1", 1, hold_minutes=minutes)
    assert (answer.status, answer.body["field"]) == (400, "hold_minutes")


@pytest.mark.parametrize("minutes", [0, -1, "5"])
def test_console_for_no_time_is_refused(gateway: GatewayProcess, minutes: Any) -> None:
    answer = gateway.request("POST", "/v1/console", {"minutes": minutes})
    assert (answer.status, answer.body["field"]) == (400, "minutes")


def test_first_form_holds_as_well(gateway: GatewayProcess) -> None:
    request = {"code": "x = 1", "request_id": 5, "output_url": "http://127.0.0.1:9/o", "hold_minutes": 5}
    answer = gateway.request("POST", "/execute", request).body
    assert answer["code"] == "no_transform"
    assert [kernel["id"] for kernel in held(gateway)] == [answer["held"]["id"]]


def test_token_of_the_state_directory_serves_for_held_kernels_only(gateway: GatewayProcess) -> None:
    running = find_running(gateway.state_dir / "s")
    assert running is not None
    headers = {"Authorization": f"Bearer {running.token}"}
    assert gateway.request("GET", "/v1/held", headers=headers).status == 200
    assert gateway.request("GET", "/v1/held", headers={"Authorization": "Bearer x"}).status == 401
    assert gateway.request("GET", "/v1/logs", headers=headers).status == 401
    assert gateway.request("POST", "/v1/execute", {"code": "x", "request_id": 1}, headers=headers).status == 401


def test_public_status_does_not_show_held_kernels(gateway: GatewayProcess) -> None:
    gateway.execute("x = 1", 1, hold_minutes=5)
    shown = gateway.request("GET", "/v1/status", headers={"Authorization": ""}).body
    assert "held" not in shown["result"]
    assert "held" in gateway.request("GET", "/v1/status").body["result"]


def test_console_gets_a_kernel_of_the_running_gateway_and_gives_it_back(gateway: GatewayProcess) -> None:
    console = pexpect.spawn(
        sys.executable, ["-m", "gateway", "console"], cwd=str(ROOT), encoding="utf-8", timeout=SECONDS,
        dimensions=(60, 200), env=environment(gateway),
    )  # fmt: skip
    try:
        console.expect(r"In \[1\]")
        assert [(kernel["code"], kernel["request_id"]) for kernel in held(gateway)] == [(None, None)]
        console.sendline("import os; 'pid', os.getpid()")
        console.expect(r"'pid', (\d+)")
        console.expect(r"In \[")
        console.sendline("'last', _[0]")
        console.expect(r"\('last', 'pid'\)")
        console.sendline("try: open('/etc/shadow')\nexcept OSError as e: print(type(e).__name__)\n")
        console.expect("PermissionError|FileNotFoundError")
        console.sendline("print('be' 'gun'); exec('while True: pass')")
        console.expect("begun")
        console.sendintr()
        console.expect("KeyboardInterrupt")
        console.sendline("exit")
        console.expect(pexpect.EOF)
    finally:
        console.close(force=True)
    assert console.exitstatus == 0
    assert until(lambda: not held(gateway))


def test_console_asks_which_where_several_are_held(gateway: GatewayProcess) -> None:
    ids = {gateway.execute("x = 1", number, hold_minutes=5).body["held"]["id"] for number in (1, 2)}
    unknown = command(gateway, "console", "nosuch")
    assert (unknown.returncode, "no kernel 'nosuch' is held" in unknown.stderr) == (1, True)
    done = command(gateway, "console")
    assert done.returncode == 2
    assert "2 kernels are held; name one, or --new:" in done.stderr
    assert all(name in done.stderr for name in ids)


def test_setting_holds_every_failure_a_request_may_decline_and_the_end_of_the_gateway_ends_all(
    start_gateway: Callable[..., GatewayProcess],
) -> None:
    gateway = start_gateway(HOLD_FAILED="5", HELD_KERNELS="1")
    assert "held" not in gateway.execute("x = 1", 1, hold_minutes=0).body
    assert "held" in gateway.execute("x = 1", 2).body
    processes = descendants(gateway.pid)
    gateway.stop()
    assert not [pid for pid in processes if alive(pid)]


def test_without_a_gateway_console_says_how_to_have_one(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "console", "--state-dir", str(tmp_path)], cwd=ROOT, capture_output=True,
        text=True, timeout=SECONDS, check=False, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert done.returncode == 3
    assert "no running gateway uses the state directory" in done.stderr
