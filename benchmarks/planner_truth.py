"""Compares the activation peak and the step time that plans predict with what is measured.

    python -m benchmarks.planner_truth --model bert
    python -m benchmarks.planner_truth --report --output benchmarks/results/rok.jsonl

Budgets are shares of plain Inductor's activation peak, "none" and "min". See variants.py for how
all of them are measured. Plans are by what nodes took in a process right before. rok.py measures
the same of more variants: its records give these tables as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from benchmarks.fresh_process import Record
from benchmarks.measure import MIB
from benchmarks.model_arguments import LAYERS, KeptArguments, show_rows
from benchmarks.runner import Benchmark, Rows, Show, describe_spread, option
from benchmarks.variants import PLAIN, Measured, Variant, parse_measured, run_variants

SHARES: dict[str, Literal["min"] | None] = {"none": None, "min": "min"}
BUDGETS = ("none", "0.9", "0.8", "0.7", "0.6", "0.5", "0.4", "min")
HEADINGS = ["variant", "peak MiB", "predicted", "ratio", "step s", "predicted", "ratio"]


def parse_budget(text: str) -> str:
    """`text` if it is "none", "min" or a share; ValueError otherwise."""
    if text not in SHARES:
        float(text)
    return text


@dataclass(frozen=True, slots=True)
class TruthArguments(KeptArguments):
    """The command line."""

    layers: int = LAYERS(4)
    budgets: Sequence[str] = option(BUDGETS, type=parse_budget)
    rounds: int = option(9, "timed steps of each")


def measure(arguments: TruthArguments, show: Show) -> Record:
    """The variants: plain, and fxoffload at each budget."""
    workload = arguments.make_workload(arguments.layers)
    variants = [
        Variant("fxoffload", SHARES[budget] if budget in SHARES else float(budget))
        for budget in arguments.budgets
    ]
    found = run_variants(workload, [PLAIN, *variants], arguments.rounds, show)
    return {"variants": [asdict(item) for item in found]}


def tabulate(record: Record) -> Rows:
    """A row for each budget."""
    plain, *others = parse_measured(record)
    rows = [[*HEADINGS, "step / plain (range)", "moved MiB"]]
    seconds = f"{plain.median_seconds:.3f}"
    rows.append([plain.label, f"{plain.peak_bytes / MIB:.1f}", "", "", seconds, "", "", "1", ""])
    return rows + [make_row(item, plain) for item in others if item.kind == "fxoffload"]


def make_row(item: Measured, plain: Measured) -> list[str]:
    """Measured, predicted and their ratio, of the peak and of the time."""
    if item.refused is not None:
        return [item.label, "no plan fits", *[""] * 7]
    assert item.predicted_peak_bytes is not None
    assert item.predicted_seconds is not None
    return [
        item.label,
        f"{item.peak_bytes / MIB:.1f}",
        f"{item.predicted_peak_bytes / MIB:.1f}",
        f"{item.peak_bytes / item.predicted_peak_bytes:.3f}",
        f"{item.median_seconds:.3f}",
        f"{item.predicted_seconds:.3f}",
        f"{item.median_seconds / item.predicted_seconds:.3f}",
        describe_spread(item.find_ratios(plain), range_digits=2),
        f"{item.offloaded_bytes / MIB:.1f}",
    ]


main = Benchmark("planner_truth", __doc__, TruthArguments, measure, show_rows(tabulate))

if __name__ == "__main__":
    main()
