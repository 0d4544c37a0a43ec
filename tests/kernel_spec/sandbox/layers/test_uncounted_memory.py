"""Memory of Linux itself that counts for no job."""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
import struct

import pytest

from kernel_spec.linux import syscalls
from kernel_spec.sandbox.layers import no_new_privs, seccomp
from kernel_spec.sandbox.layers.seccomp_rules import Policy
from tests.kernel_spec.sandbox.children import call_by_number, in_child, outcome
from tests.kernel_spec.sandbox.layers.test_seccomp import BROKER, CLOSED, NETWORK, OPEN, before_and_after, number

#: A filter that lets everything pass, and its struct sock_fprog.
PROGRAM = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000), 8)
FILTER = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", 1, ctypes.addressof(PROGRAM)), 16)


@pytest.mark.parametrize("policy", [OPEN, CLOSED, NETWORK, BROKER], ids=["open", "closed", "network", "broker"])
def test_no_descriptor_keeps_a_filter_in_the_memory_that_all_of_the_machine_shares(policy: Policy) -> None:
    """A job that kept thousands of them took all of it, and no other kernel could start."""

    def attach_to_a_socket() -> None:
        one, other = socket.socketpair()
        with one, other:
            one.setsockopt(socket.SOL_SOCKET, 26, bytes(FILTER))  # SO_ATTACH_FILTER

    def add(flags: int) -> int:
        return call_by_number(number("seccomp"), 1, flags, ctypes.addressof(FILTER))

    def with_listener() -> None:
        os.close(add(8))

    def child(*, is_job: bool) -> list[str]:
        no_new_privs.apply()
        if is_job:
            syscalls.seccomp_filter(seccomp.program(policy))
        return [outcome(attach_to_a_socket), outcome(with_listener), outcome(lambda: add(0))]

    assert in_child(lambda: child(is_job=False)) == ["worked", "worked", "worked"]
    assert in_child(lambda: child(is_job=True)) == ["EPERM", "EINVAL", "worked"]


def test_no_huge_page_is_taken_which_counts_nowhere() -> None:
    size_that_no_machine_has = 5 << 26
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000 | size_that_no_machine_has
    assert before_and_after(lambda: call_by_number(number("mmap"), 0, 4096, 3, flags, -1, 0)) == ["EINVAL", "ENOMEM"]
    assert before_and_after(lambda: mmap.mmap(-1, 1 << 20).close()) == ["worked", "worked"]
