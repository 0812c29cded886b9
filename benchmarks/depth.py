"""Measures how the activation peak grows with the depth of a model, plain and with fxoffload.

    python -m benchmarks.depth --plot depth.png

The lower bound is the simulator's: the largest working set of any single moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.fresh_process import Record
from benchmarks.measure import MIB
from benchmarks.model_arguments import KeptArguments, show_rows
from benchmarks.plots import draw_axes
from benchmarks.runner import Benchmark, Rows, Show, option
from benchmarks.variants import PLAIN, Variant, parse_measured, run_variants

VARIANTS = (PLAIN, Variant("fxoffload"), Variant("fxoffload", "min"))
HEADINGS = ["layers", "plain MiB", "fxoffload", "predicted", "ratio", "moved"]


@dataclass(frozen=True, slots=True)
class DepthArguments(KeptArguments):
    """The command line."""

    hidden: int = option(128)
    batch: int = option(4)
    length: int = option(128)
    min_bytes: str = option("64KiB", "smaller values stay in memory")
    layers: Sequence[int] = option((4, 8, 16, 32, 48))
    plot: Path | None = option(None, "picture to write", type=Path)


def measure(arguments: DepthArguments, show: Show) -> Record:
    """The variants at each depth, each from an empty compile cache."""
    workloads = {layers: arguments.make_workload(layers) for layers in arguments.layers}
    depths: list[Record] = []
    for layers, workload in workloads.items():
        found = run_variants(workload, VARIANTS, 0, show)
        depths.append({"layers": layers, "variants": [asdict(item) for item in found]})
    return {"depths": depths}


def tabulate(record: Record) -> Rows:
    """A row for each depth."""
    rows = [[*HEADINGS, "min MiB", "predicted", "lower bound", "min / lower bound"]]
    for depth in record["depths"]:
        plain, hidden, lowest = parse_measured(depth)
        assert hidden.predicted_peak_bytes is not None
        assert lowest.predicted_peak_bytes is not None
        assert lowest.lower_bound_bytes is not None
        rows.append(
            [
                str(depth["layers"]),
                f"{plain.peak_bytes / MIB:.1f}",
                f"{hidden.peak_bytes / MIB:.1f}",
                f"{hidden.predicted_peak_bytes / MIB:.1f}",
                f"{hidden.peak_bytes / plain.peak_bytes:.3f}",
                f"{hidden.offloaded_bytes / MIB:.1f}",
                f"{lowest.peak_bytes / MIB:.1f}",
                f"{lowest.predicted_peak_bytes / MIB:.1f}",
                f"{lowest.lower_bound_bytes / MIB:.1f}",
                f"{lowest.peak_bytes / lowest.lower_bound_bytes:.3f}",
            ]
        )
    return rows


def draw(record: Record, path: Path) -> None:
    """Peaks against layers."""
    title = f"{record['model']}, width {record['hidden']}, {record['batch']} x {record['length']}"
    layers = [depth["layers"] for depth in record["depths"]]
    lines = list(zip(*map(parse_measured, record["depths"]), strict=True))
    with draw_axes(path, title, "layers", "activation peak, MiB") as axes:
        for variant, line in zip(VARIANTS, lines, strict=True):
            peaks = [item.peak_bytes / MIB for item in line]
            (drawn,) = axes.plot(layers, peaks, marker="o", label=variant.label)
            if line[0].predicted_peak_bytes is not None:
                predicted = [(item.predicted_peak_bytes or 0) / MIB for item in line]
                color = drawn.get_color()
                axes.plot(layers, predicted, "--", color=color, label=f"{variant.label}, predicted")
        bounds = [(item.lower_bound_bytes or 0) / MIB for item in lines[-1]]
        axes.plot(layers, bounds, "k:", label="lower bound")


main = Benchmark("depth", __doc__, DepthArguments, measure, show_rows(tabulate), draw=draw)

if __name__ == "__main__":
    main()
