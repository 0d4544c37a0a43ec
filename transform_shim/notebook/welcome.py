"""The first lines of a console."""

from __future__ import annotations

import resource

__all__ = ["banner"]


def banner() -> str:
    """Return a few sentences on what this kernel is, and its limits."""
    limits = ", ".join(_limits())
    return (
        "\nThis is the sandbox that runs Metabase's Python transforms in production: no network, no foreign files.\n"
        "Here state persists between cells, as in any notebook; in production each job gets a fresh kernel, and so\n"
        f"does each %%transform. Limits of this kernel: {limits}.\n"
        "%table NAME SOURCE loads a table, %%transform runs a cell on the tables; %table? and %%transform? explain.\n"
    )


def _limits() -> list[str]:
    found = []
    for number, unit, text in (
        (resource.RLIMIT_DATA, 1 << 20, "{:,.0f} MiB of memory"),
        (resource.RLIMIT_FSIZE, 1_000_000, "{:,.0f} MB in one file"),
        (resource.RLIMIT_NOFILE, 1, "{:,.0f} open files"),
        (resource.RLIMIT_CPU, 3600, "{:,.0f} hours of CPU time"),
    ):
        limit = resource.getrlimit(number)[0]
        if limit != resource.RLIM_INFINITY:
            found.append(text.format(limit / unit))
    return found
