"""Calibration: from when the ops of a step ran, what its nodes took. Pure data, no torch.fx.

    clock   0.0          0.9                    2.1
            offload(a)   offload(b)             release(a)
    nodes              n1  n2                n3  n4  n5       roofline: 0.2 each
    factors            2.25 each             2.0 each

The clock of an op counts the seconds of compute from the first op of its graph on. Between two ops
all nodes are given the same factor; ops that are too close to each other to tell are passed over.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import accumulate

from fxoffload.ops import Clocks
from fxoffload.planner.link import Link
from fxoffload.planner.plan import Plan
from fxoffload.planner.simulation import Step, Transfer
from fxoffload.profile import Profile

# Of the roofline seconds of a forward or a backward: what is shorter is noise.
MIN_SHARE = 0.01
# Of the measured seconds, the least that is held to be the nodes' own.
LEAST_OWN_SHARE = 0.5


def find_profile(
    step: Step,
    transfers: Mapping[str, Transfer],
    clocks: Clocks,
    links: Mapping[str, Link],
) -> Profile:
    """The Profile of a `step` that ran with `transfers`, whose seconds are those of the roofline.

    clocks: seconds by op, see above; ops that are not in it were not seen. Nodes before the first
    and behind the last op of a graph get the mean factor of that graph. What the transfers took
    from compute, by `links`, is taken off: from all nodes of a graph in equal parts, as a transfer
    goes on for longer than it takes to start it.
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
        # A probe in a bad minute must not explain everything away.
        own = max(LEAST_OWN_SHARE, 1.0 - taken / seconds) if seconds else 1.0
        found = {position: own * factor for position, factor in found.items()}
        seconds *= own
        roofline = sum(step.seconds[position] for position in found)
        measured, predicted = measured + seconds, predicted + roofline
        mean = seconds / roofline if roofline else 1.0
        for position in positions:
            if step.seconds[position] > 0.0:
                # A node that is computed again in the backward keeps its forward's factor.
                factors.setdefault(step.names[position], found.get(position, mean))
    return Profile(tuple(sorted(factors.items())), measured / predicted if predicted else 1.0)


def find_transfers(step: Step, plan: Plan) -> dict[str, Transfer]:
    """Where the transfers of `plan`, which was made for `step`, stand."""
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
    """Position and clock of the ops of `kinds`; the clock runs with the positions."""
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
    # A compiler may have let neighbours change places.
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
    """Factors by position, and the stretches of the clock that they are from."""
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
