"""Seconds of a half: those that the clocks of its ops show, divided as in the model."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

from fxoffload.planner.graph_model import HalfModel
from fxoffload.schedule import HalfMeasurement


def estimate_seconds(model: HalfModel, record: HalfMeasurement) -> list[float]:
    """Seconds of each segment: those measured between two ops, divided as in the model."""
    seconds = list(model.seconds)
    seen = [
        (position, record.clocks[event]) for event, position in model.ops if event in record.clocks
    ]
    for (start, begin), (end, clock) in pairwise(_leave_out_late(seen)):
        modelled = sum(model.seconds[start:end])
        if end > start:
            for position in range(start, end):
                share = model.seconds[position] / modelled if modelled else 1.0 / (end - start)
                seconds[position] = (clock - begin) * share
    return seconds


def _leave_out_late(seen: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """The longest part of `seen`, positions with clocks, in which the clocks never fall.

    Inductor runs some ops later than where they stand in the graph. With the clock of such an op,
    the time up to it would count twice.
    """
    ends: list[int] = []  # By length, the index that ends such a part with the lowest clock.
    clocks: list[float] = []
    before: list[int | None] = []
    for index, (_, clock) in enumerate(seen):
        length = bisect_right(clocks, clock)
        before.append(ends[length - 1] if length else None)
        ends[length : length + 1], clocks[length : length + 1] = [index], [clock]
    found: list[tuple[int, float]] = []
    last = ends[-1] if ends else None
    while last is not None:
        found.append(seen[last])
        last = before[last]
    return found[::-1]
