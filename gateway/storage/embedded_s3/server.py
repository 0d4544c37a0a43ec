"""A real S3 server for installations without one: rclone as a managed child process.

It is one process (``rclone serve s3``) with one port; its objects are files below the state directory. It ends with the
gateway, however that ends. When it ends by itself it is restarted, with growing pauses; log and status show this.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import socket
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateway.core.addresses import local_url
from gateway.core.errors import ConfigurationError, NotReady
from gateway.storage.embedded_s3.bucket import S3Bucket
from gateway.storage.embedded_s3.lifetime import OutliveTheDrain
from gateway.storage.embedded_s3.rclone import (
    executable,
    rclone_path,
    remove_unfinished,
    server_arguments,
    server_environment,
)
from gateway.storage.embedded_s3.sigv4 import Signer
from gateway.storage.objects.errors import StorageError

log = logging.getLogger(__name__)

#: Longest time for a start, which takes a tenth of a second.
START_SECONDS = 20.0

POLL_SECONDS = 0.02

#: Longest wait for the port: the server of a gateway that was killed ends after it, and the next one may start before.
PORT_SECONDS = 3.0

#: The server ends at once, or waits ten seconds for running uploads, whose callers are gone. The next start removes
#: their partial files.
STOP_SECONDS = 1.0

#: Pauses before a restart; the last one is repeated. They begin again after a server that ran longer.
RESTART_DELAYS_SECONDS = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)

SWEEPS_PER_LIFETIME = 10


@dataclass(frozen=True, slots=True)
class EmbeddedS3Options:
    """The server's configuration.

    Attributes
    ----------
    data_dir : Path
        Created if needed; must be writable for the gateway's user. One server owns it at a time.
    host : str
        Address to listen on; an empty host and ``0.0.0.0`` are all IPv4 addresses, ``::`` those of IPv6 as well.
        Presigned URLs must name the host as callers reach it.
    port : int
        Port to listen on.
    expire_seconds : float
        Age at which objects are removed; 0 keeps them forever.
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
    """Starts, watches and stops the server.

    Parameters
    ----------
    options : EmbeddedS3Options
        The configuration.
    on_failure : callable, optional
        Called with a sentence when the server ends unexpectedly.
    """

    def __init__(self, options: EmbeddedS3Options, on_failure: Callable[[str], None] | None = None) -> None:
        self.options = options
        self.failure: str | None = None
        self.restarts = 0
        self._on_failure = on_failure
        self._process: asyncio.subprocess.Process | None = None
        self._tail: deque[str] = deque(maxlen=20)
        self._log_task: asyncio.Task[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False
        self._objects = options.data_dir / "objects"
        self.endpoint = local_url(options.host, options.port)
        signer = Signer(self.endpoint, options.access_key, options.secret_key, options.region)
        self.bucket = S3Bucket(signer, options.bucket)

    @property
    def healthy(self) -> bool:
        """Whether the server runs."""
        return self.failure is None and self._process is not None and self._process.returncode is None

    def status(self) -> dict[str, Any]:
        """Return the part of ``/status`` about the server; it has no keys."""
        state = {
            "healthy": self.healthy,
            "endpoint": self.endpoint,
            "bucket": self.options.bucket,
            "restarts": self.restarts,
        }
        return state | ({"failure": self.failure} if self.failure else {})

    async def start(self) -> None:
        """Start the server and return when objects can be written and read.

        Raises
        ------
        ConfigurationError
            The binary is missing, the keys cannot be used, the port is in use, or the directory cannot be used.
        NotReady
            The server did not start. No process is left running.
        """
        try:
            await self._start_process()
        except BaseException:
            await self.stop()
            raise
        self._tasks.append(asyncio.create_task(self._watch(), name="watch embedded S3"))
        if self.options.expire_seconds > 0:
            self._tasks.append(asyncio.create_task(self._expire(), name="expire objects of embedded S3"))
        log.info("embedded S3 at %s, bucket %s", self.endpoint, self.options.bucket)

    async def stop(self) -> None:
        """Stop the server; stopping again is harmless."""
        self._stopping = True
        tasks, self._tasks = self._tasks, []
        for task in tasks:  # or the expiry logs that the server is gone, and the watch starts another
            task.cancel()
        # a start in progress has its process by now, or never gets one
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._end_process()
        await self.bucket.aclose()

    async def _start_process(self) -> None:
        options = self.options
        binary = rclone_path()
        environment = server_environment(options.data_dir, options.access_key, options.secret_key)
        await self._check_port()
        await asyncio.to_thread(self._prepare_directory)
        await self._spawn(binary, environment)
        await self._wait_until_ready()

    async def _end_process(self) -> None:
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGINT)
            try:
                async with asyncio.timeout(STOP_SECONDS):
                    await process.wait()
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if self._log_task is not None:
            self._log_task.cancel()
            await asyncio.wait({self._log_task})

    async def _check_port(self) -> None:
        """Check the port before the server does, whose error text names no setting."""
        options = self.options
        try:
            family, *_, address = (
                await asyncio.get_running_loop().getaddrinfo(
                    options.host or None, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
                )
            )[0]
            deadline = time.monotonic() + PORT_SECONDS
            while True:
                try:
                    return _bind(family, address)
                except OSError as error:
                    if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                        raise
                await asyncio.sleep(POLL_SECONDS)
        except OSError as error:
            raise ConfigurationError(
                f"the embedded S3 server cannot listen on {options.host}:{options.port}: {error.strerror}; "
                "set another port with INTERNAL_S3_PORT (--internal-s3-port)"
            ) from None

    def _prepare_directory(self) -> None:
        try:
            for directory in (self.options.data_dir, self._objects):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            # without permission to write, the server would start and answer 500 to uploads
            tempfile.TemporaryFile(dir=self._objects).close()
            remove_unfinished(self._objects)
        except OSError as error:
            raise ConfigurationError(
                f"the embedded S3 server cannot use {self.options.data_dir}: {error.strerror}"
            ) from None

    async def _spawn(self, binary: str, environment: dict[str, str]) -> None:
        options = self.options
        with contextlib.ExitStack() as stack:
            # in a thread: kernels start at the same time, and decompressing takes a third of a second
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
                preexec_fn=OutliveTheDrain(),
            )
        self._log_task = asyncio.create_task(self._read_log(), name="log of embedded S3")

    async def _read_log(self) -> None:
        """Keep the end of the server's log, for the case that it fails."""
        stderr = self._process.stderr if self._process is not None else None
        while stderr is not None and (line := await _line(stderr)):
            self._tail.append(line.decode(errors="replace").rstrip())

    async def _wait_until_ready(self) -> None:
        """Put an object until it works, which needs the port, the keys, the bucket and permission to write."""
        deadline, last = time.monotonic() + START_SECONDS, "no answer"
        while time.monotonic() < deadline:
            if self._process is None or self._process.returncode is not None:
                raise NotReady(f"the embedded S3 server ended during its start:\n{await self._log_end()}")
            try:
                await self.bucket.make()
                await self.bucket.put("ready", b"1")
            except StorageError as error:
                last = str(error)
            else:
                return
            await asyncio.sleep(POLL_SECONDS)
        raise NotReady(
            f"the embedded S3 server was not ready in {START_SECONDS:.0f} s: {last}\n{await self._log_end()}"
        )

    async def _watch(self) -> None:
        """Restart the server whenever it has ended by itself."""
        attempt = 0
        while self._process is not None:
            began = time.monotonic()
            code = await self._process.wait()
            if self._stopping:
                return
            self.failure = f"the embedded S3 server ended unexpectedly ({_ending(code)})"
            log.critical("%s; the end of its log:\n%s", self.failure, await self._log_end())
            if self._on_failure is not None:
                self._on_failure(self.failure)
            attempt = 0 if time.monotonic() - began > RESTART_DELAYS_SECONDS[-1] else attempt
            attempt = await self._restart(attempt)

    async def _restart(self, attempt: int) -> int:
        """Return the number of the next attempt when the server runs again."""
        while True:
            await asyncio.sleep(RESTART_DELAYS_SECONDS[min(attempt, len(RESTART_DELAYS_SECONDS) - 1)])
            attempt += 1
            try:
                await self._start_process()
            except (ConfigurationError, OSError) as error:  # OSError: no process or descriptor is left for now
                self.failure = f"the embedded S3 server ended and could not be started again: {error}"
                log.error("%s", self.failure)
                await self._end_process()  # one that is not ready must not keep the port
                continue
            self.restarts += 1
            self.failure = None
            log.info("embedded S3 at %s runs again", self.endpoint)
            return attempt

    async def _expire(self) -> None:
        """Remove old objects at intervals: Metabase removes its own after a run, but not after a crash."""
        while True:
            try:
                await asyncio.to_thread(remove_unfinished, self._objects, self.options.expire_seconds)
                removed = await self.bucket.remove_older_than(self.options.expire_seconds)
                if removed:
                    log.info("embedded S3: %d objects expired", removed)
            except StorageError as error:
                log.warning("embedded S3: objects could not be expired: %s", error)
            await asyncio.sleep(self.options.expire_seconds / SWEEPS_PER_LIFETIME)

    async def _log_end(self) -> str:
        """Return the end of the server's log, with what is still in the pipe when it has just ended."""
        if self._process is not None and self._process.returncode is not None and self._log_task is not None:
            await asyncio.wait({self._log_task}, timeout=1.0)
        return "\n".join(self._tail)


def _bind(family: int, address: Any) -> None:
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)


async def _line(stream: asyncio.StreamReader) -> bytes:
    try:
        return await stream.readline()
    except ValueError:  # the line is longer than the buffer, and dropped
        return b"...\n"


def _ending(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
