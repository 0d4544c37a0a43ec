"""Any member answers about any job: the log, the state, the result and a cancel are at the one that accepted it."""

from __future__ import annotations

import hashlib
import os
import time
import urllib.parse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import pytest

from gateway.process import privileges
from tests.gateway.cluster.members import OUTPUT, SLOW, cluster_of, in_background, members, urls
from tests.support.gateway_process import GatewayProcess
from tests.support.nats_server import NatsServer
from tests.support.s3 import S3Server


@pytest.fixture
def file_of_tokens() -> Iterator[Path]:
    path = Path(f"/tmp/tg-cluster-tokens-{os.getpid()}")
    path.touch(0o600)
    yield path
    path.unlink()


def test_log_state_and_cancel_of_a_job_that_runs(pair: list[GatewayProcess], storage: S3Server) -> None:
    one, two = pair
    places = urls(storage, storage.new_prefix())
    thread, answers = in_background(one, SLOW.format(seconds=50), 77, timeout=60, **places)
    two.wait_for_line(77, "running")
    status = two.request("GET", "/v1/status?request_id=77")
    assert (status.status, status.body["state"], status.body["request_id"]) == (200, "running", 77), status.raw
    log = two.request("GET", "/v1/logs?request_id=77")
    assert log.body == one.request("GET", "/v1/logs?request_id=77").body
    again = two.request("GET", "/v1/logs?request_id=77", headers={"If-None-Match": log.headers["Etag"]})
    assert (again.status, again.raw) == (304, b"")
    job_id = status.body["execution_id"] if "job_id" not in log.body else log.body["job_id"]
    assert two.request("GET", f"/v1/jobs/{job_id}").body["state"] == "running"
    assert two.request("POST", "/v1/cancel", {"request_id": 77}).status == 200
    thread.join(60)
    assert answers[0].body["code"] == "cancelled"
    # after its end as well
    assert two.request("GET", "/v1/status?request_id=77").body["result"]["code"] == "cancelled"
    assert two.request("POST", "/v1/cancel", {"request_id": 77}).status == 404
    assert two.request("DELETE", f"/v1/jobs/{job_id}").status == 200
    assert one.request("GET", f"/v1/jobs/{job_id}").status == 404


def test_a_kept_result_of_several_messages(pair: list[GatewayProcess]) -> None:
    one, two = pair
    code = (
        "import pandas as pd\ndef transform():\n    print('a line')\n"
        "    return pd.DataFrame({'x': range(300_000), 'text': 'twenty letters or so'})\n"
    )
    answer = one.execute(code, "kept/7 ä")
    assert answer.status == 200, answer.raw
    path = f"/v1/results/{urllib.parse.quote('kept/7 ä', safe='')}/output"
    whole, passed_on = one.request("GET", path), two.request("GET", path)
    assert len(whole.raw) > 10_000_000
    assert passed_on.raw == whole.raw
    assert passed_on.headers["Content-Type"] == whole.headers["Content-Type"]
    assert two.request("HEAD", path).headers["Content-Length"] == str(len(whole.raw))
    job_id = answer.body["execution_id"]
    assert two.request("GET", f"/v1/jobs/{job_id}/result?what=events").raw.count(b"a line") == 1
    assert two.request("GET", f"/v1/jobs/{job_id}/displays").body == {"displays": []}


def test_the_newest_job_of_an_id_is_meant(pair: list[GatewayProcess]) -> None:
    one, two = pair
    for gateway, text in ((one, "first"), (two, "second"), (one, "third")):
        answer = gateway.execute(f"print('{text}')\n{OUTPUT}", "again")
        assert answer.status == 200, answer.raw
        for each in pair:
            assert text in [line["message"] for line in each.log("again")]


