"""Compares plans with the bound: what no plan gets below, on hardware that is not at hand.

    python -m benchmarks.limits --check

Nothing runs and nothing is timed: the models have no memory, and the hardware is a record. Peaks
are shares of the peak with nothing moved, steps of the compute of the program's own partition.
Budgets are such shares; "none" is what costs nothing. The bound of moving is that of the program's
own partition, the other one is the best over all partitions that plans choose from. Where there is
no budget, plans and the last bound may take a hundredth more than the compute. With `--robust`, the
schedules of budgets meet other hardware than they were made for: see `disturbed_schedules`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import isinf
from typing import Any

import torch

from benchmarks.disturbed_schedules import (
    disturb,
    find_disturbed_misses,
    tabulate_disturbed,
)
from benchmarks.fresh_process import Record
from benchmarks.models import Shape, build_model, make_tokens
from benchmarks.runner import Arguments, Benchmark, Show, Table, make_rows, option
from fxoffload import BudgetError, Forecast, Hardware, find_bounds, simulate
from fxoffload.config import OffloadConfig
from fxoffload.cost import make_cost_model
from fxoffload.inspection.bounds import ALL_CUTS, trace_steps

FREE_SHARE = 0.01
SHARES = (0.6, 0.55, 0.5)


def make_hardware(flops: str, memory: str, link: str, memory_bytes: str) -> Hardware:
    """A device by what it sustains; its drives are as fast as its link to the host."""
    return Hardware(
        flops_per_second=flops,
        memory_bytes_per_second=memory,
        memory_bytes=memory_bytes,
        drive_write_bytes_per_second=link,
        drive_read_bytes_per_second=link,
        host_link_bytes_per_second=link,
    )


HARDWARE = {
    "H200": make_hardware("770TFLOP/s", "3.6TB/s", "54GB/s", "141GiB"),
    "A100": make_hardware("250TFLOP/s", "1.8TB/s", "20GB/s", "80GiB"),
    "RTX 4090": make_hardware("150TFLOP/s", "1TB/s", "25GB/s", "24GiB"),
    "H100, two drives": Hardware(
        flops_per_second="770TFLOP/s",
        memory_bytes_per_second="2.6TB/s",
        memory_bytes="80GiB",
        drive_write_bytes_per_second="12GB/s",
        drive_read_bytes_per_second="14GB/s",
        host_link_bytes_per_second="54GB/s",
    ),
}
# The number of layers that each device gets; a T5 has half of them on each side.
LAYERS = {"H200": 3, "A100": 4, "RTX 4090": 4, "H100, two drives": 4}


@dataclass(frozen=True, slots=True)
class LimitArguments(Arguments):
    """The command line. Of each row: a model on a device."""

    models: tuple[str, ...] = option(("gpt",), "gpt, bert, t5")
    devices: tuple[str, ...] = option(("H200", "A100"), ", ".join(HARDWARE))
    hidden: int = option(8192)
    batch: int = option(16)
    length: int = option(1024)
    check: bool = option(False, "fail where a plan is further from its bound than it should be")
    robust: bool = option(
        False, "schedules on other links and node seconds than they were made for"
    )
    report: bool = option(False, "print what the file of --output holds, as Markdown")


def measure(arguments: LimitArguments, show: Show) -> Record:
    """A row for each model, device and budget."""
    rows: list[Record] = []
    for device in arguments.devices:
        for model in arguments.models:
            show(f"{model} on {device}")
            layers = LAYERS[device] + (LAYERS[device] % 2 if model == "t5" else 0)
            heads = arguments.hidden // 128
            shape = Shape(layers, arguments.hidden, heads, arguments.batch, arguments.length)
            forecast = disturb_rows if arguments.robust else forecast_rows
            rows += forecast(model, shape, device)
    return {"benchmark": "limits", "rows": rows}


def disturb_rows(name: str, shape: Shape, device: str) -> list[Record]:
    """See `disturb`; of the program's own partition of its largest graph."""
    with torch.device("meta"):
        model = build_model(name, shape).to(torch.bfloat16)
        tokens = make_tokens(shape)
    config = OffloadConfig(directory=".")
    cost = make_cost_model(HARDWARE[device])
    graphs = trace_steps(model, (tokens,), {}, config, cost)
    step = max((steps[0] for steps in graphs), key=lambda step: len(step.names))
    common = {"device": device, "model": f"{name} {shape.layers} x {shape.hidden}"}
    rows = disturb(step, cost.links, SHARES, config.inflight_bytes)
    return [{**common, **row} for row in rows]


