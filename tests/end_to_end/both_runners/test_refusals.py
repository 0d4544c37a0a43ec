"""The reason of a refused run reaches Metabase, which shows the exit code and the events object and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.support.gateway_process import GatewayProcess
from tests.support.s3 import BUCKET, S3Server

OK = "import pandas as pd\ndef transform():\n    return pd.DataFrame({'x': [1]})"
SLEEP = "import time\ndef transform():\n    print('begun', flush=True)\n    time.sleep(60)"


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with S3Server() as server:
        yield server


def urls(s3: S3Server, name: str) -> dict[str, str]:
    return {
        "output_url": s3.put_url(f"{name}/output"),
        "output_manifest_url": s3.put_url(f"{name}/manifest"),
        "events_url": s3.put_url(f"{name}/events"),
    }


def events(s3: S3Server, name: str) -> list[dict[str, Any]] | None:
    """Return the events object, or None if there is none."""
    try:
        text = s3.client.get_object(Bucket=BUCKET, Key=f"{name}/events")["Body"].read()
    except ClientError:
        return None
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("runtime", {"runtime": "javascript"}, ['runtime: expected "python"', 'not "javascript"']),
        ("format", {"output_format": "xlsx"}, ["output_format", 'not "xlsx"']),
        ("timeout", {"timeout": 100_000}, ["timeout", "86400"]),
    ],
)
def test_reason_of_a_bad_request_is_in_the_events_object(
    running_gateway: GatewayProcess, s3: S3Server, name: str, fields: dict[str, Any], words: list[str]
) -> None:
    answer = running_gateway.execute(OK, name, **urls(s3, name), **fields)
    assert answer.status == 400
    assert answer.body["exit_code"] == 1
    (event,) = events(s3, name) or []
    assert event["stream"] == "stderr"
    assert event["message"] == f"ERROR: {answer.body['error']}"
    assert all(word in event["message"] for word in words)


def test_full_queue_is_reported_in_the_events_object(
    start_gateway: Callable[..., GatewayProcess], s3: S3Server
) -> None:
    gateway = start_gateway(SLOTS="1", QUEUE_LENGTH="0")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(gateway.execute, SLEEP, "first", **urls(s3, "first"))
        gateway.wait_for_line("first", "begun")
        answer = gateway.execute(OK, "second", **urls(s3, "second"))
        assert (answer.status, answer.body["code"], answer.body["exit_code"]) == (503, "queue_full", 1)
        (event,) = events(s3, "second") or []
        assert event["message"] == f"ERROR: {answer.body['error']}"
        # the same id again: its events object is the log of the run that goes on
        assert gateway.execute(OK, "first", **urls(s3, "first")).body["code"] == "conflict"
        assert events(s3, "first") is None
        gateway.request("POST", "/v1/cancel", {"request_id": "first"})
        assert running.result().body["code"] == "cancelled"


def test_without_the_token_nothing_is_written(running_gateway: GatewayProcess, s3: S3Server) -> None:
    sent = {"code": OK, "request_id": "stranger", "runtime": "javascript", **urls(s3, "stranger")}
    headers = {"Authorization": "Bearer wrong"}
    assert running_gateway.request("POST", "/v1/execute", sent, headers=headers).status == 401
    assert events(s3, "stranger") is None


def test_a_host_that_is_not_one_of_storage_hosts_gets_no_reason(
    start_gateway: Callable[..., GatewayProcess], s3: S3Server
) -> None:
    """Without the setting the same request writes it."""
    for name, settings, written in (("foreign", {"STORAGE_HOSTS": "s3.example.com"}, False), ("own", {}, True)):
        answer = start_gateway(**settings).execute(OK, name, events_url=urls(s3, name)["events_url"], runtime="r")
        assert (answer.status, answer.body["exit_code"]) == (400, 1)
        assert (events(s3, name) is not None) is written


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/events", "file:///etc/passwd", "no url", 7])
def test_events_url_that_cannot_be_used_does_not_change_the_answer(running_gateway: GatewayProcess, url: Any) -> None:
    answer = running_gateway.execute(OK, "unusable", output_url="http://127.0.0.1:9/o", events_url=url, runtime="r")
    assert answer.status == 400
    assert "runtime" in answer.body["error"]
