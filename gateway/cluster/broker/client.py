"""The client of the NATS library, with another answer to an error of the server and to a connection that is lost."""

from __future__ import annotations

from nats.aio.client import Client
from nats.aio.transport import TcpTransport
from nats.errors import Error as NatsError
from nats.protocol.parser import PERMISSIONS_ERR


class ReconnectingClient(Client):
    """Connects again after every error of a server.

    nats-py closes for ever after any error but a stale connection or a refused subject, whatever
    ``max_reconnect_attempts`` is. A server sends such errors to all members at once: when its users, its limits or its
    certificates are wrong for a moment, or when a credentials file expires before it is replaced.
    """

    async def _process_err(self, err_msg: str) -> None:
        if PERMISSIONS_ERR in err_msg:  # of one subject
            await super()._process_err(err_msg)
            return
        error = NatsError(f"nats: {err_msg.strip()}")
        await self._error_cb(error)
        await self._process_op_err(error)

    async def _attempt_reconnect(self) -> None:
        """Drop the lost connection before the next one.

        nats-py closes it in order: it waits 30 s until a server that is gone confirms the end of TLS, and for what was
        not sent as long as the kernel tries to send it.
        """
        if isinstance(self._transport, TcpTransport) and self._transport._io_writer is not None:
            self._transport._io_writer.transport.abort()
        await super()._attempt_reconnect()
