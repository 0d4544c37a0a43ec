"""Personal kernels: kernels that front ends of Jupyter take from a running gateway, for the user who started it.

A front end connects to ``<STATE_DIR>/run/kernels.sock`` and sends requests of the launcher protocol, for one kernel
that is forked on demand: no ready kernel is taken from a job. Personal kernels have workspaces of their own
(PERSONAL_KERNELS) and no slot. A kernel ends with its connection, and all end with the gateway.

Only the user who started the gateway is served (SO_PEERCRED), and the mode of the socket keeps others from connecting:
the last close(2) of a descriptor that a peer has sent can take as long as the peer has set (SO_LINGER). As root, the
launcher removes everything that the companion of the notebook has put into the workspace, whoever owns it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from gateway.core.settings import Settings
from kernel_spec.client.async_client import LauncherClient, LauncherError
from kernel_spec.client.connection import resolve
from kernel_spec.client.gateway_launcher import GATEWAY_SOCKET, PEER_CREDENTIALS
from kernel_spec.client.process import KERNEL_GONE
from kernel_spec.protocol.channel import Channel, ChannelClosed, ChannelError, close_all
from kernel_spec.protocol.messages import (
    PROVISIONER_REQUESTS,
    Answer,
    Kill,
    Killed,
    Refused,
    Reserved,
    Signal,
    Signalled,
    Start,
    Started,
    Take,
)

log = logging.getLogger(__name__)

#: Pause after a connection that could not be accepted.
PAUSE_SECONDS = 1.0

Reply = tuple[Answer, tuple[int, ...]]


class PersonalKernels:
    """Serves the front ends of this machine; owns the socket, the connections and their kernels.

    Parameters
    ----------
    settings : Settings
        ``state_dir``, ``personal_kernels``, ``allow_network`` and ``allow_loopback``.
    launcher : LauncherClient
        Parent of the kernels.
    """

    def __init__(self, settings: Settings, launcher: LauncherClient) -> None:
        self._settings = settings
        self._launcher = launcher
        self._path = settings.state_dir / GATEWAY_SOCKET
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self.count = 0

    @property
    def limit(self) -> int:
        """How many kernels may be taken at the same time."""
        return self._settings.personal_kernels

    def start(self) -> None:
        """Listen, unless no kernels may be taken."""
        if not self.limit:
            return
        # the pid file makes sure that it is the socket of a dead gateway
        self._path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.setblocking(False)
        self._listener.bind(str(self._path))
        # before it listens, so that no other user can have connected
        self._path.chmod(0o600)
        self._listener.listen(self.limit)
        self._accepting = asyncio.create_task(self._accept(self._listener))

    async def aclose(self) -> None:
        """End all kernels; no more are started."""
        if self._listener is None or self._accepting is None:
            return
        tasks = {self._accepting, *self._connections}
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        self._listener.close()
        self._path.unlink(missing_ok=True)

    def take_place(self) -> None:
        """Count one more kernel; `free_place` must follow.

        Raises
        ------
        LauncherError
            All are taken.
        """
        if self.count >= self.limit:
            raise LauncherError("no_workspace", f"{self.count} personal kernels are taken already (PERSONAL_KERNELS)")
        self.count += 1

    def free_place(self) -> None:
        """Count one kernel less."""
        self.count -= 1

    def check(self, request: Take) -> None:
        """Refuse a front end whose kernel would not be the same with a launcher of its own.

        Raises
        ------
        LauncherError
            With the difference.
        """
        ours = os.path.realpath(sys.prefix)
        if request.environment_dir != ours:
            text = f"the gateway runs in the Python environment {ours}, Jupyter in {request.environment_dir}"
            raise LauncherError("other_environment", text)
        wanted = (request.allow_network, request.allow_loopback)
        if wanted != (self._settings.allow_network, self._settings.allow_loopback):
            text = "the gateway's jobs have other rights on the network (ALLOW_NETWORK, ALLOW_LOOPBACK)"
            raise LauncherError("other_network", text)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                endpoint, _ = await loop.sock_accept(listener)
            except OSError as error:  # no descriptors are left
                log.warning("a front end of Jupyter has to wait: %s", error)
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            try:
                self._serve(endpoint)
            except OSError as error:  # the directory of the workspaces is gone
                endpoint.close()
                log.warning("a front end of Jupyter gets no kernel: %s", error)

    def _serve(self, endpoint: socket.socket) -> None:
        _, uid, _ = PEER_CREDENTIALS.unpack(
            endpoint.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER_CREDENTIALS.size)
        )
        # the launcher works in this directory and refuses one that is not its user's
        owner = (self._settings.state_dir / "workspaces").stat().st_uid
        if uid != owner:
            log.warning("user %d asked for a personal kernel; only user %d gets them", uid, owner)
            endpoint.close()
            return
        channel = Channel(endpoint, accepts=PROVISIONER_REQUESTS)
        task = asyncio.create_task(_Connection(self, self._launcher, channel, self._settings.allow_network).serve())
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)


class _Connection:
    """One front end and its kernel."""

    def __init__(
        self, kernels: PersonalKernels, launcher: LauncherClient, channel: Channel, allow_network: bool
    ) -> None:
        self._kernels = kernels
        self._launcher = launcher
        self._channel = channel
        self._allow_network = allow_network
        self._kernel_id = uuid.uuid4().hex
        self._has_place = False
        self._handlers: dict[type, Callable[[Any, list[int]], Awaitable[Reply]]] = {
            Take: self._take,
            Start: self._start,
            Signal: self._signal,
            Kill: self._kill,
        }

    async def serve(self) -> None:
        """Answer requests until the front end or the gateway ends; then remove the kernel."""
        try:
            while True:
                request, descriptors = await self._receive()
                answer, sent = await self._answer(request, descriptors)
                self._channel.send(answer, sent)
                if self._has_place and isinstance(answer, Refused) and answer.code in KERNEL_GONE:
                    # the launcher has ended since: a front end whose connection has ended takes another kernel
                    return
        except ChannelClosed:
            pass
        except (ChannelError, BlockingIOError) as error:
            log.warning("the connection of a personal kernel is closed: %s", error)
        finally:
            self._channel.close()
            await self._release()

    async def _receive(self) -> tuple[Any, list[int]]:
        loop = asyncio.get_running_loop()
        while True:
            with contextlib.suppress(BlockingIOError):
                return self._channel.receive()
            readable: asyncio.Future[None] = loop.create_future()
            loop.add_reader(self._channel, resolve, readable, None)
            try:
                await readable
            finally:
                loop.remove_reader(self._channel)

    async def _answer(self, request: Any, descriptors: list[int]) -> Reply:
        try:
            if not self._has_place and not isinstance(request, Take):
                raise LauncherError("no_kernel", "no kernel was taken")
            return await self._handlers[type(request)](request, descriptors)
        except LauncherError as error:
            return Refused(request.id, error.code, str(error), error.report), ()
        finally:
            close_all(descriptors)

    async def _take(self, request: Take, _: list[int]) -> Reply:
        if self._has_place:
            raise LauncherError("kernel_exists", "this connection has a kernel already")
        self._kernels.check(request)
        self._kernels.take_place()
        self._has_place = True
        return Reserved(request.id, await self._launcher.reserve(self._kernel_id, "notebook")), ()

    async def _start(self, request: Start, outputs: list[int]) -> Reply:
        process = await self._launcher.start_kernel(
            self._kernel_id,
            output_fds=tuple(outputs),
            limits=request.limits,
            style="notebook",
            allow_network=self._allow_network,
            has_clients=request.has_clients,
        )
        log.info("personal kernel with pid %d started by the %s", process.pid, process.started_by)
        return Started(request.id, process.pid, process.started_by, process.is_prefaulted), (process.pidfd,)

    async def _signal(self, request: Signal, _: list[int]) -> Reply:
        await self._launcher.signal(self._kernel_id, request.number)
        return Signalled(request.id), ()

    async def _kill(self, request: Kill, _: list[int]) -> Reply:
        return Killed(request.id, await self._launcher.kill(self._kernel_id)), ()

    async def _release(self) -> None:
        """Kill the kernel and remove its workspace; if that fails, its place stays taken, as its workspace does."""
        if not self._has_place:
            return
        try:
            await self._launcher.kill(self._kernel_id)
            await self._launcher.remove(self._kernel_id)
        except LauncherError as error:
            if error.code not in KERNEL_GONE:
                log.error("personal kernel %s could not be removed: %s", self._kernel_id, error)
                return
        self._kernels.free_place()
