"""The ZeroMQ conversation with one kernel: is it up, run this, has it answered.

Everything that arrives may be forged or lost, because user code lives in the kernel and holds its key. So the only
thing learnt here is *when to look*: the verdict comes from files and from the process itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import zmq
import zmq.asyncio
from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.session import Session

log = logging.getLogger(__name__)

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
MESSAGES_PER_WAKE = 4
"""After this many messages of one socket the loop gets its turn again; a boot or a small job sends fewer together."""
_UNREADABLE = (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError)
_LOOK_SECONDS = 0.05
_STATM = Path("/proc/self/statm")
_HOW = {
    "silent": False,
    "store_history": False,
    "user_expressions": {},
    "allow_stdin": False,
    "stop_on_error": True,
}


class KernelConversation:
    """Shell and iopub of one kernel, from its welcome to its end; made in a running loop.

    Parameters
    ----------
    context : zmq.asyncio.Context
        Of `shared_context`.
    connection : KernelConnectionInfo
        What the kernel's connection file holds; its sockets are bound already.

    Notes
    -----
    No heartbeat (a live one says nothing about progress) and no stdin (nobody is there to answer). The sockets are read
    by callbacks of the loop and not through ``zmq.asyncio``: its futures and tasks for the ten messages of a boot and
    a small job were a seventh of the gateway's processor time (profiled).
    """

    def __init__(self, context: zmq.asyncio.Context, connection: KernelConnectionInfo) -> None:
        self._connection = connection
        self._session = Session(key=connection["key"], signature_scheme=connection["signature_scheme"])
        self._loop = asyncio.get_running_loop()
        self._welcomed = self._loop.create_future()
        self._answered: asyncio.Future[None] | None = None
        self._request = ""
        self._on_text: Callable[[str, str], None] | None = None
        self._is_deaf = False
        self._sockets: list[zmq.Socket[bytes]] = []
        try:
            self._shell = self._open(context, zmq.DEALER, connection["shell_port"])
            self._iopub = self._open(context, zmq.SUB, connection["iopub_port"])
            self._iopub.setsockopt(zmq.SUBSCRIBE, b"")
            self._loop.call_soon(self._read, self._iopub)  # for the same reason as after sending
        except BaseException:
            self.close()
            raise

    async def welcome(self) -> None:
        """Return when our iopub subscription is live (``iopub_welcome``, JEP 65, messaging protocol 5.4).

        Waits for ever: the caller has the deadline and watches the process.
        """
        await self._welcomed

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
        self._answered = self._loop.create_future()
        self._on_text = on_text
        watch = asyncio.ensure_future(self._watch_for_flood()) if is_job else None
        try:
            if not self._is_deaf:
                request = self._session.msg("execute_request", {"code": code, **_HOW})
                self._request = request["msg_id"]
                self._shell.send_multipart(self._session.serialize(request), zmq.NOBLOCK)
                # Sending may take the notice of a message from the descriptor (zmq_getsockopt(3), ZMQ_FD).
                self._read(self._shell)
            await self._answered
        finally:
            self._answered = self._on_text = None
            if watch is not None:
                watch.cancel()

    def connection_info(self) -> dict[str, Any]:
        """Return what a connection file holds, the key included."""
        return {**self._connection, "key": self._session.key.decode()}

    def close(self) -> None:
        """Close both sockets; without this, descriptors stay behind for each kernel. May be called twice."""
        while self._sockets:
            socket = self._sockets.pop()
            self._loop.remove_reader(socket.FD)
            socket.close(linger=0)

    def _open(self, context: zmq.asyncio.Context, kind: zmq.SocketType, port: int) -> zmq.Socket[bytes]:
        # not one of zmq.asyncio, which the context makes for its managers
        socket: zmq.Socket[bytes] = context.socket(kind, socket_class=zmq.Socket)  # type: ignore[arg-type, assignment]
        self._sockets.append(socket)
        socket.connect(f"ipc://{self._connection['ip']}-{port}")
        self._loop.add_reader(socket.FD, self._read, socket)
        return socket

    def _read(self, socket: zmq.Socket[bytes]) -> None:
        """Take what has come. The descriptor tells of it once, so all must be taken, if not now then soon."""
        for _ in range(MESSAGES_PER_WAKE):
            if socket.closed:
                return
            try:
                parts = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.ZMQError:
                return  # nothing more is there
            try:
                _, unsigned = self._session.feed_identities(parts)
                self._take(self._session.deserialize(unsigned), is_reply=socket is self._shell)
            except _UNREADABLE:
                pass  # a wrong signature or a malformed message: not for us
            except Exception:
                # whatever it was, the answer may wait behind it, and the descriptor does not tell of it again
                log.exception("a message of a kernel could not be taken")
        self._loop.call_soon(self._read, socket)

    def _take(self, message: dict[str, Any], *, is_reply: bool) -> None:
        kind = message["msg_type"]
        if kind == "iopub_welcome" and not self._welcomed.done():
            self._welcomed.set_result(None)
        if self._answered is None or self._answered.done() or message["parent_header"].get("msg_id") != self._request:
            return
        content = message["content"]
        if kind == "stream" and self._on_text is not None:
            self._on_text(str(content.get("name")), str(content.get("text", "")))
        is_idle = kind == "status" and content.get("execution_state") == "idle"
        if kind == "execute_reply" if is_reply else is_idle:
            self._answered.set_result(None)

    async def _watch_for_flood(self) -> None:
        """Stop listening when this process has grown by more than is said to it by a kernel that means well."""
        with contextlib.suppress(OSError):  # without a descriptor to look with it is not listened to either
            most_bytes = resident_bytes() + FLOOD_BYTES
            while resident_bytes() <= most_bytes:  # noqa: ASYNC110 - nothing tells of memory that grows in a thread
                await asyncio.sleep(_LOOK_SECONDS)
        self._is_deaf = True
        self.close()


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
