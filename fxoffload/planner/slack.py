"""Slack: give transfers more time where memory is free, so that a slow link costs less. Pure data.

    forward    a release that blocks stands as late as memory below the limit allows
    backward   a prefetch stands as early as memory below the limit allows

placement assumes a speed of the links. If they are slower, nodes wait for transfers. The further a
prefetch or a release stands from its node, the shorter is that wait, and the longer is memory held.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import replace

from fxoffload.planner.plan import SavedValue
from fxoffload.planner.simulation import Simulation
from fxoffload.planner.step import Step, Transfer
from fxoffload.sizes import UNLIMITED_BYTES


def add_slack(
    step: Step,
    transfers: Mapping[str, Transfer],
    simulation: Simulation,
    *,
    limit_bytes: int,
    max_inflight_bytes: int = UNLIMITED_BYTES,
) -> dict[str, Transfer]:
    """`transfers` with later releases and earlier prefetches, at most `limit_bytes` at each node.

    simulation: of `transfers`. Nodes that hold more than the limit already get nothing.
    max_inflight_bytes: bound of the bytes being read ahead. Transfers keep their order.
    """
    room_bytes = [limit_bytes - nbytes for nbytes in simulation.live_bytes]
    moved = [value for value in step.values if value.name in transfers]
    found = dict(transfers)
    _delay_releases(step, moved, found, room_bytes)
    _advance_prefetches(step, moved, found, simulation, room_bytes, max_inflight_bytes)
    return found


def _delay_releases(
    step: Step,
    moved: Sequence[SavedValue],
    transfers: dict[str, Transfer],
    room_bytes: list[int],
) -> None:
    """Delay releases in the forwards, the last one first, as a slow link writes it last."""
    places = [
        (release, value)
        for value in moved
        if (release := transfers[value.name].release) is not None
    ]
    ends = sorted({phase.turn - 1 for phase in step.phases})
    following: dict[str, int] = {}
    for release, value in sorted(places, key=lambda place: (place[0], place[1].born), reverse=True):
        transfer = transfers[value.name]
        # A release stays in its forwards, and one behind the last forward stays where it is.
        end = next((end for end in ends if end >= release), release)
        last = min(end, transfer.prefetch, following.get(transfer.tier, end))
        position = release
        while position < last and room_bytes[position] >= value.nbytes:
            position += 1
        position = max(release, _find_stop_before(step, position))
        _take(room_bytes, value.nbytes, range(release, position))
        transfers[value.name] = replace(transfer, release=position)
        following[transfer.tier] = position


def _advance_prefetches(
    step: Step,
    moved: Sequence[SavedValue],
    transfers: dict[str, Transfer],
    simulation: Simulation,
    room_bytes: list[int],
    max_inflight_bytes: int,
) -> None:
    """Advance prefetches in the backwards, the first one first, as later reads queue behind it."""
    start = step.phases[0].turn + step.backward_inputs
    ahead_bytes = [0] * len(step.seconds)
    read = [value for value in moved if value.is_read]
    for value in read:
        first_use = step.first_use(value)
        _take(ahead_bytes, -value.nbytes, range(transfers[value.name].prefetch, first_use))
    previous: dict[str, int] = {}
    order = sorted(read, key=lambda value: (transfers[value.name].prefetch, step.first_use(value)))
    for value in order:
        transfer = transfers[value.name]
        release = transfer.release
        if release is None:
            # A value that is read before it has been written never leaves the device.
            release = simulation.written_positions[value.name]
        first = max(start, release + 1, previous.get(transfer.tier, 0))
        position = transfer.prefetch
        while (
            position > first
            and room_bytes[position - 1] >= value.nbytes
            and ahead_bytes[position - 1] + value.nbytes <= max_inflight_bytes
        ):
            position -= 1
        position = min(transfer.prefetch, _find_stop_behind(step, position))
        _take(room_bytes, value.nbytes, range(position, transfer.prefetch))
        _take(ahead_bytes, -value.nbytes, range(position, transfer.prefetch))
        transfers[value.name] = replace(transfer, prefetch=position)
        previous[transfer.tier] = position


def _find_stop_before(step: Step, position: int) -> int:
    """The last place of an op at `position` or before; 0 where there is none."""
    if step.stops is None:
        return position
    index = bisect_right(step.stops, position)
    return step.stops[index - 1] if index else 0


def _find_stop_behind(step: Step, position: int) -> int:
    """The first place of an op at `position` or behind; the last node's where there is none."""
    if step.stops is None:
        return position
    index = bisect_left(step.stops, position)
    return step.stops[index] if index < len(step.stops) else len(step.seconds)


def _take(room_bytes: list[int], nbytes: int, places: range) -> None:
    for position in places:
        room_bytes[position] -= nbytes
