"""A job that has the network reaches a far machine by TCP and by name, and nothing on this machine or its link."""

from __future__ import annotations

import ctypes
import ipaddress
import json
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kernel_spec.kernel.connect_audit import connect_audit_hook
from kernel_spec.linux import syscalls
from kernel_spec.sandbox import SandboxError, SandboxPlan, confine, default_read_only_paths, seal
from kernel_spec.sandbox.egress import denied_addresses, socket_broker
from kernel_spec.sandbox.layers import seccomp
from kernel_spec.sandbox.policy.plan import NETWORK_POLICY
from tests.kernel_spec.sandbox.children import (
    PLAIN_USER,
    TIER_A,
    TIER_B,
    TIER_C,
    WORKSPACE_USER,
    be_in_default_container,
    become,
    in_child,
    make_plan,
    make_workspace,
    outcome,
    run_confined,
    scratch,
)
from tests.kernel_spec.sandbox.test_work import unreadable_for
from tests.kernel_spec.sandbox.two_machines import (
    DEVICE_NUMBER,
    FAR,
    FAR_LINK,
    FAR_SIX,
    LOCAL_NAMESERVER,
    METADATA,
    NAME,
    NEAR,
    NEAR_LINK,
    NEAR_SIX,
    PORT,
    two_machines,
    why_not,
)

OPEN = [FAR, FAR_SIX, f"::ffff:{FAR}"]
CLOSED = [
    *("127.0.0.1", "127.8.8.8", LOCAL_NAMESERVER, "0.0.0.0", NEAR, METADATA),
    *("::1", "::", NEAR_SIX, f"{NEAR_LINK}%{DEVICE_NUMBER}", f"{FAR_LINK}%{DEVICE_NUMBER}"),
    *("::ffff:127.0.0.1", f"::ffff:{NEAR}", f"::ffff:{METADATA}"),
]

