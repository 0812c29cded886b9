"""Moments: the nodes of a step that its bound depends on, and the time between them.

Most nodes neither start nor end a transfer, and hold no more than a node near them, so they add no
constraint to the linear program. Only their time counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from fxoffload.planner.plan import SavedValue
from fxoffload.planner.residences import sum_residences
from fxoffload.planner.step import Residence, Step


@dataclass(frozen=True, slots=True)
class Moment:
    """The node at `position`, which takes `seconds`.

    gap_seconds: of the nodes between the moment before and this one. live_bytes: on the device
    while it runs if nothing is moved.
    """

    position: int
    seconds: float
    gap_seconds: float
    live_bytes: int


def count_bytes(value: SavedValue) -> int:
    """The bytes of a value in a bound.

    One that is copied out of a larger storage to be moved takes other memory when it moves than
    when it is kept; a bound may not count more than either.
    """
    return min(value.nbytes, value.kept_bytes) if value.refusal is None else value.kept_bytes


def find_live_bytes(step: Step) -> tuple[int, ...]:
    """Bytes on the device at every position if nothing is moved."""
    return sum_residences(step, _keep_all(step))


def find_least_bytes(step: Step) -> int:
    """The peak if whatever may move is away whenever no node needs it."""
    away = (
        Residence(v.name, -count_bytes(v), v.last_use + 1, step.first_use(v) - 1)
        for v in step.movable
    )
    return max(sum_residences(step, [*_keep_all(step), *away]), default=0)


def find_moments(step: Step, limit_bytes: float) -> list[Moment]:
    """The moments of `step` in order. Nodes that hold at most `limit_bytes` add no constraint."""
    live_bytes = find_live_bytes(step)
    needed: set[int] = set()
    # Between two of these nothing changes but what is fixed.
    changes = {0, len(step.seconds)}
    for value in step.movable:
        needed |= {value.born, step.first_use(value)}
        changes |= {value.born + 1, value.last_use + 1, step.first_use(value)}
    for begin, end in pairwise(sorted(changes)):
        # Where only writes run, more and more is away; where only reads run, less and less.
        places = range(begin, end)
        needed.update(_find_records(live_bytes, places, limit_bytes))
        needed.update(_find_records(live_bytes, reversed(places), limit_bytes))
    moments: list[Moment] = []
    last = -1
    for position in sorted(needed):
        gap_seconds = sum(step.seconds[last + 1 : position])
        moments.append(Moment(position, step.seconds[position], gap_seconds, live_bytes[position]))
        last = position
    return moments


def _find_records(
    live_bytes: Sequence[int], places: Iterable[int], limit_bytes: float
) -> Iterable[int]:
    """Those of `places` that hold more than `limit_bytes` and than all before them."""
    most = limit_bytes
    for position in places:
        if live_bytes[position] > most:
            most = live_bytes[position]
            yield position


def _keep_all(step: Step) -> list[Residence]:
    return [
        Residence(value.name, count_bytes(value), value.born, step.freed(value))
        for value in step.values
        if value.counts
    ]
