"""Starting a kernel where the machine has nothing left for it, and ending one."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

import pytest
import zmq.asyncio

from gateway.core.errors import FailureCode, JobFailed
from gateway.local.held_kernels import HeldKernels
from gateway.local.kernel import JobKernel, KernelParts
from gateway.local.kernel_start import start_kernel
from kernel_spec.client.async_client import LauncherError
from kernel_spec.protocol.limits import Limits
from kernel_spec.protocol.values import ExitReport


async def test_start_without_descriptors_fails_as_any_start_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that waits for a kernel gets the error, and the next start is tried later."""

    def pipe2(_flags: int) -> tuple[int, int]:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "pipe2", pipe2)
    parts = KernelParts(cast("Any", None), cast("Any", None), Limits(), allow_network=False, line_cap_bytes=100)
    with pytest.raises(JobFailed, match="Too many open files") as caught:
        await start_kernel(parts)
    assert caught.value.code is FailureCode.KERNEL_START_FAILED


class Refusing:
    """A launcher that is there and starts nothing."""

    async def available(self) -> None:
        return

    def remove_later(self, _kernel_id: str) -> None:
        return

    def __getattr__(self, _name: str) -> Any:
        async def refuse(*_arguments: object, **_options: object) -> None:
            raise LauncherError("kernel_start_failed", "the kernel was ended while it started")

        return refuse


async def test_failed_start_is_raised_and_leaves_no_traceback_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with zmq.asyncio.Context() as context:
        parts = KernelParts(cast("Any", Refusing()), context, Limits(), allow_network=False, line_cap_bytes=100)
        with pytest.raises(JobFailed, match="the kernel was ended while it started") as caught:
            await start_kernel(parts)
    assert caught.value.code is FailureCode.KERNEL_START_FAILED
    assert [record.getMessage() for record in caplog.records if record.exc_info] == []


REPORT = ExitReport(9, 9, None, "killed_by_us", 0, 0.0, "was ended by the gateway")


class Killer:
    """A launcher that fails its first kill, and takes its time for each."""

    def __init__(self) -> None:
        self.kills = 0

    async def kill(self, _kernel_id: str) -> ExitReport:
        self.kills += 1
        first = self.kills == 1
        await asyncio.sleep(0.05)
        if first:
            raise LauncherError("not_confirmed", "processes of the kernel do not end")
        return REPORT


async def test_kill_is_asked_for_once_and_again_only_where_it_failed() -> None:
    killer: Any = Killer()
    kernel = JobKernel("k", *[Mock()] * 4, KernelParts(killer, *[Mock()] * 4), 0.0)
    together = await asyncio.gather(kernel.kill(), kernel.kill(), return_exceptions=True)
    assert [type(error) for error in together] == [JobFailed, JobFailed]
    assert killer.kills == 1
    impatient = asyncio.ensure_future(kernel.kill())
    await asyncio.sleep(0.01)
    impatient.cancel()  # as with a caller who is gone: the kill goes on
    assert await kernel.kill() is REPORT
    assert await kernel.kill() is REPORT
    assert killer.kills == 2


async def test_a_launcher_that_does_not_answer_is_named_as_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    silent: Any = Mock(kill=lambda _: asyncio.Event().wait())
    monkeypatch.setattr("gateway.local.kernel.KILL_SECONDS", 0.01)
    kernel = JobKernel("k", *[Mock()] * 4, KernelParts(silent, *[Mock()] * 4), 0.0)
    with pytest.raises(JobFailed, match="could not be confirmed: the launcher of kernels does not answer"):
        await kernel.kill()


class Refuser:
    """A launcher that can limit no processor time."""

    async def limit_cpu(self, _kernel_id: str, _seconds: int) -> None:
        raise LauncherError("failed", "ProcessLookupError: kernel k does not run")


@pytest.mark.parametrize("ends", [True, False])
async def test_only_a_kernel_that_lives_must_have_its_limit(monkeypatch: pytest.MonkeyPatch, ends: bool) -> None:
    """A ready kernel may be killed just before its job; the verdict on the job then says so."""
    launcher: Any = Refuser()
    exited: asyncio.Future[ExitReport] = asyncio.get_running_loop().create_future()
    kernel = JobKernel("k", *[Mock()] * 3, exited, KernelParts(launcher, *[Mock()] * 4), 0.0)
    if ends:
        asyncio.get_running_loop().call_later(0.01, exited.set_result, REPORT)
        await kernel.set_cpu_limit(1)
        return
    monkeypatch.setattr("gateway.local.kernel.END_SECONDS", 0.01)
    with pytest.raises(JobFailed, match="The CPU limit could not be set") as caught:
        await kernel.set_cpu_limit(1)
    assert caught.value.code is FailureCode.SANDBOX_FAILED


async def test_a_kernel_that_ends_while_it_is_prepared_is_not_held(tmp_path: Path) -> None:
    launcher: Any = Refuser()
    exited: asyncio.Future[ExitReport] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(0.01, exited.set_result, REPORT)
    kernels = HeldKernels(tmp_path / "held", 1)
    kernels.start()
    kernels.reserve_place()
    kernel = JobKernel("k", *[Mock()] * 3, exited, KernelParts(launcher, *[Mock()] * 4), 0.0)
    with pytest.raises(JobFailed, match="its process has ended"):
        await kernels.hold(kernel, 60)
    assert not kernels.facts()
