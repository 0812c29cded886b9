"""Measures the round trips of a store with the option `checksum` and without.

    python -m benchmarks.checksum_cost --size 16MiB --directory /mnt/nvme

Each round takes `--values` values out and back through a store of each kind, in turn; the ratio is
that of paired rounds.
"""

from __future__ import annotations

import statistics
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.fresh_process import Record
from benchmarks.graph_calls import open_store
from benchmarks.runner import Arguments, Benchmark, Show, Table, option, parse_size
from benchmarks.transfers import StoreTransfers, make_values, time_transfers
from fxoffload import runtime
from fxoffload.sizes import MIB

LABELS = {"plain": "no", "checked": "yes"}


@dataclass(frozen=True, slots=True)
class ChecksumArguments(Arguments):
    """The command line."""

    size: int = option("16MiB", "of one value", type=parse_size)
    values: int = option(16, "values in a round")
    rounds: int = option(10)
    directory: Path | None = option(
        None, "on the drive; default: that of temporary files", type=Path
    )
    ioengine: str = option("posix")


def measure(arguments: ChecksumArguments, show: Show) -> Record:
    """Medians and the ratio of paired rounds; "rounds" has those without digests first."""
    torch.set_num_threads(1)
    count, place = arguments.values, {"ioengine": arguments.ioengine}
    values = make_values(arguments.size, count)
    rounds: dict[str, list[Record]] = {kind: [] for kind in LABELS}
    with ExitStack() as stack:
        names = [
            stack.enter_context(
                open_store(arguments.directory, checksum=kind == "checked", **place)
            )
            for kind in LABELS
        ]
        stores = list(map(runtime.find_store, names))
        for index in range(arguments.rounds + 1):
            for store, records in zip(stores, rounds.values(), strict=True):
                timings = time_transfers(
                    StoreTransfers(store, values, count), arguments.size * count
                )
                if index:  # The first takes new space on the drive.
                    seconds, core_seconds = (
                        sum(each) for each in list(zip(*timings, strict=True))[1:]
                    )
                    records.append({"seconds": seconds, "core_seconds": core_seconds})
        found: Record = {"ioengine": stores[1].statistics().ioengine, "size_bytes": arguments.size}
    round_bytes = 2 * arguments.size * count
    for kind, records in rounds.items():
        seconds, core_seconds = (
            statistics.median(each[name] for each in records)
            for name in ("seconds", "core_seconds")
        )
        found[f"{kind}_mib_per_second"] = round_bytes / MIB / seconds
        found[f"{kind}_core_seconds_per_gib"] = core_seconds * 2**30 / round_bytes
    pairs = zip(*rounds.values(), strict=True)
    ratio = statistics.median(own["seconds"] / plain["seconds"] for plain, own in pairs)
    return {**found, "seconds_ratio": ratio, "rounds": [*rounds.values()]}


def tabulate(record: Record) -> list[Table]:
    """One line with digests and one without."""
    rows = [["checksum", "MiB/s, both ways", "core-seconds per GiB"]]
    for kind, label in LABELS.items():
        speed, cost = record[f"{kind}_mib_per_second"], record[f"{kind}_core_seconds_per_gib"]
        rows.append([label, f"{speed:.0f}", f"{cost:.3f}"])
    caption = f"time with digests over without, paired: {record['seconds_ratio']:.3f}"
    return [Table(rows, f"round trips of a store, {record['ioengine']}", caption)]


main = Benchmark("checksum_cost", __doc__, ChecksumArguments, measure, tabulate)

if __name__ == "__main__":
    main()
