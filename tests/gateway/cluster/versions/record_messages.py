"""Print one message of each kind, as members of this version send it.

``python -m tests.gateway.cluster.versions.record_messages > tests/gateway/cluster/versions/recorded_messages.jsonl``, in a checkout of the
commit that `test_neighbours` names.
"""

from __future__ import annotations

import asyncio
import base64
import json
from contextlib import ExitStack
from typing import Any

import nats

from gateway.cluster.broker import Broker, Bucket
from gateway.cluster.owners import key_of, tag_of
from gateway.cluster.wire import EventsWanted, PartWanted, encode
from tests.gateway.cluster.members import OUTPUT, SLOW, cluster_of, in_background, members, urls
from tests.support.nats_server import NatsServer
from tests.support.s3 import S3Server

REQUEST_ID = "recorded"


async def record() -> dict[str, dict[str, Any]]:
    """Return messages by their type; of each type the longest one, which has most members set."""
    found: dict[str, bytes] = {}

    def keep(data: bytes) -> None:
        message = json.loads(data) if data.startswith(b'{"type":') else {"type": ""}
        kind = message["type"]
        if kind.endswith(".stream_msg_get_response") and "message" in message:  # a record that a member read
            keep(base64.b64decode(message["message"]["data"]))
        elif kind and not kind.startswith("io.nats") and len(data) > len(found.get(kind, b"")):
            found[kind] = data

    async def take(message: Any) -> None:
        keep(message.data)

    with ExitStack() as stack:
        server, storage = stack.enter_context(NatsServer()), stack.enter_context(S3Server())
        client = await nats.connect(server.url, inbox_prefix="_INBOX.member")
        broker = await Broker.connect(server.url, "recorder")
        for subject in ("tg.v1.>", "_INBOX.>"):
            await client.subscribe(subject, cb=take)

        async def read(bucket: Bucket, key: str) -> None:
            stored = await bucket.get(key)
            if stored is not None:
                keep(stored.data)

        def run_jobs() -> list[str]:
            one, two = members(stack, server)
            one.execute(f"print('a line')\n{OUTPUT}", "done", **urls(storage, storage.new_prefix()))
            thread, _ = in_background(one, SLOW.format(seconds=50), REQUEST_ID, **urls(storage, storage.new_prefix()))
            two.wait_for_line(REQUEST_ID, "running")
            (job,) = one.request("GET", "/v1/jobs?state=running").body["jobs"]
            records = (
                read(broker.leases, job["job_id"]),
                read(broker.claims, key_of(REQUEST_ID, None)),
                read(broker.members, tag_of(cluster_of(one)["member"])),
            )
            asyncio.run_coroutine_threadsafe(_all(*records), loop).result(60)
            two.request("POST", "/v1/cancel", {"request_id": REQUEST_ID})
            thread.join(60)
            return [job["job_id"]]

        loop = asyncio.get_running_loop()
        (job_id,) = await asyncio.to_thread(run_jobs)
        for message in (EventsWanted(job_id, 1, 2), PartWanted(job_id, 1)):  # sent after a loss, and for long answers
            keep(encode(message))
        await client.close()
        await broker.aclose()
    return {kind: json.loads(data) for kind, data in sorted(found.items())}


async def _all(*work: Any) -> None:
    await asyncio.gather(*work)


if __name__ == "__main__":
    for each in asyncio.run(record()).values():
        print(json.dumps(each))
