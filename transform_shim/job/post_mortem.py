"""The post-mortem of a failed job, for a kernel that is held for inspection instead of being killed.

A job keeps one (`keep_post_mortem`) only if it was asked to: it keeps alive the tables, the value that ``transform``
returned, and the frames of the failure. `namespace` then gives them names in the console.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from transform_shim.job.traceback_text import is_users

__all__ = ["PostMortem", "keep_post_mortem", "leave_to_debugger", "namespace"]


@dataclass(slots=True)
class PostMortem:
    """The state of a job for the case that it fails; each part is set when it is known.

    ``returned`` is a tuple with the one value, or empty: None is a value that transform() may return.
    """

    work_dir: Path
    tables: dict[str, Any] = field(default_factory=dict)
    returned: tuple[Any, ...] = ()
    error: BaseException | None = None
    sentence: str = ""


class _Kept:
    post_mortem: PostMortem | None = None


def keep_post_mortem(post_mortem: PostMortem) -> None:
    """Keep the state of the job until `namespace` is called."""
    _Kept.post_mortem = post_mortem


def namespace(marker_path: str) -> Mapping[str, Any]:
    """Return the names for the console's namespace, and make ``%debug`` begin where the job failed.

    Parameters
    ----------
    marker_path : str
        A file that is written last, by rename: it exists only if all of this was done.

    Returns
    -------
    mapping
        ``tables`` (name to what transform() got), ``script`` (the user's module, as far as it was run), ``failure``
        (the exception), ``returned`` if transform() returned, and each table under its own name.

    Raises
    ------
    RuntimeError
        The job did not fail here, or was not asked to keep a post-mortem.
    """
    post_mortem = _Kept.post_mortem
    if post_mortem is None or post_mortem.error is None:
        raise RuntimeError("no failed job was kept in this process")
    error, tables = post_mortem.error, post_mortem.tables
    leave_to_debugger(error)
    os.chdir(post_mortem.work_dir)
    sys.path.insert(0, str(post_mortem.work_dir))
    names: dict[str, Any] = {name: value for name, value in tables.items() if name.isidentifier()}
    names |= {"tables": tables, "script": sys.modules.get("script"), "failure": error}
    if post_mortem.returned:
        names["returned"] = post_mortem.returned[0]
    names |= _greet(post_mortem, names)
    draft = Path(f"{marker_path}.part")
    draft.write_text(json.dumps(sorted(names)))
    draft.rename(marker_path)
    return names


def leave_to_debugger(error: BaseException) -> None:
    """Make an exception the last one, so that ``%debug`` opens the user's innermost frame.

    The debugger opens the last frame of the exception's own traceback. That is often deep in a library, so the frames
    before the user's first and after the user's last are removed. Call it when the text of the failure is written.

    Parameters
    ----------
    error : BaseException
        One without a frame of the user's keeps its traceback.
    """
    frames = []
    trace = error.__traceback__
    while trace is not None:
        frames.append(trace)
        trace = trace.tb_next
    users = [number for number, each in enumerate(frames) if is_users(each.tb_frame.f_code.co_filename)]
    if users:
        own: TracebackType | None = None
        for each in reversed(frames[users[0] : users[-1] + 1]):
            own = TracebackType(own, each.tb_frame, each.tb_lasti, each.tb_lineno)
        error = error.with_traceback(own)
    # Python 3.12 reads last_exc, older ones and IPython's %debug the other three
    sys.last_exc = error  # type: ignore[attr-defined, unused-ignore]
    sys.last_type, sys.last_value, sys.last_traceback = type(error), error, error.__traceback__


def _greet(post_mortem: PostMortem, names: Mapping[str, Any]) -> dict[str, Any]:
    """Set the console's banner, and return `exit` and `quit` that leave the kernel alive."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if shell is None:
        return {}
    from IPython.core.autocall import ExitAutocall

    shell.serve_person()
    listed = ", ".join(sorted(names))
    shell.banner2 = (
        f"\nThis is the kernel of a job that failed: {post_mortem.sentence}\n"
        f"Names: {listed}. %debug goes to the frame that failed.\n"
    )
    # ipykernel's own would reset this and end the kernel for later consoles
    shell.keepkernel_on_exit = True
    return dict.fromkeys(("exit", "quit"), ExitAutocall(shell))  # type: ignore[no-untyped-call]
