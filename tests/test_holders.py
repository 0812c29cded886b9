"""Holders as rows of a table."""

from __future__ import annotations

import pytest

from fxoffload.holders import Holder, list_rows, shorten_source


@pytest.mark.parametrize(
    ("whole", "source"), [(False, "model/block.py:3"), (True, "/home/x/model/block.py:3")]
)
def test_a_row_for_each(whole: bool, source: str) -> None:
    value = Holder("tanh", 2, "g", "layers.0", "/home/x/model/block.py:3", "tanh", 3 * 2**19)
    rows = list_rows(
        [value, Holder("forward of call 0", None, "", "", "", "", 2**20)], whole_paths=whole
    )
    assert rows == [
        ("MiB", "name", "call", "module", "op", "source"),
        ("1.50", "tanh", "2", "layers.0", "tanh", source),
        ("1.00", "forward of call 0", "", "", "", ""),
    ]


def test_sources_are_short() -> None:
    assert shorten_source("/home/x/model/block.py:3") == "model/block.py:3"
    assert shorten_source("") == ""