# The attempts of a job; each part names the ones that worked. Waiting is in threads: a dropped packet has no answer.
JOB = """
import contextlib, ctypes, errno, json, os, socket, struct, threading
OPEN, CLOSED, PORT, NAME, FAR, UNIX = PLACES
# a closed door is not answered; an open one is, be the machine ever so slow
CLOSED_SECONDS, OPEN_SECONDS = 0.7, 30
libc = ctypes.CDLL(None, use_errno=True)

def address_of(text):
    return socket.getaddrinfo(text, PORT, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)[0][::4]

def greeting(text, prepare=lambda made, address: None, seconds=CLOSED_SECONDS):
    family, address = address_of(text)
    with socket.socket(family, socket.SOCK_STREAM) as made:
        made.settimeout(seconds)
        prepare(made, address)
        made.connect(address)
        return made.recv(5) == b"hello"

def tried(action):
    try:
        return "worked" if action() is not False else "nothing"
    except OSError as error:
        return errno.errorcode.get(error.errno, type(error).__name__)

def all_of(actions):
    found = {}
    def run(name, action):
        found[name] = tried(action)
    threads = [threading.Thread(target=run, args=pair) for pair in actions.items()]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    return found

def bound_first(made, address):
    made.bind(("::" if ":" in address[0] else "0.0.0.0", 0))

def bound_to_loopback(made, address):
    made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo\\0")

def connected_before(made, address):
    made.connect((FAR, PORT))
    assert made.recv(5) == b"hello"
    unspecified = struct.pack("=H14s", socket.AF_UNSPEC, b"")
    assert libc.connect(made.fileno(), unspecified, 16) == 0

def without_filter(made, address):
    for level, option, value in ((1, 27, 0), (1, 44, 0), (6, 14, b"\\0" * 216), (6, 32, b"\\0" * 216)):
        with contextlib.suppress(OSError):
            made.setsockopt(level, option, value)
    with contextlib.suppress(OSError):
        code = ctypes.create_string_buffer(struct.pack("=HBBI", 6, 0, 0, 0xFFFFFFFF), 8)
        made.setsockopt(1, 26, struct.pack("@HP", 1, ctypes.addressof(code)))

def early(made, address):
    made.sendto(b"early", 0x20000000, address)
    raise TimeoutError

def early_by_message(made, address):
    made.sendmsg([b"early"], [], 0x20000000, address)
    raise TimeoutError

def option(level, name, value=1):
    with socket.socket() as made:
        made.setsockopt(level, name, value)

def race():
    # another thread changes the address under the call
    def packed(text): return struct.pack("!HH4s8x", 2 << 8, PORT, socket.inet_aton(text))
    near, far = packed("127.0.0.1"), packed(FAR)
    box, going = ctypes.create_string_buffer(far, 16), True
    def flip():
        while going:
            ctypes.memmove(box, near, 16); ctypes.memmove(box, far, 16)
    flipper = threading.Thread(target=flip); flipper.start()
    reached = 0
    for _ in range(150):
        with socket.socket() as made:
            made.setblocking(False)
            libc.connect(made.fileno(), box, 16)
            with contextlib.suppress(OSError):
                reached += made.getpeername()[0] == "127.0.0.1"
    going = False; flipper.join()
    return reached > 0

def ring():
    if libc.syscall(425, 8, ctypes.create_string_buffer(120)) < 0:
        raise OSError(ctypes.get_errno(), "io_uring_setup")

def by_unix(name, kind=socket.SOCK_STREAM):
    with socket.socket(socket.AF_UNIX, kind) as made:
        made.connect(name)

def by_pair(name):
    one, other = socket.socketpair()
    with one, other:
        one.connect(name)

def service():
    # permitted: a server of its own, and children that use the network
    found = socket.getaddrinfo(NAME, PORT, type=socket.SOCK_STREAM)
    with socket.create_connection(found[0][4], OPEN_SECONDS) as made:
        return made.recv(5) == b"hello"

DIRECT = all_of({
    **{text: lambda text=text: greeting(text, seconds=OPEN_SECONDS) for text in OPEN},
    **{text: lambda text=text: greeting(text) for text in CLOSED},
})
done = {
    "open": {name: DIRECT[name] for name in OPEN},
    "closed": {name: DIRECT[name] for name in CLOSED},
    "name": tried(service),
    "around": all_of({
        "bound first": lambda: greeting("127.0.0.1", bound_first),
        "bound first, six": lambda: greeting("::1", bound_first),
        "on the loopback device": lambda: greeting("127.0.0.1", bound_to_loopback),
        "connected before": lambda: greeting("127.0.0.1", connected_before),
        "filter removed": lambda: greeting("127.0.0.1", without_filter),
        "filter removed, metadata": lambda: greeting("169.254.169.254", without_filter),
        "early data": lambda: greeting("127.0.0.1", early),
        "early data in a message": lambda: greeting("127.0.0.1", early_by_message),
    }),
    "race": tried(race),
    "refused": {
        "udp": tried(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)),
        "udp six": tried(lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)),
        "ping": tried(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 1)),
        "raw": tried(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 6)),
        "sctp": tried(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132)),
        "sctp packets": tried(lambda: socket.socket(socket.AF_INET, socket.SOCK_SEQPACKET, 132)),
        "mptcp": tried(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)),
        "packet": tried(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)),
        "netlink": tried(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)),
        "vsock": tried(lambda: socket.socket(40, socket.SOCK_STREAM)),
        "smc": tried(lambda: socket.socket(43, socket.SOCK_STREAM)),
        "pair of datagrams": tried(lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)) if UNIX else "",
        "fast open": tried(lambda: option(6, 30)),
        "fast open, listening": tried(lambda: option(6, 23)),
        "upper protocol": tried(lambda: option(6, 31, b"smc")),
        "signature": tried(lambda: option(6, 32, b"\\0" * 216)),
        "io_uring": tried(ring),
        "path": tried(lambda: by_unix(PATH)),
        "abstract": tried(lambda: by_unix(ABSTRACT)),
        "path by a pair": tried(lambda: by_pair(PATH)),
    },
}
print(json.dumps(done))
"""


@dataclass(frozen=True)
class Place:
    layers: frozenset[str]
    in_container: bool
    as_plain_user: bool
    nameserver: str


# With CAP_NET_ADMIN the socket gets a BPF filter, and a name server on this machine answers; else it depends on the kernel.
PLACES = {
    "A": Place(TIER_A, False, False, LOCAL_NAMESERVER),
    "B": Place(TIER_B, True, False, FAR),
    "C": Place(TIER_C, True, True, FAR),
}


