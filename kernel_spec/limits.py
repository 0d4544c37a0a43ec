"""The limits of one kernel, as a value that travels between the processes.

=================== ========================================== =======================================
field               bounds                                     kept by
=================== ========================================== =======================================
memory_bytes        memory of all processes of the seat        cgroup, else a watch; RLIMIT_AS/DATA
cpu_seconds         CPU time of all processes of the seat      RLIMIT_CPU for one, a watch for the sum
processes           processes and threads of the seat          RLIMIT_NPROC, pids cgroup
descriptors         open descriptors of one process            RLIMIT_NOFILE
file_size_bytes     size of one file                           RLIMIT_FSIZE
disk_bytes          size of everything in the seat directory   a watch over the directory
=================== ========================================== =======================================
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

# A year: a notebook stays open for as long as it likes, its jobs are limited by the gateway.
NOTEBOOK_CPU_SECONDS = 365 * 86_400


@dataclass(frozen=True, slots=True)
class Limits:
    """What one kernel and everything it starts may use; all values are positive integers.

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
        for name, smallest in _SMALLEST.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise ValueError(f"limit {name} must be an integer, not {value!r}")
            if not smallest <= value <= _LARGEST:
                raise ValueError(f"limit {name} must be between {smallest} and {_LARGEST}, not {value}")

    def to_json(self) -> dict[str, int]:
        """Return the limits as a JSON object, the form that `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: object) -> Limits:
        """Return the limits in a JSON object; absent fields take their defaults.

        Raises
        ------
        ValueError
            Not an object, an unknown field, or a value out of range.
        """
        if not isinstance(value, Mapping):
            raise ValueError(f"limits must be an object, not {type(value).__name__}")
        known = {field.name for field in fields(cls)}
        unknown = sorted(str(name) for name in value if name not in known)
        if unknown:
            raise ValueError(f"unknown limits: {', '.join(unknown)}")
        return cls(**value)


# Below these a kernel does not get as far as its first request, and the failure would look like a fault of ours.
_SMALLEST = {
    "memory_bytes": 64 << 20,
    "cpu_seconds": 1,
    "processes": 8,
    "descriptors": 64,
    "file_size_bytes": 1 << 16,
    "disk_bytes": 1 << 16,
}
_LARGEST = (1 << 63) - 1


def notebook_limits() -> Limits:
    """Return the limits of a notebook's kernel: those of a job but for time, or what the environment sets.

    Raises
    ------
    ValueError
        As `notebook_limit`, or a limit is too small for a kernel.
    """
    job = Limits()
    return Limits(
        memory_bytes=notebook_limit("MEMORY_BYTES", job.memory_bytes),
        cpu_seconds=notebook_limit("CPU_SECONDS", NOTEBOOK_CPU_SECONDS),
        processes=notebook_limit("PROCESSES", job.processes),
        descriptors=notebook_limit("DESCRIPTORS", job.descriptors),
        file_size_bytes=notebook_limit("FILE_SIZE_BYTES", job.file_size_bytes),
    )


def notebook_limit(name: str, otherwise: int) -> int:
    """Return the limit that the environment sets for kernels of notebooks, in ``TRANSFORM_KERNEL_`` and this name.

    Raises
    ------
    ValueError
        It is no whole number; the text names the variable, which may stand in a front end's log beside much else.
    """
    variable = f"TRANSFORM_KERNEL_{name}"
    text = os.environ.get(variable) or str(otherwise)
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"environment variable {variable}={text!r}: expected a whole number") from None
