"""Kernels kept for a person: of failed jobs, and of those who asked for a console.

Each has a connection file in ``<STATE_DIR>/run/held/``, which only the gateway's user (and root) may read: who may read
it may attach, nobody else, and nothing is opened on the network. They have a small limit of their own and a time at
which they end, so that forgotten ones cost no job its slot.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import secrets
import shlex
import shutil
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateway.errors import Conflict, NotFound, ShuttingDown
from gateway.jobs.model import HeldKernel, RequestId
from gateway.kernels.kernel import JobKernel

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Holding:
    facts: HeldKernel
    kernel: JobKernel
    released: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    async def end(self) -> None:
        """Have it ended and wait for that; may be called by several at once."""
        self.released.set()
        if self.task is not None:
            await asyncio.wait({self.task})


class HeldKernels:
    """Owns every held kernel until it expires, is released, dies, or the gateway stops.

    Parameters
    ----------
    directory : Path
        For the connection files; made here, mode 0700, and emptied of what a dead gateway left.
    limit : int
        How many may be held at once.
    """

    def __init__(self, directory: Path, limit: int) -> None:
        self.limit = limit
        self._directory = directory
        self._held: dict[str, _Holding] = {}
        self._places_promised = 0
        self._closed = False

    def start(self) -> None:
        """Make the directory."""
        shutil.rmtree(self._directory, ignore_errors=True)
        self._directory.mkdir(mode=0o700)

    def facts(self) -> list[HeldKernel]:
        """Return what is held, oldest first."""
        return [holding.facts for holding in self._held.values()]

    def promise(self) -> None:
        """Keep a place for a kernel on its way here; `hold` or `renounce` follows.

        Raises
        ------
        Conflict
            Every place is taken; the oldest is not ended for it, because somebody may be looking at it.
        """
        if self._closed:
            raise ShuttingDown("the gateway is shutting down")
        if len(self._held) + self._places_promised >= self.limit:
            if not self.limit:
                raise Conflict("no kernel is ever held here (HELD_KERNELS is 0)")
            text = f"{self.limit} kernels are held already (HELD_KERNELS); `transform-gateway release` ends them"
            raise Conflict(text)
        self._places_promised += 1

    def renounce(self) -> None:
        """Give a promised place back."""
        self._places_promised -= 1

    async def hold(
        self, kernel: JobKernel, seconds: float, request_id: RequestId | None = None, code: str | None = None
    ) -> HeldKernel:
        """Take over a living kernel, for which a place was promised, and return how to reach it.

        Processor time counts from now on, and there may be as much of it as time: what the job has used is not to end
        the kernel under the hands of whoever looks at it. Without the capability to raise the process's own limit (an
        ordinary user) the rest of the job's processor time has to do.

        Raises
        ------
        JobFailed
            The kernel has ended, or its limit could not be set; it is still the caller's, and so is the place.
        OSError
            The connection file could not be written; likewise.
        """
        await kernel.bind(math.ceil(seconds))
        name = secrets.token_hex(4)
        path = self._directory / f"{name}.json"
        try:
            _write_connection_file(path, kernel.conversation.connection_info())
        except OSError:
            path.unlink(missing_ok=True)
            raise
        kernel.conversation.close()  # nobody here reads what it says from now on
        kernel.pipes.discard()
        now = time.time()
        facts = HeldKernel(name, attach_command(path), str(path), request_id, code, now, now + seconds)
        holding = self._held[name] = _Holding(facts, kernel)
        self._places_promised -= 1
        holding.task = asyncio.create_task(self._keep(holding, seconds), name=f"held {name}")
        log.info("kernel %s of job %s is held for %.0f s", name, request_id, seconds)
        return facts

    async def console(self, claim: Callable[[], Awaitable[JobKernel]], seconds: float) -> HeldKernel:
        """Hold a kernel that never had a job, for somebody who wants to try things where jobs run.

        Raises
        ------
        Conflict
            No more may be held.
        JobFailed
            There is no kernel to be had.
        """
        self.promise()
        try:
            kernel = await claim()
            try:
                return await self.hold(kernel, seconds)
            except BaseException:
                await kernel.end()
                raise
        except BaseException:
            self.renounce()
            raise

    async def release(self, name: str) -> None:
        """End a held kernel; returns when nothing of it is left.

        Raises
        ------
        NotFound
            None of this name is held (any more).
        """
        holding = self._held.get(name)
        if holding is None:
            raise NotFound(f"no kernel {name[:40]!r} is held; `transform-gateway held` lists them")
        await holding.end()

    async def aclose(self) -> None:
        """End all of them."""
        self._closed = True
        await asyncio.gather(*(holding.end() for holding in tuple(self._held.values())))

    async def _keep(self, holding: _Holding, seconds: float) -> None:
        """Wait for whatever ends it first, then clear everything away."""
        name, exited = holding.facts.id, holding.kernel.exited
        released = asyncio.ensure_future(holding.released.wait())
        try:
            watched: set[asyncio.Future[Any]] = {exited, released}
            await asyncio.wait(watched, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            released.cancel()
            reason = exited.result().detail if exited.done() else "released" if released.done() else "its time is over"
            (self._directory / f"{name}.json").unlink(missing_ok=True)
            await holding.kernel.end()
            self._held.pop(name, None)
            log.info("held kernel %s ended: %s", name, reason)


def _write_connection_file(path: Path, info: dict[str, Any]) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(info, file)


def attach_command(connection_file: Path) -> str:
    """Return the exact command that attaches a console, by the `jupyter` beside our Python where there is one."""
    beside = Path(sys.executable).with_name("jupyter")
    jupyter = str(beside) if beside.with_name("jupyter-console").exists() else "jupyter"
    return shlex.join([jupyter, "console", "--existing", str(connection_file)])
