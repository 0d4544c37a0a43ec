"""Kernels that front ends of Jupyter take from a running gateway."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from jupyter_client import BlockingKernelClient

from kernel_spec.client.front_end import CHANNELS
from kernel_spec.client.gateway_launcher import GATEWAY_SOCKET, GatewayLauncher
from kernel_spec.client.process import LauncherError
from kernel_spec.protocol.limits import Limits
from tests.kernel_spec.conftest import is_alive, wait_until
from tests.kernel_spec.kernel.conftest import ANSWER_SECONDS, FrontEnd, open_front_end
from tests.support.gateway_process import GatewayProcess, command_of, descendants

ROOT = Path(__file__).parents[3]
LIMIT = 2


@pytest.fixture(scope="module")
def gateway() -> Iterator[GatewayProcess]:
    with GatewayProcess({"SLOTS": "1", "PERSONAL_KERNELS": str(LIMIT)}) as process:
        yield process


@pytest.fixture
def state_dir(gateway: GatewayProcess) -> Path:
    return gateway.state_dir / "s"


@pytest.fixture
def new_front_end(state_dir: Path) -> Iterator[Callable[[], FrontEnd]]:
    with ExitStack() as stack:
        yield lambda: stack.enter_context(open_front_end(str(state_dir)))


@pytest.fixture(autouse=True)
def _no_kernel_is_left(gateway: GatewayProcess, state_dir: Path) -> Iterator[None]:
    yield
    assert wait_until(lambda: personal(gateway) == 0)
    assert wait_until(lambda: not connection_files(state_dir))


def personal(gateway: GatewayProcess) -> int:
    count: int = gateway.request("GET", "/v1/status").body["kernels"]["personal"]
    return count


def connection_files(state_dir: Path) -> list[Path]:
    """Return the connection files of personal kernels; those of jobs are removed when the kernel is ready."""
    return list((state_dir / "workspaces").glob("*/ipc/connection.json"))


def test_kernel_is_the_gateways_and_has_all_of_a_notebook(
    new_front_end: Callable[[], FrontEnd], gateway: GatewayProcess, state_dir: Path, tmp_path: Path
) -> None:
    end = new_front_end()
    assert end.printed("import os; print(os.getcwd())").startswith(f"{state_dir}/workspaces/")
    assert personal(gateway) == 1
    assert b"transform_gateway_personal_kernels 1.0" in gateway.request("GET", "/metrics").raw
    (tmp_path / "orders.csv").write_text("id\n1\n2\n")
    end.run(f"%table orders {tmp_path / 'orders.csv'}")
    assert end.printed("print(len(tables['orders']))") == "2\n"
    end.run("41 + 1")
    assert end.printed("print(_)") == "42\n"
    limits = "import resource as r; print(r.getrlimit(r.RLIMIT_DATA)[0], r.getrlimit(r.RLIMIT_NOFILE)[0])"
    assert end.printed(limits).split() == [str(Limits().memory_bytes), "256"]


def test_quota_leaves_jobs_their_kernels_and_the_rest_their_own_launcher(
    new_front_end: Callable[[], FrontEnd],
    gateway: GatewayProcess,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for end in [new_front_end() for _ in range(LIMIT)]:
        end.client.execute("while True: pass")
    caplog.clear()
    refused = new_front_end()
    assert refused.printed("import os; print(os.getcwd())").startswith("/tmp/transform-")
    (line,) = [record.getMessage() for record in caplog.records if "launcher of its own" in record.getMessage()]
    assert line.endswith("2 personal kernels are taken already (PERSONAL_KERNELS)")
    assert (
        gateway.execute("def transform():\n    import pandas as pd\n    return pd.DataFrame({'a': [1]})").status == 200
    )


def test_front_end_that_is_killed_takes_its_kernel_with_it(gateway: GatewayProcess, state_dir: Path) -> None:
    code = f"""
