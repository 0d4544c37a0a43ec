"""Import ipykernel without debugpy, which takes 0.14 s to import and is not used here.

ipykernel imports it in a try block; an entry of None in ``sys.modules`` makes that import fail at once (the import
system's documented meaning of None). The entry is removed again, so that user code may import debugpy.
"""

from __future__ import annotations

import sys

if "debugpy" not in sys.modules:
    sys.modules["debugpy"] = None  # type: ignore[assignment]
    try:
        import ipykernel.debugger  # noqa: F401
    finally:
        del sys.modules["debugpy"]
