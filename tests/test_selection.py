"""choose_offloads: a pure function of a step, links and a budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steps import (
    EXACT,
    choose_plan,
    draw_instance,
    make_link,
    make_step,
    make_value,
    moved,
    random_links,
    random_steps,
)

from fxoffload.errors import BudgetError
from fxoffload.planner import selection
from fxoffload.planner.link import Link
from fxoffload.planner.plan import KEPT, Keep, Offload, Plan
from fxoffload.planner.residences import find_lower_bound
from fxoffload.planner.search import ROUNDING
from fxoffload.planner.selection import choose_transfers, derate_links
from fxoffload.planner.simulation import simulate
from fxoffload.planner.step import Residence, Step, Transfer

FAST = {"nvme": Link(1e12, 1e12, 0.0)}


def reasons(plan: Plan) -> dict[str, str]:
    pairs = zip(plan.values, plan.decisions, strict=True)
    return {value.name: d.reason for value, d in pairs if isinstance(d, Keep)}


def read_transfers(step: Step, plan: Plan) -> dict[str, Transfer]:
    """The transfers that the plan's names of nodes stand for."""
    positions = {name: position for position, name in enumerate(step.names)}
    return {
        value.name: Transfer(
            decision.tier,
            positions[decision.released_before] if decision.released_before else None,
            positions[decision.prefetched_before],
        )
        for value, decision in plan.offloads
    }


# --- a number of bytes --------------------------------------------------------------------------


def test_ample_budget_moves_nothing() -> None:
    step = make_step([make_value("a"), make_value("b", born=2, last_use=3)])
    plan = choose_plan(step, FAST, budget_bytes=200)
    assert moved(plan) == set()
    assert reasons(plan) == dict.fromkeys("ab", "fits the budget where it is")
    assert "is met with nothing moved" in str(plan)


def test_budget_for_exactly_one_of_two_keeps_exactly_one() -> None:
    step = make_step([make_value("a"), make_value("b", born=3, last_use=4, first_use=3, freed=4)])
    plan = choose_plan(step, FAST, budget_bytes=199)
    assert len(moved(plan)) == 1
    assert plan.peak_bytes == 100
    assert plan.unmoved_peak_bytes == 200


def test_of_two_that_fit_the_faster_moves() -> None:
    """Either of the two makes room; only a has the time to travel."""
    values = [make_value("a"), make_value("b", born=7, last_use=8, first_use=1, freed=2)]
    step = make_step(values, fixed=[Residence("t", 50, 10, 10)])
    plan = choose_plan(step, {"nvme": make_link(3.0, 3.0)}, budget_bytes=200)
    assert moved(plan) == {"a"}
    assert plan.exposed_seconds == 0.0


def test_of_two_that_are_as_fast_the_smaller_moves() -> None:
    """Fewest bytes written: 60 are enough, although 100 promise more."""
    values = [make_value("large"), make_value("small", nbytes=60)]
    step = make_step(values, fixed=[Residence("t", 50, 10, 10)])
    plan = choose_plan(step, FAST, budget_bytes=160)
    assert moved(plan) == {"small"}


def test_budget_that_cannot_be_met_is_an_error_that_says_what_can() -> None:
    values = [make_value("a"), make_value("b", refusal="mutated in the forward")]
    step = make_step(values, fixed=[Residence("t", 7, 1, 1)])
    with pytest.raises(BudgetError, match=r"memory_budget=206 .* cannot be met: .* at f1, where "):
        choose_plan(step, FAST, budget_bytes=206)
    with pytest.raises(BudgetError) as caught:
        choose_plan(step, FAST, budget_bytes=50)
    assert caught.value.lowest_peak_bytes == 207 == find_lower_bound(step)
    assert choose_plan(step, FAST, budget_bytes=207).peak_bytes <= 207


# --- what the program says ---------------------------------------------------------------------


@pytest.mark.parametrize("budget", [None, 1000, 250, "min"])
def test_what_must_move_moves_whatever_it_costs(budget: Any) -> None:
    """More than twice the step; without a mark nothing would move but by "min"."""
    values = [make_value("must", must_move=True), make_value("b"), make_value("c", nbytes=50)]
    links = {"nvme": make_link(1.0, 1.0, compute=25.0)}
    plan = choose_plan(make_step(values), links, budget_bytes=budget)
    assert moved(plan) == ({"must", "b", "c"} if budget == "min" else {"must"})
    assert plan.contended_seconds >= 50.0
    assert plan.unmoved_peak_bytes == 250


