"""Sizes and durations with units: valid and invalid texts, and printed values that are valid texts."""

from __future__ import annotations

import pytest

from kernel_spec.protocol.limits import Limits
from kernel_spec.protocol.quantities import bytes_text, parse_bytes, parse_seconds, seconds_text


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("1000", 1000),
        ("512B", 512),
        ("1kB", 1000),
        ("512MB", 512_000_000),
        ("1GiB", 1 << 30),
        ("1.5gib", 3 << 29),
        (" 2 TB ", 2_000_000_000_000),
        ("1.1KiB", 1126),
    ],
)
def test_size(text: str, size_bytes: int) -> None:
    assert parse_bytes(text) == size_bytes


@pytest.mark.parametrize("text", ["", "1G", "GB", "1.5", "-1GB", "1 XB", "1GB 2MB", "1iB", "many"])
def test_text_that_is_no_size_is_answered_with_the_accepted_forms(text: str) -> None:
    with pytest.raises(ValueError, match="a number of bytes or a size such as 512MB or 1GiB"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 30),
        ("0.5", 0.5),
        ("1e3", 1000),
        ("500ms", 0.5),
        ("5m", 300),
        ("5 min", 300),
        ("1h30m", 5400),
        ("1.5h", 5400),
        ("7d", 604_800),
        ("1d 2h 3m 4s", 93_784),
    ],
)
def test_duration(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "5M", "1h30", "30m1h", "1m1m", "5mm", "nan", "-5m", "1y"])
def test_text_that_is_no_duration_is_answered_with_the_accepted_forms(text: str) -> None:
    with pytest.raises(ValueError, match="such as 30s, 5m, 1h30m or 7d"):
        parse_seconds(text)


def test_number_without_a_unit_can_be_minutes() -> None:
    assert parse_seconds("1.5", "minutes") == parse_seconds("90s", "minutes") == 90


@pytest.mark.parametrize("size_bytes", [0, 1, 999, 1000, 1024, 65_536, 1 << 26, 1 << 30, 5_000_000_000, 1 << 46, 1001])
def test_printed_size_is_the_same_when_it_is_read(size_bytes: int) -> None:
    assert parse_bytes(bytes_text(size_bytes)) == size_bytes


@pytest.mark.parametrize("seconds", [0, 0.1, 0.0001, 1, 59.5, 60, 90, 5400, 86_400, 2_592_000, float("inf")])
def test_printed_duration_is_the_same_when_it_is_read(seconds: float) -> None:
    assert parse_seconds(seconds_text(seconds)) == seconds


def test_printed_values_have_the_unit_that_a_person_would_take() -> None:
    limits = Limits()
    assert [bytes_text(size) for size in (limits.memory_bytes, limits.disk_bytes, 1024, 1000)] == [
        "1GiB",
        "1500MB",
        "1KiB",
        "1kB",
    ]
    assert [seconds_text(seconds) for seconds in (90, 604_800, 0.5)] == ["1m30s", "7d", "500ms"]
