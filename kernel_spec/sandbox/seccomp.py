"""Refuse the system calls that no transform needs, with an errno that programs understand.

A deny list, not an allow list: an allow list breaks numpy, Arrow and the C library at each upgrade, and the uid is the
wall anyway. What is refused: other socket families, namespaces, mounts, tracing, kernel interfaces with a history of
exploits, memory that belongs to no process (memfd, SysV, message queues), and, where jobs share a uid with something
else, the calls that would change another process or the metadata of another's file.

The errno matters. libzmq aborts the process at ``socket(AF_NETLINK)`` unless it fails with EOPNOTSUPP, and the C
library falls back from clone3 to clone only at ENOSYS (clone3 hides its flags in memory, where a filter cannot look).
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import signal
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from kernel_spec.sandbox import landlock, syscalls
from kernel_spec.sandbox.errors import SandboxError
from kernel_spec.sandbox.plan import (
    LANDLOCK,
    MOUNT_NAMESPACE,
    NETWORK_NAMESPACE,
    SECCOMP,
    SandboxPlan,
)
from kernel_spec.sandbox.syscall_numbers import NUMBERS

# Offsets in struct seccomp_data; of an argument the low half, both machines being little endian.
_NR: Final = 0
_ARCH: Final = 4

_AUDIT_ARCH: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_BIT: Final = 0x40000000

_ALLOW: Final = 0x7FFF0000
_ERRNO: Final = 0x00050000
_ASK_BROKER: Final = 0x7FC00000  # SECCOMP_RET_USER_NOTIF

# Classic BPF: operation codes of linux/filter.h.
_LOAD: Final = 0x20
_AND: Final = 0x54
_JUMP: Final = 0x05
_JUMP_EQUAL: Final = 0x15
_JUMP_GREATER_EQUAL: Final = 0x35
_JUMP_ANY_BIT: Final = 0x45
_RETURN: Final = 0x06

_NAMESPACE_FLAGS: Final = (
    syscalls.CLONE_NEWNS
    | syscalls.CLONE_NEWCGROUP
    | syscalls.CLONE_NEWUTS
    | syscalls.CLONE_NEWIPC
    | syscalls.CLONE_NEWUSER
    | syscalls.CLONE_NEWPID
    | syscalls.CLONE_NEWNET
)
_PR_SET_MM: Final = 35
_PR_SET_PTRACER: Final = 0x59616D61
_TIOCSTI: Final = 0x5412
_TIOCLINUX: Final = 0x541C
_PERSONALITY_QUERY: Final = 0xFFFFFFFF
_SOCK_TYPE_MASK: Final = 0xF
_MSG_FASTOPEN: Final = 0x20000000
_PRIO_USER: Final = 2
_IOPRIO_WHO_USER: Final = 3

# "Not there": programs that can do without look for this one.
_ABSENT: Final = (
    *("clone3", "memfd_create", "memfd_secret", "userfaultfd", "bpf", "perf_event_open", "nfsservctl"),
    *("io_uring_setup", "io_uring_enter", "io_uring_register", "add_key", "keyctl", "request_key"),
    # Writes that are on their way after their process was stopped.
    *("io_setup", "io_submit"),
    *("uselib", "ustat", "sysfs", "_sysctl", "lookup_dcookie", "modify_ldt"),
    # These tell of what others do, with names, in every directory that may be read: Landlock is not asked.
    *("inotify_init", "inotify_init1", "inotify_add_watch"),
)
_FORBIDDEN: Final = (
    *(
        "unshare",
        "setns",
        "mount",
        "umount2",
        "pivot_root",
        "chroot",
        "fsopen",
        "fsconfig",
        "fsmount",
        "fspick",
    ),
    *("move_mount", "open_tree", "open_tree_attr", "mount_setattr", "statmount", "listmount"),
    *("ptrace", "process_vm_readv", "process_vm_writev", "kcmp", "pidfd_getfd", "process_madvise"),
    *("process_mrelease", "move_pages", "migrate_pages", "shmget", "semget", "msgget", "mq_open"),
    *("name_to_handle_at", "open_by_handle_at", "fanotify_init", "fanotify_mark", "quotactl", "quotactl_fd"),
    *(
        "init_module",
        "finit_module",
        "delete_module",
        "kexec_load",
        "kexec_file_load",
        "reboot",
        "swapon",
        "swapoff",
    ),
    *("acct", "syslog", "settimeofday", "clock_settime", "clock_adjtime", "adjtimex", "sethostname"),
    *("setdomainname", "iopl", "ioperm", "vhangup"),
)
_METADATA: Final = (
    *("chmod", "fchmodat", "fchmodat2", "chown", "lchown", "fchownat", "utime", "utimes", "futimesat"),
    *("setxattr", "lsetxattr", "setxattrat", "removexattr", "lremovexattr", "removexattrat", "file_setattr"),
)
# Options of a TCP socket that send data before an answer came (Fast Open), put another protocol on top, or change who
# has to sign (see `signed_peers`): TCP_FASTOPEN*, TCP_ULP, TCP_MD5SIG*, TCP_AO_*.
_TCP_REFUSED: Final = (23, 30, 33, 34, 31, 14, 32, 38, 39, 40, 41)
# The calls that take MSG_FASTOPEN, with the place of their flags.
_SENDING: Final = {"sendto": 3, "sendmsg": 2, "sendmmsg": 3}
_SCHEDULING: Final = ("sched_setaffinity", "sched_setparam", "sched_setattr")


@dataclass(frozen=True, slots=True)
class Policy:
    """What the filter depends on.

    Attributes
    ----------
    allow_network
        Let through internet sockets.
    hides_sockets
        Other layers hide the unix sockets of the host, by path and by abstract name. Else they are out of reach only
        if connect(2) is refused or, for a job that has the network, if it can make no unix socket to connect, see
        `seal`.
    shares_uid
        Processes that are not the job's run under its uid: refuse to change limits, priority and processors of another.
    shares_files
        Files that are not the job's belong to its uid and have a path: refuse changes of metadata by path.
    brokers_sockets
        Internet sockets are TCP only and are made by the broker, see `network_policy`.
    """

    allow_network: bool
    hides_sockets: bool
    shares_uid: bool
    shares_files: bool
    brokers_sockets: bool = False

    @property
    def allow_connect(self) -> bool:
        """Whether connect(2) is let through."""
        return self.allow_network or self.hides_sockets


def policy_of(plan: SandboxPlan) -> Policy:
    """Return the policy that the other layers of the plan leave to the filter."""
    landlock_abi = landlock.abi() if plan.has(LANDLOCK) else 0
    hides_paths = plan.has(MOUNT_NAMESPACE) or landlock_abi >= landlock.ABI_PATH_SOCKETS
    hides_abstract = plan.has(NETWORK_NAMESPACE) or landlock_abi >= landlock.ABI_SCOPES
    return Policy(
        allow_network=plan.allow_network,
        hides_sockets=hides_paths and hides_abstract,
        shares_uid=plan.shares_uid,
        shares_files=plan.identity is None and not plan.has(MOUNT_NAMESPACE),
        brokers_sockets=plan.brokers_sockets,
    )


def apply(plan: SandboxPlan) -> int | None:
    """Install the filter for all threads of the process, for good.

    Returns
    -------
    int or None
        For a plan that brokers sockets the descriptor that goes to the broker; the caller closes it.

    Raises
    ------
    SandboxError
        The architecture is unknown, no_new_privs is not set, or the kernel has no seccomp filters.
    """
    policy = policy_of(plan)
    try:
        return syscalls.seccomp_filter(program(policy), with_listener=policy.brokers_sockets)
    except OSError as error:
        raise SandboxError(SECCOMP, str(error)) from error


def seal(plan: SandboxPlan) -> None:
    """Refuse new unix sockets where connect is open and nothing hides those of the host; for good.

    Call it when the kernel has bound its own and before anything of a job runs. A pair is connected from the start and
    cannot be connected elsewhere, so socketpair(2) goes on working.

    Raises
    ------
    SandboxError
        The kernel refused the filter.
    """
    policy = policy_of(plan)
    if not plan.has(SECCOMP) or policy.hides_sockets or not policy.allow_connect:
        return
    try:
        syscalls.seccomp_filter(_seal_program())
    except OSError as error:
        raise SandboxError(SECCOMP, str(error)) from error


@lru_cache(maxsize=8)
def program(policy: Policy, machine: str = syscalls.MACHINE) -> bytes:
    """Return the filter as struct sock_filter instructions.

    Raises
    ------
    SandboxError
        The architecture is neither x86_64 nor aarch64.
    """
    if machine not in _AUDIT_ARCH:
        raise SandboxError(SECCOMP, f"system call numbers of {machine} are not known here")
    return _Assembler(machine).assemble(policy)


@lru_cache(maxsize=2)
def _seal_program(machine: str = syscalls.MACHINE) -> bytes:
    return _Assembler(machine).assemble_seal()


def _errno(number: int) -> int:
    return _ERRNO | number


def _argument(index: int) -> int:
    return 16 + 8 * index


class _Assembler:
    """Writes the program rule by rule; each rule leaves the number of the call in the accumulator or returns."""

    def __init__(self, machine: str) -> None:
        self._column = 0 if machine == "x86_64" else 1
        self._machine = machine
        self._code: list[tuple[int, int, int, int]] = []

    def assemble(self, policy: Policy) -> bytes:
        self._refuse_foreign_tables()
        self._deny(_ABSENT, errno.ENOSYS)
        self._deny(_FORBIDDEN, errno.EPERM)
        if not policy.allow_connect:
            self._deny(("connect",), errno.EACCES)
        if policy.shares_files:
            self._deny(_METADATA, errno.EPERM)
            # Without a path it is futimens, of a file that is open.
            self._when("utimensat", self._null_pointer(1, then=_ALLOW, otherwise=_errno(errno.EPERM)))
        self._sockets(policy)
        if policy.brokers_sockets:
            self._keep_fence()
        self._own_attributes()
        self._limits(policy)
        if policy.shares_uid:
            self._others()
        return self._finish()

    def assemble_seal(self) -> bytes:
        self._refuse_foreign_tables()
        self._when("socket", self._values(0, {int(socket.AF_UNIX): _errno(errno.EACCES)}, _ALLOW))
        return self._finish()

    def _finish(self) -> bytes:
        self._code.append((_RETURN, 0, 0, _ALLOW))
        return b"".join(struct.pack("=HBBI", *instruction) for instruction in self._code)

    def _refuse_foreign_tables(self) -> None:
        """Int 0x80 and x32 reach the same calls by other numbers: no number means anything before this."""
        self._code += [
            (_LOAD, 0, 0, _ARCH),
            (_JUMP_EQUAL, 1, 0, _AUDIT_ARCH[self._machine]),
            (_RETURN, 0, 0, _errno(errno.ENOSYS)),
            (_LOAD, 0, 0, _NR),
        ]
        if self._machine == "x86_64":
            self._code += [
                (_JUMP_GREATER_EQUAL, 0, 1, _X32_BIT),
                (_RETURN, 0, 0, _errno(errno.ENOSYS)),
            ]

    def _number(self, name: str) -> int | None:
        return NUMBERS[name][self._column]

    def _deny(self, names: Iterable[str], number: int) -> None:
        numbers = sorted(n for n in map(self._number, names) if n is not None)
        for index, call in enumerate(numbers):
            # A hit jumps over the remaining comparisons and the jump behind them.
            self._code.append((_JUMP_EQUAL, len(numbers) - index, 0, call))
        self._code += [(_JUMP, 0, 0, 1), (_RETURN, 0, 0, _errno(number))]

    def _when(self, name: str, block: list[tuple[int, int, int, int]]) -> None:
        """Run a block that always returns, for one call."""
        number = self._number(name)
        if number is not None:
            self._code.append((_JUMP_EQUAL, 0, len(block), number))
            self._code += block

    @staticmethod
    def _values(
        argument: int, cases: dict[int, int], otherwise: int, mask: int | None = None
    ) -> list[tuple[int, int, int, int]]:
        """Return by the value of one 32-bit argument."""
        block = [(_LOAD, 0, 0, _argument(argument))]
        if mask is not None:
            block.append((_AND, 0, 0, mask))
        for value, action in cases.items():
            block += [(_JUMP_EQUAL, 0, 1, value), (_RETURN, 0, 0, action)]
        return [*block, (_RETURN, 0, 0, otherwise)]

    @staticmethod
    def _null_pointer(argument: int, *, then: int, otherwise: int) -> list[tuple[int, int, int, int]]:
        """Return by whether a 64-bit argument is 0: one of its halves alone may well be."""
        return [
            (_LOAD, 0, 0, _argument(argument)),
            (_JUMP_EQUAL, 0, 3, 0),
            (_LOAD, 0, 0, _argument(argument) + 4),
            (_JUMP_EQUAL, 0, 1, 0),
            (_RETURN, 0, 0, then),
            (_RETURN, 0, 0, otherwise),
        ]

    def _sockets(self, policy: Policy) -> None:
        unix: list[tuple[int, int, int, int]] = [(_RETURN, 0, 0, _ALLOW)]
        if not policy.hides_sockets:
            # A datagram socket reaches any path or abstract name by sendto, without connect.
            refused = {int(socket.SOCK_DGRAM): _errno(errno.EACCES)}
            unix = self._values(1, refused, _ALLOW, mask=_SOCK_TYPE_MASK)
        block: list[tuple[int, int, int, int]] = [
            (_LOAD, 0, 0, _argument(0)),
            (_JUMP_EQUAL, 0, len(unix), int(socket.AF_UNIX)),
            *unix,
        ]
        self._when("socketpair", [*block, (_RETURN, 0, 0, _errno(errno.EAFNOSUPPORT))])
        if policy.brokers_sockets:
            streams = self._stream_from_broker()
            for family in (socket.AF_INET, socket.AF_INET6):
                block += [(_JUMP_EQUAL, 0, len(streams), int(family)), *streams]
        elif policy.allow_network:
            for family in (socket.AF_INET, socket.AF_INET6):
                # Raw sockets need a capability that no job has; datagrams are needed to ask for names.
                block += [(_JUMP_EQUAL, 0, 1, int(family)), (_RETURN, 0, 0, _ALLOW)]
        if policy.allow_network and not policy.brokers_sockets:
            # getaddrinfo asks for the local addresses: NETLINK_ROUTE, protocol 0.
            route = self._values(2, {0: _ALLOW}, _errno(errno.EOPNOTSUPP))
            block += [(_JUMP_EQUAL, 0, len(route), int(socket.AF_NETLINK)), *route]
        else:
            # Any errno but this one ends the process in libzmq's ip_resolver.
            block += [
                (_JUMP_EQUAL, 0, 1, int(socket.AF_NETLINK)),
                (_RETURN, 0, 0, _errno(errno.EOPNOTSUPP)),
            ]
        self._when("socket", [*block, (_RETURN, 0, 0, _errno(errno.EAFNOSUPPORT))])

    def _stream_from_broker(self) -> list[tuple[int, int, int, int]]:
        """Hand TCP sockets to the broker and refuse every other protocol: a datagram can be sent without an answer."""
        other = _errno(errno.EPROTONOSUPPORT)
        protocols = self._values(2, {0: _ASK_BROKER, int(socket.IPPROTO_TCP): _ASK_BROKER}, other)
        return [
            (_LOAD, 0, 0, _argument(1)),
            (_AND, 0, 0, _SOCK_TYPE_MASK),
            (_JUMP_EQUAL, 1, 0, int(socket.SOCK_STREAM)),
            (_RETURN, 0, 0, other),
            *protocols,
        ]

    def _keep_fence(self) -> None:
        """Refuse to change the broker's fence, and to say anything to a peer before it has answered."""
        eperm = _errno(errno.EPERM)
        options = dict.fromkeys(_TCP_REFUSED, eperm)
        of_tcp = self._values(2, options, _ALLOW)
        level = [(_LOAD, 0, 0, _argument(1)), (_JUMP_EQUAL, 1, 0, int(socket.IPPROTO_TCP)), (_RETURN, 0, 0, _ALLOW)]
        self._when("setsockopt", [*level, *of_tcp])
        for name, flags in _SENDING.items():
            early = [(_LOAD, 0, 0, _argument(flags)), (_JUMP_ANY_BIT, 0, 1, _MSG_FASTOPEN), (_RETURN, 0, 0, eperm)]
            self._when(name, [*early, (_RETURN, 0, 0, _ALLOW)])

    def _own_attributes(self) -> None:
        eperm = _errno(errno.EPERM)
        clone = [
            (_LOAD, 0, 0, _argument(0)),
            (_JUMP_ANY_BIT, 0, 1, _NAMESPACE_FLAGS),
            (_RETURN, 0, 0, eperm),
            (_RETURN, 0, 0, _ALLOW),
        ]
        self._when("clone", clone)
        self._when("personality", self._values(0, {0: _ALLOW, _PERSONALITY_QUERY: _ALLOW}, eperm))
        self._when("ioctl", self._values(1, {_TIOCSTI: eperm, _TIOCLINUX: eperm}, _ALLOW))
        # dnotify, the elder brother of inotify; a kernel that is built without it says the same
        self._when("fcntl", self._values(1, {fcntl.F_NOTIFY: _errno(errno.EINVAL)}, _ALLOW))
        # A kernel must die with its launcher and stay closed to its equals.
        keep_death = self._values(1, {int(signal.SIGKILL): _ALLOW}, eperm)
        keep_closed = self._values(1, {0: _ALLOW}, eperm)
        self._when(
            "prctl",
            [
                (_LOAD, 0, 0, _argument(0)),
                (_JUMP_EQUAL, 0, len(keep_death), syscalls.PR_SET_PDEATHSIG),
                *keep_death,
                (_JUMP_EQUAL, 0, len(keep_closed), syscalls.PR_SET_DUMPABLE),
                *keep_closed,
                (_JUMP_EQUAL, 0, 1, _PR_SET_MM),
                (_RETURN, 0, 0, eperm),
                (_JUMP_EQUAL, 0, 1, _PR_SET_PTRACER),
                (_RETURN, 0, 0, eperm),
                (_RETURN, 0, 0, _ALLOW),
            ],
        )

    def _limits(self, policy: Policy) -> None:
        """Keep the seat's mark (see `rlimits.seat_mark`), and the limits of other processes."""
        eperm = _errno(errno.EPERM)
        self._when("setrlimit", self._values(0, {resource.RLIMIT_RTTIME: eperm}, _ALLOW))
        changing = self._values(1, {resource.RLIMIT_RTTIME: eperm}, _ALLOW)
        if policy.shares_uid:
            only_itself = [(_LOAD, 0, 0, _argument(0)), (_JUMP_EQUAL, 1, 0, 0), (_RETURN, 0, 0, eperm)]
            changing = [*only_itself, *changing]
        # A null pointer for the new limit only reads the old one.
        reads = self._null_pointer(2, then=_ALLOW, otherwise=_ALLOW)[:-1]
        self._when("prlimit64", [*reads, *changing])

    def _others(self) -> None:
        eperm = _errno(errno.EPERM)
        for name in _SCHEDULING:
            self._when(name, self._values(0, {0: _ALLOW}, eperm))
        # libzmq names its new thread by id, to give it the policy that it has anyway, and aborts when that is refused.
        own = [(_LOAD, 0, 0, _argument(0)), (_JUMP_EQUAL, 0, 1, 0), (_RETURN, 0, 0, _ALLOW)]
        self._when("sched_setscheduler", [*own, *self._values(1, {os.SCHED_OTHER: _ALLOW}, eperm)])
        for name, everyone in (("setpriority", _PRIO_USER), ("ioprio_set", _IOPRIO_WHO_USER)):
            itself = self._values(1, {0: _ALLOW}, eperm)
            self._when(
                name,
                [(_LOAD, 0, 0, _argument(0)), (_JUMP_EQUAL, 0, 1, everyone), (_RETURN, 0, 0, eperm), *itself],
            )
