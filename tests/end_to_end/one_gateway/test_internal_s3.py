"""With ENABLE_INTERNAL_S3 a transform goes from S3 to S3 with nothing but the gateway running."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import boto3
import pytest
from botocore.config import Config

from tests.support.gateway_process import GatewayProcess, command_of, descendants
from tests.support.ports import free_port

BUCKET = "metabase-python-runner"


@pytest.fixture
def port() -> int:
    return free_port()


def test_a_transform_goes_from_s3_to_s3_and_its_server_ends_with_the_gateway(
    start_gateway: Callable[..., GatewayProcess], port: int
) -> None:
    gateway = start_gateway(ENABLE_INTERNAL_S3="true", INTERNAL_S3_PORT=str(port))
    s3 = boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        aws_access_key_id="test",
        aws_secret_access_key="test",
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}, signature_version="s3v4"),
    )

    def url(operation: str, key: str) -> str:
        return str(s3.generate_presigned_url(operation, Params={"Bucket": BUCKET, "Key": key}))

    s3.put_object(Bucket=BUCKET, Key="n.jsonl", Body=b'{"n":1}\n{"n":2}\n')
    answer = gateway.execute(
        "def transform(n):\n    return n[n.n > 1]",
        table_mapping={"n": url("get_object", "n.jsonl")},
        output_url=url("put_object", "out.jsonl"),
        output_manifest_url=url("put_object", "manifest.json"),
        events_url=url("put_object", "events.jsonl"),
    )
    assert answer.status == 200, answer.raw
    assert s3.get_object(Bucket=BUCKET, Key="out.jsonl")["Body"].read() == b'{"n":2}\n'
    assert b"Successfully saved 1 rows to S3" in s3.get_object(Bucket=BUCKET, Key="events.jsonl")["Body"].read()
    assert gateway.request("GET", "/v1/status").body["internal_s3"]["healthy"] is True
    s3.close()

    [server] = [pid for pid in descendants(gateway.pid) if b"rclone" in command_of(pid)]
    end = os.pidfd_open(server)
    assert gateway.stop(signal.SIGTERM) == 0
    os.close(end)
    assert not Path(f"/proc/{server}").exists()
