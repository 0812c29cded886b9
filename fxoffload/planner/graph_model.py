"""Graph model: what the planner needs to know of a compiled graph when it plans whole steps.

A step has thousands of nodes. But a plan changes memory only where a value is born or dies, and the
runtime acts only at our ops. The nodes between two such places are one segment:

    nodes      n0 n1 n2 | n3 n4 | n5        offload(a) stands in front of n3, a dies behind n4
    segments      s0    |  s1   | s2
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from fxoffload.ops import OpEvent
from fxoffload.planner.plan import SavedValue
from fxoffload.planner.step import Step


@dataclass(frozen=True, slots=True)
class HalfModel:
    """A forward or a backward in segments.

    seconds: of each segment. fixed_bytes: the most in it that no schedule changes.
    ops: each op of the half, in order, and the segment in front of which it stands.
    """

    seconds: tuple[float, ...]
    fixed_bytes: tuple[int, ...]
    ops: tuple[tuple[OpEvent, int], ...]


@dataclass(frozen=True, slots=True)
class GraphModel:
    """Both halves, and the saved values; their positions count segments of the one or the other."""

    forward: HalfModel
    backward: HalfModel
    values: tuple[SavedValue, ...]

    def resize(self, sizes: Mapping[str, int]) -> GraphModel:
        """The model of a call whose values have `sizes` by name, in bytes.

        The others, and what is beside the values, grow as those do, but do not shrink.
        """
        before = sum(value.nbytes for value in self.values if value.name in sizes)
        factor = max(1.0, sum(sizes.values()) / before) if before else 1.0

        def scale(nbytes: int) -> int:
            return nbytes if factor == 1.0 else int(factor * nbytes)

        forward, backward = (
            replace(half, fixed_bytes=tuple(map(scale, half.fixed_bytes)))
            for half in (self.forward, self.backward)
        )
        values = tuple(
            replace(
                value,
                nbytes=sizes.get(value.name, scale(value.nbytes)),
                base_bytes=None if value.base_bytes is None else scale(value.base_bytes),
            )
            for value in self.values
        )
        return GraphModel(forward, backward, values)

    def scale_seconds(self, factor: float) -> GraphModel:
        """The model on a device by `factor` slower."""
        forward, backward = (
            replace(half, seconds=tuple(factor * seconds for seconds in half.seconds))
            for half in (self.forward, self.backward)
        )
        return replace(self, forward=forward, backward=backward)


PlacedOps = Sequence[tuple[OpEvent, int]]


def build_graph_model(step: Step, forward_ops: PlacedOps, backward_ops: PlacedOps) -> GraphModel:
    """The model of a graph whose nodes are `step`.

    forward_ops, backward_ops: the ops in their order, with the node of their half (counted from 0)
    in front of which they stand.
    """
    length = step.forward_length
    backward_length = len(step.seconds) - length
    forward_cuts, backward_cuts = {0}, {0}
    for value in step.values:
        if value.counts:
            forward_cuts |= {value.born, value.last_use + 1}
            backward_cuts |= {value.first_use, value.freed + 1}
    forward_cuts |= {position for _, position in forward_ops}
    backward_cuts |= {position for _, position in backward_ops}
    forward_starts = sorted(cut for cut in forward_cuts if cut < length)
    backward_starts = sorted(cut for cut in backward_cuts if cut < backward_length)

    def in_forward(position: int) -> int:
        return bisect_right(forward_starts, position) - 1

    def in_backward(position: int) -> int:
        return bisect_right(backward_starts, position) - 1

    return GraphModel(
        forward=_build_half(step, 0, length, forward_starts, forward_ops),
        backward=_build_half(step, length, backward_length, backward_starts, backward_ops),
        values=tuple(
            replace(
                value,
                born=in_forward(value.born),
                last_use=in_forward(value.last_use),
                first_use=in_backward(value.first_use),
                freed=in_backward(value.freed),
            )
            for value in step.values
            if value.counts
        ),
    )


def _build_half(
    step: Step, offset: int, length: int, starts: Sequence[int], ops: PlacedOps
) -> HalfModel:
    bounds = [*starts, length]
    pieces = [slice(offset + start, offset + end) for start, end in pairwise(bounds)]
    return HalfModel(
        seconds=tuple(sum(step.seconds[piece]) for piece in pieces),
        fixed_bytes=tuple(max(step.fixed_bytes[piece], default=0) for piece in pieces),
        ops=tuple(
            (event, len(starts) if position >= length else bisect_right(starts, position) - 1)
            for event, position in ops
        ),
    )
