"""Starting a kernel where the machine has nothing left for it."""

from __future__ import annotations

import errno
import os
from typing import Any, cast

import pytest

from gateway.errors import FailureCode, JobFailed
from gateway.kernels.kernel import KernelParts, start_kernel
from kernel_spec.limits import Limits


async def test_start_without_descriptors_fails_as_any_start_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for a kernel hears of it, and the next start is tried later."""

    def pipe2(_flags: int) -> tuple[int, int]:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "pipe2", pipe2)
    parts = KernelParts(cast("Any", None), cast("Any", None), Limits(), allow_network=False, line_cap_bytes=100)
    with pytest.raises(JobFailed, match="Too many open files") as caught:
        await start_kernel(parts)
    assert caught.value.code is FailureCode.KERNEL_START_FAILED
