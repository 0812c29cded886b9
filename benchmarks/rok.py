"""The recompute-offload-keep curve: throughput against activation peak, for fxoffload and others.

    python benchmarks/rok.py --model gpt --plot rok.png

Compares what variants.py lists, and fxoffload without a budget of the checkpointed model, whose
layers it may save instead. An fxoffload point holds its own where no other one of the same or
a lower peak (1 % is the same) is faster by more than noise. They are compared round by round: a
point is faster where it is in more than three quarters of the rounds, by more than the upper
quartile of what tells plain from plain, again: the same code, in other memory.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
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
from benchmarks.variants import PLAIN, PLAIN_AGAIN, Measured, Variant, parse_measured, run_measured

NAME = "rok"
SAME_PEAK = 1.01
BUDGETS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
RECOMPUTE_BUDGETS = (0.0, 0.25, 0.5, 0.75, 0.9)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the table and the verdict, append the record, and draw."""
    run_benchmark(NAME, build_parser(), argv, measure, tabulate, draw=draw, conclude=conclude)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = make_parser(__doc__)
    add_model_arguments(parser, layers=12)
    add = parser.add_argument
    add("--budgets", nargs="*", type=float, default=list(BUDGETS), help="of fxoffload, of 1")
    add("--recompute-budgets", nargs="*", type=float, default=list(RECOMPUTE_BUDGETS))
    add("--rounds", type=int, default=9, help="timed steps of each")
    add_record_arguments(parser, NAME)
    add("--plot", type=Path, help="picture to write")
    return parser


def measure(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """All variants."""
    variants = [
        PLAIN,
        *(Variant("recompute", share) for share in arguments.recompute_budgets),
        Variant("checkpoint"),
        Variant("hooks"),
        *(Variant("fxoffload", share) for share in arguments.budgets),
        Variant("fxoffload", checkpoints=True),
        PLAIN_AGAIN,
    ]
    found = run_measured(arguments, variants, console)
    return {"variants": [asdict(item) for item in found]}


def tabulate(record: Record) -> Rows:
    """A row for each variant, with its best rival where it is one of fxoffload's."""
    found = parse_measured(dict(record))
    noise = find_noise(found)
    rows = [["variant", "peak MiB", "of plain", "samples/s (quartiles)", "step / plain"]]
    rows[0] += ["moved MiB", "best rival", "step / rival (quartiles)", ""]
    for item in found:
        if item.refused is not None:
            rows.append([item.label, "no plan fits", *[""] * 7])
            continue
        low, middle, high = find_quartiles([record["batch"] / s for s in item.seconds])
        row = [
            item.label,
            f"{item.peak_bytes / MIB:.1f}",
            f"{item.peak_bytes / found[0].peak_bytes:.3f}",
            f"{middle:.3f} ({low:.3f} to {high:.3f})",
            f"{statistics.median(item.find_ratios(found[0])):.3f}",
            f"{item.offloaded_bytes / MIB:.1f}",
        ]
        rival = find_best_rival(item, found) if item.kind == "fxoffload" else None
        rows.append(row + ([""] * 3 if rival is None else compare(item, rival, noise)))
    return rows


def find_noise(found: Sequence[Measured]) -> float:
    """The ratio of steps up to which two variants are the same."""
    (again,) = (item for item in found if item.label == PLAIN_AGAIN.label)
    low, _, high = find_quartiles(again.find_ratios(found[0]))
    return max(high, 1 / low)


def compare(item: Measured, rival: Measured, noise: float) -> list[str]:
    """The rival, the ratio of steps, and what it means."""
    low, middle, high = find_quartiles(item.find_ratios(rival))
    return [rival.label, f"{middle:.3f} ({low:.3f} to {high:.3f})", judge(item, rival, noise)]


def judge(item: Measured, rival: Measured, noise: float) -> str:
    """ "faster" or "slower" where three quarters of the rounds say so, else "equal"."""
    low, _, high = find_quartiles(item.find_ratios(rival))
    return "slower" if low > noise else "faster" if high < 1 / noise else "equal"


def find_best_rival(item: Measured, found: Sequence[Measured]) -> Measured | None:
    """The fastest of the others whose peak is the same or lower."""
    rivals = [
        other
        for other in found
        if other.kind != "fxoffload"
        and other.label != PLAIN_AGAIN.label
        and other.peak_bytes <= SAME_PEAK * item.peak_bytes
    ]
    return min(rivals, key=lambda other: other.median_seconds, default=None)


def conclude(record: Record) -> str:
    """Whether every point of fxoffload holds its own."""
    found = parse_measured(dict(record))
    noise = find_noise(found)
    points = [item for item in found if item.kind == "fxoffload"]
    reached = [item for item in points if item.refused is None]
    lost = [
        f"{item.label} to {rival.label}"
        for item in reached
        if (rival := find_best_rival(item, found)) and judge(item, rival, noise) == "slower"
    ]
    refused = len(points) - len(reached)
    unreached = f"; no plan for {refused} more" if refused else ""
    if lost:
        return f"dominated at {len(lost)} of {len(reached)} points: {', '.join(lost)}{unreached}"
    within = f"within noise of {noise - 1:.1%}"
    return f"not dominated at any of {len(reached)} points, {within}{unreached}"


def find_quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The quartiles; with one value, that."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def draw(records: Sequence[Record], path: Path) -> None:
    """Throughput with its quartiles against activation peak, of the last record."""
    record = records[-1]
    title = f"{record['model']}, {record['layers']} layers x {record['hidden']}"
    figure, axes = make_axes(title, "activation peak, MiB", "samples per second")
    found = [item for item in parse_measured(dict(record)) if item.refused is None]
    for series in dict.fromkeys(map(find_series, found)):
        points = [item for item in found if find_series(item) == series]
        points.sort(key=lambda item: item.peak_bytes)
        quartiles = [find_quartiles([record["batch"] / s for s in item.seconds]) for item in points]
        axes.errorbar(
            [item.peak_bytes / MIB for item in points],
            [middle for _, middle, _ in quartiles],
            yerr=[
                [middle - low for low, middle, _ in quartiles],
                [high - middle for _, middle, high in quartiles],
            ],
            marker="o",
            capsize=3,
            linewidth=2 if series == "fxoffload" else 1,
            label=series,
        )
    save_figure(figure, axes, path)


def find_series(item: Measured) -> str:
    """The line that a point is on: its kind, but for checkpoints that fxoffload has lifted."""
    return item.label if item.kind == "fxoffload" and item.share is None else item.kind


if __name__ == "__main__":
    main()
