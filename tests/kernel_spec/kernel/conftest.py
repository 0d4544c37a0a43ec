"""Kernels as a front end of Jupyter starts them: by their name, through the provisioner."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Any

import pytest
from jupyter_client import BlockingKernelClient, KernelManager
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.provisioning.factory import KernelProvisionerFactory

from kernel_spec.install import RESOURCE_DIR
from tests.support.gateway_process import GatewayProcess

ANSWER_SECONDS = 60
PROVISIONER = "transform-provisioner"


@dataclass
class FrontEnd:
    """A kernel manager and a client of its kernel."""

    manager: KernelManager
    client: BlockingKernelClient

    def run(self, code: str, **options: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Execute a cell; return its reply and its messages on iopub, from busy to idle."""
        return self.answer(self.client.execute(code, allow_stdin=False, **options))

    def answer(self, message_id: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Return the reply to a request and its messages on iopub."""
        messages = []
        while not messages or messages[-1]["content"].get("execution_state") != "idle":
            message = self.client.get_iopub_msg(timeout=ANSWER_SECONDS)
            if message["parent_header"].get("msg_id") == message_id:
                messages.append(message)
        while True:
            reply = self.client.get_shell_msg(timeout=ANSWER_SECONDS)
            if reply["parent_header"]["msg_id"] == message_id:
                return reply["content"], messages

    def printed(self, code: str) -> str:
        """Execute a cell and return what it prints."""
        reply, messages = self.run(code)
        assert reply["status"] == "ok", reply
        return text_of(messages)

    def wait_until_received(self) -> None:
        """Return when the kernel's process has received the requests that were sent before.

        A request that arrives after an interrupt runs. One on the control channel overtakes none, since one thread of
        libzmq sends and one receives all messages.
        """
        request = self.client.session.msg("kernel_info_request")
        self.client.control_channel.send(request)
        while self.client.get_control_msg(timeout=ANSWER_SECONDS)["parent_header"]["msg_id"] != request["msg_id"]:
            pass

    def wait_for_output(self) -> None:
        """Return when the running cell has printed something."""
        while self.client.get_iopub_msg(timeout=ANSWER_SECONDS)["msg_type"] != "stream":
            pass


def text_of(messages: list[dict[str, Any]]) -> str:
    return "".join(message["content"]["text"] for message in messages if message["msg_type"] == "stream")


@contextmanager
def open_front_end(gateway: str | None = "", spec_dir: str = str(RESOURCE_DIR), **traits: Any) -> Iterator[FrontEnd]:
    """Start a kernel, through the gateway of a state directory if one is named, and leave nothing of it.

    `traits` are those of the provisioner.
    """
    # as an installed distribution registers it
    entry = EntryPoint(PROVISIONER, "kernel_spec.provisioner:TransformProvisioner", KernelProvisionerFactory.GROUP_NAME)
    KernelProvisionerFactory.instance().provisioners[PROVISIONER] = entry
    manager = KernelManager(kernel_name="transform")
    manager._kernel_spec = KernelSpec.from_resource_dir(spec_dir)
    manager.config.TransformProvisioner.update({"gateway": gateway, **traits})
    try:
        manager.start_kernel()
        client = manager.client()
        client.start_channels()
        client.wait_for_ready(timeout=ANSWER_SECONDS)
        yield FrontEnd(manager, client)
        client.stop_channels()
    finally:
        if manager.has_kernel:
            manager.shutdown_kernel(now=True)
        manager.cleanup_resources()
        manager.context.destroy(linger=0)


@pytest.fixture(scope="module", params=["own launcher", "gateway"])
def gateway(request: pytest.FixtureRequest) -> str:
    """Run each test with both kinds of launchers; the state directory of the gateway, or nothing."""
    if request.param == "own launcher":
        return ""
    running: GatewayProcess = request.getfixturevalue("running_gateway")
    return str(running.state_dir / "s")


@pytest.fixture(scope="module")
def front_end(gateway: str) -> Iterator[FrontEnd]:
    """A kernel that the tests of a module share; each leaves it idle."""
    with open_front_end(gateway) as opened:
        yield opened


@pytest.fixture
def new_front_end(gateway: str) -> Iterator[Callable[[], FrontEnd]]:
    """Start kernels that no other test has."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(open_front_end(gateway))
