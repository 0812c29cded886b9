"""Steps: what the planner knows of a training step, and the transfers that it decides. Pure data.

Positions count the nodes of a step: the forward's, then the backward's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

from fxoffload.inflight import find_inflight_cap
from fxoffload.planner.plan import SavedValue, Tier


class Residence(NamedTuple):
    """`nbytes` called `name` that live from position `first` to `last`, both included."""

    name: str
    nbytes: int
    first: int
    last: int


class Phase(NamedTuple):
    """Forwards behind one another, from `start` to `turn`, then backwards, from there to `end`."""

    start: int
    turn: int
    end: int


@dataclass(frozen=True)
class Step:
    """A training step as the planner sees it.

    names, seconds: of every node. forward_length: how many of them are the first forward's; the
    first `forward_inputs` of these and the first `backward_inputs` of those behind them are
    placeholders. fixed: what lives whatever the plan says. values: what may be moved, or is kept
    for a reason. stops: the positions in front of which a release or a prefetch may stand; None:
    all. phases: the whole step in order; by default one, which turns at `forward_length`.
    """

    names: tuple[str, ...]
    seconds: tuple[float, ...]
    forward_length: int
    forward_inputs: int
    backward_inputs: int
    fixed: tuple[Residence, ...]
    values: tuple[SavedValue, ...]
    stops: tuple[int, ...] | None = None
    phases: tuple[Phase, ...] = ()

    def __post_init__(self) -> None:
        if not self.phases:
            whole = Phase(0, self.forward_length, len(self.seconds))
            object.__setattr__(self, "phases", (whole,))

    @property
    def compute_seconds(self) -> float:
        """Seconds of all nodes."""
        return sum(self.seconds)

    @cached_property
    def fixed_bytes(self) -> tuple[int, ...]:
        """Bytes of what is fixed at every position."""
        return tuple(accumulate(find_changes(self.fixed, len(self.seconds))))

    @property
    def movable(self) -> list[SavedValue]:
        """The values that may move."""
        return [value for value in self.values if value.refusal is None]

    def find_inflight_cap(self, stated_bytes: int | None) -> int:
        """The cap on bytes in flight each way; stated_bytes: None is the default."""
        largest_bytes = max((value.nbytes for value in self.movable), default=0)
        return find_inflight_cap(stated_bytes, largest_bytes)

    def find_turn(self, value: SavedValue) -> int:
        """Where the backwards begin behind the forwards that save the value."""
        return next(phase.turn for phase in self.phases if value.last_use < phase.end)

    def first_use(self, value: SavedValue) -> int:
        """The position of the first backward reader."""
        return self.forward_length + value.first_use

    def freed(self, value: SavedValue) -> int:
        """The position of the last backward reader."""
        return self.forward_length + value.freed


@dataclass(frozen=True, slots=True)
class Transfer:
    """The move of one value: the positions in front of which its release and prefetch stand.

    release: None if nothing waits for the write; the store frees the memory when it has ended.
    """

    tier: Tier
    release: int | None
    prefetch: int


def find_changes(residences: Sequence[Residence], length: int) -> list[int]:
    """The bytes of `residences` at each position, less those at the position before."""
    changes = [0] * (length + 1)
    for residence in residences:
        if residence.first <= residence.last:
            changes[residence.first] += residence.nbytes
            changes[min(residence.last + 1, length)] -= residence.nbytes
    return changes[:-1]
