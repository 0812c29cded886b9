"""The planner's problem as a mixed integer linear program, solved by HiGHS, as a reference.

    decisions   for each value that may move: whether, in front of which forward node its release
                stands, in front of which backward node its prefetch stands
    times       when every node starts, when every write and every read ends; a channel serves one
                transfer after the other, writes in the order of birth, reads in that of prefetches
    memory      within the budget while each node runs
    objective   the end of the last node; then bytes written

The model is that of `simulate` for one link without a cap on bytes in flight, with one exception: a
prefetch starts after the end of its write. If a prefetch started earlier, the memory would never be
freed; keeping the value does the same without a write, so the exception excludes no optimum.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_matrix

from fxoffload.planner.link import Link
from fxoffload.planner.plan import SavedValue
from fxoffload.planner.step import Step, Transfer

CONSTANT = -1
BYTES_WEIGHT = 1e-6


@dataclass(frozen=True, slots=True)
class Optimum:
    """bound_seconds: proven, no plan takes less. step_seconds: what the plan `transfers` takes."""

    bound_seconds: float
    step_seconds: float
    transfers: Mapping[str, Transfer]


class Sum(dict[int, float]):
    """A linear expression: factors by column, and a constant."""

    def __add__(self, other: Mapping[int, float] | float) -> Sum:
        total = Sum(self)
        for column, factor in other.items() if isinstance(other, Mapping) else ((CONSTANT, other),):
            total[column] = total.get(column, 0.0) + factor
        return total

    def __mul__(self, factor: float) -> Sum:
        return Sum({column: factor * value for column, value in self.items()})

    def __sub__(self, other: Mapping[int, float] | float) -> Sum:
        return self + (Sum(other) * -1.0 if isinstance(other, Mapping) else -other)


def add_all(parts: Iterable[Sum]) -> Sum:
    total = Sum()
    for part in parts:
        total += part
    return total


@dataclass
class Program:
    """Rows of a linear program. `horizon` is longer than any step: it switches rows off."""

    horizon: float
    upper: list[float] = field(default_factory=list)
    integral: list[int] = field(default_factory=list)
    rows: list[Sum] = field(default_factory=list)

    def add_number(self) -> Sum:
        return self._add(np.inf, 0)

    def add_choice(self) -> Sum:
        return self._add(1.0, 1)

    def require(self, positive: Sum, when: Sum | None = None) -> None:
        """`positive` is at least 0, at least where all that `when` counts is 1, not less."""
        if when is not None:
            positive = positive + (Sum({CONSTANT: 1.0}) - when) * self.horizon
        self.rows.append(positive)

    def require_latest(self, time: Sum, causes: Sequence[tuple[Sum, Sum | None]]) -> None:
        """`time` is the latest of the `causes` whose condition is 1."""
        picked = Sum()
        for cause, when in causes:
            self.require(time - cause, when)
            choice = self.add_choice()
            self.require(cause - time, choice)
            if when is not None:
                self.require(when - choice)
            picked += choice
        self.require(picked - 1.0)

    def _add(self, upper: float, integral: int) -> Sum:
        self.upper.append(upper)
        self.integral.append(integral)
        return Sum({len(self.upper) - 1: 1.0})


class Model:
    """Columns and rows for one step over one link."""

    def __init__(self, step: Step, link: Link, budget_bytes: int | None) -> None:
        self.step, self.link = step, link
        self.values = [value for value in step.values if value.refusal is None]
        moved_bytes = sum(value.nbytes for value in self.values)
        self.program = Program(
            step.compute_seconds
            + 2 * len(self.values) * link.latency_seconds
            + link.write_seconds(moved_bytes)
            + link.read_seconds(moved_bytes)
            + 2 * link.compute_seconds_per_byte * moved_bytes
        )
        add_number, add_choice = self.program.add_number, self.program.add_choice
        length, num_nodes = step.forward_length, len(step.seconds)
        self.starts = [add_number() for _ in range(num_nodes)]
        self.moves = {v.name: add_choice() for v in self.values}
        self.releases: dict[str, dict[int, Sum]] = {}
        self.prefetches: dict[str, dict[int, Sum]] = {}
        for v in self.values:
            first = max(v.last_use + 1, step.forward_inputs)
            self.releases[v.name] = {p: add_choice() for p in range(first, length + 1)}
            first = length + step.backward_inputs
            self.prefetches[v.name] = {p: add_choice() for p in range(first, step.first_use(v) + 1)}
            for choices in (self.releases[v.name], self.prefetches[v.name]):
                difference = add_all(choices.values()) - self.moves[v.name]
                self.program.require(difference)
                self.program.require(difference * -1.0)
        self.writes = {v.name: add_number() for v in self.values}
        self.reads = {v.name: add_number() for v in self.values}
        self._state_writes()
        self._state_reads()
        self._state_starts()
        if budget_bytes is not None:
            for position in range(num_nodes):
                self.program.require(self._count_live(position) * -1.0 + float(budget_bytes))

    @property
    def end(self) -> Sum:
        """When the last node is done."""
        return self.starts[-1] + self.step.seconds[-1]

    def _ready(self, position: int) -> Sum:
        """When the node in front of `position` is done, and the offloads behind it are asked."""
        if position == 0:
            return Sum()
        born = [v for v in self.values if v.born == position - 1]
        time = self.starts[position - 1] + self.step.seconds[position - 1]
        return time + self._take(born, self.moves)

    def _take(self, values: Iterable[SavedValue], choices: Mapping[str, Sum]) -> Sum:
        """What transfers take from compute."""
        share = self.link.compute_seconds_per_byte
        return add_all(choices[v.name] * (share * v.nbytes) for v in values)

    def _state_writes(self) -> None:
        previous: SavedValue | None = None
        for value in self.values:
            peers = [v for v in self.values if v.born == value.born]
            before = peers[: peers.index(value) + 1]
            asked = self.starts[value.born] + self.step.seconds[value.born]
            asked += self._take(before, self.moves)
            occupied = self.moves[value.name] * self.link.write_seconds(value.nbytes)
            causes: list[tuple[Sum, Sum | None]] = [(asked + occupied, None)]
            if previous is not None:
                causes.append((self.writes[previous.name] + occupied, None))
            self.program.require_latest(self.writes[value.name], causes)
            previous = value

    def _state_reads(self) -> None:
        by_use = sorted(self.values, key=lambda value: value.first_use)
        for order, value in enumerate(by_use):
            occupied = self.link.read_seconds(value.nbytes)
            causes: list[tuple[Sum, Sum | None]] = []
            for position, choice in self.prefetches[value.name].items():
                peers = [v for v in by_use[: order + 1] if position in self.prefetches[v.name]]
                here = {v.name: self.prefetches[v.name][position] for v in peers}
                asked = self._ready(position) + self._take(peers, here)
                causes.append((asked + occupied, choice))
                written = self.writes[value.name] + self.link.latency_seconds
                self.program.require(self._ready(position) - written, choice)
            for index, other in enumerate(by_use):
                if other is not value:
                    first = self._precedes(other, value, ties=index < order)
                    causes.append((self.reads[other.name] + occupied, first))
            causes.append((Sum(), Sum({CONSTANT: 1.0}) - self.moves[value.name]))
            self.program.require_latest(self.reads[value.name], causes)

    def _precedes(self, first: SavedValue, second: SavedValue, *, ties: bool) -> Sum:
        """1 when both move and the prefetch of `first` comes before that of `second`."""
        result = self.program.add_choice()
        both = Sum()
        for position, choice in self.prefetches[second.name].items():
            earlier = add_all(
                c
                for place, c in self.prefetches[first.name].items()
                if place < position or (place == position and ties)
            )
            later = self.moves[first.name] - earlier
            # At most and at least 1 where `second` stands at `position`.
            self.program.require(result - choice - earlier + 1.0)
            self.program.require(Sum({CONSTANT: 2.0}) - result - choice - later)
            both += choice
        self.program.require(both - result)
        self.program.require(self.moves[first.name] - result)
        return result

    def _state_starts(self) -> None:
        latency = self.link.latency_seconds
        for position, start in enumerate(self.starts):
            asked = [v for v in self.values if position in self.prefetches[v.name]]
            here = {v.name: self.prefetches[v.name][position] for v in asked}
            causes: list[tuple[Sum, Sum | None]] = [
                (self._ready(position) + self._take(asked, here), None)
            ]
            for value in self.values:
                if position < self.step.forward_length and position in self.releases[value.name]:
                    written = self.writes[value.name] + latency
                    causes.append((written, self.releases[value.name][position]))
                if position == self.step.first_use(value):
                    causes.append((self.reads[value.name] + latency, self.moves[value.name]))
            self.program.require_latest(start, causes)

    def _count_live(self, position: int) -> Sum:
        """Bytes on the device while a node runs."""
        length = self.step.forward_length
        fixed = (r.nbytes for r in self.step.fixed if r.first <= position <= r.last)
        live = Sum({CONSTANT: float(sum(fixed))})
        for value in self.step.values:
            if not value.born <= position <= self.step.freed(value):
                continue
            if value.refusal is not None:
                live += float(value.kept_bytes) if value.counts else 0.0
                continue
            move = self.moves[value.name]
            live += (Sum({CONSTANT: 1.0}) - move) * value.kept_bytes
            releases, prefetches = self.releases[value.name], self.prefetches[value.name]
            if position < length:
                gone = add_all(c for place, c in releases.items() if place <= position)
                live += (move - gone) * value.nbytes
            elif position >= self.step.first_use(value):
                live += move * value.nbytes
            else:
                held = self.program.add_choice()
                written = self.writes[value.name] + self.link.latency_seconds
                arrival = self._ready(position) + held * self.program.horizon
                self.program.require(arrival - written, releases[length])
                back = add_all(c for place, c in prefetches.items() if place <= position)
                live += (held + back) * value.nbytes
        return live


def solve(step: Step, link: Link, budget_bytes: int | None) -> Optimum | None:
    """The fastest plan over one link that fits `budget_bytes`; None when there is none."""
    model = Model(step, link, budget_bytes)
    program = model.program
    written = add_all(model.moves[v.name] * (BYTES_WEIGHT * v.nbytes) for v in model.values)
    objective = model.end + written
    cost = [objective.get(column, 0.0) for column in range(len(program.upper))]
    entries = [
        (row, column, factor)
        for row, terms in enumerate(program.rows)
        for column, factor in terms.items()
        if column != CONSTANT
    ]
    rows, columns, factors = zip(*entries, strict=True)
    matrix = csr_matrix((factors, (rows, columns)), shape=(len(program.rows), len(cost)))
    constraints = LinearConstraint(matrix, lb=[-row.get(CONSTANT, 0.0) for row in program.rows])
    for presolve in (True, False):
        result = milp(
            cost,
            constraints=constraints,
            bounds=Bounds(0, program.upper),
            integrality=program.integral,
            options={"time_limit": 10.0, "mip_rel_gap": 1e-4, "presolve": presolve},
        )
        if result.status != 4:  # HiGHS now and then loses a solution that presolve has found.
            break
    if result.status == 2:
        return None
    assert result.x is not None, result.message
    solution = result.x
    moved = [v for v in model.values if _evaluate(model.moves[v.name], solution) > 0.5]
    seconds = objective.get(CONSTANT, 0.0)
    return Optimum(
        bound_seconds=result.mip_dual_bound + seconds - _evaluate(written, np.ones(len(cost))),
        step_seconds=_evaluate(model.end, solution),
        transfers={
            v.name: Transfer(
                "nvme",
                _find_release(step, _pick(model.releases[v.name], solution)),
                _pick(model.prefetches[v.name], solution),
            )
            for v in moved
        },
    )


def _find_release(step: Step, position: int) -> int | None:
    """Nothing waits for a release at the end of the forward."""
    return position if position < step.forward_length else None


def _evaluate(terms: Sum, solution: np.ndarray) -> float:
    return sum(f * (1.0 if c == CONSTANT else float(solution[c])) for c, f in terms.items())


def _pick(choices: Mapping[int, Sum], solution: np.ndarray) -> int:
    (position,) = (p for p, choice in choices.items() if _evaluate(choice, solution) > 0.5)
    return position
