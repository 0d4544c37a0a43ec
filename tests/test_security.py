"""What SECURITY.md promises, looked at from inside of a job and from outside of the gateway, wherever it may run."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from gateway.core.errors import ConfigurationError
from gateway.core.settings import Settings
from gateway.process import privileges, serve
from kernel_spec.sandbox import LAYERS
from tests.kernel_spec.sandbox.children import PLAIN_USER, in_child
from tests.support.gateway_process import GatewayProcess, command_of, descendants
from tests.support.ordinary_container import POD_UID

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "SECURITY.md").read_text()
CONTAINER = ("-m", "tests.support.ordinary_container")
HERE, IN_CONTAINER, IN_POD = "as it is here", "ordinary container", "restricted pod"

NEIGHBOUR = """
import ctypes, json, os, time
def transform():
    ctypes.CDLL(None).prctl(15, b"the-neighbour", 0, 0, 0)  # PR_SET_NAME, the name of the process in /proc
    os.umask(0)
    open("secret.txt", "w").write("the neighbour's secret")
    print(json.dumps({"cwd": os.getcwd()}))
    time.sleep(300)
"""

LOOK = """
import json, os, resource, signal, socket
import pandas as pd

GATEWAY, LAUNCHER, NEIGHBOUR = PIDS
PORT, STATE, CWD = 0, "", ""

def tried(action):
    try:
        action()
    except (OSError, ValueError) as error:
        return type(error).__name__
    return "worked"

def datagram(family, address):
    with socket.socket(family, socket.SOCK_DGRAM) as out:
        out.sendto(b"x", (address, 9))

def on(pid):
    return {
        "environ": tried(lambda: open(f"/proc/{pid}/environ", "rb").read()),
        "maps": tried(lambda: open(f"/proc/{pid}/maps", "rb").read()),
        "mem": tried(lambda: open(f"/proc/{pid}/mem", "rb")),
        "cmdline": tried(lambda: open(f"/proc/{pid}/cmdline", "rb").read()),
        "fd": tried(lambda: os.listdir(f"/proc/{pid}/fd")),
        "kill": tried(lambda: os.kill(pid, 0)),
        "prlimit": tried(lambda: resource.prlimit(pid, resource.RLIMIT_NOFILE, (50, 50))),
        "affinity": tried(lambda: os.sched_setaffinity(pid, {0})),
    }

def transform():
    def listed(place):
        try:
            return os.listdir(place)
        except OSError:
            return []
    seen = {
        "network": {
            "tcp": tried(lambda: socket.create_connection(("127.0.0.1", PORT), 2)),
            "tcp6": tried(lambda: socket.create_connection(("::1", PORT), 2)),
            "udp": tried(lambda: datagram(socket.AF_INET, "127.0.0.1")),
            "udp6": tried(lambda: datagram(socket.AF_INET6, "::1")),
            "metadata": tried(lambda: socket.create_connection(("169.254.169.254", 80), 1)),
            "raw": tried(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)),
            "packet": tried(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)),
            "netlink": tried(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)),
            "vsock": tried(lambda: socket.socket(40, socket.SOCK_STREAM)),
        },
        "gateway": on(GATEWAY),
        "launcher": on(LAUNCHER),
        "neighbour": {
            **on(NEIGHBOUR),
            "list": tried(lambda: os.listdir(CWD)),
            "read": tried(lambda: open(CWD + "/secret.txt").read()),
            "write": tried(lambda: open(CWD + "/planted", "w")),
        },
        "state": listed(STATE),
        "workspaces": listed(STATE + "/workspaces"),
        "kept": {name: tried(lambda: os.listdir(f"{STATE}/{name}")) for name in ("jobs", "outbox", "results", "run", "uploads")},
        "visible": [name for name in listed("/proc") if name.isdigit()],
        "environment": dict(os.environ),
        "connection_files": [name for name in os.listdir("../ipc") if name.endswith(".json")],
        "uid": os.getuid(),
    }
    return pd.DataFrame({"seen": [json.dumps(seen)]})
