"""Measures steps on slow drives against the least time that compute and drive allow.

    python -m benchmarks.slow_drive --model gpt

The first process measures the compute seconds of a plain step, and the bytes that cross the drive,
both ways, if every value moves. At a bandwidth of these bytes per these seconds, all transfers
could hide; the other processes run at a share of it in each direction (limited_engine.py). The
floor of a step is its compute seconds, or its bytes over the bandwidth if that is more. Under a
budget the bytes of both directions are added, as values are written before others are read into
their room; without a budget reads run beside writes, and the larger direction counts. "moving
only" is a plan under the budget that must not recompute: the planner should recompute if that is
faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.fresh_process import Record
from benchmarks.model_arguments import LAYERS, ModelArguments
from benchmarks.runner import (
    Benchmark,
    Show,
    Table,
    format_mib,
    format_number,
    format_ratio,
    option,
)
from benchmarks.variant_tables import Measured, parse_measured, tabulate_variants
from benchmarks.variants import PLAIN, Variant, run_variants

HEADINGS = (
    "peak MiB",
    "crossing MiB",
    "step s",
    "floor s",
    "step / floor",
    "exposed s",
    "recomputes",
)


@dataclass(frozen=True, slots=True)
class DriveArguments(ModelArguments):
    """The command line."""

    layers: int = LAYERS(4)
    shares: Sequence[float] = option((0.5, 0.25, 0.1), "of that bandwidth")
    budget: float = option(0.5, "of plain's peak")
    rounds: int = option(5, "timed steps of each")


def measure(arguments: DriveArguments, show: Show) -> Record:
    """All variants at each bandwidth."""
    workload = arguments.make_workload(arguments.layers)
    lowest = Variant("fxoffload", "min")
    first = run_variants(workload, [PLAIN, lowest], arguments.rounds, show)
    plain, moved = parse_measured({"variants": first})
    crossing_bytes = 2 * moved.offloaded_bytes
    hiding = crossing_bytes / plain.median_seconds
    variants = [
        PLAIN,
        Variant("fxoffload"),
        lowest,
        Variant("fxoffload", arguments.budget),
        Variant("fxoffload", arguments.budget, recomputes=False),
    ]
    drives: list[Record] = []
    for share in arguments.shares:
        speed = share * hiding
        found = run_variants(workload, variants, arguments.rounds, show, bytes_per_second=speed)
        drives.append({"share": share, "bytes_per_second": speed, "variants": found})
    return {"crossing_bytes": crossing_bytes, "hiding_bytes_per_second": hiding, "drives": drives}


def tabulate(record: Record) -> list[Table]:
    """A table for each bandwidth: measured steps, and the least that they could take."""
    return [tabulate_drive({**record, **drive}) for drive in record["drives"]]


def tabulate_drive(record: Record) -> Table:
    """A row for each variant."""
    speed = record["bytes_per_second"]

    def describe_floor(item: Measured, plain: Measured) -> str:
        return format_number(find_floor_seconds(item, plain, speed))

    def compare(item: Measured, plain: Measured) -> str:
        return format_ratio(item.median_seconds, find_floor_seconds(item, plain, speed))

    place = f"; a drive of {format_mib(speed)} MiB/s ({record['share']})"
    columns = {"floor s": describe_floor, "step / floor": compare}
    return tabulate_variants(record, HEADINGS, columns, place)


def find_floor_seconds(item: Measured, plain: Measured, bytes_per_second: float) -> float:
    """The least seconds that compute and the drive allow."""
    directions = item.written_bytes, item.read_bytes
    queued_bytes = max(directions) if item.share is None else sum(directions)
    return max(plain.median_seconds, queued_bytes / bytes_per_second)


main = Benchmark("slow_drive", __doc__, DriveArguments, measure, tabulate)

if __name__ == "__main__":
    main()
