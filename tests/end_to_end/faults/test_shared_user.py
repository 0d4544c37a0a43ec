"""What Linux counts by user, where the gateway and its jobs have the same one."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway_process import GatewayProcess
from tests.support.ordinary_container import POD_UID
from tests.test_security import CONTAINER, why_not_contained

# it takes what other tests of this user need
pytestmark = pytest.mark.alone

MOST_WATCHES = Path("/proc/sys/fs/epoll/max_user_watches")

#: Each file can be watched once by each descriptor that it ever had, and by each epoll instance.
WATCH_EVERYTHING = """
import errno, os, select, time
import pandas as pd
def fill():
    instances = [select.epoll() for _ in range(60)]
    files = [os.eventfd(0) for _ in range(60)]
    for file in files:
        for number in range(130, 250):
            os.dup2(file, number)
            for instance in instances:
                try:
                    instance.register(number)
                except FileExistsError:
                    pass
    return instances, files
def transform():
    full, wrote = os.pipe()
    for _ in range(35):
        try:
            if os.fork() == 0:
                try:
                    kept = fill()
                except OSError as error:
                    os.write(wrote, b"x" if error.errno == errno.ENOSPC else b"")
                    time.sleep(100)
                time.sleep(100)
        except BlockingIOError:
            break
    os.read(full, 1)
    print("nothing is left", flush=True)
    time.sleep(100)
    return pd.DataFrame({"a": [1]})
"""


@pytest.mark.skipif(int(MOST_WATCHES.read_text()) > 8_000_000, reason="one job cannot watch so many descriptors")
def test_a_job_that_uses_up_the_watches_of_its_user_can_be_cancelled_and_others_run_afterwards() -> None:
    if why_not_contained():
        pytest.skip(why_not_contained())
    settings = {"SLOTS": "1", "HOME": "/tmp", "PROCESS_LIMIT": "60", "CPU_LIMIT_SECONDS": "100"}
    answers: list[Any] = []
    with GatewayProcess(settings, launch=(*CONTAINER, "--pod"), owner_uid=POD_UID) as gateway:
        job = threading.Thread(
            target=lambda: answers.append(gateway.execute(WATCH_EVERYTHING, "greedy", timeout=90, hold_minutes=0))
        )
        job.start()
        gateway.wait_for_line("greedy", "nothing is left")  # each of these requests is a new connection
        assert gateway.request("POST", "/v1/cancel", {"request_id": "greedy"}).status == 200
        job.join(60)
        assert answers[0].body["cancelled"] is True
        after = gateway.execute("import pandas as pd\ndef transform():\n    return pd.DataFrame({'a': [1]})\n", "next")
        assert after.status == 200, after.raw
