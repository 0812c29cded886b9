"""Compares throughput by activation peak of fxoffload with that of recomputation and others.

    python -m benchmarks.rok --model gpt --plot rok.png

Compares what variants.py lists, and fxoffload without a budget of the checkpointed model, whose
layers it may save instead. An fxoffload point holds its own where no other one of the same or
a lower peak (1 % is the same) is faster by more than noise. They are compared round by round: a
point is faster where it is in more than three quarters of the rounds, by more than the upper
quartile of what tells plain from plain, again: the same code, in other memory.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.fresh_process import Record
from benchmarks.measure import MIB
from benchmarks.model_arguments import LAYERS, KeptArguments, show_rows
from benchmarks.plots import draw_axes
from benchmarks.runner import Benchmark, Rows, Show, option
from benchmarks.variants import PLAIN, PLAIN_AGAIN, Measured, Variant, parse_measured, run_variants

SAME_PEAK = 1.01
BUDGETS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
HEADINGS = ["variant", "peak MiB", "of plain", "samples/s (quartiles)", "step / plain"]


@dataclass(frozen=True, slots=True)
class CurveArguments(KeptArguments):
    """The command line."""

    layers: int = LAYERS(12)
    budgets: Sequence[float] = option(BUDGETS, "of fxoffload, of 1", nargs="*")
    recompute_budgets: Sequence[float] = option((0.0, 0.25, 0.5, 0.75, 0.9), nargs="*")
    rounds: int = option(9, "timed steps of each")
    plot: Path | None = option(None, "picture to write", type=Path)


def measure(arguments: CurveArguments, show: Show) -> Record:
    """All variants."""
    workload = arguments.make_workload(arguments.layers)
    variants = [
        PLAIN,
        *(Variant("recompute", share) for share in arguments.recompute_budgets),
        Variant("checkpoint"),
        Variant("hooks"),
        *(Variant("fxoffload", share) for share in arguments.budgets),
        Variant("fxoffload", checkpoints=True),
        PLAIN_AGAIN,
    ]
    found = run_variants(workload, variants, arguments.rounds, show)
    return {"variants": [asdict(item) for item in found]}


def tabulate(record: Record) -> Rows:
    """A row for each variant, with its best rival where it is one of fxoffload's."""
    found = parse_measured(record)
    noise = find_noise(found)
    rows = [[*HEADINGS, "moved MiB", "best rival", "step / rival (quartiles)", ""]]
    for item in found:
        if item.refused is not None:
            rows.append([item.label, "no plan fits", *[""] * 7])
            continue
        row = [
            item.label,
            f"{item.peak_bytes / MIB:.1f}",
            f"{item.peak_bytes / found[0].peak_bytes:.3f}",
            describe_quartiles([record["batch"] / seconds for seconds in item.seconds]),
            f"{statistics.median(item.find_ratios(found[0])):.3f}",
            f"{item.offloaded_bytes / MIB:.1f}",
        ]
        rival = find_best_rival(item, found) if item.kind == "fxoffload" else None
        if rival is None:
            rows.append([*row, "", "", ""])
        else:
            ratios = describe_quartiles(item.find_ratios(rival))
            rows.append([*row, rival.label, ratios, judge(item, rival, noise)])
    return rows


def find_noise(found: Sequence[Measured]) -> float:
    """The ratio of steps up to which two variants are the same."""
    (again,) = (item for item in found if item.label == PLAIN_AGAIN.label)
    low, _, high = find_quartiles(again.find_ratios(found[0]))
    return max(high, 1 / low)


def describe_quartiles(values: Sequence[float]) -> str:
    """The median, and the other quartiles."""
    low, middle, high = find_quartiles(values)
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


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
    found = parse_measured(record)
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
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return low, middle, high


def draw(record: Record, path: Path) -> None:
    """Throughput with its quartiles against activation peak."""
    title = f"{record['model']}, {record['layers']} layers x {record['hidden']}"
    found = [item for item in parse_measured(record) if item.refused is None]
    with draw_axes(path, title, "activation peak, MiB", "samples per second") as axes:
        for series in dict.fromkeys(map(find_series, found)):
            points = [item for item in found if find_series(item) == series]
            points.sort(key=lambda item: item.peak_bytes)
            rates = [find_quartiles([record["batch"] / s for s in p.seconds]) for p in points]
            low, middle, high = np.transpose(rates)
            axes.errorbar(
                [item.peak_bytes / MIB for item in points],
                middle,
                yerr=[middle - low, high - middle],
                marker="o",
                capsize=3,
                linewidth=2 if series == "fxoffload" else 1,
                label=series,
            )


def find_series(item: Measured) -> str:
    """The line that a point is on: its kind, but for checkpoints that fxoffload has lifted."""
    return item.label if item.kind == "fxoffload" and item.share is None else item.kind


main = Benchmark("rok", __doc__, CurveArguments, measure, show_rows(tabulate, conclude), draw=draw)

if __name__ == "__main__":
    main()
