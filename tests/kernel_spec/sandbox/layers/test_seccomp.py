# ruff: noqa: PTH101
from __future__ import annotations

import ctypes
import dataclasses
import errno
import fcntl
import mmap
import os
import resource
import signal
import socket
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from kernel_spec.linux import syscalls
from kernel_spec.linux.syscall_numbers import NUMBERS
from kernel_spec.sandbox.layers import no_new_privs, seccomp
from kernel_spec.sandbox.layers.seccomp import Policy
from tests.kernel_spec.sandbox.children import call_by_number, in_child, outcome

OPEN = Policy(allow_network=False, hides_sockets=True, shares_uid=False, shares_files=False)
CLOSED = Policy(allow_network=False, hides_sockets=False, shares_uid=True, shares_files=True)
NETWORK = Policy(allow_network=True, hides_sockets=True, shares_uid=False, shares_files=False)
BROKER = dataclasses.replace(NETWORK, brokers_sockets=True)

X86 = syscalls.MACHINE == "x86_64"
only_x86 = pytest.mark.skipif(not X86, reason="the other tables of system calls exist on x86_64 only")


def enter(policy: Policy) -> None:
    no_new_privs.apply()
    syscalls.seccomp_filter(seccomp.program(policy))


def before_and_after(action: Callable[[], object], policy: Policy = OPEN) -> list[str]:
    def child() -> list[str]:
        before = outcome(action)
        enter(policy)
        return [before, outcome(action)]

    return in_child(child)


def number(name: str) -> int:
    found = NUMBERS[name][0 if X86 else 1]
    if found is None:
        pytest.skip(f"{name} does not exist on {syscalls.MACHINE}")
    return found


def open_socket(*arguments: int) -> Callable[[], None]:
    return lambda: socket.socket(*arguments).close()


@pytest.mark.parametrize(
    ("family", "expected"),
    [(socket.AF_INET, "EAFNOSUPPORT"), (socket.AF_INET6, "EAFNOSUPPORT"), (socket.AF_NETLINK, "EOPNOTSUPP")],
)
def test_internet_and_netlink_sockets_are_refused_with_the_errno_libraries_know(family: int, expected: str) -> None:
    before, after = before_and_after(open_socket(family, socket.SOCK_DGRAM))
    if before != "worked":
        pytest.skip(f"this machine has no sockets of family {family}")
    assert after == expected


def test_unix_sockets_work_within_the_job() -> None:
    def talk() -> None:
        with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
            server.bind("\0tg-" + os.urandom(4).hex())
            server.listen()
            client.connect(server.getsockname())
        for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM):
            end.close()

    assert before_and_after(talk) == ["worked", "worked"]


def test_connect_and_datagrams_are_refused_where_nothing_hides_the_hosts_sockets() -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("\0tg-" + os.urandom(4).hex())
        server.listen()
        name = server.getsockname()

        def connect() -> None:
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(name)

        assert before_and_after(connect, CLOSED) == ["worked", "EACCES"]
    unix, datagram = socket.AF_UNIX, socket.SOCK_DGRAM
    assert before_and_after(open_socket(unix, datagram), CLOSED) == ["worked", "EACCES"]
    assert before_and_after(lambda: socket.socketpair(unix, datagram), CLOSED) == ["worked", "EACCES"]
    assert before_and_after(lambda: socket.socketpair(unix, socket.SOCK_STREAM), CLOSED)[1] == "worked"


def test_network_policy_lets_internet_sockets_through_and_no_others() -> None:
    for family in (socket.AF_INET, socket.AF_NETLINK):
        assert len(set(before_and_after(open_socket(family, socket.SOCK_DGRAM), NETWORK))) == 1
    assert before_and_after(open_socket(socket.AF_PACKET, socket.SOCK_RAW), NETWORK)[1] == "EAFNOSUPPORT"
    audit = 9
    assert before_and_after(open_socket(socket.AF_NETLINK, socket.SOCK_RAW, audit), NETWORK)[1] == "EOPNOTSUPP"


@pytest.mark.parametrize("policy", [NETWORK, BROKER], ids=["network", "broker"])
def test_no_socket_of_a_job_can_delay_the_gateway_that_closes_it(policy: Policy) -> None:
    """A job can send a TCP socket over those of its kernel; the gateway then closes it, and may be the last to do so."""

    def child() -> list[object]:
        with socket.socket() as made:  # before the filter, which would hand it to the broker
            enter(policy)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 60))
            made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            lingers, _ = struct.unpack("ii", made.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8))
            return [lingers, made.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)]

    assert in_child(child) == [0, 1]


