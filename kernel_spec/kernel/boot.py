"""Build the kernel in its process, and serve until it is killed."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from kernel_spec.protocol.values import Style

#: Loaded by name, so that this package does not depend on the shim.
_NOTEBOOK_EXTENSION = "transform_shim.notebook"
#: For clients to read the last messages. A kernel manager kills a kernel that takes longer: jupyter_client after 5 s.
_END_SECONDS = 30


def boot(connection_path: str, style: Style, on_bound: Callable[[], None], *, debugger: bool = False) -> Any:
    """Create the kernel application over a connection file; return it ready to `serve`.

    Parameters
    ----------
    connection_path : str
        Path of the connection file.
    style : Style
        Whether the kernel is for a job or a notebook.
    on_bound : callable
        Called when clients can connect, before the shell exists.
    debugger : bool
        Serve the debugger protocol.

    Raises
    ------
    FileNotFoundError
        The connection file does not exist.
    """
    if not Path(connection_path).is_file():
        # Without one ipykernel would make its own, on TCP ports that no client knows.
        raise FileNotFoundError(f"there is no connection file {connection_path}")
    if style == "job":
        _ignore_service_signals()
    _fresh_standard_streams()
    sys.dont_write_bytecode = True
    if not debugger:
        from kernel_spec.kernel import no_debugpy  # noqa: F401
    from kernel_spec.kernel.app import JobKernelApp

    # As the instance of its class: magics such as %matplotlib and %connect_info look for the running application.
    application = JobKernelApp.instance(on_bound, connection_file=connection_path)
    # A gateway kernel's descriptors 1 and 2 are pipes that the gateway reads. A notebook has no such reader, so
    # there ipykernel forwards what C code and child processes print.
    application.has_debugger = debugger
    application.capture_fd_output = application.is_interactive = style == "notebook"
    application.initialize()
    if application.is_interactive:
        _load_notebook_extension(application.shell)
    return application


def _load_notebook_extension(shell: Any) -> None:
    """Load the magics of the shim into a notebook's kernel, which works without them too."""
    try:
        shell.extension_manager.load_extension(_NOTEBOOK_EXTENSION)
    except Exception as error:
        print(f"the magics could not be loaded: {type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201


def serve(application: Any) -> NoReturn:
    """Answer requests until asked to shut down, then end the process."""
    try:
        application.start()
    finally:
        try:
            # without a handler, it ends a process that waits for a client that never reads
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(_END_SECONDS)
            application.end()
        finally:
            # Not sys.exit: a job's atexit handlers must not run.
            os._exit(0)


def _ignore_service_signals() -> None:
    """Ignore SIGTERM and SIGHUP: only SIGKILL ends a job.

    systemd sends both to all processes of a service, and the gateway then gives its jobs time to finish. Child
    processes of the job have the default: exec resets a handler, but not SIG_IGN, and a forked child gets it back.
    """
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = threading.local()

    def pass_by(_number: int, _frame: object) -> None:
        pass

    # Blocked meanwhile: a forked Python drops signals that came before it could handle them
    # (_PySignal_AfterFork), and multiprocessing would wait for a worker that it has terminated.
    def block() -> None:
        before.mask = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)

    def restore() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before.mask)

    def reset() -> None:
        for number in numbers:
            if signal.getsignal(number) is pass_by:
                signal.signal(number, signal.SIG_DFL)
        restore()

    for number in numbers:
        signal.signal(number, pass_by)
    os.register_at_fork(before=block, after_in_parent=restore, after_in_child=reset)


def _fresh_standard_streams() -> None:
    """Bind ``sys.__stdout__`` and ``sys.__stderr__`` to the descriptors as they are now.

    After a fork they would still hold the buffered output of the fork server.
    """
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # type: ignore[misc]  # noqa: SIM115
    sys.stdout = sys.__stdout__ = os.fdopen(1, "w", buffering=1, closefd=False)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = os.fdopen(2, "w", buffering=1, closefd=False)  # type: ignore[misc]
