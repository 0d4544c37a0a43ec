"""The kernel provisioner ``transform-provisioner``: every front end of Jupyter gets the same sandboxed kernel.

A provisioner belongs to the environment, not to the application (jupyter_client, "Kernel provisioning"). So the
gateway, ``jupyter console --kernel transform``, ``jupyter run`` and nbclient all use this one:

- *with* ``start_kernel(launcher=<LauncherClient>, ...)``, as the gateway does, kernels come from that launcher: forked,
  one workspace each, and the owner of the launcher kills and removes them;
- *without*, it takes a kernel from a running gateway of the same user, or starts a launcher of its own
  (`kernel_spec.client.front_end`). Both end with the front end, however that ends.

Without a given launcher the methods block, with deadlines, instead of awaiting: front ends call them from event loops
that live for one call (``asyncio.run``), so nothing may stay registered in a loop.

Each kernel speaks ipc below its workspace, whatever transport the front end asked for: the sandbox has no network.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning.provisioner_base import KernelProvisionerBase
from traitlets import Bool, List, Unicode, default

from kernel_spec.client.async_client import LauncherClient
from kernel_spec.client.companion import DEFAULT_COMMAND, CompanionProcess
from kernel_spec.client.connection import resolve
from kernel_spec.client.front_end import CHANNELS, FrontEndLauncher, debugger_wanted, write_connection_file
from kernel_spec.client.gateway_launcher import open_launcher
from kernel_spec.client.kernel_process import LOST, KernelProcess
from kernel_spec.client.process import KERNEL_GONE, LauncherError
from kernel_spec.protocol.limits import LIMITS, Limits, notebook_limit, notebook_variable
from kernel_spec.protocol.values import ExitReport, WorkspaceInfo
from kernel_spec.quantity_traits import trait_of_limit

__all__ = ["TransformProvisioner"]


class TransformProvisioner(KernelProvisionerBase):
    """Starts kernels in the sandbox of transform jobs."""

    # one trait for each limit of a kernel
    vars().update(
        {
            name: trait_of_limit(name)(
                notebook_limit(name), config=True, help=f"{limit.text.format('the kernel')} ({notebook_variable(name)})"
            )
            for name, limit in LIMITS.items()
        }
    )
    allow_network = Bool(
        os.environ.get("TRANSFORM_KERNEL_ALLOW_NETWORK", "") == "1",
        config=True,
        help="Let the kernel use the network; a job in production cannot (TRANSFORM_KERNEL_ALLOW_NETWORK=1).",
    )
    allow_loopback = Bool(
        os.environ.get("TRANSFORM_KERNEL_ALLOW_LOOPBACK", "") == "1",
        config=True,
        help="With the network also this machine, its link, and UDP (TRANSFORM_KERNEL_ALLOW_LOOPBACK=1).",
    )
    read_only_paths = List(
        Unicode(),
        config=True,
        help="""Absolute paths that the kernel may read besides its own directory, for instance that of a notebook's
        data (TRANSFORM_KERNEL_READ_ONLY_PATHS, separated by colons).""",
    )

    debugger = Bool(
        debugger_wanted(),
        config=True,
        help="""Serve the debugger protocol: breakpoints and the variable inspector. The kernel takes longer to start,
        and needs a host with network namespaces (TRANSFORM_KERNEL_DEBUGGER=1).""",
    )

    gateway = Unicode(
        None,
        allow_none=True,
        config=True,
        help="""State directory of a gateway on this machine, started by the same user, whose fork server makes the
        kernel; empty for none (TRANSFORM_GATEWAY). The default is the gateway of STATE_DIR, if one runs.""",
    )

    companion = List(
        Unicode(),
        default_value=list(DEFAULT_COMMAND),
        config=True,
        help="""Command of the process outside of the sandbox that fetches tables for a notebook and runs its transforms
        through a gateway, with the rights of the user who starts the notebook; empty for none.""",
    )

    _client: LauncherClient | None = None
    _companion: CompanionProcess | None = None
    _launcher: FrontEndLauncher | None = None
    _workspace: WorkspaceInfo | None = None
    _report: ExitReport | None = None
    process: KernelProcess | None = None
    pid: int | None = None

    @default("read_only_paths")
    def _read_only_paths_from_environment(self) -> list[str]:
        return [path for path in os.environ.get("TRANSFORM_KERNEL_READ_ONLY_PATHS", "").split(":") if path]

    @default("gateway")
    def _gateway_from_environment(self) -> str | None:
        return os.environ.get("TRANSFORM_GATEWAY")

    @property
    def has_process(self) -> bool:
        """Whether a kernel was launched and its end has not been waited for."""
        return self.pid is not None

    @property
    def workspace(self) -> WorkspaceInfo | None:
        """The workspace of the kernel."""
        return self._workspace

    # ------------------------------------------------------------------ launching
    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Reserve a workspace and write the connection file into it; called before each launch, restarts included."""
        self._client = kwargs.get("launcher", self._client)
        manager = self.parent
        if manager is None:
            raise RuntimeError("the transform provisioner needs a kernel manager, which has the session's key")
        async with self._clearing_up_after_failure():
            if self._launcher is not None and self._launcher.is_lost:
                # The gateway was stopped or restarted since. Its workspaces are gone, so the sockets get other paths.
                await self.cleanup()
            if self._workspace is None:
                self._workspace = await self._reserve()
            manager.transport = "ipc"
            manager.ip = f"{self._workspace.ipc_dir}/k"
            for name, number in CHANNELS.items():
                setattr(manager, f"{name}_port", number)
            self.connection_info = manager.get_connection_info()
            manager.connection_file = str(write_connection_file(self._workspace, dict(self.connection_info)))
        # The command is informative only: the launcher makes command, environment and working directory itself.
        extra = kwargs.pop("extra_arguments", [])
        return await super().pre_launch(cmd=manager.format_kernel_cmd(extra_arguments=extra), **kwargs)

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Start the kernel, and return when clients can connect.

        Parameters
        ----------
        cmd : list of str
            Not used: the launcher makes the command.
        **kwargs
            ``launcher`` (LauncherClient): start through this one. ``limits`` (Limits): instead of those of the traits.
            ``allow_network`` and ``plain`` (bool). ``output_fds`` (tuple of int): standard output, standard error and
            log pipe of a job's kernel. Without them it is a notebook's kernel, which forwards its own output, and
            ``stdout`` and ``stderr`` may name files as for `subprocess.Popen`.

        Returns
        -------
        dict
            The connection information.
        """
        self._report = None
        limits = kwargs.get("limits") or self._limits()
        if self._client is not None:
            await self._launch_with_client(self._client, limits, kwargs)
        elif self._launcher is not None and self._workspace is not None:
            async with self._clearing_up_after_failure():
                await self._launch_with_launcher(self._launcher, self._workspace, limits, kwargs)
        else:
            raise RuntimeError("pre_launch has not been called")
        return self.connection_info

    @asynccontextmanager
    async def _clearing_up_after_failure(self) -> AsyncIterator[None]:
        """Close the front end's own launcher if the block fails: jupyter_client then does not call `cleanup`."""
        try:
            yield
        except BaseException:
            if self._launcher is not None:
                await self.cleanup()
            raise

    async def _reserve(self) -> WorkspaceInfo:
        if self._client is not None:
            return await self._client.reserve(self.kernel_id)
        self._launcher, workspace = open_launcher(
            self.kernel_id,
            self.gateway,
            self.log,
            tuple(self.read_only_paths),
            allow_network=self.allow_network,
            allow_loopback=self.allow_loopback,
            debugger=self.debugger,
        )
        return workspace

    async def _launch_with_client(self, client: LauncherClient, limits: Limits, kwargs: dict[str, Any]) -> None:
        with _outputs(kwargs) as (style, descriptors):
            self.process = await client.start_kernel(
                self.kernel_id,
                output_fds=descriptors,
                limits=limits,
                style=style,
                allow_network=bool(kwargs.get("allow_network", self.allow_network)),
                plain=bool(kwargs.get("plain", False)),
            )
        self.pid = self.process.pid

    async def _launch_with_launcher(
        self, launcher: FrontEndLauncher, workspace: WorkspaceInfo, limits: Limits, kwargs: dict[str, Any]
    ) -> None:
        if launcher.pidfd >= 0:
            # A second start_kernel without a shutdown: the new kernel replaces the first. jupyter_client's own
            # provisioner leaves the first one running, where no client can reach it.
            self._end_kernel(launcher)
            self._report = None
        await self._end_companion()
        if self.companion:
            environment = kwargs.get("env") or os.environ
            self._companion = CompanionProcess(self.companion, workspace, kwargs.get("cwd"), environment, self.gateway)
        with _outputs(kwargs) as (_, outputs):
            self.pid = launcher.start(
                limits,
                (outputs[0], outputs[1]),
                self._companion,
                allow_network=self.allow_network,
                debugger=self.debugger,
            )

    def _limits(self) -> Limits:
        return Limits(**{name: getattr(self, name) for name in LIMITS})

    # ------------------------------------------------------------------ watching and ending
    async def poll(self) -> int | None:
        """Return None while the kernel runs, else its return code; never blocks for long."""
        if self.pid is None:
            return 0 if self._report is None else self._report.return_code
        if self.process is not None:
            exited = self.process.exited
            return exited.result().return_code if exited.done() else None
        if self._launcher is None or not self._launcher.is_over:
            return None
        return self._end_kernel(self._launcher).return_code

    async def wait(self) -> int | None:
        """Wait for the kernel to end, and return its return code; safe to call twice."""
        if self.pid is None:
            return 0 if self._report is None else self._report.return_code
        if self.process is not None:
            self._report = await asyncio.shield(self.process.exited)
        elif self._launcher is not None:
            await _end_of(self._launcher)
            self._end_kernel(self._launcher)
        self.pid = None
        return None if self._report is None else self._report.return_code

    async def send_signal(self, signum: int) -> None:
        """Send a signal to the kernel's process group; a kernel that has ended is no error."""
        if self.pid is None:
            return
        try:
            if self._client is not None:
                await self._client.signal(self.kernel_id, signum)
            elif self._launcher is not None:
                self._launcher.signal(signum)
        except LauncherError as error:
            if error.code not in KERNEL_GONE:
                raise

    async def kill(self, restart: bool = False) -> None:
        """Kill all processes of the kernel, and return when none lives."""
        if self._client is not None and self._workspace is not None:
            self._report = await self._client.kill(self.kernel_id)
        elif self._launcher is not None:
            self._end_kernel(self._launcher)

    async def terminate(self, restart: bool = False) -> None:
        """Ask the kernel's process group to end."""
        await self.send_signal(signal.SIGTERM)

    async def cleanup(self, restart: bool = False) -> None:
        """Kill all processes; unless the kernel restarts, release the workspace and the launcher."""
        try:
            await self.kill(restart)
        except LauncherError as error:
            self.log.debug("kernel %s: %s", self.kernel_id, error)
        self.pid = None
        await self._end_companion()
        if restart:
            # The next launch uses the same workspace, so that clients can keep the socket paths.
            return
        try:
            await self._give_back_workspace()
        finally:
            self._workspace = None
            self.process = None
            launcher, self._launcher = self._launcher, None
            if launcher is not None:
                launcher.close()

    async def _give_back_workspace(self) -> None:
        if self._client is None or self._workspace is None:
            return
        try:
            await self._client.remove(self.kernel_id)
        except LauncherError as error:
            # A launcher that is gone has removed the workspace, or the next one removes it at its start.
            if error.code not in KERNEL_GONE:
                raise

    async def _end_companion(self) -> None:
        companion, self._companion = self._companion, None
        if companion is None:
            return
        try:
            await asyncio.to_thread(companion.close)
        except RuntimeError:
            # `jupyter run` cleans up while its interpreter ends, when no thread can be started any more
            companion.close()

    def _end_kernel(self, launcher: FrontEndLauncher) -> ExitReport:
        try:
            self._report = launcher.kill()
        except LauncherError as error:
            self.log.warning("kernel %s: %s", self.kernel_id, error)
            self._report = self._report or LOST
        return self._report


@contextmanager
def _outputs(kwargs: dict[str, Any]) -> Iterator[tuple[Any, tuple[int, ...]]]:
    """Yield the kernel's style and its descriptors for standard output, standard error and log pipe."""
    given = kwargs.get("output_fds")
    if given:
        yield "job", tuple(given)
        return
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    try:
        # ipykernel forwards both to the client and echoes them here as well.
        yield "notebook", tuple(_descriptor(kwargs.get(name), null) for name in ("stdout", "stderr"))
    finally:
        os.close(null)


def _descriptor(stream: Any, otherwise: int) -> int:
    if isinstance(stream, int):
        return stream if stream >= 0 else otherwise  # subprocess.PIPE and the like are negative
    return otherwise if stream is None else int(stream.fileno())


async def _end_of(launcher: FrontEndLauncher) -> None:
    """Return when the launcher's kernel has ended."""
    if launcher.is_over:
        return
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    loop.add_reader(launcher.pidfd, resolve, ended, None)
    try:
        await ended
    finally:
        loop.remove_reader(launcher.pidfd)