def test_a_budget_is_met_by_what_must_move_and_others() -> None:
    values = [
        make_value("must", nbytes=20, must_move=True),
        make_value("b", born=3, last_use=4, first_use=4, freed=5),
        make_value("c", born=5, last_use=6, first_use=2, freed=3),
    ]
    step = make_step(values, fixed=[Residence("peak", 10, 10, 10)])
    assert moved(choose_plan(step, FAST, budget_bytes=210)) == {"must"}
    assert len(moved(choose_plan(step, FAST, budget_bytes=209)) - {"must"}) == 1


def test_what_must_move_does_not_stop_others_that_hide() -> None:
    must = make_value("must", first_use=0, freed=1, must_move=True)
    plan = choose_plan(make_step([must, make_value("b")]), {"nvme": make_link(0.1, 3.0)})
    assert plan.exposed_seconds > 0.0
    assert moved(plan) == {"must", "b"}


def test_an_error_says_what_the_program_keeps() -> None:
    values = [
        make_value("a", nbytes=3 * 2**20, refusal=KEPT),
        make_value("b", nbytes=2**20, refusal=KEPT, owned=False),
        make_value("early", nbytes=2**20, refusal=KEPT, first_use=5, freed=6),
    ]
    step = make_step(values, fixed=[Residence("peak", 9 * 2**20, 17, 17)])
    with pytest.raises(BudgetError, match=r", 4\.0 MiB of it kept by the program \(fxoffload"):
        choose_plan(step, FAST, budget_bytes=2**20)
    with pytest.raises(BudgetError) as caught:
        choose_plan(make_step([make_value("a", refusal="early")]), FAST, budget_bytes=1)
    assert "kept by the program" not in str(caught.value)


@settings(deadline=None, max_examples=50)
@given(random_steps(), random_links(), st.sampled_from([None, "min", "low"]), st.randoms())
def test_all_that_must_move_moves(
    step: Step, links: Mapping[str, Link], budget: Any, random: Random
) -> None:
    values = [replace(value, must_move=random.random() < 0.5) for value in step.values]
    step = replace(step, values=tuple(values))
    budget = find_lower_bound(step) if budget == "low" else budget
    plan = choose_plan(step, links, budget_bytes=budget)
    assert moved(plan) >= {v.name for v in values if v.must_move and v.refusal is None}
    assert plan.unmoved_peak_bytes == simulate(step, {}, links).peak_bytes


# --- no number ----------------------------------------------------------------------------------


@pytest.mark.parametrize("budget_bytes", [None, 1000])
def test_what_is_held_at_the_end_of_the_forward_is_limited(budget_bytes: int | None) -> None:
    """The peak fits, but other graphs may run before the backward of this one."""
    step = make_step([make_value("a"), make_value("b"), make_value("c", refusal="stays")])
    slow = {"nvme": make_link(write=100, read=100)}
    options: dict[str, Any] = {"budget_bytes": budget_bytes, **EXACT}
    free = choose_plan(step, slow, **options)
    assert (moved(free), free.held_bytes) == (set(), 300)
    plan = choose_plan(step, slow, held_bytes=200, **options)
    assert len(moved(plan)) == 1
    assert plan.held_bytes == 200
    assert plan.exposed_seconds > 0.0
    with pytest.raises(BudgetError):
        choose_plan(step, slow, held_bytes=99, **options)


def test_min_moves_everything_that_may_move() -> None:
    values = [
        make_value("a"),
        make_value("late", last_use=8, first_use=0, freed=1),
        make_value("fixed", refusal="state of a random number generator"),
    ]
    plan = choose_plan(make_step(values), {"nvme": Link(1, 1, 10.0)}, budget_bytes="min")
    assert moved(plan) == {"a", "late"}
    assert reasons(plan) == {"fixed": "state of a random number generator"}
    assert plan.budget_bytes is None
    assert plan.exposed_seconds > 0.0


