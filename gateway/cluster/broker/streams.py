"""The data at the broker: the stream of jobs, its consumer and the buckets of records."""

from __future__ import annotations

from collections.abc import Callable

from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig, KeyValueConfig, RetentionPolicy, StreamConfig
from nats.js.errors import APIError, NotFoundError

from gateway.cluster.broker import subjects
from gateway.cluster.broker.records import Bucket

#: Time for a host that fetched a job to take its lease or to say that it goes on (`Broker.keep`); then the broker gives
#: the message to another host. So long a job waits whose message went to a connection that had just ended.
ACK_WAIT_SECONDS = 2.0

#: How long the broker keeps a lease record that nobody changes.
RECORD_KEEP_SECONDS = 86_400.0

#: How long a claim on a request id outlives the member that made it.
CLAIM_SECONDS = 60.0

#: How long the newest job of a caller's id is found at another member: longer than any job and ten minutes after it.
OWNER_KEEP_SECONDS = 172_800.0

#: How long a job that no host took stays in the stream.
JOB_KEEP_SECONDS = 86_400.0


async def make_stream(js: JetStreamContext) -> None:
    """Make the stream of jobs, or accept one that exists."""
    stream = StreamConfig(
        name=subjects.JOBS_STREAM,
        subjects=[subjects.ALL_JOBS],
        retention=RetentionPolicy.WORK_QUEUE,
        max_age=JOB_KEEP_SECONDS,
        duplicate_window=120,
    )
    try:
        await js.add_stream(stream)
    except APIError as error:
        if error.err_code != 10058:  # it exists, with other options
            raise


async def make_bucket(
    js: JetStreamContext, name: str, keep_seconds: float | None, on_failure: Callable[[Exception], None]
) -> Bucket:
    """Return a bucket, which is made if there is none."""
    try:
        return Bucket(await js.key_value(name), on_failure)
    except NotFoundError:
        # two members may start at the same moment: the second finds it as it would make it
        config = KeyValueConfig(bucket=name, history=1, ttl=keep_seconds)
        return Bucket(await js.create_key_value(config), on_failure)


async def enter_queue(js: JetStreamContext) -> JetStreamContext.PullSubscription:
    """Return a subscription of the queue; its consumer is made, or changed if another version made it."""
    config = ConsumerConfig(
        name=subjects.JOBS_CONSUMER,
        durable_name=subjects.JOBS_CONSUMER,
        filter_subject=subjects.ALL_JOBS,
        ack_wait=ACK_WAIT_SECONDS,
        max_deliver=-1,
        max_ack_pending=10_000,
    )
    # `pull_subscribe` would take a consumer that exists as it is
    await js.add_consumer(subjects.JOBS_STREAM, config)
    return await js.pull_subscribe_bind(durable=subjects.JOBS_CONSUMER, stream=subjects.JOBS_STREAM)
