"""Joining: join the calls of a whole step to one `Step`, planned like that of a single graph.

    program    F0  F1  B1  B0               forwards and backwards in the order in which they ran
    step       segments of F0, F1, B1, B0   values of call 0 and of call 1, under names of their own

Seconds come from the clocks of ops where they ran, and from the gaps between halves: the nodes of a
segment have the shares that the model gives them. Where nothing was measured, the seconds are the
model's. What the device holds beside our values (gradients, results, other code's memory) was
measured at the first op of each half, and lives through that half.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from fxoffload.ops import OpEvent
from fxoffload.planner.graph_model import GraphModel, HalfModel
from fxoffload.planner.half_seconds import estimate_seconds
from fxoffload.planner.plan import HELD, RETURNED, SavedValue
from fxoffload.planner.step import Phase, Residence, Step
from fxoffload.schedule import (
    UNKNOWN_OWNERS,
    CallValue,
    Half,
    HalfMeasurement,
    Owners,
    Program,
)


@dataclass(frozen=True, slots=True)
class PlacedOp:
    """An op of a call, and the position in the joined step in front of which it stands."""

    position: int
    call: int
    event: OpEvent


@dataclass(frozen=True, slots=True)
class JoinedStep:
    """A program as one step.

    values: by name, which values of which calls each saved value is, in the order in which these
    are read. ops: in the order in which they run. base_bytes: what is held when the step begins,
    relative to what measured bytes are relative to.
    """

    step: Step
    values: Mapping[str, tuple[CallValue, ...]]
    ops: tuple[PlacedOp, ...]
    base_bytes: int = 0


def join_step(
    program: Program,
    models: Mapping[str, GraphModel],
    measured: Sequence[HalfMeasurement],
    owners: Owners = UNKNOWN_OWNERS,
) -> JoinedStep:
    """The halves of `program` behind one another.

    Values of a call without a backward live as long as was seen, or to the end of the step.
    """
    seconds: list[float] = []
    fixed: list[Residence] = []
    ops: list[PlacedOp] = []
    starts: dict[tuple[int, bool], int] = {}
    base_bytes: int | None = None
    tail = 0  # The position behind the last op of the half before.
    for half, record in zip(program, measured, strict=True):
        model = _find_half(models, half)
        start = len(seconds)
        starts[half.call, half.forward] = start
        own = estimate_seconds(model, record)
        first, last = (model.ops[index][1] if model.ops else 0 for index in (0, -1))
        modelled = sum(seconds[tail:]) + sum(own[:first])
        seconds += own
        if 0.0 < record.gap_seconds < modelled and start:
            for position in range(tail, start + first):
                seconds[position] *= record.gap_seconds / modelled
        else:
            # What runs between the graphs, such as a loss that is not compiled.
            seconds[start] += max(0.0, record.gap_seconds - modelled)
        tail = start + last
        ops += [PlacedOp(start + position, half.call, event) for event, position in model.ops]
        values = models[half.graph].values if half.forward else ()
        held = _find_held(model, values, record)
        if base_bytes is None:
            # If the step began at its first op, measured bytes are relative to that op. Then `held`
            # is negative by what the graph itself has there.
            base_bytes = min(0, held)
        seen = _find_fixed(model, values, record, held)
        fixed += [
            Residence(describe_half(half), nbytes - base_bytes, start + position, start + position)
            for position, nbytes in enumerate(seen)
        ]
    end = len(seconds)
    if 2 * len({half.call for half in program}) > len(program):
        seconds.append(0.0)  # Values of calls without a backward may live to this extra node.
    phases = _find_phases(program, starts, len(seconds))
    deaths = _find_deaths(program, measured, starts, end)
    joined = _join_values(program, models, starts, deaths, phases[0].turn, owners)
    step = Step(
        names=tuple(str(position) for position in range(len(seconds))),
        seconds=tuple(seconds),
        forward_length=phases[0].turn,
        forward_inputs=0,
        backward_inputs=0,
        fixed=tuple(fixed),
        values=tuple(value for value, _ in joined),
        stops=tuple(sorted({op.position for op in ops})),
        phases=phases,
    )
    return JoinedStep(
        step, {value.name: members for value, members in joined}, tuple(ops), base_bytes or 0
    )


def _find_deaths(
    program: Program,
    measured: Sequence[HalfMeasurement],
    starts: Mapping[tuple[int, bool], int],
    end: int,
) -> dict[int, int]:
    """By call, the last position at which values live that no backward reads; end: of the step."""
    deaths: dict[int, int] = {}
    for half, record in zip(program, measured, strict=True):
        if not half.forward:
            continue
        following = len(program) if record.last_half is None else record.last_half + 1
        behind = program[following] if following < len(program) else None
        deaths[half.call] = end if behind is None else starts[behind.call, behind.forward] - 1
    return deaths


def _join_values(
    program: Program,
    models: Mapping[str, GraphModel],
    starts: Mapping[tuple[int, bool], int],
    deaths: Mapping[int, int],
    forward_length: int,
    owners: Owners,
) -> list[tuple[SavedValue, tuple[CallValue, ...]]]:
    """The values of all calls, with the values of calls that each of them is.

    A tensor that several calls have saved is one value, from its first birth to its last reader.
    deaths: see _find_deaths.
    """
    found: dict[CallValue, SavedValue] = {}
    for half in program:
        if half.forward:
            begin, backward = starts[half.call, True], starts.get((half.call, False))
            for value in models[half.graph].values:
                key = half.call, value.name
                first, last = deaths[half.call] + 1, deaths[half.call]
                if backward is not None:
                    first, last = backward + value.first_use, backward + value.freed
                last_use = begin + value.last_use
                if value.refusal == RETURNED:  # The caller reads it behind the forward.
                    last_use = begin + len(models[half.graph].forward.seconds)
                found[key] = replace(
                    value,
                    name=f"{half.call}/{value.name}",
                    born=begin + value.born,
                    last_use=min(last_use, first),
                    first_use=first - forward_length,
                    freed=last - forward_length,
                    refusal=_find_refusal(key, value, owners),
                )
    joined: dict[CallValue, tuple[SavedValue, tuple[CallValue, ...]]] = {
        key: (value, (key,)) for key, value in found.items()
    }
    for group in owners.shared:
        members = sorted(
            (key for key in group if key in found),
            key=lambda key: (not found[key].is_read, found[key].first_use),
        )
        first = min(members, key=lambda key: found[key].born, default=None)
        for key in members:
            del joined[key]
        if first is not None:
            joined[first] = _merge([found[key] for key in members], found[first]), tuple(members)
    return list(joined.values())


def _merge(values: Sequence[SavedValue], first: SavedValue) -> SavedValue:
    """One value in place of `values`, which are the same tensor; `first` is the first born.

    values: in the order of their first readers; those that nothing reads come last.
    """
    refusals = [value.refusal for value in values if value.refusal not in (None, RETURNED)]
    freed = max(value.freed for value in values)
    return replace(
        first,
        last_use=max(value.last_use for value in values),
        first_use=values[0].first_use if values[0].is_read else freed + 1,
        freed=freed,
        refusal=refusals[0] if refusals else None,
        must_move=any(value.must_move for value in values),
    )


def _find_refusal(key: CallValue, value: SavedValue, owners: Owners) -> str | None:
    """Why the value may not move in this step."""
    if value.has_ops and key in owners.held:
        return HELD
    if value.refusal == RETURNED and key in owners.let_go:
        return None
    return value.refusal


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


def describe_half(half: Half) -> str:
    """The name of `half` in messages."""
    return f"{'forward' if half.forward else 'backward'} of call {half.call}"


def _find_held(model: HalfModel, values: Sequence[SavedValue], record: HalfMeasurement) -> int:
    """Bytes that are held from outside of the half, as measured at its first op.

    values: those that are born in the half. The measured bytes include values that were born before
    the op and have not been offloaded yet; these are subtracted.
    """
    if record.held_bytes is None or not model.ops:
        return 0
    first = model.ops[0][1]
    # What lives on both sides of the op lives at the op.
    at_first = min([0, *model.fixed_bytes][first], [*model.fixed_bytes, 0][first])
    return record.held_bytes - at_first - _count_born(values, 0, first)


def _find_fixed(
    model: HalfModel, values: Sequence[SavedValue], record: HalfMeasurement, held_bytes: int
) -> list[int]:
    """Bytes of each segment that the schedule does not change; values, held_bytes: see _find_held.

    They are the higher of two numbers: the model's bytes with those that are held from outside of
    the half, and the bytes that were measured between its ops.
    """
    length = len(model.seconds)
    bounds = [(event, min(position, length)) for event, position in model.ops]
    found = [held_bytes + nbytes for nbytes in model.fixed_bytes]
    ends = [position for _, position in bounds[1:]] + [length]
    for (event, begin), end in zip(bounds, ends, strict=True):
        seen = record.peak_bytes.get(event)
        if seen is not None:
            seen -= _count_born(values, begin, end)
            found[begin:end] = [max(nbytes, seen) for nbytes in found[begin:end]]
    if record.gap_bytes is not None:
        first = bounds[0][1] if bounds else 0
        found[0] = max(found[0], record.gap_bytes - _count_born(values, 0, first))
    return found


def _count_born(values: Sequence[SavedValue], begin: int, end: int) -> int:
    return sum(value.nbytes for value in values if begin <= value.born < end)
