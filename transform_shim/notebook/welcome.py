"""What a console says when it opens."""

from __future__ import annotations

import resource

__all__ = ["banner"]


def banner() -> str:
    """Return a few sentences on what this kernel is, and its limits."""
    limits = ", ".join(_limits())
    return (
        "This is the sandbox that runs Metabase's Python transforms in production: no network, no files but its own.\n"
        "Here state persists between cells, as in any notebook; in production each job gets a fresh kernel, and so does\n"
        f"each %%transform. Limits of this kernel: {limits}.\n"
        "%table NAME SOURCE loads a table, %%transform runs the cell on the tables; %table? and %%transform? explain.\n"
    )


def _limits() -> list[str]:
    found = []
    for number, text in (
        (resource.RLIMIT_DATA, "{:,.0f} MiB of memory"),
        (resource.RLIMIT_FSIZE, "{:,.0f} MiB in one file"),
    ):
        limit = resource.getrlimit(number)[0]
        if limit != resource.RLIM_INFINITY:
            found.append(text.format(limit / (1 << 20)))
    found += [
        f"{resource.getrlimit(number)[0]} {what}"
        for number, what in ((resource.RLIMIT_NPROC, "processes and threads"), (resource.RLIMIT_NOFILE, "open files"))
        if resource.getrlimit(number)[0] != resource.RLIM_INFINITY
    ]
    return [*found, "no limit on time"]
