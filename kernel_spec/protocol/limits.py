"""The limits of one kernel, as a value that travels between the processes.

A limit is declared here and nowhere else: the settings of the gateway and the traits of the provisioner are made from
`LIMITS`.

=================== ============================================ ===================================================
field               limits                                       enforced by
=================== ============================================ ===================================================
memory_bytes        memory of all processes of the workspace     control group, else limit monitor; RLIMIT_AS/DATA
cpu_seconds         CPU time of all processes of the workspace   RLIMIT_CPU for one, limit monitor for the sum
processes           processes and threads of the workspace       RLIMIT_NPROC, control group
descriptors         open descriptors of one process              RLIMIT_NOFILE
file_size_bytes     size of one file                             RLIMIT_FSIZE
disk_bytes          size of all files in the workspace           limit monitor
=================== ============================================ ===================================================
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from msgspec import Struct

from kernel_spec.protocol.quantities import parse_bytes, parse_seconds

MIB = 1 << 20

#: A year: a notebook may stay open; the gateway limits each of its jobs.
NOTEBOOK_CPU_SECONDS = 365 * 86_400


class Limits(Struct, frozen=True, forbid_unknown_fields=True):
    """Limits of one kernel and of all processes that it starts; all values are positive integers.

    Raises
    ------
    ValueError
        A value is not an integer or is below the smallest value with which a kernel can start.
    """

    memory_bytes: int = 1 << 30
    cpu_seconds: int = 60
    processes: int = 50
    descriptors: int = 256
    file_size_bytes: int = 500_000_000
    disk_bytes: int = 1_500_000_000

    def __post_init__(self) -> None:
        for name, limit in LIMITS.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise ValueError(f"limit {name} must be an integer, not {value!r}")
            if not limit.smallest <= value <= _LARGEST:
                raise ValueError(f"limit {name} must be between {limit.smallest} and {_LARGEST}, not {value}")


_LARGEST = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Limit:
    """Properties of one limit.

    Attributes
    ----------
    setting : str
        Environment variable of the gateway.
    text : str
        The quantity that it limits, with ``{}`` in place of the owner: a job, the kernel of a notebook.
    smallest : int
        Below it a kernel does not reach its first request, and the failure would look like an error of the gateway.
    smallest_setting : int
        Below it a job that uses pandas does not succeed.
    disabled : int
        Stands for no limit: more than the machine, or its container, has.
    notebook : int or None
        Default for the kernel of a notebook, where it is not that of a job.
    """

    setting: str
    text: str
    smallest: int
    smallest_setting: int
    disabled: int
    notebook: int | None = None


#: Every field of `Limits`.
LIMITS: Mapping[str, Limit] = {
    "memory_bytes": Limit(
        "MEMORY_LIMIT_BYTES",
        "Memory of {}, all of its processes together, in bytes.",
        smallest=64 * MIB,
        smallest_setting=64 * MIB,
        disabled=1 << 46,
    ),
    "cpu_seconds": Limit(
        "CPU_LIMIT_SECONDS",
        "CPU time of {} in seconds.",
        smallest=1,
        smallest_setting=1,
        disabled=10 * 365 * 86_400,
        notebook=NOTEBOOK_CPU_SECONDS,
    ),
    "processes": Limit(
        "PROCESS_LIMIT",
        "Number of processes and threads of {}.",
        smallest=8,
        smallest_setting=20,
        disabled=32_768,
    ),
    "descriptors": Limit(
        "DESCRIPTOR_LIMIT",
        "Number of open files of each process of {}.",
        smallest=64,
        smallest_setting=64,
        # more than a program needs, and few enough for one that closes all numbers that it might have inherited
        disabled=65_536,
    ),
    "file_size_bytes": Limit(
        "FILE_SIZE_LIMIT_BYTES",
        "Size of each file of {} in bytes.",
        smallest=1 << 16,
        smallest_setting=1_000_000,
        disabled=1 << 50,
    ),
    "disk_bytes": Limit(
        "DISK_LIMIT_BYTES",
        "Size of the directory of {} in bytes.",
        smallest=1 << 16,
        smallest_setting=1_000_000,
        disabled=1 << 50,
    ),
}


def notebook_limits() -> Limits:
    """Return the limits of a notebook's kernel: those of a job except for time, unless the environment sets others.

    Returns
    -------
    Limits

    Raises
    ------
    ValueError
        As `notebook_limit`, or a limit is too small for a kernel.
    """
    return Limits(**{name: notebook_limit(name) for name in LIMITS})


def notebook_variable(name: str) -> str:
    """Return the environment variable of a limit of notebooks' kernels.

    Parameters
    ----------
    name : str
        Field of `Limits`.

    Returns
    -------
    str
    """
    return f"TRANSFORM_KERNEL_{name.upper()}"


def notebook_limit(name: str) -> int:
    """Return a limit of notebooks' kernels from its environment variable, or its default.

    Parameters
    ----------
    name : str
        Field of `Limits`.

    Returns
    -------
    int

    Raises
    ------
    ValueError
        The value is not valid; the text names the variable, because a front end logs it among much else.
    """
    default = LIMITS[name].notebook or getattr(Limits(), name)
    variable = notebook_variable(name)
    text = os.environ.get(variable) or str(default)
    try:
        if name.endswith("_bytes"):
            return parse_bytes(text)
        return int(parse_seconds(text) if name.endswith("_seconds") else text)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"environment variable {variable}={text!r}: {error}") from None
