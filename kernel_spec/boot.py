"""Building the kernel inside its process, and serving until it is killed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from kernel_spec.messages import Style

# By name, so that nothing outside of a kernel imports it through this package.
_NOTEBOOK_EXTENSION = "transform_shim.notebook"


def boot(connection_path: str, style: Style, on_bound: Callable[[], None]) -> Any:
    """Create the kernel application over a connection file; return it ready to `serve`.

    Parameters
    ----------
    connection_path
        Where the connection file is.
    style
        Whether the kernel is for a job or a notebook.
    on_bound
        Called when clients can connect, before the shell exists.

    Raises
    ------
    FileNotFoundError
        Nobody has written the connection file.
    """
    if not Path(connection_path).is_file():
        # Without one ipykernel would make up its own, on TCP ports that nobody knows.
        raise FileNotFoundError(f"there is no connection file {connection_path}")
    _fresh_standard_streams()
    sys.dont_write_bytecode = True
    from kernel_spec import debugger_off  # noqa: F401
    from kernel_spec.kernel_app import JobKernelApp

    application = JobKernelApp(on_bound, connection_file=connection_path)
    # A gateway kernel's descriptors 1 and 2 are pipes that the gateway reads. A notebook has no such reader, so
    # there ipykernel forwards what C code and child processes print.
    application.capture_fd_output = application.for_person = style == "notebook"
    application.initialize()
    if application.for_person:
        _load_notebook_extension(application.shell)
    return application


def _load_notebook_extension(shell: Any) -> None:
    """Give a person's kernel the magics of the shim; one without the shim is still a kernel."""
    try:
        shell.extension_manager.load_extension(_NOTEBOOK_EXTENSION)
    except Exception as error:
        print(f"the magics could not be loaded: {type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201


def serve(application: Any) -> NoReturn:
    """Answer requests until asked to shut down, then end the process at once."""
    try:
        application.start()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        # Not sys.exit: handlers that a job registered with atexit get no say, and destructors of libzmq wait for peers.
        os._exit(0)


def _fresh_standard_streams() -> None:
    """Bind ``sys.__stdout__`` and ``sys.__stderr__`` to the descriptors as they are now.

    After a fork they would still carry what the fork server had buffered.
    """
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # type: ignore[misc]  # noqa: SIM115
    sys.stdout = sys.__stdout__ = os.fdopen(1, "w", buffering=1, closefd=False)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = os.fdopen(2, "w", buffering=1, closefd=False)  # type: ignore[misc]
