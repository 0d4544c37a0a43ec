"""What is learnt from a kernel's messages is when to look, whatever the kernel sends."""

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

from gateway.errors import FailureCode, JobFailed
from gateway.kernels.conversation import FLOOD_BYTES, KernelConversation, resident_bytes, shared_context
from gateway.kernels.kernel import _unless_dead
from kernel_spec.messages import ExitReport
from tests import kernels

KEY = "the key of this test"


@asynccontextmanager
async def conversation_with(mode: str, directory: Path) -> AsyncIterator[KernelConversation]:
    """Start a misbehaving kernel and yield the conversation with it; both are ended afterwards."""
    program, prefix = Path(kernels.__file__).parent / "misbehaving.py", str(directory / "k")
    command = [sys.executable, str(program), prefix, KEY, mode]
    # blocking for a moment: nothing else runs in this loop
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:  # noqa: ASYNC220
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"bound\n"
            async with shared_context() as context:
                ports = {"shell_port": 1, "iopub_port": 2, "stdin_port": 3, "control_port": 4, "hb_port": 5}
                signing = {"key": KEY.encode(), "signature_scheme": "hmac-sha256"}
                conversation = KernelConversation(context, {"transport": "ipc", "ip": prefix, **signing, **ports})
                try:
                    yield conversation
                finally:
                    conversation.close()
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
    async with conversation_with("mute", tmp_path) as conversation:
        assert not await returns(conversation.welcome(), 0.5)


@pytest.mark.parametrize("mode", ["forger", "stranger", "babbler"])
async def test_execute_returns_whatever_comes_beside_the_answer(tmp_path: Path, mode: str) -> None:
    async with conversation_with(mode, tmp_path) as conversation:
        assert await returns(conversation.welcome(), 20)
        assert await returns(conversation.execute("pass"), 20)


async def test_an_answer_with_another_key_does_not_count(tmp_path: Path) -> None:
    said = asyncio.Event()
    async with conversation_with("stranger", tmp_path) as conversation:
        assert await returns(conversation.welcome(), 20)
        # were the stranger's idle taken for an answer, execute would be over before the proper text arrived
        assert await returns(conversation.execute("pass", lambda _name, _text: said.set()), 20)
    assert said.is_set()


async def test_an_answer_is_heard_behind_a_message_that_cannot_be_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def break_down(_name: str, _text: str) -> None:
        time.sleep(0.3)  # until the answer has come: nothing tells of it afterwards
        raise RuntimeError("a fault of our own")

    async with conversation_with("stranger", tmp_path) as conversation:
        assert await returns(conversation.welcome(), 20)
        assert await returns(conversation.execute("pass", break_down), 5)
    assert "a fault of our own" in caplog.text


async def test_a_kernel_that_never_answers_keeps_nobody_but_its_caller(tmp_path: Path) -> None:
    async with conversation_with("deaf", tmp_path) as conversation:
        assert await returns(conversation.welcome(), 20)
        assert not await returns(conversation.execute("pass"), 0.5)


@pytest.mark.parametrize("mode", ["shouter", "flooder"])
async def test_what_a_kernel_says_does_not_fill_the_gateways_memory(tmp_path: Path, mode: str) -> None:
    most_bytes = resident_bytes() + 4 * FLOOD_BYTES
    async with conversation_with(mode, tmp_path) as conversation:
        assert await returns(conversation.welcome(), 20)
        answer = asyncio.ensure_future(conversation.execute("pass", is_job=True))
        peak_bytes = 0
        for _ in range(300):
            peak_bytes = max(peak_bytes, resident_bytes())
            await asyncio.sleep(0.01)
        assert not answer.done()
        answer.cancel()
        await asyncio.wait({answer})
    assert peak_bytes < most_bytes


async def test_growth_of_the_gateway_ends_no_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another request may grow this process while a kernel boots: only a job's kernel is not heard any more for it."""
    sizes = itertools.count(0, 2 * FLOOD_BYTES)
    monkeypatch.setattr("gateway.kernels.conversation.resident_bytes", lambda: next(sizes))
    async with conversation_with("forger", tmp_path) as conversation:
        assert await returns(conversation.welcome(), 20)
        assert await returns(conversation.execute("pass"), 20)
    async with conversation_with("silent", tmp_path) as conversation:
        assert await returns(conversation.welcome(), 20)
        assert not await returns(conversation.execute("pass", is_job=True), 0.5)
        assert not await returns(conversation.execute("pass"), 0.1), (
            "asked again, as one that is held is, it is no fault"
        )


async def test_death_while_it_starts_is_told_at_once_with_its_reason() -> None:
    exited: asyncio.Future[ExitReport] = asyncio.get_running_loop().create_future()
    exited.set_result(ExitReport(9, 9, None, "signal", 0, 0.0, "was ended by signal 9"))

    async def never() -> None:
        await asyncio.Event().wait()

    with pytest.raises(JobFailed, match="signal 9") as failure:
        await _unless_dead(never(), exited)
    assert failure.value.code is FailureCode.KERNEL_START_FAILED
