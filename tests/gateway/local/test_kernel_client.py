"""A kernel's messages only tell when to look for its result, whatever they contain."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from jupyter_client.session import Session

from gateway.core.errors import FailureCode, JobFailed
from gateway.local.kernel_client import FLOOD_BYTES, KernelClient, resident_bytes, shared_context
from gateway.local.kernel_start import _or_death
from kernel_spec.protocol.values import ExitReport

KEY = "the key of this test"


@asynccontextmanager
async def client_of(mode: str, directory: Path) -> AsyncIterator[KernelClient]:
    """Start a misbehaving kernel and yield the client with it; both are ended afterwards."""
    program, prefix = Path(__file__).with_name("misbehaving_kernel.py"), str(directory / "k")
    command = [sys.executable, str(program), prefix, KEY, mode]
    # blocking for a moment: nothing else runs in this loop
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:  # noqa: ASYNC220
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"bound\n"
            async with shared_context() as context:
                ports = {"shell_port": 1, "iopub_port": 2, "stdin_port": 3, "control_port": 4, "hb_port": 5}
                session = Session(key=KEY.encode())
                client = KernelClient(context, {"transport": "ipc", "ip": prefix, **ports}, session)
                try:
                    yield client
                finally:
                    client.close()
        finally:
            process.kill()


async def returns(step: Coroutine[None, None, None], within_seconds: float) -> bool:
    task = asyncio.ensure_future(step)
    done, _ = await asyncio.wait({task}, timeout=within_seconds)
    if not done:
        task.cancel()
        await asyncio.wait({task})
    return bool(done)


async def test_a_kernel_that_never_welcomes_is_waited_for_by_the_callers_deadline_only(tmp_path: Path) -> None:
    async with client_of("mute", tmp_path) as client:
        assert not await returns(client.wait_subscribed(), 0.5)


@pytest.mark.parametrize("mode", ["forger", "stranger", "babbler"])
async def test_execute_returns_despite_messages_beside_the_answer(tmp_path: Path, mode: str) -> None:
    async with client_of(mode, tmp_path) as client:
        assert await returns(client.wait_subscribed(), 60)
        assert await returns(client.execute("pass"), 60)


async def test_an_answer_with_another_key_does_not_count(tmp_path: Path) -> None:
    said = asyncio.Event()
    async with client_of("stranger", tmp_path) as client:
        assert await returns(client.wait_subscribed(), 60)
        # were the stranger's idle taken for an answer, execute would be over before the proper text arrived
        assert await returns(client.execute("pass", lambda _name, _text: said.set()), 60)
    assert said.is_set()


async def test_an_answer_is_heard_behind_a_message_that_cannot_be_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def break_down(_name: str, _text: str) -> None:
        time.sleep(0.3)  # until the answer has come: nothing tells of it afterwards
        raise RuntimeError("a fault of our own")

    async with client_of("stranger", tmp_path) as client:
        assert await returns(client.wait_subscribed(), 60)
        assert await returns(client.execute("pass", break_down), 60)
    assert "a fault of our own" in caplog.text


async def test_a_kernel_serves_once_it_answers_a_request_that_runs_no_code(tmp_path: Path) -> None:
    async with client_of("clerk", tmp_path) as client:
        assert await returns(client.wait_subscribed(), 60)
        assert await returns(client.wait_serving(), 60)
        assert not await returns(client.execute("pass"), 0.5)


async def test_a_kernel_that_answers_nothing_does_not_serve(tmp_path: Path) -> None:
    async with client_of("deaf", tmp_path) as client:
        assert await returns(client.wait_subscribed(), 60)
        assert not await returns(client.wait_serving(), 0.5)


async def test_a_kernel_that_never_answers_blocks_only_its_caller(tmp_path: Path) -> None:
    async with client_of("deaf", tmp_path) as client:
        assert await returns(client.wait_subscribed(), 60)
        assert not await returns(client.execute("pass"), 0.5)


@pytest.mark.parametrize("mode", ["shouter", "flooder"])
async def test_flood_of_messages_does_not_fill_the_gateways_memory(tmp_path: Path, mode: str) -> None:
    most_bytes = resident_bytes() + 4 * FLOOD_BYTES
    async with client_of(mode, tmp_path) as client:
        assert await returns(client.wait_subscribed(), 60)
        answer = asyncio.ensure_future(client.execute("pass", is_job=True))
        peak_bytes = 0
        for _ in range(300):
            peak_bytes = max(peak_bytes, resident_bytes())
            await asyncio.sleep(0.01)
        assert not answer.done()
        answer.cancel()
        await asyncio.wait({answer})
    assert peak_bytes < most_bytes


def new_peak_bytes() -> int:
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew, proc(5)
    return peak_bytes()


def peak_bytes() -> int:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) << 10


async def test_objects_of_a_message_are_not_made(tmp_path: Path) -> None:
    """Making them would take the loop for as long as a job likes, and here 70 MB."""
    async with client_of("swamper", tmp_path) as client:
        assert await returns(client.wait_subscribed(), 60)
        before_bytes = new_peak_bytes()
        assert await returns(client.execute("pass"), 60)
        assert peak_bytes() - before_bytes < 40 << 20


async def test_growth_of_the_gateway_ends_no_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another request may grow this process while a kernel boots: only a job's kernel is not heard any more for it."""
    sizes = itertools.count(0, 2 * FLOOD_BYTES)
    monkeypatch.setattr("gateway.local.kernel_client.resident_bytes", lambda: next(sizes))
    async with client_of("forger", tmp_path) as client:
        assert await returns(client.wait_subscribed(), 60)
        assert await returns(client.execute("pass"), 60)
    async with client_of("silent", tmp_path) as client:
        assert await returns(client.wait_subscribed(), 60)
        assert not await returns(client.execute("pass", is_job=True), 0.5)
        assert not await returns(client.execute("pass"), 0.1), "asked again, as one that is held is, it is no fault"


async def test_death_during_the_start_is_reported_at_once_with_its_reason() -> None:
    exited: asyncio.Future[ExitReport] = asyncio.get_running_loop().create_future()
    exited.set_result(ExitReport(9, 9, None, "signal", 0, 0.0, "was ended by signal 9"))

    async def never() -> None:
        await asyncio.Event().wait()

    with pytest.raises(JobFailed, match="signal 9") as failure:
        await _or_death(never(), exited)
    assert failure.value.code is FailureCode.KERNEL_START_FAILED
