"""A rolling restart of all members: a caller that goes to another member after a refusal gets every answer."""

from __future__ import annotations

import itertools
import signal
import threading
from contextlib import ExitStack

from tests.gateway.cluster.members import ROWS, members, urls, wait_for_members
from tests.support.gateway_process import Answer, GatewayProcess
from tests.support.nats_server import NatsServer
from tests.support.s3 import S3Server

SHORT = (
    "import time\nimport pandas as pd\n\ndef transform():\n    time.sleep(0.2)\n"
    "    return pd.DataFrame({'x': [1, 2]})\n"
)

#: Of these codes the member has not accepted the job.
REFUSALS = {"shutting_down", "broker_down", "queue_full"}


class Load:
    """Callers that run one job after another until they are told to end."""

    def __init__(self, gateways: list[GatewayProcess], storage: S3Server, callers: int) -> None:
        self.gateways = gateways
        self.storage = storage
        self.answers: dict[str, tuple[str, Answer]] = {}
        self.refused = 0
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._call, args=(number,)) for number in range(callers)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(120)

    def _call(self, caller: int) -> None:
        for number in itertools.count():
            if self._ended.is_set():
                return
            request_id, prefix = f"{caller}-{number}", self.storage.new_prefix()
            for turn in itertools.count(caller):
                gateway = self.gateways[turn % len(self.gateways)]
                try:
                    answer = gateway.execute(SHORT, request_id, timeout=60, **urls(self.storage, prefix))
                except (ConnectionRefusedError, ConnectionResetError):  # nobody took the connection
                    continue
                if "execution_id" not in answer.body and answer.body["code"] in REFUSALS:
                    self.refused += 1
                    continue
                self.answers[request_id] = prefix, answer
                break


def test_a_rolling_restart_under_load_loses_no_answer(
    stack: ExitStack, nats_server: NatsServer, storage: S3Server
) -> None:
    gateways = members(stack, nats_server, 3, DRAIN_SECONDS="60")
    with Load(gateways, storage, 4) as load:
        for place in range(3):
            old = gateways[place]
            before = len(load.answers)
            old.process.send_signal(signal.SIGTERM)
            assert old.process.wait(60) == 0
            gateways[place] = stack.enter_context(
                GatewayProcess(old.settings | {"STATE_DIR": str(old.state_dir / "s")}, old.token)
            )
            wait_for_members(gateways, 3)
            assert len(load.answers) > before  # the others went on meanwhile
    assert {answer.status for _, answer in load.answers.values()} == {200}, [
        answer.raw for _, answer in load.answers.values() if answer.status != 200
    ]
    for prefix, _ in load.answers.values():
        assert storage.get(f"{prefix}/output") == ROWS
