"""The JSON of a request, and the format of a file by its name."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gateway.core.formats import ENDINGS, DataFormat
from gateway.core.job import RequestId

#: Endings of files that a person names; ``.json`` is taken for JSON lines.
FORMAT_OF_ENDING: dict[str, DataFormat] = {**ENDINGS, ".json": "jsonl"}


def job_request(
    code: str,
    request_id: RequestId,
    output_format: DataFormat,
    *,
    library: Mapping[str, str | Path] | None,
    timeout: float | None,
    hold_minutes: float | None,
    label: str | None,
    output_schema: Mapping[str, Any] | None,
    profile: bool = False,
) -> dict[str, Any]:
    """Return the JSON of ``POST /v1/execute``; a member that is None is left to the gateway's default."""
    request: dict[str, Any] = {
        "code": code,
        "request_id": request_id,
        "output_format": output_format,
        "library": {name: source_of(source) for name, source in (library or {}).items()},
        "timeout": timeout,
        "hold_minutes": hold_minutes,
        "label": label,
        "output_schema": output_schema,
        "profile": profile or None,
    }
    return {name: value for name, value in request.items() if value is not None}


def format_of(path: Path) -> DataFormat:
    """Return the format of a file by the ending of its name.

    Raises
    ------
    ValueError
        The ending is unknown.
    """
    try:
        return FORMAT_OF_ENDING[path.suffix.lower()]
    except KeyError:
        known = ", ".join(FORMAT_OF_ENDING)
        raise ValueError(f"{path}: unknown ending {path.suffix!r}; expected one of {known}") from None


def new_request_id() -> RequestId:
    """Return an id for a job of a caller that has none."""
    return f"client-{uuid.uuid4().hex}"


def source_of(script: str | Path) -> str:
    """Return the source of a script; a text is the source itself.

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        The text is the name of a file.
    """
    if isinstance(script, Path):
        return script.read_text(encoding="utf-8")
    if script.endswith(".py") and "\n" not in script:  # as a source, it can define nothing
        raise ValueError(f"{script!r} is taken for the source, not for the name of a file: pass Path({script!r})")
    return script
