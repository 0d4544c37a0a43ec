"""Ctrl-C in a console that is attached to a kernel."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from jupyter_client.session import Session
from jupyter_console.ptshell import ZMQTerminalInteractiveShell

from gateway.cli.attached_console import AttachedConsole


def test_the_end_of_an_interrupt_is_not_taken_for_that_of_the_statement() -> None:
    sent: list[dict[str, Any]] = []
    session, channel = Session(key=b"key"), SimpleNamespace(send=sent.append)
    client = SimpleNamespace(session=session, control_channel=channel)
    AttachedConsole.handle_sigint(SimpleNamespace(shell=SimpleNamespace(_executing=True), kernel_client=client))
    (request,) = sent
    assert request["msg_type"] == "interrupt_request"
    is_idle = {"parent_header": request["header"], "msg_type": "status", "content": {"execution_state": "idle"}}
    shell = SimpleNamespace(session_id=session.session)
    assert not ZMQTerminalInteractiveShell.from_here(shell, is_idle)
