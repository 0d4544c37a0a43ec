"""A start whose process dies on the way fails at once, and not when its time is up."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import pytest

from kernel_spec.containment import Containment
from kernel_spec.kernels import Kernel
from kernel_spec.loop import Loop
from kernel_spec.messages import Start
from kernel_spec.seats import SeatUser
from kernel_spec.starting import StartAttempt, Tools
from tests.kernel_spec.test_messages import PLAN


@dataclass
class Keeper:
    """A fork server whose middle process dies before it has said which kernel it forked."""

    keeps_gate: bool
    gates: list[int] = field(default_factory=list)

    def fork(self, number: int, plan: Any, descriptors: list[int]) -> bool:
        if self.keeps_gate:
            self.gates.append(os.dup(descriptors[0]))
        return True


@dataclass
class Listener:
    failures: list[tuple[str, str]] = field(default_factory=list)

    def start_failed(self, attempt: StartAttempt, code: str, message: str) -> None:
        self.failures.append((code, message))


@pytest.mark.parametrize("kernel_lives", [False, True], ids=["nothing was forked", "an unnamed kernel waits"])
def test_middle_process_that_dies_silently_fails_the_start(kernel_lives: bool) -> None:
    keeper, listener = Keeper(kernel_lives), Listener()
    tools = Tools(Loop(), keeper, listener, lambda: None, None, lifeline=-1)  # type: ignore[arg-type]
    kernel = Kernel("k", SeatUser(1, 1), PLAN.seat, Containment(PLAN.seat, own_uid=False))
    outputs = [os.open(os.devnull, os.O_WRONLY) for _ in range(3)]
    attempt = StartAttempt(tools, Start(1, "k", PLAN.limits), 1, kernel, PLAN, outputs)
    try:
        attempt.begin()
        attempt.forked()
        assert [code for code, _ in listener.failures] == ["kernel_start_failed"]
        assert attempt.is_over
    finally:
        attempt.abort()
        for gate in keeper.gates:
            os.close(gate)
