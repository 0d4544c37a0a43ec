"""The stream of one member has the jobs of all."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from queue import Queue
from typing import Any

import pytest

from tests.gateway.cluster.members import OUTPUT, SLOW, cluster_of, in_background, members, urls
from tests.support.gateway_process import GatewayProcess
from tests.support.nats_server import NatsServer
from tests.support.s3 import S3Server

NO_WAIT = {"Prefer": "respond-async"}


class Watched:
    """The jobs as a client of the stream knows them, after each event."""

    def __init__(self) -> None:
        self.gateway: dict[str, Any] = {}
        self.live: dict[str | int, dict[str, Any]] = {}
        self.ended: dict[str | int, dict[str, Any]] = {}
        self.lines: list[str] = []
        self._news: Queue[tuple[str, dict[str, Any]]] = Queue()

    def read(self, answer: http.client.HTTPResponse) -> None:
        name = ""
        for raw in answer:
            line = raw.decode().rstrip("\n")
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                self._news.put((name, json.loads(line.removeprefix("data: "))))

    def until(self, holds: Callable[[Watched], bool]) -> None:
        deadline = time.monotonic() + 60
        while not holds(self):
            name, data = self._news.get(timeout=max(0.0, deadline - time.monotonic()))
            if name == "log":
                self.lines += [line["message"] for line in data["events"]]
                continue
            self.gateway = data.get("gateway", self.gateway)
            if name == "snapshot":
                self.live.clear()
            for job in data["jobs"]:
                self.live.pop(job["request_id"], None)
                (self.ended if job["state"] == "finished" else self.live)[job["request_id"]] = job


@contextmanager
def watching(gateway: GatewayProcess, query: str = "") -> Iterator[Watched]:
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60)
    connection.request("GET", f"/v1/stream{query}", headers={"Authorization": f"Bearer {gateway.token}"})
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    watched = Watched()

    def read() -> None:
        with suppress(OSError, ValueError, AttributeError, http.client.HTTPException):  # closed below
            watched.read(answer)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield watched
    finally:
        if connection.sock is not None:
            connection.sock.shutdown(2)
        reader.join(60)
        answer.close()
        connection.close()


def test_jobs_and_lines_of_another_member_are_streamed(pair: list[GatewayProcess], storage: S3Server) -> None:
    one, two = pair
    name = cluster_of(one)["member"]
    with watching(two) as watched:
        places = urls(storage, storage.new_prefix())
        thread, answers = in_background(one, SLOW.format(seconds=50), "far", timeout=60, **places)
        watched.until(lambda seen: seen.live.get("far", {}).get("state") == "running")
        watched.until(lambda seen: seen.live["far"]["stage"] == "execute")
        job = watched.live["far"]
        assert job["member"] == name
        assert watched.gateway["missing_members"] == []
        with watching(two, f"?job={job['job_id']}") as looking:
            looking.until(lambda seen: "running" in seen.lines and "far" in seen.live)
        assert one.request("POST", "/v1/cancel", {"request_id": "far"}).status == 200
        watched.until(lambda seen: seen.ended.get("far", {}).get("code") == "cancelled")
        assert "far" not in watched.live
        thread.join(60)
    assert answers[0].body["code"] == "cancelled"
    missing = two.request("GET", f"/v1/stream?job={job['job_id'][:-4]}ffff")
    assert missing.status == 404, missing.raw


def test_members_that_watch_each_other_show_each_job_once(pair: list[GatewayProcess]) -> None:
    one, two = pair
    with watching(one) as first, watching(two) as second:
        for number, gateway in enumerate((one, two)):
            assert gateway.execute(OUTPUT, f"each-{number}").status == 200
        for watched in (first, second):
            watched.until(lambda seen: {"each-0", "each-1"} <= seen.ended.keys())
            assert [watched.ended[f"each-{n}"]["member"] for n in (0, 1)] == [cluster_of(g)["member"] for g in pair]


def test_a_member_that_vanishes_is_named_and_its_jobs_are_not_shown(stack: ExitStack, nats_server: NatsServer) -> None:
    one, two = members(stack, nats_server, DRAIN_SECONDS="0")
    name = cluster_of(one)["member"]
    two.request("POST", "/v1/execute", {"code": SLOW.format(seconds=50), "request_id": "near"}, headers=NO_WAIT)
    one.request("POST", "/v1/execute", {"code": SLOW.format(seconds=50), "request_id": "far"}, headers=NO_WAIT)
    with watching(two) as watched:
        watched.until(lambda seen: seen.live.keys() == {"near", "far"})
        one.kill()
        watched.until(lambda seen: seen.live.keys() == {"near"} and seen.gateway["missing_members"] == [name])


def test_a_caller_who_names_no_job_gets_the_newest_of_all(pair: list[GatewayProcess], storage: S3Server) -> None:
    one, two = pair
    assert two.execute(OUTPUT, "ended").status == 200
    assert one.request("GET", "/v1/logs").body["execution_id"] == "ended"
    places = urls(storage, storage.new_prefix())
    thread, _ = in_background(one, SLOW.format(seconds=50), "runs", timeout=60, **places)
    one.wait_for_line("runs", "running")
    for gateway in pair:
        newest = gateway.request("GET", "/v1/logs").body
        assert (newest["execution_id"], newest["events"][0]["message"]) == ("runs", "running")
        assert gateway.request("GET", "/v1/logs?offset=1").body["events"] == []
        legacy = gateway.request("GET", "/logs").body
        assert (legacy["execution_id"], legacy["stdout"]) == ("runs", "running\n")
    assert two.request("POST", "/v1/cancel", {"request_id": "runs"}).status == 200
    thread.join(60)
    assert two.request("GET", "/logs").body["status"] == "no_execution"


@pytest.mark.parametrize("path", ["/v1/status", "/status"])
def test_the_state_of_a_member_needs_no_token(pair: list[GatewayProcess], path: str) -> None:
    for gateway in pair:
        assert gateway.request("GET", path, headers={"Authorization": ""}).status == 200
