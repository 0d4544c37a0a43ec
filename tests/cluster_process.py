"""A real cluster behind the interface of one gateway, so that the same tests run against both (`pytest --cluster`)."""

from __future__ import annotations

import json
import re
import signal
import urllib.parse
from contextlib import ExitStack
from functools import cached_property
from typing import Any

from tests.gateway.cluster.members import urls, wait_for_members
from tests.gateway_process import STOP_SECONDS, Answer, GatewayProcess
from tests.nats_server import NatsServer
from tests.s3 import S3Server

HOST = ("-m", "gateway", "host")

#: About kernels and packages of one machine.
OF_A_MACHINE = re.compile(r"/v1/(held|release|console|packages|kernels)|/metrics")
KEPT = re.compile(r"/v1/results/([^/]+)/(output|manifest|events)")

#: A body that is not sent to the acceptor, because its job would be too large for the broker.
LARGE_BYTES = 700_000


class ClusterProcess(GatewayProcess):
    """An acceptor, a member and, with more than one slot, a host.

    The process that a test sees, with its directory and its port, is the member. Requests go to the acceptor, which runs
    nothing, but for those about a machine and for jobs that do not travel; the state of the gateway is that of both. A job
    whose result the gateway would keep travels all the same: it gets URLs, and requests for its result are answered from
    the storage.
    """

    def __enter__(self) -> ClusterProcess:
        self._stack = ExitStack()
        self._kept: dict[str, str] = {}
        with ExitStack() as undo:
            undo.callback(self._stack.close)
            broker = self._stack.enter_context(NatsServer())
            slots = int(self.settings.get("SLOTS", "1"))
            shared = {
                name: value for name, value in self.settings.items() if not re.match("STATE_DIR|.*INTERNAL_S3", name)
            }
            acceptor = shared | broker.settings("acceptor") | {"SLOTS": "0"}
            self.acceptor = self._stack.enter_context(GatewayProcess(acceptor, self.token))
            if slots > 1:
                host = shared | broker.settings("host") | {"SLOTS": str(slots // 2)}
                self._stack.enter_context(GatewayProcess(host, launch=HOST))
            self.settings = self.settings | broker.settings() | {"SLOTS": str((slots + 1) // 2)}
            super().__enter__()
            wait_for_members([self.acceptor, self], 2 + (slots > 1))
            undo.pop_all()
        return self

    @cached_property
    def storage(self) -> S3Server:
        """The storage of the results that the gateway would keep."""
        return self._stack.enter_context(S3Server())

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
        if path == "/v1/execute" and isinstance(body, dict):
            body = self._with_urls(body)
        kept = KEPT.fullmatch(place)
        if kept is not None and (prefix := self._kept.get(urllib.parse.unquote(kept[1]))) is not None:
            content = self.storage.get(f"{prefix}/{kept[2]}")
            return Answer(404 if content is None else 200, {}, content or b"")
        if OF_A_MACHINE.fullmatch(place) or (place == "/v1/execute" and not travels(body)):
            return super().request(method, path, body, headers=headers, timeout=timeout)
        answer = self.acceptor.request(method, path, body, headers=headers, timeout=timeout)
        if path != "/v1/status" or answer.status != 200:
            return answer
        machine = super().request(method, path, body, headers=headers, timeout=timeout).body
        known = {name: value for name, value in answer.body.items() if value != {}}
        return Answer(200, answer.headers, json.dumps(machine | known).encode())

    def _with_urls(self, body: dict[str, Any]) -> dict[str, Any]:
        request_id = str(body.get("request_id"))
        self._kept.pop(request_id, None)
        if not travels({"output_url": "", **body}) or "output_url" in body:
            return body
        prefix = self._kept[request_id] = self.storage.new_prefix()
        return urls(self.storage, prefix) | body


def travels(body: Any) -> bool:
    """Return whether a request may go to a member that runs no jobs."""
    if not isinstance(body, dict) or not isinstance(body.get("code"), str):
        return not isinstance(body, bytes)
    size = len(body["code"]) + len(str(body.get("library", "")))
    return "output_url" in body and not body.get("inline") and size < LARGE_BYTES
