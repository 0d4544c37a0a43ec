"""Imports ipykernel without debugpy, which costs 0.14 s and which nothing here uses.

ipykernel asks for it in a try block; an entry of None in ``sys.modules`` makes that import fail at once (the import
system's documented meaning of None). The entry is taken back, so that user code may import debugpy.
"""

from __future__ import annotations

import sys

if "debugpy" not in sys.modules:
    sys.modules["debugpy"] = None  # type: ignore[assignment]
    try:
        import ipykernel.debugger  # noqa: F401
    finally:
        del sys.modules["debugpy"]
