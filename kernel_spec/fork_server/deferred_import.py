"""Packages that are imported before the fork and kept out of ``sys.modules`` until a job imports them.

Importing Polars takes 70 ms (median) of every job that uses it. The fork server cannot simply import it: the last step
starts a thread, and a process with threads must not fork. A kernel that does not use Polars must not have it in
``sys.modules`` either, because other libraries look there to decide which types they handle. So the fork server imports
it without that step and removes it again; the first import in a kernel restores it and does the step.

When the fork server imports the package, it looks for optional packages and reads a few environment variables
(POLARS_FORCE_PKG, POLARS_THP). As with pandas, a job's own module of that name is not found.

A future release may do more at its import. So a child of the fork server tries the import first. If that leaves a
second thread or a new descriptor, each job imports the package itself, as any other.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from kernel_spec.fork_server.preload import DEFERRED, environment_kept
from kernel_spec.fork_server.self_test import run_and_exit

#: Modules with the Rust part of Polars, in its own order (polars/_plr.py), and the last step of its import.
_POLARS_RUNTIMES: Final = tuple(f"_polars_runtime_{kind}._polars_runtime" for kind in ("compat", "64", "32"))
_POLARS_LAST_STEP: Final = "__register_startup_deps"

Step = Callable[[], object]


class DeferredImporter(MetaPathFinder, Loader):
    """Finds and loads one package that has been imported already.

    Attributes
    ----------
    holds_imported_module : bool
        Lets other code find out whether the import will be fast.
    """

    holds_imported_module = True

    def __init__(self, package: str, modules: dict[str, ModuleType], last_steps: Sequence[Step]) -> None:
        self._package = package
        self._modules = modules
        self._last_steps = last_steps
        self._own_spec: Any = modules[package].__spec__
        self._is_loaded = False

    def __getattr__(self, name: str) -> Any:
        """Return other methods of the package's own loader, such as reading its data files."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._own_spec.loader, name)

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Return a spec like the package's own; None once the package is loaded."""
        # It stays in sys.meta_path: another thread that iterates over that list would skip a finder.
        if fullname != self._package or self._is_loaded:
            return None
        own = self._own_spec
        spec = ModuleSpec(fullname, self, origin=own.origin)
        spec.submodule_search_locations = own.submodule_search_locations
        spec.has_location, spec.cached = own.has_location, own.cached
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the package as it was imported."""
        return self._modules[self._package]

    def exec_module(self, module: ModuleType) -> None:
        """Do the last steps of the import and publish the package; after a failure the next import tries again."""
        for step in self._last_steps:
            step()
        module.__spec__ = self._own_spec
        self._is_loaded = True
        sys.modules.update(self._modules)


class Trial:
    """A child that defers packages and reports whether it could still be forked."""

    def __init__(self, packages: Sequence[str]) -> None:
        self._packages = packages
        self._pid = os.fork() if packages else 0
        if packages and self._pid == 0:
            run_and_exit(lambda: _try_to_defer(packages))

    def passed(self) -> bool:
        """Wait for its end, ten seconds at most; it logs its error. True if there was nothing to try."""
        if not self._pid or os.waitpid(self._pid, 0)[1] == 0:
            return True
        names = " and ".join(self._packages)
        print(f"fork server: {names}: imported by each job that uses it", file=sys.stderr, flush=True)  # noqa: T201
        return False


def installed(modules: Iterable[str]) -> tuple[str, ...]:
    """Return the modules that must be deferred and are installed."""
    return tuple(name for name in modules if name in DEFERRED and importlib.util.find_spec(name) is not None)


def defer(package: str) -> None:
    """Import a package, and take it out of ``sys.modules`` until it is imported again.

    Raises
    ------
    ImportError
        It cannot be imported, or its last step was not found.
    """
    with environment_kept(), _postponed(package) as last_steps:
        importlib.import_module(package)
    # Including its compiled part, _polars_runtime_32.
    names = [name for name in sys.modules if name.lstrip("_").startswith(package)]
    modules = {name: sys.modules.pop(name) for name in names}
    sys.meta_path.insert(0, DeferredImporter(package, modules, last_steps))


@contextlib.contextmanager
def _postponed(package: str) -> Iterator[list[Step]]:
    """Yield the postponed steps of a package's import, to be called once in each process that uses it."""
    steps: list[Step] = []
    if package != "polars":
        yield steps
        return
    runtime: Any = _polars_runtime()
    real = getattr(runtime, _POLARS_LAST_STEP, None)
    if real is None:
        raise ImportError(f"{runtime.__name__} has no {_POLARS_LAST_STEP}: this release of Polars is not known")
    setattr(runtime, _POLARS_LAST_STEP, lambda *arguments: steps.append(lambda: real(*arguments)))
    try:
        yield steps
    finally:
        setattr(runtime, _POLARS_LAST_STEP, real)


def _polars_runtime() -> ModuleType:
    for name in _POLARS_RUNTIMES:
        with contextlib.suppress(ModuleNotFoundError):
            return importlib.import_module(name)
    raise ImportError(f"Polars has none of {', '.join(_POLARS_RUNTIMES)}: this release is not known")


def _try_to_defer(packages: Sequence[str]) -> None:
    descriptors = _count("/proc/self/fd")
    for package in packages:
        defer(package)
    if _count("/proc/self/task") != 1:
        raise ImportError(f"importing {' and '.join(packages)} starts a thread")
    if _count("/proc/self/fd") != descriptors:
        raise ImportError(f"importing {' and '.join(packages)} opens a descriptor")


def _count(directory: str) -> int:
    return sum(1 for _ in Path(directory).iterdir())
