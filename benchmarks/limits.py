"""Compares plans with the bound: what no plan gets below, on hardware that is not at hand.

    python -m benchmarks.limits --check

Nothing runs and nothing is timed: the models have no memory, and the hardware is a record. Peaks
are shares of the peak with nothing moved, steps of the compute of the program's own partition.
Budgets are such shares; "none" is what costs nothing. The bound of moving is that of the program's
own partition, the other one is the best over all partitions that plans choose from. Where there is
no budget, plans and the last bound may take a hundredth more than the compute. With `--robust`, the
schedules of budgets meet links and nodes of another speed than they were made for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from math import isinf
from random import Random
from typing import Any

import torch

from benchmarks.fresh_process import Record
from benchmarks.runner import Arguments, Benchmark, Column, Show, Table, make_table, option
from fxoffload import BudgetError, Hardware, find_bounds, simulate
from fxoffload.cli.byte_models import Shape, build_model, make_tokens
from fxoffload.config import OffloadConfig
from fxoffload.cost import make_cost_model
from fxoffload.inspection.bounds import ALL_CUTS, trace_steps
from fxoffload.planner.link import Link
from fxoffload.planner.search import Trial
from fxoffload.planner.selection import choose_transfers
from fxoffload.planner.simulation import simulate as simulate_step
from fxoffload.planner.step import Step, Transfer

FREE_SHARE = 0.01
SPEEDS = (0.6, 1.0, 1.4)  # Shares of the speed of links, with --robust.
NOISE = 0.2
MAX_LOSS = 0.03  # Of the step: what a schedule for other links may lose.
SHARES = (0.6, 0.55, 0.5)


def make_hardware(
    flops: str, memory: str, memory_bytes: str, write: str, read: str, link: str
) -> Hardware:
    """What a device, its drives, and its link to the host sustain, each per second."""
    return Hardware(
        flops_per_second=flops,
        memory_bytes_per_second=memory,
        memory_bytes=memory_bytes,
        drive_write_bytes_per_second=write,
        drive_read_bytes_per_second=read,
        host_link_bytes_per_second=link,
    )


# Without drives that are named, these are as fast as the link.
HARDWARE = {
    "H200": make_hardware("770TFLOP/s", "3.6TB/s", "141GiB", "54GB/s", "54GB/s", "54GB/s"),
    "A100": make_hardware("250TFLOP/s", "1.8TB/s", "80GiB", "20GB/s", "20GB/s", "20GB/s"),
    "RTX 4090": make_hardware("150TFLOP/s", "1TB/s", "24GiB", "25GB/s", "25GB/s", "25GB/s"),
    "H100, two drives": make_hardware(
        "770TFLOP/s", "2.6TB/s", "80GiB", "12GB/s", "14GB/s", "54GB/s"
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
    robust: bool = option(
        False, "schedules on other links and node seconds than they were made for"
    )


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
    return {"rows": rows}


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
    rows: list[Record] = []
    for share in (None, *SHARES):
        budget = None if share is None else int(share * keep.peak_bytes)
        row: Record = {
            "model": f"{name} {shape.layers} x {shape.hidden}",
            "shape": asdict(shape),
            "device": device,
            "budget": share,
        }
        try:
            plan = simulate(model, tokens, memory_budget=budget, **common)
        except BudgetError as error:
            peak_bytes, step, recomputes = error.lowest_peak_bytes, None, 0
        else:
            peak_bytes, step = plan.peak_bytes, plan.step_seconds / keep.step_seconds
            # The graphs that recompute more than the program does by itself.
            recomputes = sum(each.cut is not None for each in plan.plans)
        row |= {"peak": peak_bytes / keep.peak_bytes, "step": step, "recomputes": recomputes}
        free = {"cuts": ALL_CUTS, "waiting": 0.0 if share else FREE_SHARE}
        for label, options in (("moving", {}), ("any cut", free)):
            bounds = find_bounds(model, tokens, memory_budget=budget, **options, **common)
            if share is None:
                row[label] = max(each.peak_bytes or 0 for each in bounds) / keep.peak_bytes
            else:
                total = sum(each.step_seconds or 0.0 for each in bounds)
                row[label] = None if isinf(total) else total / keep.step_seconds
        rows.append(row)
    return rows


def disturb(
    step: Step, links: Mapping[str, Link], shares: Sequence[float], max_inflight_bytes: int
) -> list[Record]:
    """A row for each budget, a share of the unmoved peak, and each speed, a share of the links'.

    A schedule says at which op a write is waited for and a read is started, so a slow link costs
    time and no memory. Time lost is against a schedule that is made for the other link, over the
    same nodes.
    """
    unmoved_bytes = simulate_step(step, {}, links).peak_bytes
    random = Random(0)
    noisy = replace(
        step, seconds=tuple(s * random.uniform(1 - NOISE, 1 + NOISE) for s in step.seconds)
    )
    inflight = {"max_inflight_bytes": max_inflight_bytes}
    rows: list[Record] = []
    for share, speed in product(shares, SPEEDS):
        real = {tier: scale(link, speed) for tier, link in links.items()}
        limits = {"budget_bytes": int(share * unmoved_bytes), **inflight}
        try:
            chosen = (choose_transfers(step, assumed, **limits).best for assumed in (links, real))
            found, made = (
                simulate_step(noisy, write_waits(step, best), real, **inflight) for best in chosen
            )
        except BudgetError:
            continue  # The table of limits says that none fits.
        rows.append(
            {
                "budget": share,
                "speed": speed,
                "peak": found.peak_bytes / unmoved_bytes,
                "step": found.step_seconds / noisy.compute_seconds,
                "made for": made.step_seconds / noisy.compute_seconds,
            }
        )
    return rows


def write_waits(step: Step, trial: Trial) -> dict[str, Transfer]:
    """The transfers as ops carry them out: each write is waited for, in the backward if need be."""
    found = dict(trial.transfers)
    for value in step.values:
        transfer = found.get(value.name)
        if transfer is not None and transfer.release is None:
            turn = step.find_turn(value)
            wait = max(trial.simulation.written_positions[value.name], turn)
            if wait < step.first_use(value):
                found[value.name] = replace(transfer, release=wait)
    return found


def scale(link: Link, speed: float) -> Link:
    """`link` with a share of its bandwidth."""
    return replace(
        link,
        write_bytes_per_second=speed * link.write_bytes_per_second,
        read_bytes_per_second=speed * link.read_bytes_per_second,
    )


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

DISTURBED_COLUMNS: Sequence[Column[Record]] = (
    ("device", lambda row: row["device"]),
    ("model", lambda row: row["model"]),
    ("budget", lambda row: str(row["budget"])),
    ("speed of links", lambda row: str(row["speed"])),
    ("peak", lambda row: f"{row['peak']:.3f}"),
    ("step", lambda row: f"{row['step']:.3f}"),
    ("of a schedule for these", lambda row: f"{row['made for']:.3f}"),
    ("lost", lambda row: f"{row['step'] - row['made for']:+.3f}"),
)


def tabulate(record: Record) -> list[Table]:
    """Plans beside bounds: of the peak without a budget, of the step under one."""
    disturbed = any("speed" in row for row in record["rows"])
    return [make_table(record["rows"], DISTURBED_COLUMNS if disturbed else COLUMNS)]


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


def find_disturbed_misses(row: Record) -> list[str]:
    """Budgets that are exceeded, and more time lost than MAX_LOSS."""
    place = f"{row['model']} on {row['device']}, {row['budget']}, links of {row['speed']}"
    misses: list[str] = []
    if row["peak"] > row["budget"]:
        misses.append(f"{place}: a peak of {row['peak']:.3f}")
    if row["step"] > row["made for"] + MAX_LOSS:
        misses.append(f"{place}: a step of {row['step']:.3f}, not {row['made for']:.3f}")
    return misses


main = Benchmark("limits", __doc__, LimitArguments, measure, tabulate, find_misses=find_misses)

if __name__ == "__main__":
    main()
