"""ipykernel's application, trimmed to what a kernel for one job needs.

What differs from ``IPKernelApp``, and why:

- No socket but the five ``ipc`` ones. ipykernel also binds a random TCP port on 127.0.0.1 for the output of forked
  children (``IOPubThread(pipe=True)``); here a forked child writes to its own descriptor 1 or 2 instead, which the
  parent's reader sees.
- Two threads of Python instead of five: the heartbeat is echoed by the control thread's loop (so that
  ``jupyter console --existing`` still finds it beating) and the shell channel is read by the main thread, which a
  kernel without subshells allows.
- Nothing is read from or written to disk: no profile directory, no configuration files, no history, no start-up
  files, and no debugger (`kernel_spec.debugger_off`).
- The parent is not polled: the parent-death signal does that, and the poller takes a kernel in a pid namespace for
  an orphan.

Nobody imports this module but `kernel_spec.boot`, in a kernel, and the fork server, which warms it up.
"""

# mypy: disable-error-code="no-untyped-call"
# ipykernel has next to no annotations.

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import zmq
from ipykernel import ipkernel
from ipykernel.compiler import XCachingCompiler
from ipykernel.control import ControlThread
from ipykernel.iostream import IOPubThread, OutStream
from ipykernel.ipkernel import IPythonKernel
from ipykernel.kernelapp import IPKernelApp
from ipykernel.zmqshell import ZMQInteractiveShell
from IPython.core.profiledir import ProfileDir
from traitlets import Bool, default, observe
from traitlets.config import Config
from zmq.eventloop.zmqstream import ZMQStream


class LocalIOPubThread(IOPubThread):
    """Publishes for this process only; what a forked child would send is dropped.

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


class EphemeralProfileDir(ProfileDir):
    """A profile that has a place but no directories: a kernel for one job keeps nothing there."""

    @observe("location")
    def _location_changed(self, change: Any) -> None:
        """Create nothing; upstream makes five directories and copies a README."""


class _NoModules:
    """`sys` without modules, for as long as ipykernel lists where each of them comes from.

    It does so for its debugger, which is off here. Looking at a thousand modules changes their reference counts, and so
    copies 1,200 pages into each forked kernel (measured: 5 ms and 5 MB).
    """

    modules: ClassVar[dict[str, object]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(sys, name)


class JobKernel(IPythonKernel):
    """An IPython kernel without subshells, whose shell channel the main thread reads."""

    def __init__(self, **kwargs: Any) -> None:
        prepared = JobShell.instance() if JobShell.initialized() else None
        upstream: Any = ipkernel
        upstream.sys = _NoModules()
        try:
            super().__init__(**kwargs)
        finally:
            upstream.sys = sys
        if prepared is not None:
            prepared.kernel = self
            prepared.starting_dir = str(Path.cwd())
            prepared.init_environment()

    @property
    def _supports_kernel_subshells(self) -> bool:
        return False


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


def prepare_shell() -> None:
    """Build the shell of this process, which a kernel that is forked from it then takes over instead of building one.

    It takes a third of a kernel's boot and is nothing but Python objects: no thread, no socket, no file.
    """
    place = os.path.join(os.environ.get("IPYTHONDIR", "."), "profile_default")  # noqa: PTH118
    JobShell.instance(config=_CONFIG, profile_dir=EphemeralProfileDir(location=place), compiler_class=XCachingCompiler)


class JobKernelApp(IPKernelApp):
    """The application in a kernel process.

    Parameters
    ----------
    on_bound
        Called once when all sockets are bound: from then on a client that connects is not made to wait for
        libzmq's reconnect interval (100 ms for a socket file that does not exist yet).
    """

    capture_fd_output = Bool(False)
    for_person = Bool(False)

    def __init__(self, on_bound: Callable[[], None], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._on_bound = on_bound

    @default("log_level")
    def _errors_only(self) -> int:
        return logging.ERROR

    def _configure_logging(self) -> None:
        """Let errors through to standard error.

        Upstream goes through ``logging.config``, which writes to 190 pages of a forked kernel, and then makes a record
        of all that ipykernel has to say of each message, for a handler that drops it.
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
        if self.for_person:
            self.update_config(_CONFIG_FOR_PERSON)
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
        """Bind the control channel; there are no sockets for a debugger and no thread for the shell channel."""
        self.control_socket = context.socket(zmq.ROUTER)
        self.control_socket.linger = 1000
        self.control_port = self._bind_socket(self.control_socket, self.control_port)
        self.control_socket.router_handover = 1
        self.control_thread = ControlThread(daemon=True)
        # None: the kernel then puts the shell stream on the main thread's loop.
        self.shell_channel_thread = None

    def init_iopub(self, context: zmq.Context[Any]) -> None:
        """Bind the iopub channel, without the TCP pipe for forked children."""
        self.iopub_socket = context.socket(zmq.XPUB)
        self.iopub_socket.linger = 1000
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

    def init_kernel(self) -> None:
        """Create the kernel, with its shell channel on the main thread."""
        shell_stream = ZMQStream(self.shell_socket)
        control_stream = ZMQStream(self.control_socket, self.control_thread.io_loop)
        self.control_thread.start()
        self.kernel = JobKernel.instance(
            parent=self,
            session=self.session,
            control_stream=control_stream,
            debugpy_stream=None,
            debug_shell_socket=None,
            shell_stream=shell_stream,
            control_thread=self.control_thread,
            shell_channel_thread=None,
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

    def close(self) -> None:
        """Leave the sockets to the end of the process; it runs at exit and must not wait for a peer."""
        self.reset_io()


# As upstream writes it, without the colours.
_LOG_FORMAT = logging.Formatter("[%(name)s] %(levelname)s | %(message)s")
_CHANNELS = ("shell", "iopub", "stdin", "hb", "control")
_CONFIG = Config(
    {
        "IPKernelApp": {"outstream_class": "kernel_spec.kernel_app.ForkAwareOutStream"},
        "HistoryManager": {"enabled": False},
        "InteractiveShell": {"colors": "nocolor", "cache_size": 0},
        "Completer": {"use_jedi": False},
    }
)
# Whoever types cells expects `_` and Out.
_CONFIG_FOR_PERSON = Config({"InteractiveShell": {"cache_size": 1000}})
