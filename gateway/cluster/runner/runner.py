"""The `gateway.jobs.runner.JobRunner` of a cluster: hosts behind a NATS server, and the machine of this member.

A job whose tables and results all have URLs runs on any host: tables are never sent through the broker. A job with
files on this machine, or whose result stays with this member, gets parcels if the other members have the address of
this one; otherwise it runs here.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Awaitable, Callable, Sequence

from gateway.cluster.broker import Broker, subjects
from gateway.cluster.claims import RequestClaims
from gateway.cluster.host import ClusterHost
from gateway.cluster.keeper import record_of
from gateway.cluster.member import Member, Roster, on_host
from gateway.cluster.owners import Owners
from gateway.cluster.peers import ClusterPeers
from gateway.cluster.runner.parcels import JOB_CAP_BYTES, JobParcels, travels
from gateway.cluster.runner.run import ClusterRun
from gateway.cluster.runner.shared import Cluster
from gateway.cluster.wire import EventBatch, Release, Taken, decode, encode
from gateway.core.cancellation import StopSignal
from gateway.core.errors import BadRequest, Conflict, GatewayError, NotFound
from gateway.core.events import JobLog, Placed
from gateway.core.job import HeldKernel, Job
from gateway.core.settings import Settings
from gateway.core.uploads import UploadPermit, Uploads
from gateway.jobs.delivery import Deliverer
from gateway.jobs.runner import JobRun, JobRunner, KeptResult, PackageFacts, RunnerStatus, SlotCount
from gateway.jobs.store import JobRecord
from gateway.storage import ObjectClient
from gateway.storage.parcels import Parcels

log = logging.getLogger(__name__)

#: Interval at which records of ended jobs that could not be removed are tried again.
TIDY_SECONDS = 1.0

#: How long another host has to end a held kernel.
RELEASE_SECONDS = 5.0


class ClusterRunner:
    """Runs jobs on all hosts of a cluster.

    Parameters
    ----------
    settings : Settings
    me : Member
    local : JobRunner
        The runner of this machine; owned from now on.
    broker : Broker
        Owned from now on.
    deliverer : Deliverer
        Uploads the logs of jobs that no host ran, and delivers the results that hosts upload.
    client : ObjectClient
        Fetches the parcels of other members' jobs.
    parcels : Parcels, optional
        Parcels of this member's jobs, if the others have its address.
    on_confirmed : callable
        Called with the seconds of each confirmed write of a lease.
    check_machine : callable
        Raises `GatewayError` while this machine can run no job, as when its disk is full.

    Attributes
    ----------
    claims : RequestClaims
    peers : ClusterPeers
    """

    def __init__(
        self,
        settings: Settings,
        me: Member,
        local: JobRunner,
        broker: Broker,
        deliverer: Deliverer,
        client: ObjectClient,
        parcels: Parcels | None = None,
        on_confirmed: Callable[[float], None] = lambda seconds: None,
        check_machine: Callable[[], None] = lambda: None,
    ) -> None:
        self._local = local
        self._broker = broker
        self._deliverer = deliverer
        self._me = me
        self._settings = settings
        self._roster = Roster(me, broker, self._own_status, accepts=not settings.runs_only)
        self._cluster = Cluster(settings, me, broker, self._roster, deliverer)
        self._host = ClusterHost(me, broker, local, settings, client, on_confirmed)
        self._roster.held = local.held_kernels
        self._host.is_able = lambda: self._own_status().healthy
        self._host.on_taken = self._roster.changed
        self._check_machine = check_machine
        self._problem = ""
        self._runs: dict[str, ClusterRun] = {}
        self._known: dict[str, int] = {}
        self._parcels = parcels
        self._tasks: list[asyncio.Task[None]] = []
        self._owners = Owners(me, broker)
        self.claims = RequestClaims(me, broker, self._owners, self._check)
        self.peers = ClusterPeers(me, broker, self._roster, self._owners, parcels)

    async def start(
        self,
        unfinished: Sequence[JobRecord],
        is_draining: Callable[[], bool],
        known_keys: Callable[[], Awaitable[Sequence[bytes]]],
    ) -> None:
        """Join the cluster.

        Parameters
        ----------
        unfinished : sequence of JobRecord
            The jobs that an earlier process of this member left.
        is_draining : callable
            Returns whether no more jobs may be taken.
        known_keys : callable
            Returns each `IdempotencyKey.key` in the job store of this member.

        Raises
        ------
        ConfigurationError
            Another process has the name of this member.
        NoReply
        """
        if not self._settings.runs_only:  # a host is asked nothing, and has no right to ask
            await self.peers.refuse_a_double()
        self._owners.known_keys = known_keys
        for record in unfinished:
            lease = record_of(await self._broker.leases.get(record.execution_id))
            if lease is not None:
                self._known[record.execution_id] = lease.attempt
            await self.claims.claim_again(record.request_id, record.token_name, record.execution_id)
        if self._parcels is not None:
            await asyncio.to_thread(self._parcels.remove_others, {record.execution_id for record in unfinished})
        self._roster.is_draining = is_draining
        self._roster.waiting = lambda: sum(not run.has_begun for run in self._runs.values())
        self._roster.busy_hosts = lambda: (run.busy_host for run in self._runs.values())
        self._host.is_draining = is_draining
        self._roster.on_news(self._wake_all)
        if not self._settings.runs_only:  # a host accepts nothing, and has no right to these
            await self._owners.register()
            self._broker.on_prepared = self._restore
            await self._broker.listen(subjects.events(self._me.name), self._take_events)
        works = {"beats": self._roster.beat(), "claims": self.claims.renew(), "leftovers": self._tidy()}
        if self._settings.slots:
            works["host"] = self._host.run()
        self._tasks = [asyncio.create_task(work, name=f"cluster {name}") for name, work in works.items()]
        for task in self._tasks:
            task.add_done_callback(_report)
        log.info("member %s of the cluster, with %d slots", self._me.name, self._local.slots().total)

    def on_slot_free(self, callback: Callable[[], None]) -> None:
        def both() -> None:
            callback()
            self._host.slot_free()
            self._roster.changed()

        def started() -> None:
            callback()
            self._roster.changed()

        self._cluster.on_start = started
        self._local.on_slot_free(both)

    def slots(self) -> SlotCount:
        return self._roster.slots()

    def open(
        self,
        job: Job,
        log: JobLog,
        stop: StopSignal,
        execution_id: str,
        uploads: Uploads | None,
        permit: UploadPermit | None = None,
    ) -> JobRun:
        own: JobParcels | None = None
        if not travels(job):
            if self._parcels is None:
                log.emit(Placed(self._me.name))
                return self._local.open(job, log, stop, execution_id, uploads, permit)
            own = JobParcels(self._parcels, self._settings, job, execution_id, uploads)
        attempt = self._known.get(execution_id, 0)
        run = ClusterRun(self._cluster, job, log, stop, execution_id, own, known_attempt=attempt)
        self._runs[execution_id] = run
        self._roster.changed()
        run.on_close = lambda: self._runs.pop(execution_id, None)
        return run

    def has_output(self, execution_id: str) -> bool:
        return execution_id in self._known or self._local.has_output(execution_id)

    def runs_elsewhere(self, job: Job) -> bool:
        others = (each for each in self._roster.members() if each.name != self._me.name)
        return self._travels(job) and any(each.healthy and each.slots for each in others)

    def status(self) -> RunnerStatus:
        own, members = self._local.status(), self._roster.members()
        facts = [
            {"name": each.name, "version": each.software, "tier": each.tier, "slots": each.slots, "busy": each.busy}
            | {"healthy": each.healthy, "waiting": each.waiting, "accepts": each.accepts, "packages": each.packages}
            for each in members
        ]
        cluster = {
            "member": self._me.name,
            "connected": self._broker.is_connected,
            "members": facts,
            "missing": [each.name for each in self._roster.silent() if not each.leaving],
            "attempts": self._host.attempts,
            "fenced": self._host.fenced,
            "hosts_lost": self._cluster.lost,
            "republished": self._cluster.republished,
        }
        # Without slots, a member takes jobs before there is a host, and they wait for one. If it said that it takes
        # none, a load balancer would hide all such members at once, and with them the jobs that they keep.
        can_run = not self._settings.slots or any(each.healthy and each.slots for each in members)
        healthy = self._broker.is_connected and can_run
        return dataclasses.replace(
            own, healthy=healthy, slots=self._roster.slots(), details={**own.details, "cluster": cluster}
        )

    async def packages(self, *, renew: bool = False) -> Sequence[PackageFacts]:
        return await self._local.packages(renew=renew)

    def kept_result(self, execution_id: str) -> KeptResult | None:
        return self._local.kept_result(execution_id)

    def drop_result(self, execution_id: str) -> None:
        self._local.drop_result(execution_id)

    def held_kernels(self) -> list[HeldKernel]:
        return self._roster.held_kernels()

    async def release(self, name: str) -> None:
        kernel = next((each for each in self.held_kernels() if each.id == name), None)
        if kernel is None or kernel.access["host"] == self._me.name:
            await self._local.release(name)
            self._roster.changed()
            return
        host = kernel.access["host"]
        reply = await self._broker.ask(subjects.cancel(host), encode(Release(name)), RELEASE_SECONDS)
        if reply is None:
            attach = kernel.access.get("attach", "")
            raise Conflict(f"the host {host} holds the kernel {name} and does not answer; attach to it there: {attach}")
        self._roster.released(host, name)
        if not decode(Taken, reply).known:
            raise NotFound(f"the host {host} does not hold the kernel {name} any more")

    async def open_console(self, seconds: float) -> HeldKernel:
        if not self._settings.slots:
            hosts = ", ".join(each.name for each in self._roster.members() if each.slots and each.accepts)
            there = f"run `transform-gateway console` on the machine of a member with slots: {hosts or 'there is none'}"
            raise Conflict(f"this member of the cluster has no kernels (SLOTS=0); {there}")
        kernel = await self._local.open_console(seconds)
        self._roster.changed()
        return on_host(kernel, self._me.name)

    async def aclose(self) -> None:
        self.peers.close()
        await self._host.drain()
        await self._host.aclose()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
            await self._roster.leave()
        await self._deliverer.aclose()
        await self._local.aclose()
        await self._broker.aclose()

    async def _restore(self) -> None:
        """Write the broker's records of this member's jobs again."""
        await self._cluster.remove_leftovers()
        await self.claims.restore()

    async def _tidy(self) -> None:
        while True:
            await asyncio.sleep(TIDY_SECONDS)
            await self._cluster.remove_leftovers()

    def _own_status(self) -> RunnerStatus:
        """Return the state of this machine; a machine that would fail a job has no free slot."""
        status, problem = self._local.status(), ""
        if self._settings.slots:
            try:
                self._check_machine()
            except GatewayError as error:
                problem = str(error)
                status = dataclasses.replace(status, healthy=False)
        if problem and not self._problem:
            log.warning("this host takes no jobs of the cluster: %s", problem)
        self._problem = problem
        return status

    def _check(self, job: Job) -> None:
        """Refuse a job that only the machine of this member could run, if it has no slots."""
        if not self._settings.slots and not self._travels(job):
            raise BadRequest(
                "this member of the cluster runs no jobs itself (SLOTS=0), so a job needs an output_url, tables by "
                f"URL and less than {JOB_CAP_BYTES} bytes of code, unless CLUSTER_ADVERTISE_URL is set; send it to a "
                "member with slots"
            )

    def _travels(self, job: Job) -> bool:
        return self._parcels is not None or travels(job)

    def _take_events(self, data: bytes) -> None:
        batch = decode(EventBatch, data)
        run = self._runs.get(batch.id)
        if run is not None:
            run.take(batch)

    def _wake_all(self) -> None:
        for run in self._runs.values():
            run.wake()


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.error("%s ended", task.get_name(), exc_info=task.exception())
