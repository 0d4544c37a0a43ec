"""IPython's shell in a kernel: without files, and prepared by the fork server for the kernels that it forks."""

# mypy: disable-error-code="no-untyped-call"
# ipykernel has next to no annotations.

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from ipykernel.zmqshell import ZMQInteractiveShell
from IPython.core.profiledir import ProfileDir
from traitlets import observe
from traitlets.config import Config

from kernel_spec.kernel.streams import ForkAwareOutStream

SHELL_CONFIG = Config(
    {
        "HistoryManager": {"enabled": False, "hist_file": ":memory:"},
        "InteractiveShell": {"colors": "nocolor", "cache_size": 0},
        "Completer": {"use_jedi": False},
    }
)
#: Loaded by name, so that this package does not depend on the shim.
_COMMANDS = "transform_shim.notebook.packages"
#: Twice the calls after which CPython 3.11 begins to specialize a function.
_WARM_UP_CELLS = 16
#: As in IPython without settings.
_KEPT_RESULTS = 1000


class EphemeralProfileDir(ProfileDir):
    """A profile with a location but without directories: a kernel for one job stores nothing there."""

    @observe("location")
    def _location_changed(self, change: Any) -> None:
        """Create nothing; upstream makes five directories and copies a README."""


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
    shell = JobShell.instance(config=SHELL_CONFIG, profile_dir=profile)
    shell.run_line_magic("load_ext", "storemagic")  # as upstream does at each start
    for _ in range(_WARM_UP_CELLS):
        shell.run_cell("pass", store_history=False).raise_error()
