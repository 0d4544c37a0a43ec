"""transform() runs where no event loop runs, as in a plain Python process, though a kernel has one in the same thread."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable

import pytest

from tests.support.gateway_process import GatewayProcess
from tests.transform_shim.jobs import Outcome

Job = Callable[..., Outcome]

ASYNC = {
    "run": "return asyncio.run(later())",
    "run twice": "asyncio.run(later()); return asyncio.run(later())",
    "runner": "with asyncio.Runner() as runner: return runner.run(later())",
    "a loop of its own": "return asyncio.new_event_loop().run_until_complete(later())",
    "the loop that there is": "return asyncio.get_event_loop().run_until_complete(later())",
    "in a thread": "with ThreadPoolExecutor() as pool: return pool.submit(asyncio.run, later()).result()",
    "a signal handler": "return asyncio.run(with_signal())",
    "an asynchronous generator": "return asyncio.run(of_generator())",
    "none": "return 1 if asyncio._get_running_loop() is None else 0",
}
CODE = """
import asyncio, os, signal
from concurrent.futures import ThreadPoolExecutor
import pandas as pd

async def later():
    await asyncio.sleep(0)
    assert asyncio.current_task() is not None
    return 1

async def with_signal():
    came = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, came.set)
    os.kill(os.getpid(), signal.SIGUSR1)
    await asyncio.wait_for(came.wait(), 60)
    return 1

async def of_generator():
    async def numbers():
        for number in (0, 1):
            yield number
    return [number async for number in numbers()][-1]

def compute():
    BODY

def transform():
    return pd.DataFrame({"n": [compute()]})
"""
STATE = """
import asyncio, json, signal, sys, threading

def state():
    handlers = {number.name: str(signal.getsignal(number)) for number in sorted(signal.valid_signals()) if hasattr(number, "name")}
    return json.dumps({
        "handlers": {name: text.partition(" at ")[0] for name, text in handlers.items()},
        "wakeup": signal.set_wakeup_fd(-1),
        "main": threading.current_thread() is threading.main_thread(),
        "hooks": str(sys.get_asyncgen_hooks()),
        "policy": str(type(asyncio.get_event_loop_policy())),
    })
"""
IN_JOB = f"{STATE}\nimport pandas as pd\ndef transform():\n    print(state())\n    return pd.DataFrame()\n"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("in_loop", [False, True])
@pytest.mark.parametrize("way", [way for way in ASYNC if sys.version_info < (3, 14) or way != "the loop that there is"])
def test_a_loop_of_the_scripts_own_works(job: Job, way: str, in_loop: bool) -> None:
    outcome = job(CODE.replace("BODY", ASYNC[way]), in_loop=in_loop)
    assert outcome.result["code"] == "ok", outcome.stderr
    assert outcome.rows == [{"n": 1}]
    assert outcome.status == 0


def test_a_loop_at_import_works(job: Job) -> None:
    code = "import asyncio\nimport pandas as pd\nasyncio.run(asyncio.sleep(0))\ndef transform():\n    return pd.DataFrame({'a': [1]})"
    assert job(code, in_loop=True).result["code"] == "ok"


@pytest.mark.parametrize("wait", ["asyncio.run(asyncio.sleep(60))", "time.sleep(60)"])
def test_interrupt_reaches_the_script_and_the_kernels_loop_continues(job: Job, wait: str) -> None:
    code = f"import asyncio, time\ndef transform():\n    print('waiting')\n    {wait}\n"
    outcome = job(code, in_loop=True, interrupt_when=b"waiting")
    assert outcome.result["code"] == "user_error"
    assert outcome.result["message"] == "Interrupted in transform()"
    assert outcome.status == 0


def test_a_failure_in_a_coroutine_has_its_line(job: Job) -> None:
    code = "import asyncio\nasync def broken():\n    1 / 0\ndef transform():\n    asyncio.run(broken())\n"
    assert job(code, in_loop=True).result["message"].endswith("in broken() (script.py, line 3)")


def test_job_of_a_gateway_is_as_a_plain_process(running_gateway: GatewayProcess) -> None:
    plain = subprocess.run(
        [sys.executable, "-c", f"{STATE}\nprint(state())"],
        capture_output=True,
        text=True,
        check=True,
        # a shell's background job ignores SIGINT, and so would this process; the launcher sets it back
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert running_gateway.execute(IN_JOB, "state").status == 200
    found = json.loads(running_gateway.log("state")[0]["message"])
    wanted = json.loads(plain.stdout)
    # a job outlives the signals that systemd sends to a whole service, so that it can finish in a drain
    for state in (found, wanted):
        del state["handlers"]["SIGTERM"], state["handlers"]["SIGHUP"]
    assert found == wanted


def test_duckdb_draws_no_progress_into_a_job(running_gateway: GatewayProcess) -> None:
    """It does so where the process looks interactive, for queries of two seconds and more."""
    code = """
    import duckdb
    def transform():
        return duckdb.connect().sql("select current_setting('enable_progress_bar') as draws")
    """
    assert running_gateway.execute(textwrap.dedent(code), "bar", inline=True).body["output"] == '{"draws":false}\n'
