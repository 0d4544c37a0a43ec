"""Putting the gateway together, running it, and taking it apart again."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from tornado.netutil import bind_sockets

from gateway import __version__, privileges
from gateway.errors import ConfigurationError
from gateway.http import make_app, make_server
from gateway.jobs.delivery import Deliverer
from gateway.jobs.local import LocalRunner
from gateway.jobs.service import JobService
from gateway.jobs.store import JobRecord
from gateway.kernels.conversation import shared_context
from gateway.kernels.kernel import KernelParts
from gateway.local_access import RUNTIME_FILE, TOKEN_FILE, write_token
from gateway.logs import configure_logging, log_job
from gateway.metrics import Metrics
from gateway.settings import Settings
from gateway.storage import Connections, ResultStore
from gateway.storage.embedded_s3 import EmbeddedS3, EmbeddedS3Options
from gateway.tracing import JobTracing
from kernel_spec.launcher_client import LauncherClient, LauncherError
from kernel_spec.limits import Limits
from kernel_spec.options import LauncherOptions

log = logging.getLogger(__name__)

FILE_THREADS = 4
"""Copies and removals at the same time; more would only compete for the disk."""


def serve(settings: Settings) -> None:
    """Run the gateway until SIGTERM or SIGINT, then drain.

    Order matters. The launcher is started first, because it must keep the root that this process then gives away;
    the port is bound before that too, so that a low port works; nothing of a request is seen before both are done.

    Raises
    ------
    ConfigurationError
        When it cannot start as configured.
    """
    configure_logging(settings)
    user = privileges.gateway_user()
    privileges.prepare_state_dir(settings.state_dir, user)
    sockets = _bind(settings)
    try:
        launcher = LauncherClient.spawn(_launcher_options(settings, user))
    except LauncherError as error:
        for opened in sockets:
            opened.close()
        raise ConfigurationError(f"the launcher of kernels did not start: {error}") from error
    try:
        _check_tier(settings, launcher.hello.tier)
        privileges.drop(user, launcher.hello.seat_gids)
        asyncio.run(_run(settings, launcher, sockets))
    finally:
        launcher.close()
        for name in (RUNTIME_FILE, TOKEN_FILE):
            (settings.state_dir / name).unlink(missing_ok=True)


def _launcher_options(settings: Settings, user: privileges.GatewayUser) -> LauncherOptions:
    # beside the kernels that run and those that wait, one for each slot may still be on its way out
    seats = 2 * settings.slots + settings.slots + settings.ready_kernels + settings.held_kernels + 1
    return LauncherOptions(
        state_dir=str(settings.state_dir),
        seats=seats,
        gateway_uid=user.uid,
        fork_server=settings.use_fork_server,
        allow_network=settings.allow_network,
        allow_loopback=settings.allow_loopback,
    )


def _check_tier(settings: Settings, tier: str) -> None:
    """Refuse to start with less isolation than was asked for; tiers are letters, and A is the strongest."""
    if settings.require_tier and tier > settings.require_tier:
        raise ConfigurationError(
            f"the sandbox reaches tier {tier} here, and tier {settings.require_tier} is required (REQUIRE_TIER, "
            "--require-tier); `transform-gateway doctor` says which layers are missing and what would turn them on"
        )
    if tier == "D" and not settings.allow_unsandboxed:
        raise ConfigurationError(
            "no layer of the sandbox can be had here (tier D): jobs could do whatever the gateway's user can. "
            "See `transform-gateway doctor`; to start all the same set ALLOW_UNSANDBOXED (--allow-unsandboxed)"
        )


def _bind(settings: Settings) -> list[socket.socket]:
    try:
        return bind_sockets(settings.port, settings.host or None, backlog=512)
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror or error}. "
            "Set another port with PORT (--port), or another address with HOST (--host)"
        ) from error


@asynccontextmanager
async def running_service(settings: Settings, launcher: LauncherClient, metrics: Metrics) -> AsyncIterator[JobService]:
    """Yield a service with kernels on their way, and end everything of it afterwards."""

    def finished(record: JobRecord) -> None:
        log_job(record)
        metrics.job_finished(record)
        if tracing is not None:
            try:
                tracing.job_finished(record)
            except Exception:
                # a library's fault in telling about a job must not keep the job's kernel and files from being freed
                log.exception("job %s: no trace of it could be made", record.execution_id)

    async with AsyncExitStack() as stack:
        tracing = JobTracing() if settings.enable_tracing else None
        if tracing is not None:
            stack.callback(tracing.close)
        context = await stack.enter_async_context(shared_context())
        await launcher.attach()
        limits = Limits(
            memory_bytes=settings.memory_bytes,
            cpu_seconds=settings.cpu_seconds,
            processes=settings.processes,
            descriptors=settings.descriptors,
            file_size_bytes=settings.file_size_bytes,
            disk_bytes=settings.disk_bytes,
        )
        parts = KernelParts(launcher, context, limits, settings.allow_network, settings.log_line_cap_bytes)
        internal_s3 = _internal_s3(settings)
        s3_started: asyncio.Future[None] | None = None
        if internal_s3 is not None:
            # the first kernels get ready meanwhile
            stack.push_async_callback(internal_s3.stop)
            s3_started = asyncio.ensure_future(internal_s3.start())
            stack.callback(s3_started.cancel)
        results = ResultStore(settings)
        connections = Connections()
        stack.callback(connections.close)
        runner = LocalRunner(settings, parts, Deliverer(settings, results, connections), connections)
        service = JobService(settings, runner, results, on_finished=finished, internal_s3=internal_s3)
        stack.push_async_callback(service.aclose)
        runner.start()
        if s3_started is not None:
            await s3_started
        yield service


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


async def _run(settings: Settings, launcher: LauncherClient, sockets: list[socket.socket]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.set_default_executor(_file_threads())
    metrics = Metrics()
    async with running_service(settings, launcher, metrics) as service:
        app = make_app(service, settings, metrics, write_token(settings.state_dir))
        server = make_server(app, settings, metrics)
        server.add_sockets(sockets)
        port = sockets[0].getsockname()[1]
        _write_runtime_file(settings, port)
        log.info("listening on http://%s:%d, tier %s", settings.host, port, launcher.hello.tier)
        # What is there now stays as long as the process: the collector looked through all 52,000 objects of it every
        # hundred jobs, and let everybody wait for 70 ms (measured).
        gc.freeze()
        lost = asyncio.ensure_future(launcher.lost())
        stopped = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait({lost, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if lost.done():
                log.critical("the launcher of kernels is gone; the gateway ends, so that it can be started anew")
                raise SystemExit(1)
            log.info("stopping: no new jobs; %d jobs have %g s to end", len(service.running()), settings.drain_seconds)
            await service.drain()
        finally:
            for task in (lost, stopped):
                task.cancel()
            server.stop()
            # answers of the last jobs are on their way out; an idle keep-alive connection is not worth waiting for
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2):
                    await server.close_all_connections()


def _file_threads() -> ThreadPoolExecutor:
    """Return the executor for blocking file work with all of its threads started.

    It would start them one by one as work comes together, and a count of threads that still grows after a thousand
    jobs cannot be told from a leak.
    """
    executor = ThreadPoolExecutor(FILE_THREADS, thread_name_prefix="gateway-files")
    together = threading.Barrier(FILE_THREADS)
    wait([executor.submit(together.wait, 10) for _ in range(FILE_THREADS)])
    return executor


def _write_runtime_file(settings: Settings, port: int) -> None:
    facts = {"pid": os.getpid(), "host": settings.host, "port": port, "started_at": time.time(), "version": __version__}
    path = settings.state_dir / RUNTIME_FILE
    draft = path.with_suffix(".part")
    draft.write_text(json.dumps(facts))
    draft.rename(path)


def read_runtime_file(state_dir: Path) -> dict[str, object] | None:
    """Return what the gateway of this state directory wrote about itself, or None when none is up."""
    try:
        facts = json.loads((state_dir / RUNTIME_FILE).read_text())
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) else None