import sys
from tests.kernel_spec.kernel.conftest import open_front_end
with open_front_end({str(state_dir)!r}) as end:
    end.client.execute("import subprocess; subprocess.run(['sleep', '1000'])")
    print(end.manager.provisioner.pid, flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as front:
        assert front.stdout is not None
        pid = int(front.stdout.readline())
        assert is_alive(pid)
        assert personal(gateway) == 1
        front.kill()
    assert wait_until(lambda: not is_alive(pid))


def test_kernel_ends_with_its_gateway_and_a_restart_finds_another_launcher(
    start_gateway: Callable[..., GatewayProcess],
) -> None:
    stopped = start_gateway(SLOTS="1")
    with open_front_end(str(stopped.state_dir / "s")) as end:
        pid = end.manager.provisioner.pid
        stopped.stop()
        assert wait_until(lambda: not end.manager.is_alive())
        assert not is_alive(pid)
        end.manager.restart_kernel(now=True)
        again = FrontEnd(end.manager, end.manager.client())
        again.client.start_channels()
        again.client.wait_for_ready(timeout=ANSWER_SECONDS)
        assert again.printed("import os; print(os.getcwd())").startswith("/tmp/transform-")
        again.client.stop_channels()


def test_restart_after_the_launcher_has_ended_takes_a_kernel_of_the_next_one(
    start_gateway: Callable[..., GatewayProcess],
) -> None:
    running = start_gateway(SLOTS="1")
    with open_front_end(str(running.state_dir / "s")) as end:
        (launcher,) = [pid for pid in descendants(running.pid) if b"kernel_spec.launcher" in command_of(pid)]
        os.kill(launcher, signal.SIGKILL)
        assert wait_until(lambda: not end.manager.is_alive())
        assert wait_until(lambda: running.request("GET", "/v1/status").body["launcher"] == {"up": True, "restarts": 1})
        end.manager.restart_kernel(now=True)
        again = FrontEnd(end.manager, end.manager.client())
        again.client.start_channels()
        again.client.wait_for_ready(timeout=ANSWER_SECONDS)
        assert again.printed("import os; print(os.getcwd())").startswith(f"{running.state_dir}/s/workspaces/")
        again.client.stop_channels()
        assert personal(running) == 1


def test_command_of_kernel_json_takes_a_kernel_too(state_dir: Path) -> None:
    """As VS Code starts it, with sockets of its choice."""
    with tempfile.TemporaryDirectory(prefix="tc-", dir="/tmp") as directory:
        path = Path(directory) / "kernel.json"
        ports = {f"{name}_port": number for name, number in CHANNELS.items()}
        fields = {"transport": "ipc", "ip": f"{directory}/s", "key": "secret", "signature_scheme": "hmac-sha256"}
        path.write_text(json.dumps(fields | ports))
        process = subprocess.Popen(
            [sys.executable, "-m", "kernel_spec.wrapper", "-f", str(path)],
            env={**os.environ, "TRANSFORM_GATEWAY": str(state_dir)},
            cwd=ROOT,
        )
        client = BlockingKernelClient(connection_file=str(path))
        client.load_connection_file()
        try:
            assert wait_until((path.parent / "s-1").exists, ANSWER_SECONDS)
            client.start_channels(hb=False)
            client.wait_for_ready(timeout=ANSWER_SECONDS)
            where = client.execute("", user_expressions={"d": "__import__('os').getcwd()"}, reply=True)["content"]
            assert str(state_dir) in where["user_expressions"]["d"]["data"]["text/plain"]
            client.execute("import os; os._exit(7)")
            assert process.wait(ANSWER_SECONDS) == 7
        finally:
            client.stop_channels()
            client.context.destroy(linger=0)
            process.kill()
            process.wait()


def test_exit_code_and_signal_reach_the_front_end(new_front_end: Callable[[], FrontEnd]) -> None:
    for code, expected in (("import os; os._exit(3)", 3), ("import os; os.kill(os.getpid(), 9)", -9)):
        end = new_front_end()
        end.client.execute(code)
        assert wait_until(lambda end=end: not end.manager.is_alive())  # type: ignore[misc]
        assert asyncio.run(end.manager.provisioner.wait()) == expected


@pytest.mark.parametrize(
    ("rights", "reason"),
    [({"allow_network": True}, "other rights on the network"), ({}, "runs in the Python environment")],
)
def test_kernel_that_would_differ_from_that_of_the_own_launcher_is_refused(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch, rights: dict[str, bool], reason: str
) -> None:
    if not rights:
        monkeypatch.setattr(sys, "prefix", "/usr/other")
    launcher = GatewayLauncher(state_dir, **rights)
    with pytest.raises(LauncherError, match=reason):
        launcher.reserve("k")
    launcher.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
@pytest.mark.parametrize("uid", [57_999, 65_534])
def test_other_users_get_no_kernel(gateway: GatewayProcess, state_dir: Path, uid: int) -> None:
    """The gateway's own user without root, which faces the network, is one of them."""
    code = f"""
import os, socket
os.setgroups([]); os.setresgid({uid}, {uid}, {uid}); os.setresuid({uid}, {uid}, {uid})
from pathlib import Path
from kernel_spec.client.gateway_launcher import GATEWAY_SOCKET, GatewayLauncher
try:
    GatewayLauncher(Path({str(state_dir)!r}))
except Exception as error:
    print(error)
bare = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
bare.settimeout(60)
try:
    bare.connect({str(state_dir / GATEWAY_SOCKET)!r})
    print("closed" if bare.recv(100) == b"" else "served")
except PermissionError:
    print("closed")
"""
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60).stdout
    assert told.splitlines() == [
        f"the gateway in {state_dir} belongs to user 0 and offers kernels only to that user",
        "closed",
    ]


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_other_users_reach_neither_the_kernel_nor_the_gateways_files(
    new_front_end: Callable[[], FrontEnd], gateway: GatewayProcess, state_dir: Path
) -> None:
    end = new_front_end()
    provisioner = end.manager.provisioner
    directory = Path(provisioner.workspace.workspace_dir)
    code = f"""
import os, socket
os.setgroups([]); os.setresgid(65_534, 65_534, 65_534); os.setresuid(65_534, 65_534, 65_534)
os.stat({str(state_dir)!r})
actions = {{
    "find the workspace": lambda: os.listdir({str(directory.parent)!r}),
    "read the key": lambda: open({str(directory / "ipc" / "connection.json")!r}),
    "connect": lambda: socket.socket(socket.AF_UNIX).connect({str(directory / "ipc" / "k-1")!r}),
    "give it a table": lambda: open({str(directory / "inputs" / "x")!r}, "w"),
    "end the kernel": lambda: os.kill({provisioner.pid}, 9),
    "read the gateway's settings": lambda: open("/proc/{gateway.pid}/environ").read(),
    "read its pid file": lambda: open({str(state_dir / "gateway.run")!r}),
    "read the jobs": lambda: os.listdir({str(state_dir / "store")!r}),
}}
for name, action in actions.items():
    try:
        action()
    except PermissionError:
        continue
    print(name)
"""
    tried = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (tried.stdout, tried.stderr) == ("", "")
    assert end.printed("print(6 * 7)") == "42\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="the gateway drops root")
