"""Compares compile time with fxoffload and with plain Inductor, from empty and from full caches.

    python -m benchmarks.compile_time --model gpt --memory-budget 300MiB

Every compilation is a fresh process. In each round both variants start from an empty cache, then
each again, in a new process, from the cache that it filled.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import get_args

import fxoffload
from benchmarks.fresh_process import Record, run_fresh
from benchmarks.model_arguments import BUDGET_HELP, LAYERS, ModelArguments, describe_sizes
from benchmarks.runner import Benchmark, Show, Table, describe_spread, option
from benchmarks.trainer import Compilation, Workload

STARTS = ("cold", "warm")
VARIANTS: tuple[Compilation, ...] = get_args(Compilation)


@dataclass(frozen=True, slots=True)
class CompileArguments(ModelArguments):
    """The command line."""

    layers: int = LAYERS(12)
    memory_budget: str | None = option(None, BUDGET_HELP)
    rounds: int = option(3)


def measure_compilation(workload: Workload, compilation: Compilation) -> Iterator[Record]:
    """In a fresh process: the seconds of the first step minus those of the second."""
    trainer = workload.make_trainer(compilation)
    fxoffload.reset_statistics()
    _, seconds = trainer.step()
    done = fxoffload.statistics()
    yield {
        "compile_seconds": trainer.first_seconds - seconds,
        "core_seconds": trainer.first_core_seconds,
        "pass_seconds": trainer.passes.seconds,
        "plans": len(trainer.passes.plans),
        # Which of the caller's tensors turned out to be kept anyway depends on the drive.
        "offloaded_bytes": done.offloaded_bytes + done.kept_bytes,
    }


def measure(arguments: CompileArguments, show: Show) -> Record:
    """The rounds: for each variant the records of its cold and its warm compilation."""
    workload = arguments.make_workload(arguments.layers)
    rounds: list[dict[str, Record]] = []
    for number in range(arguments.rounds):
        found: dict[str, Record] = {variant: {} for variant in VARIANTS}
        with tempfile.TemporaryDirectory() as caches:
            for start, variant in product(STARTS, VARIANTS):
                show(f"round {number + 1}: {start}, {variant}")
                variables = {"TORCHINDUCTOR_CACHE_DIR": f"{caches}/{variant}"}
                records = run_fresh(variables, measure_compilation, workload, variant)
                (found[variant][start],) = records
        rounds.append(found)
    return {"rounds": rounds}


def tabulate(record: Record) -> list[Table]:
    """A row for empty caches and one for full ones: medians over the rounds."""

    def median(records: Sequence[Record], name: str, digits: int) -> str:
        return f"{statistics.median(each[name] for each in records):.{digits}f}"

    rows = [["caches", "plain s", "fxoffload s", "ratio (range)", "graph passes s", "moved bytes"]]
    for start in STARTS:
        plain, moved = ([each[variant][start] for each in record["rounds"]] for variant in VARIANTS)
        pairs = zip(moved, plain, strict=True)
        ratios = [own["compile_seconds"] / its["compile_seconds"] for own, its in pairs]
        seconds = (median(each, "compile_seconds", 1) for each in (plain, moved))
        passes, nbytes = median(moved, "pass_seconds", 2), median(moved, "offloaded_bytes", 0)
        rows.append([start, *seconds, describe_spread(ratios), passes, nbytes])
    return [Table(rows, describe_sizes(record))]


main = Benchmark("compile_time", __doc__, CompileArguments, measure, tabulate)

if __name__ == "__main__":
    main()
