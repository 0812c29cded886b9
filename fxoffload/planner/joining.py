"""Joining: the calls of a whole step as one `Step`, which is planned as that of a single graph is.

    program    F0  F1  B1  B0               forwards and backwards in the order in which they ran
    step       segments of F0, F1, B1, B0   values of call 0 and of call 1, under names of their own

Seconds come from the clocks of ops where they ran, else from the model. What the device holds
beside our values (gradients, results, other code's memory) was measured at the first op of each
half, and lives through that half.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from fxoffload.ops import OpEvent
from fxoffload.planner.graph_model import GraphModel, HalfModel
from fxoffload.planner.plan import SavedValue
from fxoffload.planner.simulation import Phase, Residence, Step
from fxoffload.schedule import CallValue, Half, HalfMeasurement, Program


@dataclass(frozen=True, slots=True)
class PlacedOp:
    """An op of a call, and the position in the joined step in front of which it stands."""

    position: int
    call: int
    event: OpEvent


@dataclass(frozen=True, slots=True)
class JoinedStep:
    """A program as one step. values: which value of which call each saved value is, by name.

    ops: in the order in which they run. base_bytes: what is held when the step begins, relative to
    its first op as measured bytes are.
    """

    step: Step
    values: Mapping[str, CallValue]
    ops: tuple[PlacedOp, ...]
    base_bytes: int = 0


def join_step(
    program: Program, models: Mapping[str, GraphModel], measured: Sequence[HalfMeasurement]
) -> JoinedStep:
    """The halves of `program` behind one another.

    Values of a call without a backward live to the end of the step.
    """
    seconds: list[float] = []
    fixed: list[Residence] = []
    ops: list[PlacedOp] = []
    starts: dict[tuple[int, bool], int] = {}
    base_bytes: int | None = None
    tail_seconds = 0.0  # Of the half before, behind its last op.
    for half, record in zip(program, measured, strict=True):
        model = _find_half(models, half)
        start = len(seconds)
        starts[half.call, half.forward] = start
        own = _estimate_seconds(model, record)
        first, last = (model.ops[index][1] if model.ops else 0 for index in (0, -1))
        # What runs between the graphs, such as a loss that is not compiled.
        own[0] += max(0.0, record.gap_seconds - tail_seconds - sum(own[:first]))
        tail_seconds = sum(own[last:])
        seconds += own
        ops += [PlacedOp(start + position, half.call, event) for event, position in model.ops]
        seen = _find_held(half, model, models[half.graph].values, record)
        if base_bytes is None:
            # The first half begins with nothing of the step but what is born there.
            base_bytes = seen[0]
        fixed += [
            Residence(describe_half(half), nbytes - base_bytes, start + position, start + position)
            for position, nbytes in enumerate(seen)
        ]
    end = len(seconds)
    if 2 * len({half.call for half in program}) > len(program):
        seconds.append(0.0)  # Where what is never read ends.
    phases = _find_phases(program, starts, len(seconds))
    forward_length = phases[0].turn
    values: dict[CallValue, SavedValue] = {}
    for half in program:
        if half.forward:
            begin, backward = starts[half.call, True], starts.get((half.call, False))
            for value in models[half.graph].values:
                first_use, freed = value.first_use, value.freed
                first, last = (
                    (end, end) if backward is None else (backward + first_use, backward + freed)
                )
                values[half.call, value.name] = replace(
                    value,
                    name=f"{half.call}/{value.name}",
                    born=begin + value.born,
                    last_use=begin + value.last_use,
                    first_use=first - forward_length,
                    freed=last - forward_length,
                )
    step = Step(
        names=tuple(str(position) for position in range(len(seconds))),
        seconds=tuple(seconds),
        forward_length=forward_length,
        forward_inputs=0,
        backward_inputs=0,
        fixed=tuple(fixed),
        values=tuple(values.values()),
        stops=tuple(sorted({op.position for op in ops})),
        phases=phases,
    )
    names = {value.name: found for found, value in values.items()}
    return JoinedStep(step, names, tuple(ops), base_bytes or 0)


def _find_phases(
    program: Program, starts: Mapping[tuple[int, bool], int], length: int
) -> tuple[Phase, ...]:
    """Forwards and the backwards behind them; the last phase ends with the step."""
    phases: list[Phase] = []
    begin = 0
    for before, half in pairwise(program):
        position = starts[half.call, half.forward]
        if before.forward and not half.forward:
            phases.append(Phase(begin, position, length))
        elif half.forward and not before.forward:
            phases[-1] = phases[-1]._replace(end=position)
            begin = position
    if program[-1].forward:
        phases.append(Phase(begin, length - 1, length))
    return tuple(phases)


def _find_half(models: Mapping[str, GraphModel], half: Half) -> HalfModel:
    model = models[half.graph]
    return model.forward if half.forward else model.backward


def _estimate_seconds(model: HalfModel, record: HalfMeasurement) -> list[float]:
    """Of each segment: what was measured between two ops goes to those between, by their share."""
    seconds = list(model.seconds)
    seen = [
        (position, record.clocks[event]) for event, position in model.ops if event in record.clocks
    ]
    for (start, begin), (end, clock) in pairwise(seen):
        modelled = sum(model.seconds[start:end])
        if end > start and clock >= begin:
            for position in range(start, end):
                share = model.seconds[position] / modelled if modelled else 1.0 / (end - start)
                seconds[position] = (clock - begin) * share
    return seconds


def describe_half(half: Half) -> str:
    """What messages call it."""
    return f"{'forward' if half.forward else 'backward'} of call {half.call}"


def _find_held(
    half: Half, model: HalfModel, values: Sequence[SavedValue], record: HalfMeasurement
) -> list[int]:
    """Bytes of each segment that the schedule does not change.

    They are the graph's own and what is held from outside of it: by the model from the first op
    on, and by what was seen between the ops; the higher counts. What was seen holds the values
    that were born and had not met their op yet; these are not part of it.
    """
    length = len(model.seconds)
    bounds = [(event, min(position, length)) for event, position in model.ops]
    first = bounds[0][1] if bounds else 0

    def count_born(begin: int, end: int) -> int:
        return sum(v.nbytes for v in values if half.forward and begin <= v.born < end)

    held = 0
    if record.held_bytes is not None and bounds:
        # What lives on both sides of the op lives at the op.
        at_first = min([0, *model.fixed_bytes][first], [*model.fixed_bytes, 0][first])
        held = record.held_bytes - at_first - count_born(0, first)
    found = [held + nbytes for nbytes in model.fixed_bytes]
    ends = [position for _, position in bounds[1:]] + [length]
    for (event, begin), end in zip(bounds, ends, strict=True):
        seen = record.peak_bytes.get(event)
        if seen is not None:
            seen -= count_born(begin, end)
            found[begin:end] = [max(nbytes, seen) for nbytes in found[begin:end]]
    if record.gap_bytes is not None:
        found[0] = max(found[0], record.gap_bytes - count_born(0, first))
    return found