def test_root_trusts_a_gateway_without_root_only_by_name(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The gateway faces the network, and the companion of root can read all files."""
    monkeypatch.setenv("STATE_DIR", str(state_dir))
    with open_front_end(None) as end:
        assert end.printed("import os; print(os.getcwd())").startswith("/tmp/transform-")
    assert "set TRANSFORM_GATEWAY to trust it with your files" in caplog.text


@pytest.mark.parametrize(
    "packet",
    [
        b"{",
        b'{"kind":"Take","id":1,"environment_dir":"/","allow_network":false}',
        b'{"kind":"Shutdown","id":1}',
        b'{"kind":"Remove","id":1,"kernel_id":"k"}',
        b"x" * 150_000,
    ],
    ids=["cut off", "field missing", "launcher's Shutdown", "launcher's Remove", "large"],
)
def test_packet_that_is_no_request_ends_the_connection_only(
    gateway: GatewayProcess, state_dir: Path, packet: bytes
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
        peer.settimeout(ANSWER_SECONDS)
        peer.connect(str(state_dir / GATEWAY_SOCKET))
        peer.send(packet)
        assert peer.recv(1 << 16) == b""
    assert gateway.request("GET", "/v1/status").body["healthy"]


def test_gateway_without_its_workspaces_turns_front_ends_away_and_serves_later_ones(state_dir: Path) -> None:
    workspaces, aside = state_dir / "workspaces", state_dir / "aside"
    workspaces.rename(aside)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
            peer.settimeout(ANSWER_SECONDS)
            peer.connect(str(state_dir / GATEWAY_SOCKET))
            assert peer.recv(1 << 16) == b""
    finally:
        if workspaces.exists():  # the gateway makes it again
            workspaces.rmdir()
        aside.rename(workspaces)
    with open_front_end(str(state_dir)) as end:
        assert end.printed("print(6 * 7)") == "42\n"


def test_requests_without_a_kernel_and_of_another_kernel_are_refused(state_dir: Path) -> None:
    launcher = GatewayLauncher(state_dir)
    with pytest.raises(LauncherError, match="no kernel was taken"):
        launcher.kill()
    launcher.reserve("k")
    launcher._kernel_id = "another"
    assert launcher.kill().cause == "killed_by_us", "a connection knows its own kernel only, whatever the name"
    launcher.close()


def test_directory_in_which_others_could_put_a_socket_is_not_believed(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(LauncherError, match="is writable for other users"):
        GatewayLauncher(tmp_path)


@pytest.mark.parametrize("place", ["/etc/w", "{state_dir}/workspaces/.."])
def test_workspace_outside_of_the_gateways_directory_is_not_used(place: str) -> None:
    """A gateway has fewer rights than root who started it, and could make root's companion write anywhere."""
    with (
        tempfile.TemporaryDirectory(prefix="tg-", dir="/tmp") as directory,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener,
    ):
        path = Path(directory) / GATEWAY_SOCKET
        path.parent.mkdir()
        listener.bind(str(path))
        listener.listen()
        place = place.format(state_dir=directory)
        launcher = GatewayLauncher(Path(directory))
        peer, _ = listener.accept()
        names = {f"{name}_dir": f"{place}/{name}" for name in ("ipc", "inputs", "work", "out")}
        workspace = {"name": Path(place).name, "uid": 1, "gid": 1, "workspace_dir": place, **names}
        peer.send(json.dumps({"kind": "Reserved", "id": 1, "workspace": workspace}).encode())
        with pytest.raises(LauncherError, match="a workspace elsewhere: "):
            launcher.reserve("k")
        launcher.close()
        peer.close()


def test_job_cannot_reach_the_socket(gateway: GatewayProcess, state_dir: Path) -> None:
    code = f"""
import socket
def transform():
    endpoint = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    endpoint.connect({str(state_dir / GATEWAY_SOCKET)!r})
"""
    answer = gateway.execute(code, "reach").body
    assert answer["code"] == "user_error", answer
    assert any(name in answer["error"] for name in ("PermissionError", "FileNotFoundError", "OSError")), answer


def test_gateway_without_personal_kernels_has_no_socket(start_gateway: Callable[..., GatewayProcess]) -> None:
    quiet = start_gateway(PERSONAL_KERNELS="0")
    with pytest.raises(LauncherError, match="no gateway offers kernels"):
        GatewayLauncher(quiet.state_dir / "s")
