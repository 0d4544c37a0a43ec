"""The gateway's settings as one frozen value; the traits of `gateway.process.app` fill it and document it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from kernel_spec.protocol.limits import LIMITS, MIB, Limits

#: Shortest token in a token file, and of AUTH_TOKEN beyond loopback; a shorter one can be guessed over the network.
MIN_TOKEN_CHARACTERS = 8

#: The limits of a job with DISABLE_LIMITS.
WITHOUT_LIMITS = Limits(**{name: limit.disabled for name, limit in LIMITS.items()})


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a gateway, with their defaults.

    Quantities are in the units of their names. ``max_timeout_seconds`` bounds the timeout that a request may name.
    ``limits`` are those of one job; `kernel_spec.protocol.limits` declares a setting for each.
    """

    state_dir: Path = Path(".state")
    auth_token: str = field(default="", repr=False)
    auth_token_file: Path | None = None
    tls_cert_file: Path | None = None
    tls_key_file: Path | None = None
    cluster_url: str = field(default="", repr=False)
    cluster_advertise_url: str = ""
    cluster_credentials_file: Path | None = None
    cluster_tls_ca_file: Path | None = None
    cluster_tls_cert_file: Path | None = None
    cluster_tls_key_file: Path | None = None
    host: str = "127.0.0.1"
    port: int = 5001
    slots: int = 1
    runs_only: bool = False
    ready_kernels: int = 1
    ready_kernel_max_age_seconds: float = 3600
    queue_length: int = 10
    queue_timeout_seconds: float = 60
    default_timeout_seconds: float = 30
    max_timeout_seconds: float = 86_400
    limits: Limits = field(default_factory=Limits)
    max_connections: int = 1000
    max_deliveries: int = 200
    min_free_disk_bytes: int = 100 * MIB
    max_body_bytes: int = 64 * MIB
    max_upload_bytes: int = 5_000_000_000
    max_input_bytes: int = 20_000_000_000
    log_cap_bytes: int = 2_000_000
    log_line_cap_bytes: int = 65_536
    log_keep_seconds: float = 7 * 86_400
    log_keep_bytes: int = 1_000_000_000
    history_keep_seconds: float = 30 * 86_400
    history_keep_bytes: int = 100_000_000
    keep_failed_jobs: bool = False
    keep_failed_bytes: int = 1_000_000_000
    max_attempts: int = 2
    result_keep_seconds: float = 600
    result_keep_bytes: int = 2_000_000_000
    inline_cap_bytes: int = 1_000_000
    working_dir_roots: tuple[Path, ...] = ()
    mixed_columns: str = "text"
    official_compatibility: bool = False
    drain_seconds: float = 30
    storage_stall_seconds: float = 30
    delivery_retry_seconds: float = 120
    storage_hosts: tuple[str, ...] = ()
    hold_failed_minutes: float = 0
    held_kernels: int = 2
    personal_kernels: int = 4
    asynchronous: bool = False
    enable_page: bool = True
    allow_network: bool = False
    allow_loopback: bool = False
    allow_unsandboxed: bool = False
    require_tier: str = ""
    use_fork_server: bool = True
    preload: tuple[str, ...] = ()
    log_json: bool = False
    enable_tracing: bool = False
    enable_internal_s3: bool = False
    internal_s3_host: str = "127.0.0.1"
    internal_s3_port: int = 4566
    internal_s3_access_key: str = "test"
    internal_s3_secret_key: str = field(default="test", repr=False)
    internal_s3_allow_test_keys: bool = False
    internal_s3_expire_seconds: float = 86_400


#: The settings that name a file which the gateway reads without root, some of them again on SIGHUP.
FILES = tuple(name for name in Settings.__dataclass_fields__ if name.endswith("_file"))