def test_the_history_is_that_of_all_members(stack: ExitStack, nats_server: NatsServer) -> None:
    one, two = members(stack, nats_server, SLOTS="2")
    wanted = []
    for number in range(7):
        gateway = (one, two)[number % 3 == 1]
        answer = gateway.execute(OUTPUT, number, label="listed")
        assert answer.status == 200, answer.raw
        wanted.insert(0, (number, cluster_of(gateway)["member"]))
    for gateway in (one, two):
        found, cursor, pages = [], "", 0
        while cursor is not None:
            page = gateway.request("GET", f"/v1/jobs?label=listed&limit=3{cursor and '&cursor='}{cursor}").body
            assert page["missing_members"] == []
            found += [(job["request_id"], job["member"]) for job in page["jobs"]]
            cursor, pages = page["cursor"], pages + 1
        assert (found, pages) == (wanted, 3)
        assert cluster_of(gateway)["missing"] == []
    oldest = one.request("GET", "/v1/jobs?sort=created_at&limit=1").body["jobs"]
    assert [job["request_id"] for job in oldest] == [0]
    assert one.request("GET", "/v1/jobs?cursor=x").status == 400
    name, metrics = cluster_of(two)["member"], one.request("GET", "/metrics").raw
    two.kill()
    deadline = time.monotonic() + 60
    while (page := one.request("GET", "/v1/jobs").body)["missing_members"] != [name]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert {job["member"] for job in page["jobs"]} == {cluster_of(one)["member"]}
    assert b"transform_gateway_members_missing 0.0" in metrics
    while cluster_of(one)["missing"] != [name]:  # when it was silent for some seconds
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert b"transform_gateway_members_missing 1.0" in one.request("GET", "/metrics").raw


def test_an_unknown_job_is_unknown_everywhere(pair: list[GatewayProcess]) -> None:
    for gateway in pair:
        assert gateway.request("GET", "/v1/logs?request_id=never").status == 404
        assert gateway.request("GET", f"/v1/jobs/{'0' * 32}").status == 404
        assert gateway.request("POST", "/v1/cancel", {"request_id": "never"}).status == 404


def test_a_caller_sees_no_more_through_another_member(
    stack: ExitStack, nats_server: NatsServer, file_of_tokens: Path
) -> None:
    tokens = {"etl": "e" * 32, "other": "o" * 32, "ops": "p" * 32}
    path = file_of_tokens
    path.write_text(f"etl run {tokens['etl']}\nother run {tokens['other']}\nops admin {tokens['ops']}\n")
    path.chmod(0o600)
    if os.geteuid() == 0:
        os.chown(path, privileges.gateway_user().uid, -1)
    one, two = members(stack, nats_server, AUTH_TOKEN="", AUTH_TOKEN_FILE=str(path), token=tokens["etl"])
    answer = one.execute(OUTPUT, "mine")
    assert answer.status == 200, answer.raw
    for name, status in (("etl", 200), ("other", 404), ("ops", 200)):
        asked = {"Authorization": f"Bearer {tokens[name]}"}
        for about in ("/v1/logs?request_id=mine", f"/v1/jobs/{answer.body['execution_id']}"):
            assert two.request("GET", about, headers=asked).status == status, (name, about)


def test_a_request_that_is_sent_again_to_another_member_gets_the_recorded_outcome(pair: list[GatewayProcess]) -> None:
    one, two = pair
    job = {"code": OUTPUT, "request_id": "recorded", "timeout": 30, "inline": True, "label": "with a key"}
    key = {"Idempotency-Key": "report"}
    first = one.request("POST", "/v1/execute", job, headers=key)
    assert (first.status, first.body["output"]) == (200, '{"x":1}\n{"x":2}\n'), first.raw
    for gateway in (two, one):
        again = gateway.request("POST", "/v1/execute", job, headers=key)
        assert (again.status, again.body) == (200, first.body | {"replayed": True})
    other = two.request("POST", "/v1/execute", job | {"request_id": 1}, headers=key)
    assert (other.status, other.body["code"], other.body["exit_code"]) == (422, "idempotency_key_reused", 1)
    for_members = f"/v1/outcomes/{hashlib.sha256(b'report').hexdigest()}/{'0' * 64}?inline=0"
    assert one.request("GET", for_members).status == 404  # it is no way around the body
    assert len(one.request("GET", "/v1/jobs?label=with%20a%20key").body["jobs"]) == 1
    assert two.request("DELETE", f"/v1/jobs/{first.body['execution_id']}").status == 200
    again = two.request("POST", "/v1/execute", job, headers=key)
    assert (again.status, "replayed" in again.body) == (200, False), again.raw
    assert one.request("POST", "/v1/execute", job, headers=key).body == again.body | {"replayed": True}


