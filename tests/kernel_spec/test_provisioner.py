"""The same kernel without the gateway: through a kernel manager, and by kernel.json's command alone."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq.asyncio
from jupyter_client import BlockingKernelClient, KernelManager
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning.factory import KernelProvisionerFactory

from kernel_spec.client.front_end import CHANNELS
from kernel_spec.client.process import LauncherError
from kernel_spec.install import RESOURCE_DIR, install
from kernel_spec.protocol.limits import notebook_limit
from kernel_spec.provisioner import TransformProvisioner
from tests.kernel_spec.conftest import Desk, is_alive, wait_until
from tests.support.ports import free_port

RUN_SECONDS = 60


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    """Let the factory know the provisioner, as an installed distribution does."""
    KernelProvisionerFactory.clear_instance()
    factory = KernelProvisionerFactory.instance()
    name = "transform-provisioner"
    entry = EntryPoint(name, "kernel_spec.provisioner:TransformProvisioner", KernelProvisionerFactory.GROUP_NAME)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(factory.provisioners, name, entry)
        yield


def workspace_of(manager: KernelManager) -> Path | None:
    """Return the temporary directory of the front end's kernel; others come and go in the same place."""
    workspace = getattr(manager.provisioner, "workspace", None)
    return None if workspace is None else Path(workspace.workspace_dir)


@contextmanager
def new_manager() -> Iterator[KernelManager]:
    manager = KernelManager(kernel_name="transform")
    manager._kernel_spec = KernelSpec.from_resource_dir(str(RESOURCE_DIR))
    yield manager
    workspace = workspace_of(manager)
    if manager.has_kernel:
        manager.shutdown_kernel(now=True)
    manager.cleanup_resources()
    manager.context.destroy(linger=0)
    assert workspace is None or not workspace.parents[1].exists(), "the launcher's directory is two above the workspace"


def run(client: BlockingKernelClient, code: str) -> str:
    printed: list[str] = []

    def keep(message: dict[str, Any]) -> None:
        if message["msg_type"] == "stream":
            printed.append(message["content"]["text"])

    reply = client.execute_interactive(
        code, store_history=False, allow_stdin=False, output_hook=keep, timeout=RUN_SECONDS
    )
    assert reply["content"]["status"] == "ok", reply
    return "".join(printed)


@contextmanager
def started(manager: KernelManager) -> Iterator[BlockingKernelClient]:
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=RUN_SECONDS)
    yield client
    client.stop_channels()


@contextmanager
def open_files(count: int) -> Iterator[None]:
    descriptors = [os.open(os.devnull, os.O_RDONLY) for _ in range(count)]
    yield
    for descriptor in descriptors:
        os.close(descriptor)


@pytest.fixture
def manager() -> Iterator[KernelManager]:
    with new_manager() as manager:
        yield manager


@pytest.fixture
def client(manager: KernelManager) -> Iterator[BlockingKernelClient]:
    with started(manager) as client:
        yield client


@pytest.fixture(scope="module")
def shared_manager() -> Iterator[KernelManager]:
    """The manager of one kernel for all tests that leave it as they found it."""
    with new_manager() as manager:
        yield manager


@pytest.fixture(scope="module")
def shared_client(shared_manager: KernelManager) -> Iterator[BlockingKernelClient]:
    with started(shared_manager) as client:
        yield client


def test_kernel_manager_gets_a_confined_kernel_over_ipc(
    shared_manager: KernelManager, shared_client: BlockingKernelClient
) -> None:
    assert shared_manager.transport == "ipc"
    seen = run(
        shared_client,
        "import os, resource; print(os.getcwd(), resource.getrlimit(resource.RLIMIT_NOFILE)[0], 'HOME' in os.environ)",
    )
    directory, descriptors, _ = seen.split()
    assert directory.startswith("/tmp/transform-")
    assert directory.endswith("/work")
    assert descriptors == "256"
    assert shared_client.hb_channel.is_beating()


def test_connection_file_is_not_for_others(shared_manager: KernelManager, shared_client: BlockingKernelClient) -> None:
    assert stat.S_IMODE(Path(shared_manager.connection_file).stat().st_mode) == 0o640


