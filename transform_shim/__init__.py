"""What runs inside the kernel. For jobs: `transform_shim.job`. For people, in a notebook on the kernel ``transform``:

>>> from transform_shim import table, tables, run_transform, submit, library          # doctest: +SKIP

These are the plain functions behind the magics; nothing of them is imported before it is asked for, because jobs import
this package too.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transform_shim.notebook.errors import NotebookError
    from transform_shim.notebook.functions import drop_table, library, run_transform, submit, table, tables

__all__ = ["NotebookError", "drop_table", "library", "run_transform", "submit", "table", "tables"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "errors" if name == "NotebookError" else "functions"
    return getattr(importlib.import_module(f"transform_shim.notebook.{module}"), name)
