"""Residences: when the values of a step are on the device, and what that adds up to. Pure data."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence, Set
from itertools import accumulate
from operator import add

from fxoffload.planner.plan import SavedValue
from fxoffload.planner.step import Residence, Step, Transfer, find_changes


def find_lower_bound(step: Step) -> int:
    """The largest working set of any single moment: no plan that only moves gets below it."""
    return max(find_working_sets(step, {value.name for value in step.movable}), default=0)


def find_working_sets(step: Step, moved: Set[str]) -> tuple[int, ...]:
    """Bytes on the device at every position if `moved` values came and went in no time."""
    residences: list[Residence] = []
    for value in step.values:
        if value.name in moved:
            residences.append(Residence(value.name, value.nbytes, value.born, value.last_use))
            first, last = step.first_use(value), step.freed(value)
            residences.append(Residence(value.name, value.nbytes, first, last))
        elif value.counts:
            residences.append(keep_residence(step, value))
    return sum_residences(step, residences)


def find_residences(
    step: Step,
    transfers: Mapping[str, Transfer],
    arrivals: Sequence[float],
    written: Mapping[str, float],
) -> list[Residence]:
    """When each value is on the device: a kept one once, a moved one before and after its absence.

    arrivals: when each position is reached. written: by value, when its write ends.
    """
    residences: list[Residence] = []
    for value in step.values:
        transfer = transfers.get(value.name)
        if transfer is None:
            if value.counts:
                residences.append(keep_residence(step, value))
            continue
        if transfer.release is None:
            # The store holds the value until it is written. A node allocates the memory of what it
            # waits for before it waits, so it must be written when the node is reached.
            last = bisect_left(arrivals, written[value.name]) - 1
        else:
            last = transfer.release - 1
        last = min(max(last, value.last_use), step.freed(value))
        first = max(min(transfer.prefetch, step.first_use(value)), last + 1)
        residences.append(Residence(value.name, value.nbytes, value.born, last))
        residences.append(Residence(value.name, value.nbytes, first, step.freed(value)))
    return residences


def keep_residence(step: Step, value: SavedValue) -> Residence:
    """The residence of a value that does not move."""
    return Residence(value.name, value.kept_bytes, value.born, step.freed(value))


def sum_residences(step: Step, residences: Sequence[Residence]) -> tuple[int, ...]:
    """Bytes of `residences` and of what is fixed, at every position."""
    moving = accumulate(find_changes(residences, len(step.seconds)))
    return tuple(map(add, step.fixed_bytes, moving))