def test_output_of_c_code_and_children_reaches_the_front_end(shared_client: BlockingKernelClient) -> None:
    printed = run(
        shared_client,
        "import os, subprocess, time; os.write(1, b'raw\\n'); subprocess.run(['echo', 'child']); time.sleep(0.3)",
    )
    assert sorted(printed.split()) == ["child", "raw"]


def test_restart_keeps_the_place_and_forgets_the_rest(manager: KernelManager, client: BlockingKernelClient) -> None:
    before = run(client, "import os; x = 1; open('kept', 'w').close(); print(os.getcwd(), os.getpid())").split()
    ports = manager.get_connection_info()
    manager.restart_kernel(now=True)
    client.wait_for_ready(timeout=RUN_SECONDS)
    assert manager.get_connection_info() == ports
    after = run(client, "import os; print(os.getcwd(), 'x' in globals(), os.listdir())").split(maxsplit=2)
    assert after == [before[0], "False", "['kept']\n"]


def test_end_of_a_kernel_is_seen_and_waited_for(manager: KernelManager, client: BlockingKernelClient) -> None:
    assert manager.is_alive()
    pid = manager.provisioner.pid
    client.execute("import os; os._exit(3)")
    assert wait_until(lambda: not manager.is_alive())
    assert asyncio.run(manager.provisioner.poll()) == 3
    assert asyncio.run(manager.provisioner.wait()) == 3
    assert asyncio.run(manager.provisioner.wait()) == 3
    assert not manager.provisioner.has_process
    assert not is_alive(pid)


def test_end_of_a_kernel_is_seen_where_a_thousand_files_are_open(manager: KernelManager) -> None:
    with open_files(1100), started(manager) as client:
        assert manager.is_alive()
        client.execute("import os; os._exit(3)")
        assert asyncio.run(manager.provisioner.wait()) == 3


def test_polite_shutdown_and_interrupt_work(manager: KernelManager, client: BlockingKernelClient) -> None:
    client.execute("print('go', flush=True)\nwhile True: pass")
    while client.get_iopub_msg(timeout=RUN_SECONDS)["msg_type"] != "stream":
        pass
    manager.interrupt_kernel()
    assert client.get_shell_msg(timeout=RUN_SECONDS)["content"]["ename"] == "KeyboardInterrupt"
    manager.shutdown_kernel()
    assert not manager.is_alive()


def test_kernel_is_not_taken_over_by_another_front_end(shared_manager: KernelManager) -> None:
    """It ends with its own front end, and no other one could end it, or see that it has ended."""
    other = TransformProvisioner()
    asyncio.run(other.load_provisioner_info(asyncio.run(shared_manager.provisioner.get_provisioner_info())))
    assert not other.has_process
    assert asyncio.run(other.poll()) is not None


def test_limits_of_notebooks_are_settings(manager: KernelManager) -> None:
    manager.config.TransformProvisioner.memory_bytes = 512 << 20
    manager.config.TransformProvisioner.descriptors = 128
    with started(manager) as client:
        limits = "import resource as r; print(r.getrlimit(r.RLIMIT_DATA)[0], r.getrlimit(r.RLIMIT_NOFILE)[0])"
        assert run(client, limits).split() == [str(512 << 20), "128"]


@pytest.mark.parametrize(
    ("traits", "error"),
    [
        ({"companion": ["/no/such/command"]}, FileNotFoundError),
        ({"debugger": True, "allow_network": True}, LauncherError),
    ],
    ids=["companion", "kernel"],
)
def test_start_that_fails_leaves_no_process(
    manager: KernelManager, traits: dict[str, Any], error: type[Exception]
) -> None:
    manager.config.TransformProvisioner.update(traits)
    before = set(psutil.Process().children())
    with pytest.raises(error):
        manager.start_kernel()
    assert not manager.has_kernel
    assert {child for child in psutil.Process().children() if is_alive(child.pid)} <= before


