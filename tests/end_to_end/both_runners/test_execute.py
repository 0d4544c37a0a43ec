"""A transform runs from request to result, in a kernel of its own."""

from __future__ import annotations

import hashlib
import json
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from gateway.http.schemas.fields import PRELOADED_MODULES
from tests.support.gateway_process import GatewayProcess

SIMPLE = "import pandas as pd\ndef transform():\n    return pd.DataFrame({'x': [1, 2]})"


def test_result_is_kept_for_a_request_without_urls(running_gateway: GatewayProcess) -> None:
    answer = running_gateway.execute("print('at import')\n" + SIMPLE, 41)
    assert answer.status == 200, answer.raw
    assert (answer.body["exit_code"], answer.body["timeout"], answer.body["request_id"]) == (0, False, 41)
    output = running_gateway.request("GET", "/v1/results/41/output")
    assert output.raw == b'{"x":1}\n{"x":2}\n'
    assert answer.body["sha256"] == hashlib.sha256(output.raw).hexdigest()
    manifest = running_gateway.request("GET", "/v1/results/41/manifest").body
    assert [(field["name"], field["base_type"]) for field in manifest["fields"]] == [("x", "Integer")]
    events = running_gateway.request("GET", "/v1/results/41/events").raw.decode().splitlines()
    messages = [json.loads(event)["message"] for event in events]
    assert messages[0] == "at import"
    assert messages[-2].startswith("Successfully saved 2 rows")
    assert messages[-1].startswith("Successfully saved output manifest with 1 fields")


def test_manifest_that_no_answer_can_hold_is_left_out(running_gateway: GatewayProcess) -> None:
    """The job may write any manifest: it is delivered as it is, and the answer says how the job ended."""
    forge = """
import pathlib
from transform_shim.job import run
write_output = run.write_output
def forged(frame, output_format, output_path, manifest_path, *more, **options):
    written = write_output(frame, output_format, output_path, manifest_path, *more, **options)
    pathlib.Path(manifest_path).write_text('{"fields": ' + "[" * DEPTH + "]" * DEPTH + "}")
    return written
run.write_output = forged
"""
    for depth in (190, 300, 900):
        code = forge.replace("DEPTH", str(depth)) + SIMPLE
        answer = running_gateway.execute(code, "forged", inline=True)
        assert (answer.status, answer.body["exit_code"]) == (200, 0), answer.raw
        assert answer.body["output"] == '{"x":1}\n{"x":2}\n'
        assert (answer.body["manifest"] is None) == (depth > 200)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_of_multiprocessing_run_functions_of_the_script(running_gateway: GatewayProcess, method: str) -> None:
    code = f"""
import multiprocessing
import pandas as pd

def put(results, value):
    results.send(value * value)

def transform():
    context = multiprocessing.get_context("{method}")
    received, results = context.Pipe(duplex=False)
    process = context.Process(target=put, args=(results, 3))
    process.start()
    process.join()
    return pd.DataFrame({{"v": [process.exitcode, 0 if process.exitcode else received.recv()]}})
"""
    answer = running_gateway.execute(code, f"multiprocessing-{method}", inline=True, timeout=60)
    assert answer.body.get("output") == '{"v":0}\n{"v":9}\n', answer.raw


def test_large_code_arrives_whole(running_gateway: GatewayProcess) -> None:
    """Sources of 60 MB, near the limit of a body: half of them a literal of the script, the rest a library module."""
    text, lines = "é" + "x" * 19_999_999, "# a line of a module that nobody reads\n" * 1_000_000
    script = f"import common\nimport pandas as pd\nTEXT = '{text}'\n"
    script += "def transform():\n    return pd.DataFrame({'n': [len(TEXT), common.N]})"
    answer = running_gateway.execute(script, "large-code", library={"common.py": f"{lines}N = 7\n"})
    assert (answer.status, answer.body["code"]) == (200, "ok"), answer.raw
    output = running_gateway.request("GET", "/v1/results/large-code/output")
    assert output.raw == b'{"n":20000000}\n{"n":7}\n'


def test_code_that_python_cannot_compile_within_the_memory_limit_says_so(running_gateway: GatewayProcess) -> None:
    answer = running_gateway.execute("a = 1\n" * 3_000_000 + SIMPLE, "compiled")
    assert (answer.status, answer.body["code"]) == (500, "memory_limit"), answer.raw
    assert answer.body["error"].endswith("while it was imported")


def test_a_library_module_with_the_name_of_a_loaded_one_is_refused(running_gateway: GatewayProcess) -> None:
    """Python would not look for it, so the script would import another module than the one of the request."""
    script = (
        "import sys\nimport pandas as pd\nNAMES = {name.partition('.')[0] for name in sys.modules}\n"
        "def transform():\n    return pd.DataFrame({'n': sorted(NAMES)})"
    )
    output = running_gateway.execute(script, "modules", inline=True).body["output"]
    loaded = {json.loads(line)["n"] for line in output.splitlines()}
    assert {"json", "pandas", "six"} <= loaded
    assert {name for name in loaded - sys.stdlib_module_names if name[0] != "_"} <= PRELOADED_MODULES
    for name, where in {"json": "Python's standard library", "pandas": "the packages of every job"}.items():
        answer = running_gateway.execute(SIMPLE, "shadow", library={f"{name}.py": ""})
        text = f"library: '{name}.py' is the name of a module of {where}, which an import would find; choose another"
        assert (answer.status, answer.body["error"]) == (400, text)


def test_an_id_that_comes_again_runs_again(running_gateway: GatewayProcess) -> None:
    first = running_gateway.execute(SIMPLE, "again")
    second = running_gateway.execute(SIMPLE.replace("[1, 2]", "[3]"), "again")
    assert (first.status, second.status) == (200, 200)
    assert running_gateway.request("GET", "/v1/results/again/output").raw == b'{"x":3}\n'


