"""ipykernel's kernel without its thread for the shell channel: requests, completion and interrupts."""

# mypy: disable-error-code="no-untyped-call"
# ipykernel has next to no annotations.

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

from ipykernel import ipkernel
from ipykernel.ipkernel import IPythonKernel
from ipykernel.zmqshell import ZMQInteractiveShell

from kernel_spec.kernel.shell import JobShell

#: Compiles and runs the statements of a cell one by one, and shows what that raises.
_RUN_AST_NODES = ZMQInteractiveShell.run_ast_nodes.__code__


class _NoModules:
    """`sys` without modules, for as long as ipykernel lists where each of them comes from.

    It does so for its debugger, and few kernels have one. Reading a thousand modules changes their reference counts,
    and so copies 1,200 pages into each forked kernel (measured: 5 ms and 5 MB).
    """

    modules: ClassVar[dict[str, object]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(sys, name)


class NoShellChannelThread:
    """False, so that the kernel puts the shell stream on the main thread's loop.

    It is an object because ipykernel asks its parent thread whether an interrupt cancels a cell with ``await``.
    """

    def __init__(self) -> None:
        self.parent_thread = threading.main_thread()

    def __bool__(self) -> bool:
        return False


class MainThreadKernel(IPythonKernel):
    """An IPython kernel without subshells, whose shell channel the main thread reads."""

    def __init__(self, **kwargs: Any) -> None:
        prepared = JobShell.instance() if JobShell.initialized() else None
        upstream: Any = ipkernel
        if kwargs.get("debugpy_stream") is None:
            upstream.sys = _NoModules()
        try:
            super().__init__(**kwargs)
        finally:
            upstream.sys = sys
        if prepared is not None:
            prepared.kernel = self
            # both are the fork server's directory so far; scripts find that of their notebook by `_dh[0]`
            prepared.starting_dir = str(Path.cwd())
            prepared.user_ns["_dh"][:] = [Path.cwd()]
            prepared.init_environment()

    @property
    def _supports_kernel_subshells(self) -> bool:
        return False

    def do_complete(self, code: str, cursor_pos: int) -> dict[str, Any]:  # type: ignore[override]
        """Complete an attribute without its dot, as with Jedi: front ends list the matches."""
        reply: dict[str, Any] = super().do_complete(code, cursor_pos)
        matches, start = reply["matches"], reply["cursor_start"]
        if matches and code[start : start + 1] == "." and all(match.startswith(".") for match in matches):
            reply |= {"matches": [match[1:] for match in matches], "cursor_start": start + 1}
            for each in reply["metadata"]["_jupyter_types_experimental"]:
                each |= {"text": each["text"][1:], "start": start + 1}
        return reply

    def _abort_queues(self, subshell_id: str | None = None) -> None:
        """Abort all requests that were sent before the failed one was answered.

        Upstream, without its thread for the shell channel, aborts only the first of those that wait for the end of a
        cell with ``await``. They wait for a lock, which serves them in order, and so does this.
        """

        async def stop_aborting() -> None:
            async with self._main_asyncio_lock:
                self._aborting = False

        self._aborting = True
        if self.shell_stream is not None:
            self.shell_stream.flush()
        self.io_loop.add_callback(stop_aborting)

    @contextmanager
    def _cancel_on_sigint(self, future: asyncio.Future[Any]) -> Iterator[None]:
        """Let an interrupt cancel a cell with ``await``, or raise in it while its own code runs.

        Upstream's handler calls ``call_soon``, which does not wake a loop that waits for events, and never stops a cell
        that computes. Between two statements the shell compiles the next one, which may compute without end: an
        interrupt there is raised too, and `run_ast_nodes` reports it.
        """
        loop = asyncio.get_running_loop()

        def interrupt(number: int, frame: FrameType | None) -> None:
            while frame is not None:
                if frame.f_code is _RUN_AST_NODES:
                    raise KeyboardInterrupt
                frame = frame.f_back
            loop.call_soon_threadsafe(future.cancel)

        before = signal.getsignal(signal.SIGINT)
        signal.signal(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
