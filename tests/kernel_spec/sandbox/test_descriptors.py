# ruff: noqa: PTH115
from __future__ import annotations

import os
import resource

from kernel_spec.sandbox import descriptors
from tests.kernel_spec.sandbox.children import in_child


def test_only_the_kept_descriptors_stay_open() -> None:
    def child() -> list[object]:
        reader, writer = os.pipe()
        _, highest = resource.getrlimit(resource.RLIMIT_NOFILE)
        high = os.dup2(writer, min(highest, 900) - 1)
        before = high in descriptors.open_descriptors()
        standard = os.dup(2)
        answer = next(fd for fd in descriptors.open_descriptors() if fd not in (0, 1, 2, reader, writer, high))
        keep = {1, 2, writer, standard, *(fd for fd in descriptors.open_descriptors() if fd == answer)}
        # The pipe by which the test hears from this child is among the open ones: keep every pipe's write end.
        keep |= {fd for fd in descriptors.open_descriptors() if _is_answer(fd, reader, writer, high)}
        descriptors.close_all_but(keep)
        left = set(descriptors.open_descriptors())
        return [before, high in left, reader in left, writer in left, left <= keep]

    assert in_child(child) == [True, False, False, True, True]


def _is_answer(fd: int, *not_these: int) -> bool:
    return fd not in not_these and os.readlink(f"/proc/self/fd/{fd}").startswith("pipe:")
