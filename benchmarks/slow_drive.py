"""Steps on drives slower than what hides everything, against what compute and drive allow.

    python benchmarks/slow_drive.py --model gpt

The first process measures the compute seconds of a plain step and the bytes that cross the drive
when everything moves, both ways. At that many bytes in so many seconds all of it could hide; the
others run at a share of that bandwidth, in each direction (limited_engine.py). The
floor of a step is the larger of its compute seconds and of its bytes over the bandwidth. Under a
budget those are the bytes both ways, as what moves is written before what needs its room is read
back; without one reads run beside writes, and each direction counts alone. With a budget, "moving
only" is the plan that may not recompute: the planner should recompute where that is faster than it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from fxoffload.planner.plan import describe_cut

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
from benchmarks.variants import PLAIN, Measured, Variant, parse_measured, run_variants

NAME = "slow_drive"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the table and append the record."""
    run_benchmark(NAME, build_parser(), argv, measure, tabulate)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = make_parser(__doc__)
    add_model_arguments(parser, layers=4)
    add = parser.add_argument
    add("--shares", nargs="+", type=float, default=[0.5, 0.25, 0.1], help="of that bandwidth")
    add("--budget", type=float, default=0.5, help="of plain's peak")
    add("--rounds", type=int, default=5, help="timed steps of each")
    add_record_arguments(parser, NAME)
    return parser


def measure(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """All variants at each bandwidth."""
    lowest = Variant("fxoffload", "min")
    plain, moved = run_variants(arguments, [PLAIN, lowest], console, rounds=arguments.rounds)
    crossing_bytes = 2 * moved.offloaded_bytes
    hiding = crossing_bytes / plain.median_seconds
    variants = [
        PLAIN,
        Variant("fxoffload"),
        lowest,
        Variant("fxoffload", arguments.budget),
        Variant("fxoffload", arguments.budget, recomputes=False),
    ]
    drives: list[dict[str, Any]] = []
    for share in arguments.shares:
        found = run_variants(
            arguments, variants, console, rounds=arguments.rounds, bytes_per_second=share * hiding
        )
        drives.append(
            {
                "share": share,
                "bytes_per_second": share * hiding,
                "variants": [asdict(item) for item in found],
            }
        )
    return {"crossing_bytes": crossing_bytes, "hiding_bytes_per_second": hiding, "drives": drives}


def tabulate(record: Record) -> Rows:
    """A row for each variant at each bandwidth."""
    rows = [["drive MiB/s", "variant", "peak MiB", "crossing MiB", "step s", "floor s"]]
    rows[0] += ["step / floor", "exposed s", "recomputes"]
    for drive in record["drives"]:
        plain, *others = parse_measured(drive)
        for item in (plain, *others):
            speed = f"{drive['bytes_per_second'] / MIB:.1f} ({drive['share']})"
            if item.refused is not None:
                rows.append([speed, item.label, "no plan fits", *[""] * 6])
                continue
            floor = find_floor_seconds(item, plain, drive["bytes_per_second"])
            rows.append(
                [
                    speed,
                    item.label,
                    f"{item.peak_bytes / MIB:.1f}",
                    f"{(item.written_bytes + item.read_bytes) / MIB:.1f}",
                    f"{item.median_seconds:.3f}",
                    f"{floor:.3f}",
                    f"{item.median_seconds / floor:.3f}",
                    f"{item.exposed_seconds:.3f}",
                    describe_cut(item.cut),
                ]
            )
    return rows


def find_floor_seconds(item: Measured, plain: Measured, bytes_per_second: float) -> float:
    """What neither compute nor the drive can do in less."""
    directions = item.written_bytes, item.read_bytes
    queued_bytes = max(directions) if item.share is None else sum(directions)
    return max(plain.median_seconds, queued_bytes / bytes_per_second)


if __name__ == "__main__":
    main()
