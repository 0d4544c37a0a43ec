"""The kernel provisioner ``transform-provisioner``: every front end of Jupyter gets the same sandboxed kernel.

A provisioner belongs to the environment, not to the application (jupyter_client, "Kernel provisioning"). So the
gateway, ``jupyter console --kernel transform``, ``jupyter run`` and nbclient all come here:

- *with* ``start_kernel(launcher=<LauncherClient>, ...)``, as the gateway does, kernels come from that launcher: warm,
  one seat each, ended and removed by whoever passed it;
- *without*, this starts a launcher of its own, without a fork server and with one seat in a temporary directory. Both
  go when the front end goes, however it ends, because the launcher watches its socket.

The stand-alone side blocks, with deadlines, instead of awaiting: front ends call us from event loops that live for one
call (``asyncio.run``), so nothing may stay registered in one.

Each kernel speaks ipc below its seat, whatever transport the front end asked for: the sandbox has no network.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning.provisioner_base import KernelProvisionerBase
from traitlets import Bool, Integer, List, Unicode, default

from kernel_spec.companion import DEFAULT_COMMAND, Companion
from kernel_spec.kernels import process_start_ticks
from kernel_spec.launcher_client import LOST, KernelProcess, LauncherClient
from kernel_spec.launcher_process import LauncherError
from kernel_spec.limits import NOTEBOOK_CPU_SECONDS, Limits, notebook_limit
from kernel_spec.messages import ExitReport, SeatInfo, Start
from kernel_spec.standalone import CHANNELS, StandaloneLauncher, write_connection_file


class TransformProvisioner(KernelProvisionerBase):
    """Starts kernels in the sandbox of transform jobs."""

    memory_bytes = Integer(
        notebook_limit("MEMORY_BYTES", 1 << 30),
        config=True,
        help="Memory of the kernel and all it starts, in bytes (TRANSFORM_KERNEL_MEMORY_BYTES).",
    )
    cpu_seconds = Integer(
        notebook_limit("CPU_SECONDS", NOTEBOOK_CPU_SECONDS),
        config=True,
        help="""Processor time of the kernel over its whole life, in seconds (TRANSFORM_KERNEL_CPU_SECONDS).
        A year unless said otherwise, which is to say none: the gateway limits each job, a notebook stays open.""",
    )
    processes = Integer(
        notebook_limit("PROCESSES", 50),
        config=True,
        help="Processes and threads of the kernel and all it starts (TRANSFORM_KERNEL_PROCESSES).",
    )
    descriptors = Integer(
        notebook_limit("DESCRIPTORS", 256),
        config=True,
        help="Open descriptors of one process (TRANSFORM_KERNEL_DESCRIPTORS).",
    )
    file_size_bytes = Integer(
        notebook_limit("FILE_SIZE_BYTES", 500_000_000),
        config=True,
        help="Size of one file that the kernel writes, in bytes (TRANSFORM_KERNEL_FILE_SIZE_BYTES).",
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
        help="""Absolute paths that the kernel may read beside its own directory, for instance where the data of a
        notebook is (TRANSFORM_KERNEL_READ_ONLY_PATHS, separated by colons).""",
    )

    companion = List(
        Unicode(),
        default_value=list(DEFAULT_COMMAND),
        config=True,
        help="""Command of the process outside of the sandbox that fetches tables for a notebook and runs its transforms
        through a gateway, with the rights of whoever starts the notebook; empty for none.""",
    )

    _client: LauncherClient | None = None
    _companion: Companion | None = None
    _standalone: StandaloneLauncher | None = None
    _seat: SeatInfo | None = None
    _start_ticks = 0
    _report: ExitReport | None = None
    process: KernelProcess | None = None
    pid: int | None = None

    @default("read_only_paths")
    def _read_only_paths_from_environment(self) -> list[str]:
        return [path for path in os.environ.get("TRANSFORM_KERNEL_READ_ONLY_PATHS", "").split(":") if path]

    @property
    def has_process(self) -> bool:
        """Whether a kernel was launched and its end has not been waited for."""
        return self.pid is not None

    @property
    def seat(self) -> SeatInfo | None:
        """Where the kernel lives."""
        return self._seat

    # ------------------------------------------------------------------ launching
    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Take a seat, and write the connection file into it; called before each launch, restarts included."""
        self._client = kwargs.get("launcher", self._client)
        manager = self.parent
        if manager is None:
            raise RuntimeError("the transform provisioner needs a kernel manager, which knows the session's key")
        if self._seat is None:
            self._seat = await self._reserve()
        manager.transport = "ipc"
        manager.ip = f"{self._seat.ipc_dir}/k"
        for name, number in CHANNELS.items():
            setattr(manager, f"{name}_port", number)
        self.connection_info = manager.get_connection_info()
        manager.connection_file = str(write_connection_file(self._seat, dict(self.connection_info)))
        # For the record: the launcher builds the command, the environment and the working directory by itself.
        extra = kwargs.pop("extra_arguments", [])
        return await super().pre_launch(cmd=manager.format_kernel_cmd(extra_arguments=extra), **kwargs)

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Start the kernel; return when clients can connect.

        Parameters
        ----------
        cmd
            Not used: the launcher knows how kernels are started.
        **kwargs
            ``launcher`` (LauncherClient): start through this one. ``limits`` (Limits): instead of what the traits say.
            ``allow_network`` and ``plain`` (bool). ``output_fds``: standard output, standard error and log pipe of
            a job's kernel; without, it is a notebook's kernel, which forwards its own output, and ``stdout`` and
            ``stderr`` may name files as for `subprocess.Popen`.
        """
        self._report = None
        limits = kwargs.get("limits") or self._limits()
        allow_network = bool(kwargs.get("allow_network", self.allow_network))
        if self._client is not None:
            await self._launch_with_client(self._client, limits, allow_network, kwargs)
        else:
            await self._launch_standalone(limits, allow_network, kwargs)
        self._start_ticks = _start_ticks_or_zero(self.pid)
        return self.connection_info

    async def _reserve(self) -> SeatInfo:
        if self._client is not None:
            return await self._client.reserve(self.kernel_id)
        self._standalone = StandaloneLauncher(
            tuple(self.read_only_paths), allow_network=self.allow_network, allow_loopback=self.allow_loopback
        )
        return self._standalone.reserve(self.kernel_id)

    async def _launch_with_client(
        self, client: LauncherClient, limits: Limits, allow_network: bool, kwargs: dict[str, Any]
    ) -> None:
        with _outputs(kwargs) as (style, descriptors):
            self.process = await client.start_kernel(
                self.kernel_id,
                output_fds=descriptors,
                limits=limits,
                style=style,
                allow_network=allow_network,
                plain=bool(kwargs.get("plain", False)),
            )
        self.pid = self.process.pid

    async def _launch_standalone(self, limits: Limits, allow_network: bool, kwargs: dict[str, Any]) -> None:
        if self._standalone is None or self._seat is None:
            raise RuntimeError("pre_launch has not been called")
        with _outputs(kwargs) as (style, descriptors):
            await self._end_companion()
            if style == "notebook" and self.companion:
                environment = kwargs.get("env") or os.environ
                self._companion = Companion(self.companion, self._seat, kwargs.get("cwd"), environment)
                descriptors = (*descriptors, self._companion.kernel_end)
            request = Start(
                id=self._standalone.next_id(),
                kernel_id=self.kernel_id,
                limits=limits,
                style=style,
                allow_network=allow_network,
                has_log=len(descriptors) > 2,
            )
            self.pid = self._standalone.start(request, descriptors)
            if self._companion is not None:
                self._companion.hand_over()

    def _limits(self) -> Limits:
        return Limits(
            memory_bytes=self.memory_bytes,
            cpu_seconds=self.cpu_seconds,
            processes=self.processes,
            descriptors=self.descriptors,
            file_size_bytes=self.file_size_bytes,
        )

    # ------------------------------------------------------------------ watching and ending
    async def poll(self) -> int | None:
        """Return None while the kernel runs, else its return code; never blocks for long."""
        if self.pid is None:
            return 0 if self._report is None else self._report.return_code
        if self.process is not None:
            exited = self.process.exited
            return exited.result().return_code if exited.done() else None
        if self._standalone is None or not _is_readable(self._standalone.pidfd):
            return None
        return self._end_standalone().return_code

    async def wait(self) -> int | None:
        """Wait for the kernel to end, and return its return code; safe to call twice."""
        if self.pid is None:
            return 0 if self._report is None else self._report.return_code
        if self.process is not None:
            self._report = await asyncio.shield(self.process.exited)
        elif self._standalone is not None:
            await _readable(self._standalone.pidfd)
            self._end_standalone()
        self.pid = None
        return None if self._report is None else self._report.return_code

    async def send_signal(self, signum: int) -> None:
        """Send a signal to the kernel's process group; a kernel that has ended is no error."""
        if self.pid is None:
            return
        if self._client is not None:
            await self._client.signal(self.kernel_id, signum)
        elif self._standalone is not None:
            self._standalone.signal(self.kernel_id, signum)

    async def kill(self, restart: bool = False) -> None:
        """End everything that the kernel started; returns when nothing of it lives."""
        if self._client is not None and self._seat is not None:
            self._report = await self._client.kill(self.kernel_id)
        elif self._standalone is not None:
            self._end_standalone()

    async def terminate(self, restart: bool = False) -> None:
        """Ask the kernel's process group to end."""
        await self.send_signal(signal.SIGTERM)

    async def cleanup(self, restart: bool = False) -> None:
        """End what is left; unless it restarts, remove the seat and a launcher of our own."""
        try:
            await self.kill(restart)
        except LauncherError as error:
            self.log.debug("kernel %s: %s", self.kernel_id, error)
        self.pid = None
        await self._end_companion()
        if restart:
            # The next launch uses the same seat: clients keep the socket paths that they know.
            return
        try:
            await self._give_back_seat()
        finally:
            self._seat = None
            self.process = None
            standalone, self._standalone = self._standalone, None
            if standalone is not None:
                standalone.close()

    async def _give_back_seat(self) -> None:
        if self._client is None or self._seat is None:
            return
        try:
            await self._client.remove(self.kernel_id)
        except LauncherError as error:
            # A launcher that is gone has taken the seat with it, or left it to the sweep of the next one.
            if error.code not in ("launcher_lost", "no_kernel"):
                raise

    async def _end_companion(self) -> None:
        companion, self._companion = self._companion, None
        if companion is None:
            return
        try:
            await asyncio.to_thread(companion.close)
        except RuntimeError:
            # `jupyter run` cleans up while its interpreter ends, when no thread can be had any more
            companion.close()

    def _end_standalone(self) -> ExitReport:
        if self._standalone is None:
            return LOST
        try:
            self._report = self._standalone.kill(self.kernel_id)
        except LauncherError as error:
            self.log.warning("kernel %s: %s", self.kernel_id, error)
            self._report = self._report or LOST
        return self._report

    # ------------------------------------------------------------------ crash recovery
    async def get_provisioner_info(self) -> dict[str, Any]:
        """Return what identifies the kernel; a pid alone does not, it may be another process's by then."""
        info: dict[str, Any] = await super().get_provisioner_info()
        seat_dir = self._seat.seat_dir if self._seat is not None else None
        return {**info, "pid": self.pid, "start_ticks": self._start_ticks, "seat_dir": seat_dir}

    async def load_provisioner_info(self, provisioner_info: dict[str, Any]) -> None:
        """Take up a kernel that still runs under its old start time; else there is no process.

        A kernel ends with the launcher that started it, so this finds one only while its first owner lives.
        """
        await super().load_provisioner_info(provisioner_info)
        pid, ticks = provisioner_info.get("pid"), provisioner_info.get("start_ticks", 0)
        try:
            is_same = isinstance(pid, int) and process_start_ticks(pid) == ticks
        except OSError:
            is_same = False
        self.pid, self._start_ticks = (pid, ticks) if is_same else (None, 0)


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


def _start_ticks_or_zero(pid: int | None) -> int:
    try:
        return process_start_ticks(pid or 0)
    except OSError:
        # It has ended already; poll() will tell.
        return 0


def _is_readable(descriptor: int) -> bool:
    # An ended kernel whose end was already taken note of has no pidfd any more.
    return descriptor < 0 or bool(select.select([descriptor], [], [], 0)[0])


async def _readable(descriptor: int) -> None:
    """Return when the descriptor is readable, in whatever loop runs now."""
    if _is_readable(descriptor):
        return
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()

    def ended() -> None:
        if not future.done():
            future.set_result(None)

    loop.add_reader(descriptor, ended)
    try:
        await future
    finally:
        loop.remove_reader(descriptor)
