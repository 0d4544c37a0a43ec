from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernel_spec.protocol import messages
from kernel_spec.protocol.channel import (
    LARGEST_PACKET_BYTES,
    Channel,
    ChannelClosed,
    ChannelError,
    decode,
    encode,
    pair,
)
from kernel_spec.protocol.limits import Limits
from kernel_spec.protocol.messages import Fork, Kill, Refused, Start
from kernel_spec.protocol.values import ExitReport, KernelPlan, WorkspaceInfo

WORKSPACE = WorkspaceInfo("0a1b2c3d", 58_000, 58_000, "/s", "/s/ipc", "/s/inputs", "/s/work", "/s/out")
PLAN = KernelPlan(
    kernel_id="k", workspace=WORKSPACE, connection_path="/s/ipc/c", uid=None, gid=None, limits=Limits(), layers=("rlimits",),
    read_only_paths=("/usr",), allow_network=False, style="job", has_log=True, launcher_pid=7, environment={"A": "ä"},
)  # fmt: skip
REPORT = ExitReport(9, 9, None, "memory_limit", 5, 0.25, "too much")
ACCEPTED = (*messages.GATEWAY_REQUESTS, *messages.GATEWAY_ANSWERS, Fork)


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
        (b"\xff\xfe", "JSON is malformed"),
        (b"{", "truncated"),
        (b"[" * 100_000, "Expected `object`, got `array`"),
        (b"[]", "Expected `object`, got `array`"),
        (b'{"kind": "Fork"}', r"Invalid value 'Fork' - at `\$.kind`"),
        (b'{"kind": ["Kill"]}', r"Expected `str` - at `\$.kind`"),
        (b'{"id": 1, "kernel_id": "k"}', "missing required field `kind`"),
        (b'{"kind": "Kill", "id": 1}', "missing required field `kernel_id`"),
        (b'{"kind": "Kill", "id": "1", "kernel_id": "k"}', r"Expected `int`, got `str` - at `\$.id`"),
        (b'{"kind": "Kill", "id": true, "kernel_id": "k"}', r"Expected `int`, got `bool` - at `\$.id`"),
        (b'{"kind": "Kill", "id": 1.0, "kernel_id": "k"}', r"Expected `int`, got `float` - at `\$.id`"),
        (b'{"kind": "Kill", "id": -1, "kernel_id": "k"}', r"Expected `int` >= 0 - at `\$.id`"),
        (b'{"kind": "Kill", "id": 1' + b"0" * 30 + b', "kernel_id": "k"}', r"Expected `int` <= .* - at `\$.id`"),
        (b'{"kind": "Kill", "id": 1, "kernel_id": "\xff"}', "invalid start byte"),
        (b'{"kind": "Kill", "id": 1, "kernel_id": "k", "uid": 0}', "unknown field `uid`"),
        (b'{"kind": "Signal", "id": 1, "kernel_id": "k", "number": 65}', r"Expected `int` <= 64 - at `\$.number`"),
        (
            b'{"kind": "Start", "id": 1, "kernel_id": "k", "limits": {"memory_bytes": -1}}',
            r"memory_bytes must be between .* - at `\$.limits`",
        ),
        (
            b'{"kind": "Start", "id": 1, "kernel_id": "k", "limits": {"more": 1}}',
            r"unknown field `more` - at `\$.limits`",
        ),
        (
            b'{"kind": "Start", "id": 1, "kernel_id": "k", "limits": {}, "style": "root"}',
            r"Invalid enum value 'root' - at `\$.style`",
        ),
        (
            b'{"kind": "Start", "id": 1, "kernel_id": "k", "limits": {"processes": "9"}}',
            r"Expected `int`, got `str` - at `\$.limits.processes`",
        ),
        (b'{"kind": "Kill", "id": 1, "kernel_id": "' + b"k" * LARGEST_PACKET_BYTES + b'"}', "truncated"),
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


def test_refusal_of_a_packet_names_its_request() -> None:
    with pytest.raises(ChannelError) as caught:
        decode(b'{"kind": "Signal", "id": 7, "kernel_id": "k", "number": 99}', ACCEPTED)
    assert caught.value.request_id == 7


def test_file_name_that_is_not_utf8_does_not_keep_an_answer_from_its_receiver() -> None:
    """A job chooses the names of its files, and the launcher names one that it cannot remove."""
    refusal = Refused(1, "not_removed", "cannot remove " + os.fsdecode(b"a\xffb"), REPORT)
    assert decode(encode(refusal), ACCEPTED) == Refused(1, "not_removed", "cannot remove a?b", REPORT)


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


def test_end_of_file_raises_channel_closed(ends: tuple[socket.socket, Channel]) -> None:
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


@settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    kind=st.sampled_from([cls.__name__ for cls in ACCEPTED]),
    fields=st.dictionaries(
        st.sampled_from(["id", "kernel_id", "limits", "workspace", "report", "number", "plan"]), json_values
    ),
)
def test_any_fields_are_a_valid_message_or_refused(kind: str, fields: dict[str, object]) -> None:
    try:
        message = decode(json.dumps({"kind": kind, **fields}).encode(), ACCEPTED)
    except ChannelError:
        return
    assert type(message).__name__ == kind
    assert decode(encode(message), ACCEPTED) == message


def test_a_number_beyond_all_floats_is_refused() -> None:
    packet = b'{"kind": "UsageReport", "id": 1, "cpu_seconds": 1' + b"0" * 400 + b"}"
    with pytest.raises(ChannelError, match=r"Number out of range - at `\$.cpu_seconds`"):
        decode(packet, (messages.UsageReport,))


@pytest.mark.parametrize(
    "limits", [{"memory_bytes": "1"}, {"cpu_seconds": 0}, {"cpu_seconds": True}, {"processes": 1 << 63}]
)
def test_limits_too_small_for_a_kernel_are_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"limit .* must be"):
        Limits(**limits)
