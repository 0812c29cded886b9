"""Compile time with fxoffload over that of plain Inductor: from empty caches, and from full ones.

    python benchmarks/compile_time.py --model gpt --memory-budget 300MiB

Every compilation is a fresh process. In each round both variants start from an empty cache, then
each again, in a new process, from the cache that it filled.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks.command_line import (
    HEADS,
    Record,
    Rows,
    add_model_arguments,
    add_record_arguments,
    find_options,
    make_parser,
    run_benchmark,
)
from benchmarks.fresh_process import run_fresh
from benchmarks.models import Shape

NAME = "compile_time"
STARTS = ("cold", "warm")
VARIANTS = ("plain", "fxoffload")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the table and append the record."""
    run_benchmark(NAME, build_parser(), argv, measure, tabulate)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = make_parser(__doc__)
    add_model_arguments(parser)
    add = parser.add_argument
    add("--memory-budget", help='"8GiB", "min", or nothing: what hides behind compute')
    add("--rounds", type=int, default=3)
    add_record_arguments(parser, NAME)
    return parser


def measure(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """The rounds: for each variant the records of its cold and its warm compilation."""
    with console.status("") as status:
        rounds: list[dict[str, Any]] = []
        for number in range(arguments.rounds):
            found: dict[str, Any] = {variant: {} for variant in VARIANTS}
            with tempfile.TemporaryDirectory() as caches:
                for start in STARTS:
                    for variant in VARIANTS:
                        status.update(f"round {number + 1}: {start}, {variant}")
                        cache = Path(caches) / variant
                        found[variant][start] = measure_compilation(arguments, variant, cache)
            rounds.append(found)
    return {"rounds": rounds}


def measure_compilation(arguments: argparse.Namespace, variant: str, cache: Path) -> dict[str, Any]:
    """What a fresh process reports that compiles `variant` over `cache`; see compile_run.py."""
    shape = Shape(arguments.layers, arguments.hidden, HEADS, arguments.batch, arguments.length)
    settings: dict[str, Any] = {
        "model": arguments.model,
        "shape": asdict(shape),
        "device": arguments.device,
        "threads": arguments.threads,
        "variant": variant,
        "options": find_options(arguments),
    }
    script = Path(__file__).with_name("compile_run.py")
    variables = {"TORCHINDUCTOR_CACHE_DIR": str(cache)}
    (record,) = run_fresh(script, settings, environment=variables)
    return record


def tabulate(record: Record) -> Rows:
    """A row for empty caches and one for full ones: medians over the rounds."""
    rounds: list[dict[str, Any]] = record["rounds"]
    rows = [["caches", "plain s", "fxoffload s", "ratio (range)", "graph passes s", "moved bytes"]]
    for start in STARTS:
        plain, moved = ([each[variant][start] for each in rounds] for variant in VARIANTS)
        ratios = [
            its["compile_seconds"] / own["compile_seconds"]
            for own, its in zip(plain, moved, strict=True)
        ]
        rows.append(
            [
                start,
                f"{find_median(plain, 'compile_seconds'):.1f}",
                f"{find_median(moved, 'compile_seconds'):.1f}",
                f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})",
                f"{find_median(moved, 'pass_seconds'):.2f}",
                f"{find_median(moved, 'offloaded_bytes'):.0f}",
            ]
        )
    return rows


def find_median(records: Sequence[dict[str, Any]], name: str) -> float:
    """Of the numbers called `name`."""
    return statistics.median(each[name] for each in records)


if __name__ == "__main__":
    main()
