"""The modules that are imported before the first fork, and the state that must be renewed after a fork.

The list was found by comparing ``sys.modules`` of a kernel after its first job with that of the fork server: every job
imports the difference. A module that is not installed is left out and named in the status.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

#: Imported by name, so that this package does not depend on the shim.
SHIM_MODULE = "transform_shim.job.rehearsal"

#: Imported by the kernel of a notebook when it boots; without them a start takes 6 ms more (measured).
NOTEBOOK_MODULES = tuple(f"transform_shim.notebook.{name}" for name in ("completion", "magics", "welcome"))

#: Imported before a kernel enters its sandbox. In a source checkout, the sandbox closes the directory in which the
#: packages lie: when a file comes or goes there, Python reads the directory again and finds none of them.
SHIM_PACKAGE = SHIM_MODULE.partition(".")[0]

#: Does the work of a kernel's first job (compiling, page faults) ahead of that job.
REHEARSAL_CODE = f'__import__("{SHIM_MODULE}", fromlist=["rehearse"]).rehearse()'

DEFAULT_MODULES: tuple[str, ...] = (
    # data
    "numpy", "numpy.random", "pandas", "pandas.io.json", "pandas.io.parsers", "pandas.io.formats.csvs",
    "pandas.io.formats.format", "pandas.io.formats.html", "pandas.io.formats.string", "pandas.io.parquet",
    "pyarrow", "pyarrow.json", "pyarrow.csv", "pyarrow.parquet", "pyarrow.ipc", "pyarrow.compute",
    "pyarrow.pandas_compat", "pyarrow.dataset", "orjson", "zoneinfo",
    # the kernel
    "kernel_spec.kernel.no_debugpy", "kernel_spec.kernel.app", "kernel_spec.kernel.message_json",
    "IPython.core.completerlib", "IPython.core.debugger", "IPython.core.logger",
    "IPython.core.oinspect", "IPython.core.ultratb", "tornado.platform.asyncio", "faulthandler", "code", "difflib",
    # modules that scripts use most
    "collections", "concurrent.futures", "csv", "datetime", "decimal", "functools", "hashlib", "inspect", "io",
    "itertools", "json", "linecache", "logging", "math", "multiprocessing", "random", "re", "statistics", "string",
    "subprocess", "tempfile", "textwrap", "traceback", "typing", "unittest.mock", "uuid", "warnings",
    # imported as `kernel_spec.fork_server.deferred_import` says; not DuckDB, which checks at its import whether it is
    # in a notebook
    "polars",
    *NOTEBOOK_MODULES,
    # last: it may import or warm up any of the above
    SHIM_MODULE,
)  # fmt: skip


def modules_with(names: Sequence[str]) -> tuple[str, ...]:
    """Return the default modules and further ones, in the order of their import."""
    return (*DEFAULT_MODULES[:-1], *names, SHIM_MODULE)


#: Must not be imported as the others are: `kernel_spec.fork_server.deferred_import` says why.
DEFERRED = ("polars",)


def import_all(
    modules: Sequence[str] = DEFAULT_MODULES, *, rehearsals: int = 1, scratch_dir: str | None = None
) -> tuple[str, ...]:
    """Import the modules in order, call the shim's ``warm_up`` if there is one, and return the missing modules.

    The shim rehearses as many jobs as `rehearsals` says, below `scratch_dir` if it is given. Modules of `DEFERRED` are
    only searched for. A module that exists but fails to import raises: it would fail in every job.
    """
    with environment_kept():
        missing = tuple(name for name in modules if not import_if_there(name))
    shim = sys.modules.get(SHIM_MODULE)
    if shim is not None and hasattr(shim, "warm_up"):
        with contextlib.chdir(scratch_dir or Path.cwd()):
            shim.warm_up(rehearsals)
    shell = sys.modules.get("kernel_spec.kernel.shell")
    if shell is not None:
        shell.prepare_shell()
    return missing


@contextlib.contextmanager
def environment_kept() -> Iterator[None]:
    """Undo changes of the environment in the block: Polars adds settings of its allocator."""
    environment = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() | environment.keys():
            if os.environ.get(name) != environment.get(name):
                os.environ.pop(name, None)
                os.environ.update({name: environment[name]} if name in environment else {})


def import_if_there(name: str) -> bool:
    """Import a module, or search for one of `DEFERRED`; return False if it is not installed."""
    if name in DEFERRED:
        return importlib.util.find_spec(name) is not None
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        # Only the module or a package that contains it; modules that it imports must exist.
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        return False
    return True


def freeze() -> None:
    """Exempt every object from garbage collection.

    A collection in a forked kernel writes to the header of each object it visits, and each such page becomes private
    memory of that kernel.
    """
    gc.collect()
    gc.freeze()
    gc.disable()


def renew_after_fork() -> None:
    """Give the calling process random numbers, names and keys of its own.

    `random` reseeds itself after a fork and `uuid4` asks the operating system; these do not. The seed of ``hash(str)``
    cannot be renewed; all kernels of one fork server share it.
    """
    _if_loaded("numpy.random", lambda module: module.seed())
    _if_loaded("tempfile", _renew_tempfile)
    _if_loaded("multiprocessing.process", _renew_multiprocessing)
    _if_loaded("uuid", lambda module: setattr(module, "_last_timestamp", None))
    _if_loaded("random", lambda module: module.seed())


def _renew_tempfile(module: Any) -> None:
    # tempfile chose this directory for the fork server. The kernel has a new one of its own, which tempfile would test
    # by writing and removing a file. tempfile detects a fork by the pid, and in a pid namespace every kernel has the
    # same pid.
    module.tempdir = os.environ.get("TMPDIR")
    module._name_sequence = None


def _renew_multiprocessing(module: Any) -> None:
    # Made once at import and inherited: with it one job could authenticate to another job's managers.
    module.current_process().authkey = os.urandom(32)


def _if_loaded(name: str, renew: Any) -> None:
    module: ModuleType | None = sys.modules.get(name)
    if module is not None:
        renew(module)
