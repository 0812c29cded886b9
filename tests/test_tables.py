"""Tests of text tables."""

from __future__ import annotations

from fxoffload.tables import format_table


def test_format_table_aligns_columns() -> None:
    assert format_table([("a", "bb"), ("ccc", "d")]).splitlines() == [
        "a    bb",
        "---  --",
        "ccc  d",
    ]