"""


@dataclass(frozen=True)
class Place:
    """A gateway somewhere, and what a job saw there while another one ran."""

    name: str
    gateway: GatewayProcess
    seen: dict[str, Any]
    #: processes below the gateway that held the token while both jobs ran; None where only root could tell
    token_holders: list[int] | None


@lru_cache(maxsize=1)
def why_not_contained() -> str:
    if os.geteuid() != 0:
        return "playing a container runtime takes root"
    unreadable = privileges._first_refused(POD_UID, POD_UID, os.R_OK, privileges._python_paths())
    return f"other users cannot read {unreadable}, so no ordinary container can be played here" if unreadable else ""


@pytest.fixture(scope="module", params=[HERE, IN_CONTAINER, IN_POD])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    name = request.param
    if name != HERE and why_not_contained():
        pytest.skip(why_not_contained())
    launch = {HERE: ("-m", "gateway"), IN_CONTAINER: CONTAINER, IN_POD: (*CONTAINER, "--pod")}[name]
    owner_uid = POD_UID if name == IN_POD else -1
    with GatewayProcess({"SLOTS": "2", "HOME": "/tmp"}, launch=launch, owner_uid=owner_uid) as gateway:
        yield look_around(name, gateway)


def look_around(name: str, gateway: GatewayProcess) -> Place:
    with ThreadPoolExecutor(1) as pool:
        going = pool.submit(gateway.execute, NEIGHBOUR, "neighbour")
        gateway.wait_for_line("neighbour", "cwd")
        neighbour = json.loads(gateway.log("neighbour")[0]["message"])
        pids = (gateway.pid, launcher_of(gateway), neighbour_of(gateway))
        code = LOOK.replace("PIDS", repr(pids)).replace('PORT, STATE, CWD = 0, "", ""', (
            f"PORT, STATE, CWD = {gateway.port}, {str(gateway.state_dir / 's')!r}, {neighbour['cwd']!r}"
        ))  # fmt: skip
        answer = gateway.execute(code, "look", inline=True)
        assert answer.status == 200, answer.raw
        holders = None
        if os.geteuid() == 0:
            holders = [pid for pid in descendants(gateway.pid) if holds(pid, gateway.token.encode())]
        gateway.request("POST", "/v1/cancel", {"request_id": "neighbour"})
        assert going.result(timeout=60).body["code"] == "cancelled", "the neighbour was not broken by the look"
    seen = json.loads(json.loads(answer.body["output"])["seen"])
    return Place(name, gateway, seen, holders)


def launcher_of(gateway: GatewayProcess) -> int:
    for pid in descendants(gateway.pid):
        if b"kernel_spec.launcher" in command_of(pid):
            return pid
    raise AssertionError("the gateway has no launcher")


def neighbour_of(gateway: GatewayProcess) -> int:
    """Return the pid of the neighbour's kernel outside of its namespace."""
    for pid in descendants(gateway.pid):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text() == "the-neighbour\n":
                return pid
    raise AssertionError("the neighbour has no process")


def holds(pid: int, needle: bytes) -> bool:
    """Whether a process has the needle in its environment, its command line or its own memory."""
    try:
        for name in ("environ", "cmdline"):
            if needle in Path(f"/proc/{pid}/{name}").read_bytes():
                return True
        maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            for line in maps:
                span, rights = line.split()[:2]
                if not rights.startswith("rw") or line.endswith("[vvar]"):
                    continue
                begin, end = (int(part, 16) for part in span.split("-"))
                memory.seek(begin)
                with contextlib.suppress(OSError):  # EIO: unmapped since the maps were read
                    if needle in memory.read(end - begin):
                        return True
    except (FileNotFoundError, ProcessLookupError):
        return False  # it has ended
    return False


def worked(outcomes: dict[str, str]) -> list[str]:
    return [name for name, outcome in outcomes.items() if outcome == "worked"]


# ------------------------------------------------------------------------------------------------- inside
def test_job_has_no_network(place: Place) -> None:
    assert worked(place.seen["network"]) == []


def test_job_cannot_look_at_or_touch_the_gateway_and_the_launcher(place: Place) -> None:
    assert worked(place.seen["gateway"]) == []
    assert worked(place.seen["launcher"]) == []


def test_job_cannot_see_read_or_touch_a_job_that_runs_beside_it(place: Place) -> None:
    assert worked(place.seen["neighbour"]) == []
    assert len(place.seen["workspaces"]) <= 1, "in a private root its own, else none"


def test_job_cannot_list_the_gateways_files(place: Place) -> None:
    assert worked(place.seen["kept"]) == []
    assert set(place.seen["state"]) <= {"workspaces"}


def test_proc_shows_a_job_nothing_but_itself(place: Place) -> None:
    # at most itself and the init of its namespace; nothing at all where there is none
    assert len(place.seen["visible"]) <= 2


def test_job_has_neither_token_nor_settings_nor_a_connection_file(place: Place) -> None:
    environment = place.seen["environment"]
    assert place.gateway.token not in environment.values()
    assert not {"AUTH_TOKEN", "STATE_DIR", "SLOTS", "PORT"} & set(environment)
    assert place.seen["connection_files"] == []


