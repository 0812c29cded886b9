"""Measures steps on slow drives against the least time that compute and drive allow.

    python -m benchmarks.slow_drive --model gpt

The first process measures the compute seconds of a plain step and the bytes that cross the drive
when everything moves, both ways. At that many bytes in so many seconds all of it could hide; the
others run at a share of that bandwidth, in each direction (limited_engine.py). The floor of a step
is the larger of its compute seconds and of its bytes over the bandwidth. Under a budget those are
the bytes both ways, as what moves is written before what needs its room is read back; without one
reads run beside writes, and each direction counts alone. With a budget, "moving only" is the plan
that may not recompute: the planner should recompute where that is faster than it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from benchmarks.fresh_process import Record
from benchmarks.measure import MIB
from benchmarks.model_arguments import LAYERS, KeptArguments, show_rows
from benchmarks.runner import Benchmark, Rows, Show, option
from benchmarks.variants import PLAIN, Measured, Variant, parse_measured, run_variants
from fxoffload.planner.plan import describe_cut

HEADINGS = ["drive MiB/s", "variant", "peak MiB", "crossing MiB", "step s", "floor s"]


@dataclass(frozen=True, slots=True)
class DriveArguments(KeptArguments):
    """The command line."""

    layers: int = LAYERS(4)
    shares: Sequence[float] = option((0.5, 0.25, 0.1), "of that bandwidth")
    budget: float = option(0.5, "of plain's peak")
    rounds: int = option(5, "timed steps of each")


def measure(arguments: DriveArguments, show: Show) -> Record:
    """All variants at each bandwidth."""
    workload = arguments.make_workload(arguments.layers)
    lowest = Variant("fxoffload", "min")
    plain, moved = run_variants(workload, [PLAIN, lowest], arguments.rounds, show)
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
        records = [asdict(item) for item in found]
        drives.append({"share": share, "bytes_per_second": speed, "variants": records})
    return {"crossing_bytes": crossing_bytes, "hiding_bytes_per_second": hiding, "drives": drives}


def tabulate(record: Record) -> Rows:
    """A row for each variant at each bandwidth."""
    rows = [[*HEADINGS, "step / floor", "exposed s", "recomputes"]]
    for drive in record["drives"]:
        plain, *others = parse_measured(drive)
        speed = f"{drive['bytes_per_second'] / MIB:.1f} ({drive['share']})"
        for item in (plain, *others):
            if item.refused is not None:
                rows.append([speed, item.label, "no plan fits", *[""] * 6])
                continue
            floor = find_floor_seconds(item, plain, drive["bytes_per_second"])
            cells = [
                f"{item.peak_bytes / MIB:.1f}",
                f"{(item.written_bytes + item.read_bytes) / MIB:.1f}",
                f"{item.median_seconds:.3f}",
                f"{floor:.3f}",
                f"{item.median_seconds / floor:.3f}",
                f"{item.exposed_seconds:.3f}",
                describe_cut(item.cut),
            ]
            rows.append([speed, item.label, *cells])
    return rows


def find_floor_seconds(item: Measured, plain: Measured, bytes_per_second: float) -> float:
    """What neither compute nor the drive can do in less."""
    directions = item.written_bytes, item.read_bytes
    queued_bytes = max(directions) if item.share is None else sum(directions)
    return max(plain.median_seconds, queued_bytes / bytes_per_second)


main = Benchmark("slow_drive", __doc__, DriveArguments, measure, show_rows(tabulate))

if __name__ == "__main__":
    main()
