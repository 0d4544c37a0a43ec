"""The control socket of a launcher in an asyncio loop: requests, their answers, and events."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, TypeVar

from kernel_spec.client.process import LauncherError
from kernel_spec.protocol.channel import Channel, ChannelClosed, ChannelError, close_all
from kernel_spec.protocol.messages import Answer, Message, Refused, Request

log = logging.getLogger(__name__)
A = TypeVar("A", bound=Answer)
T = TypeVar("T")


class LauncherConnection:
    """Sends requests and finds their answers; the channel stays the caller's.

    Parameters
    ----------
    channel : Channel
        The control socket.
    on_event : callable
        Called with each message that is not an answer.
    on_lost : callable
        Called when the launcher is gone, before the pending requests fail.
    """

    def __init__(self, channel: Channel, on_event: Callable[[Message], None], on_lost: Callable[[], None]) -> None:
        self._channel = channel
        self._on_event = on_event
        self._on_lost = on_lost
        self._loop: asyncio.AbstractEventLoop | None = None
        self._answers: dict[int, asyncio.Future[tuple[Any, list[int]]]] = {}
        self._lost: asyncio.Future[None] | None = None

    @property
    def is_lost(self) -> bool:
        """Whether the launcher is gone, or the connection was detached."""
        return self._lost is not None and self._lost.done()

    def attach(self) -> None:
        """Read the launcher's messages in the running loop from now on."""
        self._loop = asyncio.get_running_loop()
        self._lost = self._loop.create_future()
        self._channel.set_blocking(False)
        self._loop.add_reader(self._channel.fileno(), self._on_readable)

    def detach(self) -> None:
        """Stop reading; safe to call twice, and after the loop was closed."""
        if self._loop is None or self._lost is None:
            return
        # A closed loop has dropped its readers.
        if not self._loop.is_closed():
            self._loop.remove_reader(self._channel.fileno())
        resolve(self._lost, None)
        self._loop = None

    async def exchange(
        self, request: Request, expected: type[A], seconds: float, descriptors: tuple[int, ...] = ()
    ) -> tuple[A, list[int]]:
        """Send a request and wait for its answer.

        Parameters
        ----------
        request : Request
            The request; its id must not be in use.
        expected : type
            The class of the answer.
        seconds : float
            Time for the answer. A late one is dropped.
        descriptors : tuple of int
            Descriptors to send with the request; the caller's copies stay open.

        Returns
        -------
        answer : Answer
            An instance of `expected`.
        descriptors : list of int
            The descriptors that came with it; the caller owns them.

        Raises
        ------
        LauncherError
            The request was refused, the launcher is gone, or no answer came in time.
        """
        if self._loop is None:
            raise LauncherError("launcher_lost", "the launcher is gone")
        future: asyncio.Future[tuple[Any, list[int]]] = self._loop.create_future()
        self._answers[request.id] = future
        try:
            self._channel.send(request, descriptors)
            async with asyncio.timeout(seconds):
                answer, received = await _received(future)
        except TimeoutError:
            raise LauncherError("timeout", f"no answer from the launcher within {seconds:g} s") from None
        except (ChannelClosed, ChannelError, BlockingIOError) as error:
            raise LauncherError("launcher_lost", f"the launcher does not accept requests: {error}") from None
        finally:
            self._answers.pop(request.id, None)
        if isinstance(answer, Refused):
            raise LauncherError.of(answer)
        if not isinstance(answer, expected):
            close_all(received)
            raise LauncherError("launcher_failed", f"the launcher answered with {type(answer).__name__}")
        return answer, received

    def _on_readable(self) -> None:
        while True:
            try:
                message, descriptors = self._channel.receive()
            except BlockingIOError:
                return
            except ChannelClosed:
                self._fail_all()
                return
            except ChannelError as error:
                log.error("the launcher sent an invalid message: %s", error)
                continue
            self._on_message(message, descriptors)

    def _on_message(self, message: Message, descriptors: list[int]) -> None:
        if isinstance(message, Answer):
            future = self._answers.get(message.id)
            if future is not None and not future.done():
                future.set_result((message, descriptors))
                return
            # The task that asked was cancelled: its start failed elsewhere or was stopped.
            log.debug("an answer without a pending request: %s", type(message).__name__)
        else:
            self._on_event(message)
        close_all(descriptors)

    def _fail_all(self) -> None:
        self.detach()
        self._on_lost()
        for future in self._answers.values():
            resolve(future, (Refused(0, "launcher_lost", "the launcher is gone"), []))


async def _received(future: asyncio.Future[tuple[Any, list[int]]]) -> tuple[Any, list[int]]:
    try:
        return await future
    except asyncio.CancelledError:
        # The answer may have come before the cancelled task could run.
        if not future.cancelled():
            close_all(future.result()[1])
        raise


def resolve(future: asyncio.Future[T], result: T) -> None:
    """Set the result of a future that is not done; does nothing after its loop was closed."""
    if not future.done() and not future.get_loop().is_closed():
        future.set_result(result)
