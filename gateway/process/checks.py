"""Settings that contradict each other, would be unsafe, or are more than the host has."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import re
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from gateway.core.addresses import is_loopback
from gateway.core.errors import ConfigurationError
from gateway.core.settings import MIN_TOKEN_CHARACTERS, WITHOUT_LIMITS, Settings
from kernel_spec.kernel.added_packages import usable_set
from kernel_spec.sandbox.layers import readable_paths

#: A host of STORAGE_HOSTS: a name or pattern, or an IPv6 address in brackets, and perhaps a port. The other parts of a
#: URL, such as its scheme, would match no host.
_HOST = re.compile(r"([^][\s/:@?#]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")

#: A shorter token than this is worth a warning.
GOOD_TOKEN_CHARACTERS = 16
#: Jobs wait for storage as well, so some more slots than processors are useful.
SLOTS_PER_PROCESSOR = 4

#: Longest QUEUE_TIMEOUT of a member of a cluster.
LONGEST_QUEUE_SECONDS = 43_200


def of_role(settings: Settings) -> Settings:
    """Return the settings of a host without those of a gateway: its port has probes and metrics only, on loopback."""
    if not settings.runs_only:
        return settings
    return replace(
        settings,
        host="127.0.0.1",
        auth_token="",
        auth_token_file=None,
        tls_cert_file=None,
        tls_key_file=None,
        cluster_advertise_url="",
    )


def check_settings(settings: Settings) -> None:
    """Refuse settings that contradict each other or would be unsafe.

    Raises
    ------
    ConfigurationError
        The text names the first setting to change.
    """
    _check_token(settings)
    _check_advertised(settings)
    if settings.cluster_url:
        _check_cluster(settings)
    elif settings.runs_only:
        raise ConfigurationError("CLUSTER_URL is not set: a host gets its jobs from the members of a cluster")
    if settings.slots == 0 and (settings.runs_only or not settings.cluster_url):
        why = "a host must run jobs" if settings.runs_only else "without CLUSTER_URL no other machine could run a job"
        raise ConfigurationError(f"SLOTS is 0: {why}; set it to 1 or more")
    _check_pairs(settings)
    open_s3 = settings.enable_internal_s3 and not is_loopback(settings.internal_s3_host)
    known_key = settings.internal_s3_secret_key == "test"  # noqa: S105 - the well-known default is refused here
    if open_s3 and known_key and not settings.internal_s3_allow_test_keys:
        raise ConfigurationError(
            f"refusing to let the embedded S3 server listen on {settings.internal_s3_host} with the well-known "
            "key: everyone who can reach it could read the tables. Set INTERNAL_S3_SECRET_KEY "
            "(--internal-s3-secret-key)"
        )
    if settings.default_timeout_seconds > settings.max_timeout_seconds:
        raise ConfigurationError("DEFAULT_TIMEOUT is larger than MAX_TIMEOUT; lower the first or raise the second")
    seen_by_jobs = readable_paths.path_above(str(settings.state_dir))
    if seen_by_jobs is not None:
        raise ConfigurationError(
            f"STATE_DIR is {settings.state_dir}, but every job can read {seen_by_jobs}, where its Python or the system "
            "is: jobs could read each other's files. Choose another directory (STATE_DIR, --state-dir)"
        )
    no_hosts = [host for host in settings.storage_hosts if not _HOST.fullmatch(host)]
    if no_hosts:
        raise ConfigurationError(
            f"STORAGE_HOSTS (--storage-hosts): {no_hosts[0]!r} is not a host such as s3.example.com, *.example.com or "
            "minio:9000"
        )
    missing_roots = [str(root) for root in settings.working_dir_roots if not root.is_dir()]
    if missing_roots:
        raise ConfigurationError(
            f"no such directory: {', '.join(missing_roots)}. Correct WORKING_DIR_ROOTS (--working-dir-roots)"
        )


def _check_pairs(settings: Settings) -> None:
    for cert, key in (("tls_cert_file", "tls_key_file"), ("cluster_tls_cert_file", "cluster_tls_key_file")):
        missing = [name for name in (cert, key) if getattr(settings, name) is None]
        if len(missing) == 1:
            raise ConfigurationError(f"{missing[0].upper()} is not set: a certificate and its key are needed together")


def _check_cluster(settings: Settings) -> None:
    schemes = set()
    for server in settings.cluster_url.split(","):
        try:
            url = urlsplit(server.strip())
            usable = url.scheme in ("nats", "tls") and bool(url.hostname) and (url.port is None or url.port > 0)
        except ValueError:
            usable, url = False, urlsplit("")
        shown = server.strip().rpartition("@")[2]
        if not usable:
            raise ConfigurationError(f"CLUSTER_URL: {shown!r} is not nats://HOST:PORT or tls://HOST:PORT")
        if url.scheme == "nats" and not is_loopback(url.hostname or ""):
            raise ConfigurationError(
                f"CLUSTER_URL: refusing nats:// to {url.hostname}, where jobs and their keys would be sent "
                "unencrypted; use tls://, or a server on 127.0.0.1"
            )
        schemes.add(url.scheme)
    if len(schemes) > 1:
        raise ConfigurationError("CLUSTER_URL names servers with TLS and without: use tls:// for all of them")
    for name in ("cluster_tls_ca_file", "cluster_tls_cert_file"):
        if getattr(settings, name) is not None and "nats" in schemes:
            raise ConfigurationError(f"{name.upper()} is set, but CLUSTER_URL is nats://, which has no TLS: use tls://")
    if importlib.util.find_spec("nats") is None:
        raise ConfigurationError("CLUSTER_URL needs the package nats-py: pip install 'transform-gateway[cluster]'")
    if settings.queue_timeout_seconds > LONGEST_QUEUE_SECONDS:
        raise ConfigurationError("QUEUE_TIMEOUT is longer than twelve hours, and the broker keeps a job for a day")


def _check_advertised(settings: Settings) -> None:
    address = settings.cluster_advertise_url
    if not address:
        return
    try:
        url = urlsplit(address)
        usable = url.scheme in ("http", "https") and address.rstrip("/") == f"{url.scheme}://{url.netloc}"
        usable = usable and _HOST.fullmatch(url.netloc) is not None and (url.port is None or url.port > 0)
    except ValueError:
        usable, url = False, urlsplit("")
    if not usable or "*" in address or url.hostname in ("0.0.0.0", "::"):  # noqa: S104 - refused here
        raise ConfigurationError(
            f"CLUSTER_ADVERTISE_URL: {address.rpartition('@')[2]!r} is not http://HOST:PORT or https://HOST:PORT with "
            "a host that other members reach"
        )
    if not settings.cluster_url:
        raise ConfigurationError("CLUSTER_ADVERTISE_URL is set without CLUSTER_URL: there are no other members")
    if url.scheme == "http" and settings.tls_cert_file is not None:
        raise ConfigurationError("CLUSTER_ADVERTISE_URL is http://, but the port accepts only HTTPS (TLS_CERT_FILE)")


def _check_token(settings: Settings) -> None:
    token, beyond = settings.auth_token, not is_loopback(settings.host)
    if settings.auth_token_file is not None:
        if token:
            raise ConfigurationError(
                "AUTH_TOKEN and AUTH_TOKEN_FILE are both set; add the token to the file, and unset AUTH_TOKEN"
            )
        return
    if not token.isprintable():
        raise ConfigurationError(
            "AUTH_TOKEN has a line break or another control character, so no client could send it. "
            "Make one with `openssl rand -hex 32`"
        )
    if token != token.strip():
        raise ConfigurationError(
            "AUTH_TOKEN is blank or has spaces around it, so no client could send it. "
            "Make one with `openssl rand -hex 32`"
        )
    where = settings.host or "all addresses"
    if not token and beyond:
        raise ConfigurationError(
            f"refusing to listen on {where} without a token: everyone who can reach it could run code. "
            "Set AUTH_TOKEN or AUTH_TOKEN_FILE, or listen on 127.0.0.1 (HOST, --host)"
        )
    if beyond and len(token) < MIN_TOKEN_CHARACTERS:
        raise ConfigurationError(
            f"refusing to listen on {where} with a token of less than {MIN_TOKEN_CHARACTERS} characters: it "
            "can be guessed. Set AUTH_TOKEN to the output of `openssl rand -hex 32`"
        )


def warnings_of(settings: Settings) -> list[str]:
    """Return warnings of settings that are accepted, but weak or more than this host has.

    Returns
    -------
    list of str
        One sentence or two each.
    """
    warnings = []
    if settings.auth_token and not is_loopback(settings.host) and len(settings.auth_token) < GOOD_TOKEN_CHARACTERS:
        warnings.append(
            f"AUTH_TOKEN has less than {GOOD_TOKEN_CHARACTERS} characters; make one with `openssl rand -hex 32`"
        )
    has_token = settings.auth_token or settings.auth_token_file is not None
    if settings.cluster_url and not settings.runs_only and not has_token:
        warnings.append(
            "CLUSTER_URL is set without a token: every user of this machine can read and end the jobs of all members. "
            "Set AUTH_TOKEN or AUTH_TOKEN_FILE"
        )
    memory_bytes = memory_of_host()
    wanted = settings.slots * settings.limits.memory_bytes
    if settings.limits != WITHOUT_LIMITS and wanted > memory_bytes:
        warnings.append(
            f"SLOTS x MEMORY_LIMIT_BYTES is {wanted / 1e9:.1f} GB, but this host has {memory_bytes / 1e9:.1f} GB: jobs "
            "may be killed below their limit. Lower SLOTS or MEMORY_LIMIT_BYTES"
        )
    processors = len(os.sched_getaffinity(0))
    if settings.slots > SLOTS_PER_PROCESSOR * processors:
        warnings.append(
            f"SLOTS is {settings.slots}, but the gateway has {processors} of this host's processors: jobs that compute "
            "slow each other down and may reach their timeout. Lower SLOTS"
        )
    added = usable_set(settings.state_dir) if settings.preload else ""
    if missing := [name for name in settings.preload if not _exists(name, added)]:
        warnings.append(f"PRELOAD names modules that are not installed: {', '.join(missing)}")
    return warnings


def _exists(module: str, added: str) -> bool:
    top = module.partition(".")[0]  # to look for a module in a package would import the package here
    if not top.isidentifier() or top == "__main__":
        return False
    is_added = bool(added) and importlib.machinery.PathFinder.find_spec(top, [added]) is not None
    return is_added or importlib.util.find_spec(top) is not None


def memory_of_host() -> int:
    """Return the bytes of memory of this host, or of its container if that is less."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            memory_bytes = min(memory_bytes, int(Path(path).read_text()))
        except (OSError, ValueError):
            continue  # no such control group, or "max"
    return memory_bytes
