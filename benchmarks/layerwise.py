"""The sizes of SSDTrain: plans without a budget against nothing moved, and against checkpoints.

Source: SSDTrain, arXiv 2408.10013. Its abstract says that the activation peak falls by 47 % at a
negligible cost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from benchmarks.fresh_process import Record
from benchmarks.runner import Column
from benchmarks.simulated import CONFIG, Workload, find_largest
from benchmarks.switches import show_share
from fxoffload import BudgetError
from fxoffload.cli.byte_models import Shape
from fxoffload.planner.selection import choose_transfers
from fxoffload.planner.simulation import simulate
from fxoffload.planner.step import Step

DEVICE = "A100"  # SSDTrain's own.
SIZES = ((8192, 4), (12288, 3), (16384, 2))
BATCH, LENGTH = 16, 1024
PUBLISHED = 0.53


def compare_layerwise(workload: Workload) -> Record:
    """A row: peaks as shares of that with nothing moved, steps of its compute.

    Gradients of parameters are in memory that trainers keep from step to step, as SSDTrain's do.
    The last two peaks have them in it: all of them live when a compiled backward ends. layerwise:
    each layer is recomputed, as by torch.utils.checkpoint. as low: the plan of moving whose budget
    is the peak of that; None where none fits.
    """
    whole = find_largest(workload.trace())
    whole_layers = find_largest(workload.trace(checkpoints=True))
    keep, layers = leave_out_gradients(whole), leave_out_gradients(whole_layers)
    plan = partial(choose_transfers, links=workload.links, max_inflight_bytes=CONFIG.inflight_bytes)
    best = plan(keep).best.simulation
    with_gradients = plan(whole).best.simulation
    row: Record = {
        "model": workload.label,
        "device": workload.device,
        "bytes": find_peak(keep),
        "plan": {
            "peak": best.peak_bytes / find_peak(keep),
            "step": best.step_seconds / keep.compute_seconds,
        },
        "layerwise": {
            "peak": find_peak(layers) / find_peak(keep),
            "step": layers.compute_seconds / keep.compute_seconds,
        },
        "with gradients": {
            "bytes": find_peak(whole),
            "plan": with_gradients.peak_bytes / find_peak(whole),
            "layerwise": find_peak(whole_layers) / find_peak(whole),
        },
    }
    try:
        as_low = plan(keep, budget_bytes=find_peak(layers)).best.simulation
    except BudgetError:
        row["as low"] = None
    else:
        row["as low"] = as_low.step_seconds / keep.compute_seconds
    return row


def leave_out_gradients(step: Step) -> Step:
    """`step` without what its backward returns."""
    last = len(step.seconds) - 1
    first = step.forward_length
    fixed = (each for each in step.fixed if each.first < first or each.last < last)
    return replace(step, fixed=tuple(fixed))


def find_peak(step: Step) -> int:
    """With nothing moved."""
    return simulate(step, {}, {}).peak_bytes


def list_workloads(names: Sequence[str]) -> list[Workload]:
    """Of models, at each of SIZES."""
    return [
        Workload(name, Shape(layers, hidden, hidden // 128, BATCH, LENGTH), DEVICE)
        for name in names
        for hidden, layers in SIZES
    ]


def _show(label: str, part: str) -> Callable[[Record], str]:
    def show(row: Record) -> str:
        return f"{row[label][part]:.3f}"

    return show


COLUMNS: Sequence[Column[Record]] = (
    ("model", lambda row: row["model"]),
    ("activations GiB", lambda row: f"{row['bytes'] / 2**30:.1f}"),
    ("published peak", lambda _: str(PUBLISHED)),
    ("planned peak", _show("plan", "peak")),
    ("planned step", _show("plan", "step")),
    ("layerwise peak", _show("layerwise", "peak")),
    ("layerwise step", _show("layerwise", "step")),
    ("planned step at that peak", lambda row: show_share(row["as low"])),
    ("with gradients, planned peak", _show("with gradients", "plan")),
    ("with gradients, layerwise peak", _show("with gradients", "layerwise")),
)