@pytest.fixture(scope="module", params=PLACES)
def tried(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The attempts of a job that succeeded in each tier, while services listened on all addresses of this machine."""
    place = PLACES[request.param]
    user = PLAIN_USER if place.as_plain_user else WORKSPACE_USER
    if why := why_not():
        pytest.skip(why)
    if "mount_namespace" not in place.layers and (why := unreadable_for(user.uid)):
        pytest.skip(f"{why}; without a private root it stays out of reach")
    with scratch() as directory:
        return in_child(lambda: play(place, directory), deadline_seconds=60)


def play(place: Place, directory: str) -> dict[str, Any]:
    os.environ["RES_OPTIONS"] = "use-vc"
    workspace_dir = make_workspace(directory, PLAIN_USER if place.as_plain_user else WORKSPACE_USER)
    if place.as_plain_user:
        os.chown(workspace_dir, PLAIN_USER.uid, PLAIN_USER.gid)
    path, abstract = f"{directory}/outside", f"\0outside-{os.getpid()}"
    values = (OPEN, CLOSED, PORT, NAME, FAR, "mount_namespace" not in place.layers)
    code = JOB.replace("PLACES", repr(values), 1)
    code = code.replace("ABSTRACT", repr(abstract)).replace("PATH", repr(path))

    def make() -> SandboxPlan:
        if place.in_container:
            be_in_default_container()
        if place.as_plain_user:
            become(PLAIN_USER)
        return make_plan(
            workspace_dir,
            place.layers | {NETWORK_POLICY},
            None if place.as_plain_user else WORKSPACE_USER,
            allow_network=True,
            read_only_paths=default_read_only_paths(allow_network=True),
        )

    with two_machines(place.nameserver) as seen, listening(path), listening(abstract):
        before = {text: greeted(text) for text in (*OPEN, *CLOSED)}
        count = len(seen)
        run = run_confined(make, code, {"RES_OPTIONS": "use-vc"})
        assert os.WIFEXITED(run.status), run.output
        assert os.WEXITSTATUS(run.status) == 0, run.output
        found = json.loads(run.output.splitlines()[-1])
        return {**found, "before": before, "seen": seen[count:]}


def listening(name: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(name)
    if not name.startswith("\0"):
        Path(name).chmod(0o777)
    listener.listen()
    return listener


def greeted(text: str) -> str:
    def call() -> None:
        with socket.create_connection((text, PORT), 30) as made:
            assert made.recv(5) == b"hello"

    return outcome(call)


def test_far_machine_is_reached(tried: dict[str, Any]) -> None:
    assert set(tried["open"].values()) == {"worked"}, tried["open"]


def test_names_are_found(tried: dict[str, Any]) -> None:
    assert tried["name"] == "worked"


def test_this_machine_and_its_link_are_not_reached(tried: dict[str, Any]) -> None:
    silent = [name for name, result in tried["before"].items() if result != "worked"]
    assert silent == [], "each of them answers who is not in a sandbox"
    assert [name for name, result in tried["closed"].items() if result != "TimeoutError"] == []
    assert tried["seen"] == []


def test_no_way_leads_around(tried: dict[str, Any]) -> None:
    assert [name for name, result in tried["around"].items() if result == "worked"] == []
    assert tried["race"] == "nothing"
    assert [name for name, result in tried["refused"].items() if result == "worked"] == []


# ------------------------------------------------------------------------------------------------- the parts
@pytest.fixture
def brokered(workspace_dir: str) -> Callable[[Callable[[], Any]], Any]:
    """Run a function in a child whose internet sockets come from a broker, by the filter alone."""

    def run(function: Callable[[int], Any]) -> Any:
        def child() -> Any:
            pid, broker = socket_broker.start_broker(lambda: None)
            syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
            listener = seccomp.apply(make_plan(workspace_dir, allow_network=True))
            assert listener is not None
            socket_broker.hand_over(listener, broker)
            return function(pid)

        return in_child(child)

    return run


def test_sockets_are_as_they_were_asked_for(brokered: Callable[..., Any]) -> None:
    def look(_: int) -> list[object]:
        found = []
        for family in (socket.AF_INET, socket.AF_INET6):
            with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as made:
                found += [made.family == family, os.get_blocking(made.fileno()), os.get_inheritable(made.fileno())]
        libc_made = ctypes.CDLL(None).socket(socket.AF_INET, socket.SOCK_STREAM, 0)  # Python's own would close on exec
        return [*found, os.get_blocking(libc_made), os.get_inheritable(libc_made)]

    assert brokered(look) == [True, False, False, True, False, False, True, True]


def test_descriptor_limit_holds_for_received_sockets(brokered: Callable[..., Any]) -> None:
    def fill(_: int) -> str:
        import resource

        resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))
        kept: list[socket.socket] = []
        return outcome(lambda: kept.extend(socket.socket() for _ in range(40)))

    assert brokered(fill) == "EMFILE"


def test_without_the_broker_there_is_no_socket(brokered: Callable[..., Any]) -> None:
    def kill_it(pid: int) -> list[str]:
        before = outcome(socket.socket)
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        return [before, outcome(socket.socket)]

    assert brokered(kill_it) == ["worked", "ENOSYS"]


def test_broker_ends_with_the_last_process_that_it_serves() -> None:
    def child() -> bool:
        pid, broker = socket_broker.start_broker(lambda: None)
        if (job := os.fork()) == 0:
            syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
            listener = syscalls.seccomp_filter(
                seccomp.program(seccomp.Policy(True, True, False, False, brokers_sockets=True)), with_listener=True
            )
            assert listener is not None
            socket_broker.hand_over(listener, broker)
            os._exit(0)
        broker.close()
        os.waitpid(job, 0)
        return os.waitpid(pid, 0)[0] == pid

    assert in_child(child)


def test_kernel_with_the_network_does_not_start_without_the_policy(workspace_dir: str) -> None:
    def child() -> str:
        try:
            confine(make_plan(workspace_dir, frozenset({"no_new_privs", "seccomp"}), allow_network=True))
        except SandboxError as error:
            return error.layer
        return "started"

    assert in_child(child) == NETWORK_POLICY


def test_seal_leaves_pairs_and_refuses_new_unix_sockets(workspace_dir: str) -> None:
    def child() -> list[str]:
        plan = make_plan(workspace_dir, frozenset({"seccomp"}), allow_network=True, allow_loopback=True)
        syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
        seccomp.apply(plan)
        before = outcome(lambda: socket.socket(socket.AF_UNIX).close())
        seal(plan)
        return [before, outcome(lambda: socket.socket(socket.AF_UNIX)), outcome(socket.socketpair)]

    assert in_child(child) == ["worked", "EACCES", "worked"]


def test_own_networks_are_read_from_the_kernels_tables() -> None:
    found = denied_addresses.own_networks()
    assert ipaddress.ip_network("127.0.0.0/8") in found
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        asked.bind(("127.0.0.1", 0))
        own = ipaddress.ip_address(asked.getsockname()[0])
    assert any(own in network for network in found if network.version == 4)


@pytest.mark.parametrize(
    ("text", "servers"),
    [
        ("nameserver 10.0.0.2\nsearch x\nnameserver fd00::1\n", ["10.0.0.2", "fd00::1"]),
        ("nameserver fe80::1%eth0\n; nameserver 1.1.1.1\nnameserver wrong\n", ["fe80::1"]),
        ("nameserver 1.0.0.1\n" * 5, ["1.0.0.1"] * 3),
        ("", ["127.0.0.1"]),
    ],
)
def test_nameservers_are_those_of_the_resolver(tmp_path: Path, text: str, servers: list[str]) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text(text)
    assert [str(server) for server in denied_addresses.nameservers(path)] == servers
    assert denied_addresses.nameservers(tmp_path / "none") == (ipaddress.ip_address("127.0.0.1"),)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "0.0.0.0", "169.254.169.254", "::1", "::", "fe80::1%lo", "::ffff:127.0.0.1"),
        *("fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254"),
    ],
)
def test_hint_names_the_closed_address(address: str) -> None:
    with pytest.raises(PermissionError, match="jobs may not connect"):
        connect_audit_hook("socket.connect", (None, (address, 80)))


@pytest.mark.parametrize("address", [("10.0.0.1", 80), ("::ffff:8.8.8.8", 1), ("example.org", 80), "/run/x", ("x",)])
def test_hint_lets_everything_else_pass(address: object) -> None:
    connect_audit_hook("socket.connect", (None, address))
    connect_audit_hook("socket.bind", (None, ("127.0.0.1", 80)))
