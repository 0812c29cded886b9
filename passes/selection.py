"""Selection: decide for every saved value whether it moves. Pure data, no torch.fx.

The rule of this version: largest benefit first, where the benefit is bytes times the seconds that
they are not needed; a value that is reused sooner than it can travel both ways is kept.

    values, seconds of every node, links, budget  ->  Plan(values, decisions, predicted peak)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fxoffload.cost import Link
from fxoffload.plan import Decision, Keep, Offload, Plan, SavedValue, Tier

# Part of a link's time that a plan may fill: the rest absorbs noise and other users of the drive.
LINK_UTILISATION = 0.8


@dataclass(frozen=True, slots=True)
class Timeline:
    """When each node of a training step starts, in seconds from the start of its graph.

    forward, backward: start of every node by position, and the end as last entry.
    gradients: (position in the backward, bytes) of the gradients that the backward returns; they
    live from there to the end of the step.
    """

    forward: tuple[float, ...]
    backward: tuple[float, ...]
    gradients: tuple[tuple[int, int], ...] = ()

    def idle_seconds(self, value: SavedValue) -> float:
        """Seconds from the last forward reader to the first backward reader."""
        return (
            self.forward[-1]
            - self.forward[min(value.last_use + 1, len(self.forward) - 1)]
            + self.backward[value.first_use]
        )


def choose_offloads(
    values: Sequence[SavedValue],
    timeline: Timeline,
    links: Mapping[str, Link],
    *,
    budget_bytes: int | Literal["min"] | None = None,
    host_bytes: int = 0,
) -> Plan:
    """A plan for `values`.

    budget_bytes: None moves what the links carry while the step computes; bytes move just enough
    to fit that predicted peak, or everything when it cannot be fitted; "min" moves everything.
    host_bytes: capacity of the host tier; it takes the values reused soonest, the rest goes to
    NVMe.
    """
    candidates = [value for value in values if value.refusal is None]
    nvme = links["nvme"]
    if budget_bytes is None:
        chosen, reasons = _choose_hidden(candidates, timeline, nvme)
    elif budget_bytes == "min":
        chosen, reasons = candidates, {}
    else:
        chosen, reasons = _choose_to_fit(values, candidates, timeline, budget_bytes)
    tiers = _assign_tiers(chosen, timeline, host_bytes if "host" in links else 0)
    decisions: list[Decision] = []
    for value in values:
        if value.name in tiers:
            decisions.append(Offload(tiers[value.name]))
        else:
            decisions.append(Keep(value.refusal or reasons[value.name]))
    return Plan(
        values=tuple(values),
        decisions=tuple(decisions),
        peak_bytes=predict_peak(values, set(tiers), timeline),
        unmoved_peak_bytes=predict_peak(values, set(), timeline),
        budget_bytes=budget_bytes if isinstance(budget_bytes, int) else None,
    )


def predict_peak(values: Sequence[SavedValue], moved: set[str], timeline: Timeline) -> int:
    """Peak bytes of saved values and returned gradients over the step, `moved` ones away.

    A moved value is away from its last forward reader to its first backward reader. Inputs that
    may not move are the caller's and not counted; those that may are activations of another graph,
    which nobody but this one keeps. Temporaries and the time of the copies themselves are not
    counted: the prediction is a lower bound.
    """
    offset = len(timeline.forward)
    changes: dict[int, int] = {}

    def add(first: int, last: int, nbytes: int) -> None:
        changes[first] = changes.get(first, 0) + nbytes
        changes[last + 1] = changes.get(last + 1, 0) - nbytes

    for value in values:
        if not value.owned and value.refusal is not None:
            continue
        if value.name in moved:
            add(value.born, value.last_use, value.nbytes)
            add(offset + value.first_use, offset + value.freed, value.nbytes)
        else:
            add(value.born, offset + value.freed, value.nbytes)
    end = offset + len(timeline.backward)
    for position, nbytes in timeline.gradients:
        add(offset + position, end, nbytes)
    peak = live = 0
    for position in sorted(changes):
        live += changes[position]
        peak = max(peak, live)
    return peak


def _by_benefit(candidates: Sequence[SavedValue], timeline: Timeline) -> list[SavedValue]:
    return sorted(
        candidates, key=lambda value: (-value.nbytes * timeline.idle_seconds(value), value.name)
    )


def _choose_hidden(
    candidates: Sequence[SavedValue], timeline: Timeline, link: Link
) -> tuple[list[SavedValue], dict[str, str]]:
    """What both directions of the link carry within the forward and the backward."""
    write_seconds = LINK_UTILISATION * timeline.forward[-1]
    read_seconds = LINK_UTILISATION * timeline.backward[-1]
    chosen: list[SavedValue] = []
    reasons: dict[str, str] = {}
    for value in _by_benefit(candidates, timeline):
        if timeline.idle_seconds(value) < link.round_trip_seconds(value.nbytes):
            reasons[value.name] = "reused too soon to travel both ways"
            continue
        write, read = link.write_seconds(value.nbytes), link.read_seconds(value.nbytes)
        if write > write_seconds or read > read_seconds:
            reasons[value.name] = "the link is full: moving it would not hide"
            continue
        write_seconds -= write
        read_seconds -= read
        chosen.append(value)
    return chosen, reasons


def _choose_to_fit(
    values: Sequence[SavedValue],
    candidates: Sequence[SavedValue],
    timeline: Timeline,
    budget_bytes: int,
) -> tuple[list[SavedValue], dict[str, str]]:
    """The fewest values, largest benefit first, whose absence fits the budget."""
    chosen: list[SavedValue] = []
    moved: set[str] = set()
    for value in _by_benefit(candidates, timeline):
        if predict_peak(values, moved, timeline) <= budget_bytes:
            break
        chosen.append(value)
        moved.add(value.name)
    reasons = {
        value.name: "fits the budget where it is" for value in candidates if value.name not in moved
    }
    return chosen, reasons


def _assign_tiers(
    chosen: Sequence[SavedValue], timeline: Timeline, host_bytes: int
) -> dict[str, Tier]:
    tiers: dict[str, Tier] = {}
    for value in sorted(chosen, key=lambda v: (timeline.idle_seconds(v), v.name)):
        if value.nbytes <= host_bytes:
            host_bytes -= value.nbytes
            tiers[value.name] = "host"
        else:
            tiers[value.name] = "nvme"
    return tiers
