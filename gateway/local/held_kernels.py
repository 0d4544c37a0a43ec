"""Kernels that are held for inspection: of failed jobs, and of users who asked for a console.

Each has a connection file in ``<STATE_DIR>/run/held/`` that only the gateway's user (and root) can read. A console
needs that file, and nothing is opened on the network. Held kernels have a small limit of their own and a time at which
they end, so that a forgotten one costs no job its slot.
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

from gateway.core.errors import Conflict, FailureCode, JobFailed, NotFound, ShuttingDown
from gateway.core.job import HeldKernel, RequestId
from gateway.core.tasks import first_of, started
from gateway.local.kernel import JobKernel

log = logging.getLogger(__name__)

#: A kernel of the pool waits for a job, whose shell keeps no results and shows no colours.
FOR_A_PERSON = "get_ipython().serve_person()"

#: A console whose kernel does not answer in time has neither.
ANSWER_SECONDS = 5.0


@dataclass(slots=True, eq=False)
class _Holding:
    facts: HeldKernel
    kernel: JobKernel
    released: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    async def release(self) -> None:
        """End it and wait until it has ended; several callers may do so at once."""
        self.released.set()
        if self.task is not None:
            await asyncio.wait({self.task})


class HeldKernels:
    """Owns every held kernel until it expires, is released, dies, or the gateway stops.

    Parameters
    ----------
    directory : Path
        For the connection files; created by `start` with mode 0700, without the files of a dead gateway.
    limit : int
        How many kernels may be held at once.
    """

    def __init__(self, directory: Path, limit: int) -> None:
        self.limit = limit
        self._directory = directory
        self._held: dict[str, _Holding] = {}
        self._reserved_places = 0
        self._closed = False

    def start(self) -> None:
        """Create the directory."""
        shutil.rmtree(self._directory, ignore_errors=True)
        self._directory.mkdir(mode=0o700)

    def facts(self) -> list[HeldKernel]:
        """Return the kernels that are held.

        Returns
        -------
        list of HeldKernel
            The oldest first.
        """
        return [holding.facts for holding in self._held.values()]

    def reserve_place(self) -> None:
        """Reserve a place for a kernel; `hold` or `free_place` must follow.

        Raises
        ------
        Conflict
            Every place is taken. The oldest kernel is not ended for a new one, because a user may be attached to it.
        ShuttingDown
            The gateway is about to stop.
        """
        if self._closed:
            raise ShuttingDown("the gateway is shutting down")
        if len(self._held) + self._reserved_places >= self.limit:
            if not self.limit:
                raise Conflict("this gateway holds no kernels (HELD_KERNELS is 0)")
            text = f"{self.limit} kernels are held already (HELD_KERNELS); `transform-gateway release` ends them"
            raise Conflict(text)
        self._reserved_places += 1

    def free_place(self) -> None:
        """Release a reserved place."""
        self._reserved_places -= 1

    async def hold(
        self, kernel: JobKernel, seconds: float, request_id: RequestId | None = None, code: str | None = None
    ) -> HeldKernel:
        """Take over a living kernel for which a place was reserved.

        Its processor time counts again from here, up to the time for which it is held: the time that the job has used
        must not end the kernel while a user is attached. Without the capability to raise the process's own limit (an
        ordinary user) only the rest of the job's processor time is left.

        Parameters
        ----------
        kernel : JobKernel
            Owned from now on.
        seconds : float
            How long it is kept.
        request_id, code : optional
            Of the job that failed in it.

        Returns
        -------
        HeldKernel
            How to attach to it.

        Raises
        ------
        JobFailed
            The kernel has ended, or its limit could not be set. Kernel and place are still the caller's.
        OSError
            The connection file could not be written. Kernel and place are still the caller's.
        """
        await kernel.set_cpu_limit(math.ceil(seconds))
        if not kernel.alive:
            raise JobFailed(FailureCode.KILLED, f"its process has ended ({kernel.exited.result().detail})")
        name = secrets.token_hex(4)
        path = self._directory / f"{name}.json"
        try:
            _write_connection_file(path, kernel.client.connection_info())
        except OSError:
            path.unlink(missing_ok=True)
            raise
        kernel.client.close()  # the gateway reads no more of its messages
        kernel.pipes.discard()
        now = time.time()
        access = {"attach": attach_command(path), "connection_file": str(path)}
        facts = HeldKernel(name, request_id, code, now, now + seconds, access)
        holding = self._held[name] = _Holding(facts, kernel)
        self._reserved_places -= 1
        holding.task = asyncio.create_task(self._keep(holding, seconds), name=f"held {name}")
        log.info("kernel %s of job %s is held for %.0f s", name, request_id, seconds)
        return facts

    async def console(self, acquire: Callable[[], Awaitable[JobKernel]], seconds: float) -> HeldKernel:
        """Hold a kernel from `acquire`, as `gateway.jobs.runner.JobRunner.open_console` describes."""
        self.reserve_place()
        try:
            kernel = await acquire()
            try:
                async with started(kernel.client.execute(FOR_A_PERSON)) as (prepared,):
                    await first_of(prepared, kernel.exited, timeout_seconds=ANSWER_SECONDS)
                return await self.hold(kernel, seconds)
            except BaseException:
                await kernel.release()
                raise
        except BaseException:
            self.free_place()
            raise

    async def release(self, name: str) -> None:
        """End a kernel, as `gateway.jobs.runner.JobRunner.release` describes."""
        holding = self._held.get(name)
        if holding is None:
            raise NotFound(f"no kernel {name[:40]!r} is held; `transform-gateway held` lists them")
        await holding.release()

    async def aclose(self) -> None:
        """End all held kernels; no more are accepted."""
        self._closed = True
        await asyncio.gather(*(holding.release() for holding in tuple(self._held.values())))

    async def _keep(self, holding: _Holding, seconds: float) -> None:
        """Wait until it dies, expires or is released, then release it."""
        name, exited = holding.facts.id, holding.kernel.exited
        reason = "its time is over"
        try:
            async with started(holding.released.wait()) as (released,):
                await first_of(exited, released, timeout_seconds=seconds)
                if exited.done():
                    reason = exited.result().detail
                elif released.done():
                    reason = "released"
        finally:
            (self._directory / f"{name}.json").unlink(missing_ok=True)
            await holding.kernel.release()
            self._held.pop(name, None)
            log.info("held kernel %s ended: %s", name, reason)


def _write_connection_file(path: Path, info: dict[str, Any]) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(info, file)


def attach_command(connection_file: Path) -> str:
    """Return the exact command that attaches a console.

    Parameters
    ----------
    connection_file : Path
        Of the held kernel.

    Returns
    -------
    str
        With the ``jupyter`` of our own environment if that has a console; quoted for a shell.
    """
    own = Path(sys.executable).with_name("jupyter")
    jupyter = str(own) if own.with_name("jupyter-console").exists() else "jupyter"
    return shlex.join([jupyter, "console", "--existing", str(connection_file)])
