"""The system calls that the filter refuses, and with which errno: the policy of the layer `seccomp`.

A deny list, not an allow list: an allow list breaks numpy, Arrow and the C library at each upgrade, and the uid is the
main barrier anyway. The filter refuses other socket families, namespaces, mounts, tracing, interfaces of Linux with a
history of exploits, memory that belongs to no process (memfd, SysV, message queues) and, where jobs share a uid with
other processes, the calls that change another process or the metadata of another's file.

The errno matters. libzmq aborts the process at ``socket(AF_NETLINK)`` unless it fails with EOPNOTSUPP, and the C
library falls back from clone3 to clone only at ENOSYS (clone3 passes its flags in memory, which a filter cannot read).
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from kernel_spec.linux import bpf, syscalls
from kernel_spec.linux.bpf import Block

#: Results of a filter, linux/seccomp.h: SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO and SECCOMP_RET_USER_NOTIF.
ALLOW: Final = 0x7FFF0000
_ERRNO: Final = 0x00050000
_ASK_BROKER: Final = 0x7FC00000

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
#: Requests to a file system whose effect outlives the job, so that its files cannot be removed or escape a quota.
_LASTING: Final = (
    # linux/btrfs.h, SNAP_CREATE, SUBVOL_CREATE, both V2, SUBVOL_SETFLAGS: a read-only snapshot keeps its files.
    *(0x50009401, 0x5000940E, 0x50009417, 0x50009418, 0x4008941A),
    *(0x800C6613, 0xC0506617),  # linux/fscrypt.h, SET_ENCRYPTION_POLICY, ADD_ENCRYPTION_KEY: no file moves without key
    *(0x401C5820, 0x40086602),  # linux/fs.h, FSSETXATTR, SETFLAGS: the project that a quota counts for
)
_PERSONALITY_QUERY: Final = 0xFFFFFFFF
_SOCK_TYPE_MASK: Final = 0xF
_MSG_FASTOPEN: Final = 0x20000000
#: SO_ATTACH_FILTER, SO_ATTACH_BPF, SO_ATTACH_REUSEPORT_CBPF, SO_ATTACH_REUSEPORT_EBPF: asm-generic/socket.h
_SOCKET_PROGRAMS: Final = (26, 50, 51, 52)
_FILTER_WITH_LISTENER: Final = 0x8
_MAP_HUGETLB: Final = 0x40000
_PRIO_USER: Final = 2
_IOPRIO_WHO_USER: Final = 3

#: Refused with ENOSYS, as by a Linux without them: programs that can do without them test for this error.
_ABSENT: Final = (
    *("clone3", "memfd_create", "memfd_secret", "userfaultfd", "bpf", "perf_event_open", "nfsservctl"),
    *("io_uring_setup", "io_uring_enter", "io_uring_register", "add_key", "keyctl", "request_key"),
    # Writes that continue after their process was stopped.
    *("io_setup", "io_submit"),
    *("uselib", "ustat", "sysfs", "_sysctl", "lookup_dcookie", "modify_ldt"),
    # These report the file names that others use, in every directory that may be read: they do not ask Landlock.
    *("inotify_init", "inotify_init1", "inotify_add_watch"),
    # A ruleset takes rules without a bound, in memory that belongs to no process.
    *("landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"),
)
#: Refused as by a file system that has no attributes: those of a file in /dev/shm are in memory and count nowhere.
_ATTRIBUTES: Final = ("setxattr", "lsetxattr", "fsetxattr", "setxattrat")
#: Refused with EPERM. Also those that make no object: SysV objects of other processes are reached by a small number.
_FORBIDDEN: Final = (
    *("unshare", "setns", "mount", "umount2", "pivot_root", "chroot", "fsopen", "fsconfig", "fsmount", "fspick"),
    *("move_mount", "open_tree", "open_tree_attr", "mount_setattr", "statmount", "listmount"),
    *("ptrace", "process_vm_readv", "process_vm_writev", "kcmp", "pidfd_getfd", "process_madvise"),
    *("process_mrelease", "move_pages", "migrate_pages", "mq_open", "mq_unlink"),
    *("shmget", "shmat", "shmctl", "semget", "semop", "semtimedop", "semctl", "msgget", "msgsnd", "msgrcv", "msgctl"),
    *("name_to_handle_at", "open_by_handle_at", "fanotify_init", "fanotify_mark", "quotactl", "quotactl_fd"),
    *("init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load", "reboot"),
    *("swapon", "swapoff", "acct", "syslog", "settimeofday", "clock_settime", "clock_adjtime", "adjtimex"),
    *("sethostname", "setdomainname", "iopl", "ioperm", "vhangup", "file_setattr"),
)
#: Change metadata of a file by its path; refused with EPERM where jobs share files' uid with others.
_METADATA: Final = (
    *("chmod", "fchmodat", "fchmodat2", "chown", "lchown", "fchownat", "utime", "utimes", "futimesat"),
    *("removexattr", "lremovexattr", "fremovexattr", "removexattrat"),
)
#: Change metadata of an open file; ignored there. Reading is enough to open one, and Python's own may be the user's.
_METADATA_OF_OPEN: Final = ("fchmod", "fchown")
#: Options of a TCP socket that send data before an answer came (Fast Open), put another protocol on top, or change who
#: has to sign (see `tcp_md5`): TCP_FASTOPEN*, TCP_ULP, TCP_MD5SIG*, TCP_AO_*.
_TCP_REFUSED: Final = (23, 30, 33, 34, 31, 14, 32, 38, 39, 40, 41)
#: The calls that take MSG_FASTOPEN, with the position of their flags.
_SENDING: Final = {"sendto": 3, "sendmsg": 2, "sendmmsg": 3}
_SCHEDULING: Final = ("sched_setaffinity", "sched_setparam", "sched_setattr")


@dataclass(frozen=True, slots=True)
class Policy:
    """The facts that the filter depends on.

    Attributes
    ----------
    allow_network : bool
        Allow internet sockets.
    hides_sockets : bool
        Other layers hide the unix sockets of the host, by path and by abstract name. Else they are out of reach only
        if connect(2) is refused or, for a job that has the network, if it can make no unix socket to connect, see
        `seccomp.seal`.
    shares_uid : bool
        Other processes than the job's run under its uid: refuse to change limits, priority and processors of another.
    shares_files : bool
        Files that are not the job's belong to its uid and have a path: refuse changes of metadata by path.
    brokers_sockets : bool
        Internet sockets are TCP only and are made by the broker, see `socket_broker`.
    """

    allow_network: bool
    hides_sockets: bool
    shares_uid: bool
    shares_files: bool
    brokers_sockets: bool = False

    @property
    def allow_connect(self) -> bool:
        """Whether connect(2) is allowed."""
        return self.allow_network or self.hides_sockets


@dataclass(frozen=True, slots=True)
class Rule:
    """The block to run for some system calls; it always ends the program."""

    names: tuple[str, ...]
    block: Block


def rules_of(policy: Policy) -> Iterator[Rule]:
    """Yield the rules of a policy; a call that no rule names is allowed.

    Yields
    ------
    Rule
    """
    yield refuse(_ABSENT, errno.ENOSYS)
    yield refuse(_FORBIDDEN, errno.EPERM)
    yield refuse(_ATTRIBUTES, errno.EOPNOTSUPP)
    if not policy.allow_connect:
        yield refuse(("connect",), errno.EACCES)
    if policy.shares_files:
        yield refuse(_METADATA, errno.EPERM)
        yield refuse(_METADATA_OF_OPEN, 0)
        # Without a path it is futimens(3) of an open file.
        yield Rule(("utimensat",), [*_if_null(1, [bpf.end(_error(0))]), bpf.end(_error(errno.EPERM))])
    yield from _sockets(policy)
    yield _socket_options(policy)
    if policy.brokers_sockets:
        yield from _early_data()
    yield from _uncounted_memory()
    yield from _own_attributes()
    yield from _limits(policy)
    if policy.shares_uid:
        yield from _other_processes()


def sealing_rules() -> Iterator[Rule]:
    """Yield the rules that refuse new unix sockets; a pair is connected from the start, so socketpair(2) works on.

    Yields
    ------
    Rule
    """
    yield Rule(("socket",), _by_argument(0, {int(socket.AF_UNIX): _error(errno.EACCES)}, ALLOW))


def refuse(names: tuple[str, ...], number: int) -> Rule:
    """Return the rule that refuses calls.

    Parameters
    ----------
    names : tuple of str
        Names of system calls.
    number : int
        The errno that they fail with.

    Returns
    -------
    Rule
    """
    return Rule(names, [bpf.end(_error(number))])


def _error(number: int) -> int:
    return _ERRNO | number


def _argument(index: int) -> bpf.Instruction:
    """Load the low half of an argument, struct seccomp_data; both architectures are little endian."""
    return bpf.load(16 + 8 * index)


def _by_argument(index: int, cases: dict[int, int], otherwise: int) -> Block:
    return [_argument(index), *bpf.by_value(cases, otherwise)]


def _if_null(index: int, block: Block) -> Block:
    """Run the block if a 64-bit argument is 0; one of its halves alone may well be."""
    high = [bpf.load(16 + 8 * index + 4), *bpf.if_equal(0, block)]
    return [_argument(index), *bpf.if_equal(0, high)]


def _sockets(policy: Policy) -> Iterator[Rule]:
    unix = [bpf.end(ALLOW)]
    if not policy.hides_sockets:
        # A datagram socket reaches any path or abstract name by sendto, without connect.
        refused = {int(socket.SOCK_DGRAM): _error(errno.EACCES)}
        unix = [_argument(1), bpf.keep_bits(_SOCK_TYPE_MASK), *bpf.by_value(refused, ALLOW)]
    block = [_argument(0), *bpf.if_equal(int(socket.AF_UNIX), unix)]
    unknown = bpf.end(_error(errno.EAFNOSUPPORT))
    yield Rule(("socketpair",), [*block, unknown])
    # Raw sockets need a capability that no job has; datagrams are needed to ask for names.
    inet = _stream_from_broker() if policy.brokers_sockets else [bpf.end(ALLOW)]
    if policy.brokers_sockets or policy.allow_network:
        for family in (socket.AF_INET, socket.AF_INET6):
            block += bpf.if_equal(int(family), inet)
    # Any other errno ends the process in libzmq's ip_resolver.
    netlink = [bpf.end(_error(errno.EOPNOTSUPP))]
    if policy.allow_network and not policy.brokers_sockets:
        # getaddrinfo asks for the local addresses: NETLINK_ROUTE, protocol 0.
        netlink = _by_argument(2, {0: ALLOW}, _error(errno.EOPNOTSUPP))
    yield Rule(("socket",), [*block, *bpf.if_equal(int(socket.AF_NETLINK), netlink), unknown])


def _stream_from_broker() -> Block:
    """Hand TCP sockets to the broker and refuse every other protocol: a datagram can be sent without an answer."""
    other = _error(errno.EPROTONOSUPPORT)
    return [
        _argument(1),
        bpf.keep_bits(_SOCK_TYPE_MASK),
        *bpf.unless_equal(int(socket.SOCK_STREAM), [bpf.end(other)]),
        *_by_argument(2, {0: _ASK_BROKER, int(socket.IPPROTO_TCP): _ASK_BROKER}, other),
    ]


def _socket_options(policy: Policy) -> Rule:
    """Refuse packet filters (see `_uncounted_memory`), and a change of the broker's; ignore SO_LINGER.

    A job can send a descriptor over the sockets of its kernel (SCM_RIGHTS). libzmq in the gateway does not take it, so
    Linux closes it there. This takes as long as the job has set for a lingering TCP socket, and all jobs would wait.
    An error would meet programs that only make sure that the option is off, as jupyter_client does.
    """
    cases = dict.fromkeys(_SOCKET_PROGRAMS, _error(errno.EPERM))
    if policy.allow_network or policy.brokers_sockets:
        cases[int(socket.SO_LINGER)] = _error(0)
    block = [_argument(1), *bpf.if_equal(int(socket.SOL_SOCKET), _by_argument(2, cases, ALLOW))]
    if policy.brokers_sockets:
        of_tcp = _by_argument(2, dict.fromkeys(_TCP_REFUSED, _error(errno.EPERM)), ALLOW)
        block += bpf.if_equal(int(socket.IPPROTO_TCP), of_tcp)
    return Rule(("setsockopt",), [*block, bpf.end(ALLOW)])


def _uncounted_memory() -> Iterator[Rule]:
    """Refuse memory of Linux itself that all of the machine shares, and that outlives the thread that took it.

    Compiled filters have one budget for the machine (net.core.bpf_jit_limit). A socket or a listener keeps its filters
    alive: with a few thousand of them nobody, this launcher included, could install a filter any more, and no kernel
    would start. Without descriptors, a job has filters for as many threads as it may have. Huge pages that the host has
    reserved, for a database say, count neither as memory of a process nor in its control group.
    """
    listens = bpf.if_any_bit(_FILTER_WITH_LISTENER, [bpf.end(_error(errno.EINVAL))])
    yield Rule(("seccomp",), [_argument(1), *listens, bpf.end(ALLOW)])
    # as by a host that has reserved none
    huge = bpf.if_any_bit(_MAP_HUGETLB, [bpf.end(_error(errno.ENOMEM))])
    yield Rule(("mmap",), [_argument(3), *huge, bpf.end(ALLOW)])


def _early_data() -> Iterator[Rule]:
    """Refuse to send anything to a peer before it has answered."""
    for name, flags in _SENDING.items():
        early = bpf.if_any_bit(_MSG_FASTOPEN, [bpf.end(_error(errno.EPERM))])
        yield Rule((name,), [_argument(flags), *early, bpf.end(ALLOW)])


def _own_attributes() -> Iterator[Rule]:
    eperm = _error(errno.EPERM)
    yield Rule(("clone",), [_argument(0), *bpf.if_any_bit(_NAMESPACE_FLAGS, [bpf.end(eperm)]), bpf.end(ALLOW)])
    yield Rule(("personality",), _by_argument(0, {0: ALLOW, _PERSONALITY_QUERY: ALLOW}, eperm))
    yield Rule(("ioctl",), _by_argument(1, dict.fromkeys((_TIOCSTI, _TIOCLINUX, *_LASTING), eperm), ALLOW))
    # dnotify, the predecessor of inotify, and leases: where the job's user owns Python's files, whoever opens one of
    # them would wait 45 s for the job (/proc/sys/fs/lease-break-time). A Linux without dnotify, and a file system
    # without leases, return the same errno.
    refused = dict.fromkeys((fcntl.F_NOTIFY, fcntl.F_SETLEASE), _error(errno.EINVAL))
    yield Rule(("fcntl",), _by_argument(1, refused, ALLOW))
    # A kernel must die with its launcher and stay closed to other processes of its uid.
    keep_death = _by_argument(1, {int(signal.SIGKILL): ALLOW}, eperm)
    keep_closed = _by_argument(1, {0: ALLOW}, eperm)
    prctl = [
        _argument(0),
        *bpf.if_equal(syscalls.PR_SET_PDEATHSIG, keep_death),
        *bpf.if_equal(syscalls.PR_SET_DUMPABLE, keep_closed),
        *bpf.by_value({_PR_SET_MM: eperm, _PR_SET_PTRACER: eperm}, ALLOW),
    ]
    yield Rule(("prctl",), prctl)


def _limits(policy: Policy) -> Iterator[Rule]:
    """Keep the workspace's mark (`rlimits.workspace_mark`), the limit of cores, and the limits of other processes."""
    eperm = _error(errno.EPERM)
    # Ignored, because programs that hold secrets set it to 0, and may end if that fails.
    keep = {resource.RLIMIT_RTTIME: eperm, resource.RLIMIT_CORE: _error(0)}
    yield Rule(("setrlimit",), _by_argument(0, keep, ALLOW))
    only_itself = [_argument(0), *bpf.unless_equal(0, [bpf.end(eperm)])] if policy.shares_uid else []
    # A null pointer for the new limit only reads the old one.
    reads = _if_null(2, [bpf.end(ALLOW)])
    yield Rule(("prlimit64",), [*reads, *only_itself, *_by_argument(1, keep, ALLOW)])


def _other_processes() -> Iterator[Rule]:
    eperm = _error(errno.EPERM)
    for name in _SCHEDULING:
        yield Rule((name,), _by_argument(0, {0: ALLOW}, eperm))
    # libzmq names its new thread by id, to give it the policy that it has anyway, and aborts when that is refused.
    own = [_argument(0), *bpf.if_equal(0, [bpf.end(ALLOW)])]
    yield Rule(("sched_setscheduler",), [*own, *_by_argument(1, {os.SCHED_OTHER: ALLOW}, eperm)])
    for name, whole_user in (("setpriority", _PRIO_USER), ("ioprio_set", _IOPRIO_WHO_USER)):
        user = [_argument(0), *bpf.if_equal(whole_user, [bpf.end(eperm)])]
        yield Rule((name,), [*user, *_by_argument(1, {0: ALLOW}, eperm)])
