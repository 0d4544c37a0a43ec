"""Messages with descriptors over a SOCK_SEQPACKET socket between two of our processes.

One packet is one message: ``{"kind": <class name>, ...fields}`` in UTF-8, sent with descriptors (SCM_RIGHTS, unix(7)).
A packet that is cut off, is not such an object, or brings too many descriptors is refused, and its descriptors are
closed: a faulty peer must not make the privileged side leak descriptors.
"""

from __future__ import annotations

import array
import functools
import json
import operator
import os
import socket
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from kernel_spec.protocol.messages import Message

#: Below the default send buffer (wmem_default, 208 KiB), so that a packet never fails with EMSGSIZE.
LARGEST_PACKET_BYTES = 96 * 1024
MOST_DESCRIPTORS = 8

#: As numbers: combining the enumerations of `socket` takes microseconds, each time.
_CUT_OFF = int(socket.MSG_TRUNC | socket.MSG_CTRUNC)
_RIGHTS_BYTES = socket.CMSG_LEN(MOST_DESCRIPTORS * array.array("i").itemsize)


class ChannelError(ValueError):
    """A packet was refused; the channel itself still works.

    Attributes
    ----------
    request_id : int
        The ``id`` in the packet, so that its sender gets an answer; 0 without a readable one.
    """

    def __init__(self, message: str, request_id: int = 0) -> None:
        super().__init__(message)
        self.request_id = request_id


class ChannelClosed(ConnectionError):
    """The peer has closed its end."""


class Channel:
    """One end of a socket pair; it owns the socket.

    Parameters
    ----------
    endpoint : socket.socket
        A connected SOCK_SEQPACKET socket.
    accepts : tuple of type
        The message classes that may arrive here.
    """

    def __init__(self, endpoint: socket.socket, accepts: tuple[type[Message], ...]) -> None:
        self._socket = endpoint
        self._accepts = accepts

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

    def send(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        """Send one message.

        Parameters
        ----------
        message : Message
            A message that the peer accepts.
        descriptors : sequence of int
            The peer gets duplicates; the caller's copies stay open.

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
        """Return the next message.

        Returns
        -------
        message : Message
            Of one of the accepted classes.
        descriptors : list of int
            The descriptors that came with it; the caller owns them.

        Raises
        ------
        ChannelClosed
            End of file: the peer closed its end or died.
        ChannelError
            The packet was refused; its descriptors are closed.
        BlockingIOError
            The socket does not block and there is no packet.
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
    """Close descriptors that came with a message and are not needed."""
    for descriptor in descriptors:
        os.close(descriptor)


def encode(message: Message) -> bytes:
    """Return the packet of a message.

    JSON has no strings with lone surrogates, which stand for bytes of a file name that are not UTF-8 (PEP 383). Such a
    name may come from a job and be part of an error text, so it must not stop the launcher: each becomes a ``?``.

    Parameters
    ----------
    message : Message
        The message to send.

    Returns
    -------
    bytes
        JSON in UTF-8.
    """
    try:
        return _encoder.encode(message)
    except UnicodeEncodeError:
        return json.dumps(msgspec.to_builtins(message), ensure_ascii=False).encode("utf-8", "replace")


def decode(data: bytes, accepts: tuple[type[Message], ...]) -> Any:
    """Return the message in a packet.

    Parameters
    ----------
    data : bytes
        One packet.
    accepts : tuple of type
        The message classes that are accepted.

    Returns
    -------
    Message
        An instance of one of the classes.

    Raises
    ------
    ChannelError
        The packet is not UTF-8, not JSON, not an object, of another kind, or has a field that does not fit.
    """
    try:
        return _decoder(accepts).decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ChannelError(f"a packet was refused: {error}", _request_id(data)) from None


@functools.cache
def _decoder(accepts: tuple[type[Message], ...]) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(functools.reduce(operator.or_, accepts))


class _Head(msgspec.Struct):
    id: int = 0


_encoder = msgspec.json.Encoder()
_head_decoder = msgspec.json.Decoder(_Head)


def _request_id(data: bytes) -> int:
    try:
        return _head_decoder.decode(data).id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return 0


def _descriptors(rights: list[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in rights:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return list(found)
