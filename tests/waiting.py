"""Helpers by which tests wait for the store's threads."""

from __future__ import annotations

import time
from collections.abc import Callable

import fxoffload


def wait_for_writes(
    statistics: Callable[[], fxoffload.StoreStatistics] = fxoffload.statistics,
) -> None:
    """Let every write end: nothing is then found in memory, and no freed value has a slot.

    A write that has begun when its value is freed holds bytes until it ends.
    """
    deadline = time.monotonic() + 60
    while statistics().inflight_bytes:
        assert time.monotonic() < deadline, "writes do not end"
        time.sleep(0.001)
