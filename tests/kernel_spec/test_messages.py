from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernel_spec import messages
from kernel_spec.channel import LARGEST_PACKET_BYTES, Channel, ChannelClosed, ChannelError, decode, encode, pair
from kernel_spec.limits import Limits
from kernel_spec.messages import ExitReport, Fork, KernelPlan, Kill, Refused, SeatInfo, Start

SEAT = SeatInfo("0a1b2c3d", 58_000, 58_000, "/s", "/s/ipc", "/s/inputs", "/s/work", "/s/out")
PLAN = KernelPlan(
    kernel_id="k", seat=SEAT, connection_path="/s/ipc/c", uid=None, gid=None, limits=Limits(), layers=("rlimits",),
    read_only_paths=("/usr",), allow_network=False, style="job", has_log=True, launcher_pid=7, environment={"A": "ä"},
)  # fmt: skip
REPORT = ExitReport(9, 9, None, "memory_limit", 5, 0.25, "too much")
ACCEPTED = {cls.__name__: cls for cls in (*messages.GATEWAY_REQUESTS, *messages.GATEWAY_ANSWERS, Fork)}


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, Channel]]:
    theirs, ours = pair()
    channel = Channel(ours, accepts=messages.GATEWAY_REQUESTS)
    yield theirs, channel
    theirs.close()
    channel.close()


@pytest.mark.parametrize(
    "message",
    [Fork(3, PLAN), Start(1, "k", Limits(memory_bytes=1 << 31)), Refused(2, "c", "m", REPORT), Refused(2, "c", "m")],
    ids=lambda message: type(message).__name__,
)
def test_message_survives_the_way_over_the_socket(message: object) -> None:
    assert decode(encode(message), ACCEPTED) == message


@pytest.mark.parametrize(
    ("packet", "complaint"),
    [
        (b"\xff\xfe", "not JSON"),
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "not a JSON object"),
        (b'{"kind": "Fork"}', "not accepted"),
        (b'{"kind": ["Kill"]}', "not accepted"),
        (b'{"kind": "Kill", "id": 1}', "kernel_id"),
        (b'{"kind": "Kill", "id": "1", "kernel_id": "k"}', "Kill.id must be int"),
        (b'{"kind": "Kill", "id": true, "kernel_id": "k"}', "Kill.id must be int"),
        (b'{"kind": "Kill", "id": 1, "kernel_id": "k", "uid": 0}', "unknown fields: 'uid'"),
        (
            b'{"kind": "Start", "id": 1, "kernel_id": "k", "limits": {"memory_bytes": -1}}',
            "memory_bytes must be between",
        ),
        (b'{"kind": "Start", "id": 1, "kernel_id": "k", "limits": {}, "style": "root"}', "must be one of"),
        (
            b'{"kind": "Start", "id": 1, "kernel_id": "k", "limits": {"processes": "9"}}',
            "Start.limits.processes must be int",
        ),
        (b'{"kind": "Kill", "id": 1, "kernel_id": "' + b"k" * 40_000 + b'"}', "longer than"),
    ],
)
def test_malformed_packet_is_refused_and_the_next_one_is_read(
    ends: tuple[socket.socket, Channel], packet: bytes, complaint: str
) -> None:
    theirs, channel = ends
    theirs.send(packet[:LARGEST_PACKET_BYTES])
    with pytest.raises(ChannelError, match=complaint):
        channel.receive()
    theirs.send(encode(Kill(1, "k")))
    assert channel.receive() == (Kill(1, "k"), [])


def test_descriptors_of_a_refused_packet_are_closed(ends: tuple[socket.socket, Channel]) -> None:
    theirs, channel = ends
    read, write = os.pipe()
    socket.send_fds(theirs, [b"nonsense"], [write])
    os.close(write)
    with pytest.raises(ChannelError):
        channel.receive()
    assert os.read(read, 1) == b""  # the end: no write end is left open
    os.close(read)


def test_more_descriptors_than_expected_are_refused_and_closed(ends: tuple[socket.socket, Channel]) -> None:
    theirs, channel = ends
    read, write = os.pipe()
    socket.send_fds(theirs, [encode(Kill(1, "k"))], [write] * 30)
    os.close(write)
    with pytest.raises(ChannelError, match="larger"):
        channel.receive()
    assert os.read(read, 1) == b""
    os.close(read)


def test_end_of_file_is_told_apart_from_a_bad_packet(ends: tuple[socket.socket, Channel]) -> None:
    theirs, channel = ends
    theirs.close()
    with pytest.raises(ChannelClosed):
        channel.receive()


def test_message_that_does_not_fit_a_packet_is_not_sent(ends: tuple[socket.socket, Channel]) -> None:
    _, channel = ends
    with pytest.raises(ChannelError, match="does not fit"):
        channel.send(Refused(1, "c", "x" * LARGEST_PACKET_BYTES))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    kind=st.sampled_from(sorted(ACCEPTED)),
    fields=st.dictionaries(
        st.sampled_from(["id", "kernel_id", "limits", "seat", "report", "number", "plan"]), json_values
    ),
)
def test_whatever_comes_is_a_message_or_refused(kind: str, fields: dict[str, object]) -> None:
    try:
        message = decode(json.dumps({"kind": kind, **fields}).encode(), ACCEPTED)
    except ChannelError:
        return
    assert type(message).__name__ == kind


def test_a_number_beyond_all_floats_is_refused() -> None:
    packet = b'{"kind": "Killed", "id": 1, "seconds": 1' + b"0" * 400 + b"}"
    with pytest.raises(ChannelError, match="larger than any float"):
        decode(packet, {"Killed": messages.Killed})


@pytest.mark.parametrize(
    "value", [{"memory_bytes": "1"}, {"cpu_seconds": 0}, {"cpu_seconds": True}, {"unknown": 1}, [], None]
)
def test_limits_refuse_what_no_kernel_can_live_with(value: object) -> None:
    with pytest.raises(ValueError, match="limit"):
        Limits.from_json(value)


def test_limits_survive_json() -> None:
    limits = Limits(memory_bytes=1 << 32, processes=9)
    assert Limits.from_json(limits.to_json()) == limits
