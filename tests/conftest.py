"""Fixtures that more than one folder uses; real parts: a real gateway, real kernels, a real S3 server."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import re
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.support.cluster_process import ClusterProcess
from tests.support.gateway_process import GatewayProcess

# An example that takes 200 ms fails by default, and so does one that is slow to make: both say how busy the machine is.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")


#: The more often a file has these words, the longer it takes, by and large: starting processes takes most of the time.
_SLOW_PARTS = re.compile("gateway|kernel|desk|notebook|subprocess|make", re.IGNORECASE)


@cache
def _slow_parts(path: Path) -> int:
    return len(_SLOW_PARTS.findall(path.read_text()))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cluster", action="store_true", help="put a cluster in the place of each gateway under test")
    parser.addoption("--listed", type=Path, metavar="FILE", help="run only the tests whose ids are the lines of a file")


# Modules and items make no garbage, but each collection scans all that they have made so far: 12 % of the processor time
# until the first test begins, in each process (measured). They stay frozen, so later collections pass them over as well.
gc.disable()


def pytest_collection_finish() -> None:
    """Begin to collect garbage."""
    gc.enable()
    gc.freeze()


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, exitstatus: pytest.ExitCode, config: pytest.Config
) -> None:
    """Note for `.ci/run` which of the listed tests passed, and that a run failed by tests and by nothing else."""
    if hasattr(config, "workerinput"):  # a process of pytest-xdist, whose results the first one has
        return
    if (listed := config.getoption("--listed")) is not None:
        with listed.with_suffix(".passed").open("a") as passed:
            passed.writelines(f"{report.nodeid}\n" for report in terminalreporter.getreports("passed"))
    if exitstatus == pytest.ExitCode.TESTS_FAILED and (notes := config.rootpath / ".pytest_cache").is_dir():
        with (notes / "runs_with_failed_tests").open("a") as runs:
            runs.write("failed\n")


def pytest_configure() -> None:
    """Let children get signals that this process ignores: a shell starts jobs in the background without SIGINT."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # by nohup
        signal.signal(signal.SIGHUP, lambda *_: None)  # which no process inherits


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put long files first: `make test` hands out whole files in this order, and a long one at the end has a core alone.

    With ``--listed``, leave the tests that it names. pytest's ``--last-failed`` runs all tests if it finds none of its own.
    """
    if (path := config.getoption("--listed")) is not None:
        listed = path.read_text().splitlines()
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in listed])
        items[:] = [item for item in items if item.nodeid in listed]
    items.sort(key=lambda item: -_slow_parts(item.path))


def pytest_runtest_setup(item: pytest.Item) -> None:
    mark = item.get_closest_marker("one_machine")
    if mark is not None and item.config.getoption("cluster"):
        pytest.skip(mark.args[0])


@pytest.fixture(scope="session", autouse=True)
def _no_default_event_loop() -> None:
    """Keep asyncio from making a loop for the first test that has one of its own.

    Tornado asks for the current loop when it makes another. Up to Python 3.13 asyncio then makes one, which nothing
    closes; its ResourceWarning fails whichever test runs when it is collected.
    """
    asyncio.set_event_loop(None)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own settings must not decide a test."""
    for name in ("AUTH_TOKEN", "HOST", "PORT", "STATE_DIR", "SLOTS", "ALLOW_NETWORK"):
        if name in os.environ:
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def gateway_type(request: pytest.FixtureRequest) -> type[GatewayProcess]:
    """The class of the gateways under test: with ``--cluster`` each is an acceptor with other members."""
    return ClusterProcess if request.config.getoption("cluster") else GatewayProcess


@pytest.fixture(scope="session")
def running_gateway(gateway_type: type[GatewayProcess]) -> Iterator[GatewayProcess]:
    """One gateway with two slots for all tests that leave it as they found it."""
    with gateway_type({"SLOTS": "2"}) as gateway:
        yield gateway


@pytest.fixture
def start_gateway(gateway_type: type[GatewayProcess]) -> Iterator[Callable[..., GatewayProcess]]:
    """Start gateways with settings of the test's own: ``start_gateway(SLOTS="1")``."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(gateway_type(settings))


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Callable[..., Any]]:
    """Call a function in another process, where it may start threads: ``elsewhere(function, *arguments)``.

    Polars starts threads. A job that is forked from a process with them waits for ever when it uses Polars.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield lambda function, *given: pool.submit(function, *given).result(120)
