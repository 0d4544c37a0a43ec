"""The installation of the filter of system calls, and its program."""

from __future__ import annotations

import os
import socket
import struct
import threading

import pytest

from kernel_spec.linux import syscalls
from kernel_spec.sandbox import SandboxError
from kernel_spec.sandbox.layers import no_new_privs, seccomp
from kernel_spec.sandbox.layers.seccomp import Policy
from kernel_spec.sandbox.policy.plan import SECCOMP
from tests.kernel_spec.sandbox.children import in_child, make_plan, outcome
from tests.kernel_spec.sandbox.layers.test_seccomp import (
    BROKER,
    CLOSED,
    NETWORK,
    OPEN,
    enter,
    open_socket,
)


def test_a_filter_is_installed_when_the_host_has_memory_for_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    refusals = iter([524, 524])
    install = syscalls.seccomp_filter

    def install_later(program: bytes, *, with_listener: bool = False) -> int | None:
        for number in refusals:
            raise OSError(number, "seccomp: Unknown error 524")
        return install(program, with_listener=with_listener)

    def child() -> list[str]:
        no_new_privs.apply()
        seccomp.apply(make_plan("/unused", frozenset({SECCOMP})))
        return [outcome(lambda: os.chroot("/"))]

    monkeypatch.setattr(syscalls, "seccomp_filter", install_later)
    assert in_child(child) == ["EPERM"], "the filter is there, and refuses"


def test_filter_reaches_threads_that_run_already() -> None:
    def child() -> str:

        go, found = threading.Event(), []
        thread = threading.Thread(target=lambda: (go.wait(60), found.append(outcome(open_socket(socket.AF_INET)))))
        thread.start()
        enter(OPEN)
        go.set()
        thread.join()
        return found[0]

    assert in_child(child) == "EAFNOSUPPORT"


def test_filter_without_no_new_privs_is_an_error() -> None:
    def child() -> str:
        if os.geteuid() == 0:
            os.setresuid(60177, 60177, 60177)
        return outcome(lambda: syscalls.seccomp_filter(seccomp.program(OPEN)))

    assert in_child(child) == "EACCES"


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("policy", [OPEN, CLOSED, NETWORK, BROKER], ids=["open", "closed", "network", "broker"])
def test_program_checks_the_architecture_first_and_every_jump_lands_inside(machine: str, policy: Policy) -> None:
    code = list(struct.iter_unpack("=HBBI", seccomp.program(policy, machine)))
    assert code[0] == (0x20, 0, 0, 4)
    assert code[1][0] == 0x15
    assert code[1][3] == {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}[machine]
    for index, (operation, jump_true, jump_false, value) in enumerate(code):
        if operation & 7 == 5:
            far = value if operation == 0x05 else max(jump_true, jump_false)
            assert index + 1 + far < len(code)
    assert code[-1] == (0x06, 0, 0, 0x7FFF0000)


def test_unknown_architecture_is_an_error() -> None:
    with pytest.raises(SandboxError, match="riscv64"):
        seccomp.program(OPEN, "riscv64")
