"""The lease under lost replies, late writes, pauses and hosts that vanish: one answer, and no upload after its end.

To see the state machine work, break the lease: it fails within seconds if `Lease.found` goes on from a foreign
revision, if `Lease.may_upload` ignores the margin, or if a lost reply on the verdict counts as a lost lease.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.cluster.lease import LEASE_SECONDS, Hold, Lease, Observation, Write, queued_again
from gateway.cluster.wire import LeaseRecord, Phase
from gateway.core.job import Verdict

#: How long the last block of an upload may take once it is permitted: what the margin and the rest of the lease allow.
SLOWEST_BLOCK_SECONDS = 2.0


QUEUED = LeaseRecord(Phase.QUEUED, 1, "front")


@dataclass
class Store:
    """The compare-and-set record at the broker."""

    record: LeaseRecord = QUEUED
    revision: int = 1
    done: int = 0

    def apply(self, write: Write) -> bool:
        if write.revision != self.revision:
            return False
        self.revision += 1
        self.record = write.record
        self.done += write.record.phase is Phase.DONE
        return True


@dataclass
class Host:
    """A host with at most one lease, and what it has on its way."""

    name: str
    lease: Lease | None = None
    late: list[Write] = field(default_factory=list)  # writes whose reply is lost, and which may still take effect
    arrivals: list[tuple[float, int]] = field(default_factory=list)  # time and attempt of last blocks on their way
    is_unsure: bool = False


HOSTS = st.integers(0, 1)
FATES = st.sampled_from(["confirmed", "confirmed", "reply lost", "request lost", "late"])


class LeaseMachine(RuleBasedStateMachine):
    """Every host acts as often as it can: a rule is drawn only for a host that may take this step."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.store = Store()
        self.hosts = [Host("a"), Host("b")]
        self.observation = Observation(lambda: self.now)

    def runs(self, *phases: Phase) -> list[Host]:
        """Return the hosts that know where they stand and may go on in one of the phases."""
        return [
            host
            for host in self.hosts
            if host.lease is not None
            and not host.is_unsure
            and host.lease.may_run()
            and host.lease.record.phase in phases
        ]

    def send(self, host: Host, phase: Phase, fate: str) -> None:
        """Send one write of the holder. Unless it is confirmed, the host must look before it goes on."""
        lease = host.lease
        assert lease is not None
        write = lease.write(phase, Verdict(None, "", 0) if phase is Phase.DONE else None)
        if fate == "late":
            host.late.append(write)
        elif fate != "request lost" and self.store.apply(write) and fate == "confirmed":
            lease.found(write.record, self.store.revision)
            return
        host.is_unsure = True

    @precondition(lambda self: self.store.record.phase is Phase.QUEUED)
    @rule(number=HOSTS)
    def read(self, number: int) -> None:
        host = self.hosts[number]
        host.lease = Lease(self.store.record, self.store.revision, host.name, f"boot-{host.name}", lambda: self.now)
        host.late, host.is_unsure = [], False

    def claiming(self) -> list[Host]:
        """Return the hosts that read a record, and have not yet learnt whether they have it."""
        return [
            host
            for host in self.hosts
            if host.lease is not None
            and host.lease.hold is Hold.HELD
            and not host.lease.is_claimed
            and not host.is_unsure
        ]

    @precondition(lambda self: self.claiming())
    @rule(data=st.data(), fate=FATES)
    def claim(self, data: st.DataObject, fate: str) -> None:
        self.send(data.draw(st.sampled_from(self.claiming())), Phase.RUNNING, fate)

    @precondition(lambda self: self.runs(Phase.RUNNING, Phase.DELIVERING))
    @rule(data=st.data(), fate=FATES)
    def renew(self, data: st.DataObject, fate: str) -> None:
        host = data.draw(st.sampled_from(self.runs(Phase.RUNNING, Phase.DELIVERING)))
        self.send(host, host.lease.record.phase, fate)

    @precondition(lambda self: self.runs(Phase.RUNNING))
    @rule(data=st.data(), fate=FATES)
    def begin_delivery(self, data: st.DataObject, fate: str) -> None:
        self.send(data.draw(st.sampled_from(self.runs(Phase.RUNNING))), Phase.DELIVERING, fate)

    @precondition(lambda self: self.runs(Phase.DELIVERING))
    @rule(data=st.data(), seconds=st.sampled_from([SLOWEST_BLOCK_SECONDS, 0.5]))
    def upload(self, data: st.DataObject, seconds: float) -> None:
        host = data.draw(st.sampled_from(self.runs(Phase.DELIVERING)))
        if host.lease.may_upload():
            host.arrivals.append((self.now + seconds, host.lease.record.attempt))

    @precondition(lambda self: self.runs(Phase.DELIVERING))
    @rule(data=st.data(), fate=st.sampled_from(["reply lost", "reply lost", "late", "confirmed"]))
    def finish(self, data: st.DataObject, fate: str) -> None:
        host = data.draw(st.sampled_from(self.runs(Phase.DELIVERING)))
        if not host.arrivals:
            self.send(host, Phase.DONE, fate)

    @precondition(lambda self: any(host.is_unsure for host in self.hosts))
    @rule()
    def look(self) -> None:
        """The hosts read the record after a write without a reply, and know afterwards where they stand."""
        record = self.store.record
        for host in self.hosts:
            if host.lease is not None and host.is_unsure:
                host.lease.found(record, self.store.revision)
                host.is_unsure = False
                if record.phase is Phase.DONE and record.host == host.name:
                    assert host.lease.hold is Hold.DONE, "its verdict stands, and it takes its lease for lost"

    @precondition(lambda self: any(host.late for host in self.hosts))
    @rule()
    def late_writes(self) -> None:
        for host in self.hosts:
            while host.late:
                self.store.apply(host.late.pop(0))

    @rule(seconds=st.sampled_from([0.5, 1.9, 3.8, LEASE_SECONDS]))
    def advance(self, seconds: float) -> None:
        """Time goes by; the member that accepted the job looks all the time."""
        target = self.now + seconds
        while self.now < target:
            self.now += 0.1
            self.blocks_arrive()
            self.front_looks()

    def blocks_arrive(self) -> None:
        record = self.store.record
        for host in self.hosts:
            for at, attempt in [each for each in host.arrivals if each[0] <= self.now]:
                is_its = (record.host, record.attempt) == (host.name, attempt)
                assert is_its, f"a block of {host.name}'s attempt {attempt} arrived at {at}; the record is {record}"
                host.arrivals.remove((at, attempt))

    def front_looks(self) -> None:
        """Give the job to another host as soon as that is allowed."""
        store = self.store
        if store.record.phase in (Phase.RUNNING, Phase.DELIVERING):
            self.observation.saw(store.revision)
            if self.observation.is_over():
                assert store.apply(Write(queued_again(store.record), store.revision))

    @invariant()
    def one_verdict(self) -> None:
        assert self.store.done <= 1

    @invariant()
    def a_host_that_may_run_has_the_record(self) -> None:
        for host in self.hosts:
            if host.lease is not None and host.lease.may_run():
                assert (self.store.record.host, self.store.record.attempt) == (host.name, host.lease.record.attempt)


