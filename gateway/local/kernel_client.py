"""The ZeroMQ client of one kernel: waits until it serves, executes code, waits for the answer.

Every message may be forged or lost, because user code runs in the kernel and has its key. So a message only means that
it is *time to look*: the verdict comes from files and from the process itself. Only the members that are needed are
parsed: 4 MB of small objects took the loop 0.4 s, and a job can send them without end.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import resource
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import zmq
import zmq.asyncio
from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.session import DELIM, Session

log = logging.getLogger(__name__)

#: libzmq drops a connection that sends more in one part of a message. Its messages are then lost, which the shim's done
#: frame and the process watch cover. Long output does not come this way.
MAX_MESSAGE_BYTES = 4 << 20
#: Messages of one kernel that wait in this process; a job can fill all of them up to the largest size.
MAX_WAITING_MESSAGES = 16
#: By how much this process may grow while it listens to a kernel with a job. A message may have any number of parts,
#: and libzmq reads them all before it shows the first. Their sender cannot be identified, so other growth of this
#: process may end the listening as well. That costs a job only the second of two ways to report that it is done.
FLOOD_BYTES = 64 << 20
#: After this many messages of one socket the loop gets its turn again; a boot or a small job sends fewer at a time.
MESSAGES_PER_WAKE = 4
_LOOK_SECONDS = 0.05
_STATM = Path("/proc/self/statm")
_HOW = {
    "silent": True,  # else the kernel sends the code back before it runs it, and this process parses that
    "store_history": False,
    "user_expressions": {},
    "allow_stdin": False,
    "stop_on_error": True,
}


class _Header(msgspec.Struct):
    msg_type: str


class _Parent(msgspec.Struct):
    msg_id: str = ""


class _Content(msgspec.Struct):
    name: str = ""
    text: str = ""
    execution_state: str = ""


_HEADERS = msgspec.json.Decoder(_Header)
_PARENTS = msgspec.json.Decoder(_Parent)
_CONTENTS = msgspec.json.Decoder(_Content)


class KernelClient:
    """Shell and iopub sockets of one kernel; created in a running loop.

    Parameters
    ----------
    context : zmq.asyncio.Context
        Of `shared_context`.
    connection : KernelConnectionInfo
        Content of the kernel's connection file; the kernel has bound its sockets already.
    session : Session
        Signs and checks messages with the key of the file.

    Notes
    -----
    There is no heartbeat (it says nothing about progress) and no stdin (there is no user to answer). Callbacks of the
    loop read the sockets, not ``zmq.asyncio``: its futures and tasks for the ten messages of a boot and a small job
    took a seventh of the gateway's processor time (profiled).
    """

    def __init__(self, context: zmq.asyncio.Context, connection: KernelConnectionInfo, session: Session) -> None:
        self._connection = connection
        self._session = session
        self._loop = asyncio.get_running_loop()
        self._subscribed = self._loop.create_future()
        self._answered: asyncio.Future[None] | None = None
        self._request, self._reply = "", ""
        self._on_text: Callable[[str, str], None] | None = None
        self._is_muted = False
        self._sockets: list[zmq.Socket[bytes]] = []
        try:
            self._shell = self._open(context, zmq.DEALER, connection["shell_port"])
            self._iopub = self._open(context, zmq.SUB, connection["iopub_port"])
            self._iopub.setsockopt(zmq.SUBSCRIBE, b"")
            self._loop.call_soon(self._read, self._iopub)  # for the same reason as after sending
        except BaseException:
            self.close()
            raise

    async def wait_subscribed(self) -> None:
        """Return when our iopub subscription is live (``iopub_welcome``, JEP 65, messaging protocol 5.4).

        There is no deadline: the caller has one and watches the process.
        """
        await self._subscribed

    async def wait_serving(self) -> None:
        """Return when the kernel answers requests, by one that runs no code. There is no deadline: the caller has one.

        A first ``execute_request`` would warm the kernel as well, but takes 2 ms more of its processor time (measured).
        """
        await self._ask("comm_info_request", {}, "comm_info_reply")

    async def execute(
        self, code: str, on_text: Callable[[str, str], None] | None = None, *, is_job: bool = False
    ) -> None:
        """Send one ``execute_request`` and return when its reply or its idle status arrives, whichever is first.

        Parameters
        ----------
        code : str
            The request's code; no user code is run before it.
        on_text : callable, optional
            Called with stream name and text of prints that bypassed the shim's own streams.
        is_job : bool
            Whether the code is a job, which may flood this process. Code that boots a kernel is our own, and a kernel
            must not fail to start because another request makes this process grow.

        Notes
        -----
        Either message may be forged: a return only means "look now". There is no deadline: the caller has one. Messages
        of a kernel whose job floods are no longer read.
        """
        self._on_text = on_text
        watch = asyncio.ensure_future(self._watch_for_flood()) if is_job else None
        try:
            await self._ask("execute_request", {"code": code, **_HOW}, "execute_reply")
        finally:
            self._on_text = None
            if watch is not None:
                watch.cancel()

    async def _ask(self, kind: str, content: dict[str, Any], reply: str) -> None:
        """Send one request and return when its reply or its idle status arrives."""
        self._answered = self._loop.create_future()
        try:
            if not self._is_muted:
                request = self._session.msg(kind, content)
                self._request, self._reply = request["msg_id"], reply
                self._shell.send_multipart(self._session.serialize(request), zmq.NOBLOCK)
                # Sending may take the notice of a message from the descriptor (zmq_getsockopt(3), ZMQ_FD).
                self._read(self._shell)
            await self._answered
        finally:
            self._answered = None

    def connection_info(self) -> dict[str, Any]:
        """Return the content of a connection file.

        Returns
        -------
        dict
            With the key.
        """
        return {**self._connection, "key": self._session.key.decode()}

    def close(self) -> None:
        """Close both sockets; else their descriptors would stay open. It may be called twice."""
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
        """Read the messages that have arrived. The descriptor signals them once, so none may stay unread."""
        for _ in range(MESSAGES_PER_WAKE):
            if socket.closed:
                return
            try:
                parts = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.ZMQError:
                return  # no more messages
            try:
                start = parts.index(DELIM) + 1
                signature, *signed = parts[start : start + 5]
                if hmac.compare_digest(signature, self._session.sign(signed)):
                    self._take(signed, is_reply=socket is self._shell)
            except (ValueError, RecursionError):
                pass  # malformed: not for us
            except Exception:
                # after any error: the answer may wait behind this message, and the descriptor does not signal it again
                log.exception("a message of a kernel could not be read")
        self._loop.call_soon(self._read, socket)

    def _take(self, signed: list[bytes], *, is_reply: bool) -> None:
        """Take the parts header, parent header, metadata and content of a message; a missing one is a ValueError."""
        header, parent, _, content = signed
        kind = _HEADERS.decode(header).msg_type
        if kind == "iopub_welcome" and not self._subscribed.done():
            self._subscribed.set_result(None)
        if self._answered is None or self._answered.done() or _PARENTS.decode(parent).msg_id != self._request:
            return
        is_answer = is_reply and kind == self._reply
        if not is_reply and kind in ("stream", "status"):
            said = _CONTENTS.decode(content)
            if kind == "stream" and self._on_text is not None:
                self._on_text(said.name, said.text)
            is_answer = kind == "status" and said.execution_state == "idle"
        if is_answer:
            self._answered.set_result(None)

    async def _watch_for_flood(self) -> None:
        """Stop listening when this process has grown by more than an honest kernel sends."""
        with contextlib.suppress(OSError):  # without a descriptor for the measurement there is no listening either
            most_bytes = resident_bytes() + FLOOD_BYTES
            while resident_bytes() <= most_bytes:  # noqa: ASYNC110 - there is no event for memory that grows in a thread
                await asyncio.sleep(_LOOK_SECONDS)
        self._is_muted = True
        self.close()


def resident_bytes() -> int:
    """Return the resident memory of this process.

    Returns
    -------
    int
        Bytes.
    """
    return int(_STATM.read_bytes().split()[1]) * resource.getpagesize()


@asynccontextmanager
async def shared_context() -> AsyncIterator[zmq.asyncio.Context]:
    """Yield the only ZeroMQ context of the gateway; each further context would cost a thread and descriptors.

    Yields
    ------
    zmq.asyncio.Context
        Closed with all its sockets at the end of the block.
    """
    context = zmq.asyncio.Context(io_threads=1)
    # Set for future sockets: these options have no effect on a socket that is already connected.
    context.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
    context.setsockopt(zmq.RCVHWM, MAX_WAITING_MESSAGES)
    try:
        yield context
    finally:
        context.destroy(linger=0)
