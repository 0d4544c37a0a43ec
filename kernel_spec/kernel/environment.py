"""The environment of a kernel, made from an allow-list of variables of the gateway's own.

The gateway's variables hold its token and perhaps database passwords, and a kernel can read its own environment and
its fork server's. So the launcher, the fork server and each kernel get a new one that is built here.
"""

from __future__ import annotations

import functools
import os
import site
import sys
from collections.abc import Mapping
from pathlib import Path

from kernel_spec.protocol.values import Style, WorkspaceInfo

#: Inherited when set: search paths and language.
INHERITED = (
    "PATH", "LANG", "LANGUAGE", "LC_ALL", "LC_COLLATE", "LC_CTYPE", "LC_MESSAGES", "LC_MONETARY", "LC_NUMERIC",
    "LC_TIME", "LD_LIBRARY_PATH", "TZDIR",
)  # fmt: skip

_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_THREADS = str(min(4, os.cpu_count() or 1))

#: Part of the limits, not tuning. Each thread of OpenBLAS and each arena of malloc reserves tens of megabytes of
#: address space and Arrow's own allocators reserve 1 GiB at first use: without these an ipykernel hangs under a 1 GiB
#: limit. The pools of Arrow and BLAS must also be pinned before a fork, because their threads do not survive it; and
#: Arrow's jemalloc starts a thread of its own as soon as the library is loaded, whichever allocator is used. Polars has
#: a jemalloc too, which by default has four arenas a core and keeps the address space that it once used: reading and
#: writing 100 MB then takes 451 MB of the limit instead of 274 MB.
PINS: Mapping[str, str] = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "BLIS_NUM_THREADS": "1",
    "NUMEXPR_NUM_THREADS": "1",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "_RJEM_MALLOC_CONF": "background_thread:false,narenas:2,retain:false,dirty_decay_ms:100,muzzy_decay_ms:0",
    "MALLOC_ARENA_MAX": "2",
    "POLARS_MAX_THREADS": _THREADS,
    "RAYON_NUM_THREADS": _THREADS,
}

#: The variable that marks the processes of a workspace, where workspaces have no user of their own.
WORKSPACE_MARKER = "TRANSFORM_WORKSPACE"
LOG_DESCRIPTOR_VARIABLE = "TRANSFORM_LOG_FD"
COMPANION_DESCRIPTOR_VARIABLE = "TRANSFORM_COMPANION_FD"
LOG_DESCRIPTOR = 3
#: For the C library (resolv.conf(5)), where a job has the network but no datagrams: resolve names over TCP.
RESOLVER_WITHOUT_DATAGRAMS: Mapping[str, str] = {"RES_OPTIONS": "use-vc"}


def base_environment(source: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the variables that launcher, fork server and kernels share: the allow-list and the pins.

    Parameters
    ----------
    source : mapping of str to str or None
        Source of inherited variables; default is this process's environment.
    """
    source = os.environ if source is None else source
    inherited = {name: source[name] for name in INHERITED if name in source}
    # UTC on any host, so that a script gives the same dates everywhere; UTF-8 in any locale, so that printing in user
    # code never fails for its encoding.
    return {"PATH": _DEFAULT_PATH, "LANG": "C.UTF-8", **inherited, "TZ": "UTC", "PYTHONUTF8": "1", **PINS}


def interpreter_environment() -> dict[str, str]:
    """Return the environment in which one of our own modules is started with ``python -P -m``.

    ``-P`` keeps the working directory out of ``sys.path``, so the parent of this package is named, but only where
    Python does not find it by itself: there it comes before all packages, and a file such as six.py in it hides one.
    """
    return {
        **base_environment(),
        **_search_path(Path(__file__).resolve().parents[2]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONNOUSERSITE": "1",
    }


@functools.cache
def _search_path(parent: Path) -> dict[str, str]:
    """Return the variable for a place of modules; empty if a package or editable installation is there (site)."""
    for directory in map(Path, site.getsitepackages()):
        lines = (line for file in directory.glob("*.pth") for line in file.read_text(errors="replace").splitlines())
        if any(directory.joinpath(line).resolve() == parent for line in (".", *lines)):
            return {}
    return {"PYTHONPATH": str(parent)}


def interpreter_command(module: str, *arguments: str) -> list[str]:
    """Return the command line that runs one of our own modules."""
    return [sys.executable, "-P", "-m", module, *arguments]


def kernel_environment(
    workspace: WorkspaceInfo, *, style: Style, has_log: bool, source: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the whole environment of the kernel in `workspace`.

    Parameters
    ----------
    workspace : WorkspaceInfo
        Directories for home and temporary files.
    style : Style
        ``notebook`` is a person's kernel. The environment of a ``job`` does not depend on the gateway's terminal.
    has_log : bool
        Whether descriptor 3 is open: the log pipe of a job, or the socket from a notebook to its companion.
    source : mapping of str to str or None
        Source of inherited variables; default is this process's environment.
    """
    work = workspace.work_dir
    own = {
        "HOME": work,
        "TMPDIR": work,
        "TMP": work,
        "TEMP": work,
        "USER": "pyexec",
        "LOGNAME": "pyexec",
        "IPYTHONDIR": f"{work}/.ipython",
        "JUPYTER_CONFIG_DIR": f"{work}/.jupyter",
        "JUPYTER_DATA_DIR": f"{work}/.jupyter",
        "JUPYTER_RUNTIME_DIR": f"{work}/.jupyter",
        "MPLCONFIGDIR": f"{work}/.matplotlib",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "XDG_CACHE_HOME": f"{work}/.cache",
        "XDG_CONFIG_HOME": f"{work}/.config",
        "XDG_DATA_HOME": f"{work}/.local/share",
        "PYTHONUSERBASE": f"{work}/.local",
        "PYTHONPYCACHEPREFIX": f"{work}/.pycache",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONNOUSERSITE": "1",
        WORKSPACE_MARKER: workspace.name,
    }
    if style == "job":
        # The same for each gateway, whatever terminal started it: a log is not a terminal.
        own |= {"PATH": _DEFAULT_PATH, "NO_COLOR": "1", "TERM": "dumb"}
    if has_log:
        variable = LOG_DESCRIPTOR_VARIABLE if style == "job" else COMPANION_DESCRIPTOR_VARIABLE
        own[variable] = str(LOG_DESCRIPTOR)
    return {**base_environment(source), **own}