def forecast_rows(name: str, shape: Shape, device: str) -> list[Record]:
    """The plan and the bounds of a model without a budget, and at each share."""
    with torch.device("meta"):
        model = build_model(name, shape).to(torch.bfloat16)
        tokens = make_tokens(shape)
    common: dict[str, Any] = {"hardware": HARDWARE[device]}
    keep = simulate(model, tokens, memory_budget=2**60, **common)
    peak_bytes, seconds = keep.peak_bytes, keep.step_seconds
    rows: list[Record] = []
    for share in (None, *SHARES):
        budget = None if share is None else int(share * peak_bytes)
        own = find_bounds(model, tokens, memory_budget=budget, **common)
        free = 0.0 if share else FREE_SHARE
        best = find_bounds(
            model, tokens, memory_budget=budget, cuts=ALL_CUTS, waiting=free, **common
        )
        lowest_bytes, plan = 0, None
        try:
            plan = simulate(model, tokens, memory_budget=budget, **common)
        except BudgetError as error:
            lowest_bytes = error.lowest_peak_bytes
        row: Record = {
            "model": f"{name} {shape.layers} x {shape.hidden}",
            "shape": asdict(shape),
            "device": device,
            "budget": share,
            "peak": (plan.peak_bytes if plan else lowest_bytes) / peak_bytes,
            "step": plan.step_seconds / seconds if plan else None,
            "recomputes": count_recomputing(plan) if plan else 0,
        }
        for label, bounds in ("moving", own), ("any cut", best):
            if share is None:
                row[label] = max(bound.peak_bytes or 0 for bound in bounds) / peak_bytes
            else:
                total = sum(bound.step_seconds or 0.0 for bound in bounds)
                row[label] = None if isinf(total) else total / seconds
        rows.append(row)
    return rows


def count_recomputing(forecast: Forecast) -> int:
    """The graphs that recompute more than the program does by itself."""
    return sum(plan.cut is not None for plan in forecast.plans)


def tabulate(record: Record) -> list[Table]:
    """Plans beside bounds: of the peak without a budget, of the step under one."""
    if any("speed" in row for row in record["rows"]):
        return [tabulate_disturbed(record["rows"])]
    rows = make_rows(
        record["rows"],
        [
            ("device", lambda row: row["device"]),
            ("model", lambda row: row["model"]),
            ("budget", lambda row: "none" if row["budget"] is None else str(row["budget"])),
            ("planned peak", lambda row: f"{row['peak']:.3f}"),
            ("planned step", lambda row: show_share(row["step"])),
            ("recomputes", lambda row: "yes" if row["recomputes"] else ""),
            ("bounds what", lambda row: "peak" if row["budget"] is None else "step"),
            ("bound, moving", lambda row: show_share(row["moving"])),
            ("bound, any cut", lambda row: show_share(row["any cut"])),
        ],
    )
    return [Table(rows)]


def show_share(share: float | None) -> str:
    """Three digits; a word where no plan fits."""
    return "none fits" if share is None else f"{share:.3f}"


def find_misses(record: Record) -> list[str]:
    """Peaks above 1.10 times their bound, steps above it by 0.03, both of moving."""
    misses: list[str] = []
    for row in record["rows"]:
        if "speed" in row:
            misses += find_disturbed_misses(row)
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
