"""What a failed job leaves to whoever looks at it, when its kernel is held for inspection instead of being killed.

The job puts it aside (`set_aside`) only if it was asked to, because it keeps alive what would else be let go of: the
tables, what ``transform`` returned, and the frames of the failure. `present` then makes names of it for the console.
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

from transform_shim.failures import is_ours

__all__ = ["Remains", "present", "set_aside"]


@dataclass(slots=True)
class Remains:
    """What there is of a job when it fails; each part from the moment it is known.

    ``returned`` is a tuple with the one value, or empty: None is a value that transform() may return.
    """

    work_dir: Path
    tables: dict[str, Any] = field(default_factory=dict)
    returned: tuple[Any, ...] = ()
    error: BaseException | None = None
    sentence: str = ""


class _Aside:
    remains: Remains | None = None


def set_aside(remains: Remains) -> None:
    """Keep what is left of the job until `present`."""
    _Aside.remains = remains


def present(marker_path: str) -> Mapping[str, Any]:
    """Return the names for the console's namespace, and make ``%debug`` begin where the job failed.

    Parameters
    ----------
    marker_path : str
        A file that is written last, by rename: its being there says that all of this was done.

    Returns
    -------
    mapping
        ``tables`` (name to what transform() got), ``script`` (the user's module, as far as it was run), ``failure``
        (the exception), ``returned`` if transform() returned, and each table under its own name.

    Raises
    ------
    RuntimeError
        The job did not fail here, or was not asked to leave anything.
    """
    remains = _Aside.remains
    if remains is None or remains.error is None:
        raise RuntimeError("no failed job was kept in this process")
    error, tables = remains.error, remains.tables
    # Python 3.12 reads last_exc, older ones and IPython's %debug the other three
    sys.last_exc = error  # type: ignore[attr-defined, unused-ignore]
    sys.last_type, sys.last_value, sys.last_traceback = type(error), error, _from_users_line(error.__traceback__)
    os.chdir(remains.work_dir)
    sys.path.insert(0, str(remains.work_dir))
    names: dict[str, Any] = {name: value for name, value in tables.items() if name.isidentifier()}
    names |= {"tables": tables, "script": sys.modules.get("script"), "failure": error}
    if remains.returned:
        names["returned"] = remains.returned[0]
    names |= _greet(remains, names)
    draft = Path(f"{marker_path}.part")
    draft.write_text(json.dumps(sorted(names)))
    draft.rename(marker_path)
    return names


def _from_users_line(trace: TracebackType | None) -> TracebackType | None:
    """The traceback from the user's first frame on; all of it where no frame is the user's."""
    own = trace
    while own is not None and is_ours(own.tb_frame.f_code.co_filename):
        own = own.tb_next
    return own or trace


def _greet(remains: Remains, names: Mapping[str, Any]) -> dict[str, Any]:
    """Say in the console's first lines what there is, and return `exit` and `quit` that leave the kernel alive."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if shell is None:
        return {}
    from IPython.core.autocall import ExitAutocall

    listed = ", ".join(sorted(names))
    shell.banner2 = (
        f"\nThis is the kernel of a job that failed: {remains.sentence}\n"
        f"Names: {listed}. %debug goes to the frame that failed.\n"
    )
    # ipykernel's own would set this back and end the kernel for everybody who wants to look once more
    shell.keepkernel_on_exit = True
    return dict.fromkeys(("exit", "quit"), ExitAutocall(shell))  # type: ignore[no-untyped-call]
