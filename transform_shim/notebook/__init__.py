"""The shim for people: magics, tables and runs in a notebook on the kernel ``transform``.

This is an IPython extension that such kernels load by themselves; kernels of jobs never import it. Loading it costs
next to nothing: what reads tables is imported when the first one is asked for.
"""

from __future__ import annotations

from typing import Any

__all__ = ["load_ipython_extension"]


def load_ipython_extension(shell: Any) -> None:
    """Register the magics, their completion, the name ``tables`` and the banner, and let ``!command`` work."""
    from transform_shim.notebook.completion import register_completion
    from transform_shim.notebook.magics import TransformMagics
    from transform_shim.notebook.welcome import banner

    shell.register_magics(TransformMagics)
    register_completion(shell)
    shell.user_ns["tables"] = _LaterTables()
    shell.user_ns_hidden["tables"] = shell.user_ns["tables"]
    shell.banner2 = banner()
    # `!command` wants a terminal of its own by default, and there is none in the sandbox
    shell.system = shell.system_raw


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
