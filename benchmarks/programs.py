"""Measures steps that are made of many graphs: is one budget kept for all of them, at what price?

    python -m benchmarks.programs --program blocks --budgets none 0.7 0.35 --peers

blocks: each layer is compiled by itself. breaks: the model is compiled as one, with a graph break
behind every third layer. whole: the model is one graph. Plain Inductor and fxoffload at each budget
run in one fresh process, in turn; with --peers also what others offer, and with --beside plain
Inductor beside the same transfers, see variants.py. A second table compares the measured peaks and
steps with the predicted ones. `--report --output benchmarks/results/rok.jsonl` prints both tables
of the records of rok.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks.fresh_process import Record
from benchmarks.model_arguments import LAYERS, ModelArguments
from benchmarks.runner import Benchmark, Show, Table, option
from benchmarks.trainer import Program
from benchmarks.variant_tables import Kind, Share, parse_share, tabulate_variants
from benchmarks.variants import PLAIN, Variant, run_variants

HEADINGS = (
    "budget MiB",
    "peak MiB",
    "predicted MiB",
    "of plain",
    "step / plain (range)",
    "moved MiB",
    "exposed s",
)
TRUTH_HEADINGS = (
    "peak MiB",
    "predicted MiB",
    "peak / predicted",
    "step s",
    "predicted s",
    "step / predicted",
    "step / plain (range)",
    "moved MiB",
)
PEERS: tuple[Kind, ...] = ("checkpoint", "hooks", "save_on_cpu")


@dataclass(frozen=True, slots=True)
class ProgramArguments(ModelArguments):
    """The command line."""

    layers: int = LAYERS(12)
    program: Program = option("blocks", choices=["blocks", "breaks", "whole"])
    budgets: Sequence[Share] = option(
        (None, 0.7, 0.5, 0.35, "min"), "shares of plain's peak, none or min", type=parse_share
    )
    microbatches: int = option(1, "of a step; several run in the order 1F1B")
    peers: bool = option(False, "measure checkpoint, hooks and save_on_cpu, too")
    beside: bool = option(False, "measure plain while another process moves the bytes of a budget")
    rounds: int = option(5)


def measure(arguments: ProgramArguments, show: Show) -> Record:
    """The variants: plain, fxoffload at each budget, and peers."""
    ours = (Variant("fxoffload", share) for share in arguments.budgets)
    beside = (Variant("beside", share) for share in arguments.budgets if arguments.beside)
    peers = map(Variant, PEERS if arguments.peers else ())
    program, microbatches = arguments.program, arguments.microbatches
    variants = [
        replace(each, program=program, microbatches=microbatches)
        for each in (PLAIN, *ours, *beside, *peers)
    ]
    workload = arguments.make_workload(arguments.layers)
    return {"variants": run_variants(workload, variants, arguments.rounds, show)}


def tabulate(record: Record) -> list[Table]:
    """A row for each variant; then predictions of fxoffload against measurements."""
    plain, *others = record["variants"]
    predicted = [plain, *(item for item in others if item["predicted_peak_bytes"] is not None)]
    truth = tabulate_variants({**record, "variants": predicted}, TRUTH_HEADINGS)
    return [tabulate_variants(record, HEADINGS), truth]


main = Benchmark("programs", __doc__, ProgramArguments, measure, tabulate)

if __name__ == "__main__":
    main()
