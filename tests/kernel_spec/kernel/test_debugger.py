"""The debugger protocol of Jupyter, with the messages that JupyterLab sends, over the control channel."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from jupyter_client.kernelspec import KernelSpec

from kernel_spec.client.process import LauncherError
from kernel_spec.install import install
from tests.kernel_spec.kernel.conftest import ANSWER_SECONDS, FrontEnd, open_front_end, text_of

CELL = """def half(number):
    result = number / 2
    return result

answer = half(84)
print(answer)"""


@dataclass
class Debugger:
    """Sends debug requests to the kernel of a front end."""

    end: FrontEnd
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Return the reply to a request, successful or not."""
        content = {"type": "request", "seq": next(self.numbers), "command": command, "arguments": arguments}
        message = self.end.client.session.msg("debug_request", content)
        self.end.client.control_channel.send(message)
        while True:
            reply = self.end.client.get_control_msg(timeout=ANSWER_SECONDS)
            if reply["parent_header"]["msg_id"] == message["header"]["msg_id"]:
                answer: dict[str, Any] = reply["content"]
                return answer

    def body(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Return the body of the reply to a request that succeeds."""
        reply = self.ask(command, **arguments)
        assert reply["success"], reply
        body: dict[str, Any] = reply.get("body") or {}
        return body

    def wait_for(self, event: str) -> dict[str, Any]:
        """Return the body of the next event of this name."""
        while True:
            message = self.end.client.get_iopub_msg(timeout=ANSWER_SECONDS)
            if message["msg_type"] == "debug_event" and message["content"]["event"] == event:
                body: dict[str, Any] = message["content"].get("body", {})
                return body


@pytest.fixture(scope="module")
def front_end(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FrontEnd]:
    spec_dir = install(prefix=str(tmp_path_factory.mktemp("prefix")), debugger=True)
    assert KernelSpec.from_resource_dir(spec_dir).metadata["debugger"], "JupyterLab looks for this"
    with open_front_end(spec_dir=spec_dir) as opened:
        yield opened


@pytest.fixture
def debugger(front_end: FrontEnd) -> Iterator[Debugger]:
    debugger = Debugger(front_end)
    debugger.body("initialize", clientID="test", adapterID="", pathFormat="path", linesStartAt1=True)
    debugger.body("attach")
    yield debugger
    debugger.body("disconnect", restart=False, terminateDebuggee=False)


def variables(body: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each["value"] for each in body["variables"]}


def test_kernel_offers_the_debugger(front_end: FrontEnd) -> None:
    front_end.client.kernel_info()
    while (reply := front_end.client.get_shell_msg(timeout=ANSWER_SECONDS))["msg_type"] != "kernel_info_reply":
        pass
    assert "debugger" in reply["content"]["supported_features"]


def test_variable_inspector_works_before_the_debugger_is_started(front_end: FrontEnd) -> None:
    front_end.run("import pandas as pd\nsold = pd.DataFrame({'amount': [1, 2]})\ncount = 42")
    debugger = Debugger(front_end)
    assert not debugger.body("debugInfo")["isStarted"]
    seen = variables(debugger.body("inspectVariables"))
    assert seen["count"] == "42"
    assert "sold" in seen
    shown = debugger.body("richInspectVariables", variableName="sold")
    assert "<table" in shown["data"]["text/html"]


def test_breakpoint_stops_a_cell_whose_variables_can_be_read_and_changed(
    front_end: FrontEnd, debugger: Debugger
) -> None:
    path = debugger.body("dumpCell", code=CELL)["sourcePath"]
    (placed,) = debugger.body("setBreakpoints", source={"path": path}, breakpoints=[{"line": 3}])["breakpoints"]
    assert placed["verified"]
    debugger.body("configurationDone")
    request = front_end.client.execute(CELL, allow_stdin=False)
    thread = debugger.wait_for("stopped")["threadId"]
    frame, *callers = debugger.body("stackTrace", threadId=thread)["stackFrames"]
    assert (frame["name"], frame["line"], frame["source"]["path"]) == ("half", 3, path)
    assert [caller["line"] for caller in callers] == [5], callers
    (local, *_) = debugger.body("scopes", frameId=frame["id"])["scopes"]
    found = variables(debugger.body("variables", variablesReference=local["variablesReference"]))
    assert (found["number"], found["result"]) == ("84", "42.0")
    evaluated = debugger.body("evaluate", expression="number + 1", frameId=frame["id"], context="repl")
    assert evaluated["result"] == "85"
    debugger.body("evaluate", expression="result = -1", frameId=frame["id"], context="repl")
    assert thread in debugger.body("debugInfo")["stoppedThreads"]
    debugger.body("continue", threadId=thread)
    reply, messages = front_end.answer(request)
    assert reply["status"] == "ok"
    assert text_of(messages) == "-1\n"


def test_kernel_with_the_debugger_has_no_other_network(front_end: FrontEnd) -> None:
    code = """
import socket
with socket.create_server(('127.0.0.1', 0)) as server:
    socket.create_connection(server.getsockname()).close()
for address in ('1.1.1.1', '169.254.169.254'):
    try:
        socket.create_connection((address, 80), 5)
    except OSError as error:
        print(error.strerror)
print([name for _, name in socket.if_nameindex()])
"""
    assert front_end.printed(code) == "Network is unreachable\n" * 2 + "['lo']\n"


def test_debugger_is_refused_with_the_network_whose_port_others_reach() -> None:
    with (
        pytest.raises(LauncherError, match="the debugger needs a network namespace"),
        open_front_end(debugger=True, allow_network=True),
    ):
        pass
