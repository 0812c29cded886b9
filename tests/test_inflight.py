"""Tests of the cap on bytes in flight."""

from __future__ import annotations

import pytest

from fxoffload.inflight import find_inflight_cap

GIB = 2**30


@pytest.mark.parametrize(
    ("stated", "largest", "cap"),
    [(None, 0, 4 * GIB), (None, GIB, 4 * GIB), (None, 2 * GIB, 6 * GIB), (GIB, 2 * GIB, GIB)],
)
def test_cap(stated: int | None, largest: int, cap: int) -> None:
    assert find_inflight_cap(stated, largest) == cap
