"""Helpers by which tests wait for other threads."""

from __future__ import annotations

import time
from collections.abc import Callable

import fxoffload


def wait_until(holds: Callable[[], bool], words: str = "it does not come true") -> None:
    """Ask again and again, for a minute at most."""
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, words
        time.sleep(0.001)


def wait_for_writes(
    statistics: Callable[[], fxoffload.StoreStatistics] = fxoffload.statistics,
) -> None:
    """Let every write end: nothing is then found in memory, and no freed value has a slot.

    A write that has begun when its value is freed holds bytes until it ends.
    """
    wait_until(lambda: not statistics().inflight_bytes, "writes do not end")