def test_limit_of_the_environment_that_is_no_number_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFORM_KERNEL_MEMORY_BYTES", "2G")
    with pytest.raises(ValueError, match="TRANSFORM_KERNEL_MEMORY_BYTES='2G': expected a number of bytes or a size"):
        notebook_limit("memory_bytes")
    monkeypatch.setenv("TRANSFORM_KERNEL_MEMORY_BYTES", "2GiB")
    assert notebook_limit("memory_bytes") == 2 << 30
    monkeypatch.setenv("TRANSFORM_KERNEL_CPU_SECONDS", "5m")
    assert notebook_limit("cpu_seconds") == 300
    monkeypatch.setenv("TRANSFORM_KERNEL_MEMORY_BYTES", "")
    assert notebook_limit("memory_bytes") == 1 << 30


def test_front_end_killed_leaves_no_kernel() -> None:
    code = """
import sys
from tests.kernel_spec.test_provisioner import *
from jupyter_client.provisioning.factory import KernelProvisionerFactory
name = "transform-provisioner"
entry = EntryPoint(name, "kernel_spec.provisioner:TransformProvisioner", "x")
KernelProvisionerFactory.instance().provisioners[name] = entry
manager = KernelManager(kernel_name="transform")
manager._kernel_spec = KernelSpec.from_resource_dir(str(RESOURCE_DIR))
manager.start_kernel()
print(manager.provisioner.pid, manager.provisioner.workspace.workspace_dir, flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as front:
        assert front.stdout is not None
        said, workspace_dir = front.stdout.readline().split()
        pid = int(said)
        assert is_alive(pid)
        front.kill()
    assert wait_until(lambda: not is_alive(pid))
    assert wait_until(lambda: not Path(workspace_dir).parents[1].exists())


def test_gateway_passes_its_own_launcher(desk: Desk) -> None:
    async def use() -> tuple[list[str], str]:
        context = zmq.asyncio.Context(desk.context)
        manager = AsyncKernelManager(kernel_name="transform", context=context)
        manager._kernel_spec = KernelSpec.from_resource_dir(str(RESOURCE_DIR))
        null = os.open(os.devnull, os.O_RDWR)
        await manager.start_kernel(kernel_id="k", launcher=desk.launcher, output_fds=(null, null, null))
        os.close(null)
        client = manager.client(context=context)
        client.start_channels(hb=False)
        welcome = await client.get_iopub_msg(timeout=RUN_SECONDS)
        while welcome["msg_type"] == "status":  # the kernel's own "starting" may overtake it
            welcome = await client.get_iopub_msg(timeout=RUN_SECONDS)
        reply = await client.execute("1 + 1", reply=True, timeout=RUN_SECONDS)
        client.stop_channels()
        alive = await manager.is_alive()
        workspace_dir = manager.provisioner.workspace.workspace_dir
        await manager.shutdown_kernel(now=True)
        return [welcome["msg_type"], reply["content"]["status"], str(alive)], workspace_dir

    told, workspace_dir = desk.do(use())
    assert told == ["iopub_welcome", "ok", "True"]
    assert not Path(workspace_dir).exists()
    assert desk.status()["kernels"] == {}


@pytest.fixture
def connection_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tempfile.TemporaryDirectory(prefix="tc-", dir="/tmp")
    path = Path(directory.name) / "kernel.json"
    ports = {f"{name}_port": 40 + number for name, number in CHANNELS.items()}
    fields = {
        "transport": "ipc",
        "ip": f"{directory.name}/s",
        "key": secrets.token_hex(8),
        "signature_scheme": "hmac-sha256",
    }
    path.write_text(json.dumps({**fields, **ports}))
    path.chmod(0o600)
    yield path
    directory.cleanup()


def test_command_of_kernel_json_starts_a_kernel(connection_file: Path) -> None:
    argv = json.loads((RESOURCE_DIR / "kernel.json").read_text())["argv"]
    command = [sys.executable, *argv[1:-1], str(connection_file)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    client = BlockingKernelClient(connection_file=str(connection_file))
    try:
        client.load_connection_file()
        # A client that has only its heartbeat to go by takes a kernel that is not there yet for dead.
        assert wait_until((connection_file.parent / "s-45").exists, RUN_SECONDS)
        client.start_channels()
        client.wait_for_ready(timeout=RUN_SECONDS)
        assert run(client, "print(6 * 7)") == "42\n"
        # stop_on_error would drop the next request with this one
        client.execute("print('go', flush=True)\nwhile True: pass", stop_on_error=False)
        while client.get_iopub_msg(timeout=RUN_SECONDS)["msg_type"] != "stream":
            pass
        process.send_signal(signal.SIGINT)
        assert client.get_shell_msg(timeout=RUN_SECONDS)["content"]["ename"] == "KeyboardInterrupt"
        client.execute("import os; os._exit(7)")
        assert process.wait(RUN_SECONDS) == 7
        assert [entry.name for entry in connection_file.parent.iterdir()] == ["kernel.json"]
    finally:
        client.stop_channels()
        client.context.destroy(linger=0)
        process.kill()
        process.wait()


def test_command_that_is_started_again_loses_no_output(connection_file: Path) -> None:
    """A front end without kernel provisioners restarts a kernel by this command, and its clients stay connected."""
    client = BlockingKernelClient(connection_file=str(connection_file))
    process = None
    try:
        client.load_connection_file()
        client.start_channels(hb=False)
        for number in range(6):
            process = subprocess.Popen(
                [sys.executable, "-m", "kernel_spec.wrapper", "-f", str(connection_file)], stderr=subprocess.DEVNULL
            )
            assert run(client, f"print({number})") == f"{number}\n"
            client.shutdown(restart=True)
            process.wait(RUN_SECONDS)
    finally:
        client.stop_channels()
        client.context.destroy(linger=0)
        if process is not None:
            process.kill()
            process.wait()


def test_command_serves_a_front_end_that_speaks_tcp_only(connection_file: Path) -> None:
    """As VS Code does: ports of its choice, and the command of kernel.json."""
    fields = json.loads(connection_file.read_text())
    fields |= {f"{name}_port": free_port() for name in CHANNELS}
    connection_file.write_text(json.dumps(fields | {"transport": "tcp", "ip": "127.0.0.1"}))
    process = subprocess.Popen(
        [sys.executable, "-m", "kernel_spec.wrapper", "-f", str(connection_file)],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TRANSFORM_KERNEL_DESCRIPTORS": "100"},
    )
    client = BlockingKernelClient(connection_file=str(connection_file))
    try:
        client.load_connection_file()
        # a client that has its heartbeat to go by takes a kernel that starts for a dead one
        client.start_channels(hb=False)
        client.wait_for_ready(timeout=RUN_SECONDS)
        assert len(run(client, "print('x' * 9_000_000)")) == 9_000_001
        assert "Address family not supported" in run(
            client, "import socket\ntry: socket.socket()\nexcept OSError as error: print(error)"
        )
        assert run(client, "import resource; print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])") == "100\n"
        client.execute("import os; os._exit(7)")
        assert process.wait(RUN_SECONDS) == 7
    finally:
        client.stop_channels()
        client.context.destroy(linger=0)
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"transport": "tcp", "ip": "0.0.0.0"}, "listens on a loopback address only"),
        ({"transport": "udp", "ip": "127.0.0.1"}, "not 'udp'"),
    ],
)
def test_command_refuses_with_the_reason(connection_file: Path, fields: dict[str, str], reason: str) -> None:
    given = json.loads(connection_file.read_text())
    connection_file.write_text(json.dumps({**given, **fields}))
    ended = subprocess.run(
        [sys.executable, "-m", "kernel_spec.wrapper", "-f", str(connection_file)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 2
    assert reason in ended.stderr


def test_installed_kernelspec_is_complete(tmp_path: Path) -> None:
    installed = Path(install(prefix=str(tmp_path)))
    spec = KernelSpecManager(kernel_dirs=[str(installed.parent)]).get_kernel_spec("transform")
    assert spec.display_name == "Transform (sandboxed)"
    assert spec.metadata["kernel_provisioner"]["provisioner_name"] == "transform-provisioner"
    for size in (32, 64):
        image = (installed / f"logo-{size}x{size}.png").read_bytes()
        assert image[:8] == b"\x89PNG\r\n\x1a\n"
        assert int.from_bytes(image[16:20], "big") == size
    assert "<svg" in (installed / "logo-svg.svg").read_text()
