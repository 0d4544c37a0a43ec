"""Tests of transforms with pytest: the fixture ``transform_gateway`` and `assert_frame`.

The names are imported at their first use, because pytest loads the plugin of this package in each of its runs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gateway.testing.frames import assert_frame
    from gateway.testing.tester import TransformTester

__all__ = ["TransformTester", "assert_frame"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "frames" if name == "assert_frame" else "tester"
    return getattr(importlib.import_module(f"gateway.testing.{module}"), name)
