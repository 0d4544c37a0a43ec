"""Hundreds of jobs of every kind at once, through real kernels: afterwards every count is what the callers saw."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse_text

from tests.support.gateway_process import Answer, GatewayProcess

SLOTS = 2
QUEUE_LENGTH = 14
CALLERS = 16  # as many as have a place: only the crowd is refused for its number
OK = "import pandas as pd\ndef transform():\n    return pd.DataFrame({'x': [1, 2]})"
HOLD = "import time\ndef transform():\n    print('begun')\n    time.sleep(60)"

FINISHED = (("succeeded", "ok"), ("failed", "user_error"), ("failed", "missing_table"), ("cancelled", "cancelled"))
REFUSED = ("queue_full", "bad_request", "unauthorized")

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(gateway: GatewayProcess) -> Samples:
    text = gateway.request("GET", "/metrics").raw.decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse_text(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[f"transform_gateway_{name}", frozenset(labels.items())]


def total(samples: Samples, name: str) -> float:
    return sum(found for (sample, _), found in samples.items() if sample == f"transform_gateway_{name}")


def ask(gateway: GatewayProcess, number: int) -> str:
    """Send job `number` of one kind or another; return the code that the caller got."""
    match number % 20:
        case 0 | 1 | 2 | 3:
            return str(gateway.request("POST", "/v1/execute", {"code": 5, "request_id": number}).body["code"])
        case 4:
            return str(gateway.request("POST", "/v1/execute", b"no json").body["code"])
        case 5 | 6:
            wrong = {"Authorization": "Bearer wrong"}
            return str(gateway.request("POST", "/v1/execute", {}, headers=wrong).body["code"])
        case 7 | 8:
            return str(gateway.execute("def transform():\n    raise ValueError('no')", number).body["code"])
        case 9:
            return str(gateway.execute("def transform(nosuch):\n    return nosuch", number).body["code"])
        case 10:
            return hold_and_cancel(gateway, number)
        case _:
            return str(gateway.execute(OK, number).body["code"])


def hold_and_cancel(gateway: GatewayProcess, number: int) -> str:
    with ThreadPoolExecutor(1) as pool:
        going = pool.submit(gateway.execute, HOLD, number)
        cancel(gateway, number, going)
        return str(going.result().body["code"])


def cancel(gateway: GatewayProcess, number: int, going: Future[Answer]) -> None:
    """Cancel a job that is on its way to the gateway; asking is the only way to learn that it was taken."""
    deadline = time.monotonic() + 60
    while gateway.request("POST", "/v1/cancel", {"request_id": number}).status == 404:
        assert not going.done(), f"job {number} was answered before it was cancelled: {going.result().raw!r}"
        assert time.monotonic() < deadline, f"job {number} was never taken"


def crowd(gateway: GatewayProcess, first: int) -> list[str]:
    """Fill all slots and the queue, then send as many again, which are refused; then cancel what was taken."""
    places = SLOTS + QUEUE_LENGTH
    with ThreadPoolExecutor(places) as pool:
        held = [pool.submit(gateway.execute, HOLD, first + number) for number in range(places)]
        deadline = time.monotonic() + 60
        while gateway.request("GET", "/v1/status").body["queue_size"] < QUEUE_LENGTH:
            assert time.monotonic() < deadline, "the queue never filled"
        codes = [str(gateway.execute(OK, first + places + number).body["code"]) for number in range(places)]
        for number in range(places):
            cancel(gateway, first + number, held[number])
        return codes + [str(job.result().body["code"]) for job in held]


@pytest.mark.parametrize("jobs", [50, pytest.param(500, marks=pytest.mark.soak)])
def test_counts_of_mixed_jobs_add_up(start_gateway: Callable[..., GatewayProcess], jobs: int) -> None:
    gateway = start_gateway(SLOTS=str(SLOTS), READY_KERNELS="2", QUEUE_LENGTH=str(QUEUE_LENGTH))
    before = scrape(gateway)
    mixed = jobs - 2 * (SLOTS + QUEUE_LENGTH)
    with ThreadPoolExecutor(CALLERS) as pool:
        seen = Counter(pool.map(ask, itertools.repeat(gateway), range(mixed)))
    seen.update(crowd(gateway, mixed))
    deadline = time.monotonic() + 60
    while value(samples := scrape(gateway), "slots_busy"):  # a slot is free a moment after its job is answered
        assert time.monotonic() < deadline, "a slot was never free again"

    assert seen.keys() == {code for _, code in FINISHED} | set(REFUSED)
    assert {code: value(samples, "jobs_refused_total", code=code) for code in REFUSED} == {c: seen[c] for c in REFUSED}
    for outcome, code in FINISHED:
        assert value(samples, "jobs_total", outcome=outcome, code=code) == seen[code], code
    finished, refused = (sum(seen[code] for code in codes) for codes in ([code for _, code in FINISHED], REFUSED))
    assert total(samples, "jobs_total") == finished
    assert total(samples, "jobs_refused_total") == refused
    assert value(samples, "jobs_live") == 0
    assert value(samples, "job_requests_total") == finished + refused == jobs

    assert total(samples, "job_duration_seconds_count") == finished
    assert value(samples, "job_stage_duration_seconds_count", stage="queue") == finished
    assert value(samples, "job_stage_duration_seconds_count", stage="write") == seen["ok"]
    assert value(samples, "output_rows_total") == 2 * seen["ok"]
    assert value(samples, "output_bytes_total") == 16 * seen["ok"]
    claims = sum(value(samples, "ready_kernel_claims_total", result=result) for result in ("hit", "miss"))
    assert finished - seen["cancelled"] <= claims <= finished, "one each, unless it was cancelled before"
    assert (value(samples, "slots_busy"), value(samples, "queue_depth")) == (0, 0)
    assert before.keys() <= samples.keys(), "a series that ends breaks every rate over it"
