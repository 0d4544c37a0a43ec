"""The shim in notebooks: magics, tables and runs on the kernel ``transform``.

This is an IPython extension that such kernels load by themselves; kernels of jobs never load it. Loading it costs
almost nothing: a fork server has imported the modules of the magics, and the first table imports the readers of tables.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["load_ipython_extension"]


def load_ipython_extension(shell: Any) -> None:
    """Register the magics, their completion, the name ``tables`` and the banner."""
    from transform_shim.notebook.completion import register_completion
    from transform_shim.notebook.magics import TransformMagics
    from transform_shim.notebook.welcome import banner

    shell.register_magics(TransformMagics)
    register_completion(shell)
    shell.events.register("post_run_cell", _explain)
    _register_formatters(shell.display_formatter)
    _show_frames_as_in_a_notebook()
    tables = _LaterTables()

    def bind_tables(*_: object) -> None:
        if "tables" not in shell.user_ns_hidden:  # one that a cell has deleted or given another value stays so
            shell.user_ns["tables"] = shell.user_ns_hidden["tables"] = tables

    bind_tables()
    shell.events.register("post_run_cell", bind_tables)  # after %reset, which removes all names
    shell.banner2 = banner()


def _explain(result: Any) -> None:
    """Say after a traceback why a file or a module is missing that is there, next to the notebook."""
    error = result.error_in_exec
    if isinstance(error, FileNotFoundError | ModuleNotFoundError):
        from transform_shim.job.failure_hints import hint

        library = "; %%library makes a cell a module" if isinstance(error, ModuleNotFoundError) else ""
        if text := hint(error):
            print(f"HINT: {text}{library}", file=sys.stderr)  # noqa: T201


def _register_formatters(formatter: Any) -> None:
    """Register the text and HTML of results and tables; by name, so that neither is imported before there is one."""

    def later(function: str) -> Callable[[Any], str]:
        def format_value(value: Any) -> str:
            module = importlib.import_module("transform_shim.notebook.display")
            text: str = getattr(module, function)(value)
            return text

        return format_value

    plain, page = formatter.formatters["text/plain"], formatter.formatters["text/html"]
    text = later("run_text")
    plain.for_type_by_name(
        "transform_shim.notebook.run_outcome", "TransformRun", lambda value, p, _: p.text(text(value))
    )
    page.for_type_by_name("transform_shim.notebook.run_outcome", "TransformRun", later("run_html"))
    page.for_type_by_name("transform_shim.notebook.tables", "Tables", later("all_tables_html"))
    page.for_type_by_name("transform_shim.notebook", "_LaterTables", later("all_tables_html"))


def _show_frames_as_in_a_notebook() -> None:
    """Let pandas show 20 columns, as it does when a notebook imports it.

    The fork server imports it without an interactive shell, and pandas then assumes a terminal: HTML has 80 columns,
    and `print` leaves out those that do not fit into 80 characters.
    """
    pandas = sys.modules.get("pandas")
    if pandas is not None:
        pandas.set_option("display.max_columns", 20)


class _LaterTables:
    """Stands for `transform_shim.notebook.functions.tables` until it is used: importing that imports pandas."""

    def _tables(self) -> Any:
        from transform_shim.notebook.functions import tables

        return tables

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tables(), name)

    def __getitem__(self, name: str) -> Any:
        return self._tables()[name]

    def __iter__(self) -> Any:
        return iter(self._tables())

    def __len__(self) -> int:
        return len(self._tables())

    def __contains__(self, name: object) -> bool:
        return name in self._tables()

    def __dir__(self) -> list[str]:
        return dir(self._tables())

    def __repr__(self) -> str:
        return repr(self._tables())