def test_without_budget_transfers_take_next_to_nothing_from_compute() -> None:
    step = make_step([make_value(name) for name in "abcdefgh"])
    free, dear = Link(1e6, 1e6, 0.0), Link(1e6, 1e6, 0.0, 6e-4)
    assert moved(choose_plan(step, {"nvme": free})) == set("abcdefgh")
    plan = choose_plan(step, {"nvme": dear})
    assert 0 < len(moved(plan)) < 8
    assert plan.exposed_seconds == 0.0
    assert 0.0 < plan.contended_seconds <= selection.HIDDEN_SHARE * plan.compute_seconds
    assert set(reasons(plan).values()) == {"moving it would cost step time"}
    # Who asks for less memory pays with time.
    assert moved(choose_plan(step, {"nvme": dear}, budget_bytes="min")) == set("abcdefgh")


def test_without_budget_a_value_reused_too_soon_stays() -> None:
    step = make_step([make_value("a"), make_value("late", last_use=8, first_use=0)])
    plan = choose_plan(step, {"nvme": Link(100, 100, 0.25)})
    assert moved(plan) == {"a"}
    assert reasons(plan) == {"late": "moving it would cost step time"}


# --- places and tiers ---------------------------------------------------------------------------


def test_release_at_the_end_blocks_only_where_the_room_is_needed() -> None:
    """The write ends at 13, in the backward, where only 40 of 100 bytes are left at 11."""
    step = make_step([make_value("a")], fixed=[Residence("t", 60, 11, 11)])
    links = {"nvme": make_link(12.0, 0.1)}
    plan = choose_plan(step, links, budget_bytes=100, **EXACT)
    assert plan.decisions == (Offload("nvme", "f9", "b2"),)
    assert plan.exposed_seconds == 4.0
    step = make_step([make_value("a")])
    plan = choose_plan(step, links, **EXACT)
    assert plan.decisions == (Offload("nvme", "", "b4"),), "it is written by then"
    assert plan.exposed_seconds == 0.0


def test_host_takes_what_is_reused_soonest() -> None:
    values = [make_value("long"), make_value("short", first_use=5), make_value("mid", first_use=6)]
    links = {**FAST, "host": FAST["nvme"]}
    plan = choose_plan(make_step(values), links, budget_bytes="min", host_bytes=200)
    tiers = {value.name: decision.tier for value, decision in plan.offloads}
    assert tiers == {"short": "host", "mid": "host", "long": "nvme"}


@pytest.mark.parametrize(
    ("links", "host_bytes"), [(FAST, 10**6), ({**FAST, "host": FAST["nvme"]}, 99)]
)
def test_no_room_in_the_host_tier(links: dict[str, Link], host_bytes: int) -> None:
    plan = choose_plan(
        make_step([make_value("a")]), links, budget_bytes="min", host_bytes=host_bytes
    )
    assert [decision.tier for _, decision in plan.offloads] == ["nvme"]


# --- properties ---------------------------------------------------------------------------------

BUDGETS = st.one_of(st.none(), st.just("min"), st.integers(0, 200))


@settings(deadline=None, max_examples=150)
@given(random_steps(), random_links(), BUDGETS, st.integers(0, 60), st.booleans())
def test_plan_properties(
    step: Step, links: Mapping[str, Link], budget: Any, host_bytes: int, has_host: bool
) -> None:
    links = {**links, "host": Link(60, 60, 0.0)} if has_host else links
    lowest = find_lower_bound(step)

    def choose() -> Plan | BudgetError:
        options: dict[str, Any] = {"budget_bytes": budget, "host_bytes": host_bytes}
        try:
            return choose_plan(step, dict(links), **options)
        except BudgetError as error:
            return error

    plan, again = choose(), choose()
    if isinstance(plan, BudgetError):
        assert budget < lowest, "whatever is not below the lower bound can be met"
        assert plan.lowest_peak_bytes > budget
        assert str(plan) == str(again)
        return
    assert plan == again
    assert hash(plan) == hash(again)
    assert str(plan) == str(again)
    assert plan.values == step.values
    assert all(value.refusal is None for value, _ in plan.offloads)
    derated = {
        tier: Link(
            selection.LINK_UTILISATION * link.write_bytes_per_second,
            selection.LINK_UTILISATION * link.read_bytes_per_second,
            link.latency_seconds,
            link.compute_seconds_per_byte,
        )
        for tier, link in links.items()
    }
    result = simulate(step, read_transfers(step, plan), derated)
    assert (plan.peak_bytes, plan.step_seconds) == (result.peak_bytes, result.step_seconds)
    assert plan.unmoved_peak_bytes == simulate(step, {}, links).peak_bytes
    host = sum(value.nbytes for value, decision in plan.offloads if decision.tier == "host")
    assert host <= (host_bytes if has_host else 0)
    if budget is None:
        assert plan.exposed_seconds <= ROUNDING * plan.step_seconds
    elif budget != "min":
        assert plan.peak_bytes <= budget
        assert (plan.unmoved_peak_bytes <= budget) == (moved(plan) == set())


