"""Where plans lose: each thing that keeps them from their bound is switched off by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isinf
from typing import Any

from benchmarks.fresh_process import Record
from benchmarks.runner import Column
from fxoffload import BudgetError
from fxoffload.planner.bound import find_least_peak, find_least_seconds
from fxoffload.planner.link import Link
from fxoffload.planner.plan import SavedValue
from fxoffload.planner.selection import MAX_NODE_VISITS, choose_transfers
from fxoffload.planner.simulation import simulate
from fxoffload.planner.step import Step
from fxoffload.sizes import UNLIMITED_BYTES

PIECES = 8
MORE = 20


@dataclass(frozen=True, slots=True)
class Switch:
    """A plan that is spared something. options: of choose_transfers. divide: values into PIECES."""

    label: str
    options: Mapping[str, Any]
    divide: bool = False


FULL_SPEED = {"utilisation": 1.0}
ANY_FLIGHT = {"max_inflight_bytes": UNLIMITED_BYTES}
LONG_SEARCH = {"max_node_visits": MORE * MAX_NODE_VISITS}
SWITCHES = (
    Switch("plan", {}),
    Switch("all of the bandwidth", FULL_SPEED),
    Switch("any bytes in flight", ANY_FLIGHT),
    Switch(f"{MORE} times the trials", LONG_SEARCH),
    Switch(f"values in {PIECES} pieces", {}, divide=True),
    Switch("all four", FULL_SPEED | ANY_FLIGHT | LONG_SEARCH, divide=True),
)


def switch_off(
    step: Step,
    links: Mapping[str, Link],
    shares: Sequence[float | None],
    max_inflight_bytes: int | None,
) -> list[Record]:
    """A row for each budget, a share of the unmoved peak: the bound, and what plans reach.

    Peaks as such shares where there is no budget, else seconds as shares of the compute.
    """
    unmoved_bytes = simulate(step, {}, links).peak_bytes
    # Pieces of a value do not lower the cap that its size raises.
    cap_bytes = step.find_inflight_cap(max_inflight_bytes)
    divided = divide_values(step)
    rows: list[Record] = []
    for share in shares:
        budget = None if share is None else int(share * unmoved_bytes)
        row: Record = {"budget": share}
        if budget is None:
            row["bound"] = find_least_peak(step, links) / unmoved_bytes
        else:
            seconds = find_least_seconds(step, links, budget_bytes=budget)
            row["bound"] = None if isinf(seconds) else seconds / step.compute_seconds
        for switch in SWITCHES:
            options = {"max_inflight_bytes": cap_bytes, **switch.options}
            try:
                chosen = choose_transfers(
                    divided if switch.divide else step, links, budget_bytes=budget, **options
                )
            except BudgetError:
                row[switch.label] = None
                continue
            found = chosen.best.simulation
            row[switch.label] = (
                found.peak_bytes / unmoved_bytes
                if budget is None
                else found.step_seconds / step.compute_seconds
            )
        rows.append(row)
    return rows


def divide_values(step: Step) -> Step:
    """`step` with PIECES values in place of each that may move; they may move apart."""

    def divide(value: SavedValue) -> list[SavedValue]:
        if value.refusal is not None or value.nbytes % PIECES or value.base_bytes is not None:
            return [value]
        nbytes = value.nbytes // PIECES
        names = (f"{value.name}/{piece}" for piece in range(PIECES))
        return [replace(value, name=name, nbytes=nbytes) for name in names]

    return replace(step, values=tuple(piece for value in step.values for piece in divide(value)))


def show_share(share: float | None) -> str:
    """Three digits; words where no plan fits."""
    return "none fits" if share is None else f"{share:.3f}"


def _show(label: str) -> Callable[[Record], str]:
    return lambda row: show_share(row[label])


COLUMNS: Sequence[Column[Record]] = (
    ("device", lambda row: row["device"]),
    ("model", lambda row: row["model"]),
    ("budget", lambda row: "none" if row["budget"] is None else str(row["budget"])),
    ("of", lambda row: "peak" if row["budget"] is None else "step"),
    ("bound", _show("bound")),
    *((switch.label, _show(switch.label)) for switch in SWITCHES),
)
