"""The ZeroMQ conversation with one kernel: is it up, run this, has it answered.

Everything that arrives may be forged or lost, because user code lives in the kernel and holds its key. So the only
thing learnt here is *when to look*: the verdict comes from files and from the process itself.
"""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import zmq
import zmq.asyncio
from jupyter_client.asynchronous.client import AsyncKernelClient

MAX_MESSAGE_BYTES = 4 << 20
"""libzmq drops a connection that sends more in one part of a message; what it said is then lost, which the shim's own
last word and the process watch cover. Long output does not come this way.
"""
MAX_WAITING_MESSAGES = 16
"""Messages of one kernel that wait in this process, which a job can fill with the largest there are."""
FLOOD_BYTES = 64 << 20
"""By how much this process may grow while a kernel with a job is listened to. A message may have parts without end, and
libzmq takes them all in before it shows the first. Whose they are cannot be told: something else that grows this
process may end the listening as well. That costs a job no more than the second of two ways to hear that it is done.
"""
_LOOK_SECONDS = 0.05
_STATM = Path("/proc/self/statm")


class KernelConversation:
    """Shell and iopub of one kernel, from its welcome to its end.

    Parameters
    ----------
    client : AsyncKernelClient
        Made by the kernel's manager on a context of ours; owned from now on.
    """

    def __init__(self, client: AsyncKernelClient) -> None:
        self._client = client
        self._is_deaf = False
        # no heartbeat thread (a live heartbeat says nothing about progress) and no stdin (nobody is there to answer)
        client.start_channels(hb=False, stdin=False, control=False)
        for channel in (client.shell_channel, client.iopub_channel):
            channel.socket.linger = 0

    async def welcome(self) -> None:
        """Return when our iopub subscription is live (``iopub_welcome``, JEP 65, messaging protocol 5.4).

        Waits for ever: the caller has the deadline and watches the process.
        """
        async for message in self._messages(self._client.iopub_channel):
            if message["msg_type"] == "iopub_welcome":
                return

    async def execute(
        self, code: str, on_text: Callable[[str, str], None] | None = None, *, is_job: bool = False
    ) -> None:
        """Send one ``execute_request`` and return when its reply or its idle status arrives, whichever is first.

        Parameters
        ----------
        code : str
            The request's code; no user code is run before it.
        on_text : callable, optional
            Called with stream name and text for what was printed around the shim's own streams.
        is_job : bool
            Whether the code is a job, which may flood this process. What boots a kernel is our own, and a kernel must
            not fail to start because another request has grown this process meanwhile.

        Notes
        -----
        Either message may be forged: the return only says "look now". Waits for ever: the caller has the deadline.
        A kernel whose job floods is not heard any more, whatever it says.
        """
        if self._is_deaf:
            await asyncio.Event().wait()
        request = self._client.execute(code, silent=False, store_history=False, allow_stdin=False, stop_on_error=True)
        reply = asyncio.ensure_future(self._replied(request))
        idle = asyncio.ensure_future(self._went_idle(request, on_text))
        tasks = {reply, idle}
        flooded = asyncio.ensure_future(_flooded()) if is_job else None
        if flooded is not None:
            tasks.add(flooded)
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        if done == {flooded}:
            self._is_deaf = True
            self.close()
            await asyncio.Event().wait()

    def connection_info(self) -> dict[str, Any]:
        """Return what a connection file holds, the key included."""
        info: dict[str, Any] = dict(self._client.get_connection_info())
        info["key"] = info["key"].decode() if isinstance(info["key"], bytes) else info["key"]
        return info

    def close(self) -> None:
        """Close both channels; without this, descriptors stay behind for each kernel. May be called twice.

        Not by ``stop_channels``, which first opens the three channels that were never started, to close them.
        """
        for channel in (self._client.shell_channel, self._client.iopub_channel):
            if channel.is_alive():
                channel.stop()

    async def _replied(self, request: str) -> None:
        async for message in self._messages(self._client.shell_channel):
            if message["msg_type"] == "execute_reply" and message["parent_header"].get("msg_id") == request:
                return

    async def _went_idle(self, request: str, on_text: Callable[[str, str], None] | None) -> None:
        async for message in self._messages(self._client.iopub_channel):
            if message["parent_header"].get("msg_id") != request:
                continue
            content = message["content"]
            if message["msg_type"] == "status" and content.get("execution_state") == "idle":
                return
            if message["msg_type"] == "stream" and on_text is not None:
                on_text(str(content.get("name")), str(content.get("text", "")))

    async def _messages(self, channel: Any) -> AsyncIterator[dict[str, Any]]:
        while True:
            try:
                message: dict[str, Any] = await channel.get_msg(timeout=None)
            except (ValueError, TypeError, KeyError):  # a wrong signature or a malformed message: not for us
                continue
            yield message


async def _flooded() -> None:
    """Return when this process has grown by more than what is said to it by a kernel that means well."""
    most_bytes = resident_bytes() + FLOOD_BYTES
    while resident_bytes() <= most_bytes:  # noqa: ASYNC110 - nothing tells of memory that grows in another thread
        await asyncio.sleep(_LOOK_SECONDS)


def resident_bytes() -> int:
    """Memory of this process that lies in RAM."""
    return int(_STATM.read_bytes().split()[1]) * resource.getpagesize()


@asynccontextmanager
async def shared_context() -> AsyncIterator[zmq.asyncio.Context]:
    """Yield the one ZeroMQ context of the gateway; each further context would cost a thread and descriptors."""
    context = zmq.asyncio.Context(io_threads=1)
    # For the sockets to come: an option that is set on one which is connected already is of no effect.
    context.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
    context.setsockopt(zmq.RCVHWM, MAX_WAITING_MESSAGES)
    try:
        yield context
    finally:
        context.destroy(linger=0)
