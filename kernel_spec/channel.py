"""Messages with descriptors over a SOCK_SEQPACKET socket between two of our processes.

One packet is one message: ``{"kind": <class name>, ...fields}`` in UTF-8, with descriptors beside it (SCM_RIGHTS,
unix(7)). A packet that is cut off, is not such an object, or brings descriptors that nobody asked for is refused, and
what it brought is closed: a peer that errs must not cost the privileged side a descriptor.
"""

from __future__ import annotations

import array
import json
import os
import socket
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from kernel_spec.codec import CodecError, from_json, to_json

M = TypeVar("M")

# Below the default send buffer (wmem_default, 208 KiB), so that a packet never fails with EMSGSIZE.
LARGEST_PACKET_BYTES = 96 * 1024
MOST_DESCRIPTORS = 8

# As numbers: the enumerations of `socket` take microseconds to be combined, each time.
_CUT_OFF = int(socket.MSG_TRUNC | socket.MSG_CTRUNC)
_RIGHTS_BYTES = socket.CMSG_LEN(MOST_DESCRIPTORS * array.array("i").itemsize)
_to_text = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class ChannelError(ValueError):
    """A packet was refused; the channel itself is still in order."""


class ChannelClosed(ConnectionError):
    """The peer is gone."""


class Channel:
    """One end of a socket pair; it owns the socket.

    Parameters
    ----------
    endpoint
        A connected SOCK_SEQPACKET socket.
    accepts
        The message classes that may arrive here.
    """

    def __init__(self, endpoint: socket.socket, accepts: Iterable[type]) -> None:
        self._socket = endpoint
        self._accepts = {cls.__name__: cls for cls in accepts}

    def fileno(self) -> int:
        """Return the descriptor, for use with a selector."""
        return self._socket.fileno()

    def set_blocking(self, blocking: bool) -> None:
        """Make `send` and `receive` wait, or raise BlockingIOError instead."""
        self._socket.setblocking(blocking)

    def set_timeout(self, seconds: float | None) -> None:
        """Make `send` and `receive` raise TimeoutError after `seconds`."""
        self._socket.settimeout(seconds)

    def close(self) -> None:
        """Close the socket; the peer reads end of file."""
        self._socket.close()

    def detach(self) -> int:
        """Return the descriptor and give up its ownership."""
        return self._socket.detach()

    def send(self, message: object, descriptors: Sequence[int] = ()) -> None:
        """Send one message; the descriptors are duplicated into the peer and stay open here.

        Raises
        ------
        ChannelClosed
            The peer is gone.
        ChannelError
            The message is larger than a packet may be.
        BlockingIOError
            The socket does not block and the peer does not read.
        """
        data = encode(message)
        if len(data) > LARGEST_PACKET_BYTES:
            raise ChannelError(f"{type(message).__name__} of {len(data)} bytes does not fit in a packet")
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        try:
            self._socket.sendmsg([data], rights, socket.MSG_NOSIGNAL)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise ChannelClosed(str(error)) from None

    def receive(self) -> tuple[Any, list[int]]:
        """Return the next message and the descriptors that came with it, which the caller owns.

        Raises
        ------
        ChannelClosed
            End of file: the peer closed its end or died.
        ChannelError
            The packet was refused; its descriptors are closed.
        BlockingIOError
            The socket does not block and nothing is there.
        """
        try:
            data, rights, flags, _ = self._socket.recvmsg(LARGEST_PACKET_BYTES, _RIGHTS_BYTES, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError as error:
            raise ChannelClosed(str(error)) from None
        descriptors = _descriptors(rights)
        if not data and not descriptors:
            raise ChannelClosed("end of file")
        try:
            if flags & _CUT_OFF:
                raise ChannelError("a packet was larger than a message may be")
            return decode(data, self._accepts), descriptors
        except ChannelError:
            close_all(descriptors)
            raise


def pair() -> tuple[socket.socket, socket.socket]:
    """Return the two ends of a new SOCK_SEQPACKET socket pair."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def close_all(descriptors: Iterable[int]) -> None:
    """Close descriptors that came with a message and are not wanted."""
    for descriptor in descriptors:
        os.close(descriptor)


def encode(message: object) -> bytes:
    """Return the packet of a message."""
    fields = {"kind": type(message).__name__, **to_json(message)}
    return _to_text(fields).encode("utf-8", "surrogatepass")


def decode(data: bytes, accepts: dict[str, type[M]]) -> M:
    """Return the message in a packet.

    Raises
    ------
    ChannelError
        Not UTF-8, not JSON, not an object, of a kind that is not accepted here, or with a field that does not fit.
    """
    try:
        fields = json.loads(data.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError) as error:
        raise ChannelError(f"a packet is not JSON: {type(error).__name__}") from None
    if not isinstance(fields, dict):
        raise ChannelError("a packet is not a JSON object")
    kind = fields.pop("kind", None)
    cls = accepts.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise ChannelError(f"a message of kind {str(kind)[:50]!r} is not accepted here")
    try:
        return from_json(cls, fields)
    except CodecError as error:
        raise ChannelError(str(error)) from None


def _descriptors(rights: list[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in rights:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return list(found)
