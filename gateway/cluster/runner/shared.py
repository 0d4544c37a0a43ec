"""The parts of a member that all its jobs in the cluster share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from gateway.cluster.broker import Broker
from gateway.cluster.member import Member, Roster
from gateway.core.settings import Settings
from gateway.jobs.delivery import Deliverer

#: Number of ended jobs that are kept because their records could not be removed; the oldest are dropped first.
MOST_LEFTOVERS = 10_000


@dataclass(slots=True, eq=False)
class Cluster:
    """The parts that all jobs of a member share.

    Attributes
    ----------
    settings : Settings
    me : Member
    broker : Broker
    roster : Roster
    deliverer : Deliverer
        Uploads the log of a job that no host ran.
    on_start : callable
        Called when a host began a job.
    republished, lost : int
        Assignments that were published again; hosts that were lost with a job.
    leftovers : dict of str to None
        Ended jobs whose records are still at the broker, the oldest first: a host would run them once more.
    """

    settings: Settings
    me: Member
    broker: Broker
    roster: Roster
    deliverer: Deliverer
    on_start: Callable[[], None] = lambda: None
    republished: int = 0
    lost: int = 0
    leftovers: dict[str, None] = field(default_factory=dict)

    async def remove(self, execution_id: str) -> None:
        """Remove the record of an ended job, now or by `remove_leftovers`."""
        if not await self.broker.leases.remove(execution_id):
            self.leftovers[execution_id] = None
            if len(self.leftovers) > MOST_LEFTOVERS:
                del self.leftovers[next(iter(self.leftovers))]

    async def remove_leftovers(self) -> None:
        """Remove the records that could not be removed before, as far as the broker answers now."""
        for execution_id in tuple(self.leftovers):
            if not self.broker.is_connected or not await self.broker.leases.remove(execution_id):
                return
            self.leftovers.pop(execution_id, None)
