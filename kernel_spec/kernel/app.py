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

Only `kernel_spec.kernel.boot`, in a kernel, and the fork server import this module and those that it imports.
"""

# mypy: disable-error-code="no-untyped-call"
# ipykernel has next to no annotations.

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import zmq
from ipykernel.control import ControlThread
from ipykernel.kernelapp import IPKernelApp
from traitlets import Bool, default, observe
from traitlets.config import Config
from zmq.eventloop.zmqstream import ZMQStream

from kernel_spec.kernel.main_thread_kernel import MainThreadKernel, NoShellChannelThread
from kernel_spec.kernel.shell import SHELL_CONFIG, EphemeralProfileDir, JobShell, prepare_shell
from kernel_spec.kernel.streams import LocalIOPubThread
from kernel_spec.kernel.wake_on_interrupt import wake_main_thread


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
        self.shell_channel_thread = NoShellChannelThread()

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


#: As upstream writes it, without the colours.
_LOG_FORMAT = logging.Formatter("[%(name)s] %(levelname)s | %(message)s")
_CHANNELS = ("shell", "iopub", "stdin", "hb", "control")
_CONFIG = Config(
    {
        **SHELL_CONFIG,
        "IPKernelApp": {"outstream_class": "kernel_spec.kernel.streams.ForkAwareOutStream"},
        "Session": {
            "packer": "kernel_spec.kernel.message_json.pack",
            "unpacker": "jupyter_client.session.json_unpacker",
        },
    }
)
