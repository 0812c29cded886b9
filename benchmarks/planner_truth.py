"""Whether plans come true: measured over predicted activation peak and step time, by budget.

    python benchmarks/planner_truth.py --model bert
    python benchmarks/planner_truth.py --report --output benchmarks/results/rok.jsonl

Budgets are shares of plain Inductor's activation peak, "none" and "min". See variants.py for how
all of them are measured. Plans are by what nodes took in a process right before. rok.py measures
the same of more variants: its records give these tables as well.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

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
from benchmarks.variants import PLAIN, Measured, Variant, parse_measured, run_measured

NAME = "planner_truth"
BUDGETS = ("none", "0.9", "0.8", "0.7", "0.6", "0.5", "0.4", "min")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the table and append the record."""
    run_benchmark(NAME, build_parser(), argv, measure, tabulate)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = make_parser(__doc__)
    add_model_arguments(parser, layers=4)
    parser.add_argument("--budgets", nargs="+", type=parse_budget, default=list(BUDGETS))
    parser.add_argument("--rounds", type=int, default=9, help="timed steps of each")
    add_record_arguments(parser, NAME)
    return parser


def parse_budget(text: str) -> str:
    """`text` if it is "none", "min" or a share; ValueError otherwise."""
    if text not in ("none", "min"):
        float(text)
    return text


def measure(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """The variants: plain, and fxoffload at each budget."""
    shares: dict[str, Literal["min"] | None] = {"none": None, "min": "min"}
    variants = [
        Variant("fxoffload", shares[budget] if budget in shares else float(budget))
        for budget in arguments.budgets
    ]
    found = run_measured(arguments, [PLAIN, *variants], console)
    return {"variants": [asdict(item) for item in found]}


def tabulate(record: Record) -> Rows:
    """A row for each budget."""
    plain, *others = parse_measured(dict(record))
    rows = [
        ["variant", "peak MiB", "predicted", "ratio", "step s", "predicted", "ratio"],
    ]
    rows[0] += ["step / plain (range)", "moved MiB"]
    rows.append([plain.label, f"{plain.peak_bytes / MIB:.1f}", "", ""])
    rows[1] += [f"{plain.median_seconds:.3f}", "", "", "1", ""]
    return rows + [make_row(item, plain) for item in others if item.kind == "fxoffload"]


def make_row(item: Measured, plain: Measured) -> list[str]:
    """Measured, predicted and their ratio, of the peak and of the time."""
    if item.refused is not None:
        return [item.label, "no plan fits", *[""] * 7]
    assert item.predicted_peak_bytes is not None
    assert item.predicted_seconds is not None
    ratios = item.find_ratios(plain)
    return [
        item.label,
        f"{item.peak_bytes / MIB:.1f}",
        f"{item.predicted_peak_bytes / MIB:.1f}",
        f"{item.peak_bytes / item.predicted_peak_bytes:.3f}",
        f"{item.median_seconds:.3f}",
        f"{item.predicted_seconds:.3f}",
        f"{item.median_seconds / item.predicted_seconds:.3f}",
        f"{statistics.median(ratios):.3f} ({min(ratios):.2f} to {max(ratios):.2f})",
        f"{item.offloaded_bytes / MIB:.1f}",
    ]


if __name__ == "__main__":
    main()
