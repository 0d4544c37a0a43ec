"""Packages that are imported before the fork, and wait outside of ``sys.modules`` until a job imports them.

Importing Polars takes 70 ms (median) of every job that uses it. The fork server cannot simply import it: the last step
starts a thread, and a process with threads must not fork. Nor does it belong into the ``sys.modules`` of a kernel that
does not use it, where other libraries look to decide what they deal with. So the fork server imports it without that
step and takes it out again; the first import in a kernel puts it back and does the step.

What it looks at when it is imported, it has looked at in the fork server: which optional packages there are, and a few
variables of the environment (POLARS_FORCE_PKG, POLARS_THP). And as with pandas, a job's own module of that name is not
found.

What a future release does when it is imported is not known. So a child tries first, and what leaves it with a second
thread or a new descriptor is imported by each job, as anything else is.
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

from kernel_spec.self_test import run_and_exit
from kernel_spec.warmth import SET_ASIDE, environment_kept

# Where the Rust side of Polars may be, in its own order (polars/_plr.py), and what its import ends with.
_POLARS_RUNTIMES: Final = tuple(f"_polars_runtime_{kind}._polars_runtime" for kind in ("compat", "64", "32"))
_POLARS_LAST_STEP: Final = "__register_startup_deps"

Step = Callable[[], object]


class SetAside(MetaPathFinder, Loader):
    """Finds and loads one package that has been imported already.

    Attributes
    ----------
    holds_imported_module : bool
        For whoever wants to know beforehand whether the import will be a quick one.
    """

    holds_imported_module = True

    def __init__(self, package: str, modules: dict[str, ModuleType], last_steps: Sequence[Step]) -> None:
        self._package = package
        self._modules = modules
        self._last_steps = last_steps
        self._own_spec: Any = modules[package].__spec__
        self._is_loaded = False

    def __getattr__(self, name: str) -> Any:
        """Return what else the package's own loader can do, such as reading its data files."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._own_spec.loader, name)

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Return a spec like the package's own; once it is loaded, whoever asks again is left to the other finders."""
        # It stays in sys.meta_path: another thread may be on its way through that list, and would skip one of it.
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
        """Do what is left of the import, and let everybody have the package; if that fails, the next import tries."""
        for step in self._last_steps:
            step()
        module.__spec__ = self._own_spec
        self._is_loaded = True
        sys.modules.update(self._modules)


class Trial:
    """A child that sets packages aside and says whether it could still be forked."""

    def __init__(self, packages: Sequence[str]) -> None:
        self._packages = packages
        self._pid = os.fork() if packages else 0
        if packages and self._pid == 0:
            run_and_exit(lambda: _set_aside_quietly(packages))

    def passed(self) -> bool:
        """Wait for its end, ten seconds at most; what went wrong is in the log. True if there was nothing to try."""
        if not self._pid or os.waitpid(self._pid, 0)[1] == 0:
            return True
        names = " and ".join(self._packages)
        print(f"fork server: {names}: imported by each job that wants it", file=sys.stderr, flush=True)  # noqa: T201
        return False


def installed(modules: Iterable[str]) -> tuple[str, ...]:
    """Return which of the modules are to be set aside, as far as they are there to be imported."""
    return tuple(name for name in modules if name in SET_ASIDE and importlib.util.find_spec(name) is not None)


def set_aside(package: str) -> None:
    """Import a package, and take it out of ``sys.modules`` until it is imported again.

    Raises
    ------
    ImportError
        It cannot be imported, or its last step is not where it was.
    """
    with environment_kept(), _postponed(package) as last_steps:
        importlib.import_module(package)
    # With what is compiled: _polars_runtime_32.
    names = [name for name in sys.modules if name.lstrip("_").startswith(package)]
    modules = {name: sys.modules.pop(name) for name in names}
    sys.meta_path.insert(0, SetAside(package, modules, last_steps))


@contextlib.contextmanager
def _postponed(package: str) -> Iterator[list[Step]]:
    """Yield what a package's import has left to do, to be called once in each process that uses it."""
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


def _set_aside_quietly(packages: Sequence[str]) -> None:
    descriptors = _count("/proc/self/fd")
    for package in packages:
        set_aside(package)
    if _count("/proc/self/task") != 1:
        raise ImportError(f"importing {' and '.join(packages)} starts a thread")
    if _count("/proc/self/fd") != descriptors:
        raise ImportError(f"importing {' and '.join(packages)} opens a descriptor")


def _count(directory: str) -> int:
    return sum(1 for _ in Path(directory).iterdir())
