"""The connection to the NATS servers, its preparation and the queue of jobs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.errors import APIError, NoStreamResponseError, NotFoundError

from gateway.cluster.broker import streams, subjects
from gateway.cluster.broker.client import ReconnectingClient
from gateway.cluster.broker.messages import Messages
from gateway.cluster.broker.records import FULL_CODE, REPLY_SECONDS, Bucket, Failures, NoReply, said_by
from gateway.core.errors import BrokerMissing

log = logging.getLogger(__name__)

#: Largest message. The default limit of a NATS server is 1 MiB with headers.
MESSAGE_CAP_BYTES = 1_000_000

#: Largest headers of a message; for the server they are a part of it.
HEADERS_BYTES = 1000

#: Longest wait for the first connection.
CONNECT_SECONDS = 10.0

#: Interval of the client's pings. The third one that is not answered ends the connection: a server whose machine or
#: network is lost is noticed within a lease.
PING_SECONDS = 2

#: Pause before streams and buckets are made again.
PREPARE_SECONDS = 1.0

#: Interval at which an error of the same kind is logged while the broker is down; the client tries several times a
#: second.
WARN_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Taking:
    """An assignment that this host fetched.

    Attributes
    ----------
    execution_id : str
    data : bytes
    message : Msg
        For `Broker.settle`.
    """

    execution_id: str
    data: bytes
    message: Msg

    @property
    def deliveries(self) -> int:
        """Number of deliveries to hosts, including this one, as the broker counts them; it may be wrong."""
        return int(self.message.metadata.num_delivered)


class Broker(Messages):
    """One connection to the NATS servers of a cluster; made by `connect`.

    Attributes
    ----------
    leases, claims, owners, members : Bucket
        A host has only the first.
    on_prepared : callable or None
        Called when streams and buckets were made again: the broker may have lost its data.
    """

    def __init__(self, client: Client, *, makes_streams: bool = True) -> None:
        super().__init__(client)
        self._makes_streams = makes_streams
        self._is_prepared = False
        self._told_full_at = float("-inf")
        self._js = client.jetstream(timeout=REPLY_SECONDS)
        self._jobs: JetStreamContext.PullSubscription | None = None
        self._asking: asyncio.Timeout | None = None
        self.leases: Bucket
        self.claims: Bucket
        self.owners: Bucket
        self.members: Bucket
        self._preparing: asyncio.Task[None] | None = None
        self.on_prepared: Callable[[], Awaitable[None]] | None = None

    @classmethod
    async def connect(
        cls, url: str, name: str, *, role: str = "member", credentials: str = "", tls: ssl.SSLContext | None = None
    ) -> Broker:
        """Return a connection, with the streams and buckets that the role needs; a host waits until a member made them.

        Parameters
        ----------
        url : str
            One or more servers, separated by commas.
        name : str
            Name of the member, for the broker's own lists.
        role : str
            ``member``, ``acceptor`` or ``host``, as in ``deploy/nats/rights.conf``.
        credentials : str
            Path of a credentials file, if there is one.
        tls : ssl.SSLContext, optional
            For ``tls://``.

        Raises
        ------
        BrokerMissing
            No server can be reached, it has no JetStream, or it refuses a right that the role needs.
        """
        servers = [each.strip() for each in url.split(",")]
        problems: list[Exception] = []
        warned_at: dict[type, float] = {}
        broker: Broker | None = None

        async def take_error(error: Exception) -> None:
            if not problems or not isinstance(error, ConnectionError):  # after a refused certificate, it is just lost
                problems[:] = [error]
            now = time.monotonic()
            if now - warned_at.get(type(error), -WARN_SECONDS) >= WARN_SECONDS:
                warned_at[type(error)] = now
                log.warning("broker: %s", said_by(error))

        async def take_reconnection() -> None:
            warned_at.clear()
            log.info("broker: connected again")
            if broker is not None:
                broker._prepare_again(is_reconnected=True)

        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                client = ReconnectingClient()
                await client.connect(
                    servers,
                    name=name,
                    connect_timeout=5,
                    reconnect_time_wait=0.2,  # type: ignore[arg-type]  # it only sleeps so long
                    max_reconnect_attempts=-1,
                    ping_interval=PING_SECONDS,
                    inbox_prefix=f"_INBOX.{role}",
                    error_cb=take_error,
                    reconnected_cb=take_reconnection,
                    user_credentials=credentials or None,
                    tls=tls,
                )
                broker = cls(client, makes_streams=role != "host")
                await broker._prepare_first(problems)
        except (*Failures, ValueError) as error:
            hosts = ", ".join(each.rpartition("@")[2] for each in servers)
            reason = problems[0] if problems else error
            text = f"CLUSTER_URL: no broker at {hosts} can be used: {said_by(reason)}"
            raise BrokerMissing(text) from None
        return broker

    async def _prepare_first(self, problems: list[Exception]) -> None:
        """Prepare; repeat after a lost reply, and while a host finds no streams; record the reason in `problems`."""
        while True:
            try:
                await self._prepare()
                return
            except nats.errors.TimeoutError as error:
                problems[:] = problems or [error]  # a refusal says more
            except NotFoundError:
                if self._makes_streams:
                    raise
                problems[:] = [BrokerMissing("it has no streams yet, and a host makes none: start a member")]
            await asyncio.sleep(PREPARE_SECONDS)

    async def _prepare(self) -> None:
        try:
            if self._client.max_payload < (least := MESSAGE_CAP_BYTES + HEADERS_BYTES):
                raise NatsError(f"its max_payload is {self._client.max_payload}, and a cluster needs {least} at least")
            await self._prepare_streams()
        except Exception:
            self._is_prepared = False
            raise
        self._is_prepared = True

    async def _prepare_streams(self) -> None:
        if not self._makes_streams:
            await self._js.stream_info(subjects.JOBS_STREAM)
            self.leases = Bucket(await self._js.key_value(subjects.LEASES_BUCKET), self._failed)
            return
        await streams.make_stream(self._js)
        self.leases = await self._bucket(subjects.LEASES_BUCKET, streams.RECORD_KEEP_SECONDS)
        self.claims = await self._bucket(subjects.CLAIMS_BUCKET, streams.CLAIM_SECONDS)
        self.owners = await self._bucket(subjects.OWNERS_BUCKET, streams.OWNER_KEEP_SECONDS)
        self.members = await self._bucket(subjects.MEMBERS_BUCKET, None)

    async def _bucket(self, name: str, keep_seconds: float | None) -> Bucket:
        return await streams.make_bucket(self._js, name, keep_seconds, self._failed)

    def _failed(self, error: Exception) -> None:
        """Process the failure of a write: the streams may be gone, or there may be no room for more."""
        if isinstance(error, NoStreamResponseError):
            self._prepare_again()
        elif isinstance(error, APIError) and error.err_code == FULL_CODE:
            now = time.monotonic()
            if now - self._told_full_at >= WARN_SECONDS:
                self._told_full_at = now
                log.error("the broker takes no jobs and no leases: %s", said_by(error))

    def _prepare_again(self, *, is_reconnected: bool = False) -> None:
        """Make streams and buckets again if they are gone: the broker may have lost its data."""
        if self._preparing is not None and not self._preparing.done():
            if not is_reconnected:
                return
            self._preparing.cancel()  # it may have found them at a server that has ended since
        self._preparing = asyncio.create_task(self._prepare_until_done(), name="broker prepares")

    async def _prepare_until_done(self) -> None:
        while True:
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    await self._prepare()
                    await self._leave_queue()
                    if self.on_prepared is not None:
                        await self.on_prepared()
                return
            except (*Failures, NoReply) as error:
                log.info("the broker is not ready yet: %s", said_by(error))
            except Exception:  # of the job store, for instance
                log.exception("the records of this member could not be written to the broker; trying again")
            await asyncio.sleep(PREPARE_SECONDS)

    async def _leave_queue(self) -> None:
        """Make `next_job` subscribe again: its request, or its consumer too, is gone with the server that had it."""
        if self._asking is not None and not self._asking.expired():
            self._asking.reschedule(0.0)  # its answer would not come
        jobs, self._jobs = self._jobs, None
        if jobs is not None:
            with contextlib.suppress(*Failures):
                await jobs.unsubscribe()

    @property
    def is_connected(self) -> bool:
        """Whether a server is connected at this moment that has the streams and buckets."""
        return self._client.is_connected and self._is_prepared

    async def publish_job(self, execution_id: str, number: str, data: bytes) -> None:
        """Put an assignment into the queue; a number of a job that is repeated within two minutes is ignored.

        Raises
        ------
        NoReply
        """
        headers = {"Nats-Msg-Id": f"{execution_id}.{number}"}
        try:
            async with asyncio.timeout(REPLY_SECONDS):
                await self._js.publish(subjects.job(execution_id), data, headers=headers)
        except Failures as error:
            self._failed(error)
            raise NoReply(said_by(error)) from None

    async def next_job(self, wait_seconds: float) -> Taking | None:
        """Return the oldest assignment that no host has, or None after a time; `settle` must follow.

        Raises
        ------
        NoReply
        """
        try:
            async with asyncio.timeout(wait_seconds + REPLY_SECONDS) as self._asking:
                if self._jobs is None:
                    self._jobs = await streams.enter_queue(self._js)
                message = (await self._jobs.fetch(1, timeout=wait_seconds))[0]
                return Taking(message.subject.rpartition(".")[2], message.data, message)
        except (TimeoutError, nats.errors.TimeoutError):
            return None
        except Failures as error:
            self._asking = None  # it has ended
            await self._leave_queue()
            raise NoReply(said_by(error)) from None
        finally:
            self._asking = None

    async def keep(self, taking: Taking) -> None:
        """Have the broker give an assignment to no other host until this is cancelled."""
        while True:
            await asyncio.sleep(streams.ACK_WAIT_SECONDS / 4)
            with contextlib.suppress(*Failures):
                async with asyncio.timeout(REPLY_SECONDS):
                    await taking.message.in_progress()

    async def settle(self, taking: Taking, *, is_taken: bool = True, again_after_seconds: float | None = None) -> None:
        """Remove an assignment from the queue, or return it. Without a confirmation the broker delivers it again."""
        with contextlib.suppress(*Failures):
            async with asyncio.timeout(REPLY_SECONDS):
                await (taking.message.ack() if is_taken else taking.message.nak(again_after_seconds))

    async def aclose(self) -> None:
        """Close the connection."""
        for task in (*self._answering, *filter(None, [self._preparing])):
            task.cancel()
        # AttributeError: nats-py writes what is pending to a TLS transport of asyncio that is closed
        with contextlib.suppress(*Failures, AttributeError):
            async with asyncio.timeout(REPLY_SECONDS):
                await self._client.close()
