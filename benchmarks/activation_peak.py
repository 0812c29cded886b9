"""Activation peak, peak RSS and step time of a transformer, with fxoffload and without.

    python benchmarks/activation_peak.py --model gpt --output results.jsonl

Memory is measured with each variant in a fresh process, where freed memory goes back to the system
(fresh_process.RETURN_FREED_MEMORY). Step time (forward and backward, no optimizer) is a ratio of
paired steps: both variants in one process that keeps freed memory (KEEP_FREED_MEMORY), one step of
each in turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fxoffload import ConfigError, OffloadConfig

sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks.activation_run import RunSettings
from benchmarks.command_line import (
    HEADS,
    add_model_arguments,
    check_model_arguments,
    describe_run,
    find_options,
    make_parser,
)
from benchmarks.fresh_process import (
    KEEP_FREED_MEMORY,
    RETURN_FREED_MEMORY,
    ChildFailed,
    run_fresh,
)
from benchmarks.measure import MIB
from benchmarks.models import Shape

PEAK_RATIO_LIMIT = 0.35
STEP_RATIO_LIMIT = 1.03


@dataclass(frozen=True, slots=True)
class Results:
    """The records that the three processes reported."""

    plain: dict[str, Any]
    moved: dict[str, Any]
    pairs: list[dict[str, Any]]

    @property
    def peak_ratio(self) -> float:
        """Activation peak with fxoffload over that without."""
        return self.moved["peak_bytes"] / self.plain["peak_bytes"]

    @property
    def step_ratios(self) -> list[float]:
        """Seconds of each pair of steps, with fxoffload over without."""
        return [pair["fxoffload_seconds"] / pair["plain_seconds"] for pair in self.pairs]

    def median(self, field: str) -> float:
        """Of `field` over the pairs."""
        return statistics.median(pair[field] for pair in self.pairs)

    def mean_counter(self, counter: str) -> float:
        """A counter of fxoffload, in a step."""
        return statistics.fmean(pair["statistics"][counter] for pair in self.pairs)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print a table and a JSON line; with --check exit 1 beyond the limits."""
    console = Console()
    parser = build_parser()
    arguments = parser.parse_args(argv)
    check_model_arguments(parser, arguments, [arguments.layers])
    try:
        config = OffloadConfig(**find_options(arguments))
        results = measure(arguments, console)
    except ConfigError as error:
        parser.error(str(error))
    except ChildFailed as failure:
        console.print(str(failure), style="red", markup=False, soft_wrap=True)
        sys.exit(1)
    console.print(build_table(arguments, results))
    line = json.dumps(build_record(arguments, config, results))
    print(line)
    if arguments.output is not None:
        with arguments.output.open("a") as file:
            file.write(line + "\n")
    step_ratio = statistics.median(results.step_ratios)
    if arguments.check and not (
        results.peak_ratio <= PEAK_RATIO_LIMIT and step_ratio <= STEP_RATIO_LIMIT
    ):
        console.print(
            f"beyond the limits: peak ratio {results.peak_ratio:.3f} (<= {PEAK_RATIO_LIMIT}), "
            f"step ratio {step_ratio:.3f} (<= {STEP_RATIO_LIMIT})"
        )
        sys.exit(1)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = make_parser(__doc__)
    add_model_arguments(parser)
    add = parser.add_argument
    add("--steps", type=int, default=5, help="pairs of timed steps")
    add("--memory-budget", help='"8GiB", "min", or nothing: what hides behind compute')
    add("--output", type=Path, help="file to which the JSON line is appended")
    add("--check", action="store_true", help="exit with status 1 beyond the limits of the project")
    return parser


def measure(arguments: argparse.Namespace, console: Console) -> Results:
    """Run the three processes, one after the other; each compiles from an empty cache."""
    shape = Shape(arguments.layers, arguments.hidden, HEADS, arguments.batch, arguments.length)

    def run(label: str, **choice: Any) -> list[dict[str, Any]]:
        settings = RunSettings(
            model=arguments.model,
            shape=asdict(shape),
            steps=arguments.steps,
            threads=arguments.threads,
            device=arguments.device,
            options=find_options(arguments),
            **choice,
        )
        script = Path(__file__).with_name("activation_run.py")
        with tempfile.TemporaryDirectory() as cache, console.status(label):
            alone = choice["work"] == "alone"
            variables = {"TORCHINDUCTOR_CACHE_DIR": cache}
            variables |= RETURN_FREED_MEMORY if alone else KEEP_FREED_MEMORY
            return list(run_fresh(script, asdict(settings), environment=variables))

    (plain,) = run("memory without fxoffload", work="alone", variant="plain")
    (moved,) = run("memory with fxoffload", work="alone", variant="fxoffload")
    return Results(plain, moved, run("step times", work="paired"))


def build_table(arguments: argparse.Namespace, results: Results) -> Table:
    """Both variants side by side."""
    plain, moved = results.plain, results.moved
    table = Table(
        title=f"{arguments.model}: {arguments.layers} layers x {arguments.hidden}, "
        f"batch {arguments.batch} x {arguments.length}, {arguments.threads} threads"
    )
    table.add_column("")
    for heading in ("plain", "fxoffload", "ratio"):
        table.add_column(heading, justify="right")

    def add(name: str, left: float, right: float, unit: str) -> None:
        table.add_row(name, f"{left:.2f} {unit}", f"{right:.2f} {unit}", f"{right / left:.3f}")

    add("activation peak", plain["peak_bytes"] / MIB, moved["peak_bytes"] / MIB, "MiB")
    table.add_row("  predicted", "", f"{moved['predicted_peak_bytes'] / MIB:.2f} MiB", "")
    add("peak RSS", plain["rss_bytes"] / MIB, moved["rss_bytes"] / MIB, "MiB")
    add("step, median", results.median("plain_seconds"), results.median("fxoffload_seconds"), "s")
    ratios = results.step_ratios
    spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
    table.add_row("step, pairs", "", spread, f"{statistics.median(ratios):.3f}")
    for name in ("offloaded", "written", "read", "forwarded"):
        moved_bytes = results.mean_counter(f"{name}_bytes")
        table.add_row(f"{name} in a step", "", f"{moved_bytes / MIB:.2f} MiB", "")
    table.add_row("exposed in a step", "", f"{results.mean_counter('exposed_seconds'):.3f} s", "")
    add("compile", plain["compile_seconds"], moved["compile_seconds"], "s")
    share = moved["pass_seconds"] / moved["compile_seconds"]
    table.add_row("  of it graph passes", "", f"{moved['pass_seconds']:.2f} s", f"{share:.3f}")
    return table


def build_record(
    arguments: argparse.Namespace, config: OffloadConfig, results: Results
) -> dict[str, Any]:
    """Everything that was measured, and on what."""
    ratios = results.step_ratios
    return {
        **describe_run("activation_peak", arguments, config),
        "peak_ratio": results.peak_ratio,
        "step_ratio": {
            "median": statistics.median(ratios),
            "min": min(ratios),
            "max": max(ratios),
        },
        **asdict(results),
    }


if __name__ == "__main__":
    main()