# Arguments with which the call fails in the kernel proper (EINVAL, EFAULT, EBADF...) or changes nothing.
HARMLESS: dict[str, tuple[int, ...]] = {
    "unshare": (0,),
    "setns": (-1, 0),
    "mount": (0, 0, 0, 0, 0),
    "umount2": (0, 0),
    "pivot_root": (0, 0),
    "chroot": (0,),
    "fsopen": (0, 0),
    "move_mount": (-1, 0, -1, 0, 0xFFFF),
    "open_tree": (-1, 0, 0xFFFFFF),
    "mount_setattr": (-1, 0, 0, 0, 0),
    "ptrace": (99999, 0, 0, 0),
    "process_vm_readv": (0, 0, 0, 0, 0, 1),
    "kcmp": (0, 0, 99, 0, 0),
    "pidfd_getfd": (-1, 0, 0),
    "shmget": (0, 0, 0),
    "semget": (0, -1, 0),
    "msgget": (123456, 0),
    **dict.fromkeys(
        ("shmat", "shmctl", "semop", "semtimedop", "semctl", "msgsnd", "msgrcv", "msgctl"), (-1, 0, 0, 0, 0)
    ),
    "mq_open": (0, 0, 0, 0),
    "mq_unlink": (0,),
    "open_by_handle_at": (-1, 0, 0),
    "name_to_handle_at": (-1, 0, 0, 0, 0xFFFF),
    "fanotify_init": (0xFFFFFF, 0),
    "quotactl": (0xFFFFFF, 0, 0, 0),
    "init_module": (0, 0, 0),
    "kexec_load": (0, 99999, 0, 0xDEAD),
    "reboot": (1, 2, 3, 0),
    "swapon": (0, 0),
    "acct": (1,),
    "adjtimex": (0,),
    "clock_settime": (99, 0),
    "sethostname": (0, -1),
    "move_pages": (0, 1, 0, 0, 0, 0xFF),
}


@pytest.mark.parametrize("name", sorted(HARMLESS))
def test_privileged_and_risky_calls_are_not_permitted(name: str) -> None:
    before, after = before_and_after(lambda: call_by_number(number(name), *HARMLESS[name]))
    assert after == "EPERM"
    if os.geteuid() == 0:
        assert before != "EPERM", "the call must reach the kernel before"


@pytest.mark.parametrize(
    "name",
    [
        *("io_uring_setup", "io_setup", "keyctl", "bpf", "userfaultfd", "perf_event_open", "clone3"),
        *("landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"),
    ],
)
def test_optional_interfaces_look_absent(name: str) -> None:
    # 0xFFFFF...: flags and pointers that no kernel accepts.
    assert before_and_after(lambda: call_by_number(number(name), -1, -1, -1, -1, -1))[1] == "ENOSYS"


def test_memory_files_look_absent() -> None:
    assert before_and_after(lambda: os.close(os.memfd_create("x"))) == ["worked", "ENOSYS"]


