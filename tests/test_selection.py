"""choose_offloads: a pure function of values, times and links."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fxoffload.cost import Link
from fxoffload.passes.selection import Timeline, choose_offloads, predict_peak
from fxoffload.plan import Keep, Offload, Plan, SavedValue

FAST = {"nvme": Link(1e12, 1e12, 0.0)}
SECONDS = tuple(float(second) for second in range(11))
TIMELINE = Timeline(forward=SECONDS, backward=SECONDS)


def make_value(name: str, **fields: Any) -> SavedValue:
    """100 bytes, born first and needed last, unless `fields` say otherwise."""
    defaults: dict[str, Any] = {
        "members": (name,), "nbytes": 100, "member_bytes": 100,
        "born": 0, "last_use": 1, "first_use": 8, "freed": 9,
    }  # fmt: skip
    return SavedValue(name=name, **{**defaults, **fields})


def moved(plan: Plan) -> set[str]:
    return {value.name for value, _ in plan.offloads}


def reasons(plan: Plan) -> dict[str, str]:
    pairs = zip(plan.values, plan.decisions, strict=True)
    return {value.name: d.reason for value, d in pairs if isinstance(d, Keep)}


def replay_peak(values: Sequence[SavedValue], away: set[str], timeline: Timeline) -> int:
    """What `predict_peak` predicts, by walking every position and asking every value."""
    num_forward, num_backward = len(timeline.forward), len(timeline.backward)
    peak = 0
    for position in range(num_forward + num_backward + 1):
        backward = position - num_forward
        live = sum(nbytes for start, nbytes in timeline.gradients if start <= backward)
        for value in values:
            if value.name in away:
                lives = (
                    value.born <= position <= value.last_use
                    or value.first_use <= backward <= value.freed
                )
            else:
                counts = value.owned or value.refusal is None
                lives = counts and value.born <= position and backward <= value.freed
            live += value.nbytes * lives
        peak = max(peak, live)
    return peak


# --- budgets ------------------------------------------------------------------------------------


def test_ample_budget_moves_nothing() -> None:
    values = [make_value("a"), make_value("b", born=2, last_use=3)]
    plan = choose_offloads(values, TIMELINE, FAST, budget_bytes=200)
    assert moved(plan) == set()
    assert reasons(plan) == dict.fromkeys("ab", "fits the budget where it is")
    assert plan.fits


def test_budget_for_exactly_one_of_two_keeps_exactly_one() -> None:
    """The one of the larger benefit moves: it is idle for longer."""
    values = [make_value("a"), make_value("b", born=2, last_use=3, first_use=4, freed=5)]
    plan = choose_offloads(values, TIMELINE, FAST, budget_bytes=199)
    assert moved(plan) == {"a"}
    assert plan.peak_bytes == 100
    assert plan.fits


def test_budget_that_cannot_be_met_moves_everything_and_says_so() -> None:
    values = [make_value("a"), make_value("b", refusal="mutated in the forward")]
    plan = choose_offloads(values, TIMELINE, FAST, budget_bytes=50)
    assert moved(plan) == {"a"}
    assert not plan.fits
    assert "is missed" in str(plan)


def test_min_moves_everything_that_may_move() -> None:
    values = [
        make_value("a"),
        make_value("late", last_use=9, first_use=0, freed=1),
        make_value("fixed", refusal="state of a random number generator"),
    ]
    plan = choose_offloads(values, TIMELINE, {"nvme": Link(1, 1, 10.0)}, budget_bytes="min")
    assert moved(plan) == {"a", "late"}
    assert reasons(plan) == {"fixed": "state of a random number generator"}
    assert plan.budget_bytes is None
    assert plan.fits


def test_without_budget_a_value_reused_too_soon_stays() -> None:
    values = [make_value("a"), make_value("late", last_use=9, first_use=0)]
    plan = choose_offloads(values, TIMELINE, {"nvme": Link(100, 100, 0.25)})
    assert moved(plan) == {"a"}
    assert reasons(plan) == {"late": "reused too soon to travel both ways"}


def test_without_budget_a_full_link_takes_no_more() -> None:
    """Ten seconds of forward carry eight seconds of writes (LINK_UTILISATION)."""
    values = [make_value(f"v{index}", nbytes=300) for index in range(4)]
    plan = choose_offloads(values, TIMELINE, {"nvme": Link(100, 1e9, 0.0)})
    assert moved(plan) == {"v0", "v1"}
    assert set(reasons(plan).values()) == {"the link is full: moving it would not hide"}


def test_reads_fill_the_link_too() -> None:
    values = [make_value(f"v{index}", nbytes=300) for index in range(4)]
    plan = choose_offloads(values, TIMELINE, {"nvme": Link(1e9, 100, 0.0)})
    assert len(plan.offloads) == 2


# --- tiers --------------------------------------------------------------------------------------


def test_host_takes_what_is_reused_soonest() -> None:
    values = [make_value("long"), make_value("short", first_use=5), make_value("mid", first_use=6)]
    links = {**FAST, "host": FAST["nvme"]}
    plan = choose_offloads(values, TIMELINE, links, budget_bytes="min", host_bytes=200)
    tiers = {value.name: decision.tier for value, decision in plan.offloads}
    assert tiers == {"short": "host", "mid": "host", "long": "nvme"}


@pytest.mark.parametrize(
    ("links", "host_bytes"), [(FAST, 10**6), ({**FAST, "host": FAST["nvme"]}, 99)]
)
def test_no_room_in_the_host_tier(links: dict[str, Link], host_bytes: int) -> None:
    plan = choose_offloads(
        [make_value("a")], TIMELINE, links, budget_bytes="min", host_bytes=host_bytes
    )
    assert [decision for _, decision in plan.offloads] == [Offload("nvme")]


# --- prediction ---------------------------------------------------------------------------------


def test_peak_of_one_value() -> None:
    """Away in between, it leaves room for another that lives only then."""
    a = make_value("a", born=0, last_use=1, first_use=8, freed=9)
    b = make_value("b", born=5, last_use=6, first_use=0, freed=1)
    assert predict_peak([a, b], set(), TIMELINE) == 200
    assert predict_peak([a, b], {"a"}, TIMELINE) == 100


def test_gradients_stay_to_the_end() -> None:
    timeline = dataclasses.replace(TIMELINE, gradients=((2, 70), (9, 5)))
    value = make_value("a", first_use=8, freed=9)
    assert predict_peak([value], set(), timeline) == 175
    early = make_value("a", first_use=0, freed=1)
    assert predict_peak([early], set(), timeline) == 100


def test_value_of_the_caller_is_not_ours_to_count() -> None:
    """A parameter is not; an activation of another graph lives on because of this one."""
    parameter = make_value("a", owned=False, refusal="parameter")
    assert predict_peak([parameter], set(), TIMELINE) == 0
    assert predict_peak([make_value("a", owned=False)], set(), TIMELINE) == 100


# --- properties ---------------------------------------------------------------------------------

POSITIONS = st.integers(0, len(SECONDS) - 2)


@st.composite
def saved_values(draw: st.DrawFn) -> list[SavedValue]:
    values: list[SavedValue] = []
    for index in range(draw(st.integers(0, 8))):
        born, last_use = sorted((draw(POSITIONS), draw(POSITIONS)))
        first_use, freed = sorted((draw(POSITIONS), draw(POSITIONS)))
        nbytes = draw(st.integers(1, 1000))
        refusal = draw(st.sampled_from([None, None, None, "mutated in the forward"]))
        values.append(
            make_value(
                f"v{index}", nbytes=nbytes, member_bytes=nbytes, born=born, last_use=last_use,
                first_use=first_use, freed=freed, refusal=refusal,
            )
        )  # fmt: skip
    return values


BUDGETS = st.one_of(st.none(), st.just("min"), st.integers(0, 4000))
LINKS = st.sampled_from([FAST, {**FAST, "host": FAST["nvme"]}, {"nvme": Link(200, 300, 0.1)}])
GRADIENTS = st.lists(st.tuples(POSITIONS, st.integers(1, 500)), max_size=3).map(tuple)


@settings(deadline=None, max_examples=200)
@given(saved_values(), BUDGETS, LINKS, GRADIENTS, st.integers(0, 2000))
def test_plan_properties(
    values: list[SavedValue], budget: Any, links: Any, gradients: Any, host_bytes: int
) -> None:
    timeline = dataclasses.replace(TIMELINE, gradients=gradients)

    def choose() -> Plan:
        return choose_offloads(
            list(values), timeline, dict(links), budget_bytes=budget, host_bytes=host_bytes
        )

    plan = choose()
    again = choose()
    assert plan == again
    assert hash(plan) == hash(again)
    assert str(plan) == str(again)
    assert plan.values == tuple(values)
    assert len(plan.decisions) == len(values)
    names = moved(plan)
    assert all(value.refusal is None for value, _ in plan.offloads)
    assert plan.peak_bytes == replay_peak(values, names, timeline)
    assert plan.unmoved_peak_bytes == replay_peak(values, set(), timeline)
    host = sum(value.nbytes for value, decision in plan.offloads if decision.tier == "host")
    assert host <= (host_bytes if "host" in links else 0)
    movable = {value.name for value in values if value.refusal is None}
    if budget == "min":
        assert names == movable
    elif budget is not None:
        assert plan.fits == (plan.peak_bytes <= budget)
        assert plan.fits or names == movable
        if plan.unmoved_peak_bytes <= budget:
            assert names == set()


@settings(deadline=None, max_examples=100)
@given(saved_values())
def test_no_budget_never_overfills_the_link(values: list[SavedValue]) -> None:
    link = Link(200, 300, 0.1)
    plan = choose_offloads(values, TIMELINE, {"nvme": link})
    assert sum(link.write_seconds(value.nbytes) for value, _ in plan.offloads) <= 8.0
    assert sum(link.read_seconds(value.nbytes) for value, _ in plan.offloads) <= 8.0
    for value, _ in plan.offloads:
        assert TIMELINE.idle_seconds(value) >= link.round_trip_seconds(value.nbytes)
