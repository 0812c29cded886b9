"""Plan: its fields, its sums, and its text."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from fxoffload.planner.plan import Keep, Offload, Plan, SavedValue
from fxoffload.sizes import MIB


def make_plan(**fields: Any) -> Plan:
    values = tuple(
        SavedValue(
            name=name, members=(name,), nbytes=mib * MIB, member_bytes=mib * MIB,
            born=0, last_use=1, first_use=2, freed=3,
        )
        for name, mib in (("a", 4), ("b", 1), ("c", 2), ("d", 8))
    )  # fmt: skip
    decisions = (Offload("nvme"), Keep("too small"), Keep("aliased"), Offload("host"))
    return Plan(values, decisions, peak_bytes=5 * MIB, unmoved_peak_bytes=15 * MIB, **fields)


def test_sums() -> None:
    plan = make_plan()
    assert [(value.name, decision.tier) for value, decision in plan.offloads] == [
        ("a", "nvme"),
        ("d", "host"),
    ]
    assert (plan.offloaded_bytes, plan.saved_bytes) == (12 * MIB, 15 * MIB)


def test_kept_bytes_by_reason_are_largest_first() -> None:
    assert list(make_plan().kept_bytes_by_reason().items()) == [
        ("aliased", 2 * MIB),
        ("too small", MIB),
    ]


def test_words() -> None:
    plan = make_plan(kept_at_peak=(("aliased", 2 * MIB),))
    assert str(plan).splitlines() == [
        "moved 12.0 of 15.0 MiB saved; predicted peak 5.0 MiB (15.0 MiB with nothing moved), "
        "step 0.000 s, 0.000 s of it exposed",
        "kept 2.0 MiB (2.0 MiB of the peak): aliased",
        "kept 1.0 MiB (0.0 MiB of the peak): too small",
    ]


def test_words_of_times_and_recomputation() -> None:
    lines = str(make_plan(step_seconds=1.25, exposed_seconds=0.5, cut=0.4)).splitlines()
    assert lines[0].endswith("step 1.250 s, 0.500 s of it exposed")
    assert lines[1] == "recomputed: all but 40% of what is saved"
    assert str(make_plan(cut=1.0)).splitlines()[1] == ("recomputed: nothing that checkpoints would")
    contended = str(make_plan(step_seconds=1.25, contended_seconds=0.125)).splitlines()[0]
    assert contended.endswith("0.000 s of it exposed, 0.125 s taken from compute by transfers")


def test_budget_that_is_met_with_nothing_moved_is_said() -> None:
    plan = make_plan(budget_bytes=20 * MIB)
    assert "is met" not in str(plan), "something moves"
    kept = tuple(Keep("fits the budget where it is") for _ in plan.values)
    plan = dataclasses.replace(plan, decisions=kept)
    assert str(plan).splitlines()[1] == "memory_budget of 20.0 MiB is met with nothing moved"
    assert "memory_budget" not in str(dataclasses.replace(plan, budget_bytes=None))


def test_kept_bytes_of_a_gathered_value_are_its_share_of_the_storage() -> None:
    value = make_plan().values[0]
    assert value.kept_bytes == 4 * MIB
    assert dataclasses.replace(value, base_bytes=9 * MIB).kept_bytes == 9 * MIB


@pytest.mark.parametrize(
    ("owned", "refusal", "counts"),
    [(True, None, True), (True, "aliased", True), (False, None, True), (False, "input", False)],
)
def test_what_counts(owned: bool, refusal: str | None, counts: bool) -> None:
    value = dataclasses.replace(make_plan().values[0], owned=owned, refusal=refusal)
    assert value.counts is counts


def test_equal_plans_are_one_key() -> None:
    assert make_plan() == make_plan()
    assert len({make_plan(), make_plan(), make_plan(budget_bytes=1)}) == 2


def test_plans_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_plan().peak_bytes = 0  # pyright: ignore[reportAttributeAccessIssue]