def test_directory_watches_look_absent(tmp_path: Path) -> None:
    def watch_names() -> None:
        watcher = call_by_number(number("inotify_init1"), os.O_CLOEXEC)
        path = ctypes.create_string_buffer(os.fsencode(tmp_path))
        call_by_number(number("inotify_add_watch"), watcher, ctypes.addressof(path), 0x100)

    def watch_quietly() -> None:
        directory = os.open(tmp_path, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.fcntl(directory, fcntl.F_NOTIFY, fcntl.DN_CREATE)

    assert before_and_after(watch_names) == ["worked", "ENOSYS"]
    assert before_and_after(watch_quietly)[1] == "EINVAL"


def test_no_lease_makes_others_wait_for_a_file(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text("x = 1")
    path.chmod(0o644)

    def lease() -> None:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        finally:
            os.close(file)  # a write lease is given to the only one who has the file open

    assert before_and_after(lease) == ["worked", "EINVAL"]


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="there is no shared memory")
def test_files_in_shared_memory_get_no_attributes_which_count_nowhere() -> None:
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        calls = [
            lambda: os.setxattr(file.name, "user.x", b"1"),
            lambda: os.setxattr(file.name, "user.x", b"1", follow_symlinks=False),
            lambda: os.setxattr(file.fileno(), "user.x", b"1"),
        ]
        for call in calls:
            before, after = before_and_after(call)
            # a Linux before 6.6 has none there either
            assert (before in ("worked", "EOPNOTSUPP"), after) == (True, "EOPNOTSUPP")


@pytest.mark.parametrize("flag", ["NEWUSER", "NEWNS", "NEWPID", "NEWNET", "NEWIPC", "NEWUTS", "NEWCGROUP"])
def test_clone_makes_processes_and_no_namespaces(flag: str) -> None:
    def child() -> list[str]:
        enter(OPEN)
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        flags = getattr(syscalls, f"CLONE_{flag}") | signal.SIGCHLD
        return [outcome(lambda: os._exit(0) if call_by_number(number("clone"), flags, 0, 0, 0, 0) == 0 else None)]

    assert in_child(child) == ["EPERM"]


@only_x86
def test_system_calls_of_another_architecture_are_refused() -> None:
    def getpid_by_interrupt() -> int:
        with mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as page:
            page.write(bytes([0xB8, 20, 0, 0, 0, 0xCD, 0x80, 0xC3]))  # mov eax, 20; int 0x80; ret
            buffer = ctypes.c_char.from_buffer(page)
            result = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(buffer))()
            del buffer
        return result

    def child() -> list[int]:
        before = getpid_by_interrupt()
        enter(OPEN)
        return [before == os.getpid() or before == -errno.ENOSYS, getpid_by_interrupt()]

    assert in_child(child) == [True, -errno.ENOSYS]


@only_x86
def test_x32_numbers_are_refused() -> None:
    assert before_and_after(lambda: call_by_number(0x40000000 + 39))[1] == "ENOSYS"


def test_mark_of_the_workspace_cannot_be_changed_and_other_limits_can() -> None:
    def child() -> list[str]:
        resource.setrlimit(resource.RLIMIT_RTTIME, (1 << 41, 1 << 41))
        enter(OPEN)
        lower = lambda kind: resource.setrlimit(kind, (40, 40))  # noqa: E731
        raw = struct.pack("=QQ", 40, 40)
        buffer = ctypes.create_string_buffer(raw)
        direct = lambda: call_by_number(number("setrlimit"), 15, ctypes.addressof(buffer))  # noqa: E731
        return [
            outcome(lambda: resource.getrlimit(resource.RLIMIT_RTTIME)),
            "ValueError" if _raises(ValueError, lower, resource.RLIMIT_RTTIME) else "worked",
            outcome(direct),
            outcome(lambda: lower(resource.RLIMIT_NOFILE)),
        ]

    # Python says ValueError for the EPERM of a limit.
    assert in_child(child) == ["worked", "ValueError", "EPERM", "worked"]


def test_limit_of_cores_stays_and_a_program_that_lowers_it_goes_on() -> None:
    """With a limit of 0 a program on the host would still get the memory of a process that a job started."""

    def child() -> list[object]:
        resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
        enter(OPEN)
        lowered = outcome(lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0)))
        raw = ctypes.create_string_buffer(struct.pack("=QQ", 0, 0))
        if X86:
            call_by_number(number("setrlimit"), resource.RLIMIT_CORE, ctypes.addressof(raw))
        return [lowered, resource.getrlimit(resource.RLIMIT_CORE)]

    assert in_child(child) == ["worked", [1, 1]]


@pytest.mark.parametrize(
    "request_number",
    [0x50009401, 0x5000940E, 0x50009417, 0x50009418, 0x4008941A, 0x800C6613, 0xC0506617, 0x401C5820, 0x40086602],
    ids=[
        "snapshot",
        "subvolume",
        "snapshot 2",
        "subvolume 2",
        "flags of one",
        "encryption",
        "its key",
        "project",
        "flags",
    ],
)
def test_no_file_that_nobody_can_remove_is_made(request_number: int, tmp_path: Path) -> None:
    def make() -> None:
        directory = os.open(tmp_path, os.O_RDONLY)
        try:
            fcntl.ioctl(directory, request_number, bytearray(4096))
        finally:
            os.close(directory)

    before, after = before_and_after(make)
    assert (before != after, after) == (True, "EPERM")


