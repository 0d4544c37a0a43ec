"""The asynchronous client runs jobs side by side, and a cancelled call cancels its job."""

from __future__ import annotations

import asyncio
import inspect
import threading

import pandas as pd
import pytest

from gateway.client import AsyncTransformClient, TransformClient, failures
from gateway.core.events import Event, LogLine
from tests.support.fake_gateway import Asked, FakeGateway, Reply
from tests.support.gateway_process import GatewayProcess

SECONDS = 60


def test_it_has_the_methods_of_the_other_client() -> None:
    methods = {name for name, _ in inspect.getmembers(TransformClient, inspect.isfunction) if not name.startswith("_")}
    own = {name for name, _ in inspect.getmembers(AsyncTransformClient, inspect.isfunction) if not name.startswith("_")}
    assert methods - own == {"stream"}  # it has no end, so it would keep a thread
    for name in own:
        assert inspect.signature(getattr(AsyncTransformClient, name)) == inspect.signature(
            getattr(TransformClient, name)
        )


def test_jobs_run_side_by_side(running_gateway: GatewayProcess) -> None:
    async def run() -> list[pd.DataFrame]:
        async with AsyncTransformClient(running_gateway.url, running_gateway.token) as client:
            code = "def transform(t):\n    return t.assign(n=t.n * 2)\n"
            results = await asyncio.gather(*(client.run(code, {"t": pd.DataFrame({"n": [n]})}) for n in range(3)))
            return [result.frame() for result in results]

    frames = asyncio.run(asyncio.wait_for(run(), SECONDS))
    assert [frame.to_dict("list") for frame in frames] == [{"n": [0]}, {"n": [2]}, {"n": [4]}]


def test_a_failure_is_the_same_exception(running_gateway: GatewayProcess) -> None:
    async def run() -> None:
        async with AsyncTransformClient(running_gateway.url, running_gateway.token) as client:
            with pytest.raises(failures.NoTransform):
                await client.run("x = 1")

    asyncio.run(asyncio.wait_for(run(), SECONDS))


def test_cancelling_the_call_cancels_the_job(running_gateway: GatewayProcess) -> None:
    async def run() -> dict[str, object]:
        started = asyncio.Event()
        loop = asyncio.get_running_loop()

        def on_event(event: Event) -> None:
            if isinstance(event, LogLine):
                loop.call_soon_threadsafe(started.set)

        async with AsyncTransformClient(running_gateway.url, running_gateway.token) as client:
            code = "import time\ndef transform():\n    print('started')\n    time.sleep(600)\n"
            call = asyncio.create_task(client.run(code, request_id="a-1", on_event=on_event, timeout=600))
            await started.wait()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            await client.follow("a-1", lambda event: None)
            return dict((await client.status("a-1"))["result"])

    result = asyncio.run(asyncio.wait_for(run(), SECONDS))
    assert result["code"] == "cancelled"


def test_a_call_that_outlives_its_client_can_be_cancelled() -> None:
    """As with `asyncio.gather` in an `async with` statement that the failure of another call ends."""
    begun, cancelled = threading.Event(), threading.Event()

    def execute(asked: Asked) -> Reply:
        begun.set()
        assert cancelled.wait(60)
        return 500, {"execution_id": "e", "exit_code": -1, "code": "cancelled"}

    def cancel(asked: Asked) -> Reply:
        cancelled.set()
        return 200, {}

    async def run(url: str) -> None:
        async with AsyncTransformClient(url) as client:
            call = asyncio.create_task(client.run("c", request_id="a-2"))
            assert await asyncio.to_thread(begun.wait, 60)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    try:
        with FakeGateway({"POST /v1/execute": execute, "POST /v1/cancel": cancel}) as fake:
            asyncio.run(asyncio.wait_for(run(fake.url), SECONDS))
            assert cancelled.is_set()
    finally:
        cancelled.set()


def test_a_cancel_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.client.async_client.CANCEL_SECONDS", 0.1)
    begun, released = threading.Event(), threading.Event()

    def execute(asked: Asked) -> Reply:
        begun.set()
        assert released.wait(60)
        return 500, {"execution_id": "e", "exit_code": -1, "code": "cancelled"}

    def cancel(asked: Asked) -> Reply:
        assert released.wait(60)
        return 200, {}

    async def run(url: str) -> bool:
        async with AsyncTransformClient(url) as client:
            call = asyncio.create_task(client.run("c", request_id="a-3"))
            assert await asyncio.to_thread(begun.wait, 60)
            call.cancel()
            try:
                with pytest.raises(asyncio.CancelledError):
                    await asyncio.wait_for(call, SECONDS)
                return not released.is_set()
            finally:
                released.set()

    with FakeGateway({"POST /v1/execute": execute, "POST /v1/cancel": cancel}) as fake:
        assert asyncio.run(run(fake.url))
