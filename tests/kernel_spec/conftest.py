"""Real launchers and real kernels for the tests of this folder."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import zmq
from jupyter_client import BlockingKernelClient

from kernel_spec.client.async_client import KernelProcess, LauncherClient, LauncherOptions
from kernel_spec.client.front_end import write_connection_file
from kernel_spec.protocol.limits import Limits
from kernel_spec.protocol.values import ExitReport

ANSWER_SECONDS = 60.0
#: Preloaded modules where no test needs pandas: the fork server starts in a third of the time.
KERNEL_MODULES = ("kernel_spec.kernel.no_debugpy", "kernel_spec.kernel.app")


@dataclass
class RunningKernel:
    """A kernel of a launcher, with a client that is subscribed."""

    desk: Desk
    process: KernelProcess
    client: BlockingKernelClient
    pipes: dict[str, int]

    @property
    def kernel_id(self) -> str:
        return self.process.kernel_id

    def run(self, code: str, *, waits: bool = True) -> str:
        """Execute code and return what it printed; an error in it is an assertion error here."""
        message_id = self.client.execute(code, store_history=False, allow_stdin=False)
        if not waits:
            return ""
        printed: list[str] = []
        while True:
            message = self.client.get_iopub_msg(timeout=ANSWER_SECONDS)
            if message["parent_header"].get("msg_id") != message_id:
                continue
            match message["msg_type"], message["content"]:
                case "stream", content:
                    printed.append(content["text"])
                case "error", content:
                    raise AssertionError("\n".join(content["traceback"]))
                case "status", {"execution_state": "idle"}:
                    return "".join(printed)

    def ended(self) -> ExitReport:
        """Wait until the launcher has reported how the kernel ended."""
        return self.desk.do(asyncio.wait_for(asyncio.shield(self.process.exited), ANSWER_SECONDS))

    def kill(self) -> ExitReport:
        return self.desk.do(self.desk.launcher.kill(self.kernel_id))

    def read(self, name: str) -> bytes:
        """Return what is in one of the output pipes now."""
        try:
            return os.read(self.pipes[name], 1 << 16)
        except BlockingIOError:
            return b""


@dataclass
class Desk:
    """A launcher and the loop in which it is used."""

    runner: asyncio.Runner
    launcher: LauncherClient
    state_dir: Path
    context: zmq.Context[Any]
    open_fds: list[int] = field(default_factory=list)

    def do(self, coroutine: Any) -> Any:
        async def bounded() -> Any:
            async with asyncio.timeout(60):
                return await coroutine

        return self.runner.run(bounded())

    def status(self) -> dict[str, Any]:
        return self.do(self.launcher.status())

    def wait_for_fork_server(self, state: str) -> None:
        async def watch() -> None:
            while self.launcher.fork_server_status()["state"] != state:
                await self.launcher.fork_server_changed()

        self.do(watch())

    @contextmanager
    def kernel(self, limits: Limits | None = None, **options: Any) -> Iterator[RunningKernel]:
        """Start a kernel, yield it, and leave nothing of it."""
        kernel_id, launcher_pid = secrets.token_hex(4), self.launcher.pid
        reads: dict[str, int] = {}
        writes: list[int] = []
        for name in ("stdout", "stderr", "log"):
            reads[name], write = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(reads[name], False)
            writes.append(write)
        client: BlockingKernelClient | None = None
        try:
            workspace = self.do(self.launcher.reserve(kernel_id))
            path = write_connection_file(workspace, {"key": secrets.token_hex(16), "signature_scheme": "hmac-sha256"})
            process = self.do(self.launcher.start_kernel(kernel_id, output_fds=tuple(writes), limits=limits, **options))
            while writes:
                os.close(writes.pop())
            client = BlockingKernelClient(connection_file=str(path), context=self.context)
            client.load_connection_file()
            client.start_channels(hb=False)
            # the kernel's own "starting" may overtake the welcome
            while client.get_iopub_msg(timeout=ANSWER_SECONDS)["msg_type"] != "iopub_welcome":
                pass
            yield RunningKernel(self, process, client, reads)
        finally:
            if client is not None:
                client.stop_channels()
            for descriptor in (*writes, *reads.values()):
                os.close(descriptor)
            # a launcher that follows another one does not know the kernels of that
            if self.launcher.alive and self.launcher.pid == launcher_pid:
                self.do(self.launcher.kill(kernel_id))
                self.do(self.launcher.remove(kernel_id))


@contextmanager
def open_desk(*, is_supervised: bool = False, **options: Any) -> Iterator[Desk]:
    """Start a launcher in a short directory of its own, and leave nothing of it."""
    state_dir = Path(tempfile.mkdtemp(prefix="tk-", dir="/tmp"))
    state_dir.chmod(0o711)
    context: zmq.Context[Any] = zmq.Context()
    try:
        launcher = LauncherClient.spawn(
            LauncherOptions(state_dir=str(state_dir), **options), is_supervised=is_supervised
        )
        with asyncio.Runner() as runner:
            try:
                runner.run(launcher.attach())
                yield Desk(runner, launcher, state_dir, context)
            finally:
                runner.run(launcher.aclose())
    finally:
        context.destroy(linger=0)
        shutil.rmtree(state_dir)


@pytest.fixture(scope="module")
def desk() -> Iterator[Desk]:
    """A launcher with a fork server, shared by the tests of a module."""
    with open_desk(workspaces=4) as opened:
        opened.wait_for_fork_server("ready")
        yield opened


@pytest.fixture
def new_desk() -> Iterator[Callable[..., Desk]]:
    """Open launchers that no other test has."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(open_desk(**options))


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return text.rsplit(")", 1)[1].split()[0] not in "ZX"


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> bool:
    """Poll for something that no event tells us of, such as the end of a process that is not ours."""
    import time

    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True
