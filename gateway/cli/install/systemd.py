"""`transform-gateway systemd`: print a unit file that runs this installation as a service."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

from gateway.cli import common
from gateway.core.settings import Settings

#: Time after DRAIN_SECONDS in which the gateway answers its last jobs, ends kernels and removes directories.
STOP_MARGIN_SECONDS = 30

#: Capabilities that no layer of the sandbox, no port and no user's file needs.
DROPPED_CAPABILITIES = (
    "CAP_AUDIT_CONTROL", "CAP_AUDIT_READ", "CAP_AUDIT_WRITE", "CAP_BLOCK_SUSPEND", "CAP_IPC_LOCK", "CAP_IPC_OWNER",
    "CAP_LEASE", "CAP_LINUX_IMMUTABLE", "CAP_MAC_ADMIN", "CAP_MAC_OVERRIDE", "CAP_MKNOD", "CAP_NET_BROADCAST",
    "CAP_NET_RAW", "CAP_SYSLOG", "CAP_SYS_BOOT", "CAP_SYS_MODULE", "CAP_SYS_NICE", "CAP_SYS_PACCT", "CAP_SYS_RAWIO",
    "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_WAKE_ALARM",
)  # fmt: skip

UNIT = """\
# Made by `transform-gateway systemd`. Save it as /etc/systemd/system/transform-gateway.service.

[Unit]
Description=Transform Gateway, a runner for Metabase's Python transforms
Wants=network-online.target
After=network-online.target

[Service]
Type=exec
ExecStart={command}

# One NAME=VALUE on a line, such as AUTH_TOKEN_FILE=/etc/transform-gateway/tokens. Mode 0600 if a token is in it.
EnvironmentFile=-/etc/transform-gateway.env
Environment=STATE_DIR=/var/lib/transform-gateway
StateDirectory=transform-gateway
# The users of the kernels must be able to enter it; private files in it have modes of their own.
StateDirectoryMode=0755

# SIGTERM drains: accepted jobs have DRAIN_SECONDS to end. Launcher and kernels ignore the signal, so the default
# KillMode=control-group is right. Raise TimeoutStopSec= together with DRAIN_SECONDS.
TimeoutStopSec={stop_seconds}
# Without AUTH_TOKEN_FILE and TLS_CERT_FILE, SIGHUP drains and ends the gateway; with one of them it reads the files
# again, and this line is right:
#ExecReload=/bin/kill -HUP $MAINPID
Restart=on-failure
RestartSec=2
# Status 2: the settings are refused, and another start would not help.
RestartPreventExitStatus=2

# Each job gets a control group below that of the service (tier A of the sandbox).
Delegate=yes
# A job that is killed because its memory is used up is a failed job, not a failure of the service.
OOMPolicy=continue
LimitNOFILE=65536

# Hardening. The gateway itself drops root; the launcher keeps it, to make the sandbox of each kernel.
NoNewPrivileges=yes
CapabilityBoundingSet=~{capabilities}
ProtectSystem=strict
ProtectHome={protect_home}
PrivateTmp=yes
PrivateDevices=yes
ProtectClock=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
LockPersonality=yes
RestrictRealtime=yes
SystemCallArchitectures=native

# Left out, because each would remove a layer of the sandbox or a function:
# User=, DynamicUser=            the launcher needs root to give each job a user of its own (layer identity)
# PrivateUsers=                  those users must exist in the service's user namespace
# ProtectControlGroups=          each job gets a control group (layer cgroup); with it the tier is B
# RestrictNamespaces=            each job gets namespaces (layers mount_namespace, pid_namespace and others)
# ProtectHostname=               each job gets a host name of its own (layer uts_namespace)
# RestrictSUIDSGID=              the directories between gateway and kernel have the set-group-ID bit
# ProtectProc=, ProcSubset=      the launcher measures and ends jobs by /proc (layers processes, memory_watch)
# ProtectKernelTunables=         a kernel's own /proc is mounted by the launcher
# SystemCallFilter=              the launcher mounts and unshares; each kernel has a filter of its own (layer seccomp)
# MemoryDenyWriteExecute=        Numba, LLVM and libffi in jobs make code at run time
# RestrictAddressFamilies=       ALLOW_NETWORK needs more of them; a kernel has its own filter (layer seccomp)
# PrivateNetwork=, IPAddressDeny= the gateway serves HTTP and reaches the storage; jobs have no network
# MemoryMax=                     depends on SLOTS x MEMORY_LIMIT_BYTES; each job has a limit of its own

[Install]
WantedBy=multi-user.target
"""


def main(name: str, arguments: Sequence[str]) -> int:
    """Print the unit."""
    parser = common.parser(
        name,
        "Print a systemd unit that runs this installation: `transform-gateway systemd > "
        "/etc/systemd/system/transform-gateway.service`.",
    )
    parser.parse_args(arguments)
    return common.guarded(_print)


def _print() -> int:
    command = Path(sys.executable).parent / "transform-gateway"
    sys.stdout.write(unit(command))
    if _is_below_home(command):
        sys.stderr.write(
            f"transform-gateway: {command} is below a home directory, which other users usually cannot read: the "
            "gateway would keep root. Install it below /opt\n"
        )
    return 0


def unit(command: Path) -> str:
    """Return the text of the unit.

    Parameters
    ----------
    command : Path
        The installed command.

    Returns
    -------
    str
    """
    return UNIT.format(
        command=_escaped(str(command)),
        stop_seconds=math.ceil(Settings().drain_seconds + STOP_MARGIN_SECONDS),
        capabilities=" ".join(DROPPED_CAPABILITIES),
        protect_home="read-only" if _is_below_home(command) else "yes",
    )


def _is_below_home(command: Path) -> bool:
    return command.parts[1] in ("home", "root")


def _escaped(text: str) -> str:
    """Return a path as one word of ExecStart= (systemd.service(5), "Command lines")."""
    quoted = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{quoted}"' if quoted != text or " " in text else text
