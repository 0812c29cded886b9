"""How the activation peak grows with depth, plain and with fxoffload, measured and predicted.

    python benchmarks/depth.py --plot depth.png

The lower bound is the simulator's: the largest working set of any single moment.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks.command_line import (
    Record,
    Rows,
    add_model_arguments,
    add_record_arguments,
    make_parser,
    run_benchmark,
)
from benchmarks.measure import MIB
from benchmarks.plots import make_axes, save_figure
from benchmarks.variants import PLAIN, Measured, Variant, parse_measured, run_variants

NAME = "depth"
VARIANTS = (PLAIN, Variant("fxoffload"), Variant("fxoffload", "min"))


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the table, append the record, and draw."""
    run_benchmark(NAME, build_parser(), argv, measure, tabulate, draw=draw)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = make_parser(__doc__)
    add_model_arguments(parser, layers=None, hidden=128, batch=4, length=128)
    parser.set_defaults(min_bytes="64KiB")
    add = parser.add_argument
    add("--layers", nargs="+", type=int, default=[4, 8, 16, 32, 48])
    add_record_arguments(parser, NAME)
    add("--plot", type=Path, help="picture to write")
    return parser


def measure(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """The variants at each depth, each from an empty compile cache."""
    depths: list[dict[str, Any]] = []
    for layers in arguments.layers:
        found = run_variants(arguments, VARIANTS, console, rounds=0, layers=layers)
        depths.append({"layers": layers, "variants": [asdict(item) for item in found]})
    return {"depths": depths}


def tabulate(record: Record) -> Rows:
    """A row for each depth."""
    rows = [["layers", "plain MiB", "fxoffload", "predicted", "ratio", "moved"]]
    rows[0] += ["min MiB", "predicted", "lower bound", "min / lower bound"]
    for depth in record["depths"]:
        plain, hidden, lowest = parse_depth(depth)
        assert hidden.predicted_peak_bytes is not None
        assert lowest.predicted_peak_bytes is not None
        assert lowest.lower_bound_bytes is not None
        sizes = (hidden.peak_bytes, hidden.predicted_peak_bytes)
        rows.append(
            [
                str(depth["layers"]),
                f"{plain.peak_bytes / MIB:.1f}",
                *(f"{size / MIB:.1f}" for size in sizes),
                f"{hidden.peak_bytes / plain.peak_bytes:.3f}",
                f"{hidden.offloaded_bytes / MIB:.1f}",
                f"{lowest.peak_bytes / MIB:.1f}",
                f"{lowest.predicted_peak_bytes / MIB:.1f}",
                f"{lowest.lower_bound_bytes / MIB:.1f}",
                f"{lowest.peak_bytes / lowest.lower_bound_bytes:.3f}",
            ]
        )
    return rows


def parse_depth(depth: Mapping[str, Any]) -> tuple[Measured, Measured, Measured]:
    """What was measured at one depth, in the order of VARIANTS."""
    plain, hidden, lowest = parse_measured(dict(depth))
    return plain, hidden, lowest


def draw(records: Sequence[Record], path: Path) -> None:
    """Peaks against layers, of the last record."""
    record = records[-1]
    title = f"{record['model']}, width {record['hidden']}, {record['batch']} x {record['length']}"
    figure, axes = make_axes(title, "layers", "activation peak, MiB")
    layers = [depth["layers"] for depth in record["depths"]]
    measured = [parse_depth(depth) for depth in record["depths"]]
    for index, variant in enumerate(VARIANTS):
        line = [found[index] for found in measured]
        (drawn,) = axes.plot(
            layers, [item.peak_bytes / MIB for item in line], marker="o", label=variant.label
        )
        if line[0].predicted_peak_bytes is not None:
            predicted = [(item.predicted_peak_bytes or 0) / MIB for item in line]
            color = drawn.get_color()
            axes.plot(layers, predicted, "--", color=color, label=f"{variant.label}, predicted")
    bounds = [(found[-1].lower_bound_bytes or 0) / MIB for found in measured]
    axes.plot(layers, bounds, "k:", label="lower bound")
    save_figure(figure, axes, path)


if __name__ == "__main__":
    main()
