"""Starting a kernel where the machine has nothing left for it, and ending one."""

from __future__ import annotations

import asyncio
import errno
import os
from typing import Any, cast
from unittest.mock import Mock

import pytest

from gateway.errors import FailureCode, JobFailed
from gateway.kernels.kernel import JobKernel, KernelParts, start_kernel
from kernel_spec.launcher_client import LauncherError
from kernel_spec.limits import Limits
from kernel_spec.messages import ExitReport


async def test_start_without_descriptors_fails_as_any_start_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for a kernel hears of it, and the next start is tried later."""

    def pipe2(_flags: int) -> tuple[int, int]:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "pipe2", pipe2)
    parts = KernelParts(cast("Any", None), cast("Any", None), Limits(), allow_network=False, line_cap_bytes=100)
    with pytest.raises(JobFailed, match="Too many open files") as caught:
        await start_kernel(parts)
    assert caught.value.code is FailureCode.KERNEL_START_FAILED


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
