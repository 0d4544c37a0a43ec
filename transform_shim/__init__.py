"""The code inside the kernel: `transform_shim.job.run` for jobs, and functions for transforms and notebooks.

>>> from transform_shim import progress                                               # doctest: +SKIP
>>> from transform_shim import table, tables, run_transform, submit, library          # doctest: +SKIP

The first is for transforms; the others are the plain functions behind the magics. All are imported at the first use,
because each job imports this package.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transform_shim.bars.job_bars import progress
    from transform_shim.notebook.errors import NotebookError
    from transform_shim.notebook.functions import drop_table, library, run_transform, submit, table, tables

__all__ = ["NotebookError", "drop_table", "library", "progress", "run_transform", "submit", "table", "tables"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = {"NotebookError": "notebook.errors", "progress": "bars.job_bars"}.get(name, "notebook.functions")
    return getattr(importlib.import_module(f"transform_shim.{module}"), name)
