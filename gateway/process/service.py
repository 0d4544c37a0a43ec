"""Build the job service of the gateway from its parts. Without CLUSTER_URL nothing of a cluster is imported."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from gateway.core.errors import ConfigurationError
from gateway.core.settings import Settings
from gateway.jobs.delivery import Deliverer
from gateway.jobs.runner import JobRunner
from gateway.jobs.service import JobService
from gateway.jobs.store import JobRecord, JobStore
from gateway.local.job_request import OutputRules
from gateway.local.kernel import KernelParts
from gateway.local.kernel_client import shared_context
from gateway.local.runner import LocalRunner
from gateway.process.tls import members_context
from gateway.storage import KeptResultStore, ObjectClient
from gateway.storage.embedded_s3.server import EmbeddedS3, EmbeddedS3Options
from gateway.storage.state_directory import StateDirectory
from gateway.telemetry.logging import log_job
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.tracing import JobTracing
from kernel_spec.client.async_client import LauncherClient

if TYPE_CHECKING:
    from gateway.cluster.runner import ClusterRunner

log = logging.getLogger(__name__)


@asynccontextmanager
async def running_service(
    settings: Settings, launcher: LauncherClient | None, metrics: Metrics, broker_tls: ssl.SSLContext | None
) -> AsyncIterator[JobService]:
    """Yield a service that is starting its kernels, and close all of it afterwards."""

    def finished(record: JobRecord) -> None:
        log_job(record)
        metrics.job_finished(record)
        if tracing is not None:
            try:
                tracing.job_finished(record)
            except Exception:
                # the job's kernel and files must be freed even after a fault in the tracing library
                log.exception("job %s could not be traced", record.execution_id)

    async with AsyncExitStack() as stack:
        store = JobStore(settings, settings.state_dir / "store", metrics.store_committed)
        stack.callback(store.close)
        tracing = JobTracing() if settings.enable_tracing else None
        if tracing is not None:
            stack.callback(tracing.close)
        internal_s3 = _internal_s3(settings)
        s3_started: asyncio.Future[None] | None = None
        if internal_s3 is not None:
            # started concurrently with the first kernels
            stack.push_async_callback(internal_s3.stop)
            s3_started = asyncio.ensure_future(internal_s3.start())
            stack.callback(s3_started.cancel)
        results = KeptResultStore(settings)
        client = await stack.enter_async_context(
            ObjectClient(settings.storage_stall_seconds, hosts=settings.storage_hosts)
        )
        runner: LocalRunner | None = None
        if launcher is not None:
            parts = await _kernel_parts(settings, launcher, stack)
            runner = LocalRunner(settings, parts, results, client)
        cluster: ClusterRunner | None = None
        if settings.cluster_url:
            cluster = await _joined(settings, runner, results, client, broker_tls, metrics.lease_confirmed)
        service = JobService(
            settings,
            _either(cluster, runner),
            store,
            finished,
            internal_s3,
            StateDirectory(
                settings.state_dir,
                settings.min_free_disk_bytes,
                has_launcher=launcher is not None,
                stalled_seconds=store.stalled_seconds,
            ),
            cluster.claims if cluster is not None else None,
            cluster.peers if cluster is not None else None,
        )
        stack.push_async_callback(service.aclose)
        if runner is not None:
            runner.start()
        if s3_started is not None:
            await s3_started
        await _recover(service, store, cluster, runner, metrics)
        yield service


async def _kernel_parts(settings: Settings, launcher: LauncherClient, stack: AsyncExitStack) -> KernelParts:
    context = await stack.enter_async_context(shared_context())
    await launcher.attach()
    return KernelParts(
        launcher,
        context,
        settings.limits,
        settings.allow_network,
        settings.log_line_cap_bytes,
        OutputRules(settings.mixed_columns, settings.official_compatibility),
    )


async def _recover(
    service: JobService, store: JobStore, cluster: ClusterRunner | None, runner: LocalRunner | None, metrics: Metrics
) -> None:
    """Join the cluster, if there is one, and take on the jobs that an earlier process left."""
    if cluster is not None:
        unfinished = [stored.record for stored in store.unfinished()]
        await cluster.start(unfinished, lambda: service.draining, store.known_keys)
    for _ in service.recover():
        metrics.job_taken()
    if runner is not None:
        runner.forget_leftovers()


def _either(cluster: JobRunner | None, runner: JobRunner | None) -> JobRunner:
    found = cluster or runner
    if found is None:
        raise ConfigurationError("SLOTS is 0 without CLUSTER_URL")
    return found


def _internal_s3(settings: Settings) -> EmbeddedS3 | None:
    if not settings.enable_internal_s3:
        return None
    options = EmbeddedS3Options(
        data_dir=settings.state_dir / "s3",
        host=settings.internal_s3_host,
        port=settings.internal_s3_port,
        access_key=settings.internal_s3_access_key,
        secret_key=settings.internal_s3_secret_key,
        expire_seconds=settings.internal_s3_expire_seconds,
    )
    return EmbeddedS3(options, on_failure=lambda reason: log.critical("the embedded S3 server ended: %s", reason))


async def _joined(
    settings: Settings,
    local: JobRunner | None,
    results: KeptResultStore,
    client: ObjectClient,
    tls: ssl.SSLContext | None,
    on_confirmed: Callable[[float], None],
) -> ClusterRunner:
    """Return the runner of a cluster, connected to its broker.

    Raises
    ------
    BrokerMissing
        The broker cannot be used.
    """
    from gateway.cluster.broker import Broker
    from gateway.cluster.member import Member
    from gateway.cluster.no_machine import NoMachine
    from gateway.cluster.runner import ClusterRunner
    from gateway.storage.objects.parcel_client import ParcelClient
    from gateway.storage.parcels import Parcels

    me = Member.of(settings.state_dir)
    role = "host" if settings.runs_only else "member" if settings.slots else "acceptor"
    credentials = str(settings.cluster_credentials_file or "")
    broker = await Broker.connect(settings.cluster_url, me.name, role=role, credentials=credentials, tls=tls)
    state = StateDirectory(settings.state_dir, settings.min_free_disk_bytes)
    deliverer = Deliverer(settings, results, client)
    client.parcels = ParcelClient(settings.storage_stall_seconds, members_context(settings))
    parcels = Parcels(settings.cluster_advertise_url, settings.state_dir) if settings.cluster_advertise_url else None
    machine = local or NoMachine(results)
    return ClusterRunner(settings, me, machine, broker, deliverer, client, parcels, on_confirmed, state.check)