def test_job_reaches_no_held_kernel(place: Place) -> None:
    held = place.gateway.execute("def transform():\n    return 1", "kept", hold_minutes=1).body["held"]
    connection = json.loads(Path(held["connection_file"]).read_text())
    socket_path = f"{connection['ip']}-{connection['shell_port']}"
    assert Path(socket_path).is_socket()
    code = (
        "import pandas as pd, socket\n"
        "def fails(action):\n"
        "    try:\n        action()\n"
        "    except OSError:\n        return True\n"
        "    return False\n"
        "def transform():\n"
        f"    file, token, path = {held['connection_file']!r}, {str(place.gateway.state_dir / 's/gateway.run')!r}, {socket_path!r}\n"
        "    seen = [fails(lambda: open(file)), fails(lambda: open(token))]\n"
        "    seen += [fails(lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).connect(path))]\n"
        "    return pd.DataFrame({'seen': seen})\n"
    )
    answer = place.gateway.execute(code, "intruder", inline=True).body
    assert place.gateway.request("POST", "/v1/release", {"id": held["id"]}).status == 200
    assert answer["output"] == '{"seen":true}\n' * 3


# ------------------------------------------------------------------------------------------------- outside
def test_token_is_in_no_process_but_the_gateway(place: Place) -> None:
    if place.token_holders is None:
        pytest.skip("only root can look into the memory of kernels")
    assert holds(place.gateway.pid, place.gateway.token.encode()), "the look finds what is there"
    assert place.token_holders == []


def test_presigned_url_reaches_no_kernel(place: Place) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can look into the memory of kernels")
    code = "import time\ndef transform(orders):\n    print('rows', len(orders))\n    time.sleep(300)\n    return orders"
    with storage(b'{"x":1}\n') as url, ThreadPoolExecutor(1) as pool:
        mapping = {"orders": f"{url}/orders.jsonl?X-Amz-Signature=needle-5417"}
        going = pool.submit(place.gateway.execute, code, "url", table_mapping=mapping)
        place.gateway.wait_for_line("url", "rows 1")
        found = [pid for pid in descendants(place.gateway.pid) if holds(pid, b"needle-5417")]
        in_gateway = holds(place.gateway.pid, b"needle-5417")
        place.gateway.request("POST", "/v1/cancel", {"request_id": "url"})
        going.result(timeout=60)
    assert in_gateway, "the look finds what is there"
    assert found == []


