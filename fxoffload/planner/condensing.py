"""Condensing: a step in fewer pieces, which the search simulates in place of its nodes.

    nodes      n0 n1 n2 | n3 n4 | n5        a value is born in n2, another one dies behind n4
    segments      s0    |  s1   | s2

Nodes between two changes of what is in memory become one segment if together they take little time.
Every transfer begins and ends at the border of a segment, so it takes as long as in the step. The
memory of a segment is the most that one of its nodes holds. A value that may not move is part of
what is fixed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

from fxoffload.planner.plan import SavedValue
from fxoffload.planner.residences import keep_residence
from fxoffload.planner.step import Residence, Step, Transfer

# The most that several nodes of a segment take together, as a share of the compute of the step.
LONGEST_SHARE = 1e-3


@dataclass(frozen=True, slots=True)
class Condensed:
    """A step in segments. starts: the first node of each, and the end."""

    step: Step
    starts: tuple[int, ...]

    def expand(self, transfers: Mapping[str, Transfer]) -> dict[str, Transfer]:
        """Transfers of the segments as transfers of the nodes."""
        return {
            name: replace(
                transfer,
                release=None if transfer.release is None else self.starts[transfer.release],
                prefetch=self.starts[transfer.prefetch],
            )
            for name, transfer in transfers.items()
        }


def condense(step: Step) -> Condensed:
    """`step` in segments; in nodes where it says at which ones ops may stand, or has phases."""
    step = _fix_refused(step)
    length, turn = len(step.seconds), step.forward_length
    if step.stops is not None or len(step.phases) > 1:
        return Condensed(step, tuple(range(length + 1)))
    starts = [*_find_starts(step), length]
    segments = [range(start, end) for start, end in pairwise(starts)]

    def find(position: int) -> int:
        return bisect_right(starts, position) - 1

    middle = find(turn)

    def move(value: SavedValue) -> SavedValue:
        return replace(
            value,
            born=find(value.born),
            last_use=find(value.last_use),
            first_use=find(step.first_use(value)) - middle,
            freed=find(step.freed(value)) - middle,
        )

    fixed_bytes = step.fixed_bytes
    fixed = (
        Residence("", max(fixed_bytes[position] for position in segment), index, index)
        for index, segment in enumerate(segments)
    )
    found = Step(
        names=tuple(step.names[segment[0]] for segment in segments),
        seconds=tuple(sum(step.seconds[position] for position in each) for each in segments),
        forward_length=middle,
        forward_inputs=find(step.forward_inputs),
        backward_inputs=find(turn + step.backward_inputs) - middle,
        fixed=tuple(fixed),
        values=tuple(map(move, step.values)),
    )
    return Condensed(found, tuple(starts))


def _fix_refused(step: Step) -> Step:
    """`step` with only values that may move."""
    refused = [value for value in step.values if value.refusal is not None]
    if not refused:
        return step
    kept = (keep_residence(step, value) for value in refused if value.counts)
    return replace(step, fixed=(*step.fixed, *kept), values=tuple(step.movable))


def _find_starts(step: Step) -> list[int]:
    """Where something begins or ends, and where a segment has taken long enough."""
    turn = step.forward_length
    starts = {0, step.forward_inputs, turn - 1, turn, turn + step.backward_inputs}
    for value in step.values:
        starts |= {value.born, value.born + 1, value.last_use + 1}
        starts |= {step.first_use(value), step.first_use(value) + 1, step.freed(value) + 1}
    longest = LONGEST_SHARE * step.compute_seconds
    taken = 0.0
    for position, seconds in enumerate(step.seconds):
        if position in starts:
            taken = 0.0
        elif taken + seconds > longest:
            starts.add(position)
            taken = 0.0
        taken += seconds
    return sorted(start for start in starts if 0 <= start < len(step.seconds))
