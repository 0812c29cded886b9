"""Measures activation peak, peak RSS and step time of a model, with fxoffload and without.

    python -m benchmarks.activation_peak --model gpt --output results.jsonl

Peak and step time (forward and backward, no optimizer) are of both variants in one process, and so
of one schedule. Step time is a ratio of steps in turn. The process keeps freed memory
(fresh_process.KEEP_FREED_MEMORY). Resident memory and the time to compile are measured with each
variant in a fresh process, where freed memory goes back to the system (RETURN_FREED_MEMORY).
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.fresh_process import KEEP_FREED_MEMORY, RETURN_FREED_MEMORY, Record, run_fresh
from benchmarks.measure import peak_rss_bytes, record_highest_step
from benchmarks.model_arguments import BUDGET_HELP, LAYERS, ModelArguments, describe_sizes
from benchmarks.runner import Benchmark, Show, Table, option
from benchmarks.trainer import Compilation, Workload, pair_steps, prove_transfers
from fxoffload.sizes import MIB

PEAK_RATIO_LIMIT = 0.35
STEP_RATIO_LIMIT = 1.03


@dataclass(frozen=True, slots=True)
class PeakArguments(ModelArguments):
    """The command line."""

    layers: int = LAYERS(12)
    steps: int = option(5, "pairs of timed steps")
    memory_budget: str | None = option(None, BUDGET_HELP)


def measure_alone(workload: Workload, compilation: Compilation) -> Iterator[Record]:
    """In a fresh process: the resident memory of one variant, and what its compilation took."""
    trainer = workload.make_trainer(compilation)
    _, seconds = trainer.step()
    trained = (p for p in trainer.model.parameters() if p.requires_grad)
    yield {
        "gradient_bytes": sum(p.numel() * p.element_size() for p in trained),
        "rss_bytes": peak_rss_bytes(),
        "compile_seconds": trainer.first_seconds - seconds,
        "pass_seconds": trainer.passes.seconds,
    }


def measure_paired(workload: Workload, pairs: int) -> Iterator[Record]:
    """In a fresh process: interleaved steps of both variants, and then their peaks."""
    plain, moved = workload.make_trainer("plain"), workload.make_trainer("fxoffload")
    yield from pair_steps(plain, moved, pairs)
    plain_bytes, moved_bytes = (
        record_highest_step(trainer.compute_loss, trainer.model, trainer.tokens.device).peak_bytes
        for trainer in (plain, moved)
    )
    schedule = moved.schedule
    yield {
        "plain": {"peak_bytes": plain_bytes},
        "moved": {
            "peak_bytes": moved_bytes,
            "predicted_peak_bytes": schedule.peak_bytes if schedule else None,
            "predicted_seconds": schedule.step_seconds if schedule else None,
            "plans": [str(schedule)],
            "proof": prove_transfers(moved),
        },
    }


def measure(arguments: PeakArguments, show: Show) -> Record:
    """Run the three processes, one after the other; each compiles from an empty cache."""
    workload = arguments.make_workload(arguments.layers)

    def run(
        label: str, variables: Mapping[str, str], work: Callable[..., Iterator[Record]], *args: Any
    ) -> list[Record]:
        show(label)
        with tempfile.TemporaryDirectory() as cache:
            variables = {"TORCHINDUCTOR_CACHE_DIR": cache, **variables}
            return list(run_fresh(variables, work, workload, *args))

    (plain,) = run("without fxoffload", RETURN_FREED_MEMORY, measure_alone, "plain")
    (moved,) = run("with fxoffload", RETURN_FREED_MEMORY, measure_alone, "fxoffload")
    *pairs, peaks = run("peaks and steps", KEEP_FREED_MEMORY, measure_paired, arguments.steps)
    plain, moved = plain | peaks["plain"], moved | peaks["moved"]
    ratios = [pair["fxoffload_seconds"] / pair["plain_seconds"] for pair in pairs]
    spread = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
    return {
        "peak_ratio": moved["peak_bytes"] / plain["peak_bytes"],
        "step_ratio": spread,
        "plain": plain,
        "moved": moved,
        "pairs": pairs,
    }


def tabulate(record: Record) -> list[Table]:
    """Both variants side by side."""
    plain, moved, pairs = record["plain"], record["moved"], record["pairs"]
    rows = [["", "plain", "fxoffload", "ratio"]]

    def compare(name: str, left: float, right: float, unit: str) -> None:
        rows.append([name, f"{left:.2f} {unit}", f"{right:.2f} {unit}", f"{right / left:.3f}"])

    def add(name: str, text: str, ratio: str = "") -> None:
        rows.append([name, "", text, ratio])

    compare("activation peak", plain["peak_bytes"] / MIB, moved["peak_bytes"] / MIB, "MiB")
    add("  predicted", f"{moved['predicted_peak_bytes'] / MIB:.2f} MiB")
    compare("peak RSS", plain["rss_bytes"] / MIB, moved["rss_bytes"] / MIB, "MiB")
    plain_seconds, moved_seconds = (
        statistics.median(pair[f"{variant}_seconds"] for pair in pairs)
        for variant in ("plain", "fxoffload")
    )
    compare("step, median", plain_seconds, moved_seconds, "s")
    predicted_seconds = moved.get("predicted_seconds")  # Records of before have none.
    if predicted_seconds is not None:
        add("  predicted", f"{predicted_seconds:.2f} s")
    ratio = record["step_ratio"]
    add("step, pairs", f"{ratio['min']:.3f} to {ratio['max']:.3f}", f"{ratio['median']:.3f}")
    for name in ("offloaded", "written", "read", "forwarded"):
        nbytes = statistics.fmean(pair["statistics"][f"{name}_bytes"] for pair in pairs)
        add(f"{name} in a step", f"{nbytes / MIB:.2f} MiB")
    exposed = statistics.fmean(pair["statistics"]["exposed_seconds"] for pair in pairs)
    add("exposed in a step", f"{exposed:.3f} s")
    compare("compile", plain["compile_seconds"], moved["compile_seconds"], "s")
    share = moved["pass_seconds"] / moved["compile_seconds"]
    add("  of it graph passes", f"{moved['pass_seconds']:.2f} s", f"{share:.3f}")
    return [Table(rows, describe_sizes(record))]


def find_misses(record: Record) -> list[str]:
    """The limits of the project, where one is missed."""
    peak_ratio, step_ratio = record["peak_ratio"], record["step_ratio"]["median"]
    if peak_ratio <= PEAK_RATIO_LIMIT and step_ratio <= STEP_RATIO_LIMIT:
        return []
    return [
        f"beyond the limits: peak ratio {peak_ratio:.3f} (<= {PEAK_RATIO_LIMIT}), "
        f"step ratio {step_ratio:.3f} (<= {STEP_RATIO_LIMIT})"
    ]


main = Benchmark(
    "activation_peak", __doc__, PeakArguments, measure, tabulate, find_misses=find_misses
)

if __name__ == "__main__":
    main()
