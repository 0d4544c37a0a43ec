"""ipykernel's application, trimmed to what a kernel for one job needs.

Differences from ``IPKernelApp``, and their reasons:

- No socket but the five ``ipc`` ones. ipykernel also binds a random TCP port on 127.0.0.1 for the output of forked
  children (``IOPubThread(pipe=True)``); here a forked child writes to its own descriptor 1 or 2 instead, which the
  parent's reader sees.
- Two threads of Python instead of five: the heartbeat is echoed by the control thread's loop (so that
  ``jupyter console --existing`` still finds it beating) and the shell channel is read by the main thread, which a
  kernel without subshells allows.
- Nothing is read from or written to disk: no profile directory, no configuration files, no history, no start-up
  files.
- No debugger (`kernel_spec.kernel.no_debugpy`), unless a person asks for it.
- The parent is not polled: the parent-death signal does that, and the poller takes a kernel in a pid namespace for
  an orphan.

Only `kernel_spec.kernel.boot`, in a kernel, and the fork server import this module.
"""

# mypy: disable-error-code="no-untyped-call"
# ipykernel has next to no annotations.

from __future__ import annotations

import asyncio
import codecs
import importlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

import zmq
from ipykernel import ipkernel
from ipykernel.control import ControlThread
from ipykernel.iostream import IOPubThread, OutStream
from ipykernel.ipkernel import IPythonKernel
from ipykernel.kernelapp import IPKernelApp
from ipykernel.zmqshell import ZMQInteractiveShell
from IPython.core.profiledir import ProfileDir
from traitlets import Bool, default, observe
from traitlets.config import Config
from zmq.eventloop.zmqstream import ZMQStream

from kernel_spec.kernel.wake_on_interrupt import wake_main_thread


class LocalIOPubThread(IOPubThread):
    """Publishes for this process only; messages of a forked child are dropped.

    Upstream, such a child with no pipe to its parent would use the parent's socket, and libzmq sockets do not
    survive a fork (libzmq issue 3223).
    """

    def _really_send(self, msg: Any, *args: Any, **kwargs: Any) -> None:
        if self._is_master_process():
            super()._really_send(msg, *args, **kwargs)


class ForkAwareOutStream(OutStream):
    """``sys.stdout`` of the kernel; in a forked child it writes to the descriptor of that name."""

    def write(self, string: str) -> int:
        """Publish the text, or in a forked child write it to the descriptor."""
        if self._is_master_process():
            return super().write(string) or len(string)
        data = memoryview(string.encode("utf-8", "replace"))
        descriptor = 2 if self.name == "stderr" else 1
        while data:
            data = data[os.write(descriptor, data) :]
        return len(string)

    def flush(self) -> None:
        """Publish what is waiting; a forked child's text never waits."""
        if self._is_master_process():
            super().flush()

    def publish_descriptor(self) -> None:
        """Publish what C code and child processes write to the descriptor, too, if a thread for that can be started."""
        with suppress(OSError):  # no descriptor is left
            readable, writable = os.pipe2(os.O_CLOEXEC)
            try:
                threading.Thread(target=self._publish_from, args=(readable,), daemon=True).start()
                os.dup2(writable, 2 if self.name == "stderr" else 1)
            except RuntimeError:
                os.close(readable)
            os.close(writable)

    def _publish_from(self, readable: int) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        while data := os.read(readable, _READ_BYTES):
            self.write(decoder.decode(data))


class EphemeralProfileDir(ProfileDir):
    """A profile with a location but without directories: a kernel for one job stores nothing there."""

    @observe("location")
    def _location_changed(self, change: Any) -> None:
        """Create nothing; upstream makes five directories and copies a README."""


