"""A member, and its list of the others: each member sends its state to the others once a second."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from gateway.cluster.broker import Broker, subjects
from gateway.cluster.wire import Beat, decode, encode
from gateway.core.job import HeldKernel
from gateway.core.tasks import set_within
from gateway.core.version import VERSION
from gateway.core.wire import WireError
from gateway.jobs.runner import RunnerStatus, SlotCount

log = logging.getLogger(__name__)

BEAT_SECONDS = 1.0

#: Shortest time between two beats, for changes of the numbers of jobs.
LEAST_BEAT_SECONDS = 0.05

#: A member without a beat for this long no longer counts. Its leases have a clock of their own.
SILENT_SECONDS = 5.0

#: A member without a beat for this long is no longer reported as missing: hosts of a scaler have new names each time.
FORGET_SECONDS = 86_400.0

#: Held kernels in one beat, at most.
MOST_HELD = 100

#: Processes that are remembered as ended.
KNOWN_ENDED = 1000

COPIED = "one has a copy of the STATE_DIR of the other; stop it, remove store/cluster-name there, and start it again"


@dataclass(frozen=True, slots=True)
class Member:
    """One process of a cluster.

    Attributes
    ----------
    name : str
        Stays the same when the member restarts on its state directory.
    boot : str
        Of this process.
    """

    name: str
    boot: str

    @classmethod
    def of(cls, state_dir: Path) -> Member:
        """Return the member that has a state directory, in which its name is kept.

        Parameters
        ----------
        state_dir : Path
            Its job store exists.

        Returns
        -------
        Member
        """
        path = state_dir / "store" / "cluster-name"
        name = path.read_text().strip() if path.exists() else ""
        if not name:  # new, or a full disk or a loss of power left an empty file
            host = "".join(c if c.isascii() and c.isalnum() else "-" for c in socket.gethostname())[:40]
            name = f"{host}-{secrets.token_hex(3)}"
            draft = path.with_name("cluster-name.new")
            draft.write_text(name + "\n")
            draft.replace(path)
        return cls(name, uuid.uuid4().hex[:12])


class Roster:
    """The members, by their beats.

    Parameters
    ----------
    me : Member
    broker : Broker
    status : callable
        Returns the state of this member's own runner.
    accepts : bool
        Whether this member accepts jobs; a member that does not has only itself in its list.
    """

    def __init__(self, me: Member, broker: Broker, status: Callable[[], RunnerStatus], *, accepts: bool = True) -> None:
        self._me = me
        self._broker = broker
        self._status = status
        self._accepts = accepts
        self._changed = asyncio.Event()
        #: Returns how many jobs of this member wait for a host.
        self.waiting: Callable[[], int] = lambda: 0
        #: Returns the hosts that run jobs of this member now, once for each job.
        self.busy_hosts: Callable[[], Iterable[str]] = lambda: ()
        #: Returns whether this member stops, so that the others cannot use its slots.
        self.is_draining: Callable[[], bool] = lambda: False
        #: Returns the kernels that this member holds.
        self.held: Callable[[], Sequence[HeldKernel]] = lambda: ()
        self._beats: dict[str, tuple[Beat, float]] = {}
        self._ended: deque[tuple[str, str]] = deque(maxlen=KNOWN_ENDED)
        #: Names that two processes have, and when both were last heard of.
        self._doubled: dict[str, float] = {}
        self._on_news: Callable[[], None] = lambda: None

    def on_news(self, callback: Callable[[], None]) -> None:
        """Set the function that is called when a member came, left or restarted."""
        self._on_news = callback

    async def beat(self) -> None:
        """Send beats until cancelled, and receive those of others if this member accepts jobs: a host may not."""
        if self._accepts:
            await self._broker.listen(subjects.ALL_BEATS, self._take)
        while True:
            await self._broker.send(subjects.beat(self._me.name), encode(self._own(leaving=False)))
            await asyncio.sleep(LEAST_BEAT_SECONDS)
            await set_within(self._changed, BEAT_SECONDS - LEAST_BEAT_SECONDS)
            self._changed.clear()

    def changed(self) -> None:
        """Send the changed numbers of jobs to the others soon."""
        self._changed.set()

    async def leave(self) -> None:
        """Send the last beat of this member, which stops."""
        await self._broker.send(subjects.beat(self._me.name), encode(self._own(leaving=True)))

    def members(self) -> list[Beat]:
        """Return the last beats of the live members, this one included."""
        oldest = time.monotonic() - SILENT_SECONDS
        others = [beat for beat, at in self._beats.values() if at >= oldest and not beat.leaving]
        return sorted([self._own(leaving=False), *others], key=lambda beat: beat.name)

    def silent(self) -> list[Beat]:
        """Return the last beats of the others that have been live since this member started, and are not now."""
        there = {beat.name for beat in self.members()}
        return [beat for beat, _ in self._beats.values() if beat.name not in there]

    def held_kernels(self) -> list[HeldKernel]:
        """Return the kernels that all members hold, the oldest first."""
        found = [on_host(kernel, beat.name) for beat in self.members() for kernel in beat.held]
        return sorted(found, key=lambda kernel: kernel.held_at)

    def released(self, host: str, name: str) -> None:
        """Remove a held kernel of another member, ahead of the next beat of this member."""
        beat, at = self._beats[host]
        self._beats[host] = replace(beat, held=tuple(kernel for kernel in beat.held if kernel.id != name)), at

    def slots(self) -> SlotCount:
        """Return the slots of all members together."""
        members = self.members()
        there = [beat for beat in members if beat.healthy]
        waiting = sum(beat.waiting for beat in members if beat.name != self._me.name)
        own = Counter(self.busy_hosts())  # the last beat of a host may be older than the job that it has begun
        busy = sum(max(beat.busy, own[beat.name]) for beat in there)
        return SlotCount(sum(beat.slots for beat in there), busy, wanted=waiting)

    def is_gone(self, host: str, boot: str) -> bool:
        """Return whether the process of a host is known to have ended: it left or restarted."""
        if self._is_doubled(host):  # a new process does not mean that the other one has ended: its leases show it
            return False
        if host == self._me.name:
            return boot != self._me.boot
        return (host, boot) in self._ended

    def _own(self, *, leaving: bool) -> Beat:
        status = self._status()
        tier = str(status.details.get("sandbox", {}).get("tier", ""))
        busy, total = status.slots.busy - status.slots.ending, status.slots.total
        return Beat(
            self._me.name,
            self._me.boot,
            VERSION,
            tier,
            total,
            busy,
            status.healthy and not self.is_draining(),
            leaving,
            self._accepts,
            self.waiting(),
            str(status.details.get("added_packages", {}).get("digest", "")),
            tuple(self.held()[:MOST_HELD]),
        )

    def _take(self, data: bytes) -> None:
        try:
            beat = decode(Beat, data)
        except WireError:
            return  # a member of another major version; it has streams of its own
        if beat.name == self._me.name:
            if beat.boot != self._me.boot:
                self._double(beat.name)
            return
        if (beat.name, beat.boot) in self._ended and not beat.leaving:
            self._ended.remove((beat.name, beat.boot))
            self._double(beat.name)
        known, now = self._beats.get(beat.name), time.monotonic()
        if known is None:
            self._beats = {name: each for name, each in self._beats.items() if each[1] > now - FORGET_SECONDS}
        self._beats[beat.name] = beat, now
        if beat.leaving:
            self._ended.append((beat.name, beat.boot))
        if known is not None and known[0].boot != beat.boot:
            self._ended.append((beat.name, known[0].boot))
        if known is None or (known[0].boot, known[0].leaving) != (beat.boot, beat.leaving):
            self._on_news()

    def _double(self, name: str) -> None:
        if not self._is_doubled(name):
            log.error("two members of the cluster have the name %s: %s", name, COPIED)
        self._doubled[name] = time.monotonic()

    def _is_doubled(self, name: str) -> bool:
        return time.monotonic() - self._doubled.get(name, float("-inf")) < SILENT_SECONDS


def on_host(kernel: HeldKernel, host: str) -> HeldKernel:
    """Return a held kernel with the name of its host."""
    return replace(kernel, access={**kernel.access, "host": host})
