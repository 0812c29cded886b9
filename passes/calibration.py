"""Calibration: compute the seconds of nodes from the times at which the ops of a step ran.

    clock   0.0          0.9                    2.1
            offload(a)   offload(b)             release(a)
    nodes              n1  n2                n3  n4  n5       roofline: 0.2 each
    factors            2.25 each             2.0 each

The clock of an op counts the seconds of compute since the first op of its graph. All nodes between
two ops get the same factor, measured over roofline seconds. An op is skipped if it is too close to
the one before it to measure the nodes between them. Works on plain data, not on torch.fx.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import accumulate

from fxoffload.ops import Clocks
from fxoffload.planner.link import Link
from fxoffload.planner.plan import Plan
from fxoffload.planner.simulation import Step, Transfer
from fxoffload.profile import Profile

# The least time between two ops that is measured, as a share of the roofline seconds of the
# forward or the backward; a shorter time is noise.
MIN_SHARE = 0.01
# The least share of the measured seconds that is attributed to the nodes, not to the transfers.
LEAST_OWN_SHARE = 0.5


def find_profile(
    step: Step,
    transfers: Mapping[str, Transfer],
    clocks: Clocks,
    links: Mapping[str, Link],
) -> Profile:
    """The Profile of `step`, which ran with `transfers`; `step.seconds` are roofline seconds.

    clocks: the clock of each op in seconds (see the module); an op may be missing. Nodes before the
    first op and after the last op of a graph get the mean factor of that graph. The compute time
    that the transfers took, by `links`, is subtracted from all nodes of a graph in equal shares,
    not only from those next to an op: a transfer goes on long after it was started.
    """
    moved = [value for value in step.values if value.name in transfers]
    taken = sum(
        links[transfers[value.name].tier].compute_seconds_per_byte * value.nbytes for value in moved
    )
    factors: dict[str, float] = {}
    graphs = (
        (range(step.forward_length), ("offload", "release")),
        (range(step.forward_length, len(step.seconds)), ("prefetch", "wait")),
    )
    measured = predicted = 0.0
    for positions, kinds in graphs:
        points = _find_points(step, transfers, clocks, kinds)
        found, segments = _divide(step, positions, points)
        seconds = sum(end - start for start, end in segments)
        # `taken` comes from a probe; if that was disturbed, `taken` can exceed all measured time.
        own = max(LEAST_OWN_SHARE, 1.0 - taken / seconds) if seconds else 1.0
        found = {position: own * factor for position, factor in found.items()}
        seconds *= own
        roofline = sum(step.seconds[position] for position in found)
        measured, predicted = measured + seconds, predicted + roofline
        mean = seconds / roofline if roofline else 1.0
        for position in positions:
            if step.seconds[position] > 0.0:
                # A recomputed node has the name of its forward node, and keeps that one's factor.
                factors.setdefault(step.names[position], found.get(position, mean))
    return Profile(tuple(sorted(factors.items())), measured / predicted if predicted else 1.0)


def find_transfers(step: Step, plan: Plan) -> dict[str, Transfer]:
    """The positions in `step` of the transfers of `plan`, by value; `plan` was made for `step`."""
    forward = {name: p for p, name in reversed(list(enumerate(step.names[: step.forward_length])))}
    backward = {
        name: step.forward_length + position
        for position, name in reversed(list(enumerate(step.names[step.forward_length :])))
    }
    return {
        value.name: Transfer(
            decision.tier,
            release=forward.get(decision.released_before, value.last_use + 1)
            if decision.blocks
            else step.forward_length,
            prefetch=backward.get(decision.prefetched_before, step.first_use(value)),
        )
        for value, decision in plan.offloads
    }


def _find_points(
    step: Step,
    transfers: Mapping[str, Transfer],
    clocks: Clocks,
    kinds: Iterable[str],
) -> list[tuple[int, float]]:
    """Position and clock of each measured op of `kinds`, both in ascending order."""
    points: list[tuple[int, float]] = []
    for value in step.values:
        transfer = transfers.get(value.name)
        if transfer is None:
            continue
        places = {
            "offload": value.born + 1,
            "release": transfer.release,
            "prefetch": transfer.prefetch,
            "wait": step.first_use(value),
        }
        points += [
            (places[kind], clocks[kind, value.name])
            for kind in kinds
            if (kind, value.name) in clocks
        ]
    points.sort()
    # A compiler may have swapped neighbouring ops, so the clocks are made to ascend.
    return list(
        zip(
            [position for position, _ in points],
            accumulate((clock for _, clock in points), max),
            strict=True,
        )
    )


def _divide(
    step: Step, positions: range, points: Iterable[tuple[int, float]]
) -> tuple[dict[int, float], list[tuple[float, float]]]:
    """Factors by position, and the intervals of the clock that they were measured in."""
    elapsed = [0.0, *accumulate(step.seconds)]
    least = MIN_SHARE * (elapsed[positions.stop] - elapsed[positions.start])
    found: dict[int, float] = {}
    segments: list[tuple[float, float]] = []
    start: tuple[int, float] | None = None
    for position, clock in points:
        if start is None:
            start = position, clock
            continue
        roofline = elapsed[position] - elapsed[start[0]]
        if roofline <= least or clock <= start[1]:
            continue
        factor = (clock - start[1]) / roofline
        found |= dict.fromkeys(range(start[0], position), factor)
        segments.append((start[1], clock))
        start = position, clock
    return found, segments
