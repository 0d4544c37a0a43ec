"""The gateway's settings as one frozen value; the traits of `gateway.app` fill it and document it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

MIB = 1 << 20

WITHOUT_LIMITS = {
    "memory_bytes": 1 << 46,
    "cpu_seconds": 10 * 365 * 86_400,
    "processes": 32_768,
    # more than a program meets, and few enough for one that closes all numbers that it might have inherited
    "descriptors": 65_536,
    "file_size_bytes": 1 << 50,
    "disk_bytes": 1 << 50,
}
"""What the limits of a job are with DISABLE_LIMITS: values that the machine, or its container, does not reach."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that the parts of the gateway are told; defaults are those of the traits.

    Quantities are in the units of their names. ``max_timeout_seconds`` bounds what a request may ask for.
    """

    state_dir: Path
    auth_token: str = field(default="", repr=False)
    host: str = "127.0.0.1"
    port: int = 5001
    slots: int = 1
    ready_kernels: int = 1
    ready_kernel_max_age_seconds: float = 3600.0
    queue_length: int = 10
    queue_timeout_seconds: float = 60.0
    default_timeout_seconds: float = 30.0
    max_timeout_seconds: float = 86_400.0
    memory_bytes: int = 1024 * MIB
    cpu_seconds: int = 60
    processes: int = 50
    descriptors: int = 256
    file_size_bytes: int = 500_000_000
    disk_bytes: int = 1_500_000_000
    max_body_bytes: int = 64 * MIB
    max_upload_bytes: int = 5_000_000_000
    max_input_bytes: int = 20_000_000_000
    log_cap_bytes: int = 2_000_000
    log_line_cap_bytes: int = 65_536
    log_keep_seconds: float = 600.0
    result_keep_seconds: float = 600.0
    result_keep_bytes: int = 2_000_000_000
    inline_cap_bytes: int = 1_000_000
    working_dir_roots: tuple[Path, ...] = ()
    drain_seconds: float = 30.0
    storage_stall_seconds: float = 30.0
    hold_failed_minutes: float = 0.0
    held_kernels: int = 2
    asynchronous: bool = False
    allow_network: bool = False
    allow_loopback: bool = False
    allow_unsandboxed: bool = False
    require_tier: str = ""
    use_fork_server: bool = True
    log_json: bool = False
    enable_tracing: bool = False
    enable_internal_s3: bool = False
    internal_s3_host: str = "127.0.0.1"
    internal_s3_port: int = 4566
    internal_s3_access_key: str = "test"
    internal_s3_secret_key: str = field(default="test", repr=False)
    internal_s3_allow_test_keys: bool = False
    internal_s3_expire_seconds: float = 86_400.0