TestLease = LeaseMachine.TestCase
TestLease.settings = settings(derandomize=True, max_examples=300, stateful_step_count=40)


def held(clock: list[float]) -> Lease:
    lease = Lease(LeaseRecord(Phase.QUEUED, 1, "front"), 1, "a", "boot", lambda: clock[0])
    lease.found(lease.write(Phase.RUNNING).record, 2)
    return lease


def test_a_holder_ends_at_four_fifths_of_the_lease() -> None:
    assert LEASE_SECONDS == 6.0  # docs/cluster.md and SECURITY.md say so
    clock = [0.0]
    lease = held(clock)
    clock[0] = 0.79 * LEASE_SECONDS
    assert lease.may_run()
    clock[0] = 0.8 * LEASE_SECONDS
    assert not lease.may_run()
    lease.found(lease.write(Phase.RUNNING).record, 3)
    assert not lease.may_run(), "a fenced holder came back"


def test_no_last_block_in_the_second_before_the_fence() -> None:
    clock = [0.0]
    lease = held(clock)
    lease.found(lease.write(Phase.DELIVERING).record, 3)
    clock[0] = 0.8 * LEASE_SECONDS - 1.0
    assert lease.may_upload()
    clock[0] += 0.01
    assert not lease.may_upload()
    assert lease.may_run()


def test_no_upload_before_the_record_says_that_it_delivers() -> None:
    assert not held([0.0]).may_upload()


def test_a_verdict_whose_reply_was_lost_stands() -> None:
    clock = [0.0]
    lease = held(clock)
    lease.found(lease.write(Phase.DELIVERING).record, 3)
    write = lease.write(Phase.DONE, Verdict(None, "", 0))
    clock[0] = 2 * LEASE_SECONDS
    assert not lease.may_run()
    lease.found(write.record, 4)  # read, not confirmed
    assert lease.hold is Hold.DONE


def test_a_foreign_revision_ends_the_lease() -> None:
    for record in (
        LeaseRecord(Phase.RUNNING, 2, "front", "b", "boot", 1),
        LeaseRecord(Phase.RUNNING, 1, "front", "a", "another boot", 1),
        LeaseRecord(Phase.QUEUED, 2, "front"),
        None,
    ):
        lease = held([0.0])
        lease.found(record, 3)
        assert lease.hold is Hold.LOST


def test_a_job_that_was_queued_anew_is_not_claimed_by_its_old_message() -> None:
    for revision in (1, 3):
        lease = Lease(QUEUED, 2, "a", "boot")
        lease.write(Phase.RUNNING)
        lease.found(QUEUED, revision)
        assert lease.hold is Hold.LOST


def test_a_write_that_never_arrived_can_be_sent_again() -> None:
    lease = held([0.0])
    before = lease.record
    lease.write(Phase.DELIVERING)
    lease.found(before, 2)
    assert lease.hold is Hold.HELD
    assert lease.write(Phase.DELIVERING).revision == 2
