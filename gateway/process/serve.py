"""Start the gateway, run it, and shut it down."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import selectors
import socket
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from functools import partial

from tornado.netutil import bind_sockets
from tornado.web import Application

from gateway.core.addresses import authority, local_url
from gateway.core.errors import ConfigurationError, FailureCode, NotReady
from gateway.core.settings import FILES, Settings
from gateway.http.access.auth import Guard
from gateway.http.access.peer_connection import answer_peer
from gateway.http.server import make_server
from gateway.jobs.refusal_log import WRITE_SECONDS, RefusalLog
from gateway.jobs.service import JobService
from gateway.process import privileges
from gateway.process.descriptors import divide_descriptors
from gateway.process.pidfile import PidFile
from gateway.process.service import running_service
from gateway.process.signals import StopSignals
from gateway.process.tls import broker_context, load_broker_files, load_certificate, server_context
from gateway.process.token_file import read_tokens, warnings_of_tokens
from gateway.storage import ObjectClient
from gateway.telemetry.logging import configure_logging
from gateway.telemetry.metrics import Metrics
from kernel_spec.client.async_client import LauncherClient, LauncherError
from kernel_spec.fork_server.preload import modules_with
from kernel_spec.launcher.user_leases import WorkspaceError
from kernel_spec.launcher.workspaces import check_socket_path
from kernel_spec.protocol.options import LauncherOptions
from kernel_spec.sandbox.probe.report import Report

log = logging.getLogger(__name__)

#: How long a stop waits for the answers to the last requests.
LAST_ANSWERS_SECONDS = 2.0

#: Time after the last job of a drain in which its caller, whose polls are 0.2 s apart, reads its log and its result.
LAST_READS_SECONDS = 1.0

#: Number of copies and removals at the same time; more would only compete for the disk.
FILE_THREADS = 4


def serve(settings: Settings) -> None:
    """Run the gateway until SIGTERM or SIGINT, then drain; SIGHUP drains too unless there are files to read again.

    The order matters: the launcher starts before this process drops root, because it keeps root; the port is bound
    before as well, so that a low port works. No request is accepted before root is dropped.

    Raises
    ------
    ConfigurationError
        The gateway cannot start with these settings.
    """
    configure_logging(settings)
    settings = divide_descriptors(settings, _workspaces(settings))
    user = privileges.gateway_user()
    _check_root(settings, user)
    for setting in FILES:  # SIGHUP reads them without root
        path = getattr(settings, setting)
        if path is not None:
            privileges.check_readable(path, user, setting.upper())
    tokens, tls, broker_tls = (
        read_tokens(settings, user.uid),
        server_context(settings, user.uid),
        broker_context(settings, user.uid),
    )
    for text in warnings_of_tokens(settings, tokens):
        log.warning("%s", text)
    try:
        check_socket_path(settings.state_dir / "workspaces")
    except WorkspaceError as error:
        raise ConfigurationError(f"{error}. Choose another directory (STATE_DIR, --state-dir)") from None
    privileges.prepare_state_dir(settings.state_dir, user)
    with PidFile(settings.state_dir) as pid_file, ExitStack() as stack:
        sockets = [stack.enter_context(opened) for opened in _bind(settings)]
        launcher = _launcher(settings, user) if settings.slots else None
        if launcher is not None:
            stack.callback(launcher.close)
            _check_tier(settings, Report.from_json(launcher.hello.report), user)
        url = local_url(settings.host, sockets[0].getsockname()[1], "http" if tls is None else "https")
        running = pid_file.write(url, str(settings.tls_cert_file or ""))
        loop_factory = _polling_loop if os.geteuid() != 0 else None
        privileges.drop(user, launcher.hello.workspace_gids if launcher is not None else ())
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(_run(settings, launcher, sockets, Guard(settings, tokens, running.token), tls, broker_tls))


def _polling_loop() -> asyncio.AbstractEventLoop:
    """Return a loop without epoll, for a gateway of the same user as its jobs.

    Linux counts the descriptors in all epoll instances of a user together (epoll(7), max_user_watches). A job that used
    them up made the gateway drop every new connection, also the one that would have cancelled it.
    """
    return asyncio.SelectorEventLoop(selectors.PollSelector())


def _launcher(settings: Settings, user: privileges.GatewayUser) -> LauncherClient:
    try:
        return LauncherClient.spawn(_launcher_options(settings, user), is_supervised=True)
    except LauncherError as error:
        if error.code == "wrong_owner":
            raise ConfigurationError(str(error)) from None
        # it may have been killed, as when memory was used up
        raise NotReady(f"the launcher of kernels did not start: {error}") from error


def _launcher_options(settings: Settings, user: privileges.GatewayUser) -> LauncherOptions:
    return LauncherOptions(
        state_dir=str(settings.state_dir),
        workspaces=_workspaces(settings),
        gateway_uid=user.uid,
        fork_server=settings.use_fork_server,
        modules=modules_with(settings.preload) if settings.preload else None,
        allow_network=settings.allow_network,
        allow_loopback=settings.allow_loopback,
    )


def _workspaces(settings: Settings) -> int:
    # in addition to running and waiting kernels, one kernel for each slot may be terminating
    kernels = 2 * settings.slots + settings.slots + settings.ready_kernels + settings.held_kernels
    return kernels + settings.personal_kernels + 1


def _check_root(settings: Settings, user: privileges.GatewayUser) -> None:
    """Refuse a required tier whose promise, a network-facing process without privilege, does not hold."""
    if settings.require_tier and os.geteuid() == 0 and user.uid == 0:
        raise ConfigurationError(
            f"REQUIRE_TIER={settings.require_tier} needs a gateway without root, but {user.problem}"
        )


def _check_tier(settings: Settings, report: Report, user: privileges.GatewayUser) -> None:
    """Refuse to start with less isolation than required; tiers are letters, and A is the strongest."""
    tier = report.tier.value
    if report.problem and (settings.require_tier or not settings.allow_unsandboxed):
        raise NotReady(f"the layers of the sandbox could not be tried: {report.problem}; start the gateway again later")
    if settings.require_tier and tier > settings.require_tier:
        raise ConfigurationError(
            f"the sandbox reaches tier {tier} here, but tier {settings.require_tier} is required (REQUIRE_TIER, "
            "--require-tier); `transform-gateway doctor` lists the missing layers and how to turn them on"
        )
    if tier == "D" and not settings.allow_unsandboxed:
        reasons = [user.problem] if user.uid == 0 else []
        reasons += [f"{proof.name}: {proof.detail}" for proof in report.proofs if not proof.held]
        reason = f" ({'; '.join(reasons)})" if reasons else ""
        raise ConfigurationError(
            f"the sandbox does not work here (tier D){reason}: jobs could do whatever the gateway's user can. "
            "See `transform-gateway doctor`; to start anyway, set ALLOW_UNSANDBOXED (--allow-unsandboxed)"
        )


def _bind(settings: Settings) -> list[socket.socket]:
    try:
        return bind_sockets(settings.port, settings.host or None, backlog=512)
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on {authority(settings.host, settings.port)}: {error.strerror or error}. "
            "Set another port with PORT (--port), or another address with HOST (--host)"
        ) from error


async def _run(
    settings: Settings,
    launcher: LauncherClient | None,
    sockets: list[socket.socket],
    guard: Guard,
    tls: ssl.SSLContext | None,
    broker_tls: ssl.SSLContext | None,
) -> None:
    signals = StopSignals()
    has_broker_files = settings.cluster_tls_ca_file is not None or settings.cluster_tls_cert_file is not None
    reads_files = settings.auth_token_file is not None or tls is not None or has_broker_files
    signals.install(partial(_reload, settings, guard, tls, broker_tls) if reads_files else None)
    loop = asyncio.get_running_loop()
    loop.set_default_executor(_file_threads())
    metrics = Metrics()
    async with (
        running_service(settings, launcher, metrics, broker_tls) as service,
        ObjectClient(WRITE_SECONDS, hosts=settings.storage_hosts) as refusal_client,
    ):
        app = _application(service, settings, metrics, guard, RefusalLog(refusal_client))
        if service.peers is not None and not settings.runs_only:
            await service.peers.serve(partial(answer_peer, app))
        server = make_server(app, settings, metrics, tls)
        server.add_sockets(sockets)
        scheme, port = "http" if tls is None else "https", sockets[0].getsockname()[1]
        tier = f"tier {launcher.hello.tier}" if launcher is not None else "without kernels"
        log.info("listening on %s://%s, %s", scheme, authority(settings.host, port), tier)
        # The objects made so far live as long as the process. The garbage collector scanned all 52,000 of them every
        # hundred jobs, which delayed all requests by 70 ms (measured).
        gc.freeze()
        lost = asyncio.ensure_future(launcher.lost() if launcher is not None else asyncio.Event().wait())
        stopped = asyncio.ensure_future(signals.stop.wait())
        try:
            await asyncio.wait({lost, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if lost.done():
                log.critical("the launcher of kernels is gone for good; the gateway exits, so that it can be restarted")
                _end_jobs(service)
                await service.drain()
                raise SystemExit(1)
            running = len(service.running())
            log.info("stopping: no new jobs; jobs that run: %d, with %g s to finish", running, settings.drain_seconds)
            await _drain(service, signals)
            if running:
                await asyncio.sleep(LAST_READS_SECONDS)
        finally:
            for task in (lost, stopped):
                task.cancel()
            service.feed.close()
            await server.stop_answering(LAST_ANSWERS_SECONDS)
            # waits for the responses of the last jobs, but not for idle keep-alive connections
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2):
                    await server.close_all_connections()


def _application(
    service: JobService, settings: Settings, metrics: Metrics, guard: Guard, refusals: RefusalLog
) -> Application:
    """Return the application of the role; the process of a host does not import the API, which takes 5 MiB."""
    if settings.runs_only:
        from gateway.http.probes import make_probes_app

        return make_probes_app(service, settings, metrics)
    from gateway.http.application import make_app
    from gateway.http.routes import MEMBER_ROUTES, PARCEL_ROUTES, ROUTES

    routes = ROUTES
    if service.peers is not None:
        routes += MEMBER_ROUTES
    if settings.cluster_advertise_url:
        routes += PARCEL_ROUTES
    return make_app(service, settings, metrics, guard, refusals, routes)


def _reload(settings: Settings, guard: Guard, tls: ssl.SSLContext | None, broker_tls: ssl.SSLContext | None) -> None:
    """Read the files of tokens, certificates and keys again; a file that cannot be used changes nothing."""
    if tls is not None:
        try:
            load_certificate(tls, settings, "tls_cert_file", os.geteuid())
            log.info("SIGHUP: read %s and %s again", settings.tls_cert_file, settings.tls_key_file)
        except ConfigurationError as error:
            log.error("SIGHUP: the certificate stays as it was: %s", error)
    if broker_tls is not None:
        try:
            load_broker_files(broker_tls, settings, os.geteuid())
            log.info("SIGHUP: read the files for connections to the broker again")
        except ConfigurationError as error:
            log.error("SIGHUP: the certificate for the broker stays as it was: %s", error)
    if settings.auth_token_file is not None:
        _reload_tokens(settings, guard)


def _reload_tokens(settings: Settings, guard: Guard) -> None:
    try:
        tokens = read_tokens(settings, os.geteuid())
    except ConfigurationError as error:
        log.error("SIGHUP: the tokens stay as they were: %s", error)
        return
    guard.replace(tokens)
    names = ", ".join(f"{token.name} ({token.kind.label})" for token in tokens)
    log.info("SIGHUP: read %s again; tokens: %s", settings.auth_token_file, names)
    for text in warnings_of_tokens(settings, tokens):
        log.warning("%s", text)


def _end_jobs(service: JobService) -> None:
    """Accept no new jobs and end the others; each caller gets an answer, and jobs without a waiting caller stay."""
    service.draining = True
    for record in (*service.queued(), *service.running()):
        record.stop.request(FailureCode.SHUTTING_DOWN)


async def _drain(service: JobService, signals: StopSignals) -> None:
    """Drain the service; a second interrupt ends the jobs that run, and their callers still get answers."""
    drained = asyncio.ensure_future(service.drain())
    hurried = asyncio.ensure_future(signals.hurry.wait())
    await asyncio.wait({drained, hurried}, return_when=asyncio.FIRST_COMPLETED)
    if not drained.done():
        log.info("interrupted again: ending the jobs that run")
        _end_jobs(service)
    hurried.cancel()
    await drained


def _file_threads() -> ThreadPoolExecutor:
    """Return the executor for blocking file operations with all of its threads started.

    It would otherwise start them one by one under load, and a number of threads that still grows after a thousand
    jobs looks like a leak.
    """
    executor = ThreadPoolExecutor(FILE_THREADS, thread_name_prefix="gateway-files")
    together = threading.Barrier(FILE_THREADS)
    wait([executor.submit(together.wait, 10) for _ in range(FILE_THREADS)])
    return executor