def _raises(kind: type[Exception], function: Callable[..., object], *arguments: object) -> bool:
    try:
        function(*arguments)
    except kind:
        return True
    return False


def test_attributes_that_protect_the_kernel_stay() -> None:
    def child() -> list[str]:
        enter(OPEN)
        set_death = lambda number: syscalls.prctl(syscalls.PR_SET_PDEATHSIG, number)  # noqa: E731
        return [
            outcome(lambda: set_death(0)),
            outcome(lambda: set_death(9)),
            outcome(lambda: syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1)),
            outcome(lambda: syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)),
            outcome(lambda: syscalls.prctl(0x59616D61, -1)),
            outcome(lambda: syscalls.prctl(15, ctypes.addressof(ctypes.create_string_buffer(b"name", 16)))),
        ]

    assert in_child(child) == ["EPERM", "worked", "EPERM", "worked", "EPERM", "worked"]


def test_terminal_injection_and_personality_are_refused() -> None:
    def child() -> list[str]:
        enter(OPEN)
        with open(os.devnull) as null:
            inject = outcome(lambda: fcntl.ioctl(null, 0x5412, b"x"))
            other = outcome(lambda: fcntl.ioctl(null, 0x5401, b"x" * 64))
        change = number("personality")
        return [
            inject,
            other,
            outcome(lambda: call_by_number(change, 0x0440000)),
            outcome(lambda: call_by_number(change, 0xFFFFFFFF)),
        ]

    assert in_child(child) == ["EPERM", "ENOTTY", "EPERM", "worked"]


def test_others_of_a_shared_user_are_left_alone() -> None:
    other = os.getpid()

    def try_all() -> list[str]:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)
        return [
            outcome(lambda: os.sched_setaffinity(other, os.sched_getaffinity(0))),
            outcome(lambda: os.setpriority(os.PRIO_PROCESS, other, os.getpriority(os.PRIO_PROCESS, other))),
            outcome(lambda: os.setpriority(os.PRIO_USER, 0, os.getpriority(os.PRIO_USER, 0))),
            outcome(lambda: resource.prlimit(other, resource.RLIMIT_NOFILE, limit)),
            outcome(lambda: os.sched_setaffinity(0, os.sched_getaffinity(0))),
            outcome(lambda: resource.setrlimit(resource.RLIMIT_NOFILE, limit)),
            outcome(lambda: resource.prlimit(0, resource.RLIMIT_NOFILE)),
        ]

    def child(policy: Policy) -> list[str]:
        enter(policy)
        return try_all()

    # EACCES: another process of this user happens to have a lower priority, and may not get a higher one
    worked = ["worked"] * 7
    assert in_child(lambda: child(OPEN)) in (worked, [*worked[:2], "EACCES", *worked[3:]])
    assert in_child(lambda: child(CLOSED)) == ["EPERM"] * 4 + ["worked"] * 3


def test_metadata_of_a_shared_users_files_is_left_alone(scratch_dir: str) -> None:
    """A job could close Python's files to all later ones, where they belong to its user: it may open them."""
    path = f"{scratch_dir}/file"
    Path(path).write_text("x = 1")

    def try_all() -> list[object]:
        os.chmod(path, 0o644)
        os.utime(path, (5, 5))
        return in_child(lambda: [*attempts(), *facts()])

    def attempts() -> list[str]:
        enter(policy)
        with open(path) as file:
            return [
                outcome(lambda: os.chmod(path, 0o600)),
                outcome(lambda: os.chown(path, -1, -1)),
                outcome(lambda: os.utime(path)),
                outcome(lambda: os.removexattr(file.fileno(), "user.x")),
                outcome(lambda: os.utime(file.fileno())),
                outcome(lambda: os.fchown(file.fileno(), -1, os.getgid())),
                outcome(lambda: os.fchmod(file.fileno(), 0o000)),
            ]

    def facts() -> list[int]:
        found = Path(path).stat()
        return [found.st_mode & 0o777, int(found.st_mtime) == 5]

    policy = OPEN
    assert try_all()[4:] == ["worked"] * 3 + [0, False]
    policy = CLOSED
    assert try_all() == ["EPERM"] * 4 + ["worked"] * 3 + [0o644, True]
