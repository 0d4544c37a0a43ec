"""The right to run one attempt of a job, as logic without input and output.

A holder writes the lease record by compare-and-set only. Each of its writes is numbered and says whose it is, so after
a lost reply one read shows whether the write took effect. Clocks of two machines are never compared: a holder counts
from before it sent a write that was confirmed, and an observer from when it first saw a revision, which is later. So
with the same `LEASE_SECONDS`, a holder stops before an observer may give the job to another host.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from msgspec.structs import replace

from gateway.cluster.wire import LeaseRecord, Phase
from gateway.core.job import Verdict

#: How long a host may fail to renew before another one gets its job.
LEASE_SECONDS = 6.0

#: Part of the lease after which a holder without a confirmation ends its job. The rest is for the kill, which takes
#: milliseconds, and for clocks that differ.
FENCE_SHARE = 0.8

#: Part of the lease after which it is renewed.
RENEW_SHARE = 1 / 3

#: The last block of an upload is sent only if this much is left until the fence: a store may take as long to get it.
UPLOAD_MARGIN_SECONDS = 1.0


def boottime() -> float:
    """Return the seconds of the clock that also counts while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Hold(StrEnum):
    """Whether an attempt is still its holder's."""

    HELD = "held"
    LOST = "lost"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Write:
    """One compare-and-set of a holder.

    Attributes
    ----------
    record : LeaseRecord
        The new value.
    revision : int
        The revision that it replaces.
    """

    record: LeaseRecord
    revision: int


@dataclass(slots=True)
class Lease:
    """The holder's side.

    Parameters
    ----------
    record : LeaseRecord
        The queued record that was found.
    revision : int
        Its revision.
    host, boot : str
        The holder.
    clock : callable
        Returns seconds.
    seconds : float
        Length of the lease.
    """

    record: LeaseRecord
    revision: int
    host: str
    boot: str
    clock: Callable[[], float] = boottime
    seconds: float = LEASE_SECONDS
    hold: Hold = Hold.HELD
    _confirmed_at: float = float("-inf")
    _writes: int = 0
    _sent_at: dict[int, float] = field(default_factory=dict)

    @property
    def is_claimed(self) -> bool:
        """Whether a write of the holder was ever confirmed."""
        return self._confirmed_at > float("-inf")

    @property
    def fence_at(self) -> float:
        """Time, by the holder's clock, at which it must have ended the job unless another write is confirmed."""
        return self._confirmed_at + FENCE_SHARE * self.seconds

    @property
    def renew_at(self) -> float:
        """Time of the next renewal."""
        return self._confirmed_at + RENEW_SHARE * self.seconds

    def write(self, phase: Phase, verdict: Verdict | None = None, events: int = 0, *, is_lost: bool = False) -> Write:
        """Return the compare-and-set that brings the attempt to a phase, or renews the lease in the same phase.

        Parameters
        ----------
        phase : Phase
            The next one, or the present one.
        verdict : Verdict, optional
            With ``done``.
        events : int
            With ``done``: number of events.
        is_lost : bool
            With ``done``: the machine failed and not the job.
        """
        self._writes += 1
        self._sent_at[self._writes] = self.clock()
        record = replace(
            self.record,
            phase=phase,
            host=self.host,
            boot=self.boot,
            write=self._writes,
            verdict=verdict,
            events=events,
            is_lost=is_lost,
        )
        return Write(record, self.revision)

    def found(self, record: LeaseRecord | None, revision: int) -> None:
        """Process the broker's record: after a confirmed write, or as read after any other write.

        The holder goes on from a newer revision only if the record is its own write of this attempt. Any other newer
        revision was written by another process, and the lease is lost. A job that was not claimed yet is lost at any
        other revision: the broker has lost its data, and the job is queued anew.

        Parameters
        ----------
        record : LeaseRecord or None
            None if there is none.
        revision : int
            Its revision.
        """
        if record is not None and self.is_mine(record) and record.phase is Phase.DONE:
            # also after the fence: the verdict is valid, and no other process will write one
            self.hold, self.record = Hold.DONE, record
        if self.hold is not Hold.HELD:
            return
        if record is not None and self.is_mine(record):
            if revision >= self.revision:  # a read may be answered by a replica that is behind
                self.record, self.revision = record, revision
                self._confirmed_at = max(self._confirmed_at, self._sent_at[record.write])
        elif record is None or revision > self.revision or (revision != self.revision and not self.is_claimed):
            self.hold = Hold.LOST

    def may_run(self) -> bool:
        """Return whether the job may go on; once False it is always False, but for a verdict that is recorded."""
        if not self.is_claimed:
            return False
        if self.hold is Hold.HELD and self.clock() >= self.fence_at:
            self.hold = Hold.LOST
        return self.hold is Hold.HELD

    def may_upload(self) -> bool:
        """Return whether the last block of an upload may be sent now; if not, a renewal may permit it."""
        return (
            self.may_run()
            and self.record.phase is Phase.DELIVERING
            and self.clock() + UPLOAD_MARGIN_SECONDS <= self.fence_at
        )

    def is_mine(self, record: LeaseRecord) -> bool:
        """Return whether a record is a write of this holder, for this attempt."""
        holder = (record.attempt, record.host, record.boot) == (self.record.attempt, self.host, self.boot)
        return holder and record.write in self._sent_at


@dataclass(slots=True)
class Observation:
    """The side of a member that waits for a lease to end.

    Parameters
    ----------
    clock : callable
        Returns seconds.
    seconds : float
        Length of the lease.
    """

    clock: Callable[[], float] = boottime
    seconds: float = LEASE_SECONDS
    _revision: int = -1
    _since: float = 0.0
    _looked_at: float = 0.0

    def saw(self, revision: int) -> None:
        """Process the present revision.

        After a time without a read, as while the broker is down, the holder gets the whole lease again: it could not
        write either, and may have a verdict to record.

        Parameters
        ----------
        revision : int
            As it was read now.
        """
        now = self.clock()
        if revision != self._revision or now - self._looked_at > self.seconds / 2:
            self._revision, self._since = revision, now
        self._looked_at = now

    def is_over(self) -> bool:
        """Return whether the holder must have ended: its revision has not changed for the length of the lease."""
        return self.clock() - self._since >= self.seconds


def queued_again(record: LeaseRecord) -> LeaseRecord:
    """Return the record of the next attempt."""
    return LeaseRecord(Phase.QUEUED, record.attempt + 1, record.owner, avoided=record.host)