def test_jobs_share_nothing(running_gateway: GatewayProcess) -> None:
    leave = (
        "import builtins, os, warnings\nimport pandas as pd\n"
        "builtins.leaked = 1\nos.environ['LEAKED'] = '1'\npd.DataFrame.leaked = 1\nopen('leaked.txt', 'w').write('x')\n"
        "os.chdir('/')\n" + SIMPLE
    )
    look = (
        "import builtins, os\nimport pandas as pd\n"
        "def transform():\n"
        "    seen = [hasattr(builtins, 'leaked'), 'LEAKED' in os.environ, hasattr(pd.DataFrame, 'leaked'), os.path.exists('leaked.txt')]\n"
        "    return pd.DataFrame({'seen': seen, 'pid': os.getpid()})"
    )
    assert running_gateway.execute(leave, "leaver").status == 200
    assert running_gateway.execute(look, "looker").status == 200
    rows = running_gateway.request("GET", "/v1/results/looker/output").raw.splitlines()
    assert [json.loads(row)["seen"] for row in rows] == [False] * 4


def test_programs_do_not_colour_the_log_of_a_job(running_gateway: GatewayProcess) -> None:
    """ipykernel asks for colours in the environment, because notebooks show them."""
    script = (
        "import os\nimport pandas as pd\ndef transform():\n"
        "    return pd.DataFrame({'n': sorted(n for n in os.environ if 'COLOR' in n), 't': os.environ['TERM']})"
    )
    assert running_gateway.execute(script, "colours", inline=True).body["output"] == '{"n":"NO_COLOR","t":"dumb"}\n'


def test_stdout_and_stderr_and_children_keep_their_order(running_gateway: GatewayProcess) -> None:
    script = (
        "import subprocess, sys\nimport pandas as pd\n"
        "def transform():\n"
        "    print('out 1')\n"
        "    print('err 1', file=sys.stderr)\n"
        "    print('out 2')\n"
        "    subprocess.run(['sh', '-c', 'echo child out; echo child err >&2'], check=True)\n"
        "    print('err 2', file=sys.stderr)\n"
        "    return pd.DataFrame({'x': [1]})"
    )
    assert running_gateway.execute(script, "order").status == 200
    events = [(event["stream"], event["message"]) for event in running_gateway.log("order")]
    assert events[:3] == [("stdout", "out 1"), ("stderr", "err 1"), ("stdout", "out 2")]
    assert set(events[3:5]) == {("stdout", "child out"), ("stderr", "child err")}
    assert events[5] == ("stderr", "err 2")


def test_a_flood_of_output_keeps_head_and_tail(running_gateway: GatewayProcess) -> None:
    script = (
        "import pandas as pd\n"
        "def transform():\n"
        "    for i in range(100_000):\n"
        "        print('line', i, 'x' * 100)\n"
        "    return pd.DataFrame({'x': [1]})"
    )
    assert running_gateway.execute(script, "flood").status == 200
    messages = [event["message"] for event in running_gateway.log("flood")]
    assert messages[0].startswith("line 0 ")
    assert any("dropped" in message for message in messages)
    assert messages[-3].startswith("line 99999 ")
    assert messages[-2].startswith("Successfully saved")


def test_more_jobs_than_slots_wait_their_turn(running_gateway: GatewayProcess) -> None:
    def run(number: int) -> tuple[int, bytes]:
        script = f"import pandas as pd\ndef transform():\n    return pd.DataFrame({{'n': [{number}]}})"
        status = running_gateway.execute(script, f"turn-{number}").status
        return status, running_gateway.request("GET", f"/v1/results/turn-{number}/output").raw

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(run, range(8)))
    assert results == [(200, f'{{"n":{number}}}\n'.encode()) for number in range(8)]


def test_live_log_shows_while_the_job_runs_and_cancel_ends_it(running_gateway: GatewayProcess) -> None:
    script = "import time\ndef transform():\n    print('script started')\n    time.sleep(60)"
    with ThreadPoolExecutor(1) as pool:
        going = pool.submit(running_gateway.execute, script, 77)
        running_gateway.wait_for_line(77, "script started")
        assert running_gateway.request("GET", "/v1/logs?request_id=77").body["execution_id"] == 77
        assert running_gateway.request("POST", "/v1/cancel", {"request_id": "77"}).status == 404, "ids keep their type"
        assert running_gateway.request("POST", "/v1/cancel", {"request_id": 77}).status == 200
        answer = going.result(timeout=60)
    assert answer.status == 500
    assert (answer.body["cancelled"], answer.body["exit_code"]) == (True, -1)
    assert running_gateway.request("POST", "/v1/cancel", {"request_id": 77}).status == 404


def test_an_id_that_runs_now_is_refused(running_gateway: GatewayProcess) -> None:
    script = "import time\ndef transform():\n    print('script started')\n    time.sleep(60)"
    with ThreadPoolExecutor(1) as pool:
        going = pool.submit(running_gateway.execute, script, "busy-id")
        running_gateway.wait_for_line("busy-id", "script started")
        assert running_gateway.execute(SIMPLE, "busy-id").status == 409
        running_gateway.request("POST", "/v1/cancel", {"request_id": "busy-id"})
        assert going.result(timeout=60).body["code"] == "cancelled"


def test_a_time_out_that_is_over_before_the_job_begins_is_a_time_out(running_gateway: GatewayProcess) -> None:
    answer = running_gateway.execute(
        "import pandas as pd\ndef transform(): return pd.DataFrame({'n': [1]})", timeout=1e-9
    )
    assert (answer.status, answer.body["code"]) == (500, "timeout")
