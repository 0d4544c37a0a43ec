"""The user's code as the module ``script``, and the library's modules beside it."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import io
import linecache
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from transform_shim.core.errors import ShimError

__all__ = ["SCRIPT_FILE", "forget_modules", "load_script", "quotes_line", "shown_text", "write_modules"]

SCRIPT_FILE = "script.py"
_MODULE = "script"
_written_paths: set[str] = set()


def write_modules(work_dir: Path, code: str, library: Mapping[str, str]) -> Path:
    """Write the library's modules and the script, exactly as given; returns the script's path.

    Names with and without ``.py`` mean the same file.

    Raises
    ------
    ShimError
        If a library name is more than a file name (the gateway refuses such a request before).
    """
    forget_modules()
    for name, source in library.items():
        file_name = f"{name.removesuffix('.py')}.py"
        if "/" in name or "\0" in name or file_name.startswith(".") or file_name == SCRIPT_FILE:
            raise ShimError(f"library name {name!r} cannot be a module beside the script")
        _write(work_dir / file_name, source)
    script_path = work_dir / SCRIPT_FILE
    _write(script_path, code)
    return script_path


def shown_text(text: str) -> str:
    """Return a text with the paths by which a user knows the files of the request: ``script.py`` and ``common.py``."""
    for path in _written_paths:
        text = text.replace(path, Path(path).name)
    return text


def quotes_line(text: str) -> bool:
    """Return whether a text has a line of a traceback that names a file of the request."""
    return any(f'File "{Path(path).name}", line ' in shown_text(text) for path in _written_paths)


def load_script(script_path: Path) -> ModuleType:
    """Run the script as module ``script``; its exceptions pass through."""
    sys.modules.pop(_MODULE, None)
    # Forget the listing of this directory that an earlier job's imports cached. Not importlib.invalidate_caches(): that
    # writes to the finder of each directory there is, which copies 260 pages into a forked kernel, one in twenty of all
    # that it writes to.
    sys.path_importer_cache.pop(str(script_path.parent), None)
    loader = importlib.machinery.SourceFileLoader(_MODULE, str(script_path))
    spec = importlib.util.spec_from_file_location(_MODULE, script_path, loader=loader)
    if spec is None:
        raise ShimError(f"no module can be made of {script_path}")
    module = importlib.util.module_from_spec(spec)
    source = script_path.read_text("utf-8-sig")  # of bytes, a line "coding: latin-1" would change the texts
    if "\0" in source:  # before Python 3.12 a ValueError without a line
        line = source.count("\n", 0, source.index("\0")) + 1
        raise SyntaxError("source code cannot contain null bytes", (str(script_path), line, None, None))
    code = compile(source, str(script_path), "exec", dont_inherit=True)
    sys.modules[_MODULE] = module
    exec(code, module.__dict__)  # noqa: S102 - the user's code is what this process is for
    return module


def _write(path: Path, source: str) -> None:
    # a lone surrogate cannot be in a file; "?" in its place is a mistake the user sees on the line where it is
    path.write_bytes(source.encode("utf-8", "replace"))
    _written_paths.add(str(path))
    # tracebacks show these lines even if the script removes or changes its own file; no mtime: never checked again
    # splitlines() knows more line ends than Python's parser; without one, carets below the last line are off by one
    lines = io.StringIO(source.removesuffix("\n") + "\n", newline=None).readlines()
    linecache.cache[str(path)] = (len(source), None, lines, str(path))


def forget_modules() -> None:
    """Drop the modules that an earlier job in this process wrote, as in notebooks, and their cached lines."""
    for path in _written_paths:
        # By name: a look at each of a thousand modules would copy the page it lies in (fork(2), reference counts).
        name = Path(path).stem
        if getattr(sys.modules.get(name), "__file__", None) == path:
            del sys.modules[name]
        linecache.cache.pop(path, None)
    _written_paths.clear()
