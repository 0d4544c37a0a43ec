"""Jobs as in a plain Python process, in which no event loop runs.

ipykernel runs a cell inside a task of the event loop of the main thread. There `asyncio.run()` raises an error, and so
does every library that runs a loop of its own. So the loop is detached, as "Extending asyncio" of Python's
documentation describes. The kernel would do nothing in the meantime anyway, because the cell blocks its loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import threading
from asyncio.events import _get_running_loop, _set_running_loop
from collections.abc import Iterator

__all__ = ["no_event_loop"]


@contextlib.contextmanager
def no_event_loop() -> Iterator[None]:
    """Detach the event loop that runs in this thread, if one does, and attach it again at the end."""
    loop = _get_running_loop()
    if loop is None:
        yield
        return
    task = asyncio.current_task()
    with contextlib.ExitStack() as stack:
        if task is not None:
            asyncio.tasks._leave_task(loop, task)
            stack.callback(asyncio.tasks._enter_task, loop, task)
        stack.callback(_set_running_loop, loop)
        _set_running_loop(None)
        stack.enter_context(_no_current_loop(loop))
        hooks = sys.get_asyncgen_hooks()
        stack.callback(sys.set_asyncgen_hooks, *hooks)
        sys.set_asyncgen_hooks(None, None)
        if threading.current_thread() is threading.main_thread():
            # the loop of a job may set the descriptor that a signal wakes, and leaves none behind
            stack.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(-1))
        yield


@contextlib.contextmanager
def _no_current_loop(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Let get_event_loop() work as at the start of a process."""
    if sys.version_info >= (3, 14):  # where it makes no loop any more, and policies are deprecated
        asyncio.set_event_loop(None)
        try:
            yield
        finally:
            asyncio.set_event_loop(loop)
        return
    policy = asyncio.get_event_loop_policy()
    asyncio.set_event_loop_policy(None)
    try:
        yield
    finally:
        asyncio.set_event_loop_policy(policy)
