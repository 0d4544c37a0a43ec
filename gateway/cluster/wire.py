"""The messages between members: tagged, versioned and capped JSON, never a pickled object.

Within one version members are only added, and unknown ones are ignored. The job inside an assignment is the exception:
`gateway.core.wire` refuses what it does not know, because a host would otherwise run another job than the accepted one.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TypeVar

import msgspec
from msgspec import Raw, Struct

from gateway.cluster.broker import MESSAGE_CAP_BYTES
from gateway.core.events import Event
from gateway.core.job import HeldKernel, Verdict
from gateway.core.wire import WireError, to_json

#: Raised when a member is removed or changes its meaning. It is also part of each subject
#: (`gateway.cluster.broker.subjects`).
CLUSTER_VERSION = 1

#: Largest batch of events, before the next message begins.
BATCH_BYTES = 64_000

M = TypeVar("M", bound="Message")


class Phase(StrEnum):
    """The phase of an attempt."""

    QUEUED = "queued"
    RUNNING = "running"
    DELIVERING = "delivering"
    DONE = "done"


class Message(Struct, frozen=True, kw_only=True):
    """A message; its version comes last, in the constructor by name only."""

    version: int = CLUSTER_VERSION


class LeaseRecord(Message, frozen=True, tag="lease"):
    """The state of one job in the cluster; each change is a compare-and-set on its revision.

    Attributes
    ----------
    phase : Phase
    attempt : int
        Counted from 1, by the member that accepted the job.
    owner : str
        Name of that member; in the message it is called ``front``.
    host, boot : str
        Name of the member that runs it, and the id of this member's process; empty while the job is queued.
    write : int
        Number of this write of the holder, from 1.
    verdict : Verdict or None
        With ``done``.
    events : int
        With ``done``: number of events of the attempt.
    is_lost : bool
        With ``done``: the machine failed and not the job, and nothing was uploaded.
    avoided : str
        The host of the earlier attempt, which waits a moment so that another host takes the job.
    """

    phase: Phase
    attempt: int
    owner: str = msgspec.field(name="front")
    host: str = ""
    boot: str = ""
    write: int = 0
    verdict: Verdict | None = None
    events: int = 0
    is_lost: bool = False
    avoided: str = ""


class Assignment(Message, frozen=True, tag="assignment"):
    """One attempt of a job, for any host.

    Attributes
    ----------
    id : str
        The execution id.
    attempt : int
    owner : str
        Name of the member that accepted the job; in the message it is called ``front``.
    software : str
        Version of this member's software.
    job : Raw
        As `gateway.core.wire.encode_job` writes it.
    lines : tuple of Raw
        Lines of the log so far, as `gateway.core.log_json` writes them.
    job_url : str
        URL of a parcel with the job, where it is too large for a message; `job` is null then.
    revision : int
        Revision of the queued record, so that a host can claim it without reading it; 0 if it must read it.
    """

    id: str
    attempt: int
    owner: str = msgspec.field(name="front")
    software: str
    job: Raw
    lines: tuple[Raw, ...] = ()
    job_url: str = ""
    revision: int = 0


class EventBatch(Message, frozen=True, tag="events"):
    """Events of one attempt, the first of which has the number `first`.

    An empty batch means that the lease changed. After the last event it has the record with the verdict.
    """

    id: str
    attempt: int
    first: int
    events: tuple[Event, ...] = ()
    lease: LeaseRecord | None = None


class EventsWanted(Message, frozen=True, tag="events_wanted"):
    """Asks a host for the events of an attempt from a number on; the answer is an `EventBatch`.

    Once the job is answered, `is_answered` says that no more will be asked for, and no answer is expected.
    """

    id: str
    attempt: int
    first: int
    is_answered: bool = False


class Cancel(Message, frozen=True, tag="cancel"):
    """Asks a host to end an attempt; the answer is `Taken`."""

    id: str
    cause: str
    hold_seconds: float = 0.0


class Release(Message, frozen=True, tag="release"):
    """Asks a host to end a kernel that it holds; the answer is `Taken`."""

    id: str


class Taken(Message, frozen=True, tag="taken"):
    """The answer to `Cancel` and `Release`: whether the host runs the job, or held the kernel."""

    known: bool


class Beat(Message, frozen=True, tag="beat"):
    """The state of a member, each second.

    Attributes
    ----------
    name, boot : str
        Name of the member, and id of its process.
    software : str
        Version.
    tier : str
        Tier of its sandbox; empty if it runs no jobs.
    slots, busy : int
    healthy : bool
    leaving : bool
        The last beat of a member that stops.
    accepts : bool
        Whether it accepts jobs, and so keeps records of some.
    waiting : int
        Number of jobs that it accepted and that wait for a slot of any host.
    packages : str
        Digest of the packages that were added for its jobs; empty if there are none.
    held : tuple of HeldKernel
        The kernels that it holds.
    """

    name: str
    boot: str
    software: str
    tier: str
    slots: int
    busy: int
    healthy: bool
    leaving: bool = False
    accepts: bool = True
    waiting: int = 0
    packages: str = ""
    held: tuple[HeldKernel, ...] = ()


class Claim(Message, frozen=True, tag="claim"):
    """Assigns a request id to a job in the cluster and its member. It expires unless it is renewed."""

    member: str
    boot: str
    execution_id: str


class Owner(Message, frozen=True, tag="owner"):
    """The name of the member that accepted a job."""

    member: str


class Question(Message, frozen=True, tag="question"):
    """Asks a member to answer an HTTP request about a job that it keeps; the answer is a `Part`.

    The asking member has checked the caller's token and sends its name and kind.
    """

    id: str
    asker: str
    method: str
    uri: str
    headers: dict[str, str]
    body: bytes
    token_name: str | None
    token_kind: int


class PartWanted(Message, frozen=True, tag="part_wanted"):
    """Asks for the next part of an answer, or with the number -1 for its end; the answer is a `Part`."""

    id: str
    number: int


class Part(Message, frozen=True, tag="part"):
    """A part of an answer; status 0 means that the member has no answer."""

    id: str
    number: int
    is_last: bool
    status: int
    headers: tuple[tuple[str, str], ...] = ()
    data: bytes = b""


class _Head(Struct):
    type: str
    version: int


def encode(message: Message) -> bytes:
    """Return the JSON form of a message.

    Raises
    ------
    WireError
        It is larger than a message may be.
    """
    data = to_json(message)
    if len(data) > MESSAGE_CAP_BYTES:
        raise WireError(f"the message has {len(data)} bytes, and at most {MESSAGE_CAP_BYTES} are allowed")
    return data


def decode(kind: type[M], data: bytes) -> M:
    """Return the message of one kind that `encode` wrote.

    Raises
    ------
    WireError
        The text names the member that is wrong.
    """
    if len(data) > MESSAGE_CAP_BYTES:
        raise WireError(f"a message of {len(data)} bytes; at most {MESSAGE_CAP_BYTES} are allowed")
    tag = kind.__struct_config__.tag
    try:
        head = _HEAD.decode(data)
        if head.type != tag:
            raise WireError(f"expected a message of type {tag!r}, not {head.type[:40]!r}")
        if head.version != CLUSTER_VERSION:
            raise WireError(f"the {tag} is of version {head.version}; this member reads version {CLUSTER_VERSION}")
        return msgspec.json.decode(data, type=kind)
    except WireError:
        raise
    except (ValueError, RecursionError) as error:
        raise WireError(f"the {tag} cannot be read: {error}") from None


def is_a(kind: type[Message], data: bytes) -> bool:
    """Return whether a message is of one kind, where a subject has several."""
    try:
        return _HEAD.decode(data).type == kind.__struct_config__.tag
    except ValueError:
        return False


def batches(id: str, attempt: int, first: int, events: list[Event]) -> list[EventBatch]:
    """Return events, the first of which has the number `first`, as messages of about `BATCH_BYTES` at most each.

    Only one with a single event may be larger.
    """
    made, start, size = [], 0, 0
    for place, event in enumerate(events):
        more = len(to_json(event)) + 1
        if size and size + more > BATCH_BYTES:
            made.append(EventBatch(id, attempt, first + start, tuple(events[start:place])))
            start, size = place, 0
        size += more
    made.append(EventBatch(id, attempt, first + start, tuple(events[start:])))
    return made


_HEAD = msgspec.json.Decoder(_Head)