@contextmanager
def storage(content: bytes) -> Iterator[str]:
    """A storage that answers every GET with the same object."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def keeps_root(place: Place) -> bool:
    return any("keeps root" in line for line in place.gateway.output)


def test_gateway_has_no_root_and_is_closed_to_its_own_user(place: Place) -> None:
    if keeps_root(place):
        pytest.skip("the gateway keeps root here: other users cannot read this interpreter")
    lines = Path(f"/proc/{place.gateway.pid}/status").read_text().splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    uids = {int(uid) for uid in status["Uid"].split()}
    assert len(uids) == 1
    assert uids != {0}
    assert int(status["CapPrm"], 16) == 0
    # the kernel gives /proc/PID of a process that is not dumpable to root, proc(5)
    assert Path(f"/proc/{place.gateway.pid}/mem").stat().st_uid == 0
    assert Path(f"/proc/{launcher_of(place.gateway)}/mem").stat().st_uid == 0


def test_tier_and_users_are_those_of_the_place(place: Place) -> None:
    sandbox = place.gateway.request("GET", "/v1/status").body["sandbox"]
    if place.name == IN_CONTAINER:
        assert sandbox["tier"] == "B"
        assert place.seen["uid"] not in (0, Path(f"/proc/{place.gateway.pid}").stat().st_uid, privileges.FALLBACK_UID)
    elif place.name == IN_POD:
        assert sandbox["tier"] == "C"
        assert place.seen["uid"] == POD_UID
    else:
        assert sandbox["tier"] in ("A", "B", "C")


def test_public_status_lists_each_layer_and_no_secret(place: Place) -> None:
    answer = place.gateway.request("GET", "/v1/status", headers={"Authorization": ""})
    sandbox = answer.body["sandbox"]
    assert tuple(line["layer"] for line in sandbox["layers"]) == LAYERS
    for line in sandbox["layers"]:
        assert line["state"] in ("on", "degraded", "off")
        assert line["promise"]
        assert line["why"] or line["state"] == "on"
    assert all(proof["held"] for proof in sandbox["proofs"])
    assert sandbox["gateway_has_root"] is keeps_root(place)
    assert place.gateway.token.encode() not in answer.raw
    assert str(place.gateway.state_dir).encode() not in answer.raw


def test_giving_root_away_is_for_good() -> None:
    if os.geteuid() != 0:
        pytest.skip("there is no root to give away")

    def child() -> dict[str, Any]:
        privileges.drop(privileges.GatewayUser(PLAIN_USER.uid, PLAIN_USER.gid), (58_000, 58_001))
        return {"uids": os.getresuid(), "gids": os.getresgid(), "groups": os.getgroups(),
                "memory_owner": Path("/proc/self/mem").stat().st_uid}  # fmt: skip

    assert in_child(child) == {
        "uids": [PLAIN_USER.uid] * 3,
        "gids": [PLAIN_USER.gid] * 3,
        "groups": sorted({PLAIN_USER.gid, 58_000, 58_001}),
        "memory_owner": 0,
    }


# ------------------------------------------------------------------------------------------------- tiers
def command(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run the command line where tier A cannot be had."""
    launch = CONTAINER if os.geteuid() == 0 else ("-m", "gateway")
    environment = {"PATH": os.environ["PATH"], "HOME": "/tmp", **settings}
    return subprocess.run(
        [sys.executable, *launch, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip


def test_gateway_refuses_to_start_below_the_required_tier() -> None:
    with tempfile.TemporaryDirectory(prefix="tg-", dir="/tmp") as directory:
        state_dir = Path(directory, "s")
        Path(directory).chmod(0o755)  # the gateway drops root before it uses it
        done = command(REQUIRE_TIER="A", PORT="0", STATE_DIR=str(state_dir))
        assert done.returncode == 2
        assert "tier A is required (REQUIRE_TIER" in done.stderr
        assert "Traceback" not in done.stderr
        assert list((state_dir / "workspaces").iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only a gateway that starts as root can keep it")
def test_a_required_tier_refuses_a_gateway_that_keeps_root() -> None:
    root = privileges.GatewayUser(0, 0, "the gateway keeps root: other users cannot read it")
    other = privileges.GatewayUser(57_999, 57_999)
    settings = Settings(require_tier="C")
    with pytest.raises(ConfigurationError, match=r"REQUIRE_TIER=C needs .* other users cannot read it"):
        serve._check_root(settings, root)
    serve._check_root(settings, other)
    serve._check_root(Settings(), root)


def test_doctor_exits_by_the_required_tier() -> None:
    asked = command("doctor", "--require-tier", "A")
    assert asked.returncode == 1
    assert "mount_namespace" in asked.stdout
    assert command("doctor", REQUIRE_TIER="A").returncode == 1
    assert command("doctor", "--require", "D").returncode == 0
    assert "REQUIRE_TIER" in command("doctor", REQUIRE_TIER="E").stderr


def test_doctor_fails_where_no_gateway_would_start() -> None:
    if os.geteuid() != 0:
        pytest.skip("taking all layers away takes root")
    # a workspace that no other user can enter: jobs would be root
    with tempfile.TemporaryDirectory(prefix="tg-", dir="/tmp") as directory:
        done = command("doctor", "--state-dir", directory)
    assert "tier D" in done.stdout
    assert done.returncode == 1


def test_doctor_explains_why_the_gateway_would_keep_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("there is no root to keep")
    code = (
        "import sys\nfrom gateway.process import privileges\nfrom gateway.cli import doctor\n"
        "privileges._first_refused = lambda *_: '/closed/python'\nsys.exit(doctor.main('doctor', sys.argv[1:]))"
    )
    told = [subprocess.run([sys.executable, "-c", code, *how], cwd=ROOT, capture_output=True, text=True, check=False).stdout
            for how in ([], ["--json"])]  # fmt: skip
    assert "the gateway keeps root: other users cannot read /closed/python; install" in " ".join(told[0].split())
    assert json.loads(told[1])["gateway"]["has_root"] is True


# ------------------------------------------------------------------------------------------------- the page
def rows_of(table: str) -> list[list[str]]:
    """Return the cells of each row of one of the page's marked tables."""
    rows = PAGE.split(f"<!-- {table}:begin -->")[1].split(f"<!-- {table}:end -->")[0].strip().splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_every_promise_names_a_test_that_exists() -> None:
    tests: dict[str, list[str]] = {}
    number = ""
    for first, test in rows_of("promise-tests"):
        number = first or number  # a row without a number has one more test of the promise above it
        tests.setdefault(number, []).append(test)
    numbers = [row[0] for row in rows_of("promises")]
    assert numbers == list(tests) == [str(n) for n in range(1, len(numbers) + 1)]
    assert len(numbers) >= 15
    for text in (test for of_promise in tests.values() for test in of_promise):
        name = re.fullmatch(r"`(\S+\.py)::(\w+)`", text)
        assert name is not None, text
        assert name[2] in names_of_tests(ROOT / "tests" / name[1]), text


@lru_cache(maxsize=64)
def names_of_tests(path: Path) -> frozenset[str]:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(node.name for node in ast.parse(path.read_text()).body if isinstance(node, functions))


def test_every_layer_is_on_the_page() -> None:
    assert [layer for layer in LAYERS if f"`{layer}`" not in PAGE] == []
