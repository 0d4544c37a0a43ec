"""What a kernel has imported before its first job, and what of it must be renewed after a fork.

The list was found by comparing ``sys.modules`` of a kernel after its first job with that of the fork server: what
differs is paid by every job. A module that is not installed is left out and named in the status.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

# Asked for by name so that nothing outside the kernel imports them through this package.
SHIM_MODULE = "transform_shim.rehearsal"

REHEARSAL_CODE = f'__import__("{SHIM_MODULE}", fromlist=["rehearse"]).rehearse()'
"""Pays what the first job of a kernel costs (compilers, traps, pages) before there is one."""

DEFAULT_MODULES: tuple[str, ...] = (
    # data
    "numpy", "numpy.random", "pandas", "pandas.io.json", "pandas.io.parsers", "pandas.io.formats.csvs",
    "pandas.io.formats.format", "pandas.io.formats.html", "pandas.io.formats.string", "pandas.io.parquet",
    "pyarrow", "pyarrow.json", "pyarrow.csv", "pyarrow.parquet", "pyarrow.ipc", "pyarrow.compute",
    "pyarrow.pandas_compat", "pyarrow.dataset", "orjson", "zoneinfo",
    # the kernel
    "kernel_spec.debugger_off", "kernel_spec.kernel_app",
    "IPython.core.completerlib", "IPython.core.debugger", "IPython.core.logger",
    "IPython.core.oinspect", "IPython.core.ultratb", "tornado.platform.asyncio", "faulthandler", "code", "difflib",
    # what scripts reach for first
    "collections", "concurrent.futures", "csv", "datetime", "decimal", "functools", "hashlib", "inspect", "io",
    "itertools", "json", "linecache", "logging", "math", "multiprocessing", "random", "re", "statistics", "string",
    "subprocess", "tempfile", "textwrap", "traceback", "typing", "unittest.mock", "uuid", "warnings",
    # for whom `kernel_spec.set_aside` is there; not DuckDB, which looks at its import whether it is in a notebook
    "polars",
    # last: it may import or warm up any of the above
    SHIM_MODULE,
)  # fmt: skip

SET_ASIDE = ("polars",)
"""What must not be imported as the others are: `kernel_spec.set_aside` says why."""


def import_all(modules: Sequence[str] = DEFAULT_MODULES) -> tuple[str, ...]:
    """Import the modules in order, call the shim's ``warm_up`` if it has one, and return what was missing.

    Those of `SET_ASIDE` are only looked for. A module that is there but fails to import raises: it would fail in every
    job.
    """
    with environment_kept():
        missing = tuple(name for name in modules if not _import_if_there(name))
    shim = sys.modules.get(SHIM_MODULE)
    if shim is not None and hasattr(shim, "warm_up"):
        shim.warm_up()
    kernel = sys.modules.get("kernel_spec.kernel_app")
    if kernel is not None:
        kernel.prepare_shell()
    return missing


@contextlib.contextmanager
def environment_kept() -> Iterator[None]:
    """Undo what is done to the environment in the block: Polars adds to the settings of its allocator."""
    environment = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() | environment.keys():
            if os.environ.get(name) != environment.get(name):
                os.environ.pop(name, None)
                os.environ.update({name: environment[name]} if name in environment else {})


def _import_if_there(name: str) -> bool:
    if name in SET_ASIDE:
        return importlib.util.find_spec(name) is not None
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        # Only itself or a package that it is in; what it imports in turn must be there.
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        return False
    return True


def freeze() -> None:
    """Move every object out of the garbage collector's sight.

    A collection in a forked kernel writes to the header of each object it visits, and each such page becomes private
    memory of that kernel.
    """
    gc.collect()
    gc.freeze()
    gc.disable()


def renew_after_fork() -> None:
    """Give the calling process random numbers, names and keys of its own.

    `random` reseeds itself after a fork and `uuid4` asks the operating system; these do not. What cannot be renewed is
    the seed of ``hash(str)``, which all kernels of one fork server share.
    """
    _if_loaded("numpy.random", lambda module: module.seed())
    _if_loaded("tempfile", _renew_tempfile)
    _if_loaded("multiprocessing.process", _renew_multiprocessing)
    _if_loaded("uuid", lambda module: setattr(module, "_last_timestamp", None))
    _if_loaded("random", lambda module: module.seed())


def _renew_tempfile(module: Any) -> None:
    # The directory was found for the fork server's environment. In a pid namespace every kernel has the same pid,
    # which is what tempfile goes by to notice a fork.
    module.tempdir = None
    module._name_sequence = None


def _renew_multiprocessing(module: Any) -> None:
    # Made once at import and inherited: with it one job could authenticate to another's managers.
    module.current_process().authkey = os.urandom(32)


def _if_loaded(name: str, renew: Any) -> None:
    module: ModuleType | None = sys.modules.get(name)
    if module is not None:
        renew(module)
