"""A real S3 server beside the gateway, for people who have none: rclone as a managed child process.

It is one process (``rclone serve s3``) with one port, its objects files below the state directory. It dies with the
gateway, whatever ends that, and when it dies alone this is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateway.errors import ConfigurationError
from gateway.storage.bucket import Bucket
from gateway.storage.rclone import (
    DieWithParent,
    executable,
    rclone_path,
    remove_unfinished,
    server_arguments,
    server_environment,
)
from gateway.storage.sigv4 import Signer
from gateway.storage.target import ExchangeError
from gateway.storage.transfer import Refused

log = logging.getLogger(__name__)

START_SECONDS = 20.0
"""It takes a tenth of one."""

POLL_SECONDS = 0.02
STOP_SECONDS = 1.0
"""It ends at once, or waits ten seconds for uploads under way, which nobody will take from it; a start sweeps those."""

SWEEPS_PER_LIFETIME = 10
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}  # noqa: S104 - told apart, not listened on


@dataclass(frozen=True, slots=True)
class EmbeddedS3Options:
    """How the server is set up.

    Attributes
    ----------
    data_dir : Path
        Made when it is not there; must be writable for the user the gateway runs as. One server owns it at a time.
    host, port
        Where S3 listens; an empty host and ``0.0.0.0`` are all addresses, ``::`` those of version 6 as well. Presigned
        URLs must name the host as callers reach it.
    expire_seconds : float
        Age at which objects are removed; 0 keeps them.
    """

    data_dir: Path
    host: str = "127.0.0.1"
    port: int = 4566
    bucket: str = "metabase-python-runner"
    access_key: str = "test"
    secret_key: str = field(default="test", repr=False)
    region: str = "us-east-1"
    expire_seconds: float = 86_400.0


class EmbeddedS3:
    """Starts, watches and ends the server.

    Parameters
    ----------
    options : EmbeddedS3Options
    on_failure : callable, optional
        Called with a sentence when the server ends although nobody asked it to.
    """

    def __init__(self, options: EmbeddedS3Options, on_failure: Callable[[str], None] | None = None) -> None:
        self.options = options
        self.failure: str | None = None
        self._on_failure = on_failure
        self._process: asyncio.subprocess.Process | None = None
        self._tail: deque[str] = deque(maxlen=20)
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False
        self._objects = options.data_dir / "objects"
        here = _WILDCARDS.get(options.host, options.host)
        self.endpoint = f"http://{f'[{here}]' if ':' in here else here}:{options.port}"
        signer = Signer(self.endpoint, options.access_key, options.secret_key, options.region)
        self.bucket = Bucket(signer, options.bucket)

    @property
    def healthy(self) -> bool:
        """Whether the server runs."""
        return self.failure is None and self._process is not None and self._process.returncode is None

    def status(self) -> dict[str, Any]:
        """Return what ``/status`` shows; no key stands in it."""
        state = {"healthy": self.healthy, "endpoint": self.endpoint, "bucket": self.options.bucket}
        return state | ({"failure": self.failure} if self.failure else {})

    async def start(self) -> None:
        """Return when objects can be put and read.

        Raises
        ------
        ConfigurationError
            The binary is missing, the keys are unfit, the port is taken, the directory cannot be used, or the server
            did not come up; nothing is left running then.
        """
        options = self.options
        binary = rclone_path()
        environment = server_environment(options.data_dir, options.access_key, options.secret_key)
        await self._check_port()
        await asyncio.to_thread(self._prepare_directory)
        try:
            await self._spawn(binary, environment)
            await self._wait_until_ready()
        except BaseException:
            await self.stop()
            raise
        self._tasks.append(asyncio.create_task(self._watch(), name="watch embedded S3"))
        if self.options.expire_seconds > 0:
            self._tasks.append(asyncio.create_task(self._expire(), name="expire objects of embedded S3"))
        log.info("embedded S3 at %s, bucket %s", self.endpoint, self.options.bucket)

    async def stop(self) -> None:
        """End the server; stopping again is harmless."""
        self._stopping = True
        tasks, self._tasks = self._tasks, []
        for task in tasks:  # or expiry complains of a server that is gone
            task.cancel()
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                async with asyncio.timeout(STOP_SECONDS):
                    await process.wait()
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _check_port(self) -> None:
        """Find out before the server does, whose words for it name no setting."""
        options = self.options
        try:
            family, *_, address = (
                await asyncio.get_running_loop().getaddrinfo(
                    options.host or None, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
                )
            )[0]
            with socket.socket(family) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        except OSError as error:
            raise ConfigurationError(
                f"the embedded S3 server cannot listen on {options.host}:{options.port}: {error.strerror}; "
                "set another port with INTERNAL_S3_PORT (--internal-s3-port)"
            ) from None

    def _prepare_directory(self) -> None:
        try:
            for directory in (self.options.data_dir, self._objects):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            # the server would start without the right to write, and answer 500 to whoever puts something
            tempfile.TemporaryFile(dir=self._objects).close()
            remove_unfinished(self._objects)
        except OSError as error:
            raise ConfigurationError(
                f"the embedded S3 server cannot use {self.options.data_dir}: {error.strerror}"
            ) from None

    async def _spawn(self, binary: str, environment: dict[str, str]) -> None:
        options = self.options
        with contextlib.ExitStack() as stack:
            # kernels start at the same time, and unpacking takes a third of a second
            program, descriptors = await asyncio.to_thread(stack.enter_context, executable(binary))
            self._process = await asyncio.create_subprocess_exec(
                "rclone",
                *server_arguments(self._objects, options.host, options.port),
                executable=program,
                pass_fds=descriptors,
                cwd=options.data_dir,
                env=environment,
                umask=0o077,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
                preexec_fn=DieWithParent(),
            )
        self._log_task = asyncio.create_task(self._read_log(), name="log of embedded S3")
        self._tasks.append(self._log_task)

    async def _read_log(self) -> None:
        """Keep the end of what it says, a line for each object removed among it: it is only wanted when it fails."""
        stderr = self._process.stderr if self._process is not None else None
        while stderr is not None and (line := await _line(stderr)):
            self._tail.append(line.decode(errors="replace").rstrip())

    async def _wait_until_ready(self) -> None:
        """Put an object until it works: that takes the port, the keys, the bucket and the right to write."""
        deadline, last = time.monotonic() + START_SECONDS, "no answer"
        while time.monotonic() < deadline:
            if self._process is None or self._process.returncode is not None:
                raise ConfigurationError(f"the embedded S3 server ended while it started:\n{await self._said()}")
            try:
                await self.bucket.make()
                await self.bucket.put("ready", b"1")
            except (ExchangeError, Refused) as error:
                last = str(error)
            else:
                return
            await asyncio.sleep(POLL_SECONDS)
        raise ConfigurationError(
            f"the embedded S3 server was not ready in {START_SECONDS:.0f} s: {last}\n{await self._said()}"
        )

    async def _watch(self) -> None:
        if self._process is None:
            return
        code = await self._process.wait()
        if self._stopping:
            return
        self.failure = f"the embedded S3 server ended by itself ({_ending(code)})"
        log.critical("%s; it said last:\n%s", self.failure, await self._said())
        if self._on_failure is not None:
            self._on_failure(self.failure)

    async def _expire(self) -> None:
        """Remove old objects now and then; Metabase removes its own when a run ends, and leaves those of a crash."""
        while True:
            try:
                removed = await self.bucket.remove_older_than(self.options.expire_seconds)
                if removed:
                    log.info("embedded S3: %d objects expired", removed)
            except (ExchangeError, Refused) as error:
                log.warning("embedded S3: objects could not be expired: %s", error)
            await asyncio.sleep(self.options.expire_seconds / SWEEPS_PER_LIFETIME)

    async def _said(self) -> str:
        """Return the end of its log; of a server that has just ended, what is still in the pipe too."""
        if self._process is not None and self._process.returncode is not None:
            await asyncio.wait({self._log_task}, timeout=1.0)
        return "\n".join(self._tail)


async def _line(stream: asyncio.StreamReader) -> bytes:
    try:
        return await stream.readline()
    except ValueError:  # a line longer than the buffer, which is dropped
        return b"...\n"


def _ending(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
