"""A gateway answers and runs jobs as the page on upgrading describes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.support.gateway_process import GatewayProcess

PAGE = " ".join((Path(__file__).parents[2] / "docs" / "upgrading.md").read_text().split())
FAILS = "def transform():\n    raise ValueError('no luck')"
ASYNC = "async def transform():\n    pass"
TELLS = (
    "import os, time\nimport pandas as pd\ndef transform():\n"
    "    return pd.DataFrame({'n': [os.environ['PATH'], os.environ['TZ'], time.strftime('%H', time.localtime(0))]})"
)


def test_texts_of_failures_are_those_of_the_page(running_gateway: GatewayProcess) -> None:
    error = running_gateway.execute(FAILS, "fails").body["error"]
    first = running_gateway.log("fails")[0]["message"]
    answer = running_gateway.execute(ASYNC, "async").body
    assert f"`{error}`" in PAGE
    assert f"`{first}`" in PAGE
    assert (answer["code"], answer["error"].partition(";")[0]) == (
        "invalid_return",
        "Transform function must return a pandas DataFrame, got <class 'coroutine'>",
    )
    assert "is an `invalid_return`, named by the type that a call returns (`<class 'coroutine'>`)" in PAGE


def test_jobs_have_the_path_and_the_time_zone_of_the_page(start_gateway: Callable[..., GatewayProcess]) -> None:
    answer = start_gateway(TZ="Asia/Tokyo").execute(TELLS, "tells", inline=True)
    path, zone, hour = answer.body["output"].splitlines()
    assert path == '{"n":"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}'
    assert (zone, hour) == ('{"n":"UTC"}', '{"n":"00"}')
    assert "a fixed `PATH` and `TZ=UTC`" in PAGE
