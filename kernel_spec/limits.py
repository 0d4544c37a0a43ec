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

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields


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
