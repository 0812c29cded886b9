"""Make the schedule of a whole step from its calls, their measurements, and a budget."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal

from fxoffload.errors import BudgetError
from fxoffload.ops import OpEvent
from fxoffload.planner.graph_model import GraphModel
from fxoffload.planner.joining import JoinedStep, PlacedOp, join_step
from fxoffload.planner.link import Link
from fxoffload.planner.peak import describe_holders
from fxoffload.planner.plan_writer import describe_kept
from fxoffload.planner.search import Choice
from fxoffload.planner.selection import choose_transfers
from fxoffload.planner.simulation import find_holders
from fxoffload.schedule import (
    UNKNOWN_OWNERS,
    CallSchedule,
    CallValue,
    Destination,
    HalfMeasurement,
    Owners,
    Program,
    Schedule,
)
from fxoffload.sizes import MIB


def make_schedule(
    program: Program,
    models: Mapping[str, GraphModel],
    measured: Sequence[HalfMeasurement],
    links: Mapping[str, Link],
    *,
    budget_bytes: int | Literal["min"] | None,
    owners: Owners = UNKNOWN_OWNERS,
    host_bytes: int = 0,
    max_inflight_bytes: int | None = None,
) -> Schedule:
    """A schedule of `program` under a budget, see choose_transfers, in the least time found.

    models: by graph. measured: of each half of the program. Raises BudgetError that states the
    lowest peak of the whole step, and which calls hold it.
    """
    joined = join_step(program, models, measured, owners)
    try:
        choice = choose_transfers(
            joined.step,
            links,
            budget_bytes=budget_bytes,
            host_bytes=host_bytes,
            max_inflight_bytes=max_inflight_bytes,
        )
    except BudgetError as error:
        raise _explain(joined, program, links, error, max_inflight_bytes) from None
    return _write_schedule(program, joined, choice, links, budget_bytes)


def _write_schedule(
    program: Program,
    joined: JoinedStep,
    choice: Choice,
    links: Mapping[str, Link],
    budget_bytes: int | Literal["min"] | None,
) -> Schedule:
    """The schedule by which ops carry out the transfers of `choice`."""
    step, transfers, simulation = joined.step, choice.best.transfers, choice.best.simulation
    calls = _Calls(1 + max(half.call for half in program))
    order = {(op.call, op.event): index for index, op in enumerate(joined.ops)}
    positions = [op.position for op in joined.ops]
    for value in step.values:
        members = joined.values[value.name]
        readers = [key for key in members if (key[0], ("wait", key[1])) in order]
        transfer = transfers.get(value.name)
        calls.send(members, readers, "keep" if transfer is None else transfer.tier)
        if transfer is None:
            continue
        released = [
            order[key] for call, name in members if (key := (call, ("release", name))) in order
        ]
        if transfer.release is not None and released:
            # The last op that stands at this position or before it.
            index = max(*released, bisect_right(positions, transfer.release) - 1)
            calls.wait(joined.ops[index], members[0])
        if not readers:
            continue
        own = order[readers[0][0], ("wait", readers[0][1])]
        written = simulation.written_positions.get(value.name)
        if written is not None and budget_bytes is not None:
            # A write that is slower than predicted must not delay the reads of the backward.
            turn = step.find_turn(value)
            index = bisect_left(positions, max(written, turn))
            if index < own:
                calls.wait(joined.ops[index], members[0])
        # The first op that stands at this position.
        calls.read(joined.ops[min(own, bisect_right(positions, transfer.prefetch - 1))], members[0])
    return Schedule(
        program=program,
        calls=calls.build(),
        budget_bytes=budget_bytes if isinstance(budget_bytes, int) else None,
        peak_bytes=simulation.peak_bytes,
        unmoved_peak_bytes=choice.unmoved.simulation.peak_bytes,
        step_seconds=simulation.step_seconds,
        exposed_seconds=simulation.exposed_seconds,
        saved_bytes=sum(value.nbytes for value in step.values),
        moved_bytes=sum(value.nbytes for value in step.values if value.name in transfers),
        kept_for=choice.reason,
        base_bytes=joined.base_bytes,
        price=max((link.compute_seconds_per_byte for link in links.values()), default=0.0),
        bandwidths={
            tier: (link.write_bytes_per_second, link.read_bytes_per_second)
            for tier, link in links.items()
        },
    )


class _Calls:
    """Collects what the ops of each call do, and builds the schedules of the calls from that."""

    def __init__(self, count: int) -> None:
        self._destinations: list[dict[str, Destination]] = [{} for _ in range(count)]
        self._waits: list[dict[OpEvent, list[CallValue]]] = [{} for _ in range(count)]
        self._reads: list[dict[OpEvent, list[CallValue]]] = [{} for _ in range(count)]
        self._passes: list[dict[str, CallValue]] = [{} for _ in range(count)]

    def send(
        self, members: Sequence[CallValue], readers: Sequence[CallValue], destination: Destination
    ) -> None:
        """Send one tensor, which all `members` are, there; each of `readers` passes it on."""
        for call, name in members:
            self._destinations[call][name] = destination
        if destination != "keep":
            for (call, name), following in pairwise(readers):
                self._passes[call][name] = following

    def wait(self, op: PlacedOp, value: CallValue) -> None:
        """Wait for the write of `value` at `op`."""
        self._waits[op.call].setdefault(op.event, []).append(value)

    def read(self, op: PlacedOp, value: CallValue) -> None:
        """Start to read `value` at `op`."""
        self._reads[op.call].setdefault(op.event, []).append(value)

    def build(self) -> tuple[CallSchedule, ...]:
        """The schedule of each call."""
        return tuple(
            CallSchedule(
                destinations,
                {event: tuple(found) for event, found in waits.items()},
                {event: tuple(found) for event, found in reads.items()},
                passes,
            )
            for destinations, waits, reads, passes in zip(
                self._destinations, self._waits, self._reads, self._passes, strict=True
            )
        )


def _explain(
    joined: JoinedStep,
    program: Program,
    links: Mapping[str, Link],
    error: BudgetError,
    max_inflight_bytes: int | None,
) -> BudgetError:
    """`error` in terms of calls and graphs, with the sum of the values of each call."""
    lowest = choose_transfers(
        joined.step, links, budget_bytes="min", max_inflight_bytes=max_inflight_bytes
    ).best
    sums: Counter[str] = Counter()
    for holder in find_holders(joined.step, lowest.simulation, lowest.transfers):
        found = joined.values.get(holder.name)
        sums[holder.name if found is None else f"values of call {found[0][0]}"] += holder.nbytes
    graphs = {half.call: half.graph for half in program}
    held = ", ".join(f"{name} {nbytes / MIB:.1f} MiB" for name, nbytes in sums.most_common(5))
    said = error.rephrase(
        f"memory_budget={error.budget_bytes} ({error.budget_bytes / MIB:.1f} MiB) cannot be met by "
        f"a step of {len(graphs)} call(s) of {len(set(graphs.values()))} graph(s): the lowest peak "
        f"that moving saved values reaches is {error.lowest_peak_bytes / MIB:.1f} MiB, where "
        f"{held} are in use{describe_kept(joined.step, lowest.simulation)}; raise the budget, or "
        "make the batch smaller"
    )
    said.holders = describe_holders(
        joined.step, lowest.simulation, lowest.transfers, joined.values, graphs
    )
    return said
