"""The `gateway.jobs.runner.JobRunner` of this machine: kernels of one launcher."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import time
from collections.abc import Callable

from gateway.core.cancellation import StopSignal
from gateway.core.directories import remove
from gateway.core.errors import FailureCode, JobFailed
from gateway.core.events import JobLog
from gateway.core.job import HeldKernel, Job
from gateway.core.settings import Settings
from gateway.core.uploads import UploadPermit, Uploads
from gateway.jobs.delivery import Deliverer
from gateway.jobs.runner import KeptResult, RunnerStatus, SlotCount
from gateway.local.held_kernels import HeldKernels
from gateway.local.kernel import KernelParts
from gateway.local.kernel_pool import KernelPool
from gateway.local.kernel_start import start_kernel
from gateway.local.personal_kernels import PersonalKernels
from gateway.local.run import LocalRun, Machine
from gateway.local.slots import Slots
from gateway.storage import KeptResultStore, ObjectClient, Outbox
from kernel_spec.client.async_client import LauncherClient
from kernel_spec.client.process import LauncherError
from kernel_spec.fork_server.preload import modules_with
from kernel_spec.kernel.added_packages import UntrustedPackages, current_set
from kernel_spec.packages import Package, job_packages


class LocalRunner:
    """Runs jobs in ready kernels of one launcher.

    Parameters
    ----------
    settings : Settings
    parts : KernelParts
        The parts that the kernels share.
    results : KeptResultStore
        Keeps results for which the request gives no URL; owned from now on.
    client : ObjectClient
        Sends requests to the storage.
    """

    def __init__(self, settings: Settings, parts: KernelParts, results: KeptResultStore, client: ObjectClient) -> None:
        self._parts = parts
        self._preloaded = modules_with(settings.preload) if settings.use_fork_server else ()
        self._packages: list[Package] | None = None
        self._state_dir = settings.state_dir
        self._results = results
        self._outbox = Outbox(settings.state_dir)
        self._deliverer = Deliverer(settings, results, client, self._outbox.count_retry)
        self._held = HeldKernels(settings.state_dir / "run" / "held", settings.held_kernels)
        self._personal = PersonalKernels(settings, parts.launcher)
        self._kernels = KernelPool(
            lambda: start_kernel(parts, self._is_in_demand),
            settings.slots + settings.ready_kernels,
            settings.ready_kernel_max_age_seconds,
        )
        self._slots = Slots(settings.slots, lambda: any(not run.has_slot for run in self._machine.waiting))
        self._machine = Machine(
            settings=settings,
            jobs_dir=settings.state_dir / "jobs",
            slots=self._slots,
            kernels=self._kernels,
            held=self._held,
            deliverer=self._deliverer,
            outbox=self._outbox,
            client=client,
        )

    def start(self) -> None:
        """Begin to boot kernels; leftovers of a dead gateway's jobs are removed first."""
        self._outbox.load()
        self._clear_directories()
        self._held.start()
        self._personal.start()
        self._parts.launcher.on_restart(self._kernels.replace_dead)
        self._kernels.refill()

    def forget_leftovers(self) -> None:
        """Remove outputs that an earlier process left; called when the jobs that it left were opened."""
        self._outbox.remove_unclaimed()

    def on_slot_free(self, callback: Callable[[], None]) -> None:
        self._slots.on_free(callback)

    def slots(self) -> SlotCount:
        return self._slots.count()

    def open(
        self,
        job: Job,
        log: JobLog,
        stop: StopSignal,
        execution_id: str,
        uploads: Uploads | None = None,
        permit: UploadPermit | None = None,
    ) -> LocalRun:
        run = LocalRun(self._machine, job, log, stop, execution_id, uploads, permit)
        self._machine.waiting.add(run)
        return run

    def has_output(self, execution_id: str) -> bool:
        return self._outbox.has(execution_id)

    def runs_elsewhere(self, job: Job) -> bool:
        return False

    def status(self) -> RunnerStatus:
        failure = self._kernels.last_failure
        launcher: LauncherClient = self._parts.launcher
        return RunnerStatus(
            healthy=launcher.alive and (self._kernels.ready > 0 or failure is None),
            slots=self._slots.count(),
            details={
                "ready_kernels": {
                    "ready": self._kernels.ready,
                    "starting": self._kernels.starting,
                    **dataclasses.asdict(self._kernels.counters),
                },
                # the code only: the text may name paths of this machine, and the status needs no token
                "kernels": {
                    "last_start_failure": str(failure.code) if failure else None,
                    "held": len(self._held.facts()),
                    "held_limit": self._held.limit,
                    "personal": self._personal.count,
                    "personal_limit": self._personal.limit,
                },
                "sandbox": {**launcher.sandbox_status(), "gateway_has_root": os.geteuid() == 0},
                "launcher": {"up": launcher.alive, "restarts": launcher.restarts},
                "fork_server": launcher.fork_server_status(),
                "added_packages": {"digest": self._added_set()},
                "outbox": self._outbox.status(),
            },
        )

    def _added_set(self) -> str:
        try:
            added = current_set(self._state_dir)
        except UntrustedPackages:
            return ""
        return "" if added is None else added.name

    async def packages(self, *, renew: bool = False) -> list[Package]:
        if renew:
            moment = time.monotonic()
            try:
                await self._parts.launcher.renew()
            except (LauncherError, TimeoutError) as error:
                text = f"the fork server could not be renewed: {error or 'it does not become ready'}"
                raise JobFailed(FailureCode.LAUNCHER_LOST, text) from None
            finally:
                self._kernels.replace_older(moment)
        if renew or self._packages is None:
            self._packages = await asyncio.to_thread(self._list_packages)
        return self._packages

    def _list_packages(self) -> list[Package]:
        try:
            added = current_set(self._state_dir)
        except UntrustedPackages:  # the launcher, which does not use them either, has logged why
            added = None
        return job_packages(self._preloaded, added)

    def kept_result(self, execution_id: str) -> KeptResult | None:
        return self._results.get(execution_id)

    def drop_result(self, execution_id: str) -> None:
        self._results.drop(execution_id)

    def held_kernels(self) -> list[HeldKernel]:
        return self._held.facts()

    async def release(self, name: str) -> None:
        await self._held.release(name)

    async def open_console(self, seconds: float) -> HeldKernel:
        return await self._held.console(self._kernels.acquire, seconds)

    async def aclose(self) -> None:
        await self._deliverer.aclose()
        await self._slots.aclose()
        await self._held.aclose()
        await self._personal.aclose()
        await self._kernels.aclose()
        self._results.close()
        self._clear_directories()

    def _is_in_demand(self) -> bool:
        """Return whether a job waits for the next kernel."""
        return len(self._machine.waiting) > self._kernels.ready

    def _clear_directories(self) -> None:
        # one that cannot be made fails the jobs that need it, and never the stop of the gateway
        with contextlib.suppress(OSError):
            self._machine.jobs_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            for leftover in self._machine.jobs_dir.iterdir():
                remove(leftover)
