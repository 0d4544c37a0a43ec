"""A real cluster behind the interface of one gateway, so that the same tests run against both (`pytest --cluster`)."""

from __future__ import annotations

import json
import re
import signal
from contextlib import ExitStack
from typing import Any

from tests.gateway.cluster.members import wait_for_members
from tests.support.gateway_process import STOP_SECONDS, Answer, GatewayProcess
from tests.support.nats_server import NatsServer
from tests.support.ports import free_port

HOST = ("-m", "gateway", "host")

#: About kernels and packages of one machine.
OF_A_MACHINE = re.compile(r"/v1/(held|release|console|packages|kernels)|/metrics")


class ClusterProcess(GatewayProcess):
    """An acceptor, a member and, with more than one slot, a host.

    The process that a test sees, with its directory and its port, is the member. Requests go to the acceptor, which runs
    nothing, but for those about a machine; the state of the gateway is that of both.
    """

    def __enter__(self) -> ClusterProcess:
        self._stack = ExitStack()
        with ExitStack() as undo:
            undo.callback(self._stack.close)
            broker = self._stack.enter_context(NatsServer())
            slots = int(self.settings.get("SLOTS", "1"))
            shared = {
                name: value for name, value in self.settings.items() if not re.match("STATE_DIR|.*INTERNAL_S3", name)
            }
            port = str(free_port())
            acceptor = shared | broker.settings("acceptor") | {"SLOTS": "0", "PORT": port}
            acceptor["CLUSTER_ADVERTISE_URL"] = f"http://127.0.0.1:{port}"
            self.acceptor = self._stack.enter_context(GatewayProcess(acceptor, self.token))
            if slots > 1:
                host = shared | broker.settings("host") | {"SLOTS": str(slots // 2)}
                self._stack.enter_context(GatewayProcess(host, launch=HOST))
            self.settings = self.settings | broker.settings() | {"SLOTS": str((slots + 1) // 2)}
            super().__enter__()
            undo.callback(GatewayProcess.stop, self)
            wait_for_members([self.acceptor, self], 2 + (slots > 1))
            undo.pop_all()
        return self

    def stop(self, number: int = signal.SIGTERM) -> int:
        try:
            if self.acceptor.process.poll() is None:
                self.acceptor.process.send_signal(number)
                self.acceptor.process.wait(STOP_SECONDS)
            return super().stop(number)
        finally:
            self._stack.close()

    def request(
        self, method: str, path: str, body: Any = None, *, headers: dict[str, str] | None = None, timeout: float = 60
    ) -> Answer:
        place = path.partition("?")[0]
        if OF_A_MACHINE.fullmatch(place):
            return super().request(method, path, body, headers=headers, timeout=timeout)
        answer = self.acceptor.request(method, path, body, headers=headers, timeout=timeout)
        if path != "/v1/status" or answer.status != 200:
            return answer
        machine = super().request(method, path, body, headers=headers, timeout=timeout).body
        known = {name: value for name, value in answer.body.items() if value != {}}
        return Answer(200, answer.headers, json.dumps(machine | known).encode())