def test_a_key_runs_once_however_many_members_get_it(pair: list[GatewayProcess], storage: S3Server) -> None:
    one = pair[0]
    job = {"code": SLOW.format(seconds=50), "request_id": "slow", "timeout": 60, **urls(storage, storage.new_prefix())}
    key = {"Idempotency-Key": "slow"}
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(each.request, "POST", "/v1/execute", job, headers=key) for each in pair * 4]
        one.wait_for_line("slow", "running")
        refused = [each.request("POST", "/v1/execute", job, headers=key) for each in pair]
        assert {(each.status, each.body["code"]) for each in refused} == {(409, "conflict")}
        list(islice(as_completed(answers, 60), 7))  # one that came after the end would get the recorded outcome
        assert one.request("POST", "/v1/cancel", {"request_id": "slow"}).status == 200
        codes = sorted(each.result(60).body["code"] for each in answers)
    assert codes == ["cancelled"] + ["conflict"] * 7
    again = [each.request("POST", "/v1/execute", job, headers=key).body for each in pair]
    assert [(each["code"], each["replayed"]) for each in again] == [("cancelled", True)] * 2


def test_while_its_member_is_away_a_job_is_not_unknown(
    stack: ExitStack, nats_server: NatsServer, storage: S3Server
) -> None:
    one, two = members(stack, nats_server)
    prefix = storage.new_prefix()
    job = {"code": OUTPUT, "request_id": "job", "timeout": 30, **urls(storage, prefix)}
    key = {"Idempotency-Key": "key"}
    answer = one.request("POST", "/v1/execute", job, headers=key)
    assert answer.status == 200, answer.raw
    log = storage.get(f"{prefix}/events")
    one.kill()
    again = two.request("POST", "/v1/execute", job, headers=key)
    assert (again.status, again.body["code"], again.body["retryable"]) == (503, "member_down", True)
    assert storage.get(f"{prefix}/events") == log  # it is that of the job
    for method, path, body in (
        ("GET", "/v1/logs?request_id=job", None),
        ("GET", f"/v1/jobs/{answer.body['execution_id']}", None),
        ("POST", "/v1/cancel", {"request_id": "job"}),
    ):
        refused = two.request(method, path, body)
        assert (refused.status, refused.body["code"], refused.body["retryable"]) == (503, "member_down", True), path
        assert "Retry-After" in refused.headers
    assert two.request("GET", "/v1/logs?request_id=never").status == 404
    again = stack.enter_context(GatewayProcess(one.settings | {"STATE_DIR": str(one.state_dir / "s")}))
    assert again.request("GET", "/v1/results/job/output").status in (200, 404)
    assert two.request("POST", "/v1/execute", job, headers=key).body["replayed"] is True
    assert [line["message"] for line in two.log("job")] == [line["message"] for line in again.log("job")]


def test_members_show_which_packages_were_added_for_jobs(pair: list[GatewayProcess]) -> None:
    one, two = pair
    (one.state_dir / "s/packages/0123456789abcdef").mkdir(parents=True)
    current = one.state_dir / "s/packages/current"
    current.symlink_to("0123456789abcdef")
    try:
        deadline = time.monotonic() + 60
        while {each["packages"] for each in cluster_of(two)["members"]} != {"", "0123456789abcdef"}:
            assert time.monotonic() < deadline, cluster_of(two)["members"]
            time.sleep(0.1)
    finally:
        current.unlink()
