"""A real S3 server beside the gateway, for people who have none: SeaweedFS as a managed child process.

It is one process (``weed server``) with its data below the state directory; only its S3 port listens beyond loopback,
and only if asked to. It dies with the gateway, whatever ends that, and when it dies alone this is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateway.errors import ConfigurationError
from gateway.storage.bucket import Bucket
from gateway.storage.sigv4 import Signer
from gateway.storage.target import ExchangeError
from gateway.storage.transfer import Refused
from gateway.storage.weed import (
    DieWithParent,
    executable,
    remember,
    remove_sockets,
    server_arguments,
    sweep,
    weed_path,
)

log = logging.getLogger(__name__)

START_SECONDS = 60.0
STOP_SECONDS = 1.0
"""It takes twenty seconds to leave its cluster of one in order; nothing in its files, which only grow, needs that."""

ATTEMPTS = 3
SWEEPS_PER_LIFETIME = 10


@dataclass(frozen=True, slots=True)
class EmbeddedS3Options:
    """How the server is set up.

    Attributes
    ----------
    data_dir : Path
        Made when it is not there; must be writable for the user the gateway runs as.
    host, port
        Where S3 listens. Presigned URLs must name the host as callers reach it.
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
        self._arguments: list[str] = []
        here = "127.0.0.1" if options.host in ("0.0.0.0", "::", "") else options.host  # noqa: S104 - not to listen on
        self.endpoint = f"http://{here}:{options.port}"
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
            The binary is missing, the port is taken, or the server did not come up; nothing is left running then.
        """
        binary = weed_path()
        self._check_port()
        self._write_identities()
        sweep(self.options.data_dir)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                await self._spawn(binary)
                await self._wait_until_ready()
                break
            except ConfigurationError:
                await self.stop()
                # its inner ports are chosen free and then opened by it: another program may be faster
                if attempt == ATTEMPTS:
                    raise
                self._stopping = False
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
        remove_sockets(self._arguments)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _check_port(self) -> None:
        options = self.options
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((options.host, options.port))
            except OSError as error:
                raise ConfigurationError(
                    f"the embedded S3 server cannot listen on {options.host}:{options.port}: {error.strerror}; "
                    "set another port with INTERNAL_S3_PORT (--internal-s3-port)"
                ) from None

    def _write_identities(self) -> None:
        options = self.options
        identity = {
            "name": "metabase",
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
            "credentials": [{"accessKey": options.access_key, "secretKey": options.secret_key}],
        }
        try:
            (options.data_dir / "volumes").mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(self._identities_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigurationError(
                f"the embedded S3 server cannot use {options.data_dir}: {error.strerror}"
            ) from None
        with os.fdopen(fd, "w") as file:
            json.dump({"identities": [identity]}, file)

    @property
    def _identities_path(self) -> Path:
        return self.options.data_dir / "identities.json"

    async def _spawn(self, binary: str) -> None:
        directory = self.options.data_dir
        self._arguments = server_arguments(directory, self._identities_path, self.options.host, self.options.port)
        remember(directory, self._arguments)
        with contextlib.ExitStack() as stack:
            # kernels start at the same time, and unpacking takes most of a second
            program, descriptors = await asyncio.to_thread(stack.enter_context, executable(binary))
            self._process = await asyncio.create_subprocess_exec(
                "weed",
                *self._arguments,
                executable=program,
                pass_fds=descriptors,
                cwd=directory,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
                preexec_fn=DieWithParent(),
            )
        self._log_task = asyncio.create_task(self._read_log(), name="log of embedded S3")
        self._tasks.append(self._log_task)

    async def _read_log(self) -> None:
        """Keep the end of what it says, which is much: it is only wanted when it fails."""
        stderr = self._process.stderr if self._process is not None else None
        while stderr is not None and (line := await _line(stderr)):
            self._tail.append(line.decode(errors="replace").rstrip())

    async def _wait_until_ready(self) -> None:
        """Put an object until it works: the S3 port answers before there is a volume to write to."""
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
            await asyncio.sleep(0.1)
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
