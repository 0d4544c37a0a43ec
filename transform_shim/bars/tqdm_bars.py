"""tqdm in a job: its bars are reported as the job's progress and are not written to the log.

tqdm draws a bar by writing it again and again, which in a log is one endless line. `tqdm.display` is the method that
front ends overload, according to its documentation. It is replaced when a job imports tqdm, and works as before outside
of a job and for a bar with a file of its own.
"""

from __future__ import annotations

import functools
import importlib
import importlib.machinery
import io
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from transform_shim.bars.job_bars import Bar, is_reporting
from transform_shim.core.progress import LOG_FD_VARIABLE

__all__ = ["adapt_tqdm"]

_MODULE = "tqdm.std"
#: Chooses between plain bars and widgets.
_WIDGETS_MODULE = "tqdm.autonotebook"
#: Place of `file` among the parameters of tqdm().
_FILE_POSITION = 4


def adapt_tqdm() -> None:
    """Adapt tqdm, now if it has been imported, else at its import."""
    module = sys.modules.get(_MODULE)
    if module is not None:
        _adapt(module)
    elif _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)


class _Finder(MetaPathFinder):
    def find_spec(self, fullname: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        if fullname == _WIDGETS_MODULE and LOG_FD_VARIABLE in os.environ:
            return ModuleSpec(fullname, _PlainLoader())
        if fullname != _MODULE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            run = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                run(module)
                _adapt(module)

            loader.exec_module = exec_module
        return spec


_FINDER = _Finder()


class _PlainLoader(Loader):
    """Makes `tqdm.auto` use plain bars: in a kernel it prefers widgets, which need a front end."""

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        std = importlib.import_module(_MODULE)
        vars(module).update(tqdm=std.tqdm, trange=std.trange, __all__=["tqdm", "trange"])


class _Nowhere(io.TextIOBase):
    """The file of a bar that is reported."""

    encoding = "utf-8"

    def write(self, text: str, /) -> int:
        return len(text)


def _adapt(module: ModuleType) -> None:
    tqdm: Any = getattr(module, "tqdm", None)
    if tqdm is None or hasattr(tqdm, "_transform_bar"):
        return
    tqdm._transform_bar = None
    tqdm.__init__ = _reported_init(tqdm.__init__)
    display, close = tqdm.display, tqdm.close

    def display_(self: Any, *arguments: Any, **options: Any) -> Any:
        if self._transform_bar is None:
            return display(self, *arguments, **options)
        _show(self, self._transform_bar)
        return True

    def close_(self: Any) -> None:
        bar, self._transform_bar = self._transform_bar, None
        if bar is not None:
            if not self.disable:
                _show(self, bar, is_last=True)
            bar.close()
        close(self)

    tqdm.display, tqdm.close = display_, close_


def _reported_init(initialise: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(initialise)
    def __init__(self: Any, *arguments: Any, **options: Any) -> None:
        if not is_reporting() or not _is_for_the_log(arguments, options):
            initialise(self, *arguments, **options)
            return
        self._transform_bar = Bar()
        if len(arguments) > _FILE_POSITION:
            arguments = (*arguments[:_FILE_POSITION], _Nowhere(), *arguments[_FILE_POSITION + 1 :])
        else:
            options["file"] = _Nowhere()
        initialise(self, *arguments, **options)
        if self.disable:
            self._transform_bar.close()

    return __init__


def _is_for_the_log(arguments: Sequence[Any], options: Mapping[str, Any]) -> bool:
    """Return whether a bar with these arguments is written to standard error or output."""
    file = arguments[_FILE_POSITION] if len(arguments) > _FILE_POSITION else options.get("file")
    return file is None or file is sys.stderr or file is sys.stdout


def _show(tqdm: Any, bar: Bar, *, is_last: bool = False) -> None:
    bar.show(tqdm.n, tqdm.total, str(tqdm.desc or "").removesuffix(": "), is_last=is_last)
