"""Compares the activation peak and the step time that plans predict with what is measured.

    python -m benchmarks.planner_truth --model bert
    python -m benchmarks.planner_truth --report --output benchmarks/results/rok.jsonl

Budgets are shares of plain Inductor's activation peak, "none" and "min". See variants.py for how
they are measured. rok.py measures the same for more variants, and its records give these tables,
too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.fresh_process import Record
from benchmarks.model_arguments import LAYERS, ModelArguments
from benchmarks.runner import Benchmark, Show, Table, option
from benchmarks.variant_tables import Share, parse_share, tabulate_variants
from benchmarks.variants import PLAIN, Variant, run_variants

HEADINGS = (
    "peak MiB",
    "predicted MiB",
    "peak / predicted",
    "step s",
    "predicted s",
    "step / predicted",
    "step / plain (range)",
    "moved MiB",
)
BUDGETS = (None, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, "min")


@dataclass(frozen=True, slots=True)
class TruthArguments(ModelArguments):
    """The command line."""

    layers: int = LAYERS(4)
    budgets: Sequence[Share] = option(BUDGETS, type=parse_share)
    rounds: int = option(9, "timed steps of each")


def measure(arguments: TruthArguments, show: Show) -> Record:
    """The variants: plain, and fxoffload at each budget."""
    variants = [PLAIN, *(Variant("fxoffload", share) for share in arguments.budgets)]
    workload = arguments.make_workload(arguments.layers)
    return {"variants": run_variants(workload, variants, arguments.rounds, show)}


def tabulate(record: Record) -> list[Table]:
    """A row for each budget; rok.py has other variants too."""
    plain, *others = record["variants"]
    found = [plain, *(item for item in others if item["kind"] == "fxoffload")]
    return [tabulate_variants({**record, "variants": found}, HEADINGS)]


main = Benchmark("planner_truth", __doc__, TruthArguments, measure, tabulate)

if __name__ == "__main__":
    main()
