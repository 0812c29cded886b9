"""Compile time with fxoffload over that of plain Inductor: from empty caches, and from full ones.

    python benchmarks/compile_time.py --model gpt --memory-budget 300MiB --output results.jsonl

Every compilation is a fresh process. In each round both variants start from an empty cache, then
each again in a new process from the cache that it filled, in turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks.fresh_process import ChildFailed, run_fresh
from benchmarks.measure import find_cpu_model
from benchmarks.models import BUILDERS, Shape

HEADS = 8
LIMITS = {"cold": 1.15, "warm": 1.10}
VARIANTS = ("plain", "fxoffload")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print a table and a JSON line; with --check exit 1 beyond the limits."""
    console = Console()
    arguments = build_parser().parse_args(argv)
    try:
        rounds = [measure_round(arguments, console) for _ in range(arguments.rounds)]
    except ChildFailed as failure:
        console.print(str(failure), style="red", markup=False, soft_wrap=True)
        sys.exit(1)
    ratios = {start: find_ratios(rounds, start) for start in LIMITS}
    console.print(build_table(arguments, rounds, ratios))
    record = {
        "benchmark": "compile_time",
        **{key: value for key, value in vars(arguments).items() if key not in ("output", "check")},
        "torch": torch.__version__,
        "cpu": find_cpu_model(),
        "ratios": {start: statistics.median(values) for start, values in ratios.items()},
        "rounds": rounds,
    }
    print(json.dumps(record))
    if arguments.output is not None:
        with arguments.output.open("a") as file:
            file.write(json.dumps(record) + "\n")
    if arguments.check and any(record["ratios"][start] > LIMITS[start] for start in LIMITS):
        console.print(f"beyond the limits {LIMITS}")
        sys.exit(1)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--model", choices=list(BUILDERS), default="gpt")
    add("--layers", type=int, default=12, help="of a T5: half of them encode, half decode")
    add("--hidden", type=int, default=512)
    add("--batch", type=int, default=8)
    add("--length", type=int, default=512)
    add("--threads", type=int, default=2)
    add("--rounds", type=int, default=3)
    add("--memory-budget", help='"8GiB", "min", or nothing: what hides behind compute')
    add("--compiler", choices=["inductor", "eager"], default="inductor")
    add("--output", type=Path, help="file to which the JSON line is appended")
    add("--check", action="store_true", help="exit with status 1 beyond the limits of the project")
    return parser


def measure_round(arguments: argparse.Namespace, console: Console) -> dict[str, dict[str, Any]]:
    """For each variant the records of its "cold" and its "warm" compilation."""
    shape = Shape(arguments.layers, arguments.hidden, HEADS, arguments.batch, arguments.length)
    options = {"memory_budget": arguments.memory_budget, "compiler": arguments.compiler}
    script = Path(__file__).with_name("compile_run.py")
    found: dict[str, dict[str, Any]] = {variant: {} for variant in VARIANTS}
    with tempfile.TemporaryDirectory() as caches:
        for start in LIMITS:
            for variant in VARIANTS:
                settings = {
                    "model": arguments.model,
                    "shape": asdict(shape),
                    "threads": arguments.threads,
                    "variant": variant,
                    "options": options,
                }
                variables = {"TORCHINDUCTOR_CACHE_DIR": f"{caches}/{variant}"}
                with console.status(f"{start}, {variant}"):
                    (found[variant][start],) = run_fresh(script, settings, environment=variables)
    return found


def find_ratios(rounds: Sequence[dict[str, dict[str, Any]]], start: str) -> list[float]:
    """Compile seconds of each round, with fxoffload over plain."""
    return [
        each["fxoffload"][start]["compile_seconds"] / each["plain"][start]["compile_seconds"]
        for each in rounds
    ]


def build_table(
    arguments: argparse.Namespace,
    rounds: Sequence[dict[str, dict[str, Any]]],
    ratios: dict[str, list[float]],
) -> Table:
    """Medians over the rounds."""
    table = Table(
        title=f"compile time of {arguments.model}: {arguments.layers} layers x {arguments.hidden}, "
        f"memory_budget {arguments.memory_budget}"
    )
    for heading in ("caches", "plain s", "fxoffload s", "ratio", "rounds", "passes s"):
        table.add_column(heading, justify="right")
    for start, values in ratios.items():

        def median(variant: str, field: str, start: str = start) -> float:
            return statistics.median(each[variant][start][field] for each in rounds)

        table.add_row(
            start,
            f"{median('plain', 'compile_seconds'):.1f}",
            f"{median('fxoffload', 'compile_seconds'):.1f}",
            f"{statistics.median(values):.3f}",
            f"{min(values):.3f} to {max(values):.3f}",
            f"{median('fxoffload', 'pass_seconds'):.2f}",
        )
    return table


if __name__ == "__main__":
    main()
