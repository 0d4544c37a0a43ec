"""Which processes belong to a kernel, and how to end them all."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import dataclass

from kernel_spec.messages import SeatInfo
from kernel_spec.sandbox import seat_mark


@dataclass(frozen=True, slots=True)
class Containment:
    own_uid: bool
    seat: SeatInfo

    def living(self) -> list[int]:
        return [pid for pid in _all_pids() if self._belongs(pid)]

    def kill(self) -> None:
        for pid in self.living():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _belongs(self, pid: int) -> bool:
        try:
            if self.own_uid:
                if os.stat(f"/proc/{pid}").st_uid != self.seat.uid:
                    # not dumpable: /proc belongs to root
                    with open(f"/proc/{pid}/status") as f:
                        uid = next(int(l.split()[1]) for l in f if l.startswith("Uid:"))
                    if uid != self.seat.uid:
                        return False
            elif not _marked(pid, seat_mark(self.seat.seat_dir)):
                return False
            with open(f"/proc/{pid}/stat") as f:
                return f.read().rsplit(")", 1)[1].split()[0] not in ("Z", "X")
        except (OSError, StopIteration):
            return False


def _marked(pid: int, mark: int) -> bool:
    with open(f"/proc/{pid}/limits") as f:
        return any(l.startswith("Max realtime timeout") and str(mark) in l for l in f)


def _all_pids() -> list[int]:
    return [int(n) for n in os.listdir("/proc") if n.isdigit()]
