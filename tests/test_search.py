"""Search: which set of values is found, by itself and held against the true optimum."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import milp
import pytest
from steps import EXACT, choose_plan, draw_instance, make_step, make_value, moved

from fxoffload.planner.link import Link
from fxoffload.planner.plan import SavedValue
from fxoffload.planner.search import Limits, Trial, choose_hidden, choose_to_fit, refine
from fxoffload.planner.simulation import Simulation, simulate
from fxoffload.planner.step import Residence, Transfer


def test_two_small_values_move_rather_than_a_slow_large_one() -> None:
    """The large one alone makes room too, but its write takes 30 seconds, those of the others 8."""
    values = [
        make_value("p", nbytes=40),
        make_value("q", nbytes=40, born=1),
        make_value("r", nbytes=300, born=5, last_use=5, first_use=5, freed=5),
    ]
    step = make_step(values, fixed=[Residence("t", 20, 10, 11)])
    link = Link(10.0, 1e9, 0.0)
    plan = choose_plan(step, {"nvme": link}, budget_bytes=345, **EXACT)
    assert moved(plan) == {"p", "q"}
    assert plan.exposed_seconds == 0.0


def test_without_budget_a_full_link_takes_no_more() -> None:
    """Reads of 3 seconds each, wanted at 18; the first may start at 10, 8 seconds earlier."""
    step = make_step([make_value(f"v{index}", nbytes=300) for index in range(4)])
    plan = choose_plan(step, {"nvme": Link(1e9, 100, 0.0)}, **EXACT)
    assert len(moved(plan)) == 2
    assert plan.exposed_seconds == 0.0


def test_without_budget_what_hides_behind_a_value_that_does_not_still_moves() -> None:
    """The first in order does not hide; the search goes on behind it."""
    values = [make_value("large", nbytes=2000, last_use=1), make_value("small", born=1, nbytes=10)]
    plan = choose_plan(make_step(values), {"nvme": Link(1e9, 100, 0.0)})
    assert moved(plan) == {"small"}


# Where a search that only drops, or starts from the most promising values alone, misses.
HARD = (220, 322, 473, 839)


@pytest.mark.parametrize("seeds", [*(range(i, i + 20) for i in range(0, 200, 20)), HARD])
def test_plan_is_within_five_percent_of_the_optimum(seeds: Iterable[int]) -> None:
    """200 instances in all; the optimum's own plan is simulated, so that both mean the same."""
    for seed in seeds:
        step, link, budget_bytes = draw_instance(seed)
        optimum = milp.solve(step, link, budget_bytes)
        assert optimum is not None, "what is not below the lower bound can be met"
        best = simulate(step, optimum.transfers, {"nvme": link})
        assert best.step_seconds == pytest.approx(optimum.step_seconds, abs=1e-4)
        assert best.peak_bytes <= budget_bytes
        plan = choose_plan(step, {"nvme": link}, budget_bytes=budget_bytes, **EXACT)
        assert plan.peak_bytes <= budget_bytes
        assert plan.step_seconds > optimum.bound_seconds - 1e-4, "no plan beats the optimum"
        assert plan.step_seconds <= 1.05 * optimum.bound_seconds, seed


# --- with values that a test says the effects of ------------------------------------------------


def try_values(
    chosen: Iterable[SavedValue], waits: Mapping[str, float] = MappingProxyType({})
) -> Trial:
    """Each takes its bytes off a peak of 1000, one second from compute, and `waits` seconds."""
    values = list(chosen)
    exposed, nbytes = sum(waits.get(v.name, 0.0) for v in values), sum(v.nbytes for v in values)
    simulation = Simulation(
        step_seconds=10.0 + exposed, exposed_seconds=exposed, contended_seconds=len(values),
        live_bytes=(1000 - nbytes,), written_bytes=nbytes, read_bytes=0, forwarded_bytes=0,
    )  # fmt: skip
    transfers = {value.name: Transfer("nvme", 0, 0) for value in values}
    return Trial(transfers, simulation, held_bytes=500)


def names(values: Iterable[SavedValue]) -> list[str]:
    return [value.name for value in values]


@pytest.mark.parametrize(
    ("peak_bytes", "held_bytes", "excess"),
    [(None, None, 0), (1000, 500, 0), (900, None, 100), (2000, 450, 50), (900, 450, 150)],
)
def test_excess(peak_bytes: int | None, held_bytes: int | None, excess: int) -> None:
    assert Limits(peak_bytes, held_bytes).find_excess(try_values([])) == excess


def hide(
    *values: SavedValue,
    idle: Mapping[str, float],
    waits: Mapping[str, float] = MappingProxyType({}),
    contended_seconds: float = 100.0,
    max_trials: int = 100,
    forced: Sequence[SavedValue] = (),
) -> tuple[list[str], int]:
    """Names of what hides beside `forced`, and how often a set was tried."""
    tried: list[list[str]] = []

    def attempt(chosen: Iterable[SavedValue]) -> Trial:
        chosen = list(chosen)
        tried.append(names(chosen))
        return try_values([*forced, *chosen], waits)

    links = {"nvme": Link(100.0, 100.0, 0.0)}
    least = try_values(forced, waits)
    found = choose_hidden(values, idle, links, attempt, least, contended_seconds, max_trials)
    return names(found), len(tried)


ABCDE = [make_value(name) for name in "abcde"]


