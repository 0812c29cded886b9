"""Plans as tables and data: what moves, what stays and why."""

from __future__ import annotations

from fxoffload.cli.plan_tables import format_budgets, format_plan
from fxoffload.planner.plan import Keep, Offload, Plan, SavedValue
from fxoffload.sizes import MIB


def make_plan() -> Plan:
    names = ("tanh", "relu", "view")
    values = tuple(
        SavedValue(
            name=name,
            members=(name,),
            nbytes=(index + 1) * MIB,
            member_bytes=(index + 1) * MIB,
            born=0,
            last_use=0,
            first_use=0,
            freed=0,
        )
        for index, name in enumerate(names)
    )
    decisions = (Offload("nvme", "mm_1", "mm_2"), Keep("too late"), Keep("too late"))
    return Plan(values, decisions, peak_bytes=5 * MIB, unmoved_peak_bytes=6 * MIB)


def test_plan() -> None:
    lines = format_plan(make_plan()).splitlines()
    assert lines[2].split() == ["tanh", "1.00", "move", "to", "nvme", "mm_1", "mm_2"]
    assert lines[3].split() == ["2", "value(s)", "5.00", "keep:", "too", "late"]
    assert len(lines) == 4


def test_budgets() -> None:
    fits = {
        "budget_bytes": 4 * MIB, "share": 0.5, "error": "", "peak_bytes": 3 * MIB,
        "step_seconds": 0.25, "exposed_seconds": 0.125, "written_bytes": 2 * MIB,
    }  # fmt: skip
    missed = {"budget_bytes": MIB, "share": 0.125, "error": "no", "lowest_peak_bytes": 2 * MIB}
    lines = format_budgets([fits, missed]).splitlines()
    assert lines[2].split() == ["4.0", "50%", "3.0", "0.25", "0.125", "2.0"]
    assert "lowest peak 2.0" in lines[3]
