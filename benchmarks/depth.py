"""Measures how the activation peak grows with the depth of a model, or with its sequences.

    python -m benchmarks.depth --plot depth.png
    python -m benchmarks.depth --layers 4 --lengths 128 256 512

The lower bound is the simulator's: the largest working set of any single moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.fresh_process import Record
from benchmarks.model_arguments import ModelArguments
from benchmarks.plots import draw_axes
from benchmarks.runner import Benchmark, Show, Table, option
from benchmarks.variant_tables import parse_measured, tabulate_variants
from benchmarks.variants import PLAIN, Variant, run_variants
from fxoffload.sizes import MIB

HEADINGS = ("peak MiB", "predicted MiB", "of plain", "moved MiB", "lower bound MiB", "peak / bound")
VARIANTS = (PLAIN, Variant("fxoffload"), Variant("fxoffload", "min"))


@dataclass(frozen=True, slots=True)
class DepthArguments(ModelArguments):
    """The command line."""

    hidden: int = option(128)
    batch: int = option(4)
    length: int = option(128)
    min_bytes: str = option("64KiB", "smaller values stay in memory")
    layers: Sequence[int] = option((4, 8, 16, 32, 48))
    lengths: Sequence[int] = option((), "tokens to try at each depth, not --length", type=int)
    plot: Path | None = option(None, "picture to write", type=Path)


def measure(arguments: DepthArguments, show: Show) -> Record:
    """The variants at each depth and length, each from an empty compile cache."""
    workloads = [
        replace(arguments, length=length).make_workload(layers)
        for layers in arguments.layers
        for length in arguments.lengths or (arguments.length,)
    ]
    return {
        "depths": [
            {
                "layers": workload.shape.layers,
                "length": workload.shape.length,
                "variants": run_variants(workload, VARIANTS, 0, show),
            }
            for workload in workloads
        ]
    }


def tabulate(record: Record) -> list[Table]:
    """A table for each depth and length."""
    return [tabulate_variants({**record, **depth}, HEADINGS) for depth in record["depths"]]


def draw(record: Record, path: Path) -> None:
    """Peaks against tokens where these differ, else against layers."""
    title = f"{record['model']}, width {record['hidden']}, {record['batch']} x {record['length']}"
    key = "length" if record.get("lengths") else "layers"
    sizes = [depth[key] for depth in record["depths"]]
    with draw_axes(path, title, key, "activation peak, MiB") as axes:

        def plot(values: Sequence[int | None], style: str, label: str) -> None:
            axes.plot(sizes, [(value or 0) / MIB for value in values], style, label=label)

        for index, line in enumerate(zip(*map(parse_measured, record["depths"]), strict=True)):
            plot([item.peak_bytes for item in line], f"C{index}o-", line[0].label)
            if index > 0:
                predicted = [item.predicted_peak_bytes for item in line]
                plot(predicted, f"C{index}--", f"{line[0].label}, predicted")
            if line[0].share == "min":
                plot([item.lower_bound_bytes for item in line], "k:", "lower bound")


main = Benchmark("depth", __doc__, DepthArguments, measure, tabulate, draw=draw)

if __name__ == "__main__":
    main()
