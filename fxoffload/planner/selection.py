"""Selection: decide for every saved value whether it moves, and where. Pure data, no torch.fx.

    no budget   what moves without being waited for, and takes little from compute
    bytes       what fits: least step time, then fewest bytes written; nothing when all fits anyway
    "min"       the lowest peak that moving reaches: everything moves

Every candidate set of moved values is placed and simulated; the result is the best one found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from fxoffload.errors import BudgetError
from fxoffload.planner.condensing import condense
from fxoffload.planner.link import Link
from fxoffload.planner.peak import describe_holders
from fxoffload.planner.placement import place_transfers
from fxoffload.planner.plan import SavedValue, Tier
from fxoffload.planner.plan_writer import describe_kept
from fxoffload.planner.residences import find_lower_bound
from fxoffload.planner.search import Choice, Limits, Trial, choose_hidden, choose_to_fit, refine
from fxoffload.planner.simulation import find_holders, simulate
from fxoffload.planner.slack import add_slack
from fxoffload.planner.step import Step, Transfer
from fxoffload.sizes import MIB

# The part of a link's bandwidth that plans count on. `slack` adds more insurance against slow links
# where that takes neither memory nor time.
LINK_UTILISATION = 0.95
# Without a budget, the part of the unmoved step that transfers may take from compute beside them.
HIDDEN_SHARE = 0.02
# Nodes, or segments of them, that may be simulated in one selection, at most a second's worth:
# small steps are searched through, large ones get some dozens of trials.
MAX_NODE_VISITS = 300_000
# What a value counts as in node visits, as its transfers are placed and queued.
VISITS_OF_VALUE = 4
# Of sets that take as long and write as much, the one is chosen that is fastest on links of this
# share of the assumed speed.
INSURED_SPEED = 0.6


def choose_transfers(
    step: Step,
    links: Mapping[str, Link],
    *,
    budget_bytes: int | Literal["min"] | None = None,
    held_bytes: int | None = None,
    host_bytes: int = 0,
    max_inflight_bytes: int | None = None,
    utilisation: float = LINK_UTILISATION,
    max_node_visits: int = MAX_NODE_VISITS,
) -> Choice:
    """The values of `step` to move, with their transfers; those that must move are among them.

    held_bytes: what may be on the device when the forward ends, as other graphs may run before the
    backward; None is no limit. host_bytes: capacity of the host tier; it takes the values reused
    soonest, the rest goes to NVMe. max_inflight_bytes: see find_inflight_cap. utilisation: part of
    the bandwidth of `links` that the plan counts on. max_node_visits: nodes that may be simulated
    in the search. Raises BudgetError naming the lowest reachable peak when `budget_bytes` or
    `held_bytes` cannot be kept.
    """
    condensed = condense(step)
    movable = condensed.step.movable
    idle = _find_idle_seconds(condensed.step, movable)
    candidates = [value for value in movable if not value.must_move]
    candidates.sort(key=lambda value: (-value.nbytes * idle[value.name], value.name))
    limits = Limits(budget_bytes if isinstance(budget_bytes, int) else None, held_bytes)
    cap_bytes = step.find_inflight_cap(max_inflight_bytes)
    terms = _Terms(derate_links(links, utilisation), limits, cap_bytes)
    attempt = _Attempts(
        # What the program says must move is part of every set that is tried.
        forced=[value for value in movable if value.must_move],
        assign=partial(_assign_tiers, idle=idle, host_bytes=host_bytes if "host" in links else 0),
        place=partial(
            place_transfers,
            condensed.step,
            links=terms.links,
            budget_bytes=find_lower_bound(step) if budget_bytes == "min" else budget_bytes,
            held_bytes=held_bytes,
            max_inflight_bytes=cap_bytes,
        ),
        simulate=partial(terms.simulate, condensed.step),
    )
    visits = len(condensed.step.seconds) + VISITS_OF_VALUE * len(movable)
    trials = max(1, max_node_visits // max(1, visits))
    unmoved = terms.simulate(step, {})
    if budget_bytes == "min":
        # Values that do not add to the peak of this graph add to it if other graphs run in between.
        best, reason = attempt(candidates), ""
    else:
        best, reason = _search(condensed.step, candidates, idle, terms, attempt, trials)

    def expand(trial: Trial) -> Trial:
        return terms.simulate(step, condensed.expand(trial.transfers))

    if limits.find_excess(best := expand(best)):
        raise _make_budget_error(step, limits, expand(attempt(candidates)))
    return Choice(terms.loosen(step, best), unmoved, reason)


@dataclass(frozen=True, slots=True)
class _Terms:
    """The terms of a plan: the links that it counts on, and the bytes that may be on the device."""

    links: Mapping[str, Link]
    limits: Limits
    max_inflight_bytes: int

    def simulate(
        self,
        step: Step,
        transfers: Mapping[str, Transfer],
        links: Mapping[str, Link] | None = None,
    ) -> Trial:
        """The trial of `transfers`. links: if not those that plans count on."""
        found = simulate(
            step, transfers, links or self.links, max_inflight_bytes=self.max_inflight_bytes
        )
        return Trial(transfers, found, found.live_bytes[step.forward_length - 1])

    def loosen(self, step: Step, tight: Trial) -> Trial:
        """`tight` with slack for slower links, if that costs nothing over `links`."""
        peak_bytes = tight.simulation.peak_bytes
        transfers = add_slack(
            step,
            tight.transfers,
            tight.simulation,
            limit_bytes=max(peak_bytes, self.limits.peak_bytes or 0),
            max_inflight_bytes=self.max_inflight_bytes,
        )
        loose = self.simulate(step, transfers)
        costs = (
            self.limits.find_excess(loose)
            or loose.simulation.step_seconds > tight.simulation.step_seconds
            or (self.limits.peak_bytes is None and loose.simulation.peak_bytes > peak_bytes)
        )
        return tight if costs else loose


@dataclass(frozen=True, slots=True)
class _Attempts:
    """The trials of sets of values; each set is placed and simulated once.

    forced: the values that are in every set. assign: gives the tier of each value. place: see
    place_transfers.
    """

    forced: Sequence[SavedValue]
    assign: Callable[[Sequence[SavedValue]], dict[str, Tier]]
    place: Callable[..., dict[str, Transfer]]
    simulate: Callable[..., Trial]
    known: dict[tuple[frozenset[str], bool], Trial] = field(
        default_factory=dict[tuple[frozenset[str], bool], Trial]
    )

    def over(self, links: Mapping[str, Link]) -> _Attempts:
        """The same over other links."""
        place, simulate = partial(self.place, links=links), partial(self.simulate, links=links)
        return _Attempts(self.forced, self.assign, place, simulate)

    def __call__(self, chosen: Iterable[SavedValue], overtakes: bool = False) -> Trial:
        """The trial of `chosen` and the forced values; overtakes: see place_transfers."""
        tiers = self.assign([*self.forced, *chosen])
        key = frozenset(tiers), overtakes
        if key not in self.known:
            self.known[key] = self.simulate(self.place(tiers=tiers, overtakes=overtakes))
        return self.known[key]


def _search(
    step: Step,
    candidates: Sequence[SavedValue],
    idle: Mapping[str, float],
    terms: _Terms,
    attempt: _Attempts,
    max_trials: int,
) -> tuple[Trial, str]:
    """The best set under a budget in bytes, or without one, and why the other values are kept."""
    limits, least = terms.limits, attempt(())
    if limits.peak_bytes is None:
        taken = HIDDEN_SHARE * terms.simulate(step, {}).simulation.step_seconds
        # Values that no backward reads are freed without a transfer.
        read = [value for value in candidates if value.is_read]
        best = attempt(choose_hidden(read, idle, terms.links, attempt, least, taken, max_trials))
        if not limits.find_excess(best):
            return best, "moving it would cost step time"
    slow = derate_links(terms.links, INSURED_SPEED)

    def lose(trial: Trial) -> float:
        loose = terms.loosen(step, trial).transfers
        return terms.simulate(step, loose, slow).simulation.step_seconds

    orders = _find_orders(candidates, idle)

    def insured() -> list[SavedValue]:
        slowly = attempt.over(slow)
        return choose_to_fit(orders, limits, slowly(()), slowly, max_trials // 3)

    chosen = choose_to_fit(orders, limits, least, attempt, max_trials)
    best = refine(chosen, candidates, limits, least, attempt, lose, insured, max_trials // 3)
    return best, "fits the budget where it is"


def _find_orders(
    candidates: Sequence[SavedValue], idle: Mapping[str, float]
) -> tuple[Sequence[SavedValue], ...]:
    """Orders with the most promising first: by bytes and idle seconds, by idle seconds, by size."""
    return (
        candidates,
        sorted(candidates, key=lambda value: (-idle[value.name], value.name)),
        sorted(candidates, key=lambda value: (value.nbytes, value.name)),
    )


def _find_idle_seconds(step: Step, values: Iterable[SavedValue]) -> dict[str, float]:
    """Seconds from the last forward reader to the first backward reader of each value."""
    starts = [0.0]
    for seconds in step.seconds:
        starts.append(starts[-1] + seconds)
    return {
        value.name: max(0.0, starts[step.first_use(value)] - starts[value.last_use + 1])
        for value in values
    }


def derate_links(links: Mapping[str, Link], utilisation: float) -> dict[str, Link]:
    """`links` with a part of their bandwidth, `utilisation`, as predictions count on it."""
    return {
        tier: Link(
            link.write_bytes_per_second * utilisation,
            link.read_bytes_per_second * utilisation,
            link.latency_seconds,
            link.compute_seconds_per_byte,
        )
        for tier, link in links.items()
    }


def _assign_tiers(
    chosen: Iterable[SavedValue], idle: Mapping[str, float], host_bytes: int
) -> dict[str, Tier]:
    tiers: dict[str, Tier] = {}
    for value in sorted(chosen, key=lambda value: (idle[value.name], value.name)):
        if value.nbytes <= host_bytes:
            host_bytes -= value.nbytes
            tiers[value.name] = "host"
        else:
            tiers[value.name] = "nvme"
    return tiers


def _make_budget_error(step: Step, limits: Limits, lowest: Trial) -> BudgetError:
    holders = find_holders(step, lowest.simulation, lowest.transfers)[:5]
    held = ", ".join(f"{holder.name} {holder.nbytes / MIB:.1f} MiB" for holder in holders)
    node = step.names[lowest.simulation.peak_position]
    asked = f"at most {limits.held_bytes} bytes when the forward ends"
    if limits.peak_bytes is not None:
        asked = f"memory_budget={limits.peak_bytes} ({limits.peak_bytes / MIB:.1f} MiB)"
    error = BudgetError(
        f"{asked} cannot be met: the lowest "
        f"peak that moving saved values reaches is {lowest.simulation.peak_bytes / MIB:.1f} MiB, "
        f"at {node}, where {held} and smaller ones are in use"
        f"{describe_kept(step, lowest.simulation)}; raise the budget, or make the batch smaller"
    )
    error.lowest_peak_bytes = lowest.simulation.peak_bytes
    error.budget_bytes = limits.peak_bytes or 0
    error.holders = describe_holders(step, lowest.simulation, lowest.transfers, {}, {})
    return error
