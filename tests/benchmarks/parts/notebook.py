"""The start of a notebook's kernel: through a gateway, with a launcher of its own, and of ipykernel's `python3`."""

from __future__ import annotations

import time
from pathlib import Path

from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import KernelManager

from kernel_spec.install import RESOURCE_DIR
from tests.benchmarks import processes
from tests.benchmarks.report.results import Results

ANSWER_SECONDS = 60.0


def kernel_starts(results: Results, rounds: int) -> None:
    """Measure, in turn, from the call of a kernel manager to the kernel's first reply."""
    with processes.gateway() as gateway:
        state_dir = str(gateway.log_path.parent / "s")
        _first_reply_ms(state_dir)  # the fork server is ready then
        plain: list[float] = []
        warm: list[float] = []
        own: list[float] = []
        for _ in range(rounds):
            plain.append(_first_reply_ms(None))
            warm.append(_first_reply_ms(state_dir))
            own.append(_first_reply_ms(""))
    results.figure("notebook: start of ipykernel's python3", "ms", plain)
    results.figure("notebook: start through a gateway", "ms", warm, limit=200.0)
    results.figure("notebook: start with a launcher of its own", "ms", own)
    ratios = [theirs / ours for theirs, ours in zip(plain, warm, strict=True)]
    results.figure("notebook: ipykernel's start / start through a gateway", "×", ratios)


def _first_reply_ms(gateway: str | None) -> float:
    """Start a kernel and end it; None is ipykernel's own, an empty text a launcher of its own."""
    began = time.perf_counter()
    manager = KernelManager(kernel_name="python3" if gateway is None else "transform")
    if gateway is not None:
        manager._kernel_spec = KernelSpec.from_resource_dir(str(RESOURCE_DIR))
        manager.config.TransformProvisioner.gateway = gateway
    manager.start_kernel()
    client = manager.client()
    try:
        client.start_channels(hb=False)
        client.kernel_info(reply=True, timeout=ANSWER_SECONDS)
        took_ms = 1000 * (time.perf_counter() - began)
        workspace = getattr(manager.provisioner, "workspace", None)
        if gateway and (workspace is None or not Path(workspace.workspace_dir).is_relative_to(gateway)):
            raise RuntimeError(f"the gateway of {gateway} gave no kernel")
        return took_ms
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
        manager.cleanup_resources()
