"""Tests of parsing and formatting sizes."""

from __future__ import annotations

import pytest

from fxoffload.errors import ConfigError
from fxoffload.sizes import format_bytes, parse_share


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (3 * 2**30, "3.0 GiB"), (2**41, "2.0 TiB")],
)
def test_format_bytes(nbytes: int, text: str) -> None:
    assert format_bytes(nbytes) == text


@pytest.mark.parametrize(
    ("value", "expected"),
    [("90%", 0.9), (" 12.5 % ", 0.125), ("100%", 1.0), ("1KiB", 1024), (7, 7)],
)
def test_shares_and_bytes(value: int | str, expected: float) -> None:
    assert parse_share("device_memory", value) == pytest.approx(expected)


@pytest.mark.parametrize("value", ["0%", "101%", "%", "half", -1])
def test_what_is_no_share(value: int | str) -> None:
    with pytest.raises(ConfigError, match="device_memory="):
        parse_share("device_memory", value)
