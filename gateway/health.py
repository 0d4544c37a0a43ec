"""How a gateway is, in a sentence for a person, from the answer of ``GET /v1/status``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def health_of(status: Mapping[str, Any]) -> str:
    """Return ``ok``, or that it is not well and why."""
    if status.get("healthy"):
        return "ok"
    s3, kernels = status.get("internal_s3") or {}, status.get("kernels") or {}
    if status.get("draining"):
        why = "it was told to stop and lets running jobs end"
    elif s3.get("failure"):
        why = str(s3["failure"])
    elif kernels.get("last_start_failure"):
        why = f"kernels do not start: {kernels['last_start_failure']}"
    else:
        why = "no kernel is ready yet"
    return f"not healthy: {why}"
