"""A failing transform says the same wherever it is run: /v1/execute with files or URLs, the command line, %%transform and
%submit.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from gateway.client import TransformClient, TransformFailed
from gateway.core.errors import FailureCode
from tests.support.gateway_process import GatewayProcess
from tests.support.notebook_kernel import NotebookKernel
from tests.support.s3 import S3Server

ROOT = Path(__file__).parents[3]
SMALL_LIMITS = {
    "MEMORY_LIMIT_BYTES": "400000000",
    "DISK_LIMIT_BYTES": "40000000",
    "FILE_SIZE_LIMIT_BYTES": "20000000",
    "PROCESS_LIMIT": "30",
    "DESCRIPTOR_LIMIT": "100",
}
TIMEOUT_SECONDS = 15
FRAME = "import pandas as pd\n"

CASES = {
    FailureCode.USER_ERROR: "def transform(numbers):\n    return numbers.nothing",
    FailureCode.SYNTAX_ERROR: "def transform(:\n    pass",
    FailureCode.NO_TRANSFORM: "x = 1",
    FailureCode.INVALID_RETURN: "def transform():\n    return 'text'",
    FailureCode.MISSING_TABLE: "def transform(number):\n    return number",
    FailureCode.INPUT_INVALID: "def transform(numbers, broken):\n    return numbers",
    FailureCode.OUTPUT_INVALID: FRAME + "def transform():\n    return pd.DataFrame([[1, 2]], columns=['a', 'a'])",
    FailureCode.OUTPUT_SCHEMA_VIOLATED: FRAME + (
        "OUTPUT_SCHEMA = {'columns': {'a': {'type': 'number', 'min': 0}}}\n"
        "def transform():\n    return pd.DataFrame({'a': [1, -1]})"
    ),
    FailureCode.OUTPUT_MISSING: FRAME + (
        "from transform_shim.job import run as job\nwrite = job.write_result\n"
        "def after(path, result):\n    path.with_name('output').unlink()\n    write(path, result)\n"
        "def transform():\n    job.write_result = after\n    return pd.DataFrame({'x': [1]})"
    ),
    FailureCode.TIMEOUT: "import time\ndef transform():\n    time.sleep(60)",
    FailureCode.MEMORY_LIMIT: "def transform():\n    blocks = []\n    while True:\n        blocks.append(bytearray(9_000_000))",
    FailureCode.CPU_LIMIT: (
        "import resource\n"
        "def transform():\n    resource.setrlimit(resource.RLIMIT_CPU, (1, 9))\n    while True: pass"
    ),
    FailureCode.PROCESS_LIMIT: (
        "import threading, time\n"
        "def transform():\n    for _ in range(99):\n        threading.Thread(target=time.sleep, args=(9,), daemon=True).start()"
    ),
    FailureCode.DESCRIPTOR_LIMIT: "def transform():\n    return [open('/dev/null') for _ in range(200)]",
    FailureCode.FILE_SIZE_LIMIT: "def transform():\n    with open('big', 'wb') as file:\n        file.truncate(30_000_000)",
    FailureCode.DISK_LIMIT: (
        "import time\n"
        "def transform():\n    for i in range(9):\n        open(str(i), 'wb').write(bytes(9_000_000))\n    time.sleep(60)"
    ),
    FailureCode.KILLED: "import os\ndef transform():\n    os.kill(os.getpid(), 11)",
    FailureCode.EXITED: "import os\ndef transform():\n    os._exit(7)",
}  # fmt: skip
MORE_CASES = {
    "memory of children": (
        FailureCode.MEMORY_LIMIT,
        "import os, time\ndef transform():\n    for _ in range(4):\n        if os.fork() == 0:\n"
        "            block = b'x' * 150_000_000\n            time.sleep(20)\n            os._exit(0)\n    time.sleep(20)",
    ),
    "sys.exit": (FailureCode.EXITED, "import sys\ndef transform():\n    sys.exit(3)"),
    "import": (FailureCode.USER_ERROR, "import no_such_module\ndef transform():\n    pass"),
}
NOT_BY_A_SCRIPT = {
    FailureCode.CANCELLED,  # by whoever waits
    FailureCode.INPUT_UNAVAILABLE,  # by the storage
    FailureCode.OUTPUT_UPLOAD_FAILED,
    FailureCode.KERNEL_START_FAILED,  # by the host
    FailureCode.SANDBOX_FAILED,
    FailureCode.SHUTTING_DOWN,  # by the operator
    FailureCode.LAUNCHER_LOST,  # by a fault of the machine
    FailureCode.GATEWAY_RESTARTED,
    FailureCode.HOST_LOST,
    FailureCode.QUEUE_TIMEOUT,  # by other jobs
    FailureCode.RESULT_NOT_KEPT,  # by the gateway's own disk
    FailureCode.GATEWAY_DISK_FAILED,
    FailureCode.INTERNAL,  # by ourselves
}
ALL = {str(code): (code, script) for code, script in CASES.items()} | MORE_CASES


@dataclass(frozen=True)
class Outcome:
    """The text that a person sees."""

    code: str
    message: str
    exit_code: int

    @classmethod
    def of(cls, code: str, message: str, exit_code: int) -> Outcome:
        # how much memory, time or space was used until the limit was noticed differs from run to run
        return cls(code, re.sub(r"(peak|used|has|at most) [0-9.]+", r"\1 N", message), exit_code)


@dataclass(frozen=True)
class Places:
    """The ways to run a transform, over the same limits and tables."""

    directory: Path
    storage: S3Server
    gateway: GatewayProcess
    notebook: NotebookKernel

    def by_http(self, script: str, timeout: float) -> Outcome:
        tables = {"numbers": self.directory / "numbers.jsonl", "broken": self.directory / "broken.jsonl"}
        manifests = {"broken": self.directory / "broken.manifest.json"}
        client = TransformClient(self.gateway.url, self.gateway.token)
        with pytest.raises(TransformFailed) as caught:
            client.run(script, tables, manifests=manifests, timeout=timeout)
        return Outcome.of(caught.value.code, caught.value.message, caught.value.exit_code)

    def by_urls(self, script: str, timeout: float) -> Outcome:
        url = self.storage.get_url
        answer = self.gateway.execute(
            script,
            "by-urls",
            timeout=timeout,
            table_mapping={"numbers": url("numbers.jsonl"), "broken": url("broken.jsonl")},
            manifest_mapping={"broken": url("broken.manifest.json")},
            output_url=self.storage.put_url("output"),
        ).body
        return Outcome.of(answer["code"], answer["error"], answer["exit_code"])

    def by_command(self, script: str, timeout: float) -> Outcome:
        (self.directory / "script.py").write_text(script)
        tables = ["--table", "numbers=numbers.jsonl", "--table", "broken=broken.jsonl"]
        done = subprocess.run(
            [sys.executable, "-m", "gateway", "run", "script.py", *tables, "--manifest", "broken=broken.manifest.json",
             "--timeout", str(timeout), "--out", "out.csv"],
            cwd=self.directory,
            env={**environment(), "TRANSFORM_GATEWAY_URL": self.gateway.url, "AUTH_TOKEN": self.gateway.token},
            capture_output=True, text=True, timeout=90, check=False,
        )  # fmt: skip
        code, _, message = done.stderr.rpartition("transform-gateway: ")[2].rstrip("\n").partition(": ")
        if message.endswith("the reason is above"):
            message = re.findall(r"^ERROR: (.*)", done.stderr + done.stdout, re.MULTILINE)[-1]
        return Outcome.of(code, message, done.returncode)

    def by_magic(self, script: str, timeout: float) -> Outcome:
        self._run(f"%%transform --timeout {timeout}\n{script}")
        return self._last()

    def by_submit(self, script: str, timeout: float) -> Outcome:
        self._run(f"%submit --timeout {timeout}")
        return self._last()

    def _run(self, cell: str) -> None:
        done = self.notebook.run(cell)
        assert done.status == "ok", done
        assert "Traceback" not in done.error

    def _last(self) -> Outcome:
        code, message, exit_code = eval(self.notebook.value("last_run.code, last_run.error, last_run.exit_code"))
        return Outcome.of(code, message, exit_code)


def environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "VIRTUAL_ENV") if name in os.environ}
    return kept | {"PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, gateway_type: type[GatewayProcess]) -> Iterator[Places]:
    directory = tmp_path_factory.mktemp("parity")
    (directory / "numbers.jsonl").write_text('{"n": 1}\n{"n": 2}\n')
    (directory / "broken.jsonl").write_text('{"s": "a", "n": 1}\n{"s": "b", "n": "two"}\n')
    fields = '{"fields": [{"name": "s", "base_type": "Text"}, {"name": "n", "base_type": "Integer"}]}'
    (directory / "broken.manifest.json").write_text(fields)
    with gateway_type(SMALL_LIMITS) as gateway, S3Server() as storage:
        for path in directory.iterdir():
            storage.put(path.name, path.read_bytes())
        named = {"TRANSFORM_GATEWAY_URL": gateway.url, "AUTH_TOKEN": gateway.token}
        with NotebookKernel(directory, named, gateway=gateway) as notebook:
            notebook.run("%table numbers numbers.jsonl")
            notebook.run("%table broken broken.jsonl --manifest broken.manifest.json")
            yield Places(directory, storage, gateway, notebook)


def test_every_cause_that_a_script_can_be_is_among_the_cases() -> None:
    assert set(CASES) | NOT_BY_A_SCRIPT == set(FailureCode)


@pytest.mark.parametrize("case", ALL)
def test_same_code_and_message_everywhere(places: Places, case: str) -> None:
    expected, script = ALL[case]
    timeout = 1 if expected is FailureCode.TIMEOUT else TIMEOUT_SECONDS
    outcome = places.by_http(script, timeout)
    assert outcome.code == expected
    assert outcome.message
    assert places.by_urls(script, timeout) == outcome
    assert places.by_magic(script, timeout) == outcome
    assert places.by_submit(script, timeout) == outcome
    by_command = places.by_command(script, timeout)
    assert (by_command.code, by_command.message) == (outcome.code, outcome.message)
    # a process's own exit code is 0 to 255; any other is reported as 1
    assert by_command.exit_code == (outcome.exit_code if 1 <= outcome.exit_code <= 255 else 1)
