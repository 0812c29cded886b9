"""Compares plans with the bound: what no plan gets below, on hardware that is not at hand.

    python -m benchmarks.limits --check

Nothing runs and nothing is timed: the models have no memory, and the hardware is a record. Peaks
are shares of the peak with nothing moved, steps of the compute of the program's own partition.
Budgets are such shares; "none" is what costs nothing. The bound of moving is that of the program's
own partition, the other one is the best over all partitions that plans choose from. Where there is
no budget, plans and the last bound may take a hundredth more than the compute.

    --switches     plans that are spared one thing that keeps them from their bound
    --robust       the schedules of budgets meet links and nodes of other speeds than assumed
    --layerwise    SSDTrain's sizes: plans beside checkpoints of each layer
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from math import isinf

from benchmarks import disturbance, layerwise, switches
from benchmarks.fresh_process import Record
from benchmarks.runner import Arguments, Benchmark, Column, Show, Table, make_table, option
from benchmarks.simulated import CONFIG, HARDWARE, Workload, choose_shape, find_largest
from benchmarks.switches import show_share
from fxoffload import BudgetError
from fxoffload.cli.byte_models import BUILDERS
from fxoffload.inspection.bounds import ALL_CUTS
from fxoffload.planner.bound import find_bound

FREE_SHARE = 0.01
SHARES = (0.6, 0.55, 0.5)


@dataclass(frozen=True, slots=True)
class LimitArguments(Arguments):
    """The command line. Of each row: a model on a device."""

    models: tuple[str, ...] = option(("gpt",), choices=list(BUILDERS))
    devices: tuple[str, ...] = option(("H200", "A100"), choices=list(HARDWARE))
    hidden: int = option(8192)
    batch: int = option(16)
    length: int = option(1024)
    switches: bool = option(False, "one cause of a difference to the bound after the other")
    robust: bool = option(
        False, "schedules on other links and node seconds than they were made for"
    )
    layerwise: bool = option(False, "SSDTrain's sizes, beside checkpoints of each layer")


def measure(arguments: LimitArguments, show: Show) -> Record:
    """A row for each model, device and budget."""
    forecast: Callable[[Workload], Sequence[Record]] = forecast_rows
    if arguments.robust:
        forecast = disturb_rows
    if arguments.switches:
        forecast = switch_rows
    if arguments.layerwise:
        workloads = iter(layerwise.list_workloads(arguments.models))
        forecast = compare_row
    else:
        workloads = list_workloads(arguments)
    rows: list[Record] = []
    for workload in workloads:
        show(f"{workload.label} on {workload.device}")
        rows += forecast(workload)
    return {"rows": rows}


def list_workloads(arguments: LimitArguments) -> Iterator[Workload]:
    """Each model on each device."""
    sizes = arguments.hidden, arguments.batch, arguments.length
    for device in arguments.devices:
        for name in arguments.models:
            yield Workload(name, choose_shape(name, device, *sizes), device)


def compare_row(workload: Workload) -> list[Record]:
    """See `compare_layerwise`."""
    return [layerwise.compare_layerwise(workload)]


def disturb_rows(workload: Workload) -> list[Record]:
    """See `disturb`; of the program's own partition of its largest graph."""
    step = find_largest(workload.trace())
    rows = disturbance.disturb(step, workload.links, SHARES, CONFIG.inflight_bytes)
    return [{"device": workload.device, "model": workload.label, **row} for row in rows]


def switch_rows(workload: Workload) -> list[Record]:
    """See `switch_off`; of the program's own partition of its largest graph."""
    step = find_largest(workload.trace())
    rows = switches.switch_off(step, workload.links, (None, *SHARES), CONFIG.inflight_bytes)
    return [{"device": workload.device, "model": workload.label, **row} for row in rows]


def forecast_rows(workload: Workload) -> list[Record]:
    """The plan and the bounds of a model without a budget, and at each share."""
    shares = (None, *SHARES)
    keep, plans, steps = workload.forecast(shares, ALL_CUTS)
    rows: list[Record] = []
    for share, plan in zip(shares, plans, strict=True):
        budget = None if share is None else int(share * keep.peak_bytes)
        row: Record = {
            "model": workload.label,
            "shape": asdict(workload.shape),
            "device": workload.device,
            "budget": share,
        }
        if isinstance(plan, BudgetError):
            peak_bytes, step, recomputes = plan.lowest_peak_bytes, None, False
        else:
            peak_bytes, step = plan.peak_bytes, plan.step_seconds / keep.step_seconds
            # More than the program does by itself.
            recomputes = plan.cut is not None
        row |= {"peak": peak_bytes / keep.peak_bytes, "step": step, "recomputes": recomputes}
        for label, cuts, waiting in (("moving", 1, 0.0), ("any cut", None, FREE_SHARE)):
            bound = find_bound(
                steps[:cuts],
                workload.links,
                within_seconds=(1.0 + waiting) * steps[0].compute_seconds,
                budget_bytes=budget,
            )
            if share is None:
                row[label] = (bound.peak_bytes or 0) / keep.peak_bytes
            else:
                seconds = bound.step_seconds or 0.0
                row[label] = None if isinf(seconds) else seconds / keep.step_seconds
        rows.append(row)
    return rows


COLUMNS: Sequence[Column[Record]] = (
    ("device", lambda row: row["device"]),
    ("model", lambda row: row["model"]),
    ("budget", lambda row: "none" if row["budget"] is None else str(row["budget"])),
    ("planned peak", lambda row: f"{row['peak']:.3f}"),
    ("planned step", lambda row: show_share(row["step"])),
    ("recomputes", lambda row: "yes" if row["recomputes"] else ""),
    ("bounds what", lambda row: "peak" if row["budget"] is None else "step"),
    ("bound, moving", lambda row: show_share(row["moving"])),
    ("bound, any cut", lambda row: show_share(row["any cut"])),
)


def tabulate(record: Record) -> list[Table]:
    """Plans beside bounds: of the peak without a budget, of the step under one."""
    columns = COLUMNS
    for key, others in (
        ("speed", disturbance.COLUMNS),
        ("layerwise", layerwise.COLUMNS),
        ("bound", switches.COLUMNS),
    ):
        if all(key in row for row in record["rows"]):
            columns = others
    return [make_table(record["rows"], columns)]


def find_misses(record: Record) -> list[str]:
    """Peaks above 1.10 times their bound, steps above it by 0.03, both of moving."""
    misses: list[str] = []
    for row in record["rows"]:
        if "speed" in row:
            misses += disturbance.find_misses(row)
        if "moving" not in row:
            continue
        place = f"{row['model']} on {row['device']}"
        if row["budget"] is None and row["peak"] > 1.10 * row["moving"]:
            misses.append(f"{place}: a peak of {row['peak']:.3f}, the bound is {row['moving']:.3f}")
        if row["budget"] is not None and row["moving"] is not None:
            step = row["step"]
            if step is None or step > row["moving"] + 0.03:
                found = f"a step of {show_share(step)} at {row['budget']}"
                misses.append(f"{place}: {found}, the bound is {row['moving']:.3f}")
    return misses


main = Benchmark("limits", __doc__, LimitArguments, measure, tabulate, find_misses=find_misses)

if __name__ == "__main__":
    main()
