"""Search: find the best set of values to move, by trials that the caller places and simulates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from fxoffload.planner.link import Link
from fxoffload.planner.plan import SavedValue
from fxoffload.planner.simulation import Simulation
from fxoffload.planner.step import Transfer

# What the rounding of sums of seconds may amount to, as a share of a step.
ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Trial:
    """A set of moved values, placed and simulated.

    held_bytes: on the device when the forward ends, with its results.
    """

    transfers: Mapping[str, Transfer]
    simulation: Simulation
    held_bytes: int


@dataclass(frozen=True, slots=True)
class Choice:
    """The best set of moved values that was found.

    best: its trial. unmoved: the trial that moves nothing. reason: why the other values are kept.
    """

    best: Trial
    unmoved: Trial
    reason: str


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes that may be on the device: at any moment, and when the forward ends. None: any."""

    peak_bytes: int | None
    held_bytes: int | None

    def find_excess(self, trial: Trial) -> int:
        """Bytes by which `trial` is above the limits; 0 where it fits."""
        pairs = (
            (trial.simulation.peak_bytes, self.peak_bytes),
            (trial.held_bytes, self.held_bytes),
        )
        return sum(max(0, nbytes - limit) for nbytes, limit in pairs if limit is not None)

    def rate(self, trial: Trial) -> tuple[int, float, int]:
        """A key that is lowest for the best trial: the excess, then seconds, then bytes written."""
        simulation = trial.simulation
        return self.find_excess(trial), simulation.step_seconds, simulation.written_bytes


def choose_hidden(
    candidates: Sequence[SavedValue],
    idle: Mapping[str, float],
    links: Mapping[str, Link],
    attempt: Callable[[Iterable[SavedValue]], Trial],
    least: Trial,
    contended_seconds: float,
    max_trials: int,
) -> list[SavedValue]:
    """A set that hides, with a low peak: the longest prefixes of `candidates`, then made better.

    least: `attempt(())`, which holds what must move. A set hides if nobody waits for it, and if it
    takes at most `contended_seconds` from compute, both beside what `least` costs. Of sets that
    hide, those with the lower peak are better, then those that move more.
    """
    waited = least.simulation.exposed_seconds + ROUNDING * least.simulation.step_seconds
    taken = least.simulation.contended_seconds + contended_seconds
    useful = [
        value
        for value in candidates
        if idle[value.name] >= links["nvme"].round_trip_seconds(value.nbytes)
    ]
    if not useful:
        return []

    def find_cost(trial: Trial) -> float:
        exposed_seconds = trial.simulation.exposed_seconds - waited
        contended_seconds = trial.simulation.contended_seconds - taken
        return max(0.0, exposed_seconds) + max(0.0, contended_seconds)

    chosen: list[SavedValue] = []
    rest = useful
    trials = 0
    while rest and trials < max_trials:
        low, high = 0, len(rest)
        while low < high:  # The most of what is left that still hides.
            middle = (low + high + 1) // 2
            trials += 1
            hides = not find_cost(attempt([*chosen, *rest[:middle]]))
            low, high = (middle, high) if hides else (low, middle - 1)
        chosen += rest[:low]
        rest = rest[low + 1 :]

    def rate(trial: Trial) -> tuple[float, int, int]:
        simulation = trial.simulation
        return find_cost(trial), simulation.peak_bytes, -simulation.written_bytes

    return _improve(chosen, useful, rate, attempt, max_trials - trials)


def choose_to_fit(
    orders: Sequence[Sequence[SavedValue]],
    limits: Limits,
    least: Trial,
    attempt: Callable[[Iterable[SavedValue]], Trial],
    max_trials: int,
) -> list[SavedValue]:
    """The set that fits in the least time; all candidates when none fits.

    least: `attempt(())`. orders: the candidates in several orders, the most promising first. Local
    search starts from all candidates and from the shortest prefix of each order that fits, but not
    from the worst of these.
    """
    if not limits.find_excess(least):
        return []

    starts = [list(orders[0])]
    trials = 0
    for order in orders:
        low, high = 1, len(order)
        while low < high:  # The shortest prefix that fits.
            middle = (low + high) // 2
            trials += 1
            fits = not limits.find_excess(attempt(order[:middle]))
            low, high = (low, middle) if fits else (middle + 1, high)
        starts.append(list(order[:low]))
    # The worst start rarely catches up, so its trials are given to the others.
    starts = sorted(starts, key=lambda chosen: limits.rate(attempt(chosen)))[:-1]
    share = max(0, max_trials - trials) // len(starts)
    found = [_improve(start, orders[0], limits.rate, attempt, share) for start in starts]
    return min(found, key=lambda chosen: limits.rate(attempt(chosen)))


def refine(
    chosen: list[SavedValue],
    candidates: Sequence[SavedValue],
    limits: Limits,
    least: Trial,
    attempt: Callable[..., Trial],
    lose: Callable[[Trial], float],
    insured: Callable[[], list[SavedValue]],
    max_trials: int,
) -> Trial:
    """Improve `chosen` by a criterion that the search before did not use.

    If the step waits for transfers, reads may overtake each other: `attempt(..., overtakes=True)`.
    If not, the best of equally good sets is the one with the lowest `lose(trial)`, which is the
    step time on slow links. insured(): the set that is best on these. least: `attempt(())`.
    """
    best = attempt(chosen)
    if not chosen:
        return best
    if best.simulation.exposed_seconds > least.simulation.exposed_seconds:
        overtake = partial(attempt, overtakes=True)
        found = overtake(_improve(chosen, candidates, limits.rate, overtake, max_trials))
        return min(best, found, key=limits.rate)

    def insure(trial: Trial) -> tuple[float, ...]:
        return (*limits.rate(trial), lose(trial))

    start = min(chosen, insured(), key=lambda values: insure(attempt(values)))
    return attempt(_improve(start, candidates, insure, attempt, max_trials))


def _improve(
    chosen: list[SavedValue],
    candidates: Sequence[SavedValue],
    rate: Callable[[Trial], tuple[float, ...]],
    attempt: Callable[[Iterable[SavedValue]], Trial],
    max_trials: int,
) -> list[SavedValue]:
    """Local search: drop, add and exchange values while that makes the set better."""
    best = rate(attempt(chosen))
    tried = {frozenset(value.name for value in chosen)}
    improved = True
    while improved:
        improved = False
        for neighbour in _find_neighbours(chosen, candidates):
            if len(tried) > max_trials:
                return chosen
            names = frozenset(value.name for value in neighbour)
            if names in tried:
                continue
            tried.add(names)
            found = rate(attempt(neighbour))
            if found < best:
                chosen, best, improved = neighbour, found, True
                break
    return chosen


def _find_neighbours(
    chosen: Sequence[SavedValue], candidates: Sequence[SavedValue]
) -> Iterable[list[SavedValue]]:
    """`chosen` without or with runs of values, long runs first; then with one value exchanged."""
    names = {value.name for value in chosen}
    others = [value for value in candidates if value.name not in names]
    size = len(candidates)
    while size := size // 2:
        for index in range(0, len(chosen), size):
            yield [*chosen[:index], *chosen[index + size :]]
        for index in range(0, len(others), size):
            yield [*chosen, *others[index : index + size]]
    for index in range(len(chosen)):
        for other in others:
            yield [*chosen[:index], *chosen[index + 1 :], other]
