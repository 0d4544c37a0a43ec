"""A notebook without a page: a real kernel `transform` of a real kernel manager, cell by cell."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from jupyter_client import KernelManager
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.provisioning.factory import KernelProvisionerFactory

from kernel_spec.install import RESOURCE_DIR
from tests.support.gateway_process import GatewayProcess

CELL_SECONDS = 60
INHERITED = ("PATH", "HOME", "LANG", "VIRTUAL_ENV", "PYTHONPATH", "TMPDIR")


def companion_command() -> list[str]:
    """Return the command of a companion that runs transforms on the gateway that `companion_environment` names."""
    return [sys.executable, "-P", str(Path(__file__).with_name("shared_companion.py"))]


def companion_environment(gateway: GatewayProcess) -> dict[str, str]:
    """Return the variables that `tests.support.shared_companion` reads."""
    return {"TEST_GATEWAY_URL": gateway.url, "TEST_GATEWAY_TOKEN": gateway.token}


def plain(text: str) -> str:
    """Return a text without the colours for a terminal."""
    return re.sub(r"\x1b\[[\d;]*m", "", text)


@dataclass
class Cell:
    """The outcome of one cell."""

    status: str = ""
    stdout: str = ""
    stderr: str = ""
    shown: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""

    @property
    def text(self) -> str:
        """Everything that was shown, as plain text."""
        return "\n".join(str(data.get("text/plain", "")) for data in self.shown)


class NotebookKernel:
    """Starts a kernel in `directory` with the environment of a front end, and ends it with all it started.

    `settings` are traits of the provisioner. `gateway` makes the kernel and runs the transforms; without it a launcher of
    the kernel's own and a gateway that the companion starts do, which takes 3 s more of processor time.
    """

    def __init__(
        self,
        directory: Path,
        environment: Mapping[str, str] | None = None,
        settings: Mapping[str, Any] | None = None,
        gateway: GatewayProcess | None = None,
    ) -> None:
        self.directory = directory
        self.settings = dict(settings or {})
        self.environment = {name: os.environ[name] for name in INHERITED if name in os.environ} | {
            **(environment or {})
        }
        if gateway is not None:
            self.settings |= {"companion": companion_command(), "gateway": str(gateway.state_dir / "s")}
            self.environment |= companion_environment(gateway)

    def __enter__(self) -> Self:
        # as an installed distribution does
        name = "transform-provisioner"
        entry = EntryPoint(name, "kernel_spec.provisioner:TransformProvisioner", KernelProvisionerFactory.GROUP_NAME)
        KernelProvisionerFactory.instance().provisioners[name] = entry
        self.manager = KernelManager(kernel_name="transform")
        self.manager._kernel_spec = KernelSpec.from_resource_dir(str(RESOURCE_DIR))
        self.manager.config.TransformProvisioner.update(self.settings)
        try:
            self.manager.start_kernel(cwd=str(self.directory), env=self.environment)
            self.client = self.manager.client()
            self.client.start_channels()
            self.client.wait_for_ready(timeout=CELL_SECONDS)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if hasattr(self, "client"):
            self.client.stop_channels()
        if self.manager.has_kernel:
            self.manager.shutdown_kernel(now=True)
        self.manager.cleanup_resources()
        self.manager.context.destroy(linger=0)

    @property
    def companion_pid(self) -> int:
        return int(self.manager.provisioner._companion.pid)

    def run(self, code: str, answers: tuple[str, ...] = ()) -> Cell:
        """Run a cell; `answers` are typed where it asks."""
        cell, waiting = Cell(), list(answers)

        def keep(message: dict[str, Any]) -> None:
            content = message["content"]
            match message["msg_type"]:
                case "stream":
                    setattr(cell, content["name"], getattr(cell, content["name"]) + plain(content["text"]))
                case "display_data" | "execute_result":
                    cell.shown.append(content["data"])
                case "error":
                    cell.error = plain("\n".join(content["traceback"]))

        reply = self.client.execute_interactive(
            code,
            allow_stdin=bool(answers),
            output_hook=keep,
            stdin_hook=lambda _: self.client.input(waiting.pop(0)),
            timeout=CELL_SECONDS,
        )
        cell.status = reply["content"]["status"]
        return cell

    def value(self, expression: str) -> str:
        """Return the repr of an expression."""
        cell = self.run(expression)
        assert cell.status == "ok", cell
        return cell.text

    def complete(self, code: str) -> list[str]:
        """Return what Tab offers at the end of `code`."""
        reply = self.client.complete(code, len(code), reply=True, timeout=CELL_SECONDS)
        matches: list[str] = reply["content"]["matches"]
        return matches

    def help(self, code: str) -> str:
        """Return the help text that `code` opens in a pager."""
        reply = self.client.execute_interactive(code, output_hook=lambda _: None, timeout=CELL_SECONDS)
        return plain("\n".join(payload["data"]["text/plain"] for payload in reply["content"]["payload"]))
