"""The traceback as the official runner writes it, for `OFFICIAL_COMPATIBILITY`.

Its first frame is the runner's own, and its paths are absolute. Metabase's tests compare both: folders have letters,
digits, underscores and hyphens only, and eighteen carets mark the call, as Python 3.11 and 3.12 draw them.
"""

from __future__ import annotations

import traceback
from pathlib import Path

from transform_shim.job.traceback_text import is_ours

__all__ = ["official_text"]

_TITLE = "Traceback (most recent call last):\n"
#: Where the official runner's files would be; a workspace's own path may hold a dot.
_FOLDER = "/transform"
_RUNNER_FRAME = (
    f'  File "{_FOLDER}/transform_runner.py", line 1, in main\n'
    "    result = script.transform()\n"
    "             ^^^^^^^^^^^^^^^^^^\n"
)


def official_text(text: str, error: BaseException, work_dir: Path) -> str:
    """Return the text of a failure with the official runner's traceback in place of ours.

    Parameters
    ----------
    text : str
        Our text; one without a traceback stays as it is.
    error : BaseException
        The exception that transform() raised.
    work_dir : Path
        Directory of the script.

    Returns
    -------
    str
        The lines before the traceback, then all frames but the shim's, unfolded.
    """
    head, title, _ = text.partition(_TITLE)
    if not title:
        return text
    rendered = traceback.TracebackException.from_exception(error, compact=True)
    _drop_shim_frames(rendered, set())
    body = "".join(rendered.format()).replace(f'File "{work_dir}/', f'File "{_FOLDER}/')
    # of chained errors the one that was raised last comes last, and only its traceback reaches the runner
    causes, title, frames = body.rpartition(_TITLE)
    return head + causes + (title + _RUNNER_FRAME if title else "") + frames


def _drop_shim_frames(rendered: traceback.TracebackException, seen: set[int]) -> None:
    if id(rendered) in seen:
        return
    seen.add(id(rendered))
    rendered.stack = traceback.StackSummary.from_list(frame for frame in rendered.stack if not is_ours(frame.filename))
    for other in (rendered.__cause__, rendered.__context__, *(rendered.exceptions or ())):
        if other is not None:
            _drop_shim_frames(other, seen)