def test_what_cannot_hide_is_left_out() -> None:
    idle = dict.fromkeys("abcde", 2.0)
    assert hide(*ABCDE, idle=idle)[0] == list("abcde")
    assert hide(*ABCDE, idle=idle, waits={"a": 1.0, "d": 1.0})[0] == list("bce")
    assert hide(*ABCDE, idle=idle, contended_seconds=2.0)[0] == list("ab")


def test_what_hides_is_seen_beside_what_must_move() -> None:
    """That one is waited for, and takes a second from compute, whatever else moves."""
    idle, forced = dict.fromkeys("abcde", 2.0), [make_value("f")]
    waits = {"f": 3.0, "a": 1.0}
    assert hide(*ABCDE, idle=idle, waits=waits, forced=forced)[0] == list("bcde")
    found, _ = hide(*ABCDE, idle=idle, waits=waits, forced=forced, contended_seconds=2.0)
    assert found == list("bc")


def test_what_has_no_time_for_a_round_trip_is_not_tried() -> None:
    """It takes two seconds."""
    assert hide(*ABCDE, idle=dict.fromkeys("abcde", 1.9)) == ([], 0)
    assert hide(*ABCDE, idle={**dict.fromkeys("abcd", 1.9), "e": 2.0}) == (["e"], 2)


def test_of_sets_that_hide_the_one_with_the_lowest_peak_is_found() -> None:
    """Only one of a and b hides at a time, and b, which comes second, takes more off the peak."""
    peaks = {"": 1000, "c": 990, "a": 900, "ac": 890, "b": 800, "bc": 800}

    def attempt(chosen: Iterable[SavedValue]) -> Trial:
        trial = try_values(values := list(chosen))
        found = "".join(sorted(names(values)))
        peak_bytes, exposed_seconds = (peaks[found], 0.0) if found in peaks else (0, 1.0)
        changed = {"live_bytes": (peak_bytes,), "exposed_seconds": exposed_seconds}
        return replace(trial, simulation=replace(trial.simulation, **changed))

    idle = dict.fromkeys("abc", 2.0)
    links = {"nvme": Link(100.0, 100.0, 0.0)}
    least = attempt(())
    found = choose_hidden(ABCDE[:3], idle, links, attempt, least, 100.0, 100)
    assert sorted(names(found)) == ["b", "c"], "c takes nothing off it, but moves free of charge"


def test_the_search_for_what_hides_ends() -> None:
    idle = dict.fromkeys("abcde", 2.0)
    found, trials = hide(*ABCDE, idle=idle, waits=dict.fromkeys("abcde", 1.0), max_trials=1)
    assert found == []
    assert trials <= 3, "one run of the bisection"


def fit(
    *values: SavedValue, limit: int, waits: Mapping[str, float] = MappingProxyType({})
) -> list[str]:
    """The chosen names in alphabetical order, of values in the order of what they promise."""
    orders = (values, sorted(values, key=lambda value: value.nbytes))

    def attempt(chosen: Iterable[SavedValue]) -> Trial:
        return try_values(chosen, waits)

    limits = Limits(limit, None)
    return sorted(names(choose_to_fit(orders, limits, try_values([]), attempt, 100)))


def test_what_fits_already_is_not_searched() -> None:
    def refuse(chosen: Iterable[SavedValue]) -> Trial:
        raise AssertionError(chosen)

    limits = Limits(1000, 500)
    assert choose_to_fit((ABCDE,), limits, try_values([]), refuse, max_trials=9) == []


def test_the_search_for_what_fits_counts_the_trials_that_it_starts_with() -> None:
    """Of 64 values, each order is halved 6 times; what is left is for both of the two starts."""
    values = [make_value(f"v{index}") for index in range(64)]
    tried: list[frozenset[str]] = []

    def attempt(chosen: Iterable[SavedValue]) -> Trial:
        chosen = list(chosen)
        tried.append(frozenset(names(chosen)))
        return try_values(chosen)

    limits, orders = Limits(5 * 64, None), (values, values[::-1])
    choose_to_fit(orders, limits, try_values([]), attempt, max_trials=20)
    assert len(set(tried)) <= 20 + len(orders)


def test_a_faster_set_is_found_by_an_exchange() -> None:
    """Of what fits, every prefix has the slow one in it."""
    large, slow = make_value("large", nbytes=70), make_value("slow", nbytes=60)
    other = make_value("other", nbytes=65)
    assert fit(large, slow, other, limit=875, waits={"slow": 3.0}) == ["large", "other"]


def test_of_sets_that_are_as_fast_the_one_with_least_bytes_is_found() -> None:
    values = [make_value("a", nbytes=100), make_value("b", nbytes=60), make_value("c", nbytes=30)]
    assert fit(*values, limit=915) == ["b", "c"]


def test_everything_moves_where_nothing_fits() -> None:
    assert fit(*ABCDE, limit=10, waits={"c": 9.0}) == list("abcde")


def test_a_set_that_no_exchange_leads_to_is_the_start_where_it_loses_less() -> None:
    """Two values of 50 and one of 100 do the same; on slow links the large one loses more."""
    small, large = [make_value(name, nbytes=50) for name in "ab"], make_value("c", nbytes=100)
    limits = Limits(900, None)

    def find(chosen: list[SavedValue], insured: list[SavedValue]) -> list[str]:
        best = refine(
            chosen,
            [*small, large],
            limits,
            try_values([]),
            lambda values, overtakes=False: try_values(values),
            lambda trial: 2.0 if "c" in trial.transfers else 1.0,
            lambda: insured,
            max_trials=0,
        )
        return sorted(best.transfers)

    assert find([large], small) == ["a", "b"]
    assert find(small, [large]) == ["a", "b"]
