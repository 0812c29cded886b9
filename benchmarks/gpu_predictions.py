"""Predicts what gpu_suite.py measures, by simulation: nothing runs, and nothing is timed.

    python -m benchmarks.gpu_predictions

Of each model of gpu_models.py on the H200 that simulated.py describes: peak and step of every
budget of fxoffload, of recomputation by torch's budget, and of checkpoints of each layer, over
those with nothing moved. Peers that move activations by hooks are not predicted. A model is one
graph here, also where blocks are measured. Writes benchmarks/results/gpu_predicted.json;
gpu_report.py puts a measured record beside it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.fresh_process import Record
from benchmarks.gpu_models import SHAPES, list_variants
from benchmarks.gpu_report import PREDICTED
from benchmarks.runner import Table, format_number
from benchmarks.simulated import HARDWARE, Workload, find_largest
from benchmarks.variant_tables import Share
from benchmarks.variants import Variant
from fxoffload import BudgetError
from fxoffload.planner.plan import Cut
from fxoffload.planner.simulation import simulate

DEVICE = "H200"


def predict(workload: Workload, variants: Sequence[Variant]) -> Iterator[Record]:
    """A row for each variant that a simulation knows.

    peak, step: over those of the program with nothing moved, which are in plain's row in bytes and
    seconds; None where no plan fits, with the lowest peak of any.
    """
    own = [each for each in variants if each.kind == "fxoffload"]
    cut = [each for each in variants if each.kind == "recompute"]
    shares: list[Share] = [each.share for each in own]
    cuts: list[Cut] = [each.share for each in cut if isinstance(each.share, float)]
    keep, plans, steps = workload.forecast(shares, cuts)
    base: Record = {"model": workload.name, "device": workload.device}

    def describe(variant: Variant, peak_bytes: int, step_seconds: float | None) -> Record:
        step = None if step_seconds is None else step_seconds / keep.step_seconds
        return {**base, "label": variant.label, "peak": peak_bytes / keep.peak_bytes, "step": step}

    yield {
        **describe(variants[0], keep.peak_bytes, keep.step_seconds),
        "peak_bytes": keep.peak_bytes,
        "step_seconds": keep.step_seconds,
        "shape": asdict(workload.shape),
    }
    for variant, plan in zip(own, plans, strict=True):
        if isinstance(plan, BudgetError):
            yield describe(variant, plan.lowest_peak_bytes, None)
        else:
            yield describe(variant, plan.peak_bytes, plan.step_seconds)
    for variant, step in zip(cut, steps, strict=True):
        yield describe(variant, simulate(step, {}, {}).peak_bytes, step.compute_seconds)
    layers = find_largest(workload.trace(checkpoints=True))
    checkpoint = Variant("checkpoint")
    yield describe(checkpoint, simulate(layers, {}, {}).peak_bytes, layers.compute_seconds)


def tabulate(rows: Sequence[Record]) -> Table:
    """The rows, as predictions."""
    cells = [
        [row["model"], row["label"], format_number(row["peak"]), format_number(row["step"])]
        for row in rows
    ]
    return Table([["model", "variant", "peak, of plain", "step, of plain"], *cells], "predicted")


def main(argv: Sequence[str] | None = None) -> None:
    """Predict the models, one after the other, and write what there is after each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--output", type=Path, default=PREDICTED)
    arguments = parser.parse_args(argv)
    rows: list[Record] = []
    if arguments.output.is_file():
        rows = json.loads(arguments.output.read_text())["rows"]
    for model in arguments.models:
        rows = [row for row in rows if row["model"] != model]
        rows += predict(Workload(model, SHAPES[model], DEVICE), list_variants(model))
        hardware = asdict(HARDWARE[DEVICE])
        arguments.output.write_text(
            json.dumps({"hardware": hardware, "rows": rows}, indent=1) + "\n"
        )
    tabulate(rows).print()


if __name__ == "__main__":
    main()
