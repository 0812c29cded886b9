"""Plan: plain data, its sums and its words."""

from __future__ import annotations

import dataclasses

import pytest

from fxoffload.plan import Keep, Offload, Plan, SavedValue

MIB = 2**20


def make_plan(**fields: int | None) -> Plan:
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
    assert str(make_plan()).splitlines() == [
        "moved 12.0 of 15.0 MiB saved; predicted peak 5.0 MiB (15.0 MiB with nothing moved)",
        "kept 2.0 MiB: aliased",
        "kept 1.0 MiB: too small",
    ]


@pytest.mark.parametrize(("budget", "fits"), [(None, True), (5 * MIB, True), (5 * MIB - 1, False)])
def test_fits(budget: int | None, fits: bool) -> None:
    plan = make_plan(budget_bytes=budget)
    assert plan.fits is fits
    assert ("memory_budget of 5.0 MiB is missed" in str(plan)) is not fits


def test_missed_budget_is_the_second_line() -> None:
    """The backend logs that line as its warning."""
    line = str(make_plan(budget_bytes=1)).splitlines()[1]
    assert line == (
        "memory_budget of 0.0 MiB is missed: everything that may be moved is moved, the lowest "
        "reachable peak is 5.0 MiB"
    )


def test_equal_plans_are_one_key() -> None:
    assert make_plan() == make_plan()
    assert len({make_plan(), make_plan(), make_plan(budget_bytes=1)}) == 2


def test_plans_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_plan().peak_bytes = 0  # pyright: ignore[reportAttributeAccessIssue]
