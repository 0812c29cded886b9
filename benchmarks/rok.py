"""Compares throughput by activation peak of fxoffload with that of recomputation and others.

    python -m benchmarks.rok --model gpt --plot rok.png

Compares the variants of variants.py, and fxoffload without a budget on the checkpointed model,
whose checkpoints it may lift. A point of fxoffload is dominated if another method with the same or
a lower peak (within 1 %) is faster by more than noise. Points are compared round by round: one is
faster if it is so in more than three quarters of the rounds, by more than the noise. Noise is the
upper quartile of the ratio between two runs of plain: the same code, in other memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.fresh_process import Record
from benchmarks.model_arguments import LAYERS, ModelArguments
from benchmarks.plots import draw_axes
from benchmarks.runner import Benchmark, Show, Table, describe_spread, find_quartiles, option
from benchmarks.variant_tables import Compare, Measured, parse_measured, tabulate_variants
from benchmarks.variants import PLAIN, PLAIN_AGAIN, Variant, run_variants
from fxoffload.sizes import MIB

SAME_PEAK = 1.01
BUDGETS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
HEADINGS = (
    "peak MiB",
    "of plain",
    "samples/s (quartiles)",
    "step / plain (range)",
    "moved MiB",
    "best rival",
    "step / rival (quartiles)",
    "verdict",
)


@dataclass(frozen=True, slots=True)
class CurveArguments(ModelArguments):
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
    return {"variants": run_variants(workload, variants, arguments.rounds, show)}


def tabulate(record: Record) -> list[Table]:
    """A row for each variant, with its best rival where it is one of fxoffload's."""
    found = parse_measured(record)
    noise = find_noise(found)
    rivals = {item.label: find_best_rival(item, found) for item in found}

    def compare(describe: Compare) -> Compare:
        return lambda item, plain: describe(item, rival) if (rival := rivals[item.label]) else ""

    columns: dict[str, Compare] = {
        "samples/s (quartiles)": lambda item, plain: describe_spread(
            [record["batch"] / seconds for seconds in item.seconds], quartiles=True
        ),
        "best rival": compare(lambda item, rival: rival.label),
        "step / rival (quartiles)": compare(
            lambda item, rival: describe_spread(item.find_ratios(rival), quartiles=True)
        ),
        "verdict": compare(lambda item, rival: judge(item, rival, noise)),
    }
    return [tabulate_variants(record, HEADINGS, columns, caption=conclude(found))]


def find_noise(found: Sequence[Measured]) -> float:
    """The ratio of step times up to which two variants count as equal."""
    (again,) = (item for item in found if item.label == PLAIN_AGAIN.label)
    low, _, high = find_quartiles(again.find_ratios(found[0]))
    return max(high, 1 / low)


def judge(item: Measured, rival: Measured, noise: float) -> str:
    """ "faster" or "slower" where three quarters of the rounds say so, else "equal"."""
    low, _, high = find_quartiles(item.find_ratios(rival))
    return "slower" if low > noise else "faster" if high < 1 / noise else "equal"


def find_best_rival(item: Measured, found: Sequence[Measured]) -> Measured | None:
    """For a point of fxoffload: the fastest other variant with the same or a lower peak."""
    if item.kind != "fxoffload" or item.refused is not None:
        return None
    rivals = [
        other
        for other in found
        if other.kind != "fxoffload"
        and other.refused is None
        and other.label != PLAIN_AGAIN.label
        and other.peak_bytes <= SAME_PEAK * item.peak_bytes
    ]
    return min(rivals, key=lambda other: other.median_seconds, default=None)


def conclude(found: Sequence[Measured]) -> str:
    """A sentence that says whether a point of fxoffload is dominated."""
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
    """The name of the point's line: its kind, or its label for lifted checkpoints."""
    return item.label if item.kind == "fxoffload" and item.share is None else item.kind


main = Benchmark("rok", __doc__, CurveArguments, measure, tabulate, draw=draw)

if __name__ == "__main__":
    main()
