"""Small helpers for tasks of asyncio that the standard library does not have."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Coroutine
from typing import Any, TypeVar

A = TypeVar("A")
B = TypeVar("B")


@contextlib.asynccontextmanager
async def started(*work: Awaitable[Any]) -> AsyncIterator[tuple[asyncio.Future[Any], ...]]:
    """Start each of `work`; at the end of the block cancel what still runs, and wait until it has ended.

    Parameters
    ----------
    *work : awaitable
        Coroutines or futures.

    Yields
    ------
    tuple of Future
        One for each of `work`, in order.
    """
    tasks = tuple(asyncio.ensure_future(each) for each in work)
    try:
        yield tasks
    finally:
        pending = [task for task in tasks if not task.done()]
        for task in pending:
            task.cancel()
        if pending:
            await asyncio.wait(pending)


async def first_of(*futures: asyncio.Future[Any], timeout_seconds: float | None = None) -> None:
    """Return when one of `futures` is done, or after `timeout_seconds`; none is cancelled.

    Parameters
    ----------
    *futures : Future
        At least one.
    timeout_seconds : float, optional
        The longest wait.
    """
    await asyncio.wait(futures, timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED)


def retrieve_exception(future: asyncio.Future[Any]) -> None:
    """Mark the exception of a done future as seen, because asyncio reports one that nothing has retrieved.

    Parameters
    ----------
    future : Future
        Nothing awaits it any more; done or cancelled.
    """
    if not future.cancelled():
        future.exception()


async def set_within(event: asyncio.Event, seconds: float) -> bool:
    """Return when an event is set, or after a time.

    Parameters
    ----------
    event : Event
        Stays as it is.
    seconds : float
        The longest wait.

    Returns
    -------
    bool
        Whether it is set.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()


async def gather_two(first: Coroutine[Any, Any, A], second: Coroutine[Any, Any, B]) -> tuple[A, B]:
    """Await both; when one fails, cancel the other and raise the failure itself, not in a group.

    Parameters
    ----------
    first, second : coroutine
        Run at the same time; `first` begins first.

    Returns
    -------
    tuple
        The results of both.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = group.create_task(first), group.create_task(second)
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return tasks[0].result(), tasks[1].result()
