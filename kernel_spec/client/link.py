"""The connection to the current launcher, also after the supervisor has restarted it.

`kernel_spec.supervisor` passes the control socket of each later launcher over a second socket. It may arrive before
this process has read the end of the launcher that it replaces.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TypeVar

from kernel_spec.client.connection import LauncherConnection, resolve
from kernel_spec.client.process import HELLO_SECONDS, LauncherError, LauncherProcess, receive_control
from kernel_spec.protocol.channel import Channel
from kernel_spec.protocol.messages import Answer, Hello, Message, Request

log = logging.getLogger(__name__)
A = TypeVar("A", bound=Answer)


class LauncherLink:
    """Sends requests to the current launcher.

    Parameters
    ----------
    process : LauncherProcess
        A launcher that is ready; stays the caller's.
    on_event : callable
        Called with each message that is not an answer.
    on_lost : callable
        Called when a launcher is gone, before the pending requests fail.

    Attributes
    ----------
    hello : Hello
        The last launcher's message about itself and the host.
    restarts : int
        Number of launchers that followed the first one.
    """

    def __init__(
        self, process: LauncherProcess, on_event: Callable[[Message], None], on_lost: Callable[[], None]
    ) -> None:
        self.hello = process.hello
        self.restarts = 0
        self._process = process
        self._on_event = on_event
        self._on_loss = on_lost
        self._on_restart: Callable[[], None] = lambda: None
        self._connection = LauncherConnection(process.channel, self._on_message, self._on_lost)
        self._has_hello = True
        self._successor: Channel | None = None
        self._gone: asyncio.Future[None] | None = None
        self._waiting: list[asyncio.Future[None]] = []

    @property
    def is_up(self) -> bool:
        """Whether a launcher accepts requests, as far as its socket shows."""
        return self._has_hello and not self._connection.is_lost

    def attach(self) -> None:
        """Read the launcher's messages in the running loop from now on."""
        loop = asyncio.get_running_loop()
        self._gone = loop.create_future()
        self._connection.attach()
        supervision = self._process.supervision
        if supervision is not None:
            supervision.setblocking(False)
            loop.add_reader(supervision, self._on_successor)

    def detach(self) -> None:
        """Stop reading; safe to call twice, and after the loop was closed."""
        self._connection.detach()
        self._give_up()

    async def lost(self) -> None:
        """Return when the launcher is gone and no other follows.

        Raises
        ------
        RuntimeError
            `attach` was not called.
        """
        if self._gone is None:
            raise RuntimeError("attach() first")
        await asyncio.shield(self._gone)

    async def available(self) -> None:
        """Return when a launcher accepts requests.

        Raises
        ------
        LauncherError
            ``launcher_lost``: it is gone, and no other follows.
        """
        if not self.is_up and self._gone is not None and not self._gone.done():
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            await turn
        if not self.is_up:
            raise LauncherError("launcher_lost", "the launcher is gone")

    def on_restart(self, callback: Callable[[], None]) -> None:
        """Set the function that is called, in the loop, when a restarted launcher accepts requests."""
        self._on_restart = callback

    async def exchange(
        self, request: Request, expected: type[A], seconds: float, descriptors: tuple[int, ...] = ()
    ) -> tuple[A, list[int]]:
        """Send a request and wait for its answer, as `LauncherConnection.exchange`."""
        if not self._has_hello:
            raise LauncherError("launcher_lost", "the launcher is gone and is being restarted")
        return await self._connection.exchange(request, expected, seconds, descriptors)

    def _on_message(self, message: Message) -> None:
        if isinstance(message, Hello):
            self._on_hello(message)
        else:
            self._on_event(message)

    def _on_successor(self) -> None:
        supervision = self._process.supervision
        if supervision is None:
            return
        try:
            channel = receive_control(supervision)
        except BlockingIOError:
            return
        if channel is None:
            log.error("the launcher's supervisor has ended: the launcher will not be restarted when it ends")
            self._forget_supervisor()
            if self._connection.is_lost:
                self._give_up()
            return
        if self._successor is not None:
            self._successor.close()
        self._successor = channel
        if self._connection.is_lost:
            self._connect()

    def _on_lost(self) -> None:
        self._has_hello = False
        self._on_loss()
        if self._process.supervision is None:
            self._give_up()
            return
        log.error("the launcher has ended, and its kernels with it; it is being restarted")
        if self._successor is not None:
            self._connect()

    def _connect(self) -> None:
        if self._successor is None:
            return
        self._process.channel.close()
        self._process.channel, self._successor = self._successor, None
        self._connection = connection = LauncherConnection(self._process.channel, self._on_message, self._on_lost)
        connection.attach()
        asyncio.get_running_loop().call_later(HELLO_SECONDS, self._check_hello, connection)

    def _check_hello(self, connection: LauncherConnection) -> None:
        """Close the socket of a launcher that hangs, which ends it; the next one follows."""
        if connection is self._connection and not self._has_hello and not connection.is_lost:
            log.error("the launcher was not ready within %g s", HELLO_SECONDS)
            connection.detach()
            self._process.channel.close()

    def _on_hello(self, hello: Hello) -> None:
        first = self._process.hello
        if hello.tier > first.tier or not set(hello.workspace_gids) <= set(first.workspace_gids):
            # This process has dropped root: it cannot join another group, and must not run jobs with less isolation.
            log.critical("the launcher has other users or a weaker sandbox (tier %s) than the first one", hello.tier)
            self._give_up()
            return
        self.hello, self._has_hello = hello, True
        self.restarts += 1
        log.warning("the launcher runs again, pid %d", hello.pid)
        self._wake()
        self._on_restart()

    def _give_up(self) -> None:
        self._forget_supervisor()
        if self._successor is not None:
            self._successor.close()
            self._successor = None
        if self._gone is not None:
            resolve(self._gone, None)
        self._wake()

    def _wake(self) -> None:
        for turn in self._waiting:
            resolve(turn, None)
        self._waiting.clear()

    def _forget_supervisor(self) -> None:
        supervision, self._process.supervision = self._process.supervision, None
        if supervision is None:
            return
        if self._gone is not None and not self._gone.get_loop().is_closed():
            self._gone.get_loop().remove_reader(supervision)
        supervision.close()