def test_plans_with_reserve_keep_the_budget_too() -> None:
    """With the default utilisation, run over the links as they are."""
    for seed in range(200):
        step, link, budget_bytes = draw_instance(seed)
        plan = choose_plan(step, {"nvme": link}, budget_bytes=budget_bytes)
        result = simulate(step, read_transfers(step, plan), {"nvme": link})
        assert result.peak_bytes <= budget_bytes
        assert result.step_seconds <= plan.step_seconds + 1e-9


def draw_nested(seed: int) -> tuple[Step, dict[str, Link], int]:
    """Six values of 100 or 200 bytes, used in the opposite order of birth, and a budget."""
    rng = Random(seed)
    values = [
        make_value(
            f"v{i}", nbytes=rng.choice((100, 100, 200)), born=i, last_use=i, first_use=9 - i,
            freed=9 - i,
        )
        for i in range(6)
    ]  # fmt: skip
    forward, backward = ([rng.choice((0.5, 1.0, 2.0, 3.0)) for _ in range(10)] for _ in range(2))
    link = make_link(rng.choice((0.5, 1.0, 1.5)), rng.choice((0.5, 1.0, 1.5)))
    step = make_step(values, forward=forward, backward=backward)
    return step, {"nvme": link}, rng.choice((400, 500, 600))


@pytest.mark.parametrize("seed", [57, 74, 91])
def test_of_sets_that_are_as_good_the_one_that_loses_less_on_slow_links_moves(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    step, links, budget_bytes = draw_nested(seed)
    runs: list[tuple[float, int, float]] = []
    for speed in (1.0, 0.6):
        monkeypatch.setattr(selection, "INSURED_SPEED", speed)
        best = choose_transfers(step, links, budget_bytes=budget_bytes, **EXACT).best
        slow = simulate(step, best.transfers, derate_links(links, 0.6))
        runs.append(
            (best.simulation.step_seconds, best.simulation.written_bytes, slow.step_seconds)
        )
    (seconds, written_bytes, slow_seconds), insured = runs
    assert insured[:2] == (seconds, written_bytes)
    assert insured[2] < slow_seconds


# --- cost ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget_share", [None, 0.0, 0.3, 0.9])
def test_search_is_bounded(monkeypatch: pytest.MonkeyPatch, budget_share: float | None) -> None:
    """However many values there are, no more nodes are simulated than MAX_NODE_VISITS, but for
    the few simulations that start the search."""
    values = [
        make_value(f"v{i}", born=i, last_use=i, first_use=599 - i, freed=599 - i)
        for i in range(500)
    ]
    step = make_step(values, forward=600, backward=600)
    links = {"nvme": make_link(1.5, 1.5)}
    budget = None
    if budget_share is not None:
        low = find_lower_bound(step)
        budget = low + int(budget_share * (simulate(step, {}, links).peak_bytes - low))
    visits = 0

    def count(step: Step, *args: Any, **kwargs: Any) -> Any:
        nonlocal visits
        visits += len(step.seconds)
        return simulate(step, *args, **kwargs)

    monkeypatch.setattr(selection, "simulate", count)
    plan = choose_plan(step, links, budget_bytes=budget)
    assert plan.offloads
    assert visits <= selection.MAX_NODE_VISITS + 60 * len(step.seconds)