class _NoModules:
    """`sys` without modules, for as long as ipykernel lists where each of them comes from.

    It does so for its debugger, and few kernels have one. Reading a thousand modules changes their reference counts,
    and so copies 1,200 pages into each forked kernel (measured: 5 ms and 5 MB).
    """

    modules: ClassVar[dict[str, object]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(sys, name)


class _NoShellChannelThread:
    """False, so that the kernel puts the shell stream on the main thread's loop.

    It is an object because ipykernel asks its parent thread whether an interrupt cancels a cell with ``await``.
    """

    def __init__(self) -> None:
        self.parent_thread = threading.main_thread()

    def __bool__(self) -> bool:
        return False


class MainThreadKernel(IPythonKernel):
    """An IPython kernel without subshells, whose shell channel the main thread reads."""

    def __init__(self, **kwargs: Any) -> None:
        prepared = JobShell.instance() if JobShell.initialized() else None
        upstream: Any = ipkernel
        if kwargs.get("debugpy_stream") is None:
            upstream.sys = _NoModules()
        try:
            super().__init__(**kwargs)
        finally:
            upstream.sys = sys
        if prepared is not None:
            prepared.kernel = self
            # both are the fork server's directory so far; scripts find that of their notebook by `_dh[0]`
            prepared.starting_dir = str(Path.cwd())
            prepared.user_ns["_dh"][:] = [Path.cwd()]
            prepared.init_environment()

    @property
    def _supports_kernel_subshells(self) -> bool:
        return False

    def do_complete(self, code: str, cursor_pos: int) -> dict[str, Any]:  # type: ignore[override]
        """Complete an attribute without its dot, as with Jedi: front ends list the matches."""
        reply: dict[str, Any] = super().do_complete(code, cursor_pos)
        matches, start = reply["matches"], reply["cursor_start"]
        if matches and code[start : start + 1] == "." and all(match.startswith(".") for match in matches):
            reply |= {"matches": [match[1:] for match in matches], "cursor_start": start + 1}
            for each in reply["metadata"]["_jupyter_types_experimental"]:
                each |= {"text": each["text"][1:], "start": start + 1}
        return reply

    def _abort_queues(self, subshell_id: str | None = None) -> None:
        """Abort all requests that were sent before the failed one was answered.

        Upstream, without its thread for the shell channel, aborts only the first of those that wait for the end of a
        cell with ``await``. They wait for a lock, which serves them in order, and so does this.
        """

        async def stop_aborting() -> None:
            async with self._main_asyncio_lock:
                self._aborting = False

        self._aborting = True
        if self.shell_stream is not None:
            self.shell_stream.flush()
        self.io_loop.add_callback(stop_aborting)

    @contextmanager
    def _cancel_on_sigint(self, future: asyncio.Future[Any]) -> Iterator[None]:
        """Let an interrupt cancel a cell with ``await``, or raise in it while its own code runs.

        Upstream's handler calls ``call_soon``, which does not wake a loop that waits for events, and never stops a cell
        that computes. Between two statements the shell compiles the next one, which may compute without end: an
        interrupt there is raised too, and `run_ast_nodes` reports it.
        """
        loop = asyncio.get_running_loop()

        def interrupt(number: int, frame: FrameType | None) -> None:
            while frame is not None:
                if frame.f_code is _RUN_AST_NODES:
                    raise KeyboardInterrupt
                frame = frame.f_back
            loop.call_soon_threadsafe(future.cancel)

        before = signal.getsignal(signal.SIGINT)
        signal.signal(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


class JobShell(ZMQInteractiveShell):
    """An interactive shell that looks for no virtual environment and keeps no history file."""

    @observe("ipython_dir")
    def _ipython_dir_changed(self, change: Any) -> None:
        """Create nothing; upstream makes the directory."""

    def init_ipython_dir(self, ipython_dir: str | None) -> None:
        """Name the directory; upstream looks for one and makes it."""
        self.ipython_dir = ipython_dir or os.environ.get("IPYTHONDIR", ".")

    def init_virtualenv(self) -> None:
        """Do nothing: the interpreter that runs is the one to use."""

    def init_environment(self) -> None:
        """Ask programs for colours, but not in a job, whose log is no terminal (`kernel_spec.kernel.environment`)."""
        if "NO_COLOR" not in os.environ:
            super().init_environment()

    def system(self, cmd: str) -> None:
        """Run ``!command``; upstream runs it in a terminal, which the sandbox does not have."""
        importlib.import_module(_COMMANDS).run_command(self, cmd)

    def serve_person(self) -> None:
        """Set up the shell for a user who types cells: `_` and Out, and colours in a traceback.

        The fork server prepares one shell for kernels of both styles, because building another one takes 8 ms of the
        start of a notebook's kernel (measured). In the held kernel of a job, nobody reads descriptors 1 and 2 any more.
        """
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, ForkAwareOutStream) and not self.kernel.parent.capture_fd_output:
                stream.publish_descriptor()
        self.kernel.parent.capture_fd_output = True
        self.colors = "neutral"
        self.cache_size = self.displayhook.cache_size = _KEPT_RESULTS
        self.displayhook.do_full_cache = 1


def prepare_shell() -> None:
    """Build the shell of this process and run some cells, so that a kernel forked from it need not do so.

    Building it takes a third of a kernel's boot and makes only Python objects: no thread, no socket, no file. CPython
    specializes the bytecode of a function that was called several times (PEP 659), and each forked kernel would begin
    with the bytecode that is not: that took 1.3 ms more of its processor time (measured).

    The shell has IPython's compiler. That of ipykernel names a cell by a hash, for a debugger that these kernels do not
    have. It computes the hash in Python: 0.12 ms for each KB of a cell; IPython takes a hundredth (measured). And the
    name is that of a file which does not exist, so IPython 9.18 shows the wrong line of an error that caused another
    one, and each of a thousand recursive calls.
    """
    place = os.path.join(os.environ.get("IPYTHONDIR", "."), "profile_default")  # noqa: PTH118
    profile = EphemeralProfileDir(location=place)
    shell = JobShell.instance(config=_CONFIG, profile_dir=profile)
    shell.run_line_magic("load_ext", "storemagic")  # as upstream does at each start
    for _ in range(_WARM_UP_CELLS):
        shell.run_cell("pass", store_history=False).raise_error()


class JobKernelApp(IPKernelApp):
    """The application in a kernel process.

    Parameters
    ----------
    on_bound : callable
        Called once when all sockets are bound: from then on a client connects without waiting for libzmq's
        reconnect interval (100 ms for a socket file that does not exist yet).
    """

    capture_fd_output = Bool(False)
    is_interactive = Bool(False)
    has_debugger = Bool(False)

    def __init__(self, on_bound: Callable[[], None], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._on_bound = on_bound

    @default("log_level")
    def _errors_only(self) -> int:
        return logging.ERROR

    def _configure_logging(self) -> None:
        """Let errors through to standard error.

        Upstream uses ``logging.config``, which writes to 190 pages of a forked kernel, and then makes several records
        for each message, which a handler drops.
        """
        handler = logging.StreamHandler()
        handler.setFormatter(_LOG_FORMAT)
        log = logging.getLogger(type(self).__name__)
        log.handlers[:] = [handler]
        level: Any = self.log_level
        log.setLevel(level)
        self._logging_configured = True

    @default("ipython_dir")
    def _no_ipython_dir(self) -> str:
        return os.environ.get("IPYTHONDIR", ".")

    @observe("ipython_dir")
    def _ipython_dir_changed(self, change: Any) -> None:
        """Create nothing; upstream makes the directory and puts a README in it."""

    def initialize(self, argv: Any = None) -> None:
        """Bind, build kernel and shell; `start` then serves. The command line and configuration files are not read."""
        self.update_config(_CONFIG)
        self.profile_dir = EphemeralProfileDir(location=os.path.join(self.ipython_dir, "profile_default"))  # noqa: PTH118
        self.init_crash_handler()
        self.init_pdb()
        self.init_connection_file()
        self.init_sockets()
        self.init_heartbeat()
        self._on_bound()
        self.log_connection_info()
        self.init_io()
        self.init_signal()
        self.init_kernel()
        self.init_shell()
        sys.stdout.flush()
        sys.stderr.flush()

    def log_connection_info(self) -> None:
        """Keep the ports for the kernel; upstream also prints how to connect."""
        self._ports = {name: getattr(self, f"{name}_port") for name in _CHANNELS}

    def init_control(self, context: zmq.Context[Any]) -> None:
        """Bind the control channel; there is no thread for the shell channel, and only a debugger has its sockets."""
        self.control_socket = context.socket(zmq.ROUTER)
        self.control_port = self._bind_socket(self.control_socket, self.control_port)
        self.control_socket.router_handover = 1
        if self.has_debugger:
            self.debugpy_socket = context.socket(zmq.STREAM)
            self.debug_shell_socket = context.socket(zmq.DEALER)
            for socket in (self.debugpy_socket, self.debug_shell_socket):
                socket.linger = 0
            self.debug_shell_socket.connect(self.shell_socket.getsockopt(zmq.LAST_ENDPOINT))
        self.control_thread = ControlThread(daemon=True)
        self.shell_channel_thread = _NoShellChannelThread()

    def init_iopub(self, context: zmq.Context[Any]) -> None:
        """Bind the iopub channel, without the TCP pipe for forked children."""
        self.iopub_socket = context.socket(zmq.XPUB)
        self.iopub_port = self._bind_socket(self.iopub_socket, self.iopub_port)
        self.configure_tornado_logger()
        self.iopub_thread = LocalIOPubThread(self.iopub_socket, pipe=False, session=self.session)
        self.iopub_thread.start()
        self.iopub_socket = self.iopub_thread.background_socket

    def init_heartbeat(self) -> None:
        """Bind the heartbeat channel and echo it from the control thread."""
        socket: zmq.Socket[bytes] = self.control_socket.context.socket(zmq.ROUTER)
        socket.linger = 0
        self.hb_port = self._bind_socket(socket, self.hb_port)
        self._heartbeat_stream = ZMQStream(socket, self.control_thread.io_loop)
        self._heartbeat_stream.on_recv(self._heartbeat_stream.send_multipart)

    def init_signal(self) -> None:
        """Ignore interrupts between requests, and lose none during one; leave a job the signals of a plain process."""
        super().init_signal()
        if self.is_interactive:
            wake_main_thread(self.control_thread.io_loop.asyncio_loop)

    def init_kernel(self) -> None:
        """Create the kernel, with its shell channel on the main thread."""
        shell_stream = ZMQStream(self.shell_socket)
        control_stream = ZMQStream(self.control_socket, self.control_thread.io_loop)
        debugpy_stream = ZMQStream(self.debugpy_socket, self.control_thread.io_loop) if self.has_debugger else None
        self.control_thread.start()
        if not (self.has_debugger or JobShell.initialized()):
            prepare_shell()
        self.kernel = MainThreadKernel.instance(
            parent=self,
            session=self.session,
            control_stream=control_stream,
            debugpy_stream=debugpy_stream,
            debug_shell_socket=self.debug_shell_socket,
            shell_stream=shell_stream,
            control_thread=self.control_thread,
            shell_channel_thread=self.shell_channel_thread,
            iopub_thread=self.iopub_thread,
            iopub_socket=self.iopub_socket,
            stdin_socket=self.stdin_socket,
            log=self.log,
            profile_dir=self.profile_dir,
            user_ns=self.user_ns,
            shell_class=JobShell,
        )
        self.kernel.record_ports({f"{name}_port": port for name, port in self._ports.items()})
        self.displayhook.get_execution_count = lambda: self.kernel.execution_count
        if self.is_interactive:
            JobShell.instance().serve_person()

    def close(self) -> None:
        """Leave the sockets alone: it runs at exit, and a forked child must not close those of its parent."""
        self.reset_io()

    def end(self) -> None:
        """Send what was published and answered, and close all sockets; the process must then end.

        A thread of libzmq writes messages after ``send`` has returned. A process that ends at once loses the last ones,
        which are the answer to the shutdown and its announcement (seen with busy cores). This waits for a client that
        does not read, so the caller needs a deadline.
        """
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):  # a cell may have replaced or closed it
                stream.flush()
        # First: it still publishes that it is idle, and hangs, with this, if the publishing thread ends meanwhile.
        self.control_thread.stop()
        self.control_thread.join()
        published = threading.Event()
        self.iopub_thread.schedule(published.set)
        published.wait()
        self.iopub_thread.stop()
        if self.context is not None:
            self.context.destroy()


#: Loaded by name, so that this package does not depend on the shim.
_COMMANDS = "transform_shim.notebook.packages"
#: Twice the calls after which CPython 3.11 begins to specialize a function.
_WARM_UP_CELLS = 16
#: Compiles and runs the statements of a cell one by one, and shows what that raises.
_RUN_AST_NODES = ZMQInteractiveShell.run_ast_nodes.__code__
#: As upstream writes it, without the colours.
_LOG_FORMAT = logging.Formatter("[%(name)s] %(levelname)s | %(message)s")
#: As in IPython without settings.
_KEPT_RESULTS = 1000
_READ_BYTES = 1 << 16
_CHANNELS = ("shell", "iopub", "stdin", "hb", "control")
_CONFIG = Config(
    {
        "IPKernelApp": {"outstream_class": "kernel_spec.kernel.app.ForkAwareOutStream"},
        "HistoryManager": {"enabled": False, "hist_file": ":memory:"},
        "InteractiveShell": {"colors": "nocolor", "cache_size": 0},
        "Completer": {"use_jedi": False},
        "Session": {
            "packer": "kernel_spec.kernel.message_json.pack",
            "unpacker": "jupyter_client.session.json_unpacker",
        },
    }
)
